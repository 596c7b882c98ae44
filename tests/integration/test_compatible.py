"""The WeChat-compatible API: a consumer's key gets what WeChat would return, and nothing more."""

import json
import logging
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any
from urllib.parse import urlencode

import pytest

from infra.local.simulated_wechat import Fault
from tests.integration.wechats_calls import (
    CORPID,
    ask_corp_token,
    ask_stable_token,
    ask_ticket,
    ask_token,
    refused,
    token_query,
)
from tests.simulation.memory_aws import MemoryAws
from tests.support.world import APPID, REQUEST_ID, START, Clock, World, gateway_event
from token_keeper import budget
from token_keeper.model import fingerprint

OTHER_APPID = "wx89abcdef01234567"
MEMORY = 15
"""Seconds a warm reader may go on with what it has looked up."""

PROBE = "/cgi-bin/get_api_domain_ip"
REVOKED = "wtk_" + "A" * 43
"""A key as they look, of no consumer."""


@pytest.fixture
def table_calls(world: World) -> Iterator[list[str]]:
    """The calls of both functions to the table, as they come."""
    calls: list[str] = []
    world.before_aws = lambda operation, _: calls.append(operation)
    yield calls
    world.before_aws = None


# --- the responses


def raw(world: World, event: dict[str, Any]) -> tuple[str, dict[str, str]]:
    with world.internet():
        response = world.api_instance()(event, None)
    assert response["statusCode"] == 200
    return response["body"], response["headers"]


def test_the_responses_are_wechats_to_the_byte(world: World) -> None:
    # Given an Official Account with its ticket, a corp's app, and a consumer of both
    world.add_account("main", tickets=["jsapi"])
    world.add_account("app", corpid=CORPID, secret="a-secret-of-the-corp")
    key = world.add_consumer("shop", ["main", "app"])
    token, corp_token = world.token("main"), world.token("app")
    ticket = world.get("/v1/accounts/main/tickets/jsapi")[1]["ticket"]
    query = urlencode(token_query(key))
    calls = {
        f"/cgi-bin/token?{query}": f'{{"access_token":"{token}","expires_in":6835}}',
        f"/cgi-bin/gettoken?corpid={CORPID}&corpsecret={key}": (
            f'{{"errcode":0,"errmsg":"ok","access_token":"{corp_token}","expires_in":6895}}'
        ),
        f"/cgi-bin/ticket/getticket?access_token={token}&type=jsapi": (
            f'{{"errcode":0,"errmsg":"ok","ticket":"{ticket}","expires_in":145}}'
        ),
        f"/cgi-bin/token?{query}x": f'{{"errcode":40125,"errmsg":"invalid appsecret rid: {REQUEST_ID}"}}',
    }
    for call, response in calls.items():
        # When it is asked as WeChat is
        body, headers = raw(world, gateway_event(call))
        # Then it responds as WeChat does
        assert body == response
        assert headers == {"Content-Type": "application/json; encoding=utf-8", "Cache-Control": "no-store"}


def test_expires_in_is_a_promise_here_too(world: World) -> None:
    world.add_account("main")
    key = world.add_consumer("shop", ["main"])
    world.clock.sleep(6540)
    # When the token is about to be rotated, and then lives 300 s
    response = ask_token(world, key)
    # Then that is what is said, less the margin, and not WeChat's 660
    assert response["expires_in"] == 295


@pytest.mark.parametrize(("cache_for", "expected"), [(None, 6835), (300, 300), (6835, 6835), (7200, 6835)])
def test_a_consumer_gets_no_more_than_its_cache_for(world: World, cache_for: int | None, expected: int) -> None:
    # Given a consumer whose SDK keeps a token for as long as `expires_in` says
    world.add_account("main")
    key = world.add_consumer("shop", ["main"])
    if cache_for:
        world.dynamodb.update_item(
            TableName="tokens",
            Key=next(iter(consumers(world))),
            UpdateExpression="SET cache_for = :seconds",
            ExpressionAttributeValues={":seconds": {"N": str(cache_for)}},
        )
    assert ask_token(world, key)["expires_in"] == expected
    assert ask_stable_token(world, key)["expires_in"] == expected


