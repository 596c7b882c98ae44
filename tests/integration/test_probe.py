"""The probe: the keeper finds out by itself that a token has died, and a contested account is shielded."""

import json
from typing import Any

import pytest

import refresh
from infra.local.simulated_wechat import Fault
from tests.support.world import APPID, SECRET, START, World
from token_keeper.refresh import checker

PROBE, TOKEN, STABLE_TOKEN = "/cgi-bin/get_api_domain_ip", "/cgi-bin/token", "/cgi-bin/stable_token"
CORP = {"corpid": "ww0123456789abcdef"}


def read(world: World, name: str = "main") -> str:
    """The token that a reader gets which caches nothing."""
    status, body = world.get(f"/v1/accounts/{name}/access-token", world.api_instance())
    assert status == 200, body
    return str(body["access_token"])


def writes(world: World) -> list[str]:
    """The writes to the table from now on."""
    seen: list[str] = []
    world.before_aws = lambda operation, _: seen.append(operation) if "Item" in operation else None
    return seen


def written(seen: list[str]) -> list[str]:
    return [operation for operation in seen if not operation.endswith("GetItem")]


@pytest.mark.parametrize("record", [{}, {"endpoint": "stable_token"}, CORP], ids=["token", "stable_token", "corp"])
def test_a_dead_token_is_found_and_replaced(world: World, record: dict[str, Any]) -> None:
    # Given a token that another client has invalidated, and readers that only read
    world.add_account("main", **record)
    world.clock.sleep(300)
    dead = read(world)
    world.wechat.kill(dead)
    # When the probe runs
    summary = world.wake("probe")
    # Then the token is replaced, and health names the cause
    assert summary["probed"] == {"alive": 0, "dead": 1, "unclear": 0, "left": 0}
    assert [item["account"] for item in summary["renewed"]] == ["main"]
    assert world.wechat.accepts(read(world))
    rotations = world.health()["foreign_rotations"]
    assert (rotations["count"], rotations["last_at"]) == (1, "2026-09-21T14:18:20Z")


@pytest.mark.parametrize("fault", [None, Fault.http(502), Fault.slow(30), Fault.error(45009), Fault.malformed(b"{}")])
def test_a_probe_that_finds_nothing_dead_writes_nothing(world: World, fault: Fault | None) -> None:
    # Given live tokens, and a WeChat that accepts them or says nothing clear
    world.add_account("main")
    world.add_account("other", appid="wx-other")
    world.clock.sleep(300)
    world.wechat.fail(PROBE, *[fault] * 4 if fault else [])  # a broken connection is tried twice
    before = world.get("/v1/accounts")[1]
    # When the probe runs
    seen = writes(world)
    summary = world.wake("probe")
    world.before_aws = None
    # Then it has asked about each, and no credential has changed
    assert summary["probed"]["unclear"] == (2 if fault else 0)
    assert [item for item in written(seen) if not fault] == []
    assert "dynamodb.UpdateItem" not in seen
    assert world.get("/v1/accounts")[1] == before


@pytest.mark.parametrize("since", [0, 59, 60])
def test_a_young_token_is_not_probed(world: World, since: int) -> None:
    # Given a token that WeChat does not accept yet
    world.add_account("main")
    world.wechat.kill(read(world))
    world.clock.sleep(since)
    # When the probe runs, then it is asked about only when it is a minute old
    assert world.wake("probe")["probed"]["dead"] == (since == 60)


def test_an_hour_without_a_clear_response_shows(world: World) -> None:
    # Given a WeChat that does not say whether a token works
    world.add_account("main")
    world.clock.sleep(300)
    world.wechat.fail(PROBE, *[Fault.error(45009)] * 12)
    for minutes in range(0, 60, 5):
        # When that has lasted for less than an hour, then health shows nothing
        assert world.health()["unclear_since"] is None, minutes
        world.wake("probe")
        world.clock.sleep(300)
    # Then it shows since when, until WeChat accepts or refuses it
    assert world.health()["unclear_since"] == "2026-09-21T14:18:20Z"
    world.wake("probe")
    assert world.health()["unclear_since"] is None


def test_a_run_that_is_cut_off_goes_on_where_it_stopped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given five accounts, of which a run gets to two
    monkeypatch.setattr(checker, "PROBE_BATCH", 2)
    names = ["a", "b", "c", "d", "e"]
    for name in names:
        world.add_account(name, appid=f"wx-{name}")
    world.clock.sleep(300)
    tokens = {read(world, name): name for name in names}
    asked: list[list[str]] = []
    for _ in range(4):
        began = len(world.wechat.calls)
        world.wechat.fail(PROBE, *[Fault.slow(5)] * 2)
        # When each run has time for one batch
        summary = world.invoke({"wake": "probe"}, seconds=refresh.MIN_TIME + 1)
        asked.append([str(call.account)[3:] for call in world.wechat.calls[began:]])
        assert summary["probed"]["left"] == 5 - len(asked[-1])
    # Then the next one goes on after it, and begins again at the end
    assert [sorted(batch) for batch in asked] == [["a", "b"], ["c", "d"], ["a", "e"], ["b", "c"]]
    assert len(tokens) == 5
    # And a whole run begins at the beginning
    assert world.wake("probe")["probed"]["alive"] == 5


def test_a_contested_account_is_shielded_for_a_day(world: World) -> None:
    # Given another client that fetches /cgi-bin/token every ten minutes, and readers that only read
    world.add_account("main")
    dead_for = 0
    query = {"grant_type": "client_credential", "appid": APPID, "secret": SECRET}
    for second in range(0, 86400, 60):
        world.clock.now = START + second
        if second % 600 == 0:
            world.wechat.handle("GET", TOKEN, query, b"")
        if second % 300 == 0:
            world.wake("probe")
        world.wake("guard")
        dead_for += 60 * (not world.wechat.accepts(read(world)))
    # Then readers have a dead token for at most six minutes of the day, and health names the cause
    assert dead_for <= 360
    rotations = world.health()["foreign_rotations"]
    assert rotations["count"] == 1
    assert rotations["shielded_until"] is not None
    assert "AppSecret" in rotations["remedy"]


def test_a_dead_token_with_a_broken_record_is_not_served(world: World) -> None:
    # Given an account whose record has become unusable, and whose token dies
    world.add_account("main")
    world.put_parameter("main", json.dumps({"appid": APPID}))
    world.clock.sleep(300)
    world.wechat.kill(read(world))
    # When the probe runs
    world.wake("probe")
    # Then readers do not get it, and the response says what is wrong with the record
    status, body = world.get("/v1/accounts/main/access-token", world.api_instance())
    assert (status, body["cause"]["class"]) == (503, "configuration")


def test_a_probe_that_dies_is_repaired_by_the_guard(world: World) -> None:
    world.add_account("main")
    world.clock.sleep(300)
    world.wechat.kill(read(world))

    def die() -> None:
        raise SystemExit("killed")

    # Given a probe that finds a dead token, and dies while it replaces it
    def die_at_lease(operation: str, _: bytes) -> None:
        if operation == "ssm.GetParameters":
            die()

    world.before_aws = die_at_lease
    with pytest.raises(SystemExit):
        world.wake("probe")
    world.before_aws = None
    # When the guard fires
    world.wake("guard")
    # Then there is a new token
    assert world.wechat.accepts(read(world))
