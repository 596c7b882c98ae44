"""Adding, changing or deleting a parameter is all it takes to keep, re-key or drop an account."""

import itertools
import json
from contextlib import suppress
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from infra.local.simulated_wechat import Fault
from tests.support.world import ACCOUNTS_PATH, APPID, SECRET, START, World
from token_keeper.errors import KeeperError, RecordChangedError
from token_keeper.table.accounts import Accounts

TOKEN, STABLE_TOKEN = "/cgi-bin/token", "/cgi-bin/stable_token"
NEW_SECRET, WRONG_SECRET = "fedcba9876543210fedcba9876543210", "00000000000000000000000000000000"
OTHER_APPID = "wxfedcba9876543210"


def record(**changes: object) -> str:
    """An account's record as it stands in its parameter."""
    return json.dumps({"appid": APPID, "secret": SECRET} | changes)


def put_without_event(world: World, name: str, value: str) -> None:
    """Write a parameter whose event is lost."""
    world.ssm.put_parameter(Name=f"{ACCOUNTS_PATH}/{name}", Value=value, Type="SecureString", Overwrite=True)


def read(world: World, path: str = "/v1/accounts/main/access-token") -> tuple[int, dict[str, Any]]:
    """What a reader gets that remembers nothing."""
    return world.get(path, world.api_instance())


def token(world: World, name: str = "main") -> str:
    """The token a reader gets that remembers nothing."""
    status, body = read(world, f"/v1/accounts/{name}/access-token")
    assert status == 200, body
    return str(body["access_token"])


def due(world: World) -> list[str]:
    """The partition keys that the index lists."""
    found = world.dynamodb.query(
        TableName=world.environment["TABLE_NAME"],
        IndexName="due",
        KeyConditionExpression="due = :due",
        ExpressionAttributeValues={":due": {"S": "due"}},
    )
    return [item["pk"]["S"] for item in found["Items"]]


def accounts(world: World) -> list[str]:
    """The accounts that are kept."""
    return [item["account"] for item in world.get("/v1/accounts")[1]["accounts"]]


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


def unreadable(world: World, reads: int) -> None:
    """Parameter Store shows no parameter to that many of the next reads."""
    get_parameters, left = world.ssm.get_parameters, itertools.count(1)

    def empty(**asked: Any) -> Any:
        found = get_parameters(**asked)
        return found if next(left) > reads else {**found, "Parameters": []}

    world.ssm.get_parameters = empty


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
    get_parameters, old = world.ssm.get_parameters, iter([world.ssm.get_parameters(**_asked("main"))])
    world.ssm.get_parameters = lambda **asked: next(old, None) or get_parameters(**asked)
    # When its event arrives
    world.put_parameter("main", record(tickets=["jsapi"]))
    # Then the change is applied
    assert read(world, "/v1/accounts/main/tickets/jsapi")[0] == 200


def _asked(name: str) -> dict[str, Any]:
    return {"Names": [f"{ACCOUNTS_PATH}/{name}"], "WithDecryption": True}


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


# --- a changed secret


def change_secret(world: World, new: str = NEW_SECRET) -> None:
    """The account's secret is reset on WeChat's platform."""
    world.secrets.add(new)
    world.wechat.change_secret(APPID, SECRET, new)


@pytest.mark.parametrize("endpoint", ["token", "stable_token"])
def test_a_changed_secret_does_not_rotate_a_live_token(world: World, endpoint: str) -> None:
    world.add_account("main", endpoint=endpoint)
    world.clock.sleep(1000)
    live = token(world)
    fetched, checked = world.calls(TOKEN), world.calls(STABLE_TOKEN)
    # When its secret is changed, at WeChat and in its record
    change_secret(world)
    world.put_parameter("main", record(secret=NEW_SECRET, endpoint=endpoint))
    # Then the new one is checked at once with a call that rotates nothing
    assert (world.calls(TOKEN), world.calls(STABLE_TOKEN)) == (fetched, checked + 1)
    assert world.health()["state"] == "fresh"
    # And the live token goes on
    assert token(world) == live
    assert world.wechat.accepts(live)


def test_an_event_that_comes_twice_leaves_the_record_in_force(world: World) -> None:
    # Given a record in force
    world.add_account("main")
    world.clock.sleep(1000)
    versions: list[str | None] = []
    # When its event comes again, and WeChat is asked about it
    world.during_call = lambda: versions.append(world.get("/v1/accounts/main")[1]["record_version"])
    world.parameter_event("main")
    # Then it stays in force meanwhile
    assert versions
    assert None not in versions


