"""WeChat and WeCom over HTTP: what is sent where, what each response means, and that no error gives a secret away."""

import gzip
import json
import re
import socket
import ssl
import struct
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from urllib3.connection import HTTPConnection

from tests.support.certificates import self_signed
from token_keeper import tls
from token_keeper.model import Account, FailureClass, Grant, Kind
from token_keeper.refresh import wechat as adapter
from token_keeper.refresh.wechat import WeChat, WeChatError

WECHAT, WECOM = "https://api.weixin.qq.com", "https://qyapi.weixin.qq.com"
SECRET = "s3cr3t+/=&0123456789abcdef"
TOKEN = "t0ken-0123456789abcdefghijklmnop"
NOW = 1_790_000_000

PUBLIC = Account("main", "wx0123456789abcdef", SECRET, Kind.TOKEN, ("jsapi", "wx_card"))
STABLE = Account("main", "wx0123456789abcdef", SECRET, Kind.STABLE_TOKEN)
CORP = Account("main", "ww0123456789abcdef", SECRET, Kind.CORP_TOKEN, ("jsapi", "agent_config"))

type Fetch = Callable[[WeChat], object]

FETCHES: dict[str, Fetch] = {
    "token": lambda wechat: wechat.fetch_token(PUBLIC),
    "stable_token": lambda wechat: wechat.fetch_token(STABLE),
    "gettoken": lambda wechat: wechat.fetch_token(CORP),
    "check": lambda wechat: wechat.fetch_token(PUBLIC, isolated=True),
    "ticket": lambda wechat: wechat.fetch_ticket(PUBLIC, "jsapi", TOKEN),
    "corp ticket": lambda wechat: wechat.fetch_ticket(CORP, "agent_config", TOKEN),
}


class Call(NamedTuple):
    """A call as it arrived: method, address without query, query, and JSON body; and on which connection."""

    method: str
    url: str
    query: dict[str, str]
    body: Any
    connection: Any

    @property
    def address(self) -> str:
        return self.url + "".join(self.query.values())


class Internet:
    """A real server in the place of WeChat (`/wechat`) and WeCom (`/wecom`), which responds to every call alike."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.responses: Callable[[Call], tuple[int, Mapping[str, str], str | bytes]] = lambda _: (500, {}, "")
        internet = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                internet._serve(self)

            do_POST = do_GET  # noqa: N815 - the base class's name

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign] # a caller that hangs up is no news
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Internet":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, asked: BaseHTTPRequestHandler) -> None:
        url = urlsplit(asked.path)
        # A "?" without a query stays, so that it is seen.
        host, _, path = asked.path.removesuffix(f"?{url.query}" if url.query else "")[1:].partition("/")
        query = {name: value for name, (value,) in parse_qs(url.query).items()}
        body = json.loads(asked.rfile.read(int(asked.headers.get("Content-Length", 0))) or "null")
        address = f"{ {'wechat': WECHAT, 'wecom': WECOM}.get(host, host) }/{path}"
        self.calls.append(Call(str(asked.command), address, query, body, asked.connection))
        status, headers, reply = self.responses(self.calls[-1])
        reply = reply.encode() if isinstance(reply, str) else reply
        asked.send_response(status)
        for name, value in headers.items():
            asked.send_header(name, value)
        asked.send_header("Content-Length", str(len(reply)))
        asked.end_headers()
        with suppress(OSError):
            asked.wfile.write(reply)


@pytest.fixture
def internet() -> Iterator[Internet]:
    with Internet() as internet:
        yield internet


@pytest.fixture
def wechat(internet: Internet) -> WeChat:
    return WeChat(f"{internet.address}/wechat", f"{internet.address}/wecom", lambda: NOW)


def respond(internet: Internet, body: str | bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
    """WeChat and WeCom respond to any call with this."""
    internet.responses = lambda _: (status, headers or {}, body)


def granted(value: str = "v", expires_in: int = 7200) -> str:
    """WeChat's response with a token and a ticket, of which each call takes its own."""
    return json.dumps({"access_token": value, "ticket": value, "expires_in": expires_in})


def refused(wechat: WeChat, fetch: Fetch = FETCHES["token"]) -> WeChatError:
    """The error that a fetch ends with."""
    with pytest.raises(WeChatError) as error:
        fetch(wechat)
    return error.value


# --- what is sent


def sent(internet: Internet) -> tuple[str, str, dict[str, str], Any]:
    """The only request: method, address without query, query, and JSON body."""
    (call,) = internet.calls
    return call.method, call.url, call.query, call.body


CREDENTIALS = {"grant_type": "client_credential", "appid": PUBLIC.app_id, "secret": SECRET}