# --- refusals: see also test_permissions


def test_an_unforeseen_exception_is_a_system_error(world: World) -> None:
    world.add_account("main")
    key = world.add_consumer("shop", ["main"])
    # Given a consumer whose item holds what it should not
    world.dynamodb.update_item(
        TableName="tokens",
        Key=next(entry for entry in consumers(world)),
        UpdateExpression="REMOVE accounts",
    )
    # Then an SDK still gets a response that it understands
    assert ask_token(world, key) == refused(-1, "system error")


def consumers(world: World) -> list[dict[str, Any]]:
    found = world.dynamodb.query(
        TableName="tokens",
        KeyConditionExpression="pk = :consumers",
        ExpressionAttributeValues={":consumers": {"S": "consumers"}},
    )
    return [{name: item[name] for name in ("pk", "sk")} for item in found["Items"]]


def test_without_a_usable_value_the_system_is_busy(world: World) -> None:
    # Given an account whose token could never be fetched
    world.wechat.fail("/cgi-bin/token", *[Fault.error(-1)] * 2)
    world.add_account("main")
    key = world.add_consumer("shop", ["main"])
    # Then an SDK gets what WeChat returns when it is to try again
    assert ask_token(world, key) == refused(-1, "system error, no usable value right now")


# --- who may read what: see also test_permissions


def test_what_is_remembered_of_one_call_does_not_serve_another(world: World) -> None:
    world.add_account("main")
    world.add_account("app", corpid=CORPID, secret="a-secret-of-the-corp")
    key = world.add_consumer("shop", ["*"])
    # When appid and corpid have been looked up
    assert "access_token" in ask_token(world, key, APPID)
    assert "access_token" in ask_corp_token(world, key, CORPID)
    # Then neither is taken for the other
    assert ask_corp_token(world, key, APPID) == refused(40013, "invalid corpid")
    assert ask_token(world, key, CORPID) == refused(40013, "invalid appid")


def test_the_old_appid_gets_no_token_after_an_account_changed_it(world: World) -> None:
    # Given a warm instance that knows which account keeps an appid, and another that knows nothing
    world.add_account("main")
    key = world.add_consumer("shop", ["main"])
    warm, cold = world.api_instance(), world.api_instance()
    ask_token(world, key, instance=warm)
    # When the account gets another appid
    world.add_account("main", appid=OTHER_APPID)
    new = ask_token(world, key, OTHER_APPID, instance=cold)["access_token"]
    # Then no client gets the new appid's token by asking for the old one
    for _ in range(MEMORY + 2):
        assert ask_token(world, key, instance=warm).get("access_token") != new
        assert ask_token(world, key, OTHER_APPID, instance=warm).get("access_token") in (None, new)
        world.clock.sleep(1)
    assert ask_token(world, key, instance=warm)["errcode"] == 40013
    assert ask_token(world, key, OTHER_APPID, instance=warm)["access_token"] == new


@pytest.mark.parametrize("ask", [ask_token, ask_stable_token])
def test_an_appid_is_served_by_the_account_that_owns_it(world: World, ask: Callable[..., dict[str, Any]]) -> None:
    # Given an account, and a claim that another left when a release before this let two accounts keep an appid
    world.add_account("main")
    claim = {"pk": {"S": f"claim#{APPID}"}, "sk": {"S": "stable_token"}, "account": {"S": "before"}}
    world.dynamodb.put_item(TableName="tokens", Item=claim)
    # When a consumer of both asks, whatever the call, then it gets the owner's token
    assert ask(world, world.add_consumer("shop", ["*"])).get("access_token") == world.token()


# --- what it costs, and how long it is remembered

CALLS: dict[str, Callable[..., dict[str, Any]]] = {
    "token": ask_token,
    "stable_token": ask_stable_token,
    "gettoken": ask_corp_token,
}


