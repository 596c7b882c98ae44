"""Adding or deleting a parameter is all it takes to keep or drop an account, also where the process dies in between."""

import itertools
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from tests.integration.parameters import (
    NEW_SECRET,
    OTHER_APPID,
    TOKEN,
    WRONG_SECRET,
    accounts,
    asked,
    due,
    put_without_event,
    read,
    record,
    token,
    unreadable,
)
from tests.support.world import ACCOUNTS_PATH, APPID, SECRET, START, World
from token_keeper.errors import KeeperError

# --- accounts come and go


def test_the_tick_finds_accounts_whose_event_was_lost(world: World) -> None:
    # Given more accounts than Parameter Store lists on a page, whose events never arrived
    names = [f"main-{number:02}" for number in range(12)]
    for name in names:
        world.wechat.add_app(f"wx-{name}", SECRET)
        put_without_event(world, name, record(appid=f"wx-{name}"))
    assert accounts(world) == []
    # When the main tick fires
    world.wake("tick")
    # Then all of them have tokens that work, and the next tick has nothing to do
    assert accounts(world) == names
    assert all(world.wechat.accepts(token(world, name)) for name in names)
    calls = len(world.wechat.calls)
    world.wake("tick")
    assert len(world.wechat.calls) == calls


def test_a_defect_while_enrolling_stops_no_other_account(world: World) -> None:
    # Given two new accounts, and an error in this program that one of them brings to light
    for name in ("main", "shop"):
        world.wechat.add_app(f"wx-{name}", SECRET)
        put_without_event(world, name, record(appid=f"wx-{name}"))
    writes = itertools.count()

    def fail(operation: str, _: bytes) -> None:
        if operation == "dynamodb.PutItem" and next(writes) == 0:
            raise ZeroDivisionError

    # When the main tick fires
    world.before_aws = fail
    summary = world.wake("tick")
    # Then the defect is in the summary, by its class, and the other account has a token
    (failed,) = summary["failed"]
    (renewed,) = summary["renewed"]
    assert (failed["class"], failed["errmsg"]) == ("defect", "ZeroDivisionError")
    assert {failed["account"], renewed["account"]} == {"main", "shop"}
    # And where it does not happen, the next tick enrols the first
    world.wake("tick")
    assert world.wechat.accepts(token(world, failed["account"]))


@pytest.mark.parametrize("event_arrives", [True, False])
def test_a_deleted_account_is_unknown_to_readers_at_once(world: World, event_arrives: bool) -> None:
    world.add_account("main", tickets=["jsapi"])
    world.add_account("other", appid=OTHER_APPID)
    calls = len(world.wechat.calls)
    # When its parameter is deleted
    if event_arrives:
        world.delete_parameter("main")
    else:
        world.ssm.delete_parameter(Name=f"{ACCOUNTS_PATH}/main")
        world.wake("tick")
    # Then its values are not served any more, and nothing is fetched for it
    for path in ("access-token", "tickets/jsapi"):
        status, body = read(world, f"/v1/accounts/main/{path}")
        assert (status, body["code"]) == (404, "unknown_account")
    assert world.get("/v1/accounts/main")[0] == 404
    assert accounts(world) == ["other"]
    world.clock.sleep(7200)
    world.wake("guard")
    assert [call.account for call in world.wechat.calls[calls:]] == [OTHER_APPID]


def test_a_late_event_does_not_bring_a_deleted_account_back(world: World) -> None:
    world.add_account("main")
    world.delete_parameter("main")
    # When an event of its creation arrives after all, and then the guard fires
    world.parameter_event("main", "Create")
    world.clock.sleep(60)
    world.wake("guard")
    # Then it is unknown
    assert read(world)[0] == 404


