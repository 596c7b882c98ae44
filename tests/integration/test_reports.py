"""Reports: a client saw its token refused. Compare, check with WeChat, and replace it once if it is dead."""

import json
from typing import Any

import pytest

from infra.local.simulated_wechat import Fault
from tests.integration.wechats_calls import ask_stable_token
from tests.support.world import APPID, SECRET, World, gateway_event
from token_keeper import budget
from token_keeper.model import Kind, fingerprint

PROBE = "/cgi-bin/get_api_domain_ip"
MAIN_TICK, PROBE_RATE = 6600, 300
"""Seconds between two firings of these schedules."""


def test_a_client_that_is_behind_gets_the_token_without_a_check(world: World) -> None:
    # Given a token that has been renewed
    world.add_account()
    old = world.token()
    world.clock.sleep(6600)
    world.wake("tick")
    # When a client reports the one before
    status, body = world.report(access_token=old)
    # Then it gets the current one
    assert (status, body["outcome"]) == (200, "superseded")
    assert world.wechat.accepts(body["access_token"])
    assert world.calls(PROBE) == 0


def test_a_token_that_works_is_not_replaced(world: World) -> None:
    # Given a token that works
    world.add_account()
    world.clock.sleep(60)
    token = world.token()
    before = world.health()
    # When it is reported nevertheless
    status, body = world.report(access_token=token, errcode=40001)
    # Then it has been checked, and stays as it was
    assert (status, body["outcome"], body["access_token"]) == (200, "still_valid", token)
    assert body["expires_in"] == 6775
    assert world.calls(PROBE) == 1
    assert world.calls() == 1
    assert {**before, "last_error": None} == world.health()


@pytest.mark.parametrize("endpoint", ["token", "stable_token"])
def test_a_dead_token_is_replaced_once_and_counted_as_foreign(world: World, endpoint: str) -> None:
    # Given a token that another client has invalidated
    world.add_account(endpoint=endpoint)
    world.clock.sleep(60)
    dead = world.token()
    world.wechat.kill(dead)
    # When 20 clients report it
    responses = [world.report(access_token=dead) for _ in range(20)]
    # Then the first has it replaced, and all get the new one
    assert [body["outcome"] for _, body in responses] == ["replaced"] + ["superseded"] * 19
    assert {status for status, _ in responses} == {200}
    (new,) = {body["access_token"] for _, body in responses}
    assert world.wechat.accepts(new)
    assert world.calls() + world.calls("/cgi-bin/stable_token") == 2
    assert world.calls(PROBE) == 1
    # And the account's health shows it, and what to do
    rotations = world.health()["foreign_rotations"]
    assert rotations["count"] == 1
    assert "AppSecret" in rotations["remedy"]


def test_one_check_serves_all_who_ask_within_ten_seconds(world: World) -> None:
    world.add_account()
    world.clock.sleep(60)
    token = fingerprint(world.token())
    # When a living token is reported again and again for a minute
    for _ in range(60):
        status, body = world.report(fingerprint=token)
        assert (status, body["outcome"]) == (200, "still_valid")
        world.clock.sleep(1)
    # Then WeChat is asked every ten seconds
    assert world.calls(PROBE) == 6


def test_stable_token_is_forced_only_if_it_repeats_a_dead_token(world: World) -> None:
    # Given a dead token that normal mode repeats
    world.add_account(endpoint="stable_token")
    world.clock.sleep(60)
    dead = world.token()
    world.wechat.kill(dead)
    response = f'{{"access_token":"{dead}","expires_in":5000}}'.encode()
    world.wechat.fail("/cgi-bin/stable_token", Fault.malformed(response))
    # When it is reported
    status, body = world.report(access_token=dead)
    # Then it is replaced by force
    assert (status, body["outcome"]) == (200, "replaced")
    assert world.wechat.accepts(body["access_token"])
    assert world.calls("/cgi-bin/stable_token") == 3


def test_a_dead_token_is_not_served_until_it_can_be_replaced(world: World) -> None:
    # Given a dead token, and a WeChat that mints none
    world.add_account()
    world.clock.sleep(60)
    dead = world.token()
    world.wechat.kill(dead)
    world.wechat.fail("/cgi-bin/stable_token", Fault.error(-1))
    # When it is reported
    status, body = world.report(access_token=dead)
    # Then no reader gets it any more, and each learns why
    assert status == 503
    assert body["cause"]["errcode"] == -1
    status, body = world.get("/v1/accounts/main/access-token", world.api_instance())
    assert status == 503
    assert world.health()["state"] == "expired"
    # And a minute later there is a new one
    world.clock.sleep(60)
    world.wake("guard")
    assert world.wechat.accepts(world.token())


