"""Promises of `token` accounts, where a record or an instance changes in the middle of them."""

import json
from typing import Any

import pytest

from infra.local.simulated_wechat import Fault
from tests.support.world import APPID, SECRET, World

STABLE_TOKEN = "/cgi-bin/stable_token"


def record(**changes: Any) -> str:
    return json.dumps({"appid": APPID, "secret": SECRET} | changes)


def read(world: World, name: str = "main") -> tuple[str, int]:
    """The token that a reader gets which caches nothing, and until when it is promised."""
    status, body = world.get(f"/v1/accounts/{name}/access-token", world.api_instance())
    assert status == 200, body
    return str(body["access_token"]), int(world.clock()) + int(body["expires_in"])


def let_pass(world: World, seconds: int) -> None:
    """The guard fires every minute."""
    for _ in range(seconds // 60):
        world.clock.sleep(60)
        world.wake("guard")


def assert_kept(world: World, token: str, until: int) -> None:
    """WeChat accepts the token until then, while the guard fires every minute."""
    while world.clock() < until - 1:
        assert world.wechat.accepts(token), f"ended {until - world.clock():.0f} s before the end of its promise"
        world.clock.sleep(min(60, until - 1 - world.clock()))
        world.wake("guard")


def repeat_a_dead_token(world: World) -> str:
    """WeChat refuses the account's token of stable_token and repeats it, so that another is minted; returns the dead one."""
    world.add_account("main")
    let_pass(world, 120)
    world.wechat.kill(read(world)[0])
    world.wake("probe")
    isolated, _ = read(world)
    let_pass(world, 120)
    world.wechat.kill(isolated)
    repeated = Fault.malformed(json.dumps({"access_token": isolated, "expires_in": 6000}).encode())
    world.wechat.fail(STABLE_TOKEN, *[repeated] * 20)
    world.wake("probe")
    return isolated


@pytest.mark.parametrize("seconds", [0, 600])
def test_an_endpoint_changed_there_and_back_keeps_promises(world: World, seconds: int) -> None:
    # Given a promised token of /cgi-bin/token
    world.add_account("main")
    let_pass(world, 600)
    token, until = read(world)
    # When the record changes to stable_token, and back
    world.put_parameter("main", record(endpoint="stable_token"))
    let_pass(world, seconds)
    world.put_parameter("main", record())
    # Then the token keeps its promise
    assert_kept(world, token, until)


def test_an_older_change_undoes_no_newer_one(world: World) -> None:
    # Given a change whose instance waits for WeChat, while another instance applies the next change
    world.add_account("main")
    let_pass(world, 600)
    world.wechat.add_app("wx-y", SECRET)
    seen: list[tuple[str, int]] = []

    def second() -> None:
        world.put_parameter("main", record(appid="wx-y"))
        seen.append(read(world))

    world.during_call = second
    # When the first goes on
    world.put_parameter("main", record(tickets=["jsapi"]))
    # Then the newer one is in force, its token is fetched once, and keeps its promise
    assert world.calls() == 2
    assert_kept(world, *seen[0])


def test_a_forced_refresh_that_dies_leaves_no_dead_token(world: World) -> None:
    # Given an operator's forced refresh whose process dies after WeChat's response
    world.add_account("main", endpoint="stable_token")
    world.clock.sleep(600)

    def die(operation: str, _: bytes) -> None:
        if operation == "dynamodb.UpdateItem":
            raise SystemExit

    def die_at_next_write() -> None:
        world.before_aws = die

    world.during_call = die_at_next_write
    with pytest.raises(SystemExit):
        world.invoke({"renew": {"account": "main", "credential": "access_token", "rotate": True}})
    world.before_aws = None
    # When readers ask, then they do not get the token that WeChat has ended
    assert world.get("/v1/accounts/main/access-token", world.api_instance())[0] == 503
    # And they get the new one after the lease
    let_pass(world, 120)
    assert world.wechat.accepts(read(world)[0])


def test_a_refused_token_is_not_published_two_tokens_later(world: World) -> None:
    # Given a token of stable_token that WeChat refuses and repeats, so that another is minted
    isolated = repeat_a_dead_token(world)
    minted, _ = read(world)
    assert minted != isolated
    # When that is refused, too
    let_pass(world, 120)
    world.wechat.kill(minted)
    world.wake("probe")
    # Then the first one is not served again
    assert world.wechat.accepts(read(world)[0])


def test_a_repeated_dead_token_ends_no_promise(world: World) -> None:
    # Given a promised token, minted because stable_token repeats a dead one
    repeat_a_dead_token(world)
    let_pass(world, 120)
    # When an operator's renewal cannot be stored
    outage = world.down("dynamodb.UpdateItem")
    world.during_call = outage.__enter__
    world.invoke({"renew": {"account": "main", "credential": "access_token", "rotate": True}})
    outage.__exit__(None, None, None)
    # Then the token keeps the promise it has left, and another follows
    assert_kept(world, *read(world))
    let_pass(world, 60)
    assert world.wechat.accepts(read(world)[0])


def test_a_refused_token_does_not_wait_for_a_busy_endpoint(world: World) -> None:
    # Given a token that another client has invalidated, and a stable_token that is busy for long
    world.add_account("main")
    let_pass(world, 120)
    world.wechat.kill(read(world)[0])
    world.wechat.fail(STABLE_TOKEN, *[Fault.error(-1)] * 50)
    world.wake("probe")
    # When the guard fires a minute later, then /cgi-bin/token gives a new one
    let_pass(world, 60)
    assert world.wechat.accepts(read(world)[0])
