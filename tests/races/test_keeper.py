"""Whole wake-ups and requests at one moment: the real handlers, DynamoDB's own engine, a WeChat that counts."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from infra.local.simulated_wechat import Fault
from tests.races.race import RUNNERS, RaceWorld
from tests.support.world import ACCOUNTS_PATH, APPID, SECRET
from token_keeper.model import Kind, fingerprint

pytestmark = pytest.mark.xdist_group("dynamodb-local")

TICK, GUARD = {"wake": "tick"}, {"wake": "guard"}
RENEW = {"renew": {"account": "main", "credential": "access_token"}}
ROTATE = {"renew": {"account": "main", "credential": "access_token", "rotate": True}}
PATH = "/v1/accounts/main/access-token"
TOKEN_API, STABLE_TOKEN_API, CHECK_API = "/cgi-bin/token", "/cgi-bin/stable_token", "/cgi-bin/get_api_domain_ip"

each_endpoint = pytest.mark.parametrize(
    ("endpoint", "path"), [(Kind.TOKEN, TOKEN_API), (Kind.STABLE_TOKEN, STABLE_TOKEN_API)], ids=str
)
each_crowd = pytest.mark.parametrize("crowd", [RUNNERS, pytest.param(200, marks=pytest.mark.long)])
DUE_AFTER = {Kind.TOKEN: 6660, Kind.STABLE_TOKEN: 6930}
"""Seconds after it was fetched."""

type Summary = dict[str, Any]


def parameter_event(account: str = "main") -> dict[str, Any]:
    """Parameter Store's event of a change of this account."""
    detail = {"name": f"{ACCOUNTS_PATH}/{account}", "operation": "Update", "type": "SecureString"}
    return {"source": "aws.ssm", "detail-type": "Parameter Store Change", "detail": detail}


def put_parameter(world: RaceWorld, account: str = "main", **record: str) -> None:
    """Write an account's parameter, and deliver no event."""
    value = json.dumps({"appid": APPID, "secret": SECRET} | record)
    world.ssm.put_parameter(Name=f"{ACCOUNTS_PATH}/{account}", Value=value, Type="SecureString", Overwrite=True)


def renewed(summaries: list[Summary]) -> list[str]:
    """The fingerprints of what was renewed."""
    return [each["fingerprint"] for summary in summaries for each in summary["renewed"]]


def failed(summaries: list[Summary]) -> list[Any]:
    return [each for summary in summaries for each in summary["failed"]]


@each_endpoint
def test_a_due_token_is_renewed_once_however_many_wake_up(world: RaceWorld, endpoint: Kind, path: str) -> None:
    # Given an account with a token
    world.add_account(endpoint=endpoint)
    for event in (GUARD, TICK, RENEW):
        first, calls = world.token(), world.calls(path)
        # When it is due, and many are woken at one moment
        world.clock.sleep(DUE_AFTER[endpoint])
        summaries = world.invoke_at_once(*[event] * RUNNERS)
        # Then WeChat is called once, by the one that renews it; the others have nothing to do, or leave it to that one
        assert world.calls(path) == calls + 1
        (new,) = renewed(summaries)
        assert failed(summaries) == []
        # And readers get the new token
        second = world.token()
        assert fingerprint(second) == new
        assert second != first
        assert world.wechat.accepts(second)


@pytest.mark.parametrize("event", [TICK, GUARD], ids=["tick", "guard"])
def test_a_refused_renewal_is_tried_once_by_simultaneous_runs(world: RaceWorld, event: dict[str, Any]) -> None:
    # Given a due token, and a WeChat that refuses
    world.add_account()
    first = world.token()
    world.clock.sleep(DUE_AFTER[Kind.TOKEN])
    world.wechat.fail(TOKEN_API, *[Fault.error(-1)] * RUNNERS)
    # When many are woken at one moment, and one somewhat later
    summaries = [*world.invoke_at_once(*[event] * RUNNERS), world.invoke(event)]
    # Then one has tried, and it is tried again a minute later
    assert world.calls() == 2
    (failure,) = failed(summaries)
    assert failure["errcode"] == -1
    # And the token lives on
    assert world.token() == first


def test_a_token_is_rotated_once_for_many_simultaneous_requests(world: RaceWorld) -> None:
    # Given a live token that is old enough to be rotated
    world.add_account()
    first = world.token()
    world.clock.sleep(30)
    # When many ask to rotate it at one moment
    summaries = world.invoke_at_once(*[ROTATE] * RUNNERS)
    # Then it is rotated once, so that the old one lives on for as long as readers were promised
    assert len(renewed(summaries)) == 1
    assert world.calls() == 2
    assert world.wechat.accepts(first)


