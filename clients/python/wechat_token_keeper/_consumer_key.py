"""The keeper asked with a consumer key, by its WeChat-compatible API."""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from wechat_token_keeper import _http
from wechat_token_keeper._clock import Clock
from wechat_token_keeper._jsapi import checked_page, sign
from wechat_token_keeper._source import MAX_CACHE_SECONDS, JsapiSignature, Received
from wechat_token_keeper.errors import AccessDeniedError, SetupError, UnavailableError, UnknownCredentialError

_KEY = re.compile(r"wtk_[A-Za-z0-9_-]{20,}")
_APP_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

_TOKEN_UNKNOWN = 40001


class _ConsumerKey(ABC):
    """What both kinds of accounts have in common."""

    def __init__(self, url: str, key: str, app_id: str, clock: Clock) -> None:
        if not _KEY.fullmatch(key):
            raise SetupError(
                "The key is not a consumer key: those begin with wtk_",
                "`token-keeper consumers add` makes one. An AppSecret never belongs here.",
            )
        if not _APP_ID.fullmatch(app_id):
            raise SetupError("This cannot be an appid or corpid", "Copy it from WeChat's or WeCom's console.")
        self._url, self._key, self.app_id, self._clock = url, key, app_id, clock

    @abstractmethod
    def token(self) -> Received:
        """The current access token."""

    @abstractmethod
    def _ticket_call(self, ticket_type: str) -> tuple[str, dict[str, str]]:
        """The path of the call for that ticket, and its query except the token."""

    def ticket(self, ticket_type: str, current_token: Callable[[], str]) -> Received:
        path, query = self._ticket_call(ticket_type)
        # The keeper knows the current token and the one before: the cached one may be older.
        for token in (current_token, lambda: self.token().value):
            document = self._get(path, {"access_token": token(), **query})
            if "ticket" in document:
                return received(document, "ticket")
        raise _nothing_in("ticket")

    def jsapi_signature(self, url: str, ticket_type: str, ticket: Callable[[], str]) -> JsapiSignature:
        page = checked_page(url)
        return sign(self.app_id, ticket(), page, self._clock.epoch_seconds())

    def _get(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        return self._checked(_http.send("GET", f"{self._url}{path}?{urlencode(query)}"))

    def _post(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        body = json.dumps(document).encode()
        return self._checked(_http.send("POST", self._url + path, body, {"Content-Type": "application/json"}))

    def _checked(self, response: _http.Response) -> dict[str, Any]:
        if response.status != 200:
            raise UnavailableError(
                f"The token keeper responded with HTTP {response.status}",
                "Check its address, and that its stack has WeChatCompatibleApi=enabled."
                if response.status in (403, 404)
                else "Ask again later.",
            )
        document = response.json()
        errcode = document.get("errcode", 0)
        if errcode in (0, _TOKEN_UNKNOWN):
            return document
        if errcode == 40125:
            raise AccessDeniedError(
                f"The token keeper does not accept this key for {self.app_id}: it is wrong, or was revoked",
                "`token-keeper consumers list` shows which there are, `consumers add` makes a new one.",
            )
        if errcode == 40013:
            raise AccessDeniedError(
                f"{self.app_id} is not kept, or this key may not read it, or it may read several apps of the corp",
                "`token-keeper accounts list` and `token-keeper consumers list` show what is kept and permitted.",
            )
        if errcode == 48001:
            raise UnknownCredentialError(
                f"No such ticket is kept for {self.app_id}", "`token-keeper accounts set … --tickets` adds it."
            )
        if errcode == -1:
            raise UnavailableError(
                f"The token keeper has no usable value for {self.app_id} right now",
                "`token-keeper status` shows why, and what to do.",
            )
        raise SetupError(
            f"The token keeper responded with errcode {errcode}", "Use a client that fits the keeper's version."
        )


class PublicAccount(_ConsumerKey):
    """An Official Account or Mini Program. The key travels in the body of a POST, so that no URL carries it."""

    def token(self) -> Received:
        return self._stable_token(force_refresh=False)

    def report(self, refused: str) -> Received:
        # `force_refresh` reports whatever token is current. So the keeper is asked first whether it still is this one.
        current = self.token()
        return current if current.value != refused else self._stable_token(force_refresh=True)

    def _ticket_call(self, ticket_type: str) -> tuple[str, dict[str, str]]:
        return "/cgi-bin/ticket/getticket", {"type": ticket_type}

    def _stable_token(self, *, force_refresh: bool) -> Received:
        asked = {
            "grant_type": "client_credential",
            "appid": self.app_id,
            "secret": self._key,
            "force_refresh": force_refresh,
        }
        return received(self._post("/cgi-bin/stable_token", asked), "access_token")


class CorpApp(_ConsumerKey):
    """One app of a WeCom corp. WeCom's format has the key in the query, so URLs of these calls go into no message."""

    def token(self) -> Received:
        document = self._get("/cgi-bin/gettoken", {"corpid": self.app_id, "corpsecret": self._key})
        return received(document, "access_token")

    def report(self, refused: str) -> Received:
        # WeCom's format knows no report. The keeper checks each token by itself every five minutes.
        return self.token()

    def _ticket_call(self, ticket_type: str) -> tuple[str, dict[str, str]]:
        if ticket_type == "jsapi":
            return "/cgi-bin/get_jsapi_ticket", {}
        return "/cgi-bin/ticket/get", {"type": ticket_type}


def received(document: dict[str, Any], field: str) -> Received:
    """The value in a response; raises UnavailableError where there is none."""
    value, expires_in = document.get(field), document.get("expires_in")
    if not isinstance(value, str) or not value or not isinstance(expires_in, int) or expires_in < 1:
        raise _nothing_in(field)
    return Received(value, expires_in, min(expires_in, document.get("cache_for", MAX_CACHE_SECONDS), MAX_CACHE_SECONDS))


def _nothing_in(field: str) -> UnavailableError:
    return UnavailableError(
        f"The token keeper's response holds no {field}", "Ask again later; `token-keeper status` helps."
    )
