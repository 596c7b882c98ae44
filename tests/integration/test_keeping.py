"""A token is always there: renewals on time, and what becomes of them when something fails on the way."""

import itertools
import json
from contextlib import suppress
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from infra.local.simulated_wechat import Fault
from refresh import UnknownEventError
from tests.support.world import ACCOUNTS_PATH, APPID, SECRET, START, World
from token_keeper.errors import KeeperError
from token_keeper.refresh import keeper
from token_keeper.table.credentials import Credentials

TOKEN, STABLE_TOKEN = "/cgi-bin/token", "/cgi-bin/stable_token"
MAIN_TICK = 110 * 60
OVERLAP = 300
"""Seconds the old token works after a rotation."""


def granted(**response: object) -> Fault:
    """WeChat responds with exactly this."""
    return Fault.malformed(json.dumps(response).encode())


LOST = {
    "connection lost after": Fault.drop_after(),
    "connection lost before": Fault.drop_before(),
    "no response in time": Fault.slow(30),
    "cut": Fault.truncated(),
    "no JSON": Fault.malformed(b"<xml>busy</xml>"),
    "HTTP 502": Fault.http(502),
    "HTTP 502 after": Fault.http(502, carried_out=True),
    "redirect": Fault.redirect(),
    "too long": Fault.oversized(),
}
"""What can happen to a response, so that it is unknown whether WeChat has minted a token."""

MALFORMED = {
    "null": b"null",
    "no expires_in": b'{"access_token": "T"}',
    "an empty token": b'{"access_token": "", "expires_in": 7200}',
    "a negative life": b'{"access_token": "T", "expires_in": -1}',
    "a life in words": b'{"access_token": "T", "expires_in": "two hours"}',
    "a huge life": b'{"access_token": "T", "expires_in": 1000000000000}',
    "a token beside an error": b'{"errcode": -1, "errmsg": "busy", "access_token": "T", "expires_in": 7200}',
}
"""What looks like a success and is none; the whole table stands beside the adapter's tests."""


def read(world: World, name: str = "main") -> tuple[int, dict[str, Any]]:
    """What a reader gets that remembers nothing."""
    return world.get(f"/v1/accounts/{name}/access-token", world.api_instance())


def promised_until(world: World) -> int:
    """The end of the promise that a reader gets now."""
    status, body = read(world)
    assert status == 200, body
    return int(world.clock()) + int(body["expires_in"])


def at_main_tick(world: World, endpoint: str = "token") -> str:
    """An account whose token is to be renewed by the main tick, now; returns that token."""
    world.add_account("main", endpoint=endpoint)
    world.clock.now = START + MAIN_TICK
    return world.token()


# --- on time


def test_the_first_token_appears_with_the_parameter(world: World) -> None:
    # When an account's parameter is created
    summary = world.add_account("main")
    # Then its token is there before any reader has asked for it
    assert [item["account"] for item in summary["renewed"]] == ["main"]
    assert world.wechat.accepts(world.token())
    assert world.calls() == 1


@pytest.mark.parametrize(
    ("endpoint", "schedule", "seconds", "renewed"),
    [
        ("token", "tick", 100 * 60, False),
        ("token", "tick", MAIN_TICK, True),
        ("token", "guard", MAIN_TICK, False),
        ("token", "guard", 111 * 60 - 1, False),
        ("token", "guard", 111 * 60, True),
        ("token", "guard", 5 * 3600, True),
        ("stable_token", "tick", MAIN_TICK, False),
        ("stable_token", "guard", 120 * 60 - 271, False),
        ("stable_token", "guard", 120 * 60 - 270, True),
        ("stable_token", "tick", 120 * 60 - 270, True),
    ],
)
def test_each_endpoint_has_its_rhythm(world: World, endpoint: str, schedule: str, seconds: int, renewed: bool) -> None:
    # Given an account with a token
    world.add_account("main", endpoint=endpoint)
    before = world.calls(f"/cgi-bin/{endpoint}")
    old = world.token()
    # When a schedule fires some time after that
    world.clock.sleep(seconds)
    summary = world.wake(schedule)
    # Then WeChat is asked only when it is time, and a new token comes of it
    world.restart()
    assert bool(summary["renewed"]) is renewed
    assert world.calls(f"/cgi-bin/{endpoint}") == before + renewed
    assert (world.token() != old) is renewed
    assert world.wechat.accepts(world.token())


@pytest.mark.parametrize("event", [{"detail-type": "Scheduled Event", "source": "aws.events"}, {"wake": "tick"}])
def test_any_scheduled_event_is_the_main_tick(world: World, event: dict[str, str]) -> None:
    old = at_main_tick(world)
    # When the main schedule fires, in either form
    summary = world.invoke(event)
    # Then it renews
    assert summary["woken_by"] == "tick"
    assert len(summary["renewed"]) == 1
    world.restart()
    assert world.token() != old


@pytest.mark.parametrize("endpoint", ["token", "stable_token"])
def test_a_promise_made_just_before_a_renewal_is_kept(world: World, endpoint: str) -> None:
    # Given a reader who was promised something one second before the renewal
    world.add_account("main", endpoint=endpoint)
    renewal = START + (MAIN_TICK if endpoint == "token" else 7200 - 270)
    world.clock.now = renewal - 1
    old, until = world.token(), promised_until(world)
    # When the token is renewed, and the promise has all but ended
    world.clock.now = renewal
    assert world.wake("tick")["renewed"]
    world.clock.now = until - 1
    # Then the old token still works
    assert until > renewal
    assert world.wechat.accepts(old)


