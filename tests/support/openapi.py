"""The OpenAPI document, and whether a response of the API is one that it describes."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from openapi_schema_validator import OAS31Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

DOCUMENT: dict[str, Any] = yaml.load(
    (Path(__file__).parents[2] / "infra" / "openapi.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader
)


def check(route_key: str, reply: Mapping[str, Any]) -> None:
    """Check a response (API Gateway's payload format 2.0) against the document: status, media type, body; no field too many."""
    method, path = route_key.split()
    if method == "ANY":  # what is served nowhere else: no operation for clients
        validate(json.loads(reply["body"]), {"$ref": "#/components/schemas/WeChatError"})
        return
    responses = DOCUMENT["paths"][path][method.lower()]["responses"]
    status = str(reply["statusCode"])
    assert status in responses, f"{route_key} is not said to respond {status}"
    response = resolved(responses[status])
    media_type = reply["headers"]["Content-Type"].partition(";")[0]
    assert media_type in response["content"], f"{route_key} is not said to respond {media_type} for {status}"
    for name, header in response.get("headers", {}).items():
        assert name in reply["headers"] or not resolved(header).get("required"), f"{route_key} says no {name}"
    validate(json.loads(reply["body"]), response["content"][media_type]["schema"])


def validate(instance: Any, schema: Mapping[str, Any]) -> None:
    """Raise jsonschema's ValidationError where the instance does not fit, or has a field that the schema does not name."""
    _validator(json.dumps(schema)).validate(instance)


def resolved(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a `$ref` within the document stands for."""
    while "$ref" in node:
        found: Any = DOCUMENT
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


@cache
def _validator(schema: str) -> Any:
    closed = _closed(json.loads(json.dumps(DOCUMENT)))
    registry = Registry().with_resource("urn:document", DRAFT202012.create_resource(closed))
    absolute = schema.replace('"#/', '"urn:document#/')
    return OAS31Validator(_closed(json.loads(absolute)), registry=registry)


def _closed(node: Any) -> Any:
    """With no field allowed but those that are named. The document itself leaves room for more, as clients should."""
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    closed = {name: _closed(item) for name, item in node.items()}
    return closed | {"additionalProperties": False} if node.get("type") == "object" else closed