def test_a_superseded_wrong_secret_leaves_no_error(world: World) -> None:
    # Given a live token, and a wrong new secret that WeChat is being asked about
    world.add_account("main")
    world.clock.sleep(1000)
    world.secrets.add(WRONG_SECRET)
    # When another instance applies the corrected record meanwhile
    world.during_call = lambda: world.put_parameter("main", record())
    world.put_parameter("main", record(secret=WRONG_SECRET))
    # Then health shows what WeChat says of the record in force
    health = world.health()
    assert (health["state"], health["last_error"]) == ("fresh", None)


@pytest.mark.parametrize("event_arrives", [True, False])
def test_a_wrong_new_secret_shows_while_the_live_token_is_served(world: World, event_arrives: bool) -> None:
    world.add_account("main")
    live = token(world)
    world.secrets.add(WRONG_SECRET)
    # When the record gets a secret that WeChat does not know
    put_without_event(world, "main", record(secret=WRONG_SECRET))
    summary = world.parameter_event("main") if event_arrives else world.wake("tick")
    # Then it is a failure in the summary, and health says so, and what to do
    (failed,) = summary["failed"]
    assert (failed["account"], failed["class"], failed["errcode"]) == ("main", "configuration", 40125)
    health = world.health()
    assert health["state"] == "failing"
    assert (health["last_error"]["class"], health["last_error"]["errcode"]) == ("configuration", 40125)
    assert "set-secret" in health["last_error"]["remedy"]
    # And the live token is still served
    assert token(world) == live
    assert world.wechat.accepts(live)
    # When it is corrected
    world.put_parameter("main", record())
    # Then all is well, without a rotation
    assert (world.health()["state"], world.health()["last_error"]) == ("fresh", None)
    assert token(world) == live
    assert world.calls() == 1


def test_a_changed_corp_secret_is_tried_at_once(world: World) -> None:
    corp = {"corpid": "ww0123456789abcdef", "secret": SECRET}
    world.add_account("main", **corp)
    live = token(world)
    # When a WeCom app's secret is changed
    world.secrets.add(NEW_SECRET)
    world.wechat.change_secret(corp["corpid"], SECRET, NEW_SECRET)
    world.put_parameter("main", json.dumps(corp | {"secret": NEW_SECRET}))
    # Then WeCom has been asked with the new one, and has repeated the live token
    assert world.calls("/cgi-bin/gettoken") == 2
    assert token(world) == live
    assert world.health()["state"] == "fresh"


def test_a_wrong_corp_secret_shows_at_once(world: World) -> None:
    corp = {"corpid": "ww0123456789abcdef", "secret": SECRET}
    world.add_account("main", **corp)
    live = token(world)
    world.secrets.add(WRONG_SECRET)
    # When a WeCom app's record gets a secret that WeCom does not know
    world.put_parameter("main", json.dumps(corp | {"secret": WRONG_SECRET}))
    # Then its health says so, and the live token is served
    assert world.health()["last_error"]["class"] == "configuration"
    assert token(world) == live


@pytest.mark.parametrize("endpoint", ["token", "stable_token"])
def test_a_reset_secret_that_ends_the_token_is_noticed(world: World, endpoint: str) -> None:
    world.add_account("main", endpoint=endpoint)
    world.clock.sleep(1000)
    # Given an AppSecret that was reset, which has ended the live token
    change_secret(world)
    world.wechat.kill(token(world))
    # When the record gets the new one
    world.put_parameter("main", record(secret=NEW_SECRET, endpoint=endpoint))
    # Then readers get a token that works, and no other client is blamed
    assert world.wechat.accepts(token(world))
    assert world.health()["foreign_rotations"] is None


def test_a_wrong_new_secret_still_shows_when_the_renewal_fails(world: World) -> None:
    world.add_account("main")
    world.secrets.add(WRONG_SECRET)
    world.put_parameter("main", record(secret=WRONG_SECRET))
    # When the renewal comes
    world.clock.now = START + 110 * 60
    summary = world.wake("tick")
    # Then it fails with the same cause, and is made good as soon as the secret is right
    assert summary["failed"][0]["errcode"] == 40125
    assert len(world.put_parameter("main", record())["renewed"]) == 1
    assert world.health()["state"] == "fresh"


@pytest.mark.parametrize("fault", [Fault.error(-1), Fault.drop_before()])
def test_a_check_that_did_not_work_out_leaves_no_lasting_alarm(world: World, fault: Fault) -> None:
    world.add_account("main")
    # Given a WeChat that happens to be busy when the new, right secret is checked
    change_secret(world)
    world.wechat.fail(STABLE_TOKEN, fault)
    with suppress(KeeperError):  # the event may be asked for again
        world.put_parameter("main", record(secret=NEW_SECRET))
    # When ten quiet minutes have passed
    for _ in range(10):
        world.clock.sleep(60)
        world.wake("guard")
    # Then nothing is reported as failing: nothing is
    assert world.health()["state"] == "fresh"


