"""WeChat and WeCom over HTTP: what is sent where, what each answer means, and that no error gives a secret away."""

import gzip
import io
import json
import re
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
import requests
import responses
from urllib3.connectionpool import HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
)

from token_keeper.model import Account, FailureClass, Grant, Kind
from token_keeper.wechat import WeChat, WeChatError

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


@pytest.fixture
def wechat() -> WeChat:
    return WeChat(WECHAT, WECOM, lambda: NOW)


@pytest.fixture
def internet() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


def answer(internet: responses.RequestsMock, body: Any, **more: Any) -> None:
    """WeChat and WeCom answer any call with this."""
    for method in ("GET", "POST"):
        internet.add(method, re.compile(r"https://(qy)?api\.weixin\.qq\.com/.*"), body, **more)


def granted(value: str = "v", expires_in: int = 7200) -> str:
    """WeChat's answer with a token and a ticket, of which each call takes its own."""
    return json.dumps({"access_token": value, "ticket": value, "expires_in": expires_in})


def refused(wechat: WeChat, fetch: Fetch = FETCHES["token"]) -> WeChatError:
    """The error that a fetch ends with."""
    with pytest.raises(WeChatError) as error:
        fetch(wechat)
    return error.value


# --- what is sent


def sent(internet: responses.RequestsMock) -> tuple[str, str, dict[str, str], Any]:
    """The only request: method, address without query, query, and JSON body."""
    (call,) = internet.calls
    url = urlsplit(str(call.request.url))
    query = {name: value for name, (value,) in parse_qs(url.query).items()}
    return str(call.request.method), url._replace(query="").geturl(), query, json.loads(call.request.body or "null")


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
    internet: responses.RequestsMock,
    fetch: Fetch,
    method: str,
    url: str,
    query: dict[str, str],
    body: dict[str, object] | None,
) -> None:
    answer(internet, granted())
    fetch(wechat)
    assert sent(internet) == (method, url, query, body)


def test_an_isolated_call_asks_stable_token_in_normal_mode(wechat: WeChat, internet: responses.RequestsMock) -> None:
    # Given an account kept with the endpoint `token`
    answer(internet, granted("isolated"))
    # When its token is asked for in isolation
    grant = wechat.fetch_token(PUBLIC, isolated=True)
    # Then nothing of `/cgi-bin/token` is touched, and no token is ended
    assert grant == Grant("isolated", 7200, NOW)
    assert sent(internet) == ("POST", f"{WECHAT}/cgi-bin/stable_token", {}, {**CREDENTIALS, "force_refresh": False})


def test_stable_token_keeps_the_secret_out_of_the_address(wechat: WeChat, internet: responses.RequestsMock) -> None:
    answer(internet, granted())
    wechat.fetch_token(STABLE)
    (call,) = internet.calls
    assert "s3cr3t" not in str(call.request.url)


def test_another_host_takes_over_where_it_is_configured(internet: responses.RequestsMock) -> None:
    internet.get("https://api2.weixin.qq.com/cgi-bin/token", granted())
    assert WeChat("https://api2.weixin.qq.com/", WECOM, lambda: NOW).fetch_token(PUBLIC)


# --- what an answer means


def test_a_life_counts_from_the_moment_before_the_request(internet: responses.RequestsMock) -> None:
    # Given a call that takes five seconds
    now = iter([NOW, NOW + 5, NOW + 5])
    answer(internet, granted("value", 7100))
    # When WeChat grants a token
    grant = WeChat(WECHAT, WECOM, lambda: next(now)).fetch_token(PUBLIC)
    # Then it is as old as the request
    assert grant == Grant("value", 7100, asked_at=NOW)


def test_wecoms_errcode_0_is_a_success(wechat: WeChat, internet: responses.RequestsMock) -> None:
    answer(internet, '{"errcode": 0, "errmsg": "ok", "access_token": "value", "expires_in": 7200}')
    assert wechat.fetch_token(CORP) == Grant("value", 7200, NOW)


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
    wechat: WeChat, internet: responses.RequestsMock, errcode: int, failure_class: FailureClass
) -> None:
    # When a token endpoint refuses
    answer(internet, json.dumps({"errcode": errcode, "errmsg": "some reason rid: 617682e0-09059ac5"}))
    error = refused(wechat)
    # Then the error tells its class, WeChat's own words with the rid, and what to do; nothing was minted
    assert (error.failure_class, error.errcode) == (failure_class, errcode)
    assert error.errmsg == "some reason rid: 617682e0-09059ac5"
    assert error.remedy
    assert error.outcome_known


