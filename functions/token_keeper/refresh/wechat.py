"""Adapter: WeChat and WeCom over HTTPS. Every exception that leaves here is ours and carries neither URL nor value."""

import json
import re
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from urllib3 import exceptions
from urllib3.connection import HTTPConnection, HTTPSConnection

from token_keeper import tls
from token_keeper.clock import Now
from token_keeper.errors import KeeperError
from token_keeper.model import Account, FailureClass, Grant, Kind
from token_keeper.refresh import errcodes
from token_keeper.untrusted import json_object

CONNECT_TIMEOUT = 3
"""Seconds until the connection stands: the look-up of the host's name, all its addresses and the TLS handshake share them.
A request whose connection comes later is never sent."""

READ_TIMEOUT = 8
"""Seconds from then on until the whole response is there, however slowly it is sent. So an attempt takes both at most: 11
seconds."""

KEPT_CONNECTIONS = 50
"""Connections to one host that a `Session` keeps, as each thread has its own: more threads than that do not probe."""

RESPONSE_LIMIT = 64 * 1024
"""Bytes. A token is 512 characters or somewhat more; whatever is longer than this is not WeChat's response."""

LONGEST_LIFE = 86400
"""Seconds. WeChat documents "within 7200, may change"; a life of more than a day is not believed."""


class WeChatError(KeeperError):
    """WeChat gave no value. `outcome_known`: it has said so itself, or the request never reached it; otherwise a value
    may have been minted that we did not get."""

    outcome_known = True


class _NoResponseError(WeChatError):
    """A request went out, and no usable response to it came back."""

    outcome_known = False


class _BrokenConnectionError(_NoResponseError):
    """The connection broke, as one does that was kept for too long. A timeout is none: it would only come again."""


@dataclass(frozen=True)
class _Call:
    """A request, with its body as JSON where it has one. `secret`: what must not be shown of it, sent as the field `sent_as`."""

    url: str
    secret: str
    sent_as: str
    body: bytes | None = None


class WeChat:
    """Fetches values from WeChat (`wechat_url`) and WeCom (`wecom_url`)."""

    def __init__(self, wechat_url: str, wecom_url: str, now: Now) -> None:
        self._hosts = dict.fromkeys(Kind, wechat_url.rstrip("/")) | {Kind.CORP_TOKEN: wecom_url.rstrip("/")}
        self._now = now

    def fetch_token(self, account: Account, *, isolated: bool = False, force: bool = False) -> Grant:
        """Ask for the account's access token.

        `isolated`: ask `stable_token` in normal mode, whatever the account's endpoint. It repeats its own token while that
        is young and touches none of `/cgi-bin/token`. Only for accounts with an appid.
        `force` makes `stable_token` mint a new token and end the old one at once.
        Raises `WeChatError`.
        """
        if account.kind is Kind.CORP_TOKEN:
            query = {"corpid": account.app_id, "corpsecret": account.secret}
            return self._fetch(_Call(self._url(account.kind, "gettoken", query), account.secret, "corpsecret"))
        query = {"grant_type": "client_credential", "appid": account.app_id, "secret": account.secret}
        if account.kind is Kind.TOKEN and not isolated:
            return self._fetch(_Call(self._url(account.kind, "token", query), account.secret, "secret"))
        body = json.dumps({**query, "force_refresh": force}).encode()
        return self._fetch(_Call(self._url(account.kind, "stable_token", {}), account.secret, "secret", body))

    def fetch_ticket(self, account: Account, ticket: str, access_token: str) -> Grant:
        """Ask for a ticket of the given type with a live access token. Raises `WeChatError`."""
        path, query = "ticket/getticket", {"access_token": access_token, "type": ticket}
        if account.kind is Kind.CORP_TOKEN and ticket == "jsapi":
            path, query = "get_jsapi_ticket", {"access_token": access_token}
        elif account.kind is Kind.CORP_TOKEN:
            path = "ticket/get"
        return self._fetch(_Call(self._url(account.kind, path, query), access_token, "access_token"), "ticket")

    def probe_session(self) -> "Session":
        """Connections that are kept for the many calls of one run of `accepts`; a context manager, safe for threads."""
        return Session()

    def accepts(self, kind: Kind, access_token: str, session: "Session | None" = None) -> bool:
        """Ask WeChat whether a token still works, by a call without side effects. Raises `WeChatError`.

        With a `session` of `probe_session` a call that breaks on a kept connection is repeated once.
        WeCom's refusal carries an empty `ip_list` too: the errcode decides.
        """
        url = self._url(kind, "get_api_domain_ip", {"access_token": access_token})
        try:
            reply = _ask(_Call(url, access_token, "access_token"), session)
        except WeChatError as error:
            if error.failure_class is FailureClass.CREDENTIAL:
                return False
            raise
        if not isinstance(reply.get("ip_list"), list):
            raise _NoResponseError("WeChat's response holds no ip_list")
        return True

    def _url(self, kind: Kind, path: str, query: Mapping[str, str]) -> str:
        return f"{self._hosts[kind]}/cgi-bin/{path}" + (f"?{urlencode(query)}" if query else "")

    def _fetch(self, call: _Call, field: str = "access_token") -> Grant:
        asked_at = self._now()
        reply = _ask(call)
        value, expires_in = reply.get(field), _whole_number(reply.get("expires_in"))
        if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value):
            raise _NoResponseError(f"WeChat's response holds no usable {field}")
        if expires_in is None or not 0 < expires_in <= LONGEST_LIFE:
            raise _NoResponseError("WeChat's response holds no usable expires_in")
        return Grant(value, expires_in, asked_at)


