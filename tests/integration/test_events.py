"""What others learn of a credential through EventBridge: once per transition, and never a value."""

import json
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from infra.local.simulated_wechat import Fault
from tests.support.world import ACCOUNTS_PATH, APPID, SECRET, START, World
from token_keeper.model import rfc3339
from token_keeper.refresh import alerts
from token_keeper.refresh.alerts import Event, EventType

TOKEN = "/cgi-bin/token"
STABLE_TOKEN = "/cgi-bin/stable_token"
MAIN_TICK = 6600


def events_of(world: World, *, renewals: bool = False) -> list[tuple[str, str]]:
    """What was sent since the last look: what happened, and to which account. Without the renewals, if they are not asked for."""
    sent, world.sent = world.sent, []
    found = [(entry["DetailType"].removeprefix("Credential "), entry["Detail"]["account"]) for entry in sent]
    return [each for each in found if renewals or each[0] != "Renewed"]


def pass_minutes(world: World, minutes: int) -> None:
    for _ in range(minutes):
        world.clock.sleep(60)
        world.wake("guard")


def put_secret(world: World, secret: str) -> dict[str, Any]:
    world.secrets.add(secret)
    return world.put_parameter("main", json.dumps({"appid": APPID, "secret": secret}))


# --- each transition


def test_a_new_token_is_an_event_with_its_fingerprint(world: World) -> None:
    # When
    world.add_account()
    # Then
    (entry,) = world.sent
    _, body = world.get("/v1/accounts/main/access-token")
    assert (entry["Source"], entry["DetailType"]) == ("wechat-token-keeper.production", "Credential Renewed")
    assert entry["Detail"] == {
        "stack": "production",
        "account": "main",
        "credential": "access_token",
        "fingerprint": body["fingerprint"],
        "expires_at": "2026-09-21T16:13:20Z",
    }
    assert "EventBusName" not in entry  # the default bus


def test_a_token_that_comes_back_unchanged_is_no_event(world: World) -> None:
    # Given a stable_token, which WeChat repeats until its last five minutes
    world.add_account(endpoint="stable_token")
    world.wechat.fail(STABLE_TOKEN, Fault.error(-1))
    events_of(world)
    # When the operator has it renewed although it lives
    world.invoke({"renew": {"account": "main", "credential": "access_token"}})
    # Then
    assert events_of(world, renewals=True) == []


def test_a_failure_that_needs_an_operator_is_told_once(world: World) -> None:
    # Given
    world.add_account()
    expires_at = START + 7200
    events_of(world)
    # When WeChat refuses the address, five times
    world.clock.now = START + MAIN_TICK
    world.wechat.fail(TOKEN, *[Fault.error(40164, "invalid ip 8.149.1.2, not in whitelist")] * 5)
    world.wake("tick")
    (entry,) = world.sent
    pass_minutes(world, 20)
    # Then
    assert events_of(world) == [("Failing", "main")]
    detail = entry["Detail"]
    assert (detail["class"], detail["errcode"]) == ("configuration", 40164)
    assert "8.149.1.2" in detail["errmsg"]
    assert "whitelist" in detail["remedy"]
    assert detail["next_attempt_at"] == rfc3339(START + MAIN_TICK + 300)
    assert detail["usable_until"] == rfc3339(expires_at)
    # When it is put on the whitelist
    pass_minutes(world, 10)
    # Then
    assert events_of(world) == [("Recovered", "main")]


def test_one_lost_call_is_told_to_nobody(world: World) -> None:
    world.add_account()
    events_of(world)
    world.clock.now = START + MAIN_TICK
    world.wechat.fail(TOKEN, Fault.error(-1))
    world.wake("tick")
    pass_minutes(world, 3)
    assert events_of(world, renewals=True) == [("Renewed", "main")]


def test_a_token_that_nears_its_end_is_told_whatever_the_reason(world: World) -> None:
    # Given
    world.add_account()
    token = world.token()
    events_of(world)
    # When WeChat is too busy for every renewal
    world.clock.now = START + MAIN_TICK
    world.wechat.fail(TOKEN, *[Fault.error(-1)] * 100)
    world.wake("tick")
    while "Failing" not in [what for what, _ in events_of(world)]:
        pass_minutes(world, 1)
    # Then there are still two minutes and more in which an operator can act
    world.clock.sleep(120)
    assert world.wechat.accepts(token)