@each_endpoint
def test_readers_that_find_no_value_have_it_fetched_once(world: RaceWorld, endpoint: Kind, path: str) -> None:
    # Given an account whose first renewal failed a minute ago
    world.wechat.fail(path, Fault.error(-1))
    world.add_account(endpoint=endpoint)
    world.clock.sleep(60)
    # When many readers ask at one moment
    responses = read_at_once(world)
    # Then WeChat is called once, and all get what came
    assert world.calls(path) == 2
    assert [status for status, _ in responses] == [200] * RUNNERS
    (token,) = {body["access_token"] for _, body in responses}
    assert world.wechat.accepts(token)


def test_readers_wait_for_a_renewal_that_another_makes(world: RaceWorld) -> None:
    # Given an account without a value, and a WeChat that takes four seconds to respond
    world.wechat.fail(TOKEN_API, Fault.error(-1), Fault.slow(4))
    world.add_account()
    world.clock.sleep(60)
    # When readers ask at one moment
    responses = read_at_once(world, 8)
    # Then WeChat is called once, and all get what came
    assert world.calls() == 2
    assert [status for status, _ in responses] == [200] * 8
    assert len({body["access_token"] for _, body in responses}) == 1


def test_readers_wait_no_longer_than_their_patience(world: RaceWorld) -> None:
    # Given an account without a value, and a WeChat that takes seven seconds to respond
    world.wechat.fail(TOKEN_API, Fault.error(-1), Fault.slow(7))
    world.add_account()
    world.clock.sleep(60)
    # When readers ask at one moment
    responses = read_at_once(world, 8)
    # Then WeChat is called once; the one that asked for the renewal gets what came, the others learn why there is none
    assert world.calls() == 2
    assert sorted(status for status, _ in responses) == [200] + [503] * 7


def test_readers_of_a_lost_credential_have_it_fetched_once(world: RaceWorld) -> None:
    # Given an account whose credential TTL expiry has deleted
    world.add_account()
    key = {"pk": {"S": "credential#main"}, "sk": {"S": "access_token"}}
    world.dynamodb.delete_item(TableName=world.environment["TABLE_NAME"], Key=key)
    # When many readers ask at one moment
    responses = read_at_once(world)
    # Then WeChat is called once, and all get what came
    assert world.calls() == 2
    assert [status for status, _ in responses] == [200] * RUNNERS
    (token,) = {body["access_token"] for _, body in responses}
    assert world.wechat.accepts(token)


def test_many_reports_of_a_live_token_check_it_once(world: RaceWorld) -> None:
    # Given a live token
    world.add_account()
    world.clock.sleep(60)
    token = world.token()
    # When many report at one moment that it was refused
    responses = report_at_once(world, token)
    # Then WeChat is asked once about it, and fetched is nothing
    assert (world.calls(CHECK_API), world.calls()) == (1, 1)
    # And all responses say that it works
    assert {(status, body["outcome"], body["access_token"]) for status, body in responses} == {
        (200, "still_valid", token)
    }


def test_a_report_that_is_held_up_needs_no_second_check(world: RaceWorld) -> None:
    # Given a report of a live token, held up before anything is asked of WeChat
    world.add_account()
    world.clock.sleep(60)
    token = world.token()
    held = world.hold_aws("dynamodb.UpdateItem")
    with world.meanwhile({"verify": {"account": "main", "fingerprint": fingerprint(token)}}) as summary_of_first:
        held.wait_until_reached()
        # When another report has the token checked, and then the first goes on
        world.report(access_token=token)
        held.release()
        # Then that check serves both
        (verified,) = summary_of_first()["verified"]
    assert verified["outcome"] == "still_valid"
    assert world.calls(CHECK_API) == 1


def test_many_reports_of_a_dead_token_replace_it_once(world: RaceWorld) -> None:
    # Given a token that died before its time
    world.add_account()
    world.clock.sleep(60)
    token = world.token()
    world.wechat.kill(token)
    # When many report it at one moment
    responses = report_at_once(world, token)
    # Then WeChat is asked once about it, and once for a new one
    assert (world.calls(CHECK_API), world.calls(), world.calls(STABLE_TOKEN_API)) == (1, 1, 1)
    # And all get that one
    assert {status for status, _ in responses} == {200}
    (new,) = {body["access_token"] for _, body in responses}
    assert world.wechat.accepts(new)
    assert {body["outcome"] for _, body in responses} <= {"replaced", "superseded"}