@pytest.mark.parametrize("call", CALLS)
def test_a_cold_read_costs_three_round_trips_a_warm_one_none(world: World, table_calls: list[str], call: str) -> None:
    world.add_account("main")
    world.add_account("app", corpid=CORPID, secret="a-secret-of-the-corp")
    key = world.add_consumer("shop", ["main", "app"])
    table_calls.clear()
    ask = CALLS[call]
    # When a cold instance is asked, then it reads the consumer, the accounts of the appid, and the token
    assert "access_token" in ask(world, key)
    cold = ["dynamodb.GetItem", "dynamodb.Query", "dynamodb.GetItem"]
    assert table_calls == cold
    # And while it remembers, nothing
    for _ in range(MEMORY - 1):
        world.clock.sleep(1)
        assert "access_token" in ask(world, key)
    assert table_calls == cold


@pytest.mark.parametrize("call", CALLS)
def test_of_an_unknown_key_only_the_consumer_is_read(world: World, table_calls: list[str], call: str) -> None:
    world.add_account("main")
    world.add_account("app", corpid=CORPID, secret="a-secret-of-the-corp")
    table_calls.clear()
    assert CALLS[call](world, REVOKED)["errcode"] == 40125
    assert table_calls == ["dynamodb.GetItem"]


@pytest.mark.parametrize("call", CALLS)
def test_each_refused_key_is_one_line_to_count(world: World, call: str, caplog: pytest.LogCaptureFixture) -> None:
    for key in (REVOKED, "0123456789abcdef0123456789abcdef"):
        caplog.clear()
        CALLS[call](world, key)
        (line,) = [each for each in caplog.records if each.name == "api.compatible"]
        assert (line.message, line.errcode) == ("refused", 40125)  # type: ignore[attr-defined]


def test_a_ticket_costs_two_round_trips_and_none_while_cached(world: World, table_calls: list[str]) -> None:
    world.add_account("main", tickets=["jsapi"])
    token = world.token()
    cold = world.api_instance()
    table_calls.clear()
    for _ in range(MEMORY):
        assert ask_ticket(world, token, instance=cold)["errcode"] == 0
        world.clock.sleep(1)
    assert table_calls == ["dynamodb.Query", "dynamodb.BatchGetItem"]


def test_what_is_no_key_does_not_get_to_the_table(world: World, table_calls: list[str]) -> None:
    for guess in ("secret", "wtk_", REVOKED + "A", REVOKED.upper()):
        assert ask_token(world, guess)["errcode"] == 40125
    assert table_calls == []


@pytest.mark.parametrize("call", CALLS)
def test_a_revoked_key_stops_working_within_15_seconds(world: World, call: str) -> None:
    world.add_account("main")
    world.add_account("app", corpid=CORPID, secret="a-secret-of-the-corp")
    key = world.add_consumer("shop", ["main", "app"])
    ask = CALLS[call]
    ask(world, key)
    # When the key is revoked right after an instance has looked it up, and used without a pause
    world.revoke(key)
    for second in range(MEMORY + 1):
        response = ask(world, key)
        revoked_for = second
        world.clock.sleep(1)
    # Then 15 s later it is refused
    assert (revoked_for, response["errcode"]) == (MEMORY, 40125)


NEW_CORPID = "wwfedcba9876543210"
KEPT = {
    "token": ("main", {"appid": APPID}, {"appid": OTHER_APPID}),
    "stable_token": ("main", {"appid": APPID}, {"appid": OTHER_APPID}),
    "gettoken": ("app", {"corpid": CORPID, "secret": "c" * 40}, {"corpid": NEW_CORPID, "secret": "c" * 40}),
}
"""By call: an account, its record, and its record once it belongs to another appid or corpid."""


def change_account(world: World, change: str, account: str, other: dict[str, str]) -> str | None:
    """Drop the account, and keep its name for another appid or corpid where `change` says so; returns that one's token."""
    if change != "another id":
        world.delete_parameter(account)
    if change == "drop":
        return None
    world.add_account(account, **other)
    return str(world.get(f"/v1/accounts/{account}/access-token", world.api_instance())[1]["access_token"])