@pytest.mark.parametrize(
    ("fetch", "method", "url", "query", "body"),
    [
        (FETCHES["token"], "GET", f"{WECHAT}/cgi-bin/token", CREDENTIALS, None),
        (
            FETCHES["stable_token"],
            "POST",
            f"{WECHAT}/cgi-bin/stable_token",
            {},
            CREDENTIALS | {"force_refresh": False},
        ),
        (
            lambda wechat: wechat.fetch_token(STABLE, force=True),
            "POST",
            f"{WECHAT}/cgi-bin/stable_token",
            {},
            CREDENTIALS | {"force_refresh": True},
        ),
        (FETCHES["check"], "POST", f"{WECHAT}/cgi-bin/stable_token", {}, CREDENTIALS | {"force_refresh": False}),
        (
            FETCHES["gettoken"],
            "GET",
            f"{WECOM}/cgi-bin/gettoken",
            {"corpid": CORP.app_id, "corpsecret": SECRET},
            None,
        ),
        (
            FETCHES["ticket"],
            "GET",
            f"{WECHAT}/cgi-bin/ticket/getticket",
            {"access_token": TOKEN, "type": "jsapi"},
            None,
        ),
        (
            lambda wechat: wechat.fetch_ticket(PUBLIC, "wx_card", TOKEN),
            "GET",
            f"{WECHAT}/cgi-bin/ticket/getticket",
            {"access_token": TOKEN, "type": "wx_card"},
            None,
        ),
        (
            lambda wechat: wechat.fetch_ticket(CORP, "jsapi", TOKEN),
            "GET",
            f"{WECOM}/cgi-bin/get_jsapi_ticket",
            {"access_token": TOKEN},
            None,
        ),
        (
            FETCHES["corp ticket"],
            "GET",
            f"{WECOM}/cgi-bin/ticket/get",
            {"access_token": TOKEN, "type": "agent_config"},
            None,
        ),
    ],
)
def test_each_call_goes_where_wechat_documents_it(
    wechat: WeChat,
    internet: Internet,
    fetch: Fetch,
    method: str,
    url: str,
    query: dict[str, str],
    body: dict[str, object] | None,
) -> None:
    respond(internet, granted())
    fetch(wechat)
    assert sent(internet) == (method, url, query, body)


def test_an_isolated_call_asks_stable_token_in_normal_mode(wechat: WeChat, internet: Internet) -> None:
    # Given an account kept with the endpoint `token`
    respond(internet, granted("isolated"))
    # When its token is asked for in isolation
    grant = wechat.fetch_token(PUBLIC, isolated=True)
    # Then nothing of `/cgi-bin/token` is touched, and no token is ended
    assert grant == Grant("isolated", 7200, NOW)
    assert sent(internet) == ("POST", f"{WECHAT}/cgi-bin/stable_token", {}, {**CREDENTIALS, "force_refresh": False})


def test_stable_token_keeps_the_secret_out_of_the_address(wechat: WeChat, internet: Internet) -> None:
    respond(internet, granted())
    wechat.fetch_token(STABLE)
    (call,) = internet.calls
    assert "s3cr3t" not in call.address


def test_another_host_takes_over_where_it_is_configured(internet: Internet) -> None:
    respond(internet, granted())
    assert WeChat(f"{internet.address}/api2/", WECOM, lambda: NOW).fetch_token(PUBLIC)
    assert internet.calls[0].url == "api2/cgi-bin/token"


# --- what a response means


def test_a_life_counts_from_the_moment_before_the_request(internet: Internet) -> None:
    # Given a call that takes five seconds
    now = iter([NOW, NOW + 5, NOW + 5])
    respond(internet, granted("value", 7100))
    # When WeChat grants a token
    grant = WeChat(internet.address, WECOM, lambda: next(now)).fetch_token(PUBLIC)
    # Then it is as old as the request
    assert grant == Grant("value", 7100, asked_at=NOW)


def test_wecoms_errcode_0_is_a_success(wechat: WeChat, internet: Internet) -> None:
    respond(internet, '{"errcode": 0, "errmsg": "ok", "access_token": "value", "expires_in": 7200}')
    assert wechat.fetch_token(CORP) == Grant("value", 7200, NOW)


@pytest.mark.parametrize("errcode", ["", '"errcode": 0,', '"errcode": "0",', '"errcode": null,', '"errcode": 0.0,'])
@pytest.mark.parametrize("expires_in", ["7200", "7200.0", '"7200"', "72e2"])
def test_harmless_variations_of_a_success_are_accepted(
    wechat: WeChat, internet: Internet, errcode: str, expires_in: str
) -> None:
    # When a token arrives, then it is taken: it was minted all the same
    respond(internet, f'{{{errcode} "access_token": "value", "expires_in": {expires_in}}}')
    assert wechat.fetch_token(PUBLIC) == Grant("value", 7200, NOW)


