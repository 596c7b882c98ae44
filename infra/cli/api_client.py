"""The stack's HTTP API, asked with the operator's signature, or with a local stack's key."""

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from urllib.parse import quote

import boto3
import requests
from botocore import exceptions as aws
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from requests.auth import AuthBase

from infra.cli.aws_connection import AwsConnection, Json, not_running
from infra.cli.aws_errors import NOT_AWS, SIGN_IN, by_code
from infra.cli.terminal import plain
from infra.errors import NoTokenError, OperatorError, UnknownAccountError
from infra.local import access_keys

TIMEOUT = 35
"""Seconds: API Gateway gives its integration 30, and its own response comes after that."""


class ApiClient:
    """Asks the API at `url`. Every method raises OperatorError where it cannot be asked, or refuses."""

    def __init__(self, aws_connection: AwsConnection, url: str) -> None:
        self._aws = aws_connection
        self._url = url.rstrip("/")

    def health(self, account: str | None = None) -> tuple[Json, float]:
        """The API's document on the account, or `{"accounts": […]}` with all; and the API's time in epoch seconds.

        Raises UnknownAccountError too.
        """
        if account is not None:
            return self._get(f"/v1/accounts/{quote(account, safe='')}", "credentials")
        page, now = self._get("/v1/accounts", "accounts")
        accounts = page["accounts"]
        while after := page.get("next"):
            page, now = self._get("/v1/accounts", "accounts", next=after)
            accounts += page["accounts"]
        return {"accounts": accounts}, now

    def token(self, account: str) -> Json:
        """The API's response with the account's access token. Raises NoTokenError and UnknownAccountError too."""
        document, _ = self._get(f"/v1/accounts/{quote(account, safe='')}/access-token", "access_token")
        return document

    def _get(self, path: str, wanted: str, **query: str) -> tuple[Json, float]:
        """The API's response, which has the field `wanted`, and its time."""
        with self._aws.errors_in_words(path), requests.Session() as http:
            http.trust_env = not self._aws.is_local  # as for LOCAL_ONCE: no proxy
            http.auth = _SigV4(self._aws.session)
            if keys := self._aws.local_keys:
                http.headers[access_keys.API_KEY_HEADER] = keys.api_key
            reply = self._request(lambda: http.get(self._url + path, params=query, timeout=TIMEOUT))
        date = reply.headers.get("Date")
        try:
            document = reply.json()
        except requests.JSONDecodeError:
            document = None
        if not isinstance(document, dict):
            raise OperatorError(
                f"{self._url} returned {reply.status_code} without JSON: a proxy or another program did, not the API."
            )
        code = document.get("code")
        if reply.status_code == 403:
            raise OperatorError(self._forbidden(path, reply.headers.get("x-amzn-errortype", ""), date))
        if code == "unknown_account":
            raise UnknownAccountError("There is no such account: `token-keeper accounts list` shows those there are.")
        if code == "no_valid_value":
            raise NoTokenError(_no_value(document))
        if not reply.ok:
            detail = document.get("detail") or document.get("title") or document.get("message")
            raise OperatorError(f"The API returned {reply.status_code}: {plain(detail)}")
        if wanted not in document:
            raise OperatorError(NOT_AWS.format(where="the API"))
        # The API's clock: this machine's may be wrong, and the local stack's may run fast.
        try:
            return document, parsedate_to_datetime(date or "").timestamp()
        except ValueError:
            return document, time.time()

    def _request(self, send: Callable[[], requests.Response]) -> requests.Response:
        try:
            return send()
        except requests.exceptions.ProxyError:
            raise OperatorError("The proxy cannot be reached: check HTTPS_PROXY and HTTP_PROXY.") from None
        except requests.exceptions.SSLError:
            raise OperatorError(
                "The API's certificate is not trusted: where a proxy replaces certificates, name its own in REQUESTS_CA_BUNDLE."
            ) from None
        except requests.RequestException:
            if self._aws.is_local:
                raise OperatorError(not_running(self._url)) from None
            raise OperatorError(f"{self._url} cannot be reached: check the network and the region.") from None

    def _forbidden(self, path: str, error_type: str, date: str | None) -> str:
        code = error_type.partition(":")[0]
        if code in ("", "ForbiddenException", "AccessDeniedException"):
            return f"AWS does not let you read {path}: have execute-api:Invoke on it allowed, or {SIGN_IN}."
        return by_code(code, operation="execute-api:Invoke", subject=path, region=self._aws.region, date=date)


def _no_value(document: Json) -> str:
    """A problem document of the API that says why there is no value."""
    cause = document.get("cause") or {}
    why = " ".join(plain(cause[part]) for part in ("class", "errcode") if cause.get(part) is not None)
    remedy = f"\n  → {plain(cause['remedy'])}" if cause.get("remedy") else ""
    return f"There is no usable token right now: {why or plain(document.get('detail'))}.{remedy}"


class _SigV4(AuthBase):
    """Signs a request to the API. (Being there, it also keeps `requests` from looking for a password in .netrc.)"""

    def __init__(self, session: boto3.Session) -> None:
        credentials = session.get_credentials()
        if credentials is None:
            raise aws.NoCredentialsError
        self._signer = SigV4Auth(credentials.get_frozen_credentials(), "execute-api", session.region_name)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        signed = AWSRequest(request.method, request.url)
        self._signer.add_auth(signed)
        request.headers.update(signed.headers.items())
        return request
