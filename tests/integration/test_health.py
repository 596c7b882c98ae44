"""Health: what an operator sees of each account and credential, in every state, and never a value."""

import json
from typing import Any

import pytest

from infra.local.simulated_wechat import Fault
from tests.support.world import APPID, SECRET, START, World

TOKEN, STABLE_TOKEN = "/cgi-bin/token", "/cgi-bin/stable_token"


def test_a_fresh_token_shows_its_times_and_its_fingerprint(world: World) -> None:
    world.add_account("main")
    # When its account's health is read
    status, body, headers = world.request("/v1/accounts/main")
    # Then it shows what was fetched when, and when it is renewed
    assert (status, headers["Cache-Control"]) == (200, "no-store")
    fingerprint = world.get("/v1/accounts/main/access-token")[1]["fingerprint"]
    assert {key: body[key] for key in ("account", "appid", "endpoint")} == {
        "account": "main",
        "appid": APPID,
        "endpoint": "token",
    }
    shown = body["credentials"][0]
    assert {key: shown[key] for key in shown if key in EXPECTED} == EXPECTED | {"fingerprint": fingerprint}
    assert set(shown) >= set(EXPECTED)


EXPECTED: dict[str, Any] = {
    "credential": "access_token",
    "state": "fresh",
    "fingerprint": None,
    "fetched_at": "2026-09-21T14:13:20Z",
    "expires_at": "2026-09-21T16:13:20Z",
    "renews_at": "2026-09-21T16:04:20Z",
    "failures": 0,
    "last_error": None,
}


def test_a_failure_shows_what_happened_and_what_to_do(world: World) -> None:
    world.add_account("main")
    # Given a renewal that WeChat refuses
    world.clock.sleep(6600)
    world.wechat.fail(TOKEN, Fault.error(40164, "invalid ip 8.149.1.2, not in whitelist rid: 617682e0-09059ac5"))
    world.wake("tick")
    # When health is read
    health = world.health()
    # Then it shows the state, the next attempt, and the cause as WeChat has put it, with a remedy
    assert (health["state"], health["failures"], health["renews_at"]) == ("failing", 1, "2026-09-21T16:08:20Z")
    error = health["last_error"]
    assert set(error) == {"class", "errcode", "errmsg", "remedy", "at"}
    assert (error["class"], error["errcode"], error["at"]) == ("configuration", 40164, "2026-09-21T16:03:20Z")
    assert "rid: 617682e0-09059ac5" in error["errmsg"]
    assert "8.149.1.2" in error["remedy"]
    for mode_and_price in (
        "EgressMode=managed (a NAT gateway, about 36.50",
        "EgressMode=instance (a small server, about 7",
    ):
        assert mode_and_price in error["remedy"]
    assert "EgressIp" in error["remedy"]


@pytest.mark.parametrize(
    ("seconds", "faults", "state"),
    [
        (0, [], "fresh"),
        (6659, [], "fresh"),
        (6660, [], "due"),
        (7199, [], "due"),
        (7200, [], "expired"),
        (6660, [Fault.error(-1)], "failing"),
        (7200, [Fault.error(-1)], "expired"),
        (6660, [Fault.drop_after()] * 3, "failing"),
    ],
)
def test_a_state_says_in_a_word_how_it_is(world: World, seconds: int, faults: list[Fault], state: str) -> None:
    # Given a token of some age
    world.add_account("main")
    world.clock.now = START + seconds
    # When a renewal has failed, or none was made
    for path in (TOKEN, STABLE_TOKEN):
        world.wechat.fail(path, *faults)
    if faults:
        world.wake("guard")
    # Then its state says so
    assert world.health()["state"] == state


def test_a_token_at_risk_is_expired_when_its_overlap_is_over(world: World) -> None:
    world.add_account("main")
    world.clock.sleep(1000)
    # Given a rotation whose responses were all lost
    for path in (TOKEN, STABLE_TOKEN):
        world.wechat.fail(path, *[Fault.drop_after()] * 3)
    world.invoke({"renew": {"account": "main", "credential": "access_token", "rotate": True}})
    # When the old token's overlap is over
    world.clock.now = START + 1000 + 300
    # Then health does not call it alive
    assert world.health()["state"] == "expired"


def test_a_renewal_under_way_shows_as_due(world: World) -> None:
    world.add_account("main")
    world.clock.sleep(6600)
    # When health is read during a renewal
    states: list[str] = []
    world.during_call = lambda: states.append(world.health()["state"])
    world.wake("tick")
    # Then it is due, and then fresh
    assert [*states, world.health()["state"]] == ["due", "fresh"]