def test_a_token_with_a_short_life_is_renewed_in_time(world: World) -> None:
    # Given a token that WeChat lets live for ten minutes
    world.secrets.add("short-lived")
    world.wechat.fail(TOKEN, granted(access_token="short-lived", expires_in=600))
    world.add_account("main")
    assert promised_until(world) < START + 600
    # When the guard fires every minute
    for _ in range(9):
        world.clock.sleep(60)
        world.wake("guard")
    # Then it has been replaced once before it expired
    assert world.calls() == 2
    assert world.wechat.accepts(world.token())


def test_an_unchanged_stable_token_is_asked_for_again_in_time(world: World) -> None:
    world.add_account("main", endpoint="stable_token")
    world.clock.sleep(7200 - 270)
    old = world.token()
    # Given a WeChat that does not mint a new one yet
    world.wechat.fail(STABLE_TOKEN, granted(access_token=old, expires_in=270))
    world.wake("guard")
    assert promised_until(world) <= START + 7200
    # When the guard fires a minute later
    world.clock.sleep(60)
    world.wake("guard")
    # Then the new one is there before the old one expires
    assert read(world)[1]["access_token"] != old
    assert world.wechat.accepts(read(world)[1]["access_token"])


def test_a_guard_with_nothing_due_costs_one_query(world: World) -> None:
    # Given several accounts with fresh tokens
    for number in range(5):
        world.add_account(f"main-{number}", appid=f"wx{number}")
    asked: list[str] = []
    world.before_aws = lambda operation, _: asked.append(operation)
    # When the guard fires
    summary = world.wake("guard")
    # Then it has asked AWS once, and WeChat not at all
    assert asked == ["dynamodb.Query"]
    assert summary == {"woken_by": "guard", "renewed": [], "skipped": [], "failed": []}
    assert world.calls() == 5


@pytest.mark.parametrize("length", [512, 2048])
def test_a_long_token_is_kept_whole(world: World, length: int) -> None:
    # Given a WeChat that hands out a long token
    long = "x" * length
    world.secrets.add(long)
    world.wechat.fail(TOKEN, granted(access_token=long, expires_in=7200))
    # When it is fetched
    world.add_account("main")
    # Then readers get every character of it
    assert world.token() == long


# --- WeChat says no


def test_a_refused_renewal_is_retried_each_minute_until_it_works(world: World) -> None:
    old, expires_at, rounds = at_main_tick(world), START + 7200, 14
    # Given a WeChat that refuses
    world.wechat.fail(TOKEN, *[Fault.error(-1)] * rounds)
    world.wake("tick")
    for failures in range(1, rounds):
        # Then nothing is asked before most of a minute has passed
        world.clock.sleep(54)
        world.wake("guard")
        assert world.calls() == 1 + failures
        # And the old token is served unchanged for as long as it lives
        status, body = read(world)
        assert (status, body.get("access_token")) == ((200, old) if world.clock() < expires_at else (503, None))
        assert world.health()["state"] == ("failing" if world.clock() < expires_at else "expired")
        # And then it is asked again, once, though the guard comes a moment earlier in its minute than the last time
        world.clock.sleep(1 + failures % 6)
        world.wake("guard")
        assert world.calls() == 1 + failures + 1
        assert world.health()["failures"] == failures + 1
    # When WeChat recovers
    world.clock.sleep(60)
    world.wake("guard")
    # Then all is well again
    assert world.wechat.accepts(world.token())
    health = world.health()
    assert (health["state"], health["failures"], health["last_error"]) == ("fresh", 0, None)


def test_a_refused_renewal_keeps_the_promise_minus_one_overlap(world: World) -> None:
    old = at_main_tick(world)
    # Given a WeChat that has refused
    world.wechat.fail(TOKEN, Fault.error(-1))
    world.wake("tick")
    # When a reader asks just before the next attempt, which then succeeds
    world.clock.sleep(59)
    until = promised_until(world)
    world.clock.sleep(1)
    world.wake("guard")
    # Then the old token works until the promised moment, and the promise was worth something
    assert until > world.clock() + 200
    world.clock.now = until - 1
    assert world.wechat.accepts(old)


def test_an_address_that_is_not_allowed_is_named_in_the_remedy(world: World) -> None:
    at_main_tick(world)
    # Given a WeChat that does not know the address we call from
    world.wechat.fail(TOKEN, Fault.error(40164, "invalid ip 8.149.1.2 ipv6 ::ffff:8.149.1.2, not in whitelist"))
    # When a renewal fails for it
    summary = world.wake("tick")
    # Then the summary and the health say which address to add, and the live token is still served
    for shown in (summary["failed"][0], world.health()["last_error"]):
        assert (shown["class"], shown["errcode"]) == ("configuration", 40164)
        assert "8.149.1.2" in shown["remedy"]
    assert world.wechat.accepts(world.token())


def test_a_used_up_quota_is_not_hammered(world: World) -> None:
    at_main_tick(world)
    # Given an account whose calls of the day are used up
    world.wechat.fail(TOKEN, Fault.error(45009))
    world.wake("tick")
    # When the guard fires every minute
    for _ in range(29):
        world.clock.sleep(60)
        world.wake("guard")
    # Then WeChat is left alone for half an hour, and asked again after that
    assert world.calls() == 2
    world.clock.sleep(60)
    assert world.wake("guard")["renewed"]
    assert world.calls() == 3


# --- WeChat says nothing


@pytest.mark.parametrize("fault", LOST.values(), ids=LOST)
def test_a_lost_response_is_repaired_in_isolation_at_once(world: World, fault: Fault) -> None:
    old = at_main_tick(world)
    # Given a call of /cgi-bin/token whose response is lost
    world.wechat.fail(TOKEN, fault)
    # When the token is to be renewed
    summary = world.wake("tick")
    # Then stable_token gives the new one at once, which ends no token that readers are promised
    assert [item["account"] for item in summary["renewed"]] == ["main"]
    assert (world.calls(TOKEN), world.calls(STABLE_TOKEN)) == (2, 1)
    assert world.wechat.accepts(read(world)[1]["access_token"])
    assert world.wechat.accepts(old)