@each_crowd
@pytest.mark.parametrize("how", ["killed", "expired"])
def test_a_crowd_of_readers_and_reporters_costs_one_token(world: RaceWorld, how: str, crowd: int) -> None:
    # Given a token that died before its time, or one that expired because it was not renewed
    world.add_account()
    world.clock.sleep(60)
    token = world.token()
    if how == "killed":
        world.wechat.kill(token)
    else:
        world.clock.sleep(7200)
    # When a crowd at several instances reads and reports it at one moment
    instances = [world.api_instance() for _ in range(8)]
    reads = [partial(world.get, PATH, instances[n % 8]) for n in range(crowd)]
    reports = [partial(world.report, instance=instances[n % 8], access_token=token) for n in range(crowd)]
    responses = world.race(*(call for pair in zip(reads, reports, strict=True) for call in pair))
    # Then WeChat mints one token, whatever is asked of it besides
    assert world.calls() + world.calls(STABLE_TOKEN_API) == 2
    assert world.calls(CHECK_API) == (1 if how == "killed" else 0)
    # And all who reported have it; so do readers, where it could be known that the old one is dead
    assert {status for status, _ in responses} == {200}
    (new,) = {body["access_token"] for _, body in responses[1::2]}
    assert new != token
    assert world.wechat.accepts(new)
    assert {body["access_token"] for _, body in responses[::2]} <= ({token, new} if how == "killed" else {new})


@each_crowd
def test_reports_during_a_check_hold_no_invocation(world: RaceWorld, crowd: int) -> None:
    # Given a check of a live token that hangs
    world.add_account()
    world.clock.sleep(60)
    token = world.token()
    held = world.slow_wechat.hold_response()
    with world.meanwhile({"verify": {"account": "main", "fingerprint": fingerprint(token)}}) as summary_of_first:
        held.wait_until_reached()
        invoked = len(world.events)
        # When many clients report the token at one moment
        instances = [world.api_instance() for _ in range(8)]
        responses = world.race(
            *(partial(world.report, instance=instances[n % 8], access_token=token) for n in range(crowd))
        )
        # Then RefreshFunction is not invoked once for them, and each gets the current token
        assert len(world.events) == invoked
        assert {(status, body["outcome"], body["access_token"]) for status, body in responses} == {
            (200, "unverified", token)
        }
        held.release()
        summary_of_first()
    # And when the check has ended, its result serves the next ones without an invocation
    assert world.report(access_token=token)[1]["outcome"] == "still_valid"
    assert len(world.events) == invoked
    assert world.calls(CHECK_API) == 1


def test_a_promise_made_while_the_token_is_renewed_is_kept(world: RaceWorld) -> None:
    world.add_account()
    for _ in range(3):
        # Given a token that is due
        world.clock.sleep(DUE_AFTER[Kind.TOKEN])
        # When readers read it while it is renewed
        _, *responses = world.race(partial(world.wake, "guard"), *readers(world, RUNNERS - 1))
        # Then whatever they got works for as long as they were promised
        now = world.clock.now
        assert {status for status, _ in responses} == {200}
        promises = sorted((now + body["expires_in"] - 1, body["access_token"]) for _, body in responses)
        for promised_until, token in promises:
            world.clock.now = max(now, promised_until)
            assert world.wechat.accepts(token)
        world.clock.now = now


def test_a_late_response_never_replaces_a_newer_token(world: RaceWorld) -> None:
    # Given a renewal that WeChat has carried out, and whose response does not arrive
    world.add_account()
    world.clock.sleep(DUE_AFTER[Kind.TOKEN])
    held = world.slow_wechat.hold_response()
    with world.meanwhile(GUARD) as summary_of_first:
        held.wait_until_reached()
        # When its lease ends and the next guard renews
        world.clock.sleep(60)
        (newer,) = renewed([world.wake("guard")])
        # And then the response arrives
        held.release()
        # Then it is not published
        assert renewed([summary_of_first()]) == []
    token = world.token()
    assert fingerprint(token) == newer
    assert world.wechat.accepts(token)


def test_a_late_failure_is_not_told_of_a_newer_token(world: RaceWorld) -> None:
    # Given a renewal that WeChat refuses, with a response that does not arrive
    world.add_account()
    world.clock.sleep(DUE_AFTER[Kind.TOKEN])
    world.wechat.fail(TOKEN_API, Fault.error(40013))
    held = world.slow_wechat.hold_response()
    with world.meanwhile(GUARD) as summary_of_first:
        held.wait_until_reached()
        # When its lease ends and the next guard renews
        world.clock.sleep(60)
        assert len(renewed([world.wake("guard")])) == 1
        healthy = world.health()
        # And then the refusal arrives
        held.release()
        # Then it says nothing about the new token
        assert failed([summary_of_first()]) == []
    assert world.health() == healthy
    assert healthy["state"] == "fresh"


