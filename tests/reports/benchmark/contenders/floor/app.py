"""The least that reads a table with boto3: one client, one `get_item`."""

import json
import os
from typing import Any

import boto3

dynamodb = boto3.client("dynamodb")


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """AWS Lambda's entry."""
    key = {"pk": {"S": f"credential#{event['pathParameters']['account']}"}, "sk": {"S": "access_token"}}
    item = dynamodb.get_item(TableName=os.environ["TABLE_NAME"], Key=key, ConsistentRead=True)["Item"]
    body = {"access_token": item["value"]["S"], "expires_at": int(item["expires_at"]["N"])}
    return {"statusCode": 200, "headers": {"Content-Type": "application/json"}, "body": json.dumps(body)}