def test_two_renewals_in_a_second_forget_no_lost_response(world: World) -> None:
    # Given a renewal whose responses are lost, and an operator's that WeChat refuses in the same second
    world.add_account()
    world.clock.sleep(MAIN_TICK)
    world.wechat.fail(TOKEN, Fault.drop_after(), Fault.error(-1))
    world.wechat.fail(STABLE_TOKEN, Fault.drop_before())
    world.wake("tick")
    world.invoke({"renew": {"account": "main", "credential": "access_token", "rotate": True}})
    # When the guard fires
    world.clock.sleep(60)
    world.wake("guard")
    # Then it does not mint a second token, which would end the first one that readers are still promised
    assert world.wechat.calls[-1].path == STABLE_TOKEN


@pytest.mark.parametrize("fault", LOST.values(), ids=LOST)
def test_a_lost_repair_is_retried_a_minute_later_in_isolation(world: World, fault: Fault) -> None:
    old = at_main_tick(world)
    # Given a WeChat whose responses are lost, those of stable_token too
    world.wechat.fail(TOKEN, fault)
    world.wechat.fail(STABLE_TOKEN, fault, fault)
    # When the token is to be renewed, and the guard fires in the following minutes
    summary = world.wake("tick")
    assert [item["class"] for item in summary["failed"]] == ["transient"]
    assert read(world)[1].get("access_token") == old
    for _ in range(3):
        world.clock.sleep(60)
        world.wake("guard")
    # Then /cgi-bin/token is called no second time, so the old token keeps its overlap
    assert world.calls(TOKEN) == 2
    assert world.wechat.accepts(read(world)[1]["access_token"])
    assert world.wechat.accepts(old)


def test_the_next_planned_renewal_mints_again(world: World) -> None:
    at_main_tick(world)
    # Given a token that came from stable_token, because a response was lost
    world.wechat.fail(TOKEN, Fault.drop_after())
    world.wake("tick")
    isolated = read(world)[1]["access_token"]
    # When it is due
    world.clock.sleep(6930)
    world.wake("guard")
    # Then /cgi-bin/token gives its successor, and both work
    assert world.calls(TOKEN) == 3
    assert read(world)[1]["access_token"] != isolated
    assert world.wechat.accepts(isolated)


def test_a_repair_refused_by_stable_token_waits_for_the_overlap(world: World) -> None:
    old = at_main_tick(world)
    attempt = world.clock()
    # Given a lost response, and an account that may not use stable_token
    world.wechat.fail(TOKEN, Fault.drop_after())
    world.wechat.fail(STABLE_TOKEN, *[Fault.error(48001)] * 99)
    world.wake("tick")
    # When the guard fires every minute
    while world.clock() < attempt + OVERLAP:
        assert world.calls(TOKEN) == 2
        assert world.wechat.accepts(old)
        world.clock.sleep(60)
        world.wake("guard")
    # Then a new token is minted when the old one's promises have ended, and not before
    assert world.calls(TOKEN) == 3
    assert world.wechat.accepts(read(world)[1]["access_token"])


@pytest.mark.parametrize(("lost", "responded"), [(0, 0), (0, 1), (1, 1), (2, 0), (2, 2)])
def test_a_lost_response_caps_the_promise_at_the_overlap(world: World, lost: int, responded: int) -> None:
    at_main_tick(world)
    attempt = world.clock()
    # Given an attempt whose responses are lost, WeChat having minted a token, and later ones that are refused or lost, too
    world.wechat.fail(TOKEN, Fault.drop_after(), *[Fault.drop_before()] * 99)
    later = [Fault.drop_after()] * lost + [Fault.error(-1)] * responded + [Fault.drop_before()] * 99
    world.wechat.fail(STABLE_TOKEN, *later)
    world.wake("tick")
    # When readers ask in the minutes after it
    while world.clock() < attempt + 420:
        status, body = read(world)
        # Then no reader is promised more than the old token has left for sure
        if world.clock() < attempt + OVERLAP - 5:
            assert status == 200
            assert world.clock() + body["expires_in"] <= attempt + OVERLAP
        elif world.clock() >= attempt + OVERLAP:
            assert status == 503
        world.clock.sleep(30)
        world.wake("guard")


def test_a_connection_that_never_came_about_puts_nothing_at_risk(world: World) -> None:
    old = at_main_tick(world)
    # Given a WeChat that cannot be reached
    world.unreachable = True
    world.wake("tick")
    # When that lasts for nine minutes
    for _ in range(9):
        world.clock.sleep(60)
        assert len(world.wake("guard")["failed"]) == 1
        # Then the old token is served all the time: it has no successor
        status, body = read(world)
        assert (status, body.get("access_token")) == (200, old)
    # And all is well when the connection is back
    world.unreachable = False
    world.clock.sleep(60)
    world.wake("guard")
    assert world.wechat.accepts(read(world)[1]["access_token"])


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_response_never_replaces_a_live_token(world: World, body: bytes) -> None:
    old = at_main_tick(world)
    # Given a WeChat that returns nonsense
    for path in (TOKEN, STABLE_TOKEN):
        world.wechat.fail(path, *[Fault.malformed(body)] * 3)
    # When the token is to be renewed
    summary = world.wake("tick")
    # Then that is a failure, and the old token is still the one that is handed out
    assert (len(summary["renewed"]), len(summary["failed"])) == (0, 1)
    assert read(world)[1]["access_token"] == old
    assert world.health()["state"] == "failing"