def test_a_superseded_renewal_that_reaches_wechat_keeps_promises(world: RaceWorld) -> None:
    # Given a renewal whose request is stuck before it reaches WeChat
    world.add_account()
    world.clock.sleep(DUE_AFTER[Kind.TOKEN])
    held = world.slow_wechat.hold_request()
    with world.meanwhile(GUARD) as summary_of_first:
        held.wait_until_reached()
        # When its lease ends and the next guard renews
        world.clock.sleep(60)
        world.wake("guard")
        # And then it reaches WeChat, which replaces that guard's token
        held.release()
        summary_of_first()
    # Then no reader is promised more than what that token has left
    _, body = world.get(PATH)
    world.clock.sleep(body["expires_in"] - 1)
    assert world.wechat.accepts(body["access_token"])


def test_an_account_dropped_while_it_is_renewed_stays_dropped(world: RaceWorld) -> None:
    # Given a renewal under way
    world.add_account()
    world.clock.sleep(DUE_AFTER[Kind.TOKEN])
    held = world.slow_wechat.hold_response()
    with world.meanwhile(GUARD) as summary_of_renewal:
        held.wait_until_reached()
        # When the account is deleted, and then WeChat's response arrives
        world.delete_parameter("main")
        held.release()
        # Then nothing is published
        assert renewed([summary_of_renewal()]) == []
    assert world.get(PATH)[0] == 404
    # And nothing is kept of it but when its appid is free, which is after the lease of that renewal
    items = world.dynamodb.scan(TableName=world.environment["TABLE_NAME"])["Items"]
    assert [item["pk"]["S"] for item in items] == [f"claim#{APPID}"]
    assert int(items[0]["free_at"]["N"]) <= world.clock() + 60


@pytest.mark.parametrize("late", ["published", "failed"])
def test_an_account_created_anew_while_it_is_renewed_begins_anew(world: RaceWorld, late: str) -> None:
    # Given a new account's first renewal under way
    put_parameter(world)
    world.wechat.add_app(APPID, SECRET)
    if late == "failed":
        world.wechat.fail(TOKEN_API, Fault.error(-1))
    held = world.slow_wechat.hold_response()
    with world.meanwhile(parameter_event()) as summary_of_renewal:
        held.wait_until_reached()
        # When the account is deleted and created again, and then WeChat's response arrives
        world.delete_parameter("main")
        (new,) = renewed([world.add_account()])
        held.release()
        # Then it is no concern of the new account
        assert len(summary_of_renewal()["skipped"]) == 1
    assert fingerprint(world.token()) == new
    assert world.health()["last_error"] is None


def test_an_appid_changed_during_a_renewal_gets_its_own_token(world: RaceWorld) -> None:
    # Given a renewal under way
    world.add_account()
    world.clock.sleep(DUE_AFTER[Kind.TOKEN])
    held = world.slow_wechat.hold_response()
    with world.meanwhile(GUARD) as summary_of_renewal:
        held.wait_until_reached()
        # When the account's record names another appid, and then WeChat's response arrives
        (new,) = renewed([world.add_account(appid="wx1111111111111111")])
        held.release()
        # Then the token of the old appid is not handed out
        assert renewed([summary_of_renewal()]) == []
    assert fingerprint(world.token()) == new


@each_endpoint
def test_a_new_account_is_fetched_once_however_many_hear_of_it(world: RaceWorld, endpoint: Kind, path: str) -> None:
    # Given a new account
    world.wechat.add_app(APPID, SECRET)
    put_parameter(world, endpoint=endpoint)
    # When its event comes many times, and the main schedule fires, at one moment
    half = RUNNERS // 2
    summaries = world.invoke_at_once(*[TICK] * half, *[parameter_event()] * half)
    # Then its token is fetched once
    (new,) = renewed(summaries)
    assert failed(summaries) == []
    token = world.token()
    assert fingerprint(token) == new
    assert world.wechat.accepts(token)
    if endpoint is Kind.TOKEN:  # a stable token is asked for again to check the secret, and stays the same
        assert world.calls(path) == 1
    # And the next tick has nothing to bring in line
    assert world.wake("tick") == {"woken_by": "tick", "renewed": [], "skipped": [], "failed": []}


