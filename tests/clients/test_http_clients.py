"""WeChat's API through requests and httpx: the token is added, heals once, and is seen by nothing else."""

import asyncio
import io
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import requests

from tests.clients.stub_keeper import FakeTime, StubKeeper
from wechat_token_keeper import Keeper, UnreachableError
from wechat_token_keeper._wechat import WeChatHosts, with_token, without_token

type Send = Callable[..., Any]


def _with_requests(keeper: Keeper) -> Send:
    return keeper.session().request


def _with_httpx(keeper: Keeper) -> Send:
    return httpx.Client(auth=keeper.auth()).request


def _with_async_httpx(keeper: Keeper) -> Send:
    async def send(*arguments: Any, **options: Any) -> httpx.Response:
        async with httpx.AsyncClient(auth=keeper.auth()) as client:
            return await client.request(*arguments, **options)

    return lambda *arguments, **options: asyncio.run(send(*arguments, **options))


@pytest.fixture(params=[_with_requests, _with_httpx, _with_async_httpx])
def send(request: pytest.FixtureRequest, keeper: Keeper) -> Iterator[Send]:
    """Send a request, by each library in turn."""
    return request.param(keeper)  # type: ignore[no-any-return]


def _grow_old(keeper: Keeper, time: FakeTime) -> str:
    """Let the current token be old enough for a report to be accepted."""
    token = keeper.token()
    time.pass_by(61)
    return token


def test_a_call_of_wechats_api_gets_the_token(send: Send, stub: StubKeeper) -> None:
    # When a call is made, with a token of the caller's own in its query
    reply = send("GET", f"{stub.wechat_url}/cgi-bin/user/get?next=a%20b&access_token=mine")
    # Then it carries the keeper's, and the rest as it was
    assert reply.json() == {"got": "", "query": {"next": "a b"}}
    assert stub.wechat_calls[0].query["access_token"] == "token-1"


def test_no_other_host_gets_the_token(send: Send, stub: StubKeeper) -> None:
    # When another server is called
    send("GET", f"{stub.url}/v1/accounts/x/access-token")
    # Then
    assert stub.calls[0].query == {}


@pytest.mark.parametrize("body", [{"json": {"a": 1}}, {"data": {"a": "1"}}, {"files": {"media": b"bytes"}}, {}])
def test_a_refused_token_is_reported_and_the_call_repeated(
    send: Send, keeper: Keeper, stub: StubKeeper, time: FakeTime, body: dict[str, Any]
) -> None:
    # Given a token that another client has killed, and that the keeper replaces after a report
    _grow_old(keeper, time)
    stub.dead, stub.successor = {"token-1"}, "token-2"
    # When
    reply = send("POST", f"{stub.wechat_url}/echo", **body)
    # Then the caller sees the response to the second call, which had the same body
    first, second = stub.wechat_calls
    assert (first.query["access_token"], second.query["access_token"]) == ("token-1", "token-2")
    assert first.body == second.body
    assert reply.json()["got"] == first.body.decode()
    assert len(stub.reports()) == 1


def test_a_token_that_stays_refused_is_sent_once_a_call(
    send: Send, keeper: Keeper, stub: StubKeeper, time: FakeTime
) -> None:
    # Given a token that WeChat refuses and the keeper finds alive
    _grow_old(keeper, time)
    stub.dead = {"token-1"}
    # When three calls are made
    responses = [send("GET", f"{stub.wechat_url}/echo").json() for _ in range(3)]
    # Then each was sent once, its caller sees what WeChat said, and one report was made
    assert [reply["errcode"] for reply in responses] == [40001] * 3
    assert len(stub.wechat_calls) == 3
    assert len(stub.reports()) == 1