@pytest.mark.parametrize("reads", [1, 2, 3])
def test_an_event_before_its_parameter_is_readable(world: World, reads: int) -> None:
    # Given a new parameter that Parameter Store shows only some seconds after its event
    world.wechat.add_app(APPID, SECRET)
    unreadable(world, reads)
    # When the event arrives, and then the guard fires every minute
    world.put_parameter("main", record())
    world.clock.sleep(60)
    world.wake("guard")
    # Then the account is kept
    assert world.wechat.accepts(token(world))


def test_an_event_before_its_change_is_readable(world: World) -> None:
    # Given a changed parameter of which Parameter Store shows the old version for some seconds
    world.add_account("main")
    get_parameters, old = world.ssm.get_parameters, iter([world.ssm.get_parameters(**asked("main"))])
    world.ssm.get_parameters = lambda **asked: next(old, None) or get_parameters(**asked)
    # When its event arrives
    world.put_parameter("main", record(tickets=["jsapi"]))
    # Then the change is applied
    assert read(world, "/v1/accounts/main/tickets/jsapi")[0] == 200


def test_an_account_deleted_and_added_again_is_kept_again(world: World) -> None:
    world.add_account("main")
    old = token(world)
    world.delete_parameter("main")
    # When it is added again, with the same appid
    world.add_account("main")
    # Then it has a new token
    assert token(world) != old
    assert world.wechat.accepts(token(world))


def test_a_deletion_during_a_renewal_is_final(world: World) -> None:
    world.add_account("main")
    world.clock.now = START + 7000
    # When an account is deleted while its renewal is under way
    world.during_call = lambda: world.delete_parameter("main")
    world.wake("guard")
    # Then the renewal does not bring it back
    assert read(world)[0] == 404
    assert accounts(world) == []


@pytest.mark.parametrize("deleted_first", [True, False])
def test_a_running_renewal_cannot_publish_under_another_appid(world: World, deleted_first: bool) -> None:
    world.add_account("main")
    world.wechat.add_app(OTHER_APPID, NEW_SECRET)
    world.secrets.add(NEW_SECRET)
    world.clock.now = START + 7000

    def change_appid() -> None:
        if deleted_first:
            world.delete_parameter("main")
        world.put_parameter("main", record(appid=OTHER_APPID, secret=NEW_SECRET))

    # When an account is given another appid while its renewal is under way
    world.during_call = change_appid
    world.wake("guard")
    # Then readers get the new appid's token: it is the last one minted, the renewal's own was minted before
    assert [call.account for call in world.wechat.calls] == [APPID, APPID, OTHER_APPID]
    assert token(world).startswith("simulated_token_3_")
    assert world.get("/v1/accounts/main")[1]["appid"] == OTHER_APPID


@pytest.mark.parametrize(
    "name", ["/elsewhere/main", f"{ACCOUNTS_PATH}/team/main", f"{ACCOUNTS_PATH}-old/main", f"{ACCOUNTS_PATH}/Main"]
)
def test_a_parameter_that_is_no_accounts_is_left_alone(world: World, name: str) -> None:
    # Given a parameter outside the path, below a sub-path, or with a name no account can have
    world.wechat.add_app(APPID, SECRET)
    world.ssm.put_parameter(Name=name, Value=record(), Type="SecureString")
    # When its event arrives, the main tick fires, and a reader asks for a renewal
    detail = {"name": name, "operation": "Create", "type": "SecureString"}
    summary = world.invoke({"source": "aws.ssm", "detail-type": "Parameter Store Change", "detail": detail})
    world.wake("tick")
    asked_for = name.removeprefix(f"{ACCOUNTS_PATH}/")
    world.invoke({"renew": {"account": asked_for, "credential": "access_token"}})
    # Then nothing comes of it
    assert summary == {"woken_by": "parameter", "renewed": [], "skipped": [], "failed": []}
    assert accounts(world) == []
    assert world.wechat.calls == []


# --- the process dies, or AWS fails, in the middle of it