def test_a_new_account_is_failing_after_two_lost_calls_not_one(world: World) -> None:
    world.wechat.fail(TOKEN, *[Fault.error(-1)] * 2)
    world.add_account()
    assert events_of(world) == []
    pass_minutes(world, 1)
    assert events_of(world) == [("Failing", "main")]
    pass_minutes(world, 1)
    assert events_of(world) == [("Recovered", "main")]


def test_a_ticket_without_a_token_is_not_told_beside_it(world: World) -> None:
    world.wechat.fail(TOKEN, *[Fault.error(40125)] * 3)
    world.add_account(tickets=["jsapi", "wx_card"])
    pass_minutes(world, 5)
    assert events_of(world) == [("Failing", "main")]


# --- records


@pytest.mark.parametrize("wrong", ["{", json.dumps({"appid": APPID}), json.dumps({"appid": "wx0", "secret": ""})])
@pytest.mark.parametrize("is_known", [True, False])
def test_an_invalid_record_fails_and_its_correction_recovers(world: World, wrong: str, is_known: bool) -> None:
    # Given an account with a live token, or none yet
    world.wechat.add_app(APPID, SECRET)
    if is_known:
        world.add_account()
        world.clock.sleep(100)
    events_of(world)
    # When its record is wrong for a while
    world.put_parameter("main", wrong)
    pass_minutes(world, 12)
    # Then
    assert events_of(world) == [("Failing", "main")]
    # When
    put_secret(world, SECRET)
    # Then
    assert events_of(world) == [("Recovered", "main")]
    pass_minutes(world, 3)
    assert events_of(world) == []


def test_a_wrong_secret_beside_a_live_token_fails_and_recovers(world: World) -> None:
    # Given
    world.add_account()
    world.clock.sleep(100)
    events_of(world)
    # When
    put_secret(world, "f" * 32)
    # Then
    (entry,) = world.sent
    assert events_of(world) == [("Failing", "main")]
    assert entry["Detail"]["usable_until"] == rfc3339(START + 7200)
    assert "set-secret" in entry["Detail"]["remedy"]
    # When
    put_secret(world, SECRET)
    # Then
    assert events_of(world) == [("Recovered", "main")]


def test_an_account_that_fails_recovers_under_another_appid(world: World) -> None:
    # Given
    world.wechat.fail(TOKEN, Fault.error(40013))
    world.add_account()
    assert events_of(world) == [("Failing", "main")]
    # When
    world.add_account(appid="wx00000000other")
    # Then
    assert events_of(world) == [("Recovered", "main")]


def test_removing_a_failing_account_ends_its_failure(world: World) -> None:
    # Given
    world.wechat.fail(TOKEN, Fault.error(40013))
    world.add_account()
    assert events_of(world) == [("Failing", "main")]
    # When
    world.delete_parameter("main")
    # Then the failure is over, and nothing recovers
    (entry,) = world.sent
    assert entry["DetailType"] == "Credential Recovered"
    assert entry["Detail"] == {
        **{"stack": "production", "account": "main", "credential": "access_token"},
        **{"fingerprint": None, "expires_at": None, "removed": True},
    }
    events_of(world)
    pass_minutes(world, 3)
    assert events_of(world, renewals=True) == []


def test_removing_an_account_that_works_is_no_event(world: World) -> None:
    world.add_account(tickets=["jsapi"])
    events_of(world)
    world.delete_parameter("main")
    assert events_of(world, renewals=True) == []


def test_removing_a_failing_ticket_ends_its_failure(world: World) -> None:
    # Given
    world.wechat.fail("/cgi-bin/ticket/getticket", Fault.error(48001))
    world.add_account(tickets=["jsapi"])
    assert events_of(world) == [("Failing", "main")]
    # When
    world.add_account()
    # Then
    (entry,) = world.sent
    assert (entry["Detail"]["credential"], entry["Detail"]["removed"]) == ("jsapi", True)


def test_what_waits_to_be_sent_survives_the_accounts_removal(world: World) -> None:
    # Given
    failing_account(world)
    with world.down("eventbridge"):
        world.wake("tick")
    assert events_of(world) == []
    # When
    world.delete_parameter("main")
    # Then
    assert events_of(world) == [("Failing", "main"), ("Recovered", "main")]