@pytest.mark.parametrize("errcode", ["40125", '"40125"', "40125.0"])
def test_harmless_variations_of_a_refusal_are_accepted(wechat: WeChat, internet: Internet, errcode: str) -> None:
    respond(internet, f'{{"errcode": {errcode}, "errmsg": "invalid appsecret"}}')
    error = refused(wechat)
    assert (error.errcode, error.failure_class, error.outcome_known) == (40125, FailureClass.CONFIGURATION, True)


@pytest.mark.parametrize(
    "reply",
    [
        b'\xef\xbb\xbf{"errcode": 40125, "errmsg": "invalid appsecret"}',
        b'{"errcode": 40125, "errmsg": "\xce\xde\xd0\xa7"}',
    ],
    ids=["a byte order mark", "another encoding"],
)
def test_a_refusal_is_understood_however_it_is_encoded(wechat: WeChat, internet: Internet, reply: bytes) -> None:
    respond(internet, reply)
    assert refused(wechat).errcode == 40125


IP_NOT_ALLOWED = [40164, 61004, 45035, 60020]
CLASSES = {
    FailureClass.TRANSIENT: [-1, 45011, 45033],
    FailureClass.QUOTA: [45009, 48006],
    FailureClass.CONFIGURATION: [
        40013,
        40125,
        40001,
        40243,
        40091,
        50002,
        50004,
        50007,
        48001,
        48002,
        48004,
        61024,
        *IP_NOT_ALLOWED,
    ],
    FailureClass.CONFIRMATION: [89501, 89503, 89506, 89507],
    FailureClass.DEFECT: [40002, 41001, 41002, 41004, 43002, 43003],
    FailureClass.UNKNOWN: [1, 77777],
}


@pytest.mark.parametrize(
    ("errcode", "failure_class"),
    [(code, failure_class) for failure_class in CLASSES for code in CLASSES[failure_class]],
)
def test_each_errcode_calls_for_something(
    wechat: WeChat, internet: Internet, errcode: int, failure_class: FailureClass
) -> None:
    # When a token endpoint refuses
    respond(internet, json.dumps({"errcode": errcode, "errmsg": "some reason rid: 617682e0-09059ac5"}))
    error = refused(wechat)
    # Then the error has its class, WeChat's own words with the rid, and what to do; nothing was minted
    assert (error.failure_class, error.errcode) == (failure_class, errcode)
    assert error.errmsg == "some reason rid: 617682e0-09059ac5"
    assert error.remedy
    assert error.outcome_known


@pytest.mark.parametrize("errcode", [40001, 40014, 42001])
def test_an_error_on_a_call_with_a_token_refers_to_the_token(wechat: WeChat, internet: Internet, errcode: int) -> None:
    respond(internet, json.dumps({"errcode": errcode, "errmsg": "invalid credential"}))
    error = refused(wechat, FETCHES["ticket"])
    assert (error.failure_class, error.errcode) == (FailureClass.CREDENTIAL, errcode)


@pytest.mark.parametrize(
    ("errcode", "errmsg", "address"),
    [
        (40164, "invalid ip 8.149.1.2 ipv6 ::ffff:8.149.1.2, not in whitelist rid: 617682e0-09059ac5", "8.149.1.2"),
        (61004, "access clientip is not registered requestIP: 8.149.1.2 rid: 617682e0", "8.149.1.2"),
        (45035, "access clientip is not registered, not in ip-white-list rid: 617682e0", "address"),
        (
            60020,
            "not allow to access from your ip, hint: [1559], from ip: 8.149.1.2, more info at https://q",
            "8.149.1.2",
        ),
    ],
)
def test_an_address_that_is_not_allowed_is_named(
    wechat: WeChat, internet: Internet, errcode: int, errmsg: str, address: str
) -> None:
    respond(internet, json.dumps({"errcode": errcode, "errmsg": errmsg}))
    assert address in refused(wechat).remedy


@pytest.mark.parametrize(
    "errmsg",
    [
        "\x1b[2J\x1b]0;title\x07invalid\x1b[31m appsecret",
        "\x9b31minvalid\r\n appsecret\x00",
        "\u202einvalid\u2066 appsecret\u200b\u2028\ufeff",
        "invalid\ud800 appsecret",
    ],
    ids=["escape sequences", "controls", "writing direction", "half a pair"],
)
def test_a_message_cannot_steer_a_terminal(wechat: WeChat, internet: Internet, errmsg: str) -> None:
    respond(internet, json.dumps({"errcode": 40125, "errmsg": errmsg}))
    error = refused(wechat)
    for text in (error.errmsg, str(error)):
        assert text.isprintable()
        assert re.search("invalid.* appsecret", text)