class _NotConnectedError(Exception):
    """There is no connection, so the request has not gone out. The text names the reason and nothing else."""


class Session(AbstractContextManager["Session"]):
    """Connections to WeChat and WeCom, one to each for every thread that calls, kept until the session is closed."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str, str], HTTPConnection] = {}

    def __exit__(self, *_: object) -> None:
        for connection in self._kept.values():
            connection.close()

    def exchange(self, method: str, url: str, body: bytes | None) -> tuple[int, bytes]:
        """Send a request (JSON where it has a body); the response's status and the first `RESPONSE_LIMIT` + 1 bytes of its body.

        Raises `_NotConnectedError`, and later whatever broke the exchange, which may carry the URL and so a secret.
        """
        parts = urlsplit(url)
        key = threading.get_ident(), parts.scheme, parts.netloc
        try:
            connection = self._kept.pop(key, None) or _connection(parts.scheme, parts.netloc)
            if connection.is_closed:
                _within(CONNECT_TIMEOUT, connection, connection.connect)
                connection.timeout = READ_TIMEOUT
        except Exception as error:  # noqa: BLE001 - whatever it was, the request has not gone out
            raise _NotConnectedError(type(error).__name__) from None

        def respond() -> tuple[int, bytes]:
            headers = {"Content-Type": "application/json"} if body else {}
            target = parts._replace(scheme="", netloc="").geturl()
            connection.request(method, target, body, headers, preload_content=False)
            with connection.getresponse() as response:
                return response.status, response.read(RESPONSE_LIMIT + 1, decode_content=True)

        status, received = _within(READ_TIMEOUT, connection, respond)
        if len(received) > RESPONSE_LIMIT:
            connection.close()
        self._kept[key] = connection
        return status, received


def _connection(scheme: str, host: str) -> HTTPConnection:
    if scheme == "https":
        return HTTPSConnection(host, timeout=CONNECT_TIMEOUT, ssl_context=tls.context())
    return HTTPConnection(host, timeout=CONNECT_TIMEOUT)


def _within[T](seconds: float, connection: HTTPConnection, work: Callable[[], T]) -> T:
    """What `work` on a connection returns or raises, or TimeoutError; without success the connection is closed.

    A socket's own timeout begins again with every byte, and the look-up of a name has none. So the work is done in a thread
    that is left alone when the time is up. It sends nothing from then on, and keeps no process from ending.
    """
    connected, done = connection.sock, Future[T]()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread, or not at all
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return done.result(seconds)
    except BaseException:
        if connected:
            with suppress(OSError):
                # Not the method of a TLS socket: the thread could still send after that, and without encryption.
                socket.socket.shutdown(connected, socket.SHUT_RDWR)
        done.add_done_callback(lambda _: connection.close())
        raise


def _ask(call: _Call, session: Session | None = None) -> dict[str, Any]:
    """WeChat's response, where it is no refusal. With a `session` a call is repeated once whose connection breaks."""
    status, body = _send(call, session, is_repeatable=session is not None)
    if status != 200:
        raise _NoResponseError(f"HTTP {status} instead of WeChat's response")
    if len(body) > RESPONSE_LIMIT:
        raise _NoResponseError("the response is too long")
    reply = json_object(body.decode(errors="replace"))
    if reply is None:
        raise _NoResponseError("WeChat's response is not a JSON object")
    errcode = 0 if reply.get("errcode") is None else _whole_number(reply["errcode"])
    if errcode is None:
        raise _NoResponseError("WeChat's response holds an errcode that is no number")
    if errcode != 0:
        raise _refusal(errcode, reply.get("errmsg"), call)
    return reply


