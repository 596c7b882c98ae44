"""Requests generated from the OpenAPI document: each response is one that it describes, and no 5xx except the honest 503."""

from typing import Any

from hypothesis import HealthCheck, settings

from tests.integration.front import front
from tests.support import openapi
from tests.support.tools import needed

schemathesis = needed("schemathesis")
pytest_plugins = ("schemathesis.pytest.plugin",)

schema = schemathesis.openapi.from_dict(openapi.DOCUMENT)
schema.app = front().app
CHECKS = [
    schemathesis.checks.not_a_server_error,
    *(
        check
        for check in schemathesis.checks.CHECKS.get_all()
        if check.__name__
        in (
            "status_code_conformance",
            "content_type_conformance",
            "response_schema_conformance",
            "response_headers_conformance",
        )
    ),
]


@schema.parametrize()  # type: ignore[untyped-decorator] # schemathesis leaves its own decorator untyped
@settings(max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_what_the_document_makes_one_think_of(case: Any) -> None:
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
        case.validate_response(response, checks=CHECKS)