def test_a_ticket_that_fails_recovers_under_another_appid(world: World) -> None:
    # Given
    world.wechat.fail("/cgi-bin/ticket/getticket", Fault.error(48001))
    world.add_account(tickets=["jsapi"])
    events_of(world)
    # When
    world.add_account(appid="wx00000000other", tickets=["jsapi"])
    # Then
    (recovered,) = [entry["Detail"] for entry in world.sent if entry["DetailType"] == "Credential Recovered"]
    assert (recovered["credential"], "removed" in recovered) == ("jsapi", False)


def test_a_failure_stays_open_under_an_appid_that_is_taken(world: World) -> None:
    # Given an account that fails, and another one
    world.wechat.fail(TOKEN, Fault.error(40013))
    world.add_account()
    world.add_account("shop", appid="wx00000000other")
    assert events_of(world) == [("Failing", "main")]
    # When the first is given the appid of the second
    world.add_account(appid="wx00000000other")
    pass_minutes(world, 3)
    # Then it goes on failing
    assert events_of(world) == []
    # When the second is removed
    world.delete_parameter("shop")
    pass_minutes(world, 2)
    # Then
    assert events_of(world) == [("Recovered", "main")]


def test_renaming_an_account_is_no_failure(world: World) -> None:
    # Given
    world.add_account()
    events_of(world)
    # When the new name comes before the old one is gone, and its event twice
    world.add_account("renamed")
    world.clock.sleep(1)
    world.parameter_event("renamed")
    world.delete_parameter("main")
    pass_minutes(world, 3)
    # Then
    assert events_of(world, renewals=True) == [("Renewed", "renamed")]


def test_two_accounts_of_one_appid_are_a_failure(world: World) -> None:
    # Given
    world.add_account()
    events_of(world)
    # When
    world.add_account("other")
    # Then it is shown at once, and makes an event when a minute has not changed it
    assert "already kept, as account main" in world.health("other")["last_error"]["errmsg"]
    assert events_of(world) == []
    pass_minutes(world, 5)
    assert events_of(world) == [("Failing", "other")]


# --- tokens that die early


@pytest.mark.parametrize("found_by", ["probe", "report"])
def test_a_token_that_another_client_kills_is_invalidated_once(world: World, found_by: str) -> None:
    # Given
    world.add_account()
    token = world.token()
    world.clock.sleep(100)
    events_of(world)
    world.wechat.kill(token)
    # When
    if found_by == "probe":
        world.wake("probe")
    else:
        world.report(access_token=token)
    # Then
    invalidated = world.sent[0]["Detail"]
    assert events_of(world, renewals=True) == [("Invalidated", "main"), ("Renewed", "main")]
    assert "stable_token" in invalidated["remedy"]
    assert invalidated["usable_until"] == rfc3339(START + 100)
    world.report(access_token=token)
    world.wake("probe")
    assert events_of(world, renewals=True) == []


def test_no_invalidated_event_where_a_changed_record_explains_it(world: World) -> None:
    world.add_account()
    world.clock.sleep(100)
    world.wechat.kill(world.token())
    events_of(world)
    world.add_account(secret="e" * 32)
    assert events_of(world, renewals=True) == [("Renewed", "main")]


# --- EventBridge does not respond


def failing_account(world: World) -> None:
    world.add_account()
    world.clock.now = START + MAIN_TICK
    world.wechat.fail(TOKEN, Fault.error(40164))
    events_of(world)


def test_what_could_not_be_sent_is_sent_with_the_next_attempt(world: World) -> None:
    # Given
    failing_account(world)
    # When EventBridge is down while it fails, and the renewal goes on
    with world.down("eventbridge"):
        summary = world.wake("tick")
    assert [each["account"] for each in summary["failed"]] == ["main"]
    assert events_of(world) == []
    pass_minutes(world, 5)
    # Then
    assert events_of(world, renewals=True) == [("Failing", "main"), ("Recovered", "main"), ("Renewed", "main")]
    pass_minutes(world, 3)
    assert events_of(world) == []