def test_a_successor_that_is_refused_too_ends_it(send: Send, keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    _grow_old(keeper, time)
    stub.dead, stub.successor = {"token-1", "token-2"}, "token-2"
    assert send("GET", f"{stub.wechat_url}/echo").json()["errcode"] == 40001
    assert len(stub.wechat_calls) == 2


def test_a_keeper_that_is_gone_leaves_wechats_refusal(
    send: Send, keeper: Keeper, stub: StubKeeper, time: FakeTime
) -> None:
    # Given a dead token in the cache, and a keeper that cannot be reached
    _grow_old(keeper, time)
    keeper.token()
    stub.dead = {"token-1"}
    stub.stop()
    # Then the caller learns what WeChat says
    assert send("GET", f"{stub.wechat_url}/echo").json()["errcode"] == 40001


def test_without_any_token_the_call_is_not_made(send: Send, stub: StubKeeper) -> None:
    stub.stop()
    with pytest.raises(UnreachableError):
        send("GET", f"{stub.wechat_url}/echo")
    assert stub.wechat_calls == []


def test_no_response_or_exception_shows_the_token(
    send: Send, keeper: Keeper, stub: StubKeeper, time: FakeTime, caplog: pytest.LogCaptureFixture
) -> None:
    # Given responses that are fine, healed, and errors of HTTP
    _grow_old(keeper, time)
    fine = send("GET", f"{stub.wechat_url}/echo", params={"a": "1"})
    broken = send("GET", f"{stub.wechat_url}/broken")
    stub.dead, stub.successor = {"token-1"}, "token-2"
    healed = send("GET", f"{stub.wechat_url}/echo")
    with pytest.raises((requests.HTTPError, httpx.HTTPStatusError)) as status:
        broken.raise_for_status()
    # And a WeChat that is gone
    stub._wechat.stop()
    with pytest.raises((requests.ConnectionError, httpx.ConnectError)) as gone:
        send("GET", f"{stub.wechat_url}/echo")
    # Then none of their texts and URLs has a token
    for response in (fine, broken, healed):
        assert "access_token" not in f"{response.url} {response.request.url} {vars(response.request)}"
    for error in (status.value, gone.value):
        assert isinstance(error, (requests.RequestException, httpx.HTTPStatusError, httpx.RequestError))
        assert error.request is not None
        seen = "".join(traceback.format_exception(error)) + repr(vars(error)) + str(error.request.url)
        assert "token-" not in seen
        assert error.__context__ is None or "token-" not in str(error.__context__)
    # And the libraries have logged the calls, without it
    assert "access_token=***" in "".join(record.getMessage() for record in caplog.records)


def test_what_is_no_error_of_wechats_is_not_read(keeper: Keeper, stub: StubKeeper) -> None:
    # Given a picture, which may be large
    url = f"{stub.wechat_url}/picture"
    # Then neither library has read it for the sake of an errcode
    reply = keeper.session().get(url, stream=True)
    assert reply.raw.tell() == 0
    with httpx.Client(auth=keeper.auth()).stream("GET", url) as streamed:
        assert not streamed.is_stream_consumed


def test_a_file_is_sent_again_from_its_beginning(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    # Given a file as a body, of which requests reads on from where it is
    _grow_old(keeper, time)
    stub.dead, stub.successor = {"token-1"}, "token-2"
    body = io.BytesIO(b"skipped, sent")
    body.seek(9)
    # Then
    assert keeper.session().post(f"{stub.wechat_url}/echo", data=body).json()["got"] == "sent"
    assert len(stub.wechat_calls) == 2


def test_a_generator_is_not_sent_again(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    # Given a body that can be read once
    _grow_old(keeper, time)
    stub.dead, stub.successor = {"token-1"}, "token-2"
    session = keeper.session()
    # Then the refusal is reported, and seen by the caller, whose next call works
    assert session.post(f"{stub.wechat_url}/echo", data=iter([b"a", b"b"])).json()["errcode"] == 40001
    assert session.post(f"{stub.wechat_url}/echo", data=iter([b"a", b"b"])).json()["got"] == "ab"
    assert len(stub.reports()) == 1


def test_httpx_sends_a_generator_again(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    _grow_old(keeper, time)
    stub.dead, stub.successor = {"token-1"}, "token-2"
    client = httpx.Client(auth=keeper.auth())
    assert client.post(f"{stub.wechat_url}/echo", content=iter([b"a", b"b"])).json()["got"] == "ab"


@pytest.mark.parametrize(
    ("url", "is_wechats"),
    [
        ("https://api.weixin.qq.com/cgi-bin/user/get", True),
        ("https://qyapi.weixin.qq.com/cgi-bin/user/get", True),
        ("https://api.weixin.qq.com:443/", True),
        ("http://127.0.0.1:8/x", True),
        ("http://api.weixin.qq.com/", False),
        ("https://api.weixin.qq.com.evil.example/", False),
        ("https://evil.example/api.weixin.qq.com", False),
        ("https://api.weixin.qq.com@evil.example/", False),
        ("https://api.weixin.qq.com:8443/", False),
        ("http://127.0.0.1:9/x", False),
    ],
)
def test_which_hosts_get_the_token(url: str, is_wechats: bool) -> None:
    assert (url in WeChatHosts("http://127.0.0.1:8")) is is_wechats


def test_a_url_has_one_token() -> None:
    assert with_token("https://a/b?x=1&access_token=old&y=%20#f", "new") == "https://a/b?x=1&y=%20&access_token=new#f"
    assert without_token("https://a/b?access_token=old") == "https://a/b"


def test_a_log_line_of_another_kind_stays(keeper: Keeper, caplog: pytest.LogCaptureFixture) -> None:
    keeper.auth(), keeper.auth(), keeper.session()
    logging.getLogger("httpx").info("%s %d", "kept", 1)
    assert caplog.records[-1].args == ("kept", 1)
    assert len(logging.getLogger("httpx").filters) == 1
