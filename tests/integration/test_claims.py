"""What may be kept under two names, and what may not."""

import json
from typing import Any

import pytest

from infra.local.simulated_wechat import Fault
from tests.integration.parameters import OTHER_APPID, STABLE_TOKEN, TOKEN, put_without_event, read, record, token
from tests.support.world import APPID, SECRET, World
from token_keeper.table.accounts import Accounts


def test_one_appid_under_two_names_is_kept_once(world: World) -> None:
    world.add_account("first")
    # When the same appid is added under another name
    world.add_account("second")

    def says_which(world: World) -> bool:
        error = world.health("second")["last_error"]
        return error["class"] == "configuration" and "first" in error["errmsg"] and bool(error["remedy"])

    # Then the second is not kept, and its health names the first
    assert says_which(world)
    assert read(world, "/v1/accounts/second/access-token")[0] == 503
    # And it still does so after hours, in which they do not refresh against each other
    for _ in range(3):
        for _ in range(2):
            world.clock.sleep(301)
            world.wake("guard")
            assert says_which(world)
        world.wake("tick")
        assert says_which(world)
    assert world.calls() == 1
    assert world.health("first")["state"] == "fresh"


@pytest.mark.parametrize("minutes_later", [0, 30])
def test_an_appids_second_name_is_kept_when_the_first_is_gone(world: World, minutes_later: int) -> None:
    world.add_account("first")
    world.add_account("second")
    for _ in range(0, minutes_later, 6):
        world.clock.sleep(360)
        world.wake("guard")
    # When the first is deleted, and the main tick fires
    world.delete_parameter("first")
    world.wake("tick")
    # Then the second is well
    assert world.wechat.accepts(token(world, "second"))
    assert (world.health("second")["state"], world.health("second")["last_error"]) == ("fresh", None)


def test_one_appid_has_one_name_whatever_the_endpoint(world: World) -> None:
    # When an appid is added under a second name, with the other endpoint
    world.add_account("plain")
    world.add_account("stable", endpoint="stable_token")
    # Then the second is not kept, and nothing is fetched for it
    assert "plain" in world.health("stable")["last_error"]["errmsg"]
    for _ in range(6):
        world.clock.sleep(60)
        world.wake("guard")
    assert read(world, "/v1/accounts/stable/access-token")[0] == 503
    assert world.calls(STABLE_TOKEN) == 0


def test_two_parameters_with_one_appid_in_one_tick(world: World) -> None:
    # Given two parameters with one appid, whose events were lost
    world.wechat.add_app(APPID, SECRET)
    for name in ("a", "b"):
        put_without_event(world, name, record())
    # When the main tick fires, and the guard for ten minutes
    world.wake("tick")
    for _ in range(10):
        world.clock.sleep(60)
        world.wake("guard")
    # Then one of them is kept, and has fetched once
    statuses = [read(world, f"/v1/accounts/{name}/access-token")[0] for name in ("a", "b")]
    assert sorted(statuses) == [200, 503]
    assert world.calls() == 1


def test_two_accounts_may_exchange_their_appids(world: World) -> None:
    # Given two accounts
    world.add_account("first")
    world.add_account("second", appid=OTHER_APPID)
    # When their records exchange the appids, one after the other
    world.put_parameter("first", record(appid=OTHER_APPID))
    assert "second" in world.health("first")["last_error"]["errmsg"]
    world.put_parameter("second", record(appid=APPID))
    # Then both are kept within a minute
    world.clock.sleep(60)
    world.wake("guard")
    assert all(world.wechat.accepts(token(world, name)) for name in ("first", "second"))
    assert [world.health(name)["last_error"] for name in ("first", "second")] == [None, None]


def test_the_second_name_applies_a_minute_after_the_first_goes(world: World) -> None:
    world.add_account("old")
    world.add_account("new")
    assert world.health("new")["last_error"]["class"] == "configuration"
    # When the first name is removed
    world.delete_parameter("old")
    world.clock.sleep(60)
    world.wake("guard")
    # Then the second has a token
    assert world.wechat.accepts(token(world, "new"))
    assert world.health("new")["last_error"] is None


