"""Reading over HTTP: an honest promise, a short memory, a last resort, and clear errors."""

import hashlib
import json
import re
import time
from itertools import count
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from infra.local.simulated_wechat import Fault, SimulatedWeChat
from tests.support.world import ACCOUNTS_PATH, APPID, SECRET, START, World
from token_keeper.api.refresh_client import Refresher
from token_keeper.errors import RefresherUnavailableError

TOKEN_PATH = "/v1/accounts/main/access-token"
TOKEN = "/cgi-bin/token"
WRONG_SECRET = "00000000000000000000000000000000"
MEMORY = 15
"""Seconds a reader may remember a value."""


def read(world: World, path: str = TOKEN_PATH) -> tuple[int, dict[str, Any]]:
    """What a reader gets that remembers nothing."""
    return world.get(path, world.api_instance())


def enrol_without_a_value(world: World, *faults: Fault) -> None:
    """An account whose first fetch failed."""
    world.wechat.fail(TOKEN, *(faults or [Fault.error(-1)]))
    world.add_account("main")


# --- the response


def test_the_response_says_what_it_is_and_how_long_it_is_valid(world: World) -> None:
    world.add_account("main")
    # When its token is read
    status, body, headers = world.request(TOKEN_PATH)
    # Then the response has the contract's fields, and may not be stored on the way
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert headers["Cache-Control"] == "no-store"
    value = body.pop("access_token")
    assert world.wechat.accepts(value)
    assert body == {
        "account": "main",
        "credential": "access_token",
        "expires_in": 6835,
        "expires_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(START + 6835)),
        "cache_for": 60,
        "fingerprint": hashlib.sha256(value.encode()).hexdigest()[:16],
        "stale": False,
    }


def test_a_ticket_is_handed_out_like_a_token(world: World) -> None:
    world.add_account("main", tickets=["jsapi"])
    # When its ticket is read
    status, body, headers = world.request("/v1/accounts/main/tickets/jsapi")
    # Then the response has the same fields, and the ticket
    assert (status, headers["Cache-Control"]) == (200, "no-store")
    assert world.wechat.accepts(body.pop("ticket"))
    assert (body["credential"], body["expires_in"], body["cache_for"]) == ("jsapi", 145, 60)
    assert set(body) == {"account", "credential", "expires_in", "expires_at", "cache_for", "fingerprint", "stale"}


PROMISES = {
    "token": [(0, 6835), (1000, 5835), (6539, 296), (6540, 295), (6600, 295), (6900, 295), (7194, 1), (7199, 1)],
    "stable_token": [(0, 7195), (6600, 595), (6929, 266), (7150, 45), (7199, 1)],
}
"""Seconds since the fetch, and what is promised then."""


@pytest.mark.parametrize("endpoint", PROMISES)
def test_expires_in_is_a_promise_and_not_wechats_number(world: World, endpoint: str) -> None:
    world.add_account("main", endpoint=endpoint)
    for seconds, expires_in in PROMISES[endpoint]:
        # When it is read some time after it was fetched, no schedule having fired
        world.clock.now = START + seconds
        status, body = read(world)
        # Then the promise is what is left until its end, or until the next rotation has killed it
        assert (status, body["expires_in"]) == (200, expires_in), f"after {seconds} s"
        assert body["cache_for"] == min(60, expires_in)


def test_at_the_end_of_its_life_a_token_is_not_handed_out_again(world: World) -> None:
    world.add_account("main")
    old = read(world)[1]["access_token"]
    # When it is read at the moment it expires
    world.clock.sleep(7200)
    status, body = read(world)
    # Then the reader has had it renewed
    assert (status, body["expires_in"]) == (200, 6835)
    assert body["access_token"] != old


# --- memory


def test_a_new_token_is_seen_within_15_seconds(world: World) -> None:
    # Given a token that is old enough to be replaced
    world.add_account("main")
    world.clock.sleep(30)
    old = world.token()
    # When it is replaced right after it was read
    world.invoke({"renew": {"account": "main", "credential": "access_token", "rotate": True}})
    # Then a reader that remembers the old one hands it out for 15 s at most
    world.clock.sleep(MEMORY + 1)
    assert world.token() != old


