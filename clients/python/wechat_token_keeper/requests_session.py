"""WeChat's API with requests. The token is added at the last moment, so no Request, Response or exception carries it."""

from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import HTTPAdapter
from requests.utils import rewind_body

from wechat_token_keeper._wechat import (
    keep_out_of_log,
    may_be_error,
    redacted,
    refuses_token,
    with_token,
    without_token,
)
from wechat_token_keeper.errors import KeeperError

if TYPE_CHECKING:
    from wechat_token_keeper.keeper import Keeper

DEFAULT_TIMEOUT = (5, 30)
"""Seconds to connect and between two pieces of a response, where the caller says nothing: requests itself waits for ever."""


class KeeperSession(requests.Session):
    """A session that adds the access token to calls of WeChat's API, and to no others.

    Where WeChat refuses the token (40001, 40014, 42001) it is reported, and the request repeated once with the new one;
    not where the body is a generator, which cannot be sent again.
    """

    def __init__(self, keeper: "Keeper") -> None:
        super().__init__()
        for prefix in ("https://", "http://"):
            self.mount(prefix, TokenAdapter(keeper))


class TokenAdapter(HTTPAdapter):
    """What does it, for a session of one's own: `session.mount("https://", TokenAdapter(keeper))`."""

    def __init__(self, keeper: "Keeper", **options: Any) -> None:
        keep_out_of_log("urllib3.connectionpool")
        self._keeper = keeper
        super().__init__(**options)

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """Send a request. Raises the exceptions of requests, and KeeperError where there is no token to send."""
        if not args and options.get("timeout") is None:
            options["timeout"] = DEFAULT_TIMEOUT
        url = request.url or ""
        if url not in self._keeper.wechat_hosts:
            return super().send(request, *args, **options)
        request.url = without_token(url)
        token = self._keeper.token()
        response = self._send_with(token, request, args, options)
        if not may_be_error(response.headers.get("Content-Type", "")) or not refuses_token(response.content):
            return response
        try:
            successor = self._keeper.report(token)
        except KeeperError:
            return response
        if successor == token or not _rewind(request):
            return response
        response.close()
        return self._send_with(successor, request, args, options)

    def _send_with(
        self, token: str, request: requests.PreparedRequest, args: tuple[Any, ...], options: dict[str, Any]
    ) -> requests.Response:
        sent = request.copy()
        sent.url = with_token(request.url or "", token)
        try:
            response = super().send(sent, *args, **options)
        except requests.RequestException as error:
            kind, words = type(error), redacted(str(error)).replace(token, "***")
        else:
            response.request, response.url = request, request.url or ""
            return response
        # Raised out here, so that the exception has no context: those of requests carry the URL.
        raise kind(words, request=request)


def _rewind(request: requests.PreparedRequest) -> bool:
    """Make the body ready to be sent again; returns whether it can be."""
    if request.body is None or isinstance(request.body, bytes | str):
        return True
    if not isinstance(request._body_position, int):
        return False
    rewind_body(request)
    return True