@pytest.mark.parametrize("errcode", [40001, 40014, 42001])
def test_on_a_call_that_carries_a_token_it_is_the_token_that_is_refused(
    wechat: WeChat, internet: responses.RequestsMock, errcode: int
) -> None:
    answer(internet, json.dumps({"errcode": errcode, "errmsg": "invalid credential"}))
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
    wechat: WeChat, internet: responses.RequestsMock, errcode: int, errmsg: str, address: str
) -> None:
    answer(internet, json.dumps({"errcode": errcode, "errmsg": errmsg}))
    assert address in refused(wechat).remedy


BAD_ANSWERS: dict[str, tuple[str | bytes, int]] = {
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
    "a life in text": ('{"access_token": "v", "expires_in": "7200"}', 200),
    "a boolean life": ('{"access_token": "v", "expires_in": true}', 200),
    "half a second of life": ('{"access_token": "v", "expires_in": 7200.5}', 200),
    "an endless life": (granted("v", 10**12), 200),
    "an infinite life": ('{"access_token": "v", "expires_in": Infinity}', 200),
    "an errcode in text": ('{"errcode": "40125", "errmsg": "invalid appsecret"}', 200),
    "a value, but HTTP 502": (granted(), 502),
    "HTTP 500": (b"<h1>Internal Server Error</h1>", 500),
    "HTTP 403": (b"Forbidden", 403),
    "HTTP 204": (b"", 204),
    "too long": (granted() + " " * 100_000, 200),
}