@pytest.mark.parametrize("why", ["refused", "its record is broken"])
def test_what_never_worked_shows_why(world: World, why: str) -> None:
    # Given an account whose first fetch fails
    world.wechat.add_app(APPID, SECRET)
    world.wechat.fail(TOKEN, Fault.error(50002))
    world.secrets.add(SECRET)
    secret_field = "secret" if why == "refused" else "Secret"
    world.put_parameter("main", json.dumps({"appid": APPID, secret_field: SECRET}))
    # When health is read
    health = world.health()
    # Then it was never fetched, for that reason
    assert (health["state"], health["last_error"]["class"]) == ("never_fetched", "configuration")
    assert (health["fingerprint"], health["fetched_at"], health["expires_at"]) == (None, None, None)
    assert health["last_error"]["remedy"]


@pytest.mark.moto
def test_what_ttl_expiry_deleted_shows_as_never_fetched(world: World) -> None:
    world.add_account("main")
    # Given a stack that stood still for so long that DynamoDB has deleted the item
    table = world.environment["TABLE_NAME"]
    for item in world.dynamodb.scan(TableName=table)["Items"]:
        if "ttl" in item:
            world.dynamodb.delete_item(TableName=table, Key={key: item[key] for key in ("pk", "sk")})
    # When health is read, and then the main tick fires
    before = world.health()["state"]
    world.wake("tick")
    # Then it shows that there is nothing, and then that there is
    assert (before, world.health()["state"]) == ("never_fetched", "fresh")


def test_every_kind_of_account_shows_what_it_is(world: World) -> None:
    # Given an account of every kind
    world.add_account("corp", corpid="ww0123456789abcdef", tickets=["jsapi", "agent_config"])
    world.add_account("plain", tickets=["jsapi", "wx_card"])
    world.add_account("stable", appid="wx-stable", endpoint="stable_token")
    # When all are listed
    listed = world.get("/v1/accounts")[1]["accounts"]
    # Then each shows its identity and all its credentials, as it does alone
    identities = [{key: account.get(key) for key in ("account", "appid", "corpid", "endpoint")} for account in listed]
    assert identities == [
        {"account": "corp", "appid": None, "corpid": "ww0123456789abcdef", "endpoint": None},
        {"account": "plain", "appid": APPID, "corpid": None, "endpoint": "token"},
        {"account": "stable", "appid": "wx-stable", "corpid": None, "endpoint": "stable_token"},
    ]
    assert [[each["credential"] for each in account["credentials"]] for account in listed] == [
        ["access_token", "jsapi", "agent_config"],
        ["access_token", "jsapi", "wx_card"],
        ["access_token"],
    ]
    assert {each["state"] for account in listed for each in account["credentials"]} == {"fresh"}
    assert [world.get(f"/v1/accounts/{account['account']}")[1] for account in listed] == listed


def test_no_response_of_health_holds_a_value_or_a_secret(world: World) -> None:
    # Given accounts with tokens and tickets, one of them failing with a message that repeats its secret
    world.add_account("main", tickets=["jsapi"])
    world.add_account("stable", appid="wx1", endpoint="stable_token")
    world.clock.sleep(7000)
    url = f"https://api.weixin.qq.com/cgi-bin/token?appid={APPID}&secret={SECRET}"
    world.wechat.fail(TOKEN, Fault.error(40125, f"invalid appsecret {SECRET} in {url}"))
    world.wake("guard")
    # When health is read
    responses = [world.request(path)[1] for path in ("/v1/accounts", "/v1/accounts/main", "/v1/accounts/stable")]
    # Then it shows the failure, but neither secret, token nor ticket
    shown = json.dumps(responses)
    assert "invalid appsecret" in shown
    assert SECRET not in shown
    for path, field in (("access-token", "access_token"), ("tickets/jsapi", "ticket")):
        assert world.get(f"/v1/accounts/main/{path}")[1][field] not in shown


def test_while_the_table_is_down_health_says_so(world: World) -> None:
    world.add_account("main")
    with world.down("dynamodb"):
        for path in ("/v1/accounts", "/v1/accounts/main"):
            status, body, headers = world.request(path)
            assert (status, body["status"]) == (503, 503)
            assert headers["Content-Type"] == "application/problem+json"