@pytest.mark.parametrize("change", ["another id", "drop", "drop, then another id"])
@pytest.mark.parametrize(
    ("call", "options"), [*((call, {}) for call in CALLS), ("stable_token", {"force": True})], ids=str
)
def test_what_was_looked_up_serves_no_account_that_has_changed(
    world: World, call: str, options: dict[str, bool], change: str
) -> None:
    account, record, other = KEPT[call]
    world.add_account(account, **record)
    world.clock.sleep(60)
    key = world.add_consumer("shop", ["*"], may_report=True)
    ask = CALLS[call]
    # Given an instance that remembers the consumer, the account of the appid, and the token
    old = ask(world, key, **options)["access_token"]
    # When the account is dropped, or belongs to another appid
    new = change_account(world, change, account, other)
    for second in range(MEMORY + 2):
        response = ask(world, key, **options)
        # Then the old appid's token is given for 15 s at most, and never the new appid's
        assert response.get("access_token") in (None, old)
        assert new is None or response.get("access_token") != new
        assert "errcode" in response or second < MEMORY + 1
        world.clock.sleep(1)
    assert ask(world, key, **options)["errcode"] == 40013


def before_read(world: World, step: int, change: Callable[[], str | None]) -> list[str | None]:
    """Make the change as the next but `step` call of AWS begins; its result is in the list from then on."""
    results: list[str | None] = []
    calls = count()

    def between(operation: str, _: bytes) -> None:
        if next(calls) == step:
            world.before_aws = None
            results.append(change())

    world.before_aws = between
    return results


@pytest.mark.parametrize("change", ["another id", "drop", "drop, then another id", "revoke"])
@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("call", CALLS)
def test_a_change_after_the_lookup_gives_no_other_appids_token(world: World, call: str, step: int, change: str) -> None:
    # Given a cold instance, which reads the consumer, the accounts of the appid, and the token
    account, record, other = KEPT[call]
    world.add_account(account, **record)
    key = world.add_consumer("shop", ["*"])
    old, cold = world.token(account), world.api_instance()
    # When the account or the key changes before one of these reads
    new = before_read(
        world,
        step,
        lambda: world.revoke(key) if change == "revoke" else change_account(world, change, account, other),
    )
    response = CALLS[call](world, key, instance=cold)
    # Then what was read does not give the token of another appid
    assert len(new) == 1
    assert response.get("access_token") in (None, old)
    assert new[0] is None or response.get("access_token") != new[0]
    # And where the key was revoked before it was read, none
    assert (response.get("errcode") == 40125) == (change == "revoke" and step == 0)


@pytest.mark.parametrize("change", ["another id", "drop", "drop, then another id"])
@pytest.mark.parametrize(("knows_token", "step"), [(False, 0), (False, 1), (True, 0)])
def test_a_change_after_the_lookup_gives_no_other_appids_ticket(
    world: World, knows_token: bool, step: int, change: str
) -> None:
    # Given an instance that reads whose token it is, and then the token with the ticket; or one that has just given the token
    world.add_account("main", tickets=["jsapi"])
    token, instance = world.token(), world.api_instance()
    if knows_token:
        world.get("/v1/accounts/main/access-token", instance)
    old = ask_ticket(world, token)["ticket"]
    # When the account is changed before one of these reads
    record: dict[str, Any] = {"appid": OTHER_APPID, "tickets": ["jsapi"]}
    changed = before_read(world, step, lambda: change_account(world, change, "main", record))
    response = ask_ticket(world, token, instance=instance)
    # Then its old token gets no ticket of the new appid
    assert len(changed) == 1
    assert response["errcode"] == 40001 or response["ticket"] == old


def test_a_table_outage_extends_a_consumers_trust_to_15_seconds(world: World) -> None:
    world.add_account("main")
    key = world.add_consumer("shop", ["main"])
    token = ask_token(world, key)["access_token"]
    with world.down("dynamodb"):
        world.clock.sleep(MEMORY - 1)
        assert ask_token(world, key)["access_token"] == token
        world.clock.sleep(1)
        assert ask_token(world, key) == refused(-1, "system error, no usable value right now")
    # And once it is back, all is well again
    assert ask_token(world, key)["access_token"] == token


# --- tickets: the token shows who asks