def _send(call: _Call, kept: Session | None, *, is_repeatable: bool) -> tuple[int, bytes]:
    # What is raised in here holds the URL with the secret in it, also as the context of an exception that is raised while
    # it is handled. So it is only noted, and ours is raised after it is gone.
    try:
        # A connection that outlived a frozen Lambda breaks in mid-request; so each call has a fresh one.
        with nullcontext(kept) if kept else Session() as session:
            return session.exchange("POST" if call.body else "GET", call.url, call.body)
    except Exception as error:  # noqa: BLE001 - of urllib3, http.client, ssl, socket, threading
        failure = _transport_failure(error)
    if is_repeatable and isinstance(failure, _BrokenConnectionError):
        return _send(call, kept, is_repeatable=False)
    raise failure


def _transport_failure(error: Exception) -> WeChatError:
    if isinstance(error, _NotConnectedError):
        return WeChatError(f"WeChat could not be reached ({error})")
    errmsg = f"the connection broke before WeChat's response was complete ({type(error).__name__})"
    is_late = isinstance(error, TimeoutError | exceptions.TimeoutError)
    return _NoResponseError(errmsg) if is_late else _BrokenConnectionError(errmsg)


def _whole_number(value: object) -> int | None:
    """7200 as it is, and as `7200.0` or `"7200"`: a token that came with these was minted all the same."""
    text = value if isinstance(value, str) else str(value).removesuffix(".0")
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else None


def _refusal(errcode: int, errmsg: object, call: _Call) -> WeChatError:
    # What is not printable could steer the terminal of an operator who reads it; and half a surrogate pair, which JSON can
    # hold, fits in no log line. It goes first, so that no secret stands there in one piece because of it.
    message = "".join(filter(str.isprintable, str(errmsg)))
    message = re.sub(_any_form(call.secret), "…", message, flags=re.IGNORECASE)[:500]
    with_errcode = f"{message} (errcode {errcode})"
    error = WeChatError(with_errcode)
    error.errcode, error.errmsg = errcode, message
    error.failure_class, error.remedy = errcodes.meaning(errcode, message, call.sent_as)
    return error


def _any_form(sent: str) -> str:
    """A pattern of how a message may repeat what was sent: as it is, quoted for an URL, escaped for JSON or HTML, or twice."""
    in_json, quoted = json.dumps(sent)[1:-1], (quote(sent), quote(sent, safe=""))
    twice = json.dumps(in_json)[1:-1], *(quote(item, safe="") for item in quoted)
    forms = sorted((sent, in_json, escape(sent), *quoted, *twice), key=len, reverse=True)
    return "|".join(map(re.escape, forms))
