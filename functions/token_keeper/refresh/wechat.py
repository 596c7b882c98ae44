"""Adapter: WeChat and WeCom over HTTPS. Every exception that leaves here is ours and carries neither URL nor value."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from html import escape
from typing import Any, Self
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from urllib3 import exceptions
from urllib3.connection import HTTPConnection, HTTPSConnection

from token_keeper import tls
from token_keeper.errors import KeeperError
from token_keeper.model import Account, FailureClass, Grant, Kind
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

IP_NOT_ALLOWED = {40164, 61004, 45035, 60020}
"""WeChat's and WeCom's codes for a caller whose address is not on the list; their message names the address."""

_CLASSES = {
    FailureClass.TRANSIENT: {-1, 45011, 45033},
    FailureClass.QUOTA: {45009, 48006},
    FailureClass.CREDENTIAL: {40001, 40014, 42001},
    FailureClass.CONFIGURATION: IP_NOT_ALLOWED
    | {40013, 40091, 40125, 40243, 48001, 48002, 48004, 50002, 50004, 50007, 61024},
    FailureClass.CONFIRMATION: {89501, 89503, 89506, 89507},
    FailureClass.DEFECT: {40002, 41001, 41002, 41004, 43002, 43003},
}
_CLASS_OF = {errcode: failure_class for failure_class, errcodes in _CLASSES.items() for errcode in errcodes}
_SENSITIVE = ("secret", "corpsecret", "access_token")

_KEY_PLACES = (
    "公众号: 微信开发者平台 > 我的业务 > 基础信息 > 开发密钥; 小程序: 微信公众平台 > 管理 > 开发管理 > 开发设置"
)
_REMEDIES = {
    **dict.fromkeys(
        (40001, 40125),
        f"The AppSecret is not the one WeChat knows for this account. Copy it again ({_KEY_PLACES}) and run "
        "`token-keeper accounts set-secret`; it is tried at once.",
    ),
    40013: f"WeChat does not know this appid. Compare it ({_KEY_PLACES}) and correct the account's record.",
    40091: "This secret belongs to another corp. Compare corpid and secret (企业微信管理后台 > 应用管理) and correct the record.",
    40243: "The AppSecret is frozen. Unfreeze it on the platform (it takes 10 minutes to take effect).",
    **dict.fromkeys(
        (48001, 48002, 48004),
        "This account may not call this API. Check its certification and permissions on the platform.",
    ),
    **dict.fromkeys(
        (50002, 50004, 50007),
        "WeChat has restricted this account. Sign in to the platform, read the notice there and resolve it.",
    ),
    61024: "This appid is managed by a third-party platform, which must be the one to fetch its token.",
    **dict.fromkeys(
        (89501, 89503),
        "WeChat asks an administrator to confirm this IP address: confirm the message in the administrator's WeChat.",
    ),
    89506: "An administrator refused this IP address twice: WeChat blocks it for 24 hours. It is tried again after that.",
    89507: "An administrator refused this IP address: WeChat blocks it for an hour. It is tried again after that.",
}
_CORP_REMEDIES = _REMEDIES | {
    40001: "The secret is not that of an app of this corp. Copy it again (企业微信管理后台 > 应用管理 > the app > Secret) and run "
    "`token-keeper accounts set-secret`; it is tried at once.",
    40013: "WeCom does not know this corpid. Compare it with 企业微信管理后台 > 我的企业 > 企业信息 and correct the account's record.",
}
_CLASS_REMEDIES = {
    FailureClass.TRANSIENT: "No action needed: it is retried automatically.",
    FailureClass.QUOTA: "The day's calls are used up. Find out who else fetches with this AppSecret; an administrator can "
    "clear the quota (10 times a month), or it is restored at midnight, Beijing time.",
    FailureClass.CREDENTIAL: "The token this call needs is no longer accepted; it is replaced automatically.",
    FailureClass.DEFECT: "WeChat did not understand the request: an internal error in token-keeper. Please report it.",
    FailureClass.UNKNOWN: "WeChat's documentation of return codes explains this code; quote the rid when asking WeChat.",
    FailureClass.CONFIGURATION: "Correct the account's settings on WeChat's platform.",
    FailureClass.CONFIRMATION: "An administrator must confirm this IP address.",
}


class WeChatError(KeeperError):
    """WeChat gave no value. `outcome_known`: it has said so itself, or the request never reached it; otherwise a value
    may have been minted that we did not get."""

    def __init__(
        self,
        failure_class: FailureClass,
        errmsg: str,
        *,
        errcode: int | None = None,
        remedy: str | None = None,
        outcome_known: bool = True,
    ) -> None:
        super().__init__(f"{errmsg} (errcode {errcode})" if errcode is not None else errmsg)
        self.failure_class = failure_class
        self.errcode = errcode
        self.errmsg = errmsg
        self.remedy = remedy or _CLASS_REMEDIES[failure_class]
        self.outcome_known = outcome_known


class _BrokenConnectionError(WeChatError):
    """The connection broke, as one does that was kept for too long. A timeout is none: it would only come again."""


@dataclass(frozen=True)
class _Call:
    method: str
    url: str
    query: Mapping[str, str]
    body: Mapping[str, object] | None = None
    value: str = "access_token"


class WeChat:
    """Fetches values from WeChat (`wechat_url`) and WeCom (`wecom_url`); `clock` gives epoch seconds."""

    def __init__(self, wechat_url: str, wecom_url: str, clock: Callable[[], float] = time.time) -> None:
        self._wechat_url = wechat_url.rstrip("/")
        self._wecom_url = wecom_url.rstrip("/")
        self._clock = clock

    def fetch_token(self, account: Account, *, isolated: bool = False, force: bool = False) -> Grant:
        """Ask for the account's access token.

        `isolated`: ask `stable_token` in normal mode, whatever the account's endpoint. It repeats its own token while that
        is young and touches none of `/cgi-bin/token`. Only for accounts with an appid.
        `force` makes `stable_token` mint a new token and end the old one at once.
        Raises `WeChatError`.
        """
        return self._fetch(self._token_call(account, Kind.STABLE_TOKEN if isolated else account.kind, force))

    def fetch_ticket(self, account: Account, ticket: str, access_token: str) -> Grant:
        """Ask for a ticket of the given type with a live access token. Raises `WeChatError`."""
        query = {"access_token": access_token}
        if account.kind is not Kind.CORP_TOKEN:
            url, query["type"] = f"{self._wechat_url}/cgi-bin/ticket/getticket", ticket
        elif ticket == "jsapi":
            url = f"{self._wecom_url}/cgi-bin/get_jsapi_ticket"
        else:
            url, query["type"] = f"{self._wecom_url}/cgi-bin/ticket/get", ticket
        return self._fetch(_Call("GET", url, query, value="ticket"))

    def probe_session(self) -> "Session":
        """Connections that are kept for the many calls of one run of `accepts`; a context manager, safe for threads."""
        return Session()

    def accepts(self, kind: Kind, access_token: str, session: "Session | None" = None) -> bool:
        """Ask WeChat whether a token still works, by a call without side effects. Raises `WeChatError`.

        With a `session` of `probe_session` a call that breaks on a kept connection is repeated once.
        WeCom's refusal carries an empty `ip_list` too: the errcode decides.
        """
        base = self._wecom_url if kind is Kind.CORP_TOKEN else self._wechat_url
        call = _Call("GET", f"{base}/cgi-bin/get_api_domain_ip", {"access_token": access_token}, value="ip_list")
        try:
            errcode, reply = _ask(call, session)
        except _BrokenConnectionError:
            if session is None:
                raise
            errcode, reply = _ask(call, session)
        if errcode in _CLASSES[FailureClass.CREDENTIAL]:
            return False
        if errcode != 0:
            raise _refusal(errcode, reply.get("errmsg"), call)
        if not isinstance(reply.get("ip_list"), list):
            raise _no_response("WeChat's response holds no ip_list")
        return True

    def _token_call(self, account: Account, kind: Kind, force: bool) -> _Call:
        if kind is Kind.CORP_TOKEN:
            query = {"corpid": account.app_id, "corpsecret": account.secret}
            return _Call("GET", f"{self._wecom_url}/cgi-bin/gettoken", query)
        fields = {"grant_type": "client_credential", "appid": account.app_id, "secret": account.secret}
        if kind is Kind.TOKEN:
            return _Call("GET", f"{self._wechat_url}/cgi-bin/token", fields)
        return _Call("POST", f"{self._wechat_url}/cgi-bin/stable_token", {}, {**fields, "force_refresh": force})

    def _fetch(self, call: _Call) -> Grant:
        asked_at = int(self._clock())
        errcode, reply = _ask(call)
        if errcode != 0:
            raise _refusal(errcode, reply.get("errmsg"), call)
        value, expires_in = reply.get(call.value), _whole_number(reply.get("expires_in"))
        if not (isinstance(value, str) and value and value.isascii() and value.isprintable() and " " not in value):
            raise _no_response(f"WeChat's response holds no usable {call.value}")
        if expires_in is None or not 0 < expires_in <= LONGEST_LIFE:
            raise _no_response("WeChat's response holds no usable expires_in")
        return Grant(value, expires_in, asked_at)


def _no_response(errmsg: str, *, outcome_known: bool = False) -> WeChatError:
    return WeChatError(FailureClass.TRANSIENT, errmsg, outcome_known=outcome_known)


class _NotConnectedError(Exception):
    """There is no connection, so the request has not gone out. The text names the reason and nothing else."""


class Session:
    """Connections to WeChat and WeCom, one to each for every thread that calls, kept until the session is closed."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str, str], HTTPConnection] = {}

    def __enter__(self) -> Self:
        return self

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
            target = urlunsplit(("", "", parts.path, parts.query, ""))
            connection.request(method, target, body, headers, preload_content=False)
            with connection.getresponse() as response:
                return response.status, response.read(RESPONSE_LIMIT + 1, decode_content=True)

        status, received = _within(READ_TIMEOUT, connection, respond)
        if len(received) <= RESPONSE_LIMIT:
            self._kept[key] = connection
        else:
            connection.close()
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


