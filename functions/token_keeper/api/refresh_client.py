"""Adapter: the reader's way to ask RefreshFunction for a value."""

import json
from typing import TYPE_CHECKING, Any

from token_keeper import aws_errors
from token_keeper.errors import RefresherUnavailableError

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient


class Refresher:
    """RefreshFunction, by its name. The client must not retry: the table's lease makes a second call pointless."""

    def __init__(self, client: "LambdaClient", function_name: str) -> None:
        self._client = client
        self._function_name = function_name

    def renew(self, account: str, credential: str) -> None:
        """Have the credential renewed if it is due, and wait for that. Raises `RefresherUnavailableError`."""
        self._invoke({"renew": {"account": account, "credential": credential}})

    def verify(self, account: str, fingerprint: str) -> dict[str, Any]:
        """Have a reported access token checked, and replaced if it is dead; returns RefreshFunction's summary.

        Raises `RefresherUnavailableError`.
        """
        return self._invoke({"verify": {"account": account, "fingerprint": fingerprint}})

    def _invoke(self, event: dict[str, Any]) -> dict[str, Any]:
        try:
            reply = self._client.invoke(FunctionName=self._function_name, Payload=json.dumps(event))
            summary: dict[str, Any] = json.load(reply["Payload"])
        except aws_errors.raised() as error:
            raise RefresherUnavailableError(f"RefreshFunction: {aws_errors.code_of(error)}") from None
        if "FunctionError" in reply:
            raise RefresherUnavailableError("RefreshFunction failed")
        return summary
