"""WeChat's API with httpx, sync and async. The token is in the URL only while a request is under way."""

from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING

import httpx

from wechat_token_keeper._wechat import keep_out_of_log, may_be_error, refuses_token, with_token, without_token
from wechat_token_keeper.errors import KeeperError

if TYPE_CHECKING:
    from wechat_token_keeper.keeper import Keeper


class KeeperAuth(httpx.Auth):
    """Adds the access token to calls of WeChat's API, and to no others.

    Where WeChat refuses the token (40001, 40014, 42001) it is reported, and the request repeated once with the new one.
    A body is read into memory before it is sent, so that it can be sent again.
    """

    def __init__(self, keeper: "Keeper") -> None:
        keep_out_of_log("httpx")
        self._keeper = keeper

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if str(request.url) not in self._keeper.wechat_hosts:
            yield request
            return
        request.read()
        request.url = httpx.URL(without_token(str(request.url)))
        token = self._keeper.token()
        response = yield from _under_way(request, token)
        if not _may_be_error(response) or not refuses_token(response.read()):
            return
        try:
            successor = self._keeper.report(token)
        except KeeperError:
            return
        if successor != token:
            yield from _under_way(request, successor)

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        if str(request.url) not in self._keeper.wechat_hosts:
            yield request
            return
        await request.aread()
        clean = request.url = httpx.URL(without_token(str(request.url)))
        token = await self._keeper.token_async()
        try:
            request.url = httpx.URL(with_token(str(clean), token))
            response = yield request
        finally:
            request.url = clean
        if not _may_be_error(response) or not refuses_token(await response.aread()):
            return
        try:
            successor = await self._keeper.report_async(token)
        except KeeperError:
            return
        if successor == token:
            return
        try:
            request.url = httpx.URL(with_token(str(clean), successor))
            yield request
        finally:
            request.url = clean


def _under_way(request: httpx.Request, token: str) -> Generator[httpx.Request, httpx.Response, httpx.Response]:
    """Have the request sent with the token. Its Response and exceptions refer to it, and so find a URL without."""
    clean = request.url
    request.url = httpx.URL(with_token(str(clean), token))
    try:
        return (yield request)
    finally:
        request.url = clean


def _may_be_error(response: httpx.Response) -> bool:
    return may_be_error(response.headers.get("Content-Type", ""))