def _send(call: _Call, kept: Session | None = None) -> bytes:
    # What is raised in here holds the URL with the secret in it, also as the context of an exception that is raised while
    # it is handled. So it is only noted, and ours is raised after it is gone.
    try:
        # A connection that outlived a frozen Lambda breaks in mid-request; so each call has a fresh one.
        with nullcontext(kept) if kept else Session() as session:
            sent = None if call.body is None else json.dumps(call.body).encode()
            status, body = session.exchange(call.method, f"{call.url}?{urlencode(call.query)}", sent)
    except Exception as error:  # noqa: BLE001 - of urllib3, http.client, ssl, socket, threading
        failure = _transport_failure(error)
    else:
        if status == 200 and len(body) <= RESPONSE_LIMIT:
            return body
        failure = _no_response(
            f"HTTP {status} instead of WeChat's response" if status != 200 else "the response is too long"
        )
    raise failure


def _transport_failure(error: Exception) -> WeChatError:
    if isinstance(error, _NotConnectedError):
        return _no_response(f"WeChat could not be reached ({error})", outcome_known=True)
    kind = WeChatError if isinstance(error, TimeoutError | exceptions.TimeoutError) else _BrokenConnectionError
    errmsg = f"the connection broke before WeChat's response was complete ({type(error).__name__})"
    return kind(FailureClass.TRANSIENT, errmsg, outcome_known=False)


