"""The keeper as a program sees it: tokens, tickets, signatures, and HTTP clients for WeChat's API."""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from wechat_token_keeper import _http
from wechat_token_keeper._cache import Cache, Entry
from wechat_token_keeper._clock import Clock
from wechat_token_keeper._consumer_key import CorpApp, PublicAccount
from wechat_token_keeper._iam import IamAccount
from wechat_token_keeper._source import JsapiSignature, Received, Source
from wechat_token_keeper._wechat import WeChatHosts

if TYPE_CHECKING:
    from botocore.session import Session

    from wechat_token_keeper.httpx_auth import KeeperAuth
    from wechat_token_keeper.requests_session import KeeperSession

logger = logging.getLogger("wechat_token_keeper")

TOKEN = "access_token"

TRUSTED_WHEN_YOUNG = 60
"""Seconds in which the keeper takes no new token for dead: WeChat may need a moment until it accepts it."""

MAX_REMEMBERED_REPORTS = 100


class Keeper:
    """One account of a token keeper. Make one for each account and process, and share it: threads and tasks may.

    `url`: the stack's output `ApiUrl`; `key`: a consumer key; `appid`: of the Official Account or Mini Program.
    `wechat_url`: where WeChat's API is, if not at its own address, so that `session` and `auth` add the token there too.
    Every method that returns a value raises a KeeperError: see `wechat_token_keeper.errors`.
    """

    def __init__(
        self, url: str, *, key: str, appid: str, wechat_url: str | None = None, clock: Clock | None = None
    ) -> None:
        clock = clock or Clock()
        self._begin(url, PublicAccount(_http.checked_address(url), key, appid, clock), wechat_url, clock)

    @classmethod
    def corp(
        cls, url: str, *, key: str, corpid: str, wechat_url: str | None = None, clock: Clock | None = None
    ) -> "Keeper":
        """One app of a WeCom corp, with the key of a consumer that may read this app only."""
        clock = clock or Clock()
        keeper = cls.__new__(cls)
        keeper._begin(url, CorpApp(_http.checked_address(url), key, corpid, clock), wechat_url, clock)
        return keeper

    @classmethod
    def iam(
        cls,
        url: str,
        account: str,
        *,
        session: "Session | None" = None,
        wechat_url: str | None = None,
        clock: Clock | None = None,
    ) -> "Keeper":
        """An account by its name in the keeper, with AWS credentials. `session`: botocore's, if not the default one."""
        clock = clock or Clock()
        keeper = cls.__new__(cls)
        keeper._begin(url, IamAccount(_http.checked_address(url), account, session, clock), wechat_url, clock)
        return keeper

    def _begin(self, url: str, source: Source, wechat_url: str | None, clock: Clock) -> None:
        self._url, self._source, self._clock = url, source, clock
        self._cache = Cache(clock)
        self._reported: OrderedDict[str, bool] = OrderedDict()  # fingerprint → was it reported while still young?
        self.wechat_hosts = WeChatHosts(wechat_url)

    def __repr__(self) -> str:
        return f"<Keeper of {self.app_id} at {self._url}>"

    @property
    def app_id(self) -> str:
        """The appid or corpid; with IAM the account's name."""
        return self._source.app_id

    def token(self, *, minimum_seconds: float = 0) -> str:
        """An access token that is promised to work for `minimum_seconds`, at most one call per `cache_for`.

        Where the keeper cannot be asked, the cached token serves until its promise ends.
        """
        return self._cache.get(TOKEN, self._source.token, minimum_seconds)

    async def token_async(self, *, minimum_seconds: float = 0) -> str:
        """`token` for asyncio."""
        return await self._cache.get_async(TOKEN, self._source.token, minimum_seconds)

    def ticket(self, ticket_type: str = "jsapi", *, minimum_seconds: float = 0) -> str:
        """A ticket: `jsapi`, `wx_card`, or `agent_config` of a WeCom app. Cached like the token."""
        return self._cache.get(ticket_type, self._fetch_ticket(ticket_type), minimum_seconds)

    async def ticket_async(self, ticket_type: str = "jsapi", *, minimum_seconds: float = 0) -> str:
        """`ticket` for asyncio."""
        return await self._cache.get_async(ticket_type, self._fetch_ticket(ticket_type), minimum_seconds)

    def jsapi_signature(self, url: str, *, ticket_type: str = "jsapi") -> JsapiSignature:
        """What `wx.config` takes on the page with this address (`wx.agentConfig` with `agent_config`)."""
        return self._source.jsapi_signature(url, ticket_type, lambda: self.ticket(ticket_type))

    async def jsapi_signature_async(self, url: str, *, ticket_type: str = "jsapi") -> JsapiSignature:
        """`jsapi_signature` for asyncio."""
        return await asyncio.to_thread(self.jsapi_signature, url, ticket_type=ticket_type)

    def report(self, refused: str) -> str:
        """WeChat refused this token (40001, 40014, 42001): returns the one to go on with, perhaps the same.

        Each value is reported once, however many threads and tasks meet the refusal. One that was reported in the minute
        in which the keeper takes no token for dead is reported once more after it.
        """
        return self._cache.fetch(*self._report(refused)).value

    async def report_async(self, refused: str) -> str:
        """`report` for asyncio."""
        return (await self._cache.fetch_async(*self._report(refused))).value

    def session(self) -> "KeeperSession":
        """A `requests.Session` that adds the token to calls of WeChat's API, and heals once where it is refused."""
        from wechat_token_keeper.requests_session import KeeperSession

        return KeeperSession(self)

    def auth(self) -> "KeeperAuth":
        """The same for `httpx`: `httpx.Client(auth=keeper.auth())`, `httpx.AsyncClient(auth=keeper.auth())`."""
        from wechat_token_keeper.httpx_auth import KeeperAuth

        return KeeperAuth(self)

    def _fetch_ticket(self, ticket_type: str) -> Callable[[], Received]:
        return lambda: self._source.ticket(ticket_type, self.token)

    def _is_reported(self, token: str) -> bool:
        was_young = self._reported.get(_fingerprint(token))
        return was_young is False or (was_young is True and self._is_young(token))

    def _is_young(self, token: str) -> bool:
        entry = self._cache.entry(TOKEN)
        is_known = entry is not None and entry.value == token
        return is_known and entry is not None and self._clock.age(entry.known_since) < TRUSTED_WHEN_YOUNG

    def _report(self, refused: str) -> tuple[str, str, Callable[[], Received], Callable[[], Entry | None]]:
        """The flight that reports this token, as `Cache.fetch` takes it."""

        def landed() -> Entry | None:
            entry = self._cache.fresh(TOKEN)
            return entry if entry and (entry.value != refused or self._is_reported(refused)) else None

        def send() -> Received:
            if self._is_reported(refused):
                return self._source.token()
            was_young = self._is_young(refused)
            received = self._source.report(refused)
            if len(self._reported) >= MAX_REMEMBERED_REPORTS:
                self._reported.popitem(last=False)
            self._reported[_fingerprint(refused)] = was_young
            outcome = "is still the current one" if received.value == refused else "has a successor"
            logger.info("reported the access token %s of %s: it %s", _fingerprint(refused), self.app_id, outcome)
            return received

        return f"report of {_fingerprint(refused)}", TOKEN, send, landed


def _fingerprint(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:16]