def dies_at(world: World, call: int, account: str) -> bool:
    """Deliver an account's event to a process that dies at its so-manieth call to AWS, if it makes so many."""
    calls = itertools.count(1)

    def die(operation: str, _: bytes) -> None:
        if next(calls) == call:
            raise SystemExit(f"killed at {operation}")

    died = False
    world.before_aws = die
    try:
        world.parameter_event(account)
    except SystemExit:
        died = True
    world.before_aws = None
    world.restart()
    return died


def next_tick(world: World) -> None:
    """The main tick fires, after any lease that was never given back."""
    world.clock.sleep(60)
    world.wake("tick")


def test_an_addition_that_dies_anywhere_is_finished_by_a_tick(world: World) -> None:
    for call in itertools.count(1):
        # Given a new account, and a process that dies while it acts on it
        name, appid = f"main-{call}", f"wx-{call}"
        world.wechat.add_app(appid, SECRET)
        put_without_event(world, name, record(appid=appid))
        died = dies_at(world, call, name)
        next_tick(world)
        # Then after the next tick its token is there
        assert world.wechat.accepts(token(world, name)), f"died at call {call}"
        if not died:
            break
    assert call > 5


@pytest.mark.parametrize("new_appid", [OTHER_APPID, None], ids=["another appid", "deleted"])
def test_an_appid_is_given_up_wherever_the_change_dies(world: World, new_appid: str | None) -> None:
    for call in itertools.count(1):
        # Given an account whose record gets another appid or is deleted, and a process that dies while it acts on it
        name, appid = f"main-{call}", f"wx-{call}"
        world.add_account(name, appid=appid)
        if new_appid:
            world.wechat.add_app(f"{new_appid}-{call}", SECRET)
            put_without_event(world, name, record(appid=f"{new_appid}-{call}"))
        else:
            world.ssm.delete_parameter(Name=f"{ACCOUNTS_PATH}/{name}")
        died = dies_at(world, call, name)
        next_tick(world)
        # Then after the next tick it is another's, or gone
        status, _ = read(world, f"/v1/accounts/{name}/access-token")
        assert status == (200 if new_appid else 404), f"died at call {call}"
        # And its old appid may be kept under another name, after the longest lease where one may have been taken
        world.add_account(f"heir-{call}", appid=appid)
        world.clock.sleep(60)
        world.wake("guard")
        assert world.wechat.accepts(token(world, f"heir-{call}")), f"died at call {call}"
        if not died:
            break
    assert call > 5


def test_a_removed_ticket_is_gone_wherever_the_change_dies(world: World) -> None:
    for call in itertools.count(1):
        # Given an account that gives up its ticket, and a process that dies while it acts on it
        name, appid = f"main-{call}", f"wx-{call}"
        world.add_account(name, appid=appid, tickets=["jsapi"])
        put_without_event(world, name, record(appid=appid))
        if not dies_at(world, call, name):
            break
    # When all is due again, hours after the next tick
    next_tick(world)
    world.clock.sleep(7200)
    summary = world.wake("guard")
    # Then only the tokens are renewed, and nothing fails
    assert {item["credential"] for item in summary["renewed"]} == {"access_token"}
    assert summary["failed"] == []


def test_a_ticket_with_a_lost_item_gets_no_full_promise_again(world: World) -> None:
    for call in itertools.count(1):
        # Given a ticket whose item the table has lost, and a process that dies while it takes the account over again
        name, minted_at = f"main-{call}", world.clock()
        world.add_account(name, appid=f"wx-{call}", tickets=["jsapi"])
        key = {"pk": {"S": f"credential#{name}"}, "sk": {"S": "jsapi"}}
        world.dynamodb.delete_item(TableName=world.environment["TABLE_NAME"], Key=key)
        world.clock.sleep(3600)
        died = dies_at(world, call, name)
        next_tick(world)
        # When WeChat gives the same one again, with a full expires_in
        status, body = read(world, f"/v1/accounts/{name}/tickets/jsapi")
        # Then no reader is promised another full life
        assert status == 200
        assert world.clock() + body["expires_in"] <= minted_at + 7200, f"died at call {call}"
        if not died:
            break
    assert call > 5