def test_a_check_that_fails_changes_nothing(world: World) -> None:
    # Given a WeChat that does not respond to the check
    world.add_account()
    world.clock.sleep(60)
    token = world.token()
    world.wechat.fail(PROBE, Fault.http(502))
    # When the token is reported
    status, body = world.report(access_token=token)
    # Then the reporter gets the current token, unverified, with its promise
    assert (status, body["outcome"], body["access_token"]) == (200, "unverified", token)
    assert body["expires_in"] == 6775


def test_reports_cannot_use_up_the_calls_for_renewals(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given room for ten calls above the reserve, an account that may not use stable_token, a client that invalidates every
    # new token, and one that reports it
    monkeypatch.setattr(budget, "RESERVE", budget.CALLS_A_DAY[Kind.TOKEN] - 10)
    world.add_account()
    world.wechat.fail("/cgi-bin/stable_token", *[Fault.error(48001)] * 99)
    responses = []
    for _ in range(11):
        world.clock.sleep(75)
        token = world.token()
        world.wechat.kill(token)
        status, body = world.report(access_token=token)
        responses.append(status)
        if status != 200:
            break
    # Then the calls that reports may use are limited
    assert responses == [200] * 9 + [503]
    assert body["cause"]["class"] == "quota"
    assert world.calls() == 10
    # And the token is renewed on WeChat's next day
    world.clock.sleep(budget.seconds_to_midnight(int(world.clock())) + 300)
    world.wake("guard")
    assert world.wechat.accepts(world.token())


def test_a_ticket_that_meets_a_dead_token_has_it_replaced(world: World) -> None:
    # Given an account whose token was renewed, and then invalidated by another client
    world.add_account(tickets=["jsapi"])
    world.clock.sleep(6600)
    world.wake("tick")
    dead = world.token()
    world.wechat.kill(dead)
    # When its ticket is due
    world.clock.sleep(300)
    summary = world.wake("guard")
    # Then it is fetched with a new token
    assert [item["credential"] for item in summary["renewed"]] == ["access_token", "jsapi"]
    world.restart()
    assert world.token() != dead
    assert world.wechat.accepts(world.token())
    assert world.health()["foreign_rotations"]["count"] == 1


@pytest.mark.parametrize(
    "body",
    ["", "[]", "{}", "nonsense", '{"fingerprint": "xyz"}', '{"access_token": ""}', '{"access_token": 5}', "[" * 9000],
)
def test_a_malformed_report_is_refused(world: World, body: str) -> None:
    world.add_account()
    status, response, _ = world.request("/v1/accounts/main/access-token/reports", body=body)
    assert (status, response["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", ""])
def test_a_report_with_a_byte_order_mark_is_one(world: World, content_type: str) -> None:
    # Given a report as an editor or PowerShell writes it, with whatever Content-Type, and with more than is asked for
    world.add_account()
    body = f"\ufeff{json.dumps({'access_token': 'another', 'errcode': 40001})}"
    event = gateway_event("/v1/accounts/main/access-token/reports", body, content_type=content_type)
    with world.internet():
        response = world.api_instance()(event, None)
    assert json.loads(response["body"])["outcome"] == "superseded"


def test_a_report_for_an_unknown_account_is_not_found(world: World) -> None:
    assert world.report("unknown", access_token="x")[0] == 404


OTHER_APPID = "wxaaaaaaaaaaaaaaaa"


def test_a_dead_token_is_replaced_only_by_one_of_the_same_appid(world: World) -> None:
    # Given two accounts, and a record of the second that names the first one's appid, which is refused
    world.add_account("main")
    world.add_account("other", appid=OTHER_APPID, secret="f" * 32)
    live, dead = world.token("main"), world.token("other")
    world.put_parameter("other", json.dumps({"appid": APPID, "secret": SECRET}))
    calls = world.calls()
    # When the second one's token dies, and is reported
    world.wechat.kill(dead)
    status, _ = world.report("other", access_token=dead)
    # Then nothing is fetched with the first one's secret, and there is no value
    assert status == 503
    assert world.calls() == calls
    assert world.token("main") == live
    assert world.wechat.accepts(live)


@pytest.mark.moto
@pytest.mark.parametrize("refused_by", ["WeChat", "the quota"])
def test_a_dead_token_that_cannot_be_replaced_is_not_served(world: World, refused_by: str) -> None:
    # Given a reader that remembers a token, which dies
    world.add_account()
    world.clock.sleep(60)
    dead = world.token()
    world.wechat.kill(dead)
    world.wechat.fail("/cgi-bin/stable_token", *[Fault.error(48001)] * 5)
    # And a day's quota that is used up
    if refused_by == "WeChat":
        world.wechat.fail("/cgi-bin/token", *[Fault.error(45009)] * 5)
    else:
        world.dynamodb.update_item(
            TableName="tokens",
            Key={"pk": {"S": "credential#main"}, "sk": {"S": "access_token"}},
            UpdateExpression="SET spent.calls = :calls",
            ExpressionAttributeValues={":calls": {"N": "500"}},
        )
    # When it is reported
    status, body = world.report(access_token=dead)
    # Then the same reader does not hand it out any more
    assert (status, body["cause"]["class"]) == (503, "quota")
    assert world.get("/v1/accounts/main/access-token")[0] == 503


def test_a_corp_token_that_wecom_refuses_is_not_served_again(world: World) -> None:
    # Given a WeCom app whose token WeCom refuses, and repeats
    corp = {"corpid": "ww0123456789abcdef", "secret": "secret-of-the-corp-app"}
    world.add_account("corp", **corp)
    world.clock.sleep(60)
    dead = world.token("corp")
    world.wechat.kill(dead)
    repeated = json.dumps({"errcode": 0, "errmsg": "ok", "access_token": dead, "expires_in": 7200}).encode()
    world.wechat.fail("/cgi-bin/gettoken", *[Fault.malformed(repeated)] * 4)
    # When it is reported, and the guard fires every minute
    assert world.report("corp", access_token=dead)[0] == 503
    for _ in range(3):
        world.clock.sleep(60)
        world.wake("guard")
        # Then it is not served, however often WeCom repeats it
        assert world.get("/v1/accounts/corp/access-token")[0] == 503
    # And its successor is, as soon as there is one
    world.clock.sleep(60)
    world.wake("guard")
    assert world.wechat.accepts(world.token("corp"))


def test_a_corp_token_that_wecom_accepts_again_is_served(world: World) -> None:
    # Given a WeCom app whose token was refused once, though it lives
    world.add_account("corp", corpid="ww0123456789abcdef", secret="secret-of-the-corp-app")
    world.clock.sleep(60)
    token = world.token("corp")
    world.wechat.fail(PROBE, Fault.error(40014))
    # When it is reported
    status, body = world.report("corp", access_token=token)
    # Then WeCom, which repeats it, is asked again, and it is served on
    assert (status, body["access_token"]) == (200, token)


@pytest.mark.moto
def test_a_refused_stable_token_is_not_served_again(world: World) -> None:
    # Given a stable token that WeChat refuses and repeats, and a day whose forced refreshes are used up
    world.add_account(endpoint="stable_token")
    world.clock.sleep(60)
    dead = world.token()
    world.wechat.kill(dead)
    world.dynamodb.update_item(
        TableName="tokens",
        Key={"pk": {"S": "credential#main"}, "sk": {"S": "access_token"}},
        UpdateExpression="SET spent.forced = :forced",
        ExpressionAttributeValues={":forced": {"N": str(budget.FORCED_A_DAY)}},
    )
    repeated = f'{{"access_token":"{dead}","expires_in":5000}}'.encode()
    world.wechat.fail("/cgi-bin/stable_token", *[Fault.malformed(repeated)] * 3)
    # When it is reported, and WeChat goes on to repeat it
    assert world.report(access_token=dead)[0] == 503
    for _ in range(2):
        world.clock.sleep(300)
        world.wake("guard")
        # Then it is not served
        assert world.get("/v1/accounts/main/access-token")[0] == 503
    world.clock.sleep(300)
    world.wake("guard")
    assert world.wechat.accepts(world.token())


@pytest.mark.parametrize("endpoint", ["token", "stable_token"])
def test_a_young_token_is_not_checked(world: World, endpoint: str) -> None:
    # Given a WeChat that accepts a new token only some seconds after it was handed out
    world.add_account(endpoint=endpoint)
    token = world.token()
    world.wechat.fail(PROBE, *[Fault.error(40001)] * 1000)
    calls = len(world.wechat.calls)
    # When three clients report it once a second
    for _ in range(59):
        for _ in range(3):
            status, body = world.report(access_token=token)
            assert (status, body["outcome"], body["access_token"]) == (200, "still_valid", token)
        world.clock.sleep(1)
    # Then nothing is fetched, and nothing is asked
    assert len(world.wechat.calls) == calls


def test_reports_that_are_not_checked_get_the_current_token(world: World) -> None:
    # Given a check that hangs
    world.add_account()
    world.clock.sleep(60)
    token = world.token()
    responses: list[dict[str, Any]] = []
    world.during_call = lambda: responses.append(world.report(access_token=token, instance=world.api_instance())[1])
    # When another client reports the token meanwhile
    world.report(access_token=token)
    # Then it waits five seconds, and gets the current token
    assert [(body["outcome"], body["access_token"]) for body in responses] == [("unverified", token)]
    assert world.calls(PROBE) == 1


@pytest.mark.parametrize("every", [60, pytest.param(10, marks=pytest.mark.long)])
def test_one_consumer_cannot_use_up_the_checks_of_a_day(world: World, every: int) -> None:
    # Given a consumer that forces a refresh every minute or less, for a whole day at WeChat, beside the schedules
    world.add_account()
    key = world.add_consumer("shop", ["main"], may_report=True)
    world.clock.sleep(budget.seconds_to_midnight(int(world.clock())))
    probes = 0

    def goes_on(seconds: int) -> None:
        nonlocal probes
        for second in range(0, seconds, every):
            if second % MAIN_TICK == 0:
                world.wake("tick")
            if second % PROBE_RATE == 0:
                probes += world.wake("probe")["probed"]["alive"]
            assert "access_token" in ask_stable_token(world, key, force=True)
            world.clock.sleep(every)

    goes_on(86400 - PROBE_RATE)
    # Then its reports have used up no more than their own share, and the probe has made all of its checks
    assert 0 < world.calls(PROBE) - probes <= budget.REPORT_BURST + 86400 // budget.REPORT_INTERVAL
    assert probes > 86400 // PROBE_RATE - 15  # the others met a token of less than a minute
    # And a token that dies in the day's last minutes is replaced by the next probe, while the consumer goes on
    dead = world.token()
    world.wechat.kill(dead)
    goes_on(PROBE_RATE)
    assert world.calls(PROBE) <= budget.CHECKS_A_DAY
    assert world.token() != dead
    assert world.wechat.accepts(world.token())


def test_a_limited_report_says_when_to_come_back(world: World) -> None:
    # Given reports that have used up the allowance
    world.add_account()
    world.clock.sleep(60)
    path, report = "/v1/accounts/main/access-token/reports", json.dumps({"access_token": world.token()})
    for _ in range(budget.REPORT_BURST + 3):
        invoked = len(world.events)
        status, body, headers = world.request(path, body=report)
        if status != 200:
            break
        world.clock.sleep(10)
    # Then the response to one more says when to come back, without an invocation of RefreshFunction
    assert (status, body["code"]) == (429, "too_many_reports")
    assert len(world.events) == invoked
    world.clock.sleep(int(headers["Retry-After"]))
    assert world.request(path, body=report)[0] == 200


def test_a_check_that_hangs_keeps_no_renewal_waiting(world: World) -> None:
    # Given a token that comes due while WeChat takes its time to check it
    world.add_account()
    token = world.token()
    world.clock.sleep(6655)
    summaries: list[dict[str, Any]] = []

    def comes_due() -> None:
        world.clock.sleep(6)
        summaries.append(world.wake("guard"))

    world.during_call = comes_due
    # When it is reported
    _, body = world.report(access_token=token)
    # Then it is renewed all the same, once
    assert [item["credential"] for item in summaries[0]["renewed"]] == ["access_token"]
    assert world.calls() == 2
    assert world.wechat.accepts(world.token())
    # And the response to the report says so
    assert (body["outcome"], body["access_token"]) == ("superseded", world.token())