@pytest.mark.parametrize("since", ["never worked", "worked before"])
def test_a_corrected_record_is_tried_at_once(world: World, since: str) -> None:
    # Given an account that fails for its secret, and is to be tried again much later
    world.wechat.add_app(APPID, SECRET)
    world.secrets.add(WRONG_SECRET)
    if since == "worked before":
        world.put_parameter("main", record())
        change_secret(world)
        world.clock.sleep(7300)
        world.wake("guard")
        world.wechat.change_secret(APPID, NEW_SECRET, SECRET)
    else:
        world.put_parameter("main", record(secret=WRONG_SECRET))
    assert read(world)[0] == 503
    # When its record is corrected
    world.clock.sleep(1)
    summary = world.put_parameter("main", record())
    # Then its token is there at once
    assert len(summary["renewed"]) == 1
    assert world.wechat.accepts(token(world))
    assert world.health()["state"] == "fresh"


# --- another appid, another endpoint, other tickets


def test_another_appid_is_another_token(world: World) -> None:
    world.add_account("main")
    old = token(world)
    # When the record gets another appid
    world.add_account("main", appid=OTHER_APPID, secret=NEW_SECRET)
    # Then readers get its token, and never the old one's again
    assert token(world) != old
    assert world.get("/v1/accounts/main")[1]["appid"] == OTHER_APPID
    # And the old appid may be kept under another name
    world.put_parameter("second", record())
    assert world.wechat.accepts(token(world, "second"))


def test_the_old_appids_token_is_not_served_for_the_new_appid(world: World) -> None:
    world.add_account("main")
    # When the record gets another appid that fails
    world.wechat.fail(TOKEN, Fault.error(-1), account=OTHER_APPID)
    world.add_account("main", appid=OTHER_APPID)
    # Then readers get nothing: the old value belongs to another appid
    status, body = read(world)
    assert (status, body["code"]) == (503, "no_valid_value")


@pytest.mark.parametrize(("before", "after"), [("token", "stable_token"), ("stable_token", "token")])
def test_another_endpoint_is_asked_at_once(world: World, before: str, after: str) -> None:
    world.add_account("main", endpoint=before)
    old = token(world)
    # When the record names the other endpoint
    world.put_parameter("main", record(endpoint=after))
    # Then readers get that one's token by its rules, and the promises made of the old one hold
    assert token(world) != old
    assert world.get("/v1/accounts/main")[1]["endpoint"] == after
    assert world.wechat.accepts(token(world))
    assert world.wechat.accepts(old)
    expected = {"token": START + 6660, "stable_token": START + 6930}[after]
    world.clock.now = expected - 1
    assert not world.wake("guard")["renewed"]
    world.clock.now = expected
    assert world.wake("guard")["renewed"]


def test_a_ticket_is_kept_from_when_the_record_names_it(world: World) -> None:
    world.add_account("main")
    live = token(world)
    assert read(world, "/v1/accounts/main/tickets/jsapi")[1]["code"] == "unknown_credential"
    # When a ticket is added to the record
    world.put_parameter("main", record(tickets=["jsapi"]))
    # Then it is there, and the token was not rotated for it
    status, body = read(world, "/v1/accounts/main/tickets/jsapi")
    assert status == 200
    assert world.wechat.accepts(body["ticket"])
    assert world.health("main", "jsapi")["state"] == "fresh"
    assert token(world) == live
    # When it is removed again
    world.put_parameter("main", record())
    # Then it is not served any more
    status, body = read(world, "/v1/accounts/main/tickets/jsapi")
    assert (status, body["code"]) == (404, "unknown_credential")
    names = [item["credential"] for item in world.get("/v1/accounts/main")[1]["credentials"]]
    assert names == ["access_token"]


def test_tickets_are_kept_as_tokens_are(world: World) -> None:
    # Given an account with tickets
    world.add_account("main", tickets=["jsapi", "wx_card"])
    # When the schedules fire for four hours
    for minute in range(5, 241, 5):
        world.clock.now = START + 60 * minute
        world.wake("tick" if minute % 110 == 0 else "guard")
    # Then token and tickets still work
    world.restart()
    assert world.wechat.accepts(world.token())
    for ticket in ("jsapi", "wx_card"):
        assert world.wechat.accepts(world.get(f"/v1/accounts/main/tickets/{ticket}")[1]["ticket"])