def test_an_account_deleted_while_it_is_enrolled_blocks_no_other(world: World) -> None:
    for call in range(1, 6):
        # Given an account whose enrolment dies somewhere, and which is deleted before the next tick
        name, appid = f"main-{call}", f"wx-{call}"
        world.wechat.add_app(appid, SECRET)
        put_without_event(world, name, record(appid=appid))
        dies_at(world, call, name)
        world.delete_parameter(name)
        # When its appid is added under another name
        world.put_parameter(f"heir-{call}", record(appid=appid))
        world.wake("tick")
        # Then that is kept
        assert world.wechat.accepts(token(world, f"heir-{call}")), f"died at call {call}"


def test_an_event_in_a_parameter_store_outage_is_made_up_for(world: World) -> None:
    world.wechat.add_app(APPID, SECRET)
    put_without_event(world, "main", record())
    # Given an event that could not be acted on, and is therefore delivered again
    with world.down("ssm"), pytest.raises(Exception, match="Parameter Store"):
        world.parameter_event("main")
    # When it arrives again
    world.parameter_event("main")
    # Then the account is kept
    assert world.wechat.accepts(token(world))


def test_a_renewal_that_reads_an_old_record_applies_the_newest(world: World) -> None:
    # Given a changed record that is in force, and a ticket that is due
    world.add_account("main")
    old = world.ssm.get_parameters(**asked("main"))
    world.put_parameter("main", record(tickets=["jsapi"]))
    world.clock.sleep(200)
    # When the guard's read shows the version before
    get_parameters, stale = world.ssm.get_parameters, iter([old])
    world.ssm.get_parameters = lambda **asked: next(stale, None) or get_parameters(**asked)
    world.wake("guard")
    # Then the newest is in force, and its ticket is served
    assert read(world, "/v1/accounts/main/tickets/jsapi")[0] == 200


def test_a_renewal_that_reads_no_record_drops_no_account(world: World) -> None:
    # Given an account whose token is due
    world.add_account("main")
    world.clock.sleep(6660)
    # When Parameter Store does not show its record at that moment
    unreadable(world, 1)
    world.wake("guard")
    # Then it is kept, and has a token
    assert world.wechat.accepts(token(world))


def deleted_at(world: World, call: int, account: str) -> bool:
    """Deliver an account's event, and delete its parameter at the so-manieth call to AWS, if there are so many."""
    calls, deleted = itertools.count(1), []

    def delete(_operation: str, _: bytes) -> None:
        if next(calls) == call:
            world.before_aws = None
            deleted.append(world.delete_parameter(account))

    world.before_aws = delete
    world.parameter_event(account)
    world.before_aws = None
    return bool(deleted)


def test_a_deletion_during_an_enrolment_leaves_nothing(world: World) -> None:
    for call in itertools.count(1):
        # Given a new account whose parameter is deleted while it is enrolled
        name, appid = f"main-{call}", f"wx-{call}"
        world.wechat.add_app(appid, SECRET)
        put_without_event(world, name, record(appid=appid))
        if not deleted_at(world, call, name):
            break
        # When its appid is added under another name
        world.put_parameter(f"heir-{call}", record(appid=appid))
        world.clock.sleep(60)
        world.wake("guard")
        # Then that is kept, and nothing of the first is left
        assert world.wechat.accepts(token(world, f"heir-{call}")), f"deleted at call {call}"
        assert f"credential#{name}" not in due(world), f"deleted at call {call}"
        assert name not in accounts(world), f"deleted at call {call}"
    assert call > 5


