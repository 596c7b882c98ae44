"""What AWS clients raise, whether they are the readers' own or boto3's."""

import sys


class AwsError(Exception):
    """AWS responded with an error. `response` holds its code as in boto3's ClientError; `retryable`: it may pass."""

    def __init__(self, code: str, *, retryable: bool = False) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}}
        self.retryable = retryable


class AwsUnavailableError(Exception):
    """AWS did not respond, or there are no credentials to ask with."""

    retryable = True


def client_errors() -> tuple[type[Exception], ...]:
    """For `except`: "AWS responded with an error": ours, and boto3's where that is loaded."""
    return (AwsError, *_of_boto3("ClientError"))


def connection_errors() -> tuple[type[Exception], ...]:
    """For `except`: "there was no response": ours, and boto3's where that is loaded."""
    return (AwsUnavailableError, *_of_boto3("BotoCoreError"))


def _of_boto3(name: str) -> list[type[Exception]]:
    loaded = sys.modules.get("botocore.exceptions")
    return [getattr(loaded, name)] if loaded else []