# --- the process dies


def killed(*_: object) -> None:
    raise SystemExit("killed")


@pytest.mark.parametrize("guard_after", [1, 59])
@pytest.mark.parametrize("moment", ["before WeChat is asked", "with the response under way", "before it is written"])
def test_a_renewal_that_died_is_repaired_within_the_overlap(world: World, moment: str, guard_after: int) -> None:
    old = at_main_tick(world)
    died_at = world.clock()

    def die_at_next_write() -> None:
        world.before_aws = killed

    # Given a refresher that dies in the middle of a renewal
    match moment:
        case "before WeChat is asked":
            world.before_aws = lambda operation, _: killed() if operation == "ssm.GetParameters" else None
        case "with the response under way":
            world.during_call = killed
        case "before it is written":
            world.during_call = die_at_next_write
    with pytest.raises(SystemExit):
        world.wake("tick")
    world.before_aws = None
    # When the guard fires every minute from some moment on
    world.restart()
    world.clock.sleep(guard_after)
    until = promised_until(world)
    assert world.wechat.accepts(old)
    world.wake("guard")
    world.clock.sleep(60)
    world.wake("guard")
    # Then a new token is there within two minutes, and no reader was promised more than the old one had left
    assert world.clock() - died_at <= 120
    new = read(world)[1]["access_token"]
    assert new != old
    assert world.wechat.accepts(new)
    assert until <= died_at + OVERLAP or world.calls() == 2


@pytest.mark.parametrize("late", ["value", "failure"])
def test_a_response_that_comes_too_late_changes_nothing(world: World, late: str) -> None:
    at_main_tick(world)
    if late == "failure":
        world.wechat.fail(TOKEN, Fault.error(-1))

    def another_renews_meanwhile() -> None:
        world.clock.sleep(61)
        assert world.invoke({"wake": "guard"}, world.refresh_instance())["renewed"]

    # Given a call to WeChat that outlasts its lease, so that another instance has renewed
    world.during_call = another_renews_meanwhile
    # When its response comes after all
    summary = world.wake("tick")
    # Then the newest token stays; a value that came too late may be its successor, so that it is renewed at once
    assert [item["account"] for item in summary["skipped"]] == ["main"]
    assert read(world)[1]["access_token"].startswith("simulated_token_3_" if late == "value" else "simulated_token_2_")
    assert world.health()["state"] == "fresh"


# --- AWS fails


@pytest.mark.parametrize("schedule", ["tick", "guard"])
def test_while_the_table_cannot_be_read_no_token_is_fetched(world: World, schedule: str) -> None:
    at_main_tick(world)
    world.clock.sleep(60)
    # When a schedule fires while DynamoDB does not respond
    with world.down("dynamodb"), pytest.raises(KeeperError, match="DynamoDB"):
        world.wake(schedule)
    # Then WeChat was not asked, and the next wake-up makes it good
    assert world.calls() == 1
    assert world.wake("guard")["renewed"]


def test_while_no_lease_can_be_taken_no_token_is_fetched(world: World) -> None:
    old = at_main_tick(world)
    # When the main tick fires while DynamoDB takes no writes
    with world.down("dynamodb.UpdateItem", "dynamodb.PutItem"):
        summary = world.wake("tick")
    # Then that is reported, WeChat was not asked, and the old token is served
    assert [(item["class"], item["errcode"]) for item in summary["failed"]] == [("transient", None)]
    assert world.calls() == 1
    assert read(world)[1]["access_token"] == old
    # And the guard renews it when it is due
    world.clock.sleep(60)
    assert world.wake("guard")["renewed"]


def test_an_unwritten_token_is_replaced_while_the_old_one_works(world: World) -> None:
    old = at_main_tick(world)
    died_at = world.clock()
    # Given a table that cannot be written to from the moment on when WeChat has minted
    outage = world.down("dynamodb.UpdateItem")
    world.during_call = outage.__enter__
    summary = world.wake("tick")
    outage.__exit__(None, None, None)
    # Then that is reported, and the old token is promised for no longer than it has left
    assert len(summary["failed"]) == 1
    world.clock.sleep(30)
    assert read(world)[1]["access_token"] == old
    assert world.wechat.accepts(old)
    assert promised_until(world) <= died_at + OVERLAP
    # And the guard replaces it
    world.clock.sleep(30)
    assert world.wake("guard")["renewed"]
    assert world.wechat.accepts(read(world)[1]["access_token"])


def test_while_parameter_store_is_down_nothing_is_dropped(world: World) -> None:
    old = at_main_tick(world)
    # When the main tick fires while Parameter Store does not respond
    with world.down("ssm"), suppress(KeeperError):
        world.wake("tick")
    # Then the account is still there, with its live token
    assert read(world)[1]["access_token"] == old
    assert world.wechat.accepts(old)
    assert promised_until(world) > world.clock() + 200
    assert world.calls() == 1
    # And it is renewed when Parameter Store is back
    world.clock.sleep(60)
    assert world.wake("guard")["renewed"]


def test_a_tick_that_fails_halfway_still_reports_what_it_renewed(world: World) -> None:
    at_main_tick(world)
    # When the main tick renews, but cannot list the accounts after that
    with world.down("ssm.GetParametersByPath"), suppress(KeeperError):
        world.wake("tick")
    # Then the log or the summary names the new token
    fingerprint = read(world)[1]["fingerprint"]
    assert world.calls() == 2
    assert any(fingerprint in text for text in world.said)


# --- accounts beside each other