def test_an_app_with_another_apps_secret_does_not_fetch(world: World) -> None:
    # Given two WeCom apps of one corp
    corpid = "ww0123456789abcdef"
    world.add_account("contacts", corpid=corpid, secret="secret-of-contacts-0123456789")
    world.add_account("orders", corpid=corpid, secret="secret-of-orders-0123456789")
    live, calls = token(world, "orders"), world.calls("/cgi-bin/gettoken")
    # When the secret of one is overwritten with the other's
    world.put_parameter("orders", json.dumps({"corpid": corpid, "secret": "secret-of-contacts-0123456789"}))
    assert "contacts" in world.health("orders")["last_error"]["errmsg"]
    # Then its own token is served to its end, and nothing is fetched with the other's secret
    assert token(world, "orders") == live
    world.clock.sleep(7201)
    for _ in range(6):
        world.wake("guard")
        world.clock.sleep(60)
    assert world.calls("/cgi-bin/gettoken") == calls + 1  # of contacts itself
    assert read(world, "/v1/accounts/orders/access-token")[0] == 503
    assert "contacts" in world.health("orders")["last_error"]["errmsg"]


def test_a_held_up_renewal_does_not_fetch_for_a_lost_appid(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an account whose renewal is held up after the keeper has seen that it owns its appid
    world.add_account("twin")
    world.clock.sleep(6900)
    in_force, fetched = Accounts.in_force, []

    def held_up(*asked: Any) -> Any:
        found = in_force(*asked)
        monkeypatch.undo()
        # When another account takes the appid over meanwhile, and the first is added again, in vain
        world.delete_parameter("twin")
        world.add_account("shop")
        assert world.add_account("twin")["failed"]
        fetched.append(len(world.wechat.calls))
        world.clock.sleep(61)
        return found

    monkeypatch.setattr(Accounts, "in_force", held_up)
    world.wake("guard")
    # Then the first fetches nothing, and the other's token lives
    assert [call.path for call in world.wechat.calls[fetched[0] :]] == []
    assert world.wechat.accepts(world.token("shop"))


@pytest.mark.parametrize("new_record", [None, record(appid=OTHER_APPID)], ids=["deleted", "another appid"])
def test_a_late_renewal_ends_no_token_of_the_next_owner(
    world: World, monkeypatch: pytest.MonkeyPatch, new_record: str | None
) -> None:
    # Given a renewal whose call to WeChat is held up
    world.add_account("twin")
    world.clock.sleep(6900)
    response = world.wechat.handle

    def held_up(*asked: Any, **how: Any) -> Any:
        monkeypatch.undo()
        # When its account gives the appid up meanwhile, and another is added with it
        world.delete_parameter("twin") if new_record is None else world.put_parameter("twin", new_record)
        world.add_account("shop")
        return response(*asked, **how)

    monkeypatch.setattr(world.wechat, "handle", held_up)
    world.wake("guard")
    # Then the other fetches when that renewal's lease is over, and its token lives as long as is promised
    world.clock.sleep(60)
    world.wake("guard")
    status, promise = read(world, "/v1/accounts/shop/access-token")
    assert status == 200
    world.clock.sleep(promise["expires_in"] - 1)
    assert world.wechat.accepts(promise["access_token"])


def test_a_changed_endpoint_remembers_what_is_at_risk(world: World) -> None:
    # Given a lost response of /cgi-bin/token, so that the old token has 300 s left
    world.add_account("main")
    world.clock.sleep(6600)
    attempt = world.clock()
    world.wechat.fail(TOKEN, Fault.drop_after())
    world.wechat.fail(STABLE_TOKEN, *[Fault.drop_before()] * 99)
    world.wake("tick")
    # When the record changes to stable_token, which gives nothing
    world.put_parameter("main", record(endpoint="stable_token"))
    # Then the old token is not served beyond that
    world.clock.now = attempt + 301
    assert read(world)[0] == 503


def test_every_app_of_a_corp_is_kept(world: World) -> None:
    # When several apps of one corp are kept, which differ by their secrets
    for name in ("contacts", "orders", "chat"):
        world.add_account(name, corpid="ww0123456789abcdef", secret=f"secret-of-{name}-0123456789")
    # Then each has its own token
    tokens = {token(world, name) for name in ("contacts", "orders", "chat")}
    assert len(tokens) == 3
    assert all(map(world.wechat.accepts, tokens))
    # But the same app under another name is refused
    world.add_account("again", corpid="ww0123456789abcdef", secret="secret-of-chat-0123456789")
    assert "chat" in world.health("again")["last_error"]["errmsg"]