def test_the_previous_token_gets_tickets_while_wechat_accepts_it(world: World) -> None:
    # Given a token that has been rotated
    world.add_account("main", tickets=["jsapi"])
    old = world.token()
    world.clock.sleep(6600)
    world.wake("tick")
    # When it is shown in the 300 s that it still works
    world.clock.sleep(299)
    assert world.wechat.accepts(old)
    assert ask_ticket(world, old, instance=world.api_instance())["errcode"] == 0
    # Then it gets the ticket, and later not
    world.clock.sleep(1)
    assert not world.wechat.accepts(old)
    assert ask_ticket(world, old, instance=world.api_instance())["errcode"] == 40001


def test_a_token_whose_life_is_over_gets_no_ticket(world: World) -> None:
    # Given a token that could not be renewed
    world.add_account("main", tickets=["jsapi"])
    token = world.token()
    world.clock.sleep(7200)
    assert ask_ticket(world, token, instance=world.api_instance())["errcode"] == 40001


def test_a_ticket_is_no_token(world: World) -> None:
    world.add_account("main", tickets=["jsapi"])
    ticket = world.get("/v1/accounts/main/tickets/jsapi")[1]["ticket"]
    assert ask_ticket(world, ticket, instance=world.api_instance())["errcode"] == 40001


def test_who_has_just_got_a_token_is_known_before_the_index_is(world: World) -> None:
    # Given an index that lags behind
    world.add_account("main", tickets=["jsapi"])
    key = world.add_consumer("shop", ["main"])
    # When a token is asked for and used with the same instance
    token = ask_token(world, key)["access_token"]
    with world.down("dynamodb.Query"):
        # Then it is known there
        assert ask_ticket(world, token)["errcode"] == 0


def test_a_token_of_the_old_appid_gets_no_ticket_of_the_new(world: World) -> None:
    # Given instances that know whose token it is: by handing it out, by a ticket call, and not at all
    world.add_account("main", tickets=["jsapi"])
    key = world.add_consumer("shop", ["main"])
    handed, asked, cold = world.api_instance(), world.api_instance(), world.api_instance()
    token = ask_token(world, key, instance=handed)["access_token"]
    old = ask_ticket(world, token, instance=asked)["ticket"]
    # When the account gets another appid, whose token and ticket another instance has handed out
    world.add_account("main", appid=OTHER_APPID, tickets=["jsapi"])
    for instance in (handed, asked):
        world.get("/v1/accounts/main/access-token", instance)
    # Then no instance gives the new appid's ticket for the old appid's token, however long it remembers what
    for _ in range(MEMORY + 2):
        for instance in (handed, asked, cold):
            response = ask_ticket(world, token, instance=instance)
            assert response["errcode"] == 40001 or response["ticket"] == old
        world.clock.sleep(1)
    assert all(ask_ticket(world, token, instance=each)["errcode"] == 40001 for each in (handed, asked, cold))


def test_a_token_of_a_dropped_account_gets_no_ticket(world: World) -> None:
    world.add_account("main", tickets=["jsapi"])
    warm = world.api_instance()
    token = world.token()
    ticket = ask_ticket(world, token, instance=warm)["ticket"]
    # When the account is dropped, and its name kept for another appid
    world.delete_parameter("main")
    for second in range(MEMORY + 2):
        response = ask_ticket(world, token, instance=warm)
        assert response["errcode"] == 40001 or (response["ticket"] == ticket and second <= MEMORY)
        if second == 5:
            world.add_account("main", appid=OTHER_APPID, tickets=["jsapi"])
        world.clock.sleep(1)


def test_a_previous_token_is_known_by_its_whole_digest(world: World) -> None:
    # Given a token that has been rotated
    world.add_account("main", tickets=["jsapi"])
    old = world.token()
    world.clock.sleep(6600)
    world.wake("tick")
    assert ask_ticket(world, old, instance=world.api_instance())["errcode"] == 0
    # When another has the same fingerprint, which health and log lines publish
    set_credential(world, "SET previous_digest = :it", {"S": fingerprint(old) + "0" * 48})
    # Then it gets no ticket
    assert ask_ticket(world, old, instance=world.api_instance())["errcode"] == 40001
    # And neither does one that only a release before this has stored
    set_credential(world, "REMOVE previous_digest")
    assert ask_ticket(world, old, instance=world.api_instance())["errcode"] == 40001


