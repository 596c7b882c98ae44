"""AWS without boto3, whose loading alone takes longer than all the rest of a reader's cold start.

`client` makes what `boto3.client` would, as far as the readers use it: the same methods, arguments and answers. Nothing that
AWS or the network says is repeated in an error but AWS's error code: AWS quotes a badly signed request with its token.
"""

import hashlib
import hmac
import io
import json
import re
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPSConnection
from typing import Any
from urllib.parse import quote, urlsplit

CONNECT_TIMEOUT = 1
READ_TIMEOUT = 2
"""Seconds. A reader would rather say "stale" or 503 than keep its caller waiting."""

PAUSE = 0.05
"""Seconds before the second and last attempt."""

IDLE = 60
"""Seconds after which an unused connection is not trusted: a frozen Lambda does not notice that it was closed, and finds
out by waiting for an answer. A new one costs a few milliseconds."""

INVOKE_TIMEOUT = 8
"""Seconds a reader waits for a function, cold start included; API Gateway itself gives up after 30."""

_THROTTLED = {"ThrottlingException", "ProvisionedThroughputExceededException", "RequestLimitExceeded"}
_CODE = re.compile(r"\w{1,80}")
_HEADER_VALUE = re.compile("[!-~]+")


class RefusedError(Exception):
    """AWS answered with an error. `response` holds its code as in boto3's ClientError; `retryable`: it may pass."""

    def __init__(self, code: str, *, retryable: bool = False) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}}
        self.retryable = retryable


class UnreachableError(Exception):
    """AWS did not answer, or there are no credentials to ask with."""

    retryable = True


def refusals() -> tuple[type[Exception], ...]:
    """What `except` is to name for "AWS answered with an error": ours, and boto3's where that is loaded."""
    return (RefusedError, *_of_boto3("ClientError"))


def outages() -> tuple[type[Exception], ...]:
    """What `except` is to name for "there was no answer": ours, and boto3's where that is loaded."""
    return (UnreachableError, *_of_boto3("BotoCoreError"))


def _of_boto3(name: str) -> list[type[Exception]]:
    loaded = sys.modules.get("botocore.exceptions")
    return [getattr(loaded, name)] if loaded else []


def client(service: str, environment: Mapping[str, str], clock: Callable[[], float] = time.time) -> Any:
    """Make a client of `dynamodb` or `lambda` for a function's environment, which may be shared between threads.

    Its methods raise `RefusedError` and `UnreachableError`. `clock`: epoch seconds, as AWS reckons them.
    """
    return _SERVICES[service](environment, clock)


