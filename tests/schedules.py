"""The probe's schedule in a local stack whose template does not have it yet."""

from contextlib import suppress
from typing import Any

import boto3

from infra.local import LocalStack


def make_probe_schedule(local: LocalStack) -> None:
    """Make it, unless it is there."""
    key: Any = {"aws_access_key_id": "operator", "aws_secret_access_key": "operator"}
    scheduler = boto3.client("scheduler", "us-east-1", endpoint_url=local.aws_url, **key)
    every: Any = {"ScheduleExpression": "rate(5 minutes)", "FlexibleTimeWindow": {"Mode": "OFF"}}
    with suppress(scheduler.exceptions.ConflictException):
        scheduler.create_schedule(Name="local-probe", Target={"Arn": "arn:x", "RoleArn": "arn:y"}, **every)