def test_a_reader_asks_the_table_once_in_15_seconds(world: World) -> None:
    world.add_account("main")
    asked: list[str] = []
    world.before_aws = lambda operation, _: asked.append(operation)
    # When a token is read every second
    for _ in range(MEMORY):
        world.token()
        world.clock.sleep(1)
    # Then the table was read once, and the value from memory is no stale one
    assert asked == ["dynamodb.GetItem"]
    assert world.get(TOKEN_PATH)[1]["stale"] is False


def test_a_reader_forgets_a_deleted_account_within_15_seconds(world: World) -> None:
    world.add_account("main")
    world.token()
    # When the account is deleted, and read a little later
    world.delete_parameter("main")
    world.clock.sleep(MEMORY + 1)
    # Then it is unknown, and stays so when the table is down
    assert world.get(TOKEN_PATH)[0] == 404
    with world.down("dynamodb"):
        assert world.get(TOKEN_PATH)[0] != 200


def test_a_value_from_memory_is_not_handed_out_after_its_promise(world: World) -> None:
    # Given a WeCom that mints with every call, and kills the token before
    world.wechat = SimulatedWeChat(world.clock, wecom_mints_anew=True)
    world.add_account("main", corpid="ww0123456789abcdef")
    # When a reader reads just before the renewal, and again just after it
    world.clock.now = START + 7200 - 300 - 3
    world.token()
    world.clock.sleep(3)
    assert world.wake("guard")["renewed"]
    world.clock.sleep(3)
    # Then it does not hand out the old token, for which nothing was promised any more
    assert world.wechat.accepts(world.token())


def test_a_promise_from_memory_shrinks_as_time_passes(world: World) -> None:
    world.add_account("main")
    # Given a token that was read when its renewal was due at any moment
    world.clock.sleep(6600)
    assert world.get(TOKEN_PATH)[1]["expires_in"] == 295
    # When it is read again from memory
    world.clock.sleep(10)
    # Then its promise is the same one
    assert world.get(TOKEN_PATH)[1]["expires_in"] == 285


# --- the table is down


def test_a_table_outage_is_bridged_from_the_cache_while_promised(world: World) -> None:
    world.add_account("main")
    token = world.token()
    with world.down("dynamodb"):
        # When the table cannot be read, the value in memory is no longer new, and its promise holds
        for seconds in (MEMORY + 1, 3000, 6834):
            world.clock.now = START + seconds
            status, body, headers = world.request(TOKEN_PATH)
            # Then it is served as stale, for no longer than was promised
            assert (status, body["access_token"], body["stale"]) == (200, token, True)
            assert body["expires_in"] == 6835 - seconds
            assert body["cache_for"] == min(60, body["expires_in"])
            assert headers["Cache-Control"] == "no-store"
            assert world.wechat.accepts(token)
        # And when the promise has ended, there is none
        world.clock.now = START + 6835
        status, body, headers = world.request(TOKEN_PATH)
        assert (status, body["code"], body["cause"]["class"]) == (503, "no_valid_value", "transient")
        assert int(headers["Retry-After"]) >= 1
    # And when the table is back, all is well
    assert world.get(TOKEN_PATH)[1]["stale"] is False


def test_a_table_outage_shows_where_the_cache_is_empty(world: World) -> None:
    world.add_account("main")
    # When the table cannot be read by a new reader
    with world.down("dynamodb"):
        status, body, headers = world.request(TOKEN_PATH)
    # Then the response says that it passes
    assert (status, body["code"]) == (503, "no_valid_value")
    assert (body["cause"]["class"], body["cause"]["errcode"]) == ("transient", None)
    assert int(headers["Retry-After"]) >= 1