@pytest.mark.parametrize("fault", [Fault.error(40125), Fault.slow(30), Fault.drop_after(), Fault.malformed()])
def test_one_broken_account_delays_no_other(world: World, fault: Fault) -> None:
    # Given a broken account between good ones
    for name in ("a", "broken", "z"):
        world.add_account(name, appid=f"wx-{name}")
    world.clock.now = START + MAIN_TICK
    for path in (TOKEN, STABLE_TOKEN):
        world.wechat.fail(path, *[fault] * 99, account="wx-broken")
    # When the main tick fires
    summary = world.wake("tick")
    # Then the good ones are renewed, and only the broken one fails
    assert {item["account"] for item in summary["renewed"]} == {"a", "z"}
    assert {item["account"] for item in summary["failed"]} == {"broken"}


def test_a_good_account_is_renewed_before_a_hundred_broken_ones(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Side by side it begins first all the same, but which thread calls WeChat first depends on the machine
    monkeypatch.setattr(keeper, "WORKERS", 1)
    # Given a hundred accounts that WeChat refuses or whose records are broken, and one good account
    broken = 100
    for number in range(broken):
        value = json.dumps({"appid": f"wx{number}", "secret": "wrong-secret"}) if number % 4 == 0 else "{}"
        name = f"{world.environment['ACCOUNTS_PATH']}/broken-{number}"
        world.ssm.put_parameter(Name=name, Value=value, Type="SecureString")
    world.add_account("main")
    assert len(world.wake("tick")["failed"]) == broken
    # When all of them are due at once
    world.clock.now = START + MAIN_TICK + 60
    called = len(world.wechat.calls)
    summary = world.wake("guard")
    # Then the good one is renewed, and first
    assert [item["account"] for item in summary["renewed"]] == ["main"]
    assert len(summary["failed"]) == broken
    assert world.wechat.calls[called].account == APPID


# --- who else asks


@pytest.mark.parametrize("endpoint", ["token", "stable_token"])
@pytest.mark.parametrize("lost", [0, 1])
def test_an_operator_replaces_a_live_token(world: World, endpoint: str, lost: int) -> None:
    # Given a live token, and a WeChat whose next response may be lost
    world.add_account("main", endpoint=endpoint)
    world.clock.sleep(1000)
    old = world.token()
    world.wechat.fail(f"/cgi-bin/{endpoint}", *[Fault.drop_after()] * lost)
    # When an operator has it replaced
    world.invoke({"renew": {"account": "main", "credential": "access_token", "rotate": True}})
    # Then readers get another one that works
    new = read(world)[1]["access_token"]
    assert new != old
    assert world.wechat.accepts(new)


def test_asking_for_a_renewal_that_is_not_due_replaces_nothing(world: World) -> None:
    world.add_account("main")
    old = world.token()
    # When a renewal is asked for without the operator's order to rotate
    summary = world.invoke({"renew": {"account": "main", "credential": "access_token"}})
    # Then it is skipped, with the reason
    assert [(item["account"], bool(item["reason"])) for item in summary["skipped"]] == [("main", True)]
    assert read(world)[1]["access_token"] == old


@pytest.mark.parametrize(("account", "credential"), [("unknown", "access_token"), ("main", "jsapi")])
def test_asking_for_a_renewal_of_what_is_not_kept_is_told(world: World, account: str, credential: str) -> None:
    world.add_account("main")
    # When a renewal is asked for of something that is not kept
    summary = world.invoke({"renew": {"account": account, "credential": credential}})
    # Then the summary says so
    assert (summary["renewed"], summary["failed"]) == ([], [])
    assert "no such" in summary["skipped"][0]["reason"]
    assert world.calls() == 1


EVENTS: list[dict[str, Any]] = [
    {"wake": "tick"},
    {"wake": "guard"},
    {"renew": {"account": "main", "credential": "access_token"}},
]


def test_duplicate_and_late_events_cost_no_further_call(world: World) -> None:
    at_main_tick(world)
    world.clock.sleep(60)
    # When every event arrives three times, also as an account's change
    for event in EVENTS * 3:
        world.invoke(event)
    world.parameter_event("main")
    world.parameter_event("main", "Create")
    # Then one renewal has been made
    assert world.calls() == 2


def test_events_during_a_renewal_cost_no_further_call(world: World) -> None:
    at_main_tick(world)
    world.clock.sleep(60)
    meanwhile: list[dict[str, Any]] = []
    # When every event arrives, at another instance, while a renewal is under way
    other = world.refresh_instance()
    world.during_call = lambda: meanwhile.extend(world.invoke(event, other) for event in EVENTS)
    summary = world.wake("guard")
    # Then only the first one has asked WeChat
    assert len(summary["renewed"]) == 1
    assert [(item["renewed"], item["failed"]) for item in meanwhile] == [([], [])] * len(EVENTS)
    assert world.calls() == 2


@pytest.mark.parametrize("event", EVENTS, ids=["tick", "guard", "renew"])
def test_a_run_that_is_out_of_time_leaves_the_rest_to_the_next(world: World, event: dict[str, Any]) -> None:
    at_main_tick(world)
    world.clock.sleep(60)
    # When a wake-up has less time left than an attempt may take
    summary = world.invoke(event, seconds=10)
    # Then it begins none and says so, and the next one goes on
    assert [item["account"] for item in summary["skipped"]] == ["main"]
    assert world.calls() == 1
    assert world.wake("guard")["renewed"]


def test_a_tick_that_finds_many_changed_records_ends_in_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Side by side they would take no longer than one; this clock adds up what threads wait
    monkeypatch.setattr(keeper, "WORKERS", 1)
    # Given many changed secrets whose events were lost, and a WeChat that hangs when they are checked
    names = [f"main-{number}" for number in range(9)]
    for name in names:
        world.add_account(name, appid=f"wx-{name}")
        world.ssm.put_parameter(
            Name=f"{world.environment['ACCOUNTS_PATH']}/{name}",
            Value=json.dumps({"appid": f"wx-{name}", "secret": "another-secret"}),
            Type="SecureString",
            Overwrite=True,
        )
    world.wechat.fail(STABLE_TOKEN, *[Fault.slow(30)] * 9)
    # When the main tick fires, with a minute to run
    began = world.clock()
    world.invoke({"wake": "tick"}, seconds=60)
    # Then it ends by itself
    assert world.clock() - began < 60
    # And the next ticks, some time later, find what it left
    for _ in range(2):
        world.wake("tick")
    assert {world.health(name)["state"] for name in names} == {"failing"}


def test_a_renewal_without_any_response_ends_in_time(world: World) -> None:
    at_main_tick(world)
    # Given three quarters of a minute, and a WeChat that does not respond
    for path in (TOKEN, STABLE_TOKEN):
        world.wechat.fail(path, *[Fault.slow(30)] * 3)
    # When the main tick fires
    began = world.clock()
    summary = world.invoke({"wake": "tick"}, seconds=45)
    # Then it ends in time, with the failure noted
    assert world.clock() - began < 45
    assert len(summary["failed"]) == 1
    assert world.health()["failures"] == 1


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"wake": "nap"},
        {"wake": None},
        {"renew": "main"},
        {"renew": {"account": "main"}},
        {"renew": {"account": 1, "credential": "access_token"}},
        {"source": "aws.ssm", "detail": {}},
        {"source": "aws.s3", "detail": {"name": "/wechat-token-keeper/accounts/main"}},
    ],
)
def test_an_unknown_event_is_a_clear_error(world: World, event: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="event"):
        world.invoke(event)


