"""One HTTP request, with the standard library: one connection each, no redirect, a bounded response, a deadline."""

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from wechat_token_keeper.errors import SetupError, UnavailableError, UnreachableError

TIMEOUT = 25
"""Seconds for a whole response. The keeper's own limit is 20: a cold start may have to fetch from WeChat first."""

MAX_BODY_BYTES = 65536

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Response(NamedTuple):
    """A whole response, whatever its status. `headers` has lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body, which has to be a JSON object; raises UnavailableError where it is none."""
        try:
            document = json.loads(self.body)
        except (ValueError, RecursionError):
            document = None
        if isinstance(document, dict):
            return document
        raise UnavailableError(
            f"The token keeper responded with HTTP {self.status}, and no JSON object",
            "Check its address: no path belongs to it, and a proxy on the way may have responded instead.",
        )


def checked_address(url: str) -> str:
    """The keeper's address without a slash at its end; raises SetupError where it cannot be one."""
    try:
        parts = urlsplit(url)
        is_url = re.fullmatch(r"https?://[!-~]+", url) is not None and parts.port != 0
    except ValueError:  # a host or a port that cannot be one
        is_url = False
    if not is_url or parts.query or parts.fragment or parts.username is not None:
        raise SetupError("The address is not an http or https URL", "Give the stack's output ApiUrl.")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise SetupError(
            f"http://{parts.hostname} would send keys and tokens unencrypted",
            "Use https; http is for the local stack on this machine.",
        )
    return url.rstrip("/")


def send(method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """Send a request. Raises UnreachableError, with the cause in its text and nothing of the URL but the host."""
    request = urllib.request.Request(url, data=body, headers=dict(headers or {}), method=method)  # noqa: S310
    ends_at = time.monotonic() + TIMEOUT
    try:
        with _opener().open(request, timeout=TIMEOUT) as reply:
            received = b""
            while len(received) <= MAX_BODY_BYTES and (piece := reply.read1(MAX_BODY_BYTES)):
                received += piece
                if time.monotonic() > ends_at:
                    raise TimeoutError
            names_in_lower_case = {name.lower(): value for name, value in reply.headers.items()}
            return Response(reply.status, names_in_lower_case, received[:MAX_BODY_BYTES])
    except urllib.error.URLError as error:
        cause = _described(error.reason if isinstance(error.reason, Exception) else error)
    except (OSError, http.client.HTTPException) as error:
        cause = _described(error)
    # Raised out here, so that the exception has no context: an HTTP library's exceptions carry the request.
    raise UnreachableError(
        f"The token keeper at {urlsplit(url).hostname} did not respond: {cause}",
        "Check the address, the network and the proxy; the call may be repeated.",
    )


class _EveryStatus(urllib.request.HTTPErrorProcessor):
    """A response of any status is a response; so no redirect is followed."""

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        return response

    https_response = http_response


@cache
def _opener() -> urllib.request.OpenerDirector:
    # Made once, when it is first needed: loading the certificates takes a tenth of a second.
    return urllib.request.build_opener(_EveryStatus)


def _described(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing whole came within {TIMEOUT} s"
    words = error.strerror if isinstance(error, OSError) else None
    return f"{type(error).__name__} ({words})" if words else type(error).__name__