BAD_RESPONSES: dict[str, tuple[str | bytes, int]] = {
    "nothing": (b"", 200),
    "null": (b"null", 200),
    "a list": (b"[]", 200),
    "text": (b'"ok"', 200),
    "no JSON": (b"<html></html>", 200),
    "cut": (granted()[:20], 200),
    "no UTF-8": (b'{"access_token": "\xff\xfe"}', 200),
    "nested beyond all measure": ("[" * 60_000, 200),
    "nothing in it": ("{}", 200),
    "no value": ('{"expires_in": 7200}', 200),
    "no life": ('{"access_token": "v"}', 200),
    "an empty value": (granted(""), 200),
    "a null value": ('{"access_token": null, "expires_in": 7200}', 200),
    "a number as value": ('{"access_token": 1, "expires_in": 7200}', 200),
    "a value with a blank": (granted("a b"), 200),
    "a value with a line break": (granted("a\nb"), 200),
    "a value beyond ASCII": (granted("令牌"), 200),
    "a life of nothing": (granted("v", 0), 200),
    "a negative life": (granted("v", -7200), 200),
    "a life in words": ('{"access_token": "v", "expires_in": "two hours"}', 200),
    "a null life": ('{"access_token": "v", "expires_in": null}', 200),
    "a boolean life": ('{"access_token": "v", "expires_in": true}', 200),
    "half a second of life": ('{"access_token": "v", "expires_in": 7200.5}', 200),
    "an endless life": (granted("v", 10**12), 200),
    "an infinite life": ('{"access_token": "v", "expires_in": Infinity}', 200),
    "an errcode in words": ('{"errcode": "oops", "errmsg": "invalid appsecret"}', 200),
    "an errcode that is a list": ('{"errcode": [], "access_token": "v", "expires_in": 7200}', 200),
    "a boolean errcode": ('{"errcode": false, "access_token": "v", "expires_in": 7200}', 200),
    "an errcode beyond all measure": ('{"errcode": 1e300, "errmsg": "oops"}', 200),
    "a value, but HTTP 502": (granted(), 502),
    "HTTP 500": (b"<h1>Internal Server Error</h1>", 500),
    "HTTP 403": (b"Forbidden", 403),
    "HTTP 204": (b"", 204),
    "too long": (granted() + " " * 100_000, 200),
}


@pytest.mark.parametrize(("body", "status"), BAD_RESPONSES.values(), ids=BAD_RESPONSES)
def test_a_response_not_from_wechat_leaves_the_outcome_unknown(
    wechat: WeChat, internet: Internet, body: str | bytes, status: int
) -> None:
    # When something else comes than one of WeChat's responses
    respond(internet, body, status=status)
    error = refused(wechat)
    # Then it is to be tried again, and a token may have been minted
    assert (error.failure_class, error.errcode, error.outcome_known) == (FailureClass.TRANSIENT, None, False)
    assert error.errmsg


def test_a_redirect_is_not_followed(wechat: WeChat, internet: Internet) -> None:
    # Given a WeChat that sends us elsewhere
    with Internet() as elsewhere:
        respond(elsewhere, granted())
        respond(internet, "", status=302, headers={"Location": f"{elsewhere.address}/"})
        # When any call is made
        for fetch in FETCHES.values():
            error = refused(wechat, fetch)
            # Then it fails, and no other host sees a secret
            assert not error.outcome_known
        assert elsewhere.calls == []


# --- connections


@pytest.fixture
def certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """What a server at 127.0.0.1 needs to speak TLS; the adapter trusts its certificate."""
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(tls, "context", lambda: trusting)
    return context


