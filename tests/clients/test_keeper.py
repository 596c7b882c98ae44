"""The client's own rules, against a stub keeper and a clock that a test moves."""

import asyncio
import hashlib
import os
import pickle
import time as real_time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event, Thread, Timer

import pytest

from tests.clients.stub_keeper import APPID, CORPID, KEY, Call, FakeTime, StubKeeper
from wechat_token_keeper import (
    AccessDeniedError,
    Keeper,
    KeeperError,
    NotEnoughTimeError,
    SetupError,
    UnavailableError,
    UnknownCredentialError,
    UnreachableError,
)


def test_a_token_is_asked_for_once_in_cache_for(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    # Given a token
    assert keeper.token() == "token-1"
    # When the keeper has another one, 59 s later it is not asked yet
    stub.token = "token-2"
    time.pass_by(59)
    assert keeper.token() == "token-1"
    assert len(stub.calls) == 1
    # Then after 60 s it is
    time.pass_by(1)
    assert keeper.token() == "token-2"
    assert stub.paths() == ["/cgi-bin/stable_token"] * 2


def test_a_token_that_ends_sooner_is_asked_for_sooner(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    stub.expires_in = 10
    keeper.token()
    time.pass_by(10)
    keeper.token()
    assert len(stub.calls) == 2


def test_the_key_travels_in_a_body_and_in_no_url(keeper: Keeper, stub: StubKeeper) -> None:
    keeper.ticket("jsapi")
    keeper.report("token-1")
    assert not any(KEY in call.query.values() for call in stub.calls)
    assert (stub.calls[0].method, stub.calls[0].json["secret"]) == ("POST", KEY)


def test_100_threads_make_one_call(keeper: Keeper, stub: StubKeeper) -> None:
    # Given a keeper that takes its time
    stub.before_response = lambda _call: real_time.sleep(0.05)
    together = Barrier(100)

    def ask() -> str:
        together.wait()
        return keeper.token()

    # When 100 threads ask at once
    with ThreadPoolExecutor(100) as threads:
        tokens = [future.result() for future in [threads.submit(ask) for _ in range(100)]]
    # Then
    assert set(tokens) == {"token-1"}
    assert len(stub.calls) == 1


def test_100_tasks_and_a_thread_make_one_call(keeper: Keeper, stub: StubKeeper) -> None:
    # Given a keeper that does not respond yet
    response, asked = Event(), Event()

    def wait(_call: Call) -> None:
        asked.set()
        response.wait(120)

    stub.before_response = wait

    async def ask() -> set[str]:
        tasks = [asyncio.create_task(keeper.token_async()) for _ in range(100)]
        await asyncio.to_thread(asked.wait, 20)
        thread = asyncio.create_task(asyncio.to_thread(keeper.token))
        # When the task that began the call is cancelled, and the loop is seen to be free
        tasks[0].cancel()
        await asyncio.sleep(0)
        response.set()
        done = await asyncio.gather(*tasks[1:], thread)
        assert tasks[0].cancelled()
        return set(done)

    # Then all the others have the value, by one call
    assert asyncio.run(ask()) == {"token-1"}
    assert len(stub.calls) == 1


def test_a_task_that_ends_its_loop_early_leaves_nothing_behind(keeper: Keeper, stub: StubKeeper) -> None:
    # Given a loop that is over before the keeper responds
    response = Event()
    stub.before_response = lambda _call: response.wait(120)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(keeper.token_async(), 0.01)

    asyncio.run(give_up())
    response.set()
    # Then the next loop gets the value of that very call
    assert asyncio.run(keeper.token_async()) == "token-1"
    assert len(stub.calls) == 1


def test_a_call_that_has_just_landed_is_not_repeated(
    keeper: Keeper, stub: StubKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a thread that looked for the token just before another thread's call for it landed
    keeper.token()
    cache, looks = keeper._cache, [None]
    fresh = cache.fresh
    monkeypatch.setattr(cache, "fresh", lambda name: looks.pop() if looks else fresh(name))
    # Then it takes what that call brought
    assert keeper.token() == "token-1"
    assert len(stub.calls) == 1


def test_others_use_the_cached_token_while_one_asks(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    # Given a cached token whose time has come, and a keeper that is slow
    keeper.token()
    time.pass_by(60)
    asked, response = Event(), Event()

    def wait(_call: Call) -> None:
        asked.set()
        response.wait(120)

    stub.before_response, stub.token = wait, "token-2"
    slow = Thread(target=keeper.token)
    slow.start()
    assert asked.wait(120)
    # When another thread wants it meanwhile, then it does not wait
    assert keeper.token() == "token-1"
    response.set()
    slow.join()
    assert keeper.token() == "token-2"


def test_the_cached_token_serves_until_its_promise_ends(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    # Given a token that is promised for 6000 s, and a keeper that is gone
    keeper.token()
    stub.stop()
    # Then it serves to the last second
    for seconds in (60, 3000, 2939):
        time.pass_by(seconds)
        assert keeper.token() == "token-1"
    # And after it there is an error that says why and what to do
    time.pass_by(1)
    with pytest.raises(UnreachableError) as failed:
        keeper.token()
    assert "127.0.0.1 did not respond: ConnectionRefusedError (Connection refused)" in failed.value.problem
    assert "Check the address" in failed.value.remedy


@pytest.mark.parametrize("failure", [(503, {"message": "x"}, {}), (200, {"errcode": -1, "errmsg": "busy"}, {})])
def test_a_keeper_in_trouble_is_not_asked_at_each_use(
    keeper: Keeper, stub: StubKeeper, time: FakeTime, failure: tuple[int, dict[str, object], dict[str, str]]
) -> None:
    # Given a cached token whose time has come, and a keeper that fails
    keeper.token()
    time.pass_by(60)
    stub.failure = failure
    # When it is used a hundred times, then the keeper gets one call
    for _ in range(100):
        assert keeper.token() == "token-1"
    assert len(stub.calls) == 2
    # And 2 s later the next, which may succeed
    stub.failure, stub.token = None, "token-2"
    time.pass_by(2)
    assert keeper.token() == "token-2"


def test_a_failure_is_not_repeated_at_once(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    stub.failure = (502, {}, {})
    failures = [_failure(keeper.token) for _ in range(10)]
    assert len(stub.calls) == 1
    # And each caller has an exception of its own, whose traceback does not grow
    assert all("HTTP 502" in str(failure) for failure in failures)
    assert len({id(failure) for failure in failures}) == 10
    stub.failure = None
    time.pass_by(2)
    assert keeper.token() == "token-1"


def test_a_revoked_key_gets_no_cached_token(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    keeper.token()
    stub.failure = (200, {"errcode": 40125, "errmsg": "invalid appsecret"}, {})
    time.pass_by(60)
    with pytest.raises(AccessDeniedError, match="revoked"):
        keeper.token()


def test_a_response_that_is_no_json_object_is_an_error(keeper: Keeper, stub: StubKeeper) -> None:
    stub.failure = (200, ["token"], {})  # type: ignore[assignment]
    with pytest.raises(UnavailableError, match="no JSON object"):
        keeper.token()


@pytest.mark.parametrize("document", [{}, {"access_token": "t"}, {"access_token": 7, "expires_in": 60}, {"errcode": 0}])
def test_a_response_without_a_value_is_an_error(keeper: Keeper, stub: StubKeeper, document: dict[str, object]) -> None:
    stub.failure = (200, document, {})
    with pytest.raises(UnavailableError, match="holds no access_token"):
        keeper.token()


def test_no_redirect_is_followed(keeper: Keeper, stub: StubKeeper) -> None:
    stub.failure = (307, {}, {"Location": stub.wechat_url + "/elsewhere"})
    with pytest.raises(UnavailableError, match="HTTP 307"):
        keeper.token()
    assert stub.wechat_calls == []


def test_a_long_job_gets_a_token_that_lasts(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    # Given a cached token with 1000 s left
    stub.expires_in = 1000
    keeper.token()
    # Then a job of 900 s gets it, and one of 1100 s an error without a further call
    assert keeper.token(minimum_seconds=900) == "token-1"
    with pytest.raises(NotEnoughTimeError, match="promised for 1000 s, not for 1100 s") as short:
        keeper.token(minimum_seconds=1100)
    assert short.value.retry_after == 60
    assert len(stub.calls) == 1
    # And once the keeper has a longer one, that
    stub.token, stub.expires_in = "token-2", 6000
    time.pass_by(60)
    assert keeper.token(minimum_seconds=1100) == "token-2"


def test_the_wall_clock_may_be_set_back(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    # Given a token that was fetched before the wall clock is set back by a day
    keeper.token()
    time.wall -= 86400
    time.pass_by(60)
    # Then it is as old as it is
    stub.token = "token-2"
    assert keeper.token() == "token-2"


def test_time_in_a_frozen_lambda_counts(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    # Given a function that is frozen for an hour, in which its monotonic clock stands still
    keeper.token()
    time.wall += 3600
    # Then
    stub.token = "token-2"
    assert keeper.token() == "token-2"


def test_a_refused_token_is_reported_once(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    # Given a token that is older than a minute
    token = keeper.token()
    time.pass_by(61)
    keeper.token()
    # When 50 threads meet its refusal
    stub.successor = "token-2"
    with ThreadPoolExecutor(50) as threads:
        successors = list(threads.map(keeper.report, [token] * 50))
    # Then all go on with its successor, and the keeper got one report
    assert set(successors) == {"token-2"}
    assert len(stub.reports()) == 1
    assert keeper.token() == "token-2"


def test_a_token_found_alive_is_not_reported_again(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    token = keeper.token()
    time.pass_by(61)
    for _ in range(10):
        assert keeper.report(token) == token
        time.pass_by(30)
    assert len(stub.reports()) == 1


def test_a_report_of_a_young_token_is_made_once_more(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    # Given a report that came within the minute in which the keeper takes no token for dead
    token = keeper.token()
    time.pass_by(30)
    assert keeper.report(token) == token
    assert keeper.report(token) == token
    assert len(stub.reports()) == 1
    # When that minute is over and it is still refused
    time.pass_by(30)
    stub.successor = "token-2"
    # Then
    assert keeper.report(token) == "token-2"
    assert len(stub.reports()) == 2


def test_who_is_behind_reports_nothing(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    # Given a token that the keeper has replaced since
    token = keeper.token()
    stub.token = "token-2"
    # Then its refusal gets the new one, and what is current is not suspected
    assert keeper.report(token) == "token-2"
    assert stub.reports() == []


def test_a_response_superseded_by_a_report_is_dropped(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    # Given a slow call for the token that is under way
    token = keeper.token()
    time.pass_by(60)
    asked, response = Event(), Event()

    def delay(call: Call) -> None:
        if not asked.is_set():
            asked.set()
            response.wait(120)

    stub.before_response = delay
    slow = Thread(target=keeper.token)
    slow.start()
    assert asked.wait(120)
    # When a report brings a newer token first
    time.pass_by(1)
    stub.successor = "token-2"
    assert keeper.report(token) == "token-2"
    stub.token = "token-1"  # what the slow response says, from a reader's memory
    response.set()
    slow.join()
    # Then that stays
    assert keeper.token() == "token-2"


def test_a_ticket_goes_with_the_current_token(keeper: Keeper, stub: StubKeeper) -> None:
    # Given a cached token that the keeper has replaced twice since
    keeper.token()
    stub.token = "token-3"
    # Then the ticket is asked for once more, with the current one, and cached
    assert keeper.ticket("jsapi") == "ticket-1"
    assert keeper.ticket("jsapi") == "ticket-1"
    assert stub.paths().count("/cgi-bin/ticket/getticket") == 2


def test_a_ticket_that_is_not_kept(keeper: Keeper, stub: StubKeeper) -> None:
    keeper.token()
    stub.failure = (200, {"errcode": 48001, "errmsg": "api unauthorized"}, {})
    with pytest.raises(UnknownCredentialError, match="--tickets"):
        keeper.ticket("wx_card")


def test_a_page_is_signed_as_wechat_documents(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    # Given WeChat's own ticket of its worked example
    stub.ticket = "sM4AOVdWfPE4DxkXGEs8VMCPGGVi4C3VM0P37wVUCFvkVAy_90u5h9nbSlYy3-Sl-HhTdfl2fzFy1AOcHKP7qg"
    # When a page is signed, with what follows #
    signed = keeper.jsapi_signature("http://mp.weixin.qq.com?params=value#top")
    # Then
    text = (
        f"jsapi_ticket={stub.ticket}&noncestr={signed['nonceStr']}&timestamp=1790000000"
        "&url=http://mp.weixin.qq.com?params=value"
    )
    assert signed["signature"] == hashlib.sha1(text.encode()).hexdigest()
    assert (signed["appId"], signed["timestamp"]) == (APPID, 1_790_000_000)


@pytest.mark.parametrize("page", ["mp.weixin.qq.com", "https://a.example/?a=1&amp;b=2", "https://a.example/页", ""])
def test_a_page_of_another_form_is_not_signed(keeper: Keeper, page: str) -> None:
    with pytest.raises(SetupError, match=r"location\.href"):
        keeper.jsapi_signature(page)


def test_wecom(stub: StubKeeper, time: FakeTime) -> None:
    # Given a keeper of a WeCom app
    keeper = Keeper.corp(stub.url, key=KEY, corpid=CORPID, clock=time.clock)
    # Then it asks in WeCom's format
    assert keeper.token() == "token-1"
    assert keeper.ticket("jsapi") == keeper.ticket("agent_config") == "ticket-1"
    assert stub.paths() == ["/cgi-bin/gettoken", "/cgi-bin/get_jsapi_ticket", "/cgi-bin/ticket/get"]
    assert stub.calls[0].query == {"corpid": CORPID, "corpsecret": KEY}
    assert stub.calls[2].query["type"] == "agent_config"
    # And a refused token is only asked for again
    time.pass_by(61)
    stub.token = "token-2"
    assert keeper.report("token-1") == "token-2"
    assert keeper.jsapi_signature("https://a.example/")["appId"] == CORPID


def test_after_a_fork_the_child_asks_by_itself(keeper: Keeper, stub: StubKeeper, time: FakeTime) -> None:
    # Given a thread that is asking for the token while the process forks
    asked, response = Event(), Event()

    def wait(_call: Call) -> None:
        if not asked.is_set():
            asked.set()
            response.wait(120)

    stub.before_response = wait
    slow = Thread(target=keeper.token)
    slow.start()
    assert asked.wait(120)
    keeper._cache._lock.acquire()  # as another thread may hold it
    child = os.fork()
    if child == 0:
        timer = Timer(20, os._exit, (2,))
        timer.daemon = True
        timer.start()
        os._exit(0 if keeper.token() == "token-1" else 1)
    keeper._cache._lock.release()
    # Then the child does not wait for a thread that it has not
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    response.set()
    slow.join()
    assert len(stub.calls) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: Keeper("ftp://a.example", key=KEY, appid=APPID),
        lambda: Keeper("http://a.example", key=KEY, appid=APPID),
        lambda: Keeper("https://user:pass@a.example", key=KEY, appid=APPID),
        lambda: Keeper("https://[a.example", key=KEY, appid=APPID),
        lambda: Keeper("https://a.example:99999", key=KEY, appid=APPID),
        lambda: Keeper("https://a.example?x=1", key=KEY, appid=APPID),
        lambda: Keeper("https://a.example", key="0123456789abcdef0123456789abcdef", appid=APPID),
        lambda: Keeper("https://a.example", key=KEY, appid="wx 1"),
        lambda: Keeper.corp("https://a.example", key="secret", corpid=CORPID),
        lambda: Keeper.iam("https://a.example", "Main"),
    ],
)
def test_a_wrong_argument_is_found_at_once_and_not_repeated(make: Callable[[], Keeper]) -> None:
    with pytest.raises(SetupError) as wrong:
        make()
    assert isinstance(wrong.value, ValueError)
    assert not any(secret in str(wrong.value) for secret in ("0123456789abcdef", "pass@", "'secret'"))


def test_errors_carry_no_value(stub: StubKeeper, time: FakeTime) -> None:
    # Given keepers that fail in every way, with the key in a body or in a query
    made: list[Keeper] = [
        Keeper(stub.url, key=KEY, appid=APPID, clock=time.clock),
        Keeper.corp(stub.url, key=KEY, corpid=CORPID, clock=time.clock),
    ]
    failures: list[KeeperError] = []
    for keeper in made:
        for errcode in (-1, 40013, 40125, 48001, 41001):
            stub.failure = (200, {"errcode": errcode, "errmsg": f"{KEY} token-1"}, {})
            failures.append(_failure(keeper.token))
            time.pass_by(3)
        stub.failure = (500, {"secret": KEY}, {})
        failures.append(_failure(keeper.token))
        time.pass_by(3)
        assert KEY not in repr(keeper)
    stub.stop()
    failures += [_failure(keeper.token) for keeper in made]
    # Then nothing of it is in what a reader or a program could see of the exception
    for error in failures:
        seen = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
        assert KEY not in seen
        assert error.__context__ is None
        assert error.remedy
        copied = pickle.loads(pickle.dumps(error))
        assert (type(copied), str(copied)) == (type(error), str(error))


def _failure(call: Callable[[], str]) -> KeeperError:
    with pytest.raises(KeeperError) as failed:
        call()
    return failed.value