# --- the summary


@pytest.mark.parametrize("schedule", ["tick", "guard", "probe"])
@pytest.mark.parametrize("service", ["ssm", "dynamodb.GetItem", "dynamodb.UpdateItem", "dynamodb.BatchGetItem"])
def test_no_invocation_outlives_its_timeout(
    world: World, monkeypatch: pytest.MonkeyPatch, schedule: str, service: str
) -> None:
    # Given a hundred accounts that are due, some with a changed record, and one worker: of several each would move the clock
    # between the time that another has left and its call
    monkeypatch.setattr(keeper, "WORKERS", 1)
    names = [f"a{number:03}" for number in range(100)]
    for name in names:
        world.add_account(name, appid=f"wx-{name}")
    world.clock.now = START + 6660
    for name in names[:20]:
        value = json.dumps({"appid": f"wx-{name}", "secret": SECRET, "tickets": ["jsapi"]})
        world.ssm.put_parameter(Name=f"{ACCOUNTS_PATH}/{name}", Value=value, Type="SecureString", Overwrite=True)

    def hang(operation: str, _: bytes) -> None:
        if operation.startswith(service):
            ends_at = world.clock() + 22  # three attempts of seven seconds, as botocore makes them
            world.clock.now = max(world.clock.now, ends_at)
            raise EndpointConnectionError(endpoint_url="https://hangs.invalid/")

    # When a schedule fires while each call of a service hangs, and then fails
    world.before_aws = hang
    began = world.clock()
    with suppress(KeeperError):
        world.invoke({"wake": schedule}, seconds=120)
    # Then it ends by itself
    assert world.clock() - began < 120


ANY_EVENT = [
    {"wake": "tick"},
    {"wake": "guard"},
    {"wake": "probe"},
    {"detail-type": "Scheduled Event"},
    {"source": "aws.ssm", "detail": {"name": "/wechat-token-keeper/accounts/main", "operation": "Update"}},
    {"renew": {"account": "main", "credential": "access_token", "rotate": True}},
    {"renew": {"account": "main", "credential": "access_token"}, "wake": "tick"},
    {"verify": {"account": "main", "fingerprint": "0" * 16, "rotate": True}},
]


@pytest.mark.parametrize("event", ANY_EVENT)
def test_the_readers_alias_takes_nothing_else(world: World, event: dict[str, Any]) -> None:
    # Given an event that ApiFunction has no business to send
    world.add_account()
    world.clock.sleep(300)
    calls, health = len(world.wechat.calls), world.health()
    # When it arrives by the alias that ApiFunction invokes
    with pytest.raises(UnknownEventError):
        world.invoke(event, alias="readers")
    # Then nothing happens
    assert (len(world.wechat.calls), world.health()) == (calls, health)


def test_the_readers_alias_renews_and_verifies(world: World) -> None:
    world.add_account()
    renew = {"renew": {"account": "main", "credential": "access_token"}}
    verify = {"verify": {"account": "main", "fingerprint": world.health()["fingerprint"]}}
    assert world.invoke(renew, alias="readers")["skipped"]
    assert world.invoke(verify, alias="readers")["verified"]


def test_the_summary_tells_what_was_renewed_skipped_and_failed(world: World) -> None:
    # Given an account to renew, one that fails, and one that another instance is renewing
    for name in ("good", "bad", "busy"):
        world.add_account(name, appid=f"wx-{name}")
    world.clock.now = START + MAIN_TICK
    world.wechat.fail(TOKEN, Fault.error(50002), account="wx-bad")
    # When the main tick fires while the other renewal is under way
    summaries: list[dict[str, Any]] = []
    world.during_call = lambda: summaries.append(world.invoke({"wake": "tick"}, world.refresh_instance()))
    world.invoke({"renew": {"account": "busy", "credential": "access_token", "rotate": True}})
    summary = summaries[0]
    # Then each of them is in the summary, with what an operator needs to know
    fingerprint = read(world, "good")[1]["fingerprint"]
    assert summary["woken_by"] == "tick"
    assert summary["renewed"] == [
        {
            "account": "good",
            "credential": "access_token",
            "fingerprint": fingerprint,
            "expires_at": "2026-09-21T18:03:20Z",
            "promised_until": "2026-09-21T17:57:15Z",
            "renews_at": "2026-09-21T17:54:20Z",
            "budget_used": 0,
        }
    ]
    assert [(item["account"], set(item)) for item in summary["skipped"]] == [
        ("busy", {"account", "credential", "reason"})
    ]
    failed = summary["failed"][0]
    assert (failed["account"], failed["credential"]) == ("bad", "access_token")
    assert (failed["class"], failed["errcode"]) == ("configuration", 50002)
    assert failed["next_attempt_at"] == "2026-09-21T16:08:20Z"
    assert failed["remedy"]


