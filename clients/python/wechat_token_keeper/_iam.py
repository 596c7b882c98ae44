"""The keeper asked with an AWS identity, by its own API `/v1`. Signing is botocore's: the extra `[iam]` brings it."""

import hashlib
import json
import re
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from wechat_token_keeper import _http
from wechat_token_keeper._clock import Clock
from wechat_token_keeper._consumer_key import received
from wechat_token_keeper._jsapi import checked_page
from wechat_token_keeper._source import JsapiSignature, Received
from wechat_token_keeper.errors import (
    AccessDeniedError,
    KeeperError,
    SetupError,
    UnavailableError,
    UnknownCredentialError,
)

if TYPE_CHECKING:
    from botocore.session import Session

_ACCOUNT = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_REGION_IN_HOST = re.compile(r"\.execute-api\.([a-z0-9-]+)\.amazonaws\.com(\.cn)?$")

MAX_CLOCK_SKEW = 300
"""Seconds that AWS tolerates between its clock and the date of a signature (Signature Version 4)."""


class IamAccount:
    """An account by its name in the keeper. `session`: botocore's; the default finds credentials as every AWS tool does."""

    def __init__(self, url: str, account: str, session: "Session | None", clock: Clock) -> None:
        try:
            from botocore.session import get_session
        except ImportError:
            raise SetupError(
                "Signing needs botocore, which is not installed", "pip install 'wechat-token-keeper-client[iam]'"
            ) from None
        if not _ACCOUNT.fullmatch(account):
            raise SetupError(
                "This cannot be an account's name", "It is 1 to 64 lower-case letters, digits and -, like `main`."
            )
        self._url, self.app_id, self._clock = url, account, clock
        self._session = session or get_session()
        in_host = _REGION_IN_HOST.search(urlsplit(url).hostname or "")
        region = in_host[1] if in_host else self._session.get_config_variable("region")
        if not region:
            raise SetupError("The region of the keeper's stack is not known", "Set AWS_REGION.")
        self._region = region

    def token(self) -> Received:
        return received(self._call("GET", "/access-token"), "access_token")

    def report(self, refused: str) -> Received:
        report = {"fingerprint": hashlib.sha256(refused.encode()).hexdigest()[:16]}
        return received(self._call("POST", "/access-token/reports", body=json.dumps(report).encode()), "access_token")

    def ticket(self, ticket_type: str, current_token: Callable[[], str]) -> Received:
        return received(self._call("GET", f"/tickets/{quote(ticket_type, safe='')}"), "ticket")

    def jsapi_signature(self, url: str, ticket_type: str, ticket: Callable[[], str]) -> JsapiSignature:
        # The keeper signs, so that the identity needs no permission to read the ticket.
        query = {"url": checked_page(url)} | ({} if ticket_type == "jsapi" else {"type": ticket_type})
        reply = self._call("GET", "/jsapi-signature?" + urlencode(query, quote_via=quote, safe=""))
        return {
            "appId": str(reply["appId"]),
            "timestamp": int(reply["timestamp"]),
            "nonceStr": str(reply["nonceStr"]),
            "signature": str(reply["signature"]),
        }

    def _call(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        url = f"{self._url}/v1/accounts/{self.app_id}{path}"
        response = _http.send(method, url, body, self._signed_headers(method, url, body))
        if response.status == 200:
            return response.json()
        raise self._error(response)

    def _signed_headers(self, method: str, url: str, body: bytes | None) -> dict[str, str]:
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.exceptions import BotoCoreError

        headers = {} if body is None else {"Content-Type": "application/json"}
        request = AWSRequest(method=method, url=url, data=body, headers=headers)
        cause = ""
        try:
            credentials = self._session.get_credentials()
            if credentials is not None:
                SigV4Auth(credentials.get_frozen_credentials(), "execute-api", self._region).add_auth(request)
                return dict(request.headers.items())
        except BotoCoreError as error:
            cause = type(error).__name__
        if cause:
            raise UnavailableError(f"AWS credentials could not be loaded: {cause}", "Check the role or the profile.")
        raise SetupError("There are no AWS credentials", "Give the process a role, a profile or AWS_ACCESS_KEY_ID.")

    def _error(self, response: _http.Response) -> KeeperError:
        try:
            problem = response.json()
        except UnavailableError as error:
            return error
        code = problem.get("code")
        retry_after = _seconds(response.headers.get("retry-after"))
        if response.status == 403:
            return AccessDeniedError(
                f"The token keeper does not let this AWS identity read {self.app_id}",
                _clock_remedy(response.headers.get("date"), self._clock.epoch_seconds())
                or f"Allow execute-api:Invoke on …/v1/accounts/{self.app_id}/…, and sign for {self._region}.",
            )
        if code in ("unknown_account", "unknown_credential"):
            return UnknownCredentialError(
                f"The token keeper has no such credential of the account {self.app_id}",
                "`token-keeper accounts list` shows what is kept.",
            )
        if code == "no_valid_value":
            cause = problem.get("cause") or {}
            known = f": {cause.get('class')}, errcode {cause.get('errcode')}" if cause else ""
            return UnavailableError(
                f"The token keeper has no usable value for {self.app_id} right now{known}",
                str(cause.get("remedy") or "`token-keeper status` shows why, and what to do."),
                retry_after,
            )
        if code == "invalid_request":
            return SetupError("The token keeper does not understand the request", str(problem.get("detail", "")))
        return UnavailableError(
            f"The token keeper responded with HTTP {response.status}" + (f" ({code})" if code else ""),
            "Ask again later.",
            retry_after,
        )


def _seconds(retry_after: str | None) -> float:
    return int(retry_after) if retry_after is not None and retry_after.isdigit() else 1


def _clock_remedy(date: str | None, now: int) -> str | None:
    """What to do where the signature was not accepted because this machine's clock is wrong."""
    try:
        responded_at = parsedate_to_datetime(date or "")
    except ValueError:
        return None
    skew = round(now - responded_at.timestamp())
    if abs(skew) < MAX_CLOCK_SKEW:
        return None
    return f"This machine's clock is wrong by {skew} s, and AWS accepts signatures within {MAX_CLOCK_SKEW} s: set it."