@pytest.mark.parametrize(("body", "status"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_what_is_not_wechats_answer_is_a_failure_of_unknown_outcome(
    wechat: WeChat, internet: responses.RequestsMock, body: str | bytes, status: int
) -> None:
    # When something else comes than one of WeChat's answers
    answer(internet, body, status=status)
    error = refused(wechat)
    # Then it is to be tried again, and a token may have been minted
    assert (error.failure_class, error.errcode, error.outcome_known) == (FailureClass.TRANSIENT, None, False)
    assert error.errmsg


def test_a_redirect_is_not_followed(wechat: WeChat, internet: responses.RequestsMock) -> None:
    # Given a WeChat that sends us elsewhere
    answer(internet, "", status=302, headers={"Location": "https://elsewhere.invalid/"})
    elsewhere = internet.add_callback(
        "GET", re.compile(r"https://elsewhere\.invalid/.*"), lambda _: (200, {}, granted())
    )
    # When any call is made
    for fetch in FETCHES.values():
        error = refused(wechat, fetch)
        # Then it fails, and nobody else sees a secret
        assert not error.outcome_known
    assert elsewhere.call_count == 0


class Endless(io.RawIOBase):
    """An answer that never ends; `given` counts its bytes."""

    given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        buffer[:] = b" " * len(buffer)
        self.given += len(buffer)
        return len(buffer)


def test_an_answer_without_end_is_not_read_to_its_end(wechat: WeChat, internet: responses.RequestsMock) -> None:
    body = Endless()
    internet.get(f"{WECHAT}/cgi-bin/token", io.BufferedReader(body))
    # When an answer does not end
    error = refused(wechat)
    # Then little of it is read
    assert not error.outcome_known
    assert body.given < 1_000_000


# --- connections


def broken(exception: type[requests.RequestException], reason: Exception | None = None) -> requests.RequestException:
    """The exception of a broken call as `requests` raises it: the address, and so the secret, stands in it."""
    pool = HTTPSConnectionPool("api.weixin.qq.com")
    url = f"/cgi-bin/token?appid={PUBLIC.app_id}&secret={quote(SECRET)}&access_token={TOKEN}"
    request = requests.Request("GET", f"{WECHAT}{url}", data=json.dumps(CREDENTIALS)).prepare()
    return exception(MaxRetryError(pool, url, reason) if reason else ProtocolError(url), request=request)


POOL: Any = HTTPSConnectionPool("api.weixin.qq.com")
CONNECTIONS: dict[str, tuple[requests.RequestException, bool]] = {
    "refused": (broken(requests.ConnectionError, NewConnectionError(POOL, "Connection refused")), True),
    "no such host": (
        broken(requests.ConnectionError, NameResolutionError("api.weixin.qq.com", POOL, socket.gaierror())),
        True,
    ),
    "never came about": (broken(requests.ConnectTimeout, ConnectTimeoutError(POOL, "timed out")), True),
    "reset": (broken(requests.ConnectionError), False),
    "no answer in time": (broken(requests.ReadTimeout), False),
    "ended too early": (broken(requests.exceptions.ChunkedEncodingError), False),
    "badly encoded": (broken(requests.exceptions.ContentDecodingError), False),
}


@pytest.mark.parametrize(("exception", "outcome_known"), CONNECTIONS.values(), ids=CONNECTIONS)
def test_only_a_call_that_never_left_has_surely_minted_nothing(
    wechat: WeChat, internet: responses.RequestsMock, exception: requests.RequestException, outcome_known: bool
) -> None:
    answer(internet, exception)
    error = refused(wechat)
    assert (error.failure_class, error.outcome_known) == (FailureClass.TRANSIENT, outcome_known)


@contextmanager
def server(reply: bytes | None) -> Iterator[str]:
    """A real server for one call, which it answers with these bytes before it closes; with None it does not listen."""
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


def test_an_answer_that_only_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a WeChat that sends its answer byte by byte, none of them late by itself, for three seconds
    monkeypatch.setattr("token_keeper.wechat.ANSWER_TIMEOUT", 0.3)
    left, finished = threading.Event(), threading.Event()

    def drip() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
            for _ in range(30):
                if left.wait(0.1):
                    return
                with suppress(OSError):
                    connection.sendall(b" ")
            finished.set()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip)
        thread.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        # When the whole answer takes longer than an answer may
        error = refused(WeChat(address, address, lambda: NOW))
        # Then it is not waited for
        assert not finished.is_set()
        left.set()
        thread.join()
    assert not error.outcome_known


# --- no secret in any error

TRACES = ("s3cr3t", SECRET, quote(SECRET), TOKEN, "t0ken", f"{WECHAT}/", f"{WECOM}/", "appid=")
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
    wechat: WeChat, internet: responses.RequestsMock, fetch: Fetch, errcode: int
) -> None:
    # Given a WeChat whose message repeats what it was sent
    def repeat(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        sent = SECRET if "access_token=" not in str(request.url) else TOKEN
        return 200, {}, json.dumps({"errcode": errcode, "errmsg": f"invalid: {sent} rid: 617682e0"})

    for method in ("GET", "POST"):
        internet.add_callback(method, re.compile(r"https://(qy)?api\.weixin\.qq\.com/.*"), repeat)
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
        {"detail": SECRET},
        [SECRET],
    ],
    ids=["at the cut", "in a path", "in a query", "in an object", "in a list"],
)
def test_a_secret_is_masked_wherever_it_stands_in_the_message(
    wechat: WeChat, internet: responses.RequestsMock, errmsg: object
) -> None:
    answer(internet, json.dumps({"errcode": 40125, "errmsg": errmsg}))
    error = refused(wechat)
    assert "s3cr3t" not in f"{error} {error.errmsg} {error.remedy}"
    assert len(error.errmsg) <= 600


@pytest.mark.parametrize("fetch", FETCHES.values(), ids=FETCHES)
@pytest.mark.parametrize(("exception", "_"), CONNECTIONS.values(), ids=CONNECTIONS)
def test_no_broken_connection_gives_anything_away(
    wechat: WeChat, internet: responses.RequestsMock, fetch: Fetch, exception: requests.RequestException, _: bool
) -> None:
    answer(internet, exception)
    assert_discreet(refused(wechat, fetch))


@pytest.mark.parametrize(("body", "status"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_no_bad_answer_gives_anything_away(
    wechat: WeChat, internet: responses.RequestsMock, body: str | bytes, status: int
) -> None:
    # Given an answer that holds what was sent, beside what is wrong with it
    body = body.encode() if isinstance(body, str) else body
    answer(internet, body.replace(b'"v"', f'"{TOKEN}"'.encode()) + f" {SECRET}".encode(), status=status)
    for fetch in FETCHES.values():
        assert_discreet(refused(wechat, fetch))


def test_a_short_secret_is_masked_too(wechat: WeChat, internet: responses.RequestsMock) -> None:
    answer(internet, '{"errcode": 40125, "errmsg": "invalid appsecret hunter22"}')
    error = refused(wechat, lambda wechat: wechat.fetch_token(Account("main", "wx1", "hunter22", Kind.TOKEN)))
    assert "hunter22" not in f"{error} {error.errmsg}"