def test_a_ticket_renewed_by_an_operator_keeps_the_live_token(world: World) -> None:
    # Given a stable token that is due, and promised to readers
    world.add_account(endpoint="stable_token", tickets=["jsapi"])
    world.clock.sleep(6935)
    token = world.token()
    # When an operator has the ticket renewed
    world.invoke({"renew": {"account": "main", "credential": "jsapi", "rotate": True}})
    # Then
    assert world.wechat.accepts(token)


def test_a_forced_refresh_with_a_lost_response_ends_the_promise(world: World) -> None:
    # Given a stable token
    world.add_account(endpoint="stable_token")
    token = world.token()
    world.clock.sleep(60)
    # When an operator replaces it, and WeChat's responses get lost
    world.wechat.fail(STABLE_TOKEN, *[Fault.drop_after()] * 2)
    world.invoke({"renew": {"account": "main", "credential": "access_token", "rotate": True}})
    world.restart()
    # Then no reader gets the old one, which may be dead
    assert world.get("/v1/accounts/main/access-token")[0] == 503
    world.clock.sleep(120)
    world.wake("guard")
    assert world.token() != token
    assert world.wechat.accepts(world.token())


def test_a_day_of_broken_responses_stays_within_its_reserve(world: World) -> None:
    # Given a token that is due, and a WeChat that returns 502 all day
    world.add_account()
    world.clock.sleep(6660)
    before = world.calls()
    world.wechat.fail("/cgi-bin/token", *[Fault.http()] * 100)
    # When the guard fires every minute for half an hour
    for _ in range(30):
        world.wake("guard")
        world.clock.sleep(60)
    # Then it makes a call a minute, and two more at the first
    assert world.calls() - before <= 30 + 2


