"""Changing a parameter is all it takes to re-key an account, or to keep other things of it; a wrong record takes nothing away."""

import json
from contextlib import suppress

import pytest
from botocore.exceptions import ClientError

from infra.local.simulated_wechat import Fault
from tests.integration.parameters import (
    NEW_SECRET,
    OTHER_APPID,
    STABLE_TOKEN,
    TOKEN,
    WRONG_SECRET,
    change_secret,
    put_without_event,
    read,
    record,
    token,
)
from tests.support.world import APPID, SECRET, START, World
from token_keeper.errors import KeeperError, RecordChangedError
from token_keeper.model import ACCESS_TOKEN
from token_keeper.refresh import lifecycle
from token_keeper.table import Table

# --- a changed secret


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


def test_a_corp_secret_is_tried_at_once_though_a_write_repeats(world: World) -> None:
    corp = {"corpid": "ww0123456789abcdef", "secret": SECRET}
    world.add_account("main", **corp)
    world.secrets.add(NEW_SECRET)
    world.wechat.change_secret(corp["corpid"], SECRET, NEW_SECRET)

    # Given a DynamoDB that has made the token due with the update before this one, whose response was lost
    def repeat(operation: str, _: bytes) -> None:
        if operation == "dynamodb.UpdateItem":
            world.before_aws = None
            credentials = Table(world.dynamodb, "tokens").credentials
            token = credentials.get("main", ACCESS_TOKEN)
            assert token is not None
            credentials.change(token, lifecycle.reschedule(token, int(world.clock.now)))

    world.before_aws = repeat
    # When a WeCom app's secret is changed
    world.put_parameter("main", json.dumps(corp | {"secret": NEW_SECRET}))
    # Then WeCom has been asked with the new one
    assert world.before_aws is None
    assert world.calls("/cgi-bin/gettoken") == 2


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
