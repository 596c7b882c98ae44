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


def raised() -> tuple[type[Exception], ...]:
    """For `except`, what AWS clients raise: the readers' own, and boto3's where that is loaded."""
    boto3s = sys.modules.get("botocore.exceptions")
    return AwsError, AwsUnavailableError, *((boto3s.ClientError, boto3s.BotoCoreError) if boto3s else ())


def code_of(error: Exception) -> str:
    """AWS's error code, or the name of the exception where AWS did not respond."""
    response = getattr(error, "response", None)
    return str(response["Error"]["Code"]) if response else type(error).__name__