def test_a_change_is_applied_after_an_abandoned_lease(world: World) -> None:
    world.add_account("main")
    change_secret(world)
    world.clock.sleep(6660)

    def die() -> None:
        raise SystemExit("killed")

    # Given a renewal that died
    world.during_call = die
    world.wechat.fail(TOKEN, Fault.drop_after())
    with pytest.raises(SystemExit):
        world.wake("guard")
    died_at = world.clock()
    # When the record changes, which waits a quarter of a minute for it and not longer
    with pytest.raises(RecordChangedError):
        world.put_parameter("main", record(secret=NEW_SECRET))
    assert world.clock() <= died_at + 25
    # Then the guard after the lease renews with the new one, while the old token works
    world.clock.now = died_at + 60
    world.wake("guard")
    assert world.wechat.accepts(token(world))
    assert world.health()["state"] == "fresh"


# --- records that cannot be used

INVALID = {
    "just the secret": ("~", "JSON"),
    "no secret": ('{"appid": "wx1"}', "secret"),
    "the secret as a field's name": ('{"appid": "wx1", "secret": "~", "~": 1}', "unknown field"),
    "a blank secret": ('{"appid": "wx1", "secret": ""}', "secret"),
    "a number as secret": ('{"appid": "wx1", "secret": 55555555}', "secret"),
    "the secret as appid": ('{"appid": "~ ~", "secret": "~"}', "appid"),
    "an unknown ticket": ('{"appid": "wx1", "secret": "~", "tickets": ["~"]}', "tickets"),
}
"""Some of what is no record; the whole table stands beside the adapter's tests."""


@pytest.mark.parametrize(("value", "says"), INVALID.values(), ids=INVALID)
def test_an_invalid_record_shows_and_leaves_others_alone(world: World, value: str, says: str) -> None:
    world.add_account("good", appid=OTHER_APPID)
    world.secrets |= {SECRET, "55555555"}
    # When a parameter holds no usable record
    put_without_event(world, "main", value.replace("~", SECRET))
    world.parameter_event("main")
    world.wake("tick")
    # Then its health says what is wrong
    health = world.health()
    assert health["state"] == "never_fetched"
    assert health["last_error"]["class"] == "configuration"
    assert says in health["last_error"]["errmsg"]
    assert health["last_error"]["remedy"]
    # And the other account is well, and WeChat was not asked with it
    assert world.health("good")["state"] == "fresh"
    assert {call.account for call in world.wechat.calls} == {OTHER_APPID}
    # And it is kept as soon as it is right
    world.wechat.add_app(APPID, SECRET)
    world.put_parameter("main", record())
    assert world.wechat.accepts(token(world))
    assert world.health()["last_error"] is None


def test_a_record_that_becomes_invalid_takes_no_live_token_away(world: World) -> None:
    world.add_account("main")
    live = token(world)
    # When an operator breaks its record
    world.put_parameter("main", f'{{"appid": "{APPID}"')
    # Then health says what is wrong and the live token is served
    assert (world.health()["state"], world.health()["last_error"]["class"]) == ("failing", "configuration")
    assert token(world) == live
    # And still says so when the renewal has failed for it
    world.clock.now = START + 6660
    assert world.wake("guard")["failed"]
    assert "JSON" in world.health()["last_error"]["errmsg"]
    assert token(world) == live
    # When it is mended
    world.put_parameter("main", record())
    # Then it is well again
    assert world.health()["state"] == "fresh"
    assert world.wechat.accepts(token(world))


def test_a_failing_record_that_becomes_invalid_shows_at_once(world: World) -> None:
    # Given an account that fails for another reason
    world.wechat.add_app(APPID, SECRET)
    world.put_parameter("main", record(secret=WRONG_SECRET))
    assert world.health()["last_error"]["errcode"] == 40125
    # When an operator breaks its record on top of it
    world.put_parameter("main", f'{{"appid": "{APPID}"')
    # Then health says what is wrong now
    assert "JSON" in world.health()["last_error"]["errmsg"]


@pytest.mark.moto
def test_an_undecryptable_parameter_breaks_no_other_account(world: World) -> None:
    for name in ("a", "broken", "z"):
        world.add_account(name, appid=f"wx-{name}")
    world.clock.now = START + 110 * 60

    def refuse(operation: str, sent: bytes) -> None:
        if operation == "ssm.GetParameters" and b"broken" in sent:
            message = "The ciphertext refers to a key that does not exist"
            raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": message}}, operation)

    # Given an account whose parameter is encrypted with a key that we may not use: each request with it is refused
    world.before_aws = refuse
    # When the main tick fires
    world.wake("tick")
    # Then only that account fails
    assert [world.health(name)["state"] for name in ("a", "broken", "z")] == ["fresh", "failing", "fresh"]
    assert world.wechat.accepts(token(world, "broken"))


# --- what may be kept twice, and what may not


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
    old = world.ssm.get_parameters(**_asked("main"))
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
    with pytest.raises(KeeperError, match="Parameter Store"):
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