def set_credential(world: World, update: str, value: dict[str, str] | None = None) -> None:
    world.dynamodb.update_item(
        TableName="tokens",
        Key={"pk": {"S": "credential#main"}, "sk": {"S": "access_token"}},
        UpdateExpression=update,
        **({"ExpressionAttributeValues": {":it": value}} if value else {}),
    )


@pytest.mark.parametrize(
    ("call", "query", "ticket"),
    [
        ("GET /cgi-bin/get_jsapi_ticket", {}, "jsapi"),
        ("GET /cgi-bin/ticket/get", {"type": "agent_config"}, "agent_config"),
    ],
)
def test_wecom_gets_both_tickets_by_its_own_calls(world: World, call: str, query: dict[str, str], ticket: str) -> None:
    world.add_account("app", corpid=CORPID, secret="a-secret-of-the-corp", tickets=["jsapi", "agent_config"])
    response = world.ask(call, access_token=world.token("app"), **query)
    kept = world.get(f"/v1/accounts/app/tickets/{ticket}")[1]["ticket"]
    assert response == {"errcode": 0, "errmsg": "ok", "ticket": kept, "expires_in": 145}


@pytest.mark.parametrize(
    ("call", "query", "errcode"),
    [
        ("GET /cgi-bin/get_jsapi_ticket", {}, 41001),
        ("GET /cgi-bin/get_jsapi_ticket", {"access_token": "another"}, 40001),
        ("GET /cgi-bin/ticket/get", {"access_token": "another"}, 40097),
        ("GET /cgi-bin/ticket/get", {"access_token": "another", "type": "jsapi"}, 40097),
        ("GET /cgi-bin/ticket/get", {"access_token": "another", "type": "agent_config"}, 40001),
    ],
)
def test_wecoms_ticket_calls_refuse_as_wechat_does(
    world: World, call: str, query: dict[str, str], errcode: int
) -> None:
    assert world.ask(call, **query)["errcode"] == errcode


@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded"])
def test_a_ticket_can_be_asked_for_by_post(world: World, content_type: str) -> None:
    world.add_account("main", tickets=["jsapi"])
    sent = {"access_token": world.token(), "type": "jsapi"}
    body = json.dumps(sent) if content_type == "application/json" else urlencode(sent)
    assert world.ask("POST /cgi-bin/ticket/getticket", body=body, content_type=content_type)["errcode"] == 0


# --- what is served nowhere


@pytest.mark.parametrize(
    ("call", "errcode"),
    [
        ("POST /cgi-bin/message/custom/send", 40066),
        ("GET /cgi-bin/get_api_domain_ip", 40066),
        ("DELETE /cgi-bin/menu/delete", 40066),
        ("GET /cgi-bin/Token", 40066),
        ("PUT /cgi-bin/token", 43001),
        ("GET /cgi-bin/stable_token", 43002),
        ("POST /cgi-bin/gettoken", 43001),
        ("DELETE /cgi-bin/ticket/getticket", 43001),
        ("POST /cgi-bin/get_jsapi_ticket", 43001),
        ("POST /cgi-bin/ticket/get", 43001),
    ],
)
def test_other_wechat_paths_get_a_hint_and_are_no_refusal(
    world: World, table_calls: list[str], caplog: pytest.LogCaptureFixture, call: str, errcode: int
) -> None:
    response = world.ask(call, body=b"{" * 9000 if call.startswith("POST") else None, access_token="any")
    assert response["errcode"] == errcode
    assert response["errmsg"].endswith(f" rid: {REQUEST_ID}")
    assert ("only credentials are served here" in response["errmsg"]) == (errcode == 40066)
    assert table_calls == []
    assert not [each for each in caplog.records if each.name.startswith("api")]


# --- force_refresh: a report


@pytest.mark.parametrize("force", [True, "true"])
@pytest.mark.parametrize("endpoint", ["token", "stable_token"])
def test_force_refresh_replaces_a_dead_token(world: World, endpoint: str, force: bool | str) -> None:
    # Given a token that another client has invalidated
    world.add_account("main", endpoint=endpoint)
    world.clock.sleep(60)
    key = world.add_consumer("shop", ["main"], may_report=True)
    dead = ask_stable_token(world, key)["access_token"]
    world.wechat.kill(dead)
    # When a consumer that may report asks with force_refresh
    response = ask_stable_token(world, key, force=force)
    # Then it gets one that works
    assert response["access_token"] != dead
    assert world.wechat.accepts(response["access_token"])