def test_of_accounts_with_one_appid_exactly_one_is_kept(world: RaceWorld) -> None:
    # Given many accounts with one appid
    world.wechat.add_app(APPID, SECRET)
    names = [f"a{number}" for number in range(RUNNERS)]
    for name in names:
        put_parameter(world, name)
    # When the events of all come at one moment
    summaries = world.invoke_at_once(*map(parameter_event, names))
    # Then one is kept, and WeChat is called for that one only
    (kept,) = [each["account"] for summary in summaries for each in summary["renewed"]]
    assert world.calls() == 1
    assert world.wechat.accepts(world.token(kept))
    # And each of the others fails with the name of the owner
    others = failed(summaries)
    assert len(others) == RUNNERS - 1
    assert all(each["errmsg"].endswith(f"as account {kept}") for each in others)


def test_many_new_accounts_each_get_their_own_token(world: RaceWorld) -> None:
    # Given many new accounts
    names = [f"a{number}" for number in range(RUNNERS)]
    for name in names:
        world.wechat.add_app(f"wx-{name}", SECRET)
        put_parameter(world, name, appid=f"wx-{name}")
    # When the events of all come at one moment, and the main schedule fires
    summaries = world.invoke_at_once(TICK, *map(parameter_event, names))
    # Then each has one token, its own
    assert len(renewed(summaries)) == world.calls() == RUNNERS
    assert failed(summaries) == []
    assert len({world.token(name) for name in names}) == RUNNERS


def test_an_event_with_an_older_record_does_not_undo_a_newer_one(world: RaceWorld) -> None:
    # Given a new account, whose event has read the record and is held up there
    old, new = "wx0000000000000000", "wx1111111111111111"
    for appid in (old, new):
        world.wechat.add_app(appid, SECRET)
    put_parameter(world, appid=old)
    held = world.hold_aws("dynamodb.PutItem")
    with world.meanwhile(parameter_event()):
        held.wait_until_reached()
        # When the record is corrected, the event of that has done its work, and then the first goes on
        put_parameter(world, appid=new)
        world.invoke(parameter_event())
        held.release()
    # Then after the next guard at the latest there is a token, of the record as it is
    world.clock.sleep(60)
    world.wake("guard")
    assert world.wechat.accepts(world.token())
    assert {call.account for call in world.wechat.calls} == {new}


def test_an_event_with_a_deleted_record_does_not_restore_it(world: RaceWorld) -> None:
    # Given a new account, whose event has read the record and is held up there
    world.wechat.add_app(APPID, SECRET)
    put_parameter(world)
    held = world.hold_aws("dynamodb.PutItem")
    with world.meanwhile(parameter_event()):
        held.wait_until_reached()
        # When the account is deleted, the event of that has done its work, and then the first goes on
        world.delete_parameter("main")
        held.release()
    # Then after the next guard at the latest nothing is known of the account
    world.clock.sleep(60)
    world.wake("guard")
    assert world.get(PATH)[0] == 404


def test_a_deletion_event_keeps_what_was_created_meanwhile(world: RaceWorld) -> None:
    # Given a deleted account, whose event has found no record and is held up there
    world.add_account()
    world.ssm.delete_parameter(Name=f"{ACCOUNTS_PATH}/main")
    held = world.hold_aws("dynamodb.GetItem")
    with world.meanwhile(parameter_event()):
        held.wait_until_reached()
        # When the account is created again, the event of that has done its work, and then the first goes on
        put_parameter(world)
        world.invoke(parameter_event())
        held.release()
    # Then after the next guard at the latest there is a token
    world.clock.sleep(60)
    world.wake("guard")
    assert world.wechat.accepts(world.token())


def readers(world: RaceWorld, number: int) -> list[Callable[[], tuple[int, dict[str, Any]]]]:
    """So many cold readers' requests for the token; each returns status and body."""
    return [partial(world.get, PATH, world.api_instance()) for _ in range(number)]


def report_at_once(world: RaceWorld, token: str) -> list[tuple[int, dict[str, Any]]]:
    """Many cold readers get a report of a refused token at one moment; status and body of each response."""
    reports = [partial(world.report, instance=world.api_instance(), access_token=token) for _ in range(RUNNERS)]
    return world.race(*reports)


def read_at_once(world: RaceWorld, number: int = RUNNERS) -> list[tuple[int, dict[str, Any]]]:
    """So many cold readers ask for the token at one moment; status and body of each response."""
    return world.race(*readers(world, number))