def test_a_fresh_memory_is_not_stale(world: World) -> None:
    world.add_account("main")
    world.token()
    # When the table cannot be read, and the value in memory is young
    world.clock.sleep(MEMORY - 1)
    with world.down("dynamodb"):
        body = world.get(TOKEN_PATH)[1]
    # Then it is handed out as ever
    assert (body["stale"], body["expires_in"]) == (False, 6835 - MEMORY + 1)


def test_what_the_table_calls_dead_is_not_served_as_stale(world: World) -> None:
    # Given a reader that remembers a token, which another has had checked: it is dead, and WeChat mints no other
    world.add_account("main")
    world.clock.sleep(60)
    dead = world.token()
    world.wechat.kill(dead)
    world.wechat.fail("/cgi-bin/stable_token", Fault.error(-1))
    assert world.report(access_token=dead, instance=world.api_instance())[0] == 503
    world.clock.sleep(MEMORY + 1)

    # When it reads the table, which says so, and then does not respond any more
    def stops(operation: str, _: bytes) -> None:
        if operation == "dynamodb.GetItem" and next(reads) > 0:
            raise EndpointConnectionError(endpoint_url="https://dynamodb.invalid/")

    reads, world.before_aws = count(), stops
    # Then the dead token is not served
    assert world.get(TOKEN_PATH)[0] == 503


# --- no usable value


@pytest.mark.parametrize("path", [TOKEN_PATH, "/v1/accounts/main/tickets/jsapi"])
def test_a_reader_that_finds_no_value_has_it_fetched(world: World, path: str) -> None:
    # Given an account whose schedules have not fired since its values expired
    world.add_account("main", tickets=["jsapi"])
    world.clock.sleep(86400)
    # When one is read
    status, body = read(world, path)
    # Then it is there, in the same request
    assert status == 200
    assert world.wechat.accepts(body.get("access_token") or body["ticket"])


def test_many_readers_that_find_no_value_cost_one_call(world: World) -> None:
    enrol_without_a_value(world)
    world.clock.sleep(60)
    # When many readers ask at once: all of them while the first one's renewal is under way
    waited: list[int] = []
    readers = [world.api_instance() for _ in range(5)]
    world.during_call = lambda: waited.extend(world.get(TOKEN_PATH, reader)[0] for reader in readers)
    status, _ = read(world)
    # Then WeChat is asked once, and no reader waits for ever
    assert status == 200
    assert waited == [503] * 5
    assert world.calls() == 2
    assert world.clock() - (START + 60) <= 5 * 6


def test_a_wrong_secret_is_said_to_the_reader(world: World) -> None:
    # Given an account with a wrong secret
    world.wechat.add_app(APPID, SECRET)
    world.secrets |= {SECRET, WRONG_SECRET}
    world.put_parameter("main", json.dumps({"appid": APPID, "secret": WRONG_SECRET}))
    # When its token is read
    status, body, headers = world.request(TOKEN_PATH)
    # Then the response says why there is none, what to do, and when to ask again
    assert status == 503
    assert headers["Content-Type"] == "application/problem+json"
    assert headers["Cache-Control"] == "no-store"
    assert 1 <= int(headers["Retry-After"]) <= 300
    assert (body["status"], body["code"]) == (503, "no_valid_value")
    assert (body["cause"]["class"], body["cause"]["errcode"]) == ("configuration", 40125)
    assert "set-secret" in body["cause"]["remedy"]
    assert not re.search(f"{WRONG_SECRET}|{SECRET}", json.dumps(body))


def test_in_back_off_readers_do_not_ask_wechat(world: World) -> None:
    # Given an account whose fetch was refused
    enrol_without_a_value(world, *[Fault.error(45009)] * 2)
    # When fifty reads follow before it is tried again
    world.clock.sleep(1799)
    responses = [world.get(TOKEN_PATH) for _ in range(50)]
    # Then WeChat is not asked, and each response has the cause
    assert world.calls() == 1
    assert {(status, body["cause"]["errcode"]) for status, body in responses} == {(503, 45009)}
    # And when that time has come, several reads cost one call
    world.clock.sleep(1)
    for _ in range(5):
        world.get(TOKEN_PATH)
    assert world.calls() == 2
    # And then it works again
    world.clock.sleep(1800)
    assert world.wechat.accepts(world.token())