@pytest.mark.parametrize("force", [False, None, 1, "True", "yes", []])
def test_nothing_else_is_force_refresh(world: World, force: Any) -> None:
    world.add_account("main", endpoint="stable_token")
    key = world.add_consumer("shop", ["main"], may_report=True)
    ask_stable_token(world, key, force=force)
    assert world.calls(PROBE) == 0


def test_a_read_only_consumers_force_refresh_changes_nothing(world: World) -> None:
    # Given a token that another client has invalidated, and a consumer that may not report
    world.add_account("main", endpoint="stable_token")
    world.clock.sleep(60)
    key = world.add_consumer("staging", ["main"])
    dead = ask_stable_token(world, key)["access_token"]
    world.wechat.kill(dead)
    # When it asks with force_refresh
    response = ask_stable_token(world, key, force=True)
    # Then it gets the current token, and WeChat was not asked for anything
    assert response["access_token"] == dead
    assert (world.calls(PROBE), world.calls("/cgi-bin/stable_token")) == (0, 1)


@pytest.mark.parametrize("endpoint", ["token", "stable_token"])
def test_force_refresh_cannot_be_used_to_burn_budgets(endpoint: str) -> None:
    clock = Clock()
    world = World(MemoryAws(clock).client, clock=clock)
    world.add_account("main", endpoint=endpoint)
    world.clock.sleep(60)
    key = world.add_consumer("shop", ["main"], may_report=True)
    token = world.token()
    # When a client asks 100 times in 100 s, always with force_refresh, from two instances
    instances = [world.api_instance(), world.api_instance()]
    for attempt in range(100):
        response = ask_stable_token(world, key, force=True, instance=instances[attempt % 2])
        assert response["access_token"] == token
        world.clock.sleep(1)
    # Then WeChat has been asked ten times whether it works, and for no other token
    assert world.calls(PROBE) == 10
    assert world.calls(f"/cgi-bin/{endpoint}") == 1


def test_where_reports_are_used_up_the_current_token_is_given(world: World) -> None:
    # Given a consumer that has used up the allowance for reports
    world.add_account("main")
    key = world.add_consumer("shop", ["main"], may_report=True)
    token = world.token()
    world.clock.sleep(60)
    for _ in range(budget.REPORT_BURST + 5):
        # When it asks with force_refresh once more
        response = ask_stable_token(world, key, force=True)
        # Then it gets the current token
        assert response["access_token"] == token
        world.clock.sleep(10)
    assert world.calls(PROBE) <= budget.REPORT_BURST + 2


def test_an_unchecked_token_is_given_and_a_dead_one_is_not(world: World) -> None:
    world.add_account("main")
    world.clock.sleep(60)
    key = world.add_consumer("shop", ["main"], may_report=True)
    token = world.token()
    # When WeChat does not say whether it works
    world.wechat.fail(PROBE, Fault.error(-1))
    # Then it is taken to work
    assert ask_stable_token(world, key, force=True)["access_token"] == token
    # When WeChat says that it is dead, and gives no other
    world.clock.sleep(10)
    world.wechat.kill(token)
    world.wechat.fail("/cgi-bin/stable_token", Fault.error(-1))
    # Then there is none
    assert ask_stable_token(world, key, force=True)["errcode"] == -1
    assert ask_token(world, key)["errcode"] == -1


# --- what is logged


