"""Requests generated from the OpenAPI document: each response is one that it describes, and no 5xx except the honest 503."""

from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.integration.front import front
from tests.support import openapi
from tests.support.tools import needed

# schemathesis takes seconds to load: only when a test runs, and in one worker.
pytestmark = pytest.mark.xdist_group("generated requests")

OPERATIONS = [
    (path, method) for path, item in openapi.DOCUMENT["paths"].items() for method in item if method in ("get", "post")
]

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)


@cache
def schema() -> Any:
    loaded = needed("schemathesis").openapi.from_dict(openapi.DOCUMENT)
    loaded.app = front().app
    return loaded


@pytest.mark.parametrize("examples", [8, pytest.param(30, marks=pytest.mark.long)])
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_what_the_document_makes_one_think_of(path: str, method: str, examples: int) -> None:
    schemathesis, builder = needed("schemathesis"), needed("schemathesis.generation.hypothesis.builder")
    schemathesis.checks.load_all_checks()
    checks = [check for check in schemathesis.checks.CHECKS.get_all() if check.__name__ in CHECKS]
    assert len(checks) == len(CHECKS)

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def asked(case: Any) -> None:
        # When it is asked as the document says, or not quite; and the same with an account and a key that exist
        for right in (False, True):
            if right and "account" in (case.path_parameters or {}):
                case.path_parameters["account"] = "main"
            if right and isinstance(case.query, dict) and "secret" in case.query:
                case.query |= front().query()
            if right and isinstance(case.body, dict):
                case.body |= front().query()
            response = case.call()
            if response.status_code == 404 and response.json() == {"message": "Not Found"}:
                continue  # the gateway has no such route
            # Then the response is one that the document describes
            case.validate_response(response, checks=checks)

    modes = list(builder.HypothesisTestMode)
    config = builder.HypothesisTestConfig(project=schema().config, modes=modes)
    builder.create_test(operation=schema()[path][method], test_func=asked, config=config)()
