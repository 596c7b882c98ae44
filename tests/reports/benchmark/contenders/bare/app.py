"""A handler that does nothing: what Lambda itself costs."""

from typing import Any

RESPONSE = {"statusCode": 200, "headers": {"Content-Type": "application/json"}, "body": '{"access_token":"value"}'}


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """AWS Lambda's entry."""
    return RESPONSE