def test_a_recovery_that_could_not_be_sent_is_sent_by_the_probe(world: World) -> None:
    # Given
    failing_account(world)
    world.wake("tick")
    events_of(world)
    # When
    with world.down("eventbridge"):
        pass_minutes(world, 5)
    assert world.health()["state"] == "fresh"
    world.wake("probe")
    assert events_of(world) == []  # the instance that wrote it may be about to send it
    world.clock.sleep(300)
    world.wake("probe")
    world.wake("probe")
    # Then
    assert events_of(world) == [("Recovered", "main")]


def test_a_hundred_credentials_take_ten_calls(world: World) -> None:
    # Given
    calls: list[int] = []
    world.before_aws = lambda operation, body: (
        calls.append(len(json.loads(body)["Entries"])) if operation == "eventbridge.PutEvents" else None
    )
    for number in range(25):
        name = f"shop-{number:02}"
        record = {"appid": f"wx{number:016}", "secret": SECRET}
        world.wechat.add_app(record["appid"], SECRET)
        world.ssm.put_parameter(Name=f"{ACCOUNTS_PATH}/{name}", Value=json.dumps(record), Type="SecureString")
    # When
    world.wake("tick")
    # Then
    assert calls == [10, 10, 5]


def test_only_the_entries_that_were_refused_are_sent_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given EventBridge that takes the call but not the entry
    failing_account(world)
    client = world._client("events")
    monkeypatch.setattr(
        client,
        "put_events",
        lambda Entries: {"Entries": [{"ErrorCode": "InternalFailure"}] * len(Entries)},  # noqa: N803
    )
    world.wake("tick")
    monkeypatch.undo()
    assert events_of(world) == []
    # When
    pass_minutes(world, 5)
    # Then
    assert events_of(world) == [("Failing", "main"), ("Recovered", "main")]


def test_an_event_that_is_sent_twice_can_be_recognised(world: World) -> None:
    # Given an event that was sent, which could not be noted
    failing_account(world)

    def refuse_after_sending(operation: str, _: bytes) -> None:
        if operation == "dynamodb.UpdateItem" and world.sent:
            raise EndpointConnectionError(endpoint_url="https://dynamodb.invalid/")

    world.before_aws = refuse_after_sending
    world.wake("tick")
    world.before_aws = None
    (first,) = world.sent
    # When the next attempt sends it once more
    pass_minutes(world, 5)
    # Then the copy is the same, its time included
    assert [entry for entry in world.sent if entry["DetailType"] == first["DetailType"]] == [first, first]
    assert first["Time"] == START + MAIN_TICK


def test_an_item_keeps_the_newest_events_only(world: World) -> None:
    # Given more events in an item than EventBridge ever takes so long to accept
    failing_account(world)
    waiting = [alerts.to_text(Event(EventType.FAILING, at, {"account": f"a{at}"})) for at in range(alerts.MAX_UNSENT)]
    world.dynamodb.update_item(
        TableName=world.environment["TABLE_NAME"],
        Key={"pk": {"S": "credential#main"}, "sk": {"S": "access_token"}},
        UpdateExpression="SET unsent = :unsent",
        ExpressionAttributeValues={":unsent": {"S": "\n".join(waiting)}},
    )
    # When
    world.wake("tick")
    # Then the oldest has made room
    accounts = [account for _, account in events_of(world)]
    assert accounts == [f"a{at}" for at in range(1, alerts.MAX_UNSENT)] + ["main"]


# --- instances


def test_an_item_of_the_release_before_has_its_transitions_too(world: World) -> None:
    # Given an item without what is new
    failing_account(world)
    table, key = world.environment["TABLE_NAME"], {"pk": {"S": "credential#main"}, "sk": {"S": "access_token"}}
    world.dynamodb.update_item(TableName=table, Key=key, UpdateExpression="REMOVE failing_since, unsent")
    # When
    world.wake("tick")
    pass_minutes(world, 5)
    # Then
    assert events_of(world) == [("Failing", "main"), ("Recovered", "main")]


def test_a_transition_that_another_write_made_is_not_repeated(world: World) -> None:
    # Given a renewal under way, and a record error that makes an event meanwhile
    failing_account(world)
    world.during_call = lambda: world.put_parameter("main", "{")
    # When
    world.wake("tick")
    # Then
    assert events_of(world) == [("Failing", "main")]
