"""AWS without boto3, whose loading alone takes longer than all the rest of a reader's cold start.

A `Client` is what `boto3.client` would make, as far as the readers use it: the same methods, arguments and responses. Nothing
that AWS or the network says is repeated in an error but AWS's error code: AWS quotes a badly signed request with its token.
"""

import io
import json
import re
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial, partialmethod
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import quote, urlsplit

from token_keeper.api.aws.sigv4 import Credentials, sign
from token_keeper.aws_errors import AwsError, AwsUnavailableError
from token_keeper.untrusted import json_object

CONNECT_TIMEOUT = 1
READ_TIMEOUT = 2
"""Seconds, both. A reader would rather say "stale" or 503 than keep its caller waiting."""

PAUSE = 0.05
"""Seconds before the second and last attempt."""

INVOKE_TIMEOUT = 8
"""Seconds a reader waits for a function, cold start included; API Gateway itself gives up after 30."""

IDLE = 60
"""Seconds after which an unused connection is not trusted: a frozen Lambda does not notice that it was closed, and finds
out by waiting for a response. A new one costs a few milliseconds."""

_tls = cache(ssl.create_default_context)
"""One for all: to load the authorities takes as long as half of a reader's other init."""

_THROTTLED = {"ThrottlingException", "ProvisionedThroughputExceededException", "RequestLimitExceeded"}


class Client:
    """A client of `dynamodb` or `lambda` for a function's environment, which may be shared between threads.

    Its methods raise `AwsError` and `AwsUnavailableError`. `clock`: epoch seconds, as AWS reckons them.
    """

    def __init__(self, service: str, environment: Mapping[str, str], clock: Callable[[], float] = time.time) -> None:
        region = environment.get("AWS_REGION") or environment["AWS_DEFAULT_REGION"]
        url = urlsplit(_url(service, region, environment))
        new_connection = partial(HTTPSConnection, context=_tls()) if url.scheme == "https" else HTTPConnection
        self._new_connection: Callable[[], HTTPConnection] = partial(
            new_connection, url.netloc, timeout=CONNECT_TIMEOUT
        )
        self._unused: list[tuple[HTTPConnection, float]] = []
        self._read_timeout = INVOKE_TIMEOUT if service == "lambda" else READ_TIMEOUT
        self._host = url.netloc
        self._scope = f"{region}/{service}"
        self._environment = environment
        self._clock = clock

    def _read(self, operation: str, **asked: Any) -> Any:
        """Read from DynamoDB. What may pass is tried once more."""
        headers = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": f"DynamoDB_20120810.{operation}"}
        post = partial(self._post, "/", headers, json.dumps(asked))
        try:
            _, body = post()
        except (AwsError, AwsUnavailableError) as error:
            if not error.retryable:
                raise
            time.sleep(PAUSE)
            _, body = post()
        return json.loads(body)

    get_item = partialmethod(_read, "GetItem")
    batch_get_item = partialmethod(_read, "BatchGetItem")
    query = partialmethod(_read, "Query")

    def invoke(self, FunctionName: str, Payload: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        """Invoke a function of Lambda. One that gave no response in time may still run, so it is not asked again."""
        path = f"/2015-03-31/functions/{quote(FunctionName, safe='')}/invocations"
        response, body = self._post(path, {"Content-Type": "application/json"}, Payload)
        failed = response.headers.get("X-Amz-Function-Error")
        error = {"FunctionError": failed} if failed else {}
        return {"StatusCode": response.status, "Payload": io.BytesIO(body), **error}

    def _post(self, path: str, headers: Mapping[str, str], text: str) -> tuple[HTTPResponse, bytes]:
        headers, sent = {"Host": self._host, **headers}, text.encode()
        signed = sign(headers, path, sent, _credentials(self._environment), self._scope, self._clock())
        response, body = self._exchange(path, signed, sent)
        if response.status >= 300:
            code = _error_code(response, body)
            raise AwsError(code, retryable=response.status >= 500 or code in _THROTTLED)
        return response, body

    def _exchange(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[HTTPResponse, bytes]:
        """Send a request. One that a kept connection breaks under is sent again over a new one: the server had closed it before."""
        while True:
            kept = self._kept()
            connection = kept or self._new_connection()
            try:
                if kept is None:
                    connection.connect()
                    connection.sock.settimeout(self._read_timeout)
                connection.request("POST", path, body, headers)
                response = connection.getresponse()
                reply = response.read()
                if not response.will_close:  # else http.client has closed it
                    self._unused.append((connection, self._clock()))
                return response, reply
            except (OSError, HTTPException) as error:
                connection.close()
                if kept is None or not isinstance(error, ConnectionError | ssl.SSLError):
                    raise AwsUnavailableError(type(error).__name__) from None

    def _kept(self) -> HTTPConnection | None:
        with suppress(IndexError):
            while True:
                connection, since = self._unused.pop()
                if 0 <= self._clock() - since < IDLE:
                    return connection
                connection.close()
        return None


def _url(service: str, region: str, environment: Mapping[str, str]) -> str:
    configured = environment.get(f"AWS_ENDPOINT_URL_{service.upper()}") or environment.get("AWS_ENDPOINT_URL")
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return configured or f"https://{service}.{region}.{suffix}"


def _error_code(response: HTTPResponse, body: bytes) -> str:
    """AWS's error code; what does not look like one is left out."""
    error = json_object(body.decode(errors="replace")) or {}
    # As AWS's protocols have it: "namespace#Code:address".
    named = str(response.headers.get("x-amzn-ErrorType") or error.get("__type") or "")
    code = named.rpartition("#")[2].partition(":")[0]
    return code if re.fullmatch(r"\w{1,80}", code) else f"HTTP {response.status}"


def _credentials(environment: Mapping[str, str]) -> Credentials:
    """A function's credentials, which Lambda puts into its environment. Raises `AwsUnavailableError`."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    access_key, secret_key, token = (environment.get(name, "") for name in names)
    # http.client would put a value that it cannot send into its exception.
    if not (access_key and secret_key and re.fullmatch("[!-~]+", access_key + secret_key + token)):
        raise AwsUnavailableError("a credential in the environment is missing or holds blanks")
    return Credentials(access_key, secret_key, token)