@contextmanager
def server(reply: bytes | None) -> Iterator[str]:
    """A real server for one call, to which it responds with these bytes before it closes; with None it does not listen."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        if reply is None:
            listening.close()
            yield address
            return

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        yield address
        thread.join()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("reply", "outcome_known"),
    [
        (None, True),
        (b"", False),
        (b"garbage\r\n\r\n", False),
        (HEAD + b"Content-Length: 100\r\n\r\n" + granted().encode(), False),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", False),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", False),
        (b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 302 Found\r\nLocation: /\xff\r\nContent-Length: 0\r\n\r\n", False),
    ],
    ids=[
        "not listening",
        "closes",
        "no HTTP",
        "cut short",
        "a cut chunk",
        "wrongly encoded",
        "leads nowhere",
        "no text",
    ],
)
def test_over_a_real_connection_a_failure_is_one_of_ours(reply: bytes | None, outcome_known: bool) -> None:
    with server(reply) as address:
        error = refused(WeChat(address, address, lambda: NOW))
        assert error.outcome_known is outcome_known
        assert_discreet(error)


@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize("encoded", [False, True])
def test_over_a_real_connection_a_token_arrives(encoded: bool, in_chunks: bool) -> None:
    body = granted("value").encode()
    head = HEAD
    if encoded:
        body, head = gzip.compress(body), head + b"Content-Encoding: gzip\r\n"
    if in_chunks:
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:9], body[9:], b""))
        head += b"Transfer-Encoding: chunked\r\n\r\n"
    else:
        head += b"Content-Length: %d\r\n\r\n" % len(body)
    with server(head + body) as address:
        assert WeChat(address, address, lambda: NOW).fetch_token(PUBLIC).value == "value"


@contextmanager
def peer(talk: Callable[[socket.socket], object], **options: Any) -> Iterator[str]:
    """A real peer that does this with the only connection it takes; a broken one ends the talk."""

    def serve() -> None:
        with suppress(OSError), listening.accept()[0] as connection:
            talk(connection)

    with socket.create_server(("127.0.0.1", 0), **options) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.close()
        thread.join()


def test_a_response_without_end_is_not_read_to_its_end() -> None:
    # Given a response that does not end
    sent = list[int]()

    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        connection.sendall(HEAD + b"\r\n")
        while len(sent) < 1000:
            connection.sendall(b" " * 65536)
            sent.append(65536)

    with peer(talk) as address:
        error = refused(WeChat(address, address, lambda: NOW))
    # Then little of it is read
    assert "too long" in str(error)
    assert not error.outcome_known
    assert sum(sent) < 20_000_000


def drip(*drops: bytes) -> Callable[[socket.socket], None]:
    """Talk that sends the last of these over and over, so often that no single one is late, for two minutes."""

    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.settimeout(0.05)
        for drop in (*drops[:-1], *[drops[-1]] * 2400):
            connection.sendall(drop)
            with suppress(TimeoutError):
                if not connection.recv(1):
                    return  # the other side has given up

    return talk


ENDS_WITHIN = 60
"""Seconds: far more than an attempt may take here, even on a busy machine, and far less than the peers below take."""

CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
DRIPS = {
    "the status line": (b"HTTP/1.1 200 O", b"K"),
    "a header": (b"HTTP/1.1 200 OK\r\nServer: ", b"w"),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"Server: w\r\n"),
    "100-continue": (b"HTTP/1.1 100 Continue\r\n\r\n",),
    "the body": (HEAD + b"Content-Length: 10000\r\n\r\n", b" "),
    "chunks": (CHUNKED, b"1\r\n \r\n"),
    "a chunk's extension": (CHUNKED + b"1;", b"x"),
    "trailers": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"a: b\r\n"),
    "a body without length": (HEAD + b"\r\n", b" "),
    "nothing": (b"",),
}


@pytest.mark.parametrize("drops", DRIPS.values(), ids=DRIPS)
def test_an_attempt_ends_in_time_however_slowly_a_peer_sends(
    monkeypatch: pytest.MonkeyPatch, drops: tuple[bytes, ...]
) -> None:
    monkeypatch.setattr(adapter, "READ_TIMEOUT", 0.3)
    began_at = time.monotonic()
    # Given a peer none of whose bytes is late, but which has too many of them
    with peer(drip(*drops)) as address:
        error = refused(WeChat(address, address, lambda: NOW))
    # Then its whole response is not waited for, and the connection is closed
    assert time.monotonic() - began_at < ENDS_WITHIN
    assert not error.outcome_known
    assert_discreet(error)


def test_a_slow_response_over_tls_ends_in_time(monkeypatch: pytest.MonkeyPatch, certified: ssl.SSLContext) -> None:
    monkeypatch.setattr(adapter, "READ_TIMEOUT", 0.3)
    began_at = time.monotonic()

    def talk(connection: socket.socket) -> None:
        with certified.wrap_socket(connection, server_side=True) as encrypted:
            drip(HEAD, b"Server: w\r\n")(encrypted)

    with peer(talk) as address:
        error = refused(WeChat(address.replace("http:", "https:"), WECOM, lambda: NOW))
    assert time.monotonic() - began_at < ENDS_WITHIN
    assert not error.outcome_known
    assert_discreet(error)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_request_that_is_held_up_is_never_sent(
    monkeypatch: pytest.MonkeyPatch, certified: ssl.SSLContext, scheme: str
) -> None:
    monkeypatch.setattr(adapter, "READ_TIMEOUT", 0.1)
    real, given_up, received = HTTPConnection.request, threading.Event(), list[bytes]()

    def held_up(*args: Any, **options: Any) -> None:
        assert given_up.wait(ENDS_WITHIN)
        real(*args, **options)

    def talk(connection: socket.socket) -> None:
        with certified.wrap_socket(connection, server_side=True) if scheme == "https" else connection as asked:
            received.append(asked.recv(65536))

    monkeypatch.setattr(HTTPConnection, "request", held_up)
    # Given a connection that stands, on which nothing is sent until the caller has given up
    with peer(talk) as address:
        before = set(threading.enumerate())
        error = refused(WeChat(address.replace("http:", f"{scheme}:"), WECOM, lambda: NOW))
        abandoned = set(threading.enumerate()) - before
        given_up.set()
    for thread in abandoned:
        thread.join()
    # Then nothing reaches the peer any more
    assert received == [b""]
    assert not error.outcome_known


@pytest.mark.parametrize("fault", ["unknown authority", "another name"])
def test_only_a_server_that_proves_its_name_is_asked(
    monkeypatch: pytest.MonkeyPatch, certified: ssl.SSLContext, fault: str
) -> None:
    received = list[bytes]()

    def talk(connection: socket.socket) -> None:
        with certified.wrap_socket(connection, server_side=True) as encrypted:
            received.append(encrypted.recv(65536))

    # Given a server whose certificate no known authority has signed, or one for another host
    if fault == "unknown authority":
        monkeypatch.setattr(tls, "context", ssl.create_default_context)
    else:
        resolve(monkeypatch, "127.0.0.1")
    with peer(talk) as address:
        address = address.replace("http:", "https:")
        error = refused(
            WeChat(
                address.replace("127.0.0.1", "host.test" if fault == "another name" else "127.0.0.1"),
                WECOM,
                lambda: NOW,
            )
        )
    # Then it gets no request
    assert error.outcome_known
    assert "SSLCertVerificationError" in str(error)
    assert not any(received)


def test_a_look_up_that_hangs_ends_in_time_and_sends_nothing(
    monkeypatch: pytest.MonkeyPatch, internet: Internet, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(adapter, "CONNECT_TIMEOUT", 0.1)
    real, hangs = socket.getaddrinfo, threading.Event()

    def getaddrinfo(*args: Any, **options: Any) -> Any:
        assert hangs.wait(ENDS_WITHIN)
        return real(*args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    before = set(threading.enumerate())
    with warnings.catch_warnings(record=True) as unclosed:
        warnings.simplefilter("always", ResourceWarning)
        # Given a host whose name is found only after the caller has given up
        error = refused(WeChat(internet.address, WECOM, lambda: NOW))
        (abandoned,) = set(threading.enumerate()) - before
        hangs.set()
        abandoned.join()
    # Then nothing was sent, so nothing was minted, and what came of it is closed without a word
    assert error.outcome_known
    assert_discreet(error)
    assert internet.calls == []
    assert abandoned.daemon
    assert not unclosed
    assert capfd.readouterr() == ("", "")


def test_a_slow_tls_handshake_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "CONNECT_TIMEOUT", 0.3)
    began_at = time.monotonic()
    # Given a peer whose handshake does not get on: a TLS record of 16 KB, byte by byte
    with peer(drip(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc", b"\x00")) as address:
        error = refused(WeChat(address.replace("http:", "https:"), WECOM, lambda: NOW))
        assert time.monotonic() - began_at < ENDS_WITHIN
    # Then nothing was sent, so nothing was minted
    assert error.outcome_known


def resolve(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """The name `host.test` has these addresses."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **options: Any) -> Any:
        found = addresses if host == "host.test" else [host]
        return [each for address in found for each in real(address, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_all_addresses_of_a_host_share_the_time_to_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "CONNECT_TIMEOUT", 0.3)
    with deaf() as (address, port):
        # Given a name with so many addresses of which none responds that each with a time of its own would take two minutes
        resolve(monkeypatch, *[address] * 400)
        began_at = time.monotonic()
        error = refused(WeChat(f"http://host.test:{port}", WECOM, lambda: NOW))
        assert time.monotonic() - began_at < ENDS_WITHIN
    assert error.outcome_known


def test_the_next_address_is_tried_where_one_refuses(monkeypatch: pytest.MonkeyPatch, internet: Internet) -> None:
    # Given a host whose first address has no server
    respond(internet, granted("value"))
    resolve(monkeypatch, "127.0.0.2", "127.0.0.1")
    wechat = WeChat(f"http://host.test:{urlsplit(internet.address).port}", WECOM, lambda: NOW)
    assert wechat.fetch_token(PUBLIC).value == "value"


@contextmanager
def deaf() -> Iterator[tuple[str, int]]:
    """A port whose queue of waiting connections is full, so that another one waits for its acceptance."""
    with ExitStack() as open_sockets:
        full = open_sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = open_sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield full.getsockname()


def test_a_host_that_does_not_accept_has_minted_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "CONNECT_TIMEOUT", 0.2)
    with deaf() as (host, port):
        error = refused(WeChat(f"http://{host}:{port}", WECOM, lambda: NOW))
    assert error.outcome_known
    assert_discreet(error)


