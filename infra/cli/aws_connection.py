"""The connection to AWS, or to the embedded AWS of a local stack: with the operator's own credentials, and with every refusal
put into words."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore import exceptions as aws
from botocore.config import Config
from botocore.parsers import ResponseParserError

from infra.cli.aws_errors import in_words, is_foreign
from infra.cli.terminal import plain
from infra.errors import OperatorError
from infra.local import access_keys

type Json = dict[str, Any]

INVOKE_ONCE = Config(read_timeout=900, retries={"total_max_attempts": 1})
"""A function runs for at most 900 s. Never retried: a second rotation would invalidate the token before last, which clients
may still use."""

LOCAL_ONCE = Config(proxies={}, retries={"total_max_attempts": 1})
"""No proxy reaches this machine's own address, and what does not respond there at once is not running."""

START_LOCAL = "is `token-keeper local` running? TOKEN_KEEPER_LOCAL_PORT names its port."


class AwsConnection:
    """Asks AWS. Every method raises OperatorError where AWS cannot be asked, or refuses."""

    def __init__(self, region: str | None = None, local_port: int | None = None) -> None:
        """Connect to AWS; with `local_port`, to that of the `token-keeper local` whose API is on that port.

        Without `region`, AWS_REGION is taken (botocore itself does not know it), AWS_DEFAULT_REGION or the profile's.
        """
        self.local_port = local_port
        self.local_keys = None if local_port is None else access_keys.read(local_port)
        """What the local stack has written for its operator; None for a stack in AWS."""
        if self.is_local and not self.local_keys:
            raise OperatorError(f"On port {local_port} there is no local stack of yours: {START_LOCAL}")
        self._endpoint = self.local_keys.endpoint_url if self.local_keys else None
        self._config = LOCAL_ONCE if self.is_local else Config()
        self._clients: dict[str, Any] = {}
        self.region = region or os.environ.get("AWS_REGION") or None
        with self.errors_in_words("the session"):
            self.session = (
                access_keys.session(self.local_keys.operator)
                if self.local_keys
                else boto3.Session(region_name=self.region)
            )
        self.region = self.session.region_name

    @property
    def is_local(self) -> bool:
        """Whether it is that to a local stack."""
        return self.local_port is not None

    def client(self, service: str) -> Any:
        """boto3's client for a service. What it raises is put into words by `errors_in_words`."""
        if service not in self._clients:
            self._clients[service] = self.session.client(  # type: ignore[call-overload]
                service, endpoint_url=self._endpoint, config=self._config
            )
        return self._clients[service]

    def ask(self, service: str, operation: str, subject: str, **arguments: Any) -> Json:
        """Ask a service about `subject`, by one of boto3's operations."""
        with self.errors_in_words(subject):
            response: Json = getattr(self.client(service), operation)(**arguments)
        return response

    def ask_all(self, service: str, operation: str, listed: str, subject: str, **arguments: Any) -> list[Any]:
        """All that an operation lists under `listed`, over its pages."""
        with self.errors_in_words(subject):
            pages = self.client(service).get_paginator(operation).paginate(**arguments)
            return [item for page in pages for item in page[listed]]

    def invoke(self, function: str, event: Json, wanted: str) -> Json:
        """Have a Lambda function handle an event, once; returns its response, which has the field `wanted`."""
        config = self._config.merge(INVOKE_ONCE)
        with self.errors_in_words(function):
            client = self.session.client("lambda", endpoint_url=self._endpoint, config=config)
            reply = client.invoke(FunctionName=function, Payload=json.dumps(event))
            response: Json = json.load(reply["Payload"])
            if "FunctionError" not in reply:
                return {**response, wanted: response[wanted]}
        error = plain(response.get("errorType"))
        raise OperatorError(f"{function} failed with {error}: read its log to see why.")

    @contextmanager
    def errors_in_words(self, subject: str) -> Iterator[None]:
        """Raise OperatorError for what AWS refused, or why it could not be asked. `subject`: what it was asked about."""
        try:
            yield
        except (aws.ClientError, aws.BotoCoreError, ResponseParserError, LookupError, ValueError) as error:
            raise OperatorError(self._in_words(error, subject)) from None

    def _in_words(self, error: Exception, subject: str) -> str:
        if self.is_local and isinstance(error, aws.ConnectionError | aws.HTTPClientError):
            return not_running(str(self._endpoint))
        if self.is_local and (is_foreign(error) or isinstance(error, KeyError)):
            return f"What responds at {self._endpoint} is no local stack of yours: {START_LOCAL}"
        return in_words(error, subject=subject, region=self.region)


def not_running(where: str) -> str:
    """The sentence for a local stack that does not respond there."""
    return f"Nothing responds at {where}: {START_LOCAL}"
