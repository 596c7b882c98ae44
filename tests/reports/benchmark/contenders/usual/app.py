"""The usual stack: Powertools' event handler, Logger, Metrics and Tracer, and a boto3 resource."""

import os
from typing import Any

import boto3
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver
from aws_lambda_powertools.metrics import MetricUnit

app = APIGatewayHttpResolver()
logger = Logger(service="usual")
metrics = Metrics(namespace="benchmark", service="usual")
tracer = Tracer(service="usual")
table = boto3.resource("dynamodb").Table(os.environ["TABLE_NAME"])


@app.get("/v1/accounts/<account>/access-token")
@tracer.capture_method
def access_token(account: str) -> dict[str, Any]:
    """The account's access token."""
    key = {"pk": f"credential#{account}", "sk": "access_token"}
    item: dict[str, Any] = table.get_item(Key=key, ConsistentRead=True)["Item"]
    logger.info("handed out", account=account)
    metrics.add_metric(name="HandedOut", unit=MetricUnit.Count, value=1)
    return {"access_token": item["value"], "expires_at": int(item["expires_at"])}


@logger.inject_lambda_context
@metrics.log_metrics
@tracer.capture_lambda_handler
def handler(event: dict[str, Any], context: Any) -> Any:
    """AWS Lambda's entry."""
    return app.resolve(event, context)