@dataclass(frozen=True)
class Credentials:
    """What requests are signed with."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    token: str | None = field(repr=False)


def sign(
    headers: Mapping[str, str],
    path: str,
    body: bytes,
    credentials: Credentials,
    *,
    region: str,
    service: str,
    at: float,
) -> dict[str, str]:
    """The headers of a POST, `Host` among them, with those added that sign it (AWS Signature Version 4)."""
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))
    day = moment[:8]
    headers = {**headers, "X-Amz-Date": moment}
    if credentials.token:
        headers["X-Amz-Security-Token"] = credentials.token
    signed = sorted((name.lower(), value) for name, value in headers.items())
    names = ";".join(name for name, _ in signed)
    lines = "".join(f"{name}:{value}\n" for name, value in signed)
    # Every service but S3 takes the path encoded once more than it is sent.
    request = f"POST\n{quote(path, safe='/~')}\n\n{lines}\n{names}\n{hashlib.sha256(body).hexdigest()}"
    scope = f"{day}/{region}/{service}/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{credentials.secret_key}".encode()
    for part in (day, region, service, "aws4_request", text):
        key = hmac.digest(key, part.encode(), "sha256")
    credential = f"Credential={credentials.access_key}/{scope}"
    headers["Authorization"] = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={key.hex()}"
    return headers


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: HTTPMessage
    body: bytes


class _Service:
    name = ""
    attempts = 2
    read_timeout = READ_TIMEOUT

    def __init__(self, environment: Mapping[str, str], clock: Callable[[], float]) -> None:
        self._region = environment.get("AWS_REGION") or environment["AWS_DEFAULT_REGION"]
        self._endpoint = _Endpoint(_url(self.name, self._region, environment), self.read_timeout, clock)
        self._environment = environment
        self._clock = clock

    def _post(self, path: str, headers: Mapping[str, str], body: bytes) -> _Answer:
        for _ in range(self.attempts - 1):
            try:
                return self._attempt(path, headers, body)
            except (RefusedError, UnreachableError) as error:
                if not error.retryable:
                    raise
            time.sleep(PAUSE)
        return self._attempt(path, headers, body)

    def _attempt(self, path: str, headers: Mapping[str, str], body: bytes) -> _Answer:
        signed = sign(
            {"Host": self._endpoint.host, **headers},
            path,
            body,
            _credentials(self._environment),
            region=self._region,
            service=self.name,
            at=self._clock(),
        )
        answer = self._endpoint.post(path, signed, body)
        if answer.status < 300:
            return answer
        code = _error_code(answer)
        raise RefusedError(code, retryable=answer.status >= 500 or code in _THROTTLED)


class _DynamoDB(_Service):
    """DynamoDB's readings."""

    name = "dynamodb"

    def get_item(self, **asked: Any) -> Any:
        return self._call("GetItem", asked)

    def batch_get_item(self, **asked: Any) -> Any:
        return self._call("BatchGetItem", asked)

    def query(self, **asked: Any) -> Any:
        return self._call("Query", asked)

    def _call(self, operation: str, asked: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": f"DynamoDB_20120810.{operation}"}
        return json.loads(self._post("/", headers, json.dumps(asked).encode()).body)


class _Lambda(_Service):
    """Lambda's Invoke. A function that gave no answer in time may still run, so it is not asked again."""

    name = "lambda"
    attempts = 1
    read_timeout = INVOKE_TIMEOUT

    def invoke(self, FunctionName: str, Payload: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        path = f"/2015-03-31/functions/{quote(FunctionName, safe='')}/invocations"
        answer = self._post(path, {"Content-Type": "application/json"}, Payload.encode())
        failed = answer.headers.get("X-Amz-Function-Error")
        error = {"FunctionError": failed} if failed else {}
        return {"StatusCode": answer.status, "Payload": io.BytesIO(answer.body), **error}


_SERVICES: dict[str, type[_Service]] = {"dynamodb": _DynamoDB, "lambda": _Lambda}


def _url(service: str, region: str, environment: Mapping[str, str]) -> str:
    configured = environment.get(f"AWS_ENDPOINT_URL_{service.upper()}") or environment.get("AWS_ENDPOINT_URL")
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return configured or f"https://{service}.{region}.{suffix}"


def _error_code(answer: _Answer) -> str:
    """AWS's error code; what does not look like one is left out."""
    code: object = answer.headers.get("x-amzn-ErrorType")
    if not code:
        try:
            code = json.loads(answer.body)["__type"]
        except (ValueError, LookupError, TypeError, RecursionError):
            code = None
    # As AWS's protocols have it: "namespace#Code:address".
    found = _CODE.fullmatch(str(code).rpartition("#")[2].partition(":")[0]) if code else None
    return found.group() if found else f"HTTP {answer.status}"


@cache
def _tls() -> ssl.SSLContext:
    """One for all: to load the authorities takes as long as half of a reader's other init."""
    return ssl.create_default_context()


class _Endpoint:
    """HTTP with one server over connections that are kept."""

    def __init__(self, url: str, read_timeout: float, clock: Callable[[], float]) -> None:
        parts = urlsplit(url)
        self.host = parts.netloc
        self._read_timeout = read_timeout
        self._clock = clock
        self._tls = _tls() if parts.scheme == "https" else None
        self._unused: list[tuple[HTTPConnection, float]] = []

    def post(self, path: str, headers: Mapping[str, str], body: bytes) -> _Answer:
        """Send a request. One that a kept connection breaks under is sent again over a new one: it was closed before.

        Raises `UnreachableError`.
        """
        while (kept := self._kept()) is not None:
            try:
                return self._exchange(kept, path, headers, body)
            except (ConnectionError, ssl.SSLError):
                kept.close()
            except (OSError, HTTPException) as error:
                kept.close()
                raise UnreachableError(type(error).__name__) from None
        connection = self._new()
        try:
            connection.connect()
            connection.sock.settimeout(self._read_timeout)
            return self._exchange(connection, path, headers, body)
        except (OSError, HTTPException) as error:
            connection.close()
            raise UnreachableError(type(error).__name__) from None

    def _new(self) -> HTTPConnection:
        if self._tls is None:
            return HTTPConnection(self.host, timeout=CONNECT_TIMEOUT)
        return HTTPSConnection(self.host, timeout=CONNECT_TIMEOUT, context=self._tls)

    def _kept(self) -> HTTPConnection | None:
        while self._unused:
            try:
                connection, since = self._unused.pop()
            except IndexError:  # another thread was faster
                return None
            if 0 <= self._clock() - since < IDLE:
                return connection
            connection.close()
        return None

    def _exchange(self, connection: HTTPConnection, path: str, headers: Mapping[str, str], body: bytes) -> _Answer:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        answer = _Answer(response.status, response.headers, response.read())
        if response.will_close:
            connection.close()
        else:
            self._unused.append((connection, self._clock()))
        return answer


def _credentials(environment: Mapping[str, str]) -> Credentials:
    """A function's credentials, which Lambda puts into its environment. Raises `UnreachableError`."""
    token = environment.get("AWS_SESSION_TOKEN")
    return Credentials(
        _printable(environment.get("AWS_ACCESS_KEY_ID")),
        _printable(environment.get("AWS_SECRET_ACCESS_KEY")),
        _printable(token) if token else None,
    )


def _printable(value: str | None) -> str:
    # http.client would put a value that it cannot send into its exception.
    if not (isinstance(value, str) and _HEADER_VALUE.fullmatch(value)):
        raise UnreachableError("a credential in the environment is missing or holds blanks")
    return value