def test_a_superseded_forced_refresh_is_found_by_the_probe(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an operator's rotation of a stable token that is held up, and reaches WeChat only when its lease is over
    world.add_account(endpoint="stable_token")
    world.clock.sleep(60)
    change, response = Credentials.change, world.wechat.handle

    def held_up(*asked: Any) -> Any:
        leased = change(*asked)
        monkeypatch.undo()
        world.clock.sleep(45)
        monkeypatch.setattr(world.wechat, "handle", held_up_again)
        return leased

    def held_up_again(*call: Any) -> Any:
        monkeypatch.undo()
        world.clock.sleep(20)
        world.wake("guard")
        return response(*call)

    monkeypatch.setattr(Credentials, "change", held_up)
    # When it is carried out after the guard's renewal, whose value it ends
    world.invoke({"renew": {"account": "main", "credential": "access_token", "rotate": True}})
    # Then the next probe finds it, and readers get what it has minted
    world.clock.sleep(60)
    assert world.wake("probe")["probed"]["dead"] == 1
    assert world.wechat.accepts(read(world)[1]["access_token"])


def test_a_late_renewal_ends_no_token_that_another_published(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a renewal that reaches WeChat only when its lease is over, and after the guard's
    world.add_account()
    world.clock.sleep(6600)
    response = world.wechat.handle

    def held_up(*call: Any) -> Any:
        monkeypatch.undo()
        world.clock.sleep(61)
        world.wake("guard")
        world.wechat.fail(TOKEN, Fault.drop_after())
        return response(*call)

    monkeypatch.setattr(world.wechat, "handle", held_up)
    # When it mints a token whose response is lost
    world.wake("tick")
    # Then what the guard has published came from stable_token, and keeps its promise
    _, body = read(world)
    assert body["expires_in"] > 6000
    world.clock.sleep(body["expires_in"] - 1)
    assert world.wechat.accepts(body["access_token"])


@pytest.mark.parametrize("credential", ["access_token", "jsapi"])
def test_an_expired_lease_makes_no_wechat_call(world: World, monkeypatch: pytest.MonkeyPatch, credential: str) -> None:
    world.add_account(tickets=["jsapi"])
    world.clock.sleep(60)
    called, change = len(world.wechat.calls), Credentials.change

    def held_up(*asked: Any) -> Any:
        leased = change(*asked)
        monkeypatch.undo()
        world.clock.sleep(60)
        return leased

    # Given a renewal that goes on only when its lease is over
    monkeypatch.setattr(Credentials, "change", held_up)
    summary = world.invoke({"renew": {"account": "main", "credential": credential, "rotate": True}})
    # Then it leaves the rest to others
    assert len(world.wechat.calls) == called
    assert [failed["class"] for failed in summary["failed"]] == ["transient"]
    # And the next guard renews
    world.clock.sleep(60)
    assert credential in [item["credential"] for item in world.wake("guard")["renewed"]]


def test_two_simultaneous_runs_renew_a_ticket_with_its_new_token(world: World) -> None:
    # Given a WeCom app whose token and ticket have come to their end
    world.add_account(corpid="ww0123456789abcdef", tickets=["jsapi"])
    world.clock.sleep(6900)
    world.wake("guard")
    world.clock.sleep(301)
    # When the tick fires while the guard renews the token
    world.during_call = lambda: world.wake("tick")
    renewed = world.wake("guard")["renewed"]
    # Then the guard renews the ticket next
    assert [item["credential"] for item in renewed] == ["access_token", "jsapi"]


def test_a_ticket_waits_until_its_new_token_is_accepted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a WeCom app whose token and ticket have come to their end, and a WeCom that accepts a new token after 3 s
    world.add_account(corpid="ww0123456789abcdef", tickets=["jsapi"])
    world.clock.sleep(6900)
    world.wake("guard")
    world.clock.sleep(301)
    handle, minted_at = world.wechat.handle, list[float]()

    def accept_late(method: str, path: str, *sent: Any) -> Any:
        if path == "/cgi-bin/gettoken":
            minted_at.append(world.clock())
        elif world.clock() - minted_at[-1] < 3:
            world.wechat.fail(path, Fault.error(40014))
        return handle(method, path, *sent)

    monkeypatch.setattr(world.wechat, "handle", accept_late)
    # When the guard fires
    renewed = world.wake("guard")["renewed"]
    # Then both are renewed
    assert [item["credential"] for item in renewed] == ["access_token", "jsapi"]


def let_both_expire(world: World) -> None:
    """A token that has failed once, and its ticket, have come to their end; WeChat is back."""
    world.add_account(tickets=["jsapi"])
    world.clock.sleep(6700)
    world.unreachable = True
    world.invoke({"renew": {"account": "main", "credential": "access_token"}})
    world.unreachable = False
    world.clock.sleep(600)


def test_a_failing_token_is_renewed_before_its_ticket(world: World) -> None:
    let_both_expire(world)
    assert [each["credential"] for each in world.wake("guard")["renewed"]] == ["access_token", "jsapi"]


def test_a_reader_gets_the_ticket_of_a_failing_token(world: World) -> None:
    let_both_expire(world)
    assert world.get("/v1/accounts/main/tickets/jsapi")[0] == 200


def test_tokens_that_live_and_are_refused_hold_nothing_up(world: World) -> None:
    # Given tokens that WeChat accepts, but not for tickets
    names = [f"main-{number}" for number in range(20)]
    for name in names:
        world.add_account(name, appid=f"wx-{name}", tickets=["jsapi", "wx_card"])
    world.clock.sleep(400)
    world.wechat.fail("/cgi-bin/ticket/getticket", *[Fault.error(40001)] * 100)
    # When the guard fires
    began = world.clock()
    assert len(world.wake("guard")["failed"]) == 2 * len(names)
    # Then it does not wait for them: they are no new tokens
    assert world.clock() == began


@pytest.mark.moto
def test_a_renewal_for_a_ticket_is_reported_in_any_case(world: World) -> None:
    # Given a ticket whose token is dead, and a table that does not take what becomes of the ticket
    world.add_account(tickets=["jsapi"])
    world.clock.sleep(200)
    world.wechat.kill_tokens()
    writes = itertools.count(1)

    def fail(operation: str, body: bytes) -> None:
        if operation == "dynamodb.UpdateItem" and json.loads(body)["Key"]["sk"]["S"] == "jsapi" and next(writes) == 2:
            raise EndpointConnectionError(endpoint_url="https://dynamodb.invalid/")

    world.before_aws = fail
    # When the guard fires
    summary = world.wake("guard")
    # Then the summary has both
    assert [each["credential"] for each in summary["renewed"]] == ["access_token"]
    assert [each["credential"] for each in summary["failed"]] == ["jsapi"]


def test_a_failure_is_that_of_the_credential_that_was_due(world: World) -> None:
    world.add_account(tickets=["jsapi"])
    world.clock.sleep(200)
    with world.down("dynamodb.BatchGetItem"):
        failed = world.wake("guard")["failed"]
    assert [each["credential"] for each in failed] == ["jsapi"]


@pytest.mark.parametrize("what", ["an expired token", "a new appid"])
def test_an_order_to_rotate_forces_only_what_lives(world: World, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    # Given a stable token
    world.add_account(endpoint="stable_token")
    if what == "an expired token":
        world.clock.sleep(7200)
    else:
        world.clock.sleep(1000)
        world.wechat.add_app("wx-other", SECRET)
        value = json.dumps({"appid": "wx-other", "secret": SECRET, "endpoint": "stable_token"})
        name = f"{ACCOUNTS_PATH}/main"
        world.ssm.put_parameter(Name=name, Value=value, Type="SecureString", Overwrite=True)
    handle, sent = world.wechat.handle, list[bytes]()

    def note(method: str, path: str, query: Any, body: bytes) -> Any:
        sent.append(body)
        return handle(method, path, query, body)

    monkeypatch.setattr(world.wechat, "handle", note)
    # When an operator orders to rotate it
    world.invoke({"renew": {"account": "main", "credential": "access_token", "rotate": True}})
    # Then a new one is there, and WeChat was not forced
    assert [json.loads(body)["force_refresh"] for body in sent] == [False]
    assert world.wechat.accepts(world.token())


def test_a_replaced_token_is_reported_though_not_read(world: World) -> None:
    # Given a dead token, and a table that cannot be read once it is replaced
    world.add_account()
    world.clock.sleep(60)
    token = world.health()["fingerprint"]
    world.wechat.kill_tokens()
    minted = len(world.wechat.calls) + 2

    def fail(operation: str, _: bytes) -> None:
        if operation == "dynamodb.GetItem" and len(world.wechat.calls) == minted:
            raise EndpointConnectionError(endpoint_url="https://dynamodb.invalid/")

    world.before_aws = fail
    # When a client reports it, then the summary has the new one
    assert world.invoke({"verify": {"account": "main", "fingerprint": token}})["renewed"]