def test_each_hand_out_is_one_log_line_without_a_value(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.add_account("main", tickets=["jsapi"])
    world.add_account("app", corpid=CORPID, secret="a-secret-of-the-corp")
    key = world.add_consumer("shop", ["*"], may_report=True)
    world.restart()
    with caplog.at_level(logging.DEBUG, "api"):
        token = ask_token(world, key)["access_token"]
        ask_stable_token(world, key, force=True)
        corp_token = ask_corp_token(world, key)["access_token"]
        ticket = ask_ticket(world, token)["ticket"]
        world.get("/v1/accounts/main/jsapi-signature?url=https://example.com/")
        ask_token(world, REVOKED)
    logged = [
        tuple(
            vars(line).get(field)
            for field in ("consumer", "caller", "by_token", "account", "credential", "fingerprint")
        )
        for line in caplog.records
        if line.name.startswith("api") and line.message != "refused"
    ]
    user = "arn:aws:iam::123456789012:user/test"
    assert logged == [
        ("shop", None, None, "main", "access_token", fingerprint(token)),
        ("shop", None, None, "main", "access_token", fingerprint(token)),
        ("shop", None, None, "app", "access_token", fingerprint(corp_token)),
        (None, None, fingerprint(token), "main", "jsapi", fingerprint(ticket)),
        (None, user, None, "main", "jsapi", fingerprint(ticket)),
    ]


# --- the signature for the JS-SDK


def test_a_page_is_signed_and_the_ticket_stays_here(world: World) -> None:
    from token_keeper.api.jsapi import sign

    world.add_account("main", tickets=["jsapi"])
    ticket = world.get("/v1/accounts/main/tickets/jsapi")[1]["ticket"]
    page = "https://example.com/shop?item=1&lang=zh"
    # When a page's address is signed
    query = urlencode({"url": f"{page}#reviews"})
    status, body, headers = world.request(f"/v1/accounts/main/jsapi-signature?{query}")
    # Then the response is what wx.config takes
    assert (status, headers["Cache-Control"]) == (200, "no-store")
    assert list(body) == ["appId", "timestamp", "nonceStr", "signature"]
    assert (body["appId"], body["timestamp"]) == (APPID, START)
    assert body["signature"] == sign(ticket, body["nonceStr"], START, page)
    # And the next one has another nonce
    assert world.get(f"/v1/accounts/main/jsapi-signature?{query}")[1]["nonceStr"] != body["nonceStr"]


def test_a_corps_page_is_signed_too(world: World) -> None:
    world.add_account("app", corpid=CORPID, secret="a-secret-of-the-corp", tickets=["jsapi"])
    status, body = world.get("/v1/accounts/app/jsapi-signature?url=https://example.com/")
    assert (status, body["appId"]) == (200, CORPID)


def test_an_agents_page_is_signed_with_its_own_ticket(world: World) -> None:
    from token_keeper.api.jsapi import sign

    world.add_account("app", corpid=CORPID, secret="a-secret-of-the-corp", tickets=["jsapi", "agent_config"])
    ticket = world.get("/v1/accounts/app/tickets/agent_config")[1]["ticket"]
    page = "https://example.com/?a=1"
    path = f"/v1/accounts/app/jsapi-signature?{urlencode({'url': page, 'type': 'agent_config', '_': 1})}"
    _, body = world.get(path)
    assert body["signature"] == sign(ticket, body["nonceStr"], START, page)


@pytest.mark.parametrize("query", ["", "?url=https://example.com/?a=1", "?url=https://a/&url=https://b/"])
def test_an_ambiguous_page_gets_400_and_what_to_do(world: World, query: str) -> None:
    world.add_account("main", tickets=["jsapi"])
    status, body = world.get(f"/v1/accounts/main/jsapi-signature{query}")
    assert (status, body["code"]) == (400, "invalid_request")
    assert "url" in body["detail"]


def test_without_a_jsapi_ticket_nothing_is_signed(world: World) -> None:
    world.add_account("main")
    for account, code in (("main", "unknown_credential"), ("other", "unknown_account")):
        status, body = world.get(f"/v1/accounts/{account}/jsapi-signature?url=https://example.com/")
        assert (status, body["code"]) == (404, code)


def test_a_leaked_token_gets_no_ticket_once_it_was_replaced(world: World) -> None:
    # Given a stable token that leaked, and is replaced by force
    world.add_account("main", endpoint="stable_token", tickets=["jsapi"])
    leaked = world.token()
    world.clock.sleep(31)
    world.invoke({"renew": {"account": "main", "credential": "access_token", "rotate": True}})
    # When a client asks for a ticket with it
    response = ask_ticket(world, leaked)
    # Then
    assert response["errcode"] == 40001