def test_a_superseded_change_that_cannot_be_read_comes_again(world: World) -> None:
    # Given a live token, and a wrong new secret that WeChat is being asked about
    world.add_account("main")
    world.clock.sleep(1000)
    world.secrets.add(WRONG_SECRET)
    put_without_event(world, "main", record(secret=WRONG_SECRET))

    def change_again() -> None:
        # When another instance applies the corrected record meanwhile, and then Parameter Store cannot be reached
        world.put_parameter("main", record())
        world.before_aws = refuse

    def refuse(operation: str, _: bytes) -> None:
        if operation.startswith("ssm."):
            raise EndpointConnectionError(endpoint_url=f"https://{operation}.invalid/")

    world.during_call = change_again
    # Then the event is to be delivered again
    with pytest.raises(KeeperError):
        world.parameter_event("main")
    # And then health shows what WeChat says of the record in force
    world.before_aws = None
    world.parameter_event("main")
    assert world.health()["last_error"] is None


def test_an_account_added_during_a_tick_is_checked_once(world: World) -> None:
    # Given an account whose token the main tick renews
    world.add_account("main")
    world.clock.sleep(6600)
    # When another is added meanwhile
    world.during_call = lambda: world.add_account("other", appid=OTHER_APPID)
    world.wake("tick")
    # Then the tick does not apply its record once more
    assert [call.path for call in world.wechat.calls if call.account == OTHER_APPID] == [TOKEN]


def test_a_sync_that_could_not_read_a_record_goes_on(world: World) -> None:
    # Given a new account, whose event was lost, and a tick that can list the records but not read them
    world.wechat.add_app(APPID, SECRET)
    put_without_event(world, "main", record())

    def throttled(operation: str, _: bytes) -> None:
        if operation == "ssm.GetParameters":
            raise EndpointConnectionError(endpoint_url="https://ssm.invalid/")

    world.before_aws = throttled
    world.wake("tick")
    world.before_aws = None
    # When the guard fires a minute later
    world.clock.sleep(60)
    world.wake("guard")
    # Then the account is kept
    assert world.wechat.accepts(token(world))


def test_a_stale_read_after_a_change_does_no_harm(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an account, and a Parameter Store that shows its changed record, and then once the one before
    world.add_account("main")
    read, old = world.ssm.get_parameters, world.ssm.get_parameters(**asked("main"))
    world.clock.sleep(300)
    shown = iter([None, old])
    monkeypatch.setattr(world.ssm, "get_parameters", lambda **asked: next(shown, None) or read(**asked))
    # When the record's event arrives
    summary = world.put_parameter("main", record(tickets=["jsapi"]))
    # Then what is new in it is fetched
    assert [each["credential"] for each in summary["renewed"]] == ["jsapi"]


def test_a_record_that_is_applied_need_not_be_read_again(world: World) -> None:
    # Given a new record, and a Parameter Store that cannot be read a second time
    reads = itertools.count()

    def fail(operation: str, _: bytes) -> None:
        if operation == "ssm.GetParameters" and next(reads) > 0:
            raise EndpointConnectionError(endpoint_url="https://ssm.invalid/")

    put_without_event(world, "main", record())
    world.wechat.add_app(APPID, SECRET)
    world.before_aws = fail
    # When the main tick fires, then its token is fetched
    assert [each["account"] for each in world.wake("tick")["renewed"]] == ["main"]


def test_a_new_record_that_is_not_shown_twice_is_kept(world: World) -> None:
    # Given a new record, which Parameter Store lists, shows once, and then twice not
    put_without_event(world, "main", record())
    world.wechat.add_app(APPID, SECRET)
    read, nothing = world.ssm.get_parameters, {"Parameters": list[Any]()}
    shown = iter([None, nothing, None, nothing])
    world.ssm.get_parameters = lambda **asked: next(shown, None) or read(**asked)
    # When the main tick fires
    world.wake("tick")
    # Then its token is there
    assert world.wechat.accepts(token(world))