def test_a_token_past_its_promise_is_not_served_in_back_off(world: World) -> None:
    # Given a token that expired while WeChat refused to renew it
    world.add_account("main")
    world.clock.sleep(7150)
    world.wechat.fail(TOKEN, Fault.error(45009))
    world.wake("guard")
    world.clock.sleep(50)
    # When it is read
    status, body, headers = world.request(TOKEN_PATH)
    # Then no reader gets it
    assert (status, body["cause"]["class"], body["cause"]["errcode"]) == (503, "quota", 45009)
    assert int(headers["Retry-After"]) <= 60


@pytest.mark.parametrize("broken", ["lambda.Invoke", "ssm"])
def test_a_refresher_that_cannot_help_is_said_to_the_reader(world: World, broken: str) -> None:
    world.add_account("main")
    world.clock.sleep(7200)
    # When a token has expired and RefreshFunction cannot be asked, or cannot read the secret
    with world.down(broken):
        status, body, headers = world.request(TOKEN_PATH)
    # Then the response says that it passes, and nothing has got stuck
    assert (status, body["code"], body["cause"]["class"]) == (503, "no_valid_value", "transient")
    assert int(headers["Retry-After"]) >= 1
    world.clock.sleep(60)
    assert world.wechat.accepts(world.token())


def test_a_renewal_that_responds_too_late_is_served(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add_account("main")
    world.clock.sleep(7200)
    renew = Refresher.renew

    def late(refresher: Refresher, account: str, credential: str) -> None:
        renew(refresher, account, credential)
        raise RefresherUnavailableError("RefreshFunction: timed out")

    # Given a RefreshFunction that publishes a token, and responds later than the reader waits
    monkeypatch.setattr(Refresher, "renew", late)
    # When the expired token is read, then the new one is there
    status, body = read(world)
    assert status == 200
    assert world.wechat.accepts(body["access_token"])


@pytest.mark.moto
def test_what_ttl_expiry_deleted_is_fetched_again(world: World) -> None:
    world.add_account("main", tickets=["jsapi"])
    # Given a stack that stood still for weeks, so that DynamoDB has deleted what has a time to live
    world.clock.sleep(30 * 86400)
    table = world.environment["TABLE_NAME"]
    for item in world.dynamodb.scan(TableName=table)["Items"]:
        if "ttl" in item and int(item["ttl"]["N"]) <= world.clock():
            world.dynamodb.delete_item(TableName=table, Key={key: item[key] for key in ("pk", "sk")})
    # When the account's values are read
    for path, field in ((TOKEN_PATH, "access_token"), ("/v1/accounts/main/tickets/jsapi", "ticket")):
        status, body = read(world, path)
        # Then they are there
        assert status == 200
        assert world.wechat.accepts(body[field])


@pytest.mark.moto
def test_the_time_to_live_of_a_value_lies_beyond_its_life(world: World) -> None:
    world.add_account("main", tickets=["jsapi"])
    items = world.dynamodb.scan(TableName=world.environment["TABLE_NAME"])["Items"]
    values = [item for item in items if "simulated_" in json.dumps(item)]
    assert len(values) == 2
    assert all(int(item["ttl"]["N"]) > START + 7200 for item in values)


# --- unknown and wrong


NOT_FOUND = [
    ("/v1/accounts/unknown/access-token", "unknown_account"),
    ("/v1/accounts/unknown/tickets/jsapi", "unknown_account"),
    ("/v1/accounts/unknown", "unknown_account"),
    ("/v1/accounts/main/tickets/jsapi", "unknown_credential"),
    ("/v1/accounts/main/tickets/agent_config", "unknown_credential"),
    ("/v1/accounts/main/tickets/access_token", "unknown_credential"),
    ("/v1/accounts/main/tickets/nonsense", "unknown_credential"),
    ("/v1/accounts/Main/access-token", "unknown_account"),
    ("/v1/accounts/-main/access-token", "unknown_account"),
    ("/v1/accounts/ma_in/access-token", "unknown_account"),
    ("/v1/accounts/main%0A/access-token", "unknown_account"),
    ("/v1/accounts/main%20/access-token", "unknown_account"),
    ("/v1/accounts/%2E%2E%2Fmain/access-token", "unknown_account"),
    ("/v1/accounts/main%23access_token/access-token", "unknown_account"),
    ("/v1/accounts/%E4%B8%BB/access-token", "unknown_account"),
    (f"/v1/accounts/{'a' * 65}/access-token", "unknown_account"),
    ("/v1/accounts/Main", "unknown_account"),
]


def test_what_is_not_kept_is_not_found(world: World) -> None:
    world.add_account("main")
    for path, code in NOT_FOUND:
        # When something is read that is not kept, or that no account can be called
        status, body, headers = world.request(path)
        # Then it is not found, as a problem document
        assert (status, body["status"], body["code"]) == (404, 404, code), path
        assert headers["Content-Type"] == "application/problem+json"
        assert headers["Cache-Control"] == "no-store"
    assert len(world.wechat.calls) == 1


def test_every_permitted_name_is_kept(world: World) -> None:
    for name in ("m", "0", "a" * 64, "main-2", "9-a"):
        world.add_account(name, appid=f"wx-{name[:9]}")
        assert world.wechat.accepts(world.token(name)), name


# --- pages of accounts

ACCOUNTS = 120


WITH_TICKETS = 34
"""So many that a page shows more credentials than DynamoDB hands out at once."""


@pytest.fixture
def many_accounts(world: World) -> list[str]:
    """More accounts than two pages hold. WeChat knows none of them, and most have no usable record: that is quick."""
    names = [f"main-{number:03}" for number in range(ACCOUNTS)]
    for number, name in enumerate(names):
        record = {"appid": f"wx-{name}", "secret": SECRET, "tickets": ["jsapi", "wx_card"]}
        value = json.dumps(record if number < WITH_TICKETS else {})
        world.ssm.put_parameter(Name=f"{ACCOUNTS_PATH}/{name}", Value=value, Type="SecureString")
    world.wake("tick")
    return names


def test_accounts_are_listed_in_pages(world: World, many_accounts: list[str]) -> None:
    for query, sizes in (("", [50, 50, 20]), ("limit=50", [50, 50, 20]), ("limit=7", [7] * 17 + [1])):
        # When all pages are read, each from where the one before ended
        pages, after = [], ""
        while True:
            status, page = world.get(f"/v1/accounts?{query}{after}")
            assert status == 200
            pages.append(page["accounts"])
            if "next" not in page:
                break
            after = f"&next={page['next']}"
        # Then they hold every account once, with all its credentials
        assert [len(page) for page in pages] == sizes
        listed = [account for page in pages for account in page]
        assert [account["account"] for account in listed] == many_accounts
        credentials = [len(account["credentials"]) for account in listed]
        assert credentials == [3] * WITH_TICKETS + [1] * (ACCOUNTS - WITH_TICKETS)


def test_a_page_that_cannot_be_asked_for_is_refused(world: World) -> None:
    limits = [f"limit={limit}" for limit in ("0", "51", "1000", "-1", "+1", "1.5", "abc", "", "1 ", "%D9%A1")]
    for query in [*limits, "next=Main", "next=a/b", "next=", "next=%00"]:
        # When a page is asked for with a limit that is none, or a next that no page gave
        status, body, headers = world.request(f"/v1/accounts?{query}")
        # Then the request is refused
        assert (status, body["code"]) == (400, "invalid_request"), query
        assert headers["Content-Type"] == "application/problem+json"


def test_without_accounts_the_list_is_empty(world: World) -> None:
    assert world.get("/v1/accounts") == (200, {"accounts": []})