def _ask(call: _Call, session: Session | None = None) -> tuple[int, dict[str, Any]]:
    """WeChat's response, after its errcode: 0 where there is none."""
    reply = json_object(_send(call, session).decode(errors="replace"))
    if reply is None:
        raise _no_response("WeChat's response is not a JSON object")
    errcode = 0 if reply.get("errcode") is None else _whole_number(reply["errcode"])
    if errcode is None:
        raise _no_response("WeChat's response holds an errcode that is no number")
    return errcode, reply


def _whole_number(value: object) -> int | None:
    """7200 as it is, and as `7200.0` or `"7200"`: a token that came with these was minted all the same."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}", value):
        return int(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 10**9 and value == int(value):
        return int(value)
    return None


def _refusal(errcode: int, errmsg: object, call: _Call) -> WeChatError:
    # What is not printable could steer the terminal of an operator who reads it; and half a surrogate pair, which JSON can
    # hold, fits in no log line. It goes first, so that no secret stands there in one piece because of it.
    message = "".join(filter(str.isprintable, str(errmsg)))
    for field, sent in (*call.query.items(), *(call.body or {}).items()):
        if field in _SENSITIVE:
            message = re.sub(_any_form(str(sent)), "…", message, flags=re.IGNORECASE)
    message = message[:500]
    failure_class = _CLASS_OF.get(errcode, FailureClass.UNKNOWN)
    if failure_class is FailureClass.CREDENTIAL and call.value == "access_token":
        failure_class = FailureClass.CONFIGURATION
    if errcode in IP_NOT_ALLOWED:
        remedy = _ip_remedy(errcode, message)
    elif failure_class is FailureClass.CREDENTIAL:  # 40001 calls for something else where a token is asked for
        remedy = None
    else:
        remedy = (_CORP_REMEDIES if "corpid" in call.query else _REMEDIES).get(errcode)
    return WeChatError(failure_class, message, errcode=errcode, remedy=remedy)


def _any_form(sent: str) -> str:
    """A pattern of how a message may repeat what was sent: as it is, quoted for an URL, escaped for JSON or HTML, or twice."""
    in_json, quoted = json.dumps(sent)[1:-1], (quote(sent), quote(sent, safe=""))
    twice = json.dumps(in_json)[1:-1], *(quote(item, safe="") for item in quoted)
    forms = sorted((sent, in_json, escape(sent), *quoted, *twice), key=len, reverse=True)
    return "|".join(map(re.escape, forms))


def _ip_remedy(errcode: int, errmsg: str) -> str:
    found = re.search(r"\b\d{1,3}(?:\.\d{1,3}){3}\b", errmsg)
    address = found[0] if found else "the address in WeChat's message"
    place = (
        "企业可信IP of the app (企业微信管理后台 > 应用管理)"
        if errcode == 60020
        else "the IP whitelist (公众号: 微信开发者平台 > 我的业务 > 基础信息 > API IP 白名单; 小程序: 开发设置 > IP 白名单)"
    )
    return (
        f"Add {address} to {place}. "
        "A Lambda's address changes: for a fixed one deploy with EgressMode=managed (a NAT gateway, about 36.50 USD a month) "
        "or EgressMode=instance (a small server, about 7 USD a month), and add the output EgressIp."
    )