def test_a_host_that_is_not_found_has_minted_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", not_found)
    error = refused(WeChat(WECHAT, WECOM, lambda: NOW))
    assert error.outcome_known
    assert_discreet(error)


def test_a_peer_without_tls_has_minted_nothing() -> None:
    with peer(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as address:
        error = refused(WeChat(address.replace("http:", "https:"), WECOM, lambda: NOW))
    assert error.outcome_known
    assert "SSLError" in str(error)  # and the operator sees what it was
    assert_discreet(error)


def test_a_connection_that_is_reset_may_have_minted_a_token() -> None:
    def reset(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with peer(reset) as address:
        error = refused(WeChat(address, WECOM, lambda: NOW))
    assert not error.outcome_known
    assert_discreet(error)


# --- probes

ALIVE = '{"ip_list": ["101.89.0.1"]}'


@pytest.mark.parametrize(
    ("reply", "alive"),
    [
        (ALIVE, True),
        ('{"errcode": 0, "errmsg": "ok", "ip_list": []}', True),
        ('{"errcode": "0", "ip_list": ["101.89.0.1"]}', True),
        ('{"errcode": null, "ip_list": ["101.89.0.1"]}', True),
        ('{"errcode": "40001", "errmsg": "invalid credential", "ip_list": []}', False),
        ('{"errcode": 40001, "errmsg": "invalid credential"}', False),
        ('{"errcode": 40014, "errmsg": "invalid access_token", "ip_list": []}', False),
        ('{"errcode": 42001, "errmsg": "access_token expired", "ip_list": []}', False),
    ],
)
@pytest.mark.parametrize("kind", [Kind.TOKEN, Kind.CORP_TOKEN])
def test_the_errcode_says_whether_a_token_works(
    wechat: WeChat, internet: Internet, kind: Kind, reply: str, alive: bool
) -> None:
    respond(internet, reply)
    assert wechat.accepts(kind, TOKEN) is alive
    host = WECOM if kind is Kind.CORP_TOKEN else WECHAT
    assert sent(internet) == ("GET", f"{host}/cgi-bin/get_api_domain_ip", {"access_token": TOKEN}, None)


@pytest.mark.parametrize(
    "reply", ["{}", '{"ip_list": null}', '{"errcode": 45009, "errmsg": "reach max api daily quota limit"}', "oops"]
)
def test_a_check_without_a_clear_response_decides_nothing(wechat: WeChat, internet: Internet, reply: str) -> None:
    respond(internet, reply)
    with pytest.raises(WeChatError):
        wechat.accepts(Kind.TOKEN, TOKEN)


def test_the_probes_of_one_run_share_a_connection(wechat: WeChat, internet: Internet) -> None:
    respond(internet, ALIVE)
    with wechat.probe_session() as session:
        assert all(wechat.accepts(Kind.TOKEN, TOKEN, session) for _ in range(5))
    assert len({call.connection for call in internet.calls}) == 1


def test_calls_without_a_session_share_no_connection(wechat: WeChat, internet: Internet) -> None:
    respond(internet, ALIVE)
    assert all(wechat.accepts(Kind.TOKEN, TOKEN) for _ in range(3))
    assert len({call.connection for call in internet.calls}) == 3


def test_a_probe_is_repeated_once_where_a_kept_connection_breaks(wechat: WeChat, internet: Internet) -> None:
    # Given a peer that closes each connection on its second call
    def reply(call: Call) -> tuple[int, Mapping[str, str], str]:
        if sum(each.connection is call.connection for each in internet.calls) == 2:
            call.connection.shutdown(socket.SHUT_RDWR)
        return 200, {}, ALIVE

    internet.responses = reply
    with wechat.probe_session() as session:
        assert [wechat.accepts(Kind.TOKEN, TOKEN, session) for _ in range(3)] == [True] * 3


def test_a_response_that_is_too_long_ends_its_connection(wechat: WeChat, internet: Internet) -> None:
    with wechat.probe_session() as session:
        # Given a response of which only the beginning was read
        respond(internet, ALIVE + " " * 10_000_000)
        with pytest.raises(WeChatError):
            wechat.accepts(Kind.TOKEN, TOKEN, session)
        # When the next call is made
        respond(internet, ALIVE)
        assert wechat.accepts(Kind.TOKEN, TOKEN, session)
    # Then it does not read the rest for its own response
    assert len(internet.calls) == len({call.connection for call in internet.calls}) == 2


@pytest.mark.parametrize("with_session", [True, False])
def test_a_probe_is_repeated_no_more_than_once(wechat: WeChat, internet: Internet, with_session: bool) -> None:
    # Given a peer that breaks every connection
    def reply(call: Call) -> tuple[int, Mapping[str, str], str]:
        call.connection.shutdown(socket.SHUT_RDWR)
        return 200, {}, ALIVE

    internet.responses = reply
    with wechat.probe_session() as session, pytest.raises(WeChatError):
        wechat.accepts(Kind.TOKEN, TOKEN, session if with_session else None)
    assert len(internet.calls) == (2 if with_session else 1)


def test_a_probe_is_not_repeated_after_a_response_or_a_timeout(
    wechat: WeChat, internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with wechat.probe_session() as session:
        respond(internet, "", status=502)
        with pytest.raises(WeChatError):
            wechat.accepts(Kind.TOKEN, TOKEN, session)
        assert len(internet.calls) == 1
        # And the same where it takes too long
        monkeypatch.setattr(adapter, "READ_TIMEOUT", 0.1)
        late = threading.Event()
        internet.responses = lambda _: (200 if late.wait(5) else 500, {}, ALIVE)
        with pytest.raises(WeChatError):
            wechat.accepts(Kind.TOKEN, TOKEN, session)
        assert len(internet.calls) == 2
        late.set()


# --- no secret in any error

TRACES = ("s3cr3t", SECRET, quote(SECRET), TOKEN, "t0ken", f"{WECHAT}/", f"{WECOM}/", "127.0.0.1:", "appid=")
"""What would give a secret, a token or an address away."""


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and whatever it carries along."""
    while error is not None:
        yield error
        if error.__cause__ is not None and error.__cause__ is not error.__context__:
            yield from chain(error.__cause__)
        error = error.__context__


def assert_discreet(error: BaseException) -> None:
    """Neither the error nor its causes, nor what a log prints of them, give anything away."""
    said = "".join(traceback.format_exception(error))
    for each in chain(error):
        said += f"{each} {each!r} {each.args!r} {vars(each)!r} {getattr(each, '__notes__', '')}"
    assert not [trace for trace in TRACES if trace in said]


@pytest.mark.parametrize("fetch", FETCHES.values(), ids=FETCHES)
@pytest.mark.parametrize("errcode", [-1, 40125, 40164, 77777])
def test_a_message_that_repeats_what_was_sent_is_masked(
    wechat: WeChat, internet: Internet, fetch: Fetch, errcode: int
) -> None:
    # Given a WeChat whose message repeats what it was sent
    def repeat(call: Call) -> tuple[int, Mapping[str, str], str]:
        sent = TOKEN if "access_token" in call.query else SECRET
        return 200, {}, json.dumps({"errcode": errcode, "errmsg": f"invalid: {sent} rid: 617682e0"})

    internet.responses = repeat
    # When it refuses
    error = refused(wechat, fetch)
    # Then the rest of the message is kept
    assert_discreet(error)
    assert "rid: 617682e0" in error.errmsg


@pytest.mark.parametrize(
    "errmsg",
    [
        f"{'x' * 485} {SECRET} rid: 617682e0",  # on the border where a long message is cut
        f"cannot GET /cgi-bin/token?secret={quote(SECRET)}",
        f"cannot GET /cgi-bin/token?secret={quote(SECRET, safe='')}",
        f"invalid {SECRET[:9]}\x1b{SECRET[9:]}",
        {"detail": SECRET},
        [SECRET],
    ],
    ids=["at the cut", "in a path", "in a query", "around an escape", "in an object", "in a list"],
)
def test_a_secret_is_masked_wherever_it_stands_in_the_message(
    wechat: WeChat, internet: Internet, errmsg: object
) -> None:
    respond(internet, json.dumps({"errcode": 40125, "errmsg": errmsg}))
    error = refused(wechat)
    assert "s3cr3t" not in f"{error} {error.errmsg} {error.remedy}"
    assert len(error.errmsg) <= 600


@pytest.mark.parametrize(("body", "status"), BAD_RESPONSES.values(), ids=BAD_RESPONSES)
def test_no_bad_response_gives_anything_away(
    wechat: WeChat, internet: Internet, body: str | bytes, status: int
) -> None:
    # Given a response that holds what was sent, beside what is wrong with it
    body = body.encode() if isinstance(body, str) else body
    respond(internet, body.replace(b'"v"', f'"{TOKEN}"'.encode()) + f" {SECRET}".encode(), status=status)
    for fetch in FETCHES.values():
        assert_discreet(refused(wechat, fetch))


def test_a_short_secret_is_masked_too(wechat: WeChat, internet: Internet) -> None:
    respond(internet, '{"errcode": 40125, "errmsg": "invalid appsecret hunter22"}')
    error = refused(wechat, lambda wechat: wechat.fetch_token(Account("main", "wx1", "hunter22", Kind.TOKEN)))
    assert "hunter22" not in f"{error} {error.errmsg}"


@pytest.mark.parametrize(
    ("account", "errcode", "where"),
    [
        (PUBLIC, 40125, "微信开发者平台"),
        (PUBLIC, 40013, "微信开发者平台"),
        (PUBLIC, 40164, "微信开发者平台"),
        (CORP, 40001, "企业微信管理后台"),
        (CORP, 40013, "企业微信管理后台"),
        (CORP, 60020, "企业微信管理后台"),
    ],
)
def test_a_remedy_names_the_accounts_own_console(
    wechat: WeChat, internet: Internet, account: Account, errcode: int, where: str
) -> None:
    # When WeChat refuses what an operator can correct
    respond(internet, f'{{"errcode": {errcode}, "errmsg": "refused"}}')
    # Then the remedy says where, on the platform of that account
    assert where in refused(wechat, lambda wechat: wechat.fetch_token(account)).remedy
