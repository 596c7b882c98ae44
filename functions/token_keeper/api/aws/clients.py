"""AWS without boto3, whose loading alone takes longer than all the rest of a reader's cold start.

`client` makes what `boto3.client` would, as far as the readers use it: the same methods, arguments and responses. Nothing that
AWS or the network says is repeated in an error but AWS's error code: AWS quotes a badly signed request with its token.
"""

import io
import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partialmethod
from typing import Any
from urllib.parse import quote

from token_keeper.api.aws.http import Endpoint, Response
from token_keeper.api.aws.sigv4 import Credentials, sign
from token_keeper.aws_errors import AwsError, AwsUnavailableError

READ_TIMEOUT = 2
"""Seconds. A reader would rather say "stale" or 503 than keep its caller waiting."""

PAUSE = 0.05
"""Seconds before the second and last attempt."""

INVOKE_TIMEOUT = 8
"""Seconds a reader waits for a function, cold start included; API Gateway itself gives up after 30."""

_THROTTLED = {"ThrottlingException", "ProvisionedThroughputExceededException", "RequestLimitExceeded"}
_CODE = re.compile(r"\w{1,80}")
_HEADER_VALUE = re.compile("[!-~]+")


def client(service: str, environment: Mapping[str, str], clock: Callable[[], float] = time.time) -> Any:
    """Make a client of `dynamodb` or `lambda` for a function's environment, which may be shared between threads.

    Its methods raise `AwsError` and `AwsUnavailableError`. `clock`: epoch seconds, as AWS reckons them.
    """
    return _SERVICES[service](environment, clock)


class _Service:
    name = ""
    attempts = 2
    read_timeout = READ_TIMEOUT

    def __init__(self, environment: Mapping[str, str], clock: Callable[[], float]) -> None:
        self._region = environment.get("AWS_REGION") or environment["AWS_DEFAULT_REGION"]
        self._endpoint = Endpoint(_url(self.name, self._region, environment), self.read_timeout, clock)
        self._environment = environment
        self._clock = clock

    def _post(self, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        for _ in range(self.attempts - 1):
            try:
                return self._attempt(path, headers, body)
            except (AwsError, AwsUnavailableError) as error:
                if not error.retryable:
                    raise
            time.sleep(PAUSE)
        return self._attempt(path, headers, body)

    def _attempt(self, path: str, headers: Mapping[str, str], body: bytes) -> Response:
        signed = sign(
            {"Host": self._endpoint.host, **headers},
            path,
            body,
            _credentials(self._environment),
            region=self._region,
            service=self.name,
            at=self._clock(),
        )
        response = self._endpoint.post(path, signed, body)
        if response.status < 300:
            return response
        code = _error_code(response)
        raise AwsError(code, retryable=response.status >= 500 or code in _THROTTLED)


class _DynamoDB(_Service):
    """DynamoDB's readings."""

    name = "dynamodb"

    def _call(self, operation: str, **asked: Any) -> Any:
        headers = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": f"DynamoDB_20120810.{operation}"}
        return json.loads(self._post("/", headers, json.dumps(asked).encode()).body)

    get_item = partialmethod(_call, "GetItem")
    batch_get_item = partialmethod(_call, "BatchGetItem")
    query = partialmethod(_call, "Query")


class _Lambda(_Service):
    """Lambda's Invoke. A function that gave no response in time may still run, so it is not asked again."""

    name = "lambda"
    attempts = 1
    read_timeout = INVOKE_TIMEOUT

    def invoke(self, FunctionName: str, Payload: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        path = f"/2015-03-31/functions/{quote(FunctionName, safe='')}/invocations"
        response = self._post(path, {"Content-Type": "application/json"}, Payload.encode())
        failed = response.headers.get("X-Amz-Function-Error")
        error = {"FunctionError": failed} if failed else {}
        return {"StatusCode": response.status, "Payload": io.BytesIO(response.body), **error}


_SERVICES: dict[str, type[_Service]] = {"dynamodb": _DynamoDB, "lambda": _Lambda}


def _url(service: str, region: str, environment: Mapping[str, str]) -> str:
    configured = environment.get(f"AWS_ENDPOINT_URL_{service.upper()}") or environment.get("AWS_ENDPOINT_URL")
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return configured or f"https://{service}.{region}.{suffix}"


def _error_code(response: Response) -> str:
    """AWS's error code; what does not look like one is left out."""
    code: Any = response.headers.get("x-amzn-ErrorType")
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        code = code or json.loads(response.body)["__type"]
    # As AWS's protocols have it: "namespace#Code:address".
    found = _CODE.fullmatch(str(code or "").rpartition("#")[2].partition(":")[0])
    return found.group() if found else f"HTTP {response.status}"


def _credentials(environment: Mapping[str, str]) -> Credentials:
    """A function's credentials, which Lambda puts into its environment. Raises `AwsUnavailableError`."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    access_key, secret_key, token = (environment.get(name, "") for name in names)
    # http.client would put a value that it cannot send into its exception.
    if not (access_key and secret_key and _HEADER_VALUE.fullmatch(access_key + secret_key + token)):
        raise AwsUnavailableError("a credential in the environment is missing or holds blanks")
    return Credentials(access_key, secret_key, token)
