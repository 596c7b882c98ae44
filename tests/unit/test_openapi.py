"""The OpenAPI document is one, and says what the template routes. What the API returns is checked against it in all tests."""

from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema.exceptions import ValidationError
from openapi_spec_validator import OpenAPIV31SpecValidator

from infra import sam_template
from tests.support.openapi import DOCUMENT, check, resolved, validate
from token_keeper.api.wechat_compatible import ERRMSG

METHODS = ("get", "post")


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in DOCUMENT["paths"].items():
        for method in METHODS:
            if method in item:
                yield method, path, item[method]


def test_it_is_an_openapi_document() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert DOCUMENT["openapi"].startswith("3.1.")


def test_it_describes_the_routes_that_are_deployed() -> None:
    described = {(method.upper(), path) for method, path, _ in operations()}
    routes = sam_template.routes(sam_template.translate())
    assert described == {(route.method, route.path) for route in routes if route.method != "ANY"}


def test_only_calls_in_wechats_format_need_no_signature() -> None:
    assert DOCUMENT["security"] == [{"sigv4": []}]
    unsigned = {path for _, path, operation in operations() if operation.get("security") == []}
    assert unsigned == {path for path in DOCUMENT["paths"] if path.startswith("/cgi-bin/")}


def test_each_operation_has_a_unique_id_for_generated_clients() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(names)) == len(names)


def test_it_names_the_errcodes_that_there_are() -> None:
    described = DOCUMENT["components"]["schemas"]["WeChatError"]["properties"]["errcode"]["enum"]
    assert set(described) == set(ERRMSG)


def test_its_examples_are_what_it_describes() -> None:
    examples = [
        (example, media["schema"])
        for _, _, operation in operations()
        for response in operation["responses"].values()
        for media in resolved(response)["content"].values()
        for example in [media.get("example"), *(each["value"] for each in media.get("examples", {}).values())]
        if example is not None
    ]
    assert len(examples) > 15
    for example, schema in examples:
        validate(example, schema)


@pytest.mark.parametrize(
    ("status", "content_type", "body"),
    [
        (200, "application/json", '{"appId":"wx0","timestamp":1,"nonceStr":"n","signature":"s"}'),
        (200, "application/json", '{"appId":"wx0","timestamp":1,"nonceStr":"n"}'),
        (
            200,
            "application/json",
            f'{{"appId":"wx0","timestamp":1,"nonceStr":"n","signature":"{"0" * 40}","ticket":""}}',
        ),
        (200, "text/plain", f'{{"appId":"wx0","timestamp":1,"nonceStr":"n","signature":"{"0" * 40}"}}'),
        (201, "application/json", f'{{"appId":"wx0","timestamp":1,"nonceStr":"n","signature":"{"0" * 40}"}}'),
    ],
)
def test_another_response_would_be_noticed(status: int, content_type: str, body: str) -> None:
    reply = {"statusCode": status, "headers": {"Content-Type": content_type}, "body": body}
    with pytest.raises((ValidationError, AssertionError)):
        check("GET /v1/accounts/{account}/jsapi-signature", reply)
