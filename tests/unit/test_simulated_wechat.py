"""The simulated WeChat keeps WeChat's rules: what is minted, what dies when, what is refused, what goes wrong."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from werkzeug.serving import make_server
from werkzeug.test import Client

from infra.local.simulated_wechat import Fault, Reply, SimulatedWeChat

APPID, SECRET = "wx617a123bb8bc99cd", "app-secret"
CORPID, CORP_SECRET, OTHER_CORP_SECRET = "ww0123456789abcdef", "contacts-secret", "orders-secret"
BEIJING_MIDNIGHT = 1_800_028_800.0
NOON = BEIJING_MIDNIGHT + 12 * 3600


class Clock:
    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def wechat(clock: Clock) -> SimulatedWeChat:
    simulated = SimulatedWeChat(clock)
    simulated.add_app(APPID, SECRET)
    simulated.add_corp_app(CORPID, CORP_SECRET)
    simulated.add_corp_app(CORPID, OTHER_CORP_SECRET)
    return simulated


def get(wechat: SimulatedWeChat, path: str, *, remote_addr: str = "127.0.0.1", **query: str) -> Any:
    return json.loads(wechat.handle("GET", path, query, b"", remote_addr).body)


def ask_token(wechat: SimulatedWeChat) -> Reply:
    query = {"grant_type": "client_credential", "appid": APPID, "secret": SECRET}
    return wechat.handle("GET", "/cgi-bin/token", query, b"")


def token(wechat: SimulatedWeChat, **changes: str) -> Any:
    query = {"grant_type": "client_credential", "appid": APPID, "secret": SECRET} | changes
    return get(wechat, "/cgi-bin/token", **query)


def stable_token(wechat: SimulatedWeChat, **changes: object) -> Any:
    body = {"grant_type": "client_credential", "appid": APPID, "secret": SECRET} | changes
    return json.loads(wechat.handle("POST", "/cgi-bin/stable_token", {}, json.dumps(body).encode()).body)


def corp_token(wechat: SimulatedWeChat, secret: str = CORP_SECRET, corpid: str = CORPID, **more: str) -> Any:
    return get(wechat, "/cgi-bin/gettoken", corpid=corpid, corpsecret=secret, **more)


def ticket(wechat: SimulatedWeChat, access_token: str, kind: str = "jsapi") -> Any:
    return get(wechat, "/cgi-bin/ticket/getticket", access_token=access_token, type=kind)


def domain_ips(wechat: SimulatedWeChat, access_token: str) -> Any:
    return get(wechat, "/cgi-bin/get_api_domain_ip", access_token=access_token)


# /cgi-bin/token


def test_every_call_mints_a_token_of_two_hours(wechat: SimulatedWeChat) -> None:
    # Given an app / When its token is asked for twice
    first, second = token(wechat), token(wechat)
    # Then the responses look like WeChat's, and differ
    assert first.keys() == {"access_token", "expires_in"}
    assert first["expires_in"] == second["expires_in"] == 7200
    assert first["access_token"] != second["access_token"]
    assert 136 <= len(first["access_token"]) <= 512


def test_the_same_calls_give_the_same_tokens_in_every_simulator(clock: Clock, wechat: SimulatedWeChat) -> None:
    # Given a second simulator
    other = SimulatedWeChat(clock)
    other.add_app(APPID, SECRET)
    # When both are asked / Then they respond alike, so that a failing simulation can be repeated
    assert token(wechat) == token(other)


@pytest.mark.parametrize(
    ("seconds_later", "works"), [(0, True), (7199, True), (7200, False), (8000, False), (20_000, False)]
)
def test_a_token_lives_7200_seconds(wechat: SimulatedWeChat, clock: Clock, seconds_later: int, works: bool) -> None:
    # Given a token
    value = token(wechat)["access_token"]
    # When time passes
    clock.now += seconds_later
    # Then it works for 7200 seconds
    assert wechat.accepts(value) is works
    assert (domain_ips(wechat, value).get("errcode") is None) is works


@pytest.mark.parametrize(
    ("renewed_after", "then", "works"),
    [(0, 299, True), (0, 300, False), (6600, 299, True), (6600, 300, False), (7100, 99, True), (7100, 100, False)],
    ids=lambda value: str(value),
)
def test_the_previous_token_works_300_seconds_within_its_expiry(
    wechat: SimulatedWeChat, clock: Clock, renewed_after: int, then: int, works: bool
) -> None:
    # Given a token that was renewed
    old = token(wechat)["access_token"]
    clock.now += renewed_after
    new = token(wechat)["access_token"]
    # When time passes
    clock.now += then
    # Then the old one works at most 300 seconds, the new one goes on
    assert wechat.accepts(old) is works
    assert wechat.accepts(new)


def test_the_generation_before_the_previous_dies_at_once(wechat: SimulatedWeChat) -> None:
    # Given two generations of tokens
    oldest, previous = token(wechat)["access_token"], token(wechat)["access_token"]
    # When a third is minted
    newest = token(wechat)["access_token"]
    # Then only the last two work
    assert [wechat.accepts(value) for value in (oldest, previous, newest)] == [False, True, True]


@pytest.mark.parametrize(
    ("changes", "errcode", "errmsg"),
    [
        ({"grant_type": "authorization_code"}, 40002, "invalid grant_type"),
        ({"grant_type": ""}, 40002, "invalid grant_type"),
        ({"appid": ""}, 41002, "appid missing"),
        ({"secret": ""}, 41004, "appsecret missing"),
        ({"appid": "wx0000000000000000"}, 40013, "invalid appid"),
        ({"appid": CORPID, "secret": CORP_SECRET}, 40013, "invalid appid"),
        ({"secret": "wrong"}, 40125, "invalid appsecret"),
    ],
)
def test_both_token_endpoints_refuse_a_wrong_request(
    wechat: SimulatedWeChat, changes: dict[str, str], errcode: int, errmsg: str
) -> None:
    # Given a request with one thing wrong / When either endpoint gets it
    for response in (token(wechat, **changes), stable_token(wechat, **changes)):
        # Then it names the thing, with the rid that WeChat's support asks for, and never the secret
        assert response["errcode"] == errcode
        assert response["errmsg"].startswith(errmsg)
        assert " rid: " in response["errmsg"]
        assert SECRET not in response["errmsg"]


@pytest.mark.parametrize(
    ("method", "path", "errcode"),
    [
        ("POST", "/cgi-bin/token", 43001),
        ("GET", "/cgi-bin/stable_token", 43002),
        ("POST", "/cgi-bin/ticket/getticket", 43001),
        ("POST", "/cgi-bin/get_api_domain_ip", 43001),
        ("POST", "/cgi-bin/gettoken", 43001),
        ("POST", "/cgi-bin/get_jsapi_ticket", 43001),
        ("POST", "/cgi-bin/ticket/get", 43001),
    ],
)
def test_a_wrong_http_method_is_refused(wechat: SimulatedWeChat, method: str, path: str, errcode: int) -> None:
    # Given / When a call comes with the wrong method
    response = json.loads(wechat.handle(method, path, {}, b"").body)
    # Then WeChat names the right one
    assert response["errcode"] == errcode


def test_an_unknown_path_is_http_404(wechat: SimulatedWeChat) -> None:
    # Given / When a path that is not simulated is asked for
    response = wechat.handle("GET", "/cgi-bin/menu/get", {}, b"")
    # Then that is an HTTP error, and recorded as no JSON response
    assert response.status == 404
    assert wechat.calls[-1].errcode is None


@pytest.mark.parametrize(
    ("whitelist", "errcode"), [(None, None), (["8.149.1.2"], None), (["1.1.1.1"], 40164), ([], 40164)]
)
def test_the_ip_whitelist_names_the_address_to_add(
    clock: Clock, whitelist: list[str] | None, errcode: int | None
) -> None:
    # Given an app with a whitelist
    wechat = SimulatedWeChat(clock)
    wechat.add_app(APPID, SECRET, ip_whitelist=whitelist)
    # When 8.149.1.2 asks
    response = token(wechat, remote_addr="8.149.1.2")
    # Then it is let in, or the error names the address that is missing
    assert response.get("errcode") == errcode
    if errcode:
        assert "invalid ip 8.149.1.2 ipv6 ::ffff:8.149.1.2, not in whitelist rid: " in response["errmsg"]


def test_the_daily_quota_is_per_app_and_resets_at_midnight(clock: Clock) -> None:
    # Given an app that used up its quota a second before midnight, and another app
    wechat = SimulatedWeChat(clock)
    wechat.add_app(APPID, SECRET, daily_quota=2)
    wechat.add_app("wx-other", SECRET, daily_quota=2)
    clock.now = BEIJING_MIDNIGHT - 1
    live = [token(wechat) for _ in range(2)][-1]["access_token"]
    # When a third call comes / Then it is refused and leaves the live token alone; the other app goes on
    assert token(wechat)["errcode"] == 45009
    assert wechat.accepts(live)
    assert "access_token" in token(wechat, appid="wx-other")
    # When the day turns in Beijing / Then there is a new quota
    clock.now = BEIJING_MIDNIGHT
    assert "access_token" in token(wechat)


def test_a_changed_secret_replaces_the_old_and_keeps_live_tokens(wechat: SimulatedWeChat) -> None:
    # Given live tokens of an app and of a WeCom app
    values = [token(wechat)["access_token"], corp_token(wechat)["access_token"]]
    # When both secrets change
    wechat.change_secret(APPID, SECRET, "new")
    wechat.change_secret(CORPID, CORP_SECRET, "new")
    # Then the old ones are refused, the new ones taken, the tokens alive
    assert token(wechat)["errcode"] == 40125
    assert corp_token(wechat)["errcode"] == 40001
    assert all(wechat.accepts(value) for value in values)
    assert "access_token" in token(wechat, secret="new")
    assert corp_token(wechat, "new")["access_token"] == values[1]


# /cgi-bin/stable_token


@pytest.mark.parametrize(
    ("seconds_later", "expires_in", "renewed"),
    [
        (0, 7200, False),
        (6600, 600, False),
        (6899.5, 300, False),
        (6900, 300, False),
        (6901, 7200, True),
        (7200, 7200, True),
        (9999, 7200, True),
    ],
)
def test_a_stable_token_is_repeated_until_its_last_300_seconds(
    wechat: SimulatedWeChat, clock: Clock, seconds_later: float, expires_in: int, renewed: bool
) -> None:
    # Given a stable token
    first = stable_token(wechat)
    # When it is asked for again later
    clock.now += seconds_later
    again = stable_token(wechat)
    # Then it is the same with what remains, or a new one near its end
    assert again["expires_in"] == expires_in
    assert (again["access_token"] != first["access_token"]) is renewed


def test_a_replaced_stable_token_works_until_its_expiry(wechat: SimulatedWeChat, clock: Clock) -> None:
    # Given a stable token renewed with 270 seconds left
    old = stable_token(wechat)["access_token"]
    clock.now += 6930
    new = stable_token(wechat)["access_token"]
    # When 269 seconds pass / Then both work
    clock.now += 269
    assert wechat.accepts(old)
    assert wechat.accepts(new)
    # When its life ends / Then only the new one does
    clock.now += 1
    assert not wechat.accepts(old)
    assert wechat.accepts(new)


def test_the_two_endpoints_never_touch_each_other(wechat: SimulatedWeChat) -> None:
    # Given a token of each endpoint
    plain, stable = token(wechat)["access_token"], stable_token(wechat)["access_token"]
    # When the stable one is forced / Then the plain one lives
    forced = stable_token(wechat, force_refresh=True)["access_token"]
    assert wechat.accepts(plain)
    assert not wechat.accepts(stable)
    # When the plain one is renewed again and again / Then the stable one lives
    for _ in range(5):
        token(wechat)
    assert wechat.accepts(forced)


def test_a_forced_refresh_kills_the_previous_token_at_once(wechat: SimulatedWeChat) -> None:
    # Given a stable token
    old = stable_token(wechat)["access_token"]
    # When a refresh is forced
    new = stable_token(wechat, force_refresh=True)
    # Then only the new one works, for two hours, and is what a normal call repeats
    assert not wechat.accepts(old)
    assert wechat.accepts(new["access_token"])
    assert new["expires_in"] == 7200
    assert stable_token(wechat)["access_token"] == new["access_token"]


@pytest.mark.parametrize(("seconds_later", "refreshed"), [(0, False), (29, False), (30, True)])
def test_a_forced_refresh_within_30_seconds_repeats_the_token(
    wechat: SimulatedWeChat, clock: Clock, seconds_later: int, refreshed: bool
) -> None:
    # Given a forced refresh
    first = stable_token(wechat, force_refresh=True)
    # When another follows
    clock.now += seconds_later
    second = stable_token(wechat, force_refresh=True)
    # Then it takes effect from 30 seconds on; before, the same token comes back with what remains of it
    assert (second["access_token"] != first["access_token"]) is refreshed
    assert second["expires_in"] == (7200 if refreshed else 7200 - seconds_later)


def test_twenty_forced_refreshes_a_day(wechat: SimulatedWeChat, clock: Clock) -> None:
    # Given a day's twenty forced refreshes
    last = ""
    for _ in range(20):
        clock.now += 30
        assert stable_token(wechat, force_refresh=True)["access_token"] != last
        last = stable_token(wechat)["access_token"]
    # When one more comes / Then the same token comes back, and works
    clock.now += 30
    assert stable_token(wechat, force_refresh=True)["access_token"] == last
    assert wechat.accepts(last)
    # When a new day begins in Beijing / Then a refresh can be forced again
    clock.now = BEIJING_MIDNIGHT + 86400
    current = stable_token(wechat)["access_token"]
    assert stable_token(wechat, force_refresh=True)["access_token"] != current


@pytest.mark.parametrize("body", [b"", b"appid=wx&secret=s", b"[1]", b"\xff\xfe"])
def test_a_stable_token_request_without_a_json_object_is_refused(wechat: SimulatedWeChat, body: bytes) -> None:
    # Given / When a body is not what the endpoint reads
    response = json.loads(wechat.handle("POST", "/cgi-bin/stable_token", {}, body).body)
    # Then it says so
    assert response["errcode"] == 47001


@pytest.mark.parametrize("value", [None, 5, ["wx"], {"a": 1}, True])
def test_a_stable_token_appid_that_is_no_string_counts_as_none(wechat: SimulatedWeChat, value: object) -> None:
    # Given / When the appid is of another JSON type / Then it counts as missing
    assert stable_token(wechat, appid=value)["errcode"] == 41002


# WeCom


def test_wecom_repeats_a_token_and_always_gives_an_errcode(wechat: SimulatedWeChat, clock: Clock) -> None:
    # Given a WeCom token
    first = corp_token(wechat)
    assert (first["errcode"], first["errmsg"], first["expires_in"]) == (0, "ok", 7200)
    # When it is asked for again a second before its end / Then it is the same
    clock.now += 7199
    assert corp_token(wechat) == first | {"expires_in": 1}
    # When it has expired / Then there is a new one
    clock.now += 1
    assert corp_token(wechat)["access_token"] != first["access_token"]


def test_wecom_may_mint_again_and_invalidate_the_previous_token(clock: Clock) -> None:
    # Given a WeCom that mints at each call
    wechat = SimulatedWeChat(clock, wecom_mints_anew=True)
    wechat.add_corp_app(CORPID, CORP_SECRET)
    # When two tokens are fetched
    first, second = corp_token(wechat)["access_token"], corp_token(wechat)["access_token"]
    # Then only the second works
    assert [wechat.accepts(first), wechat.accepts(second)] == [False, True]


def test_each_app_of_a_corp_has_its_own_token(wechat: SimulatedWeChat) -> None:
    # Given a corp with two apps / When both fetch
    item, other = corp_token(wechat, CORP_SECRET)["access_token"], corp_token(wechat, OTHER_CORP_SECRET)["access_token"]
    # Then the tokens differ and both work
    assert item != other
    assert wechat.accepts(item)
    assert wechat.accepts(other)


@pytest.mark.parametrize(
    ("corpid", "secret", "errcode", "errmsg"),
    [
        ("", CORP_SECRET, 41002, "corpid missing"),
        (CORPID, "", 41004, "corpsecret missing"),
        ("ww-unknown", CORP_SECRET, 40013, "invalid corpid"),
        (APPID, SECRET, 40013, "invalid corpid"),
        (CORPID, "wrong", 40001, "invalid credential"),
        (CORPID, "secret-of-another-corp", 40091, "invalid secret"),
    ],
)
def test_wecom_refuses_wrong_credentials(
    wechat: SimulatedWeChat, corpid: str, secret: str, errcode: int, errmsg: str
) -> None:
    # Given another corp
    wechat.add_corp_app("ww-another", "secret-of-another-corp")
    # When a token is asked for with something wrong
    response = corp_token(wechat, secret, corpid)
    # Then WeCom names it, with its hint and the caller's address
    assert response["errcode"] == errcode
    assert response["errmsg"].startswith(f"{errmsg}, hint: [")
    assert "from ip: 127.0.0.1" in response["errmsg"]


def test_2000_failing_calls_within_an_hour_block_the_caller(wechat: SimulatedWeChat, clock: Clock) -> None:
    # Given 1999 failing calls of one address
    for _ in range(1999):
        corp_token(wechat, "wrong", remote_addr="8.8.8.8")
    assert corp_token(wechat, remote_addr="8.8.8.8")["errcode"] == 0
    # When one more fails
    corp_token(wechat, "wrong", remote_addr="8.8.8.8")
    # Then the address is blocked for an hour, whatever it asks; others are not
    clock.now += 3599
    assert {corp_token(wechat, remote_addr="8.8.8.8")["errcode"] for _ in range(2000)} == {45009}
    assert corp_token(wechat, remote_addr="9.9.9.9")["errcode"] == 0
    # And calls while blocked do not prolong it
    clock.now += 1
    assert corp_token(wechat, remote_addr="8.8.8.8")["errcode"] == 0


def test_failing_calls_over_more_than_an_hour_do_not_block(wechat: SimulatedWeChat, clock: Clock) -> None:
    # Given / When a call fails every two seconds, 1800 an hour
    for _ in range(4000):
        corp_token(wechat, "wrong")
        clock.now += 2
    # Then the caller is not blocked
    assert corp_token(wechat)["errcode"] == 0


# tickets


@pytest.mark.parametrize("kind", ["jsapi", "wx_card"])
def test_a_ticket_is_repeated_with_a_full_life_until_it_expires(
    wechat: SimulatedWeChat, clock: Clock, kind: str
) -> None:
    # Given a ticket
    first = ticket(wechat, token(wechat)["access_token"], kind)
    assert first | {"ticket": ""} == {"errcode": 0, "errmsg": "ok", "ticket": "", "expires_in": 7200}
    # When it is asked for a second before its end, with a newer token / Then it is the same, as if it were new
    clock.now += 7199
    fresh = token(wechat)["access_token"]
    assert ticket(wechat, fresh, kind) == first
    assert wechat.accepts(first["ticket"])
    # When it has expired / Then there is a new one
    clock.now += 1
    assert not wechat.accepts(first["ticket"])
    assert ticket(wechat, fresh, kind)["ticket"] != first["ticket"]


def test_each_ticket_type_and_account_has_its_own_ticket(wechat: SimulatedWeChat) -> None:
    # Given two accounts / When every ticket of theirs is fetched
    wechat.add_app("wx-other", SECRET)
    tokens = [token(wechat)["access_token"], token(wechat, appid="wx-other")["access_token"]]
    tickets = {ticket(wechat, value, kind)["ticket"] for value in tokens for kind in ("jsapi", "wx_card")}
    # Then no two are the same
    assert len(tickets) == 4


def test_a_stable_token_gets_the_ticket_of_its_account(wechat: SimulatedWeChat) -> None:
    # Given a token of either endpoint
    plain, stable = token(wechat)["access_token"], stable_token(wechat)["access_token"]
    # When both ask / Then the account's ticket is one
    assert ticket(wechat, plain) == ticket(wechat, stable)


def test_an_unknown_ticket_type_is_refused(wechat: SimulatedWeChat) -> None:
    # Given a live token / When it asks for a type that does not exist / Then it is refused
    assert ticket(wechat, token(wechat)["access_token"], "agent_config")["errcode"] == 40097


def test_apps_of_a_corp_share_its_jsapi_ticket_only(wechat: SimulatedWeChat) -> None:
    # Given the tokens of two apps of a corp
    tokens = [corp_token(wechat, secret)["access_token"] for secret in (CORP_SECRET, OTHER_CORP_SECRET)]
    # When each fetches both tickets
    jsapi = {get(wechat, "/cgi-bin/get_jsapi_ticket", access_token=value)["ticket"] for value in tokens}
    path = "/cgi-bin/ticket/get"
    agent = {get(wechat, path, access_token=value, type="agent_config")["ticket"] for value in tokens}
    # Then the corp's is one, the apps' are two
    assert (len(jsapi), len(agent)) == (1, 2)
    assert jsapi.isdisjoint(agent)


def test_a_wecom_app_gets_100_tickets_an_hour(wechat: SimulatedWeChat, clock: Clock) -> None:
    # Given an app that asked 100 times
    value = corp_token(wechat)["access_token"]
    responses = [get(wechat, "/cgi-bin/get_jsapi_ticket", access_token=value) for _ in range(101)]
    # When it asks once more / Then it is refused until the hour is over
    assert [response["errcode"] for response in responses] == [0] * 100 + [45009]
    clock.now += 3600
    assert get(wechat, "/cgi-bin/get_jsapi_ticket", access_token=value)["errcode"] == 0


# whether a token is good


def test_a_valid_token_gets_addresses_only_wecom_adds_an_errcode(wechat: SimulatedWeChat) -> None:
    # Given good tokens / When they are tried / Then both get addresses, each in its platform's form
    assert domain_ips(wechat, token(wechat)["access_token"]).keys() == {"ip_list"}
    wecom = domain_ips(wechat, corp_token(wechat)["access_token"])
    assert wecom["errcode"] == 0
    assert wecom["ip_list"]


def dead_token(wechat: SimulatedWeChat, clock: Clock, how: str) -> str:
    value = str(token(wechat)["access_token"])
    match how:
        case "expired":
            clock.now += 7200
        case "killed":
            wechat.kill(value)
        case "superseded":
            token(wechat), token(wechat)
        case "nonsense":
            return "nonsense"
        case "a ticket":
            return str(ticket(wechat, value)["ticket"])
        case "missing":
            return ""
    return value


@pytest.mark.parametrize(
    ("how", "errcode"),
    [
        ("expired", 42001),
        ("killed", 40001),
        ("superseded", 40001),
        ("nonsense", 40014),
        ("a ticket", 40014),
        ("missing", 41001),
    ],
)
def test_a_dead_token_is_refused_with_the_code_for_how_it_died(
    wechat: SimulatedWeChat, clock: Clock, how: str, errcode: int
) -> None:
    # Given a token that is not good
    value = dead_token(wechat, clock, how)
    # When it is used / Then both calls that carry a token say why
    assert domain_ips(wechat, value)["errcode"] == errcode
    assert ticket(wechat, value)["errcode"] == errcode


def test_a_dead_wecom_token_gets_an_errcode_beside_an_empty_list(wechat: SimulatedWeChat) -> None:
    # Given a WeCom token that the platform killed
    value = corp_token(wechat)["access_token"]
    wechat.kill(value)
    # When it is tried / Then the response holds both
    response = domain_ips(wechat, value)
    assert (response["ip_list"], response["errcode"]) == ([], 40001)


def test_one_platforms_token_is_nonsense_to_the_other(wechat: SimulatedWeChat) -> None:
    # Given a token of each / When each is used for the other's ticket / Then neither works
    assert ticket(wechat, corp_token(wechat)["access_token"])["errcode"] == 40014
    other = get(wechat, "/cgi-bin/get_jsapi_ticket", access_token=token(wechat)["access_token"])
    assert other["errcode"] == 40014


@pytest.mark.parametrize("fetch", [token, stable_token, corp_token])
def test_after_an_early_death_the_next_fetch_gives_a_live_token(wechat: SimulatedWeChat, fetch: Any) -> None:
    # Given a token killed early
    dead = fetch(wechat)["access_token"]
    wechat.kill(dead)
    assert not wechat.accepts(dead)
    # When a token is fetched / Then it is another, and works
    assert wechat.accepts(fetch(wechat)["access_token"])


def test_long_dead_tokens_are_forgotten(wechat: SimulatedWeChat, clock: Clock) -> None:
    # Given a token long dead
    value = token(wechat)["access_token"]
    clock.now += 7200 + 3601
    # When another is minted / Then the first is nonsense to WeChat, and cannot be killed
    token(wechat)
    assert domain_ips(wechat, value)["errcode"] == 40014
    with pytest.raises(KeyError):
        wechat.kill(value)


# faults


def test_each_next_call_meets_one_fault_in_order_then_none(wechat: SimulatedWeChat) -> None:
    # Given two queued faults
    wechat.fail("/cgi-bin/token", Fault.error(-1), Fault.error(45009, "used up"))
    # When three calls come
    responses = [token(wechat) for _ in range(3)]
    # Then two fail, in WeChat's words or those given, and the third does not
    assert [response.get("errcode") for response in responses] == [-1, 45009, None]
    assert responses[0]["errmsg"].startswith("system error rid: ")
    assert responses[1]["errmsg"].startswith("used up rid: ")


def test_a_fault_of_one_account_leaves_the_others_alone(wechat: SimulatedWeChat) -> None:
    # Given a fault for one account on each endpoint that sees the account
    wechat.add_app("wx-other", SECRET)
    live, other = token(wechat)["access_token"], token(wechat, appid="wx-other")["access_token"]
    for path in ("/cgi-bin/token", "/cgi-bin/stable_token", "/cgi-bin/ticket/getticket"):
        wechat.fail(path, Fault.error(-1), account=APPID)
    # When another account calls / Then all is well
    assert "errcode" not in token(wechat, appid="wx-other")
    assert "errcode" not in stable_token(wechat, appid="wx-other")
    assert ticket(wechat, other)["errcode"] == 0
    # When the account calls / Then it meets its faults
    assert [token(wechat)["errcode"], stable_token(wechat)["errcode"], ticket(wechat, live)["errcode"]] == [-1] * 3


def test_a_fault_for_a_path_that_is_not_simulated_is_a_mistake(wechat: SimulatedWeChat) -> None:
    # Given / When a path is misspelt / Then the test that did it fails
    with pytest.raises(ValueError, match="not simulated"):
        wechat.fail("/cgi-bin/tokens", Fault.error(-1))


@pytest.mark.parametrize(
    ("fault", "minted"),
    [
        (Fault.error(-1), False),
        (Fault.http(), False),
        (Fault.http(504, carried_out=True), True),
        (Fault.redirect(), False),
        (Fault.malformed(), True),
        (Fault.truncated(), True),
        (Fault.oversized(), True),
        (Fault.drop_before(), False),
        (Fault.drop_after(), True),
        (Fault.slow(), True),
    ],
    ids=["error", "http", "http late", "redirect", "malformed", "truncated", "oversized", "before", "after", "slow"],
)
def test_a_fault_tells_whether_a_token_was_minted(wechat: SimulatedWeChat, fault: Fault, minted: bool) -> None:
    # Given two generations of tokens, and a fault
    oldest, previous = token(wechat)["access_token"], token(wechat)["access_token"]
    wechat.fail("/cgi-bin/token", fault)
    # When a call meets it
    ask_token(wechat)
    # Then the oldest token is dead where WeChat minted all the same
    assert wechat.accepts(oldest) is not minted
    assert wechat.accepts(previous)


@pytest.mark.parametrize(
    ("fault", "response", "errcode"),
    [
        (Fault.http(503, b"<p>busy"), Reply(503, {"Content-Type": "text/html"}, b"<p>busy"), None),
        (
            Fault.redirect("https://evil.invalid/"),
            Reply(302, {"Content-Type": "text/html", "Location": "https://evil.invalid/"}, b""),
            None,
        ),
        (
            Fault.malformed(b'{"access_token": null}'),
            Reply(200, {"Content-Type": "application/json; encoding=utf-8"}, b'{"access_token": null}'),
            None,
        ),
        (Fault.drop_before(), Reply(200, {}, b"", drop=True), None),
        (Fault.drop_after(), Reply(200, {}, b"", drop=True), None),
    ],
    ids=["http", "redirect", "malformed", "before", "after"],
)
def test_what_the_caller_gets(wechat: SimulatedWeChat, fault: Fault, response: Reply, errcode: int | None) -> None:
    # Given a fault
    wechat.fail("/cgi-bin/token", fault)
    # When a call meets it / Then this is the response, and the call is recorded as one without WeChat's JSON
    assert ask_token(wechat) == response
    assert wechat.calls[-1].errcode is errcode


def test_a_cut_a_padded_and_a_late_response(wechat: SimulatedWeChat) -> None:
    # Given a response cut, one padded, one late
    wechat.fail("/cgi-bin/token", Fault.truncated(), Fault.oversized(5000), Fault.slow(7.5))
    # When they come
    cut, padded, late = (ask_token(wechat) for _ in range(3))
    # Then the first is no JSON, the second is JSON of that size, the third is right but 7.5 seconds late
    with pytest.raises(json.JSONDecodeError):
        json.loads(cut.body)
    assert len(padded.body) == 5000
    assert json.loads(padded.body)["expires_in"] == 7200
    assert late.delay == 7.5
    assert json.loads(late.body)["expires_in"] == 7200
    assert [call.errcode for call in wechat.calls] == [None, None, 0]


def test_calls_tell_when_where_whose_and_how(wechat: SimulatedWeChat, clock: Clock) -> None:
    # Given / When calls of each kind come
    value = token(wechat)["access_token"]
    clock.now += 60
    stable_token(wechat, secret="wrong")
    corp_token(wechat)
    ticket(wechat, value)
    domain_ips(wechat, "nonsense")
    # Then each is recorded, with its account as far as it shows
    assert [(call.at - NOON, call.path, call.account, call.errcode) for call in wechat.calls] == [
        (0, "/cgi-bin/token", APPID, 0),
        (60, "/cgi-bin/stable_token", APPID, 40125),
        (60, "/cgi-bin/gettoken", CORPID, 0),
        (60, "/cgi-bin/ticket/getticket", APPID, 0),
        (60, "/cgi-bin/get_api_domain_ip", None, 40014),
    ]


def test_threads_never_get_the_same_token(wechat: SimulatedWeChat) -> None:
    # Given eight threads
    values: list[str] = []
    threads = [
        threading.Thread(target=lambda: values.extend(token(wechat)["access_token"] for _ in range(100)))
        for _ in range(8)
    ]
    # When they all mint
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Then every token is another, every call recorded, and two generations live
    assert len(set(values)) == len(wechat.calls) == 800
    assert sum(wechat.accepts(value) for value in values) == 2


# over HTTP


@pytest.fixture
def web(wechat: SimulatedWeChat) -> Client:
    return Client(wechat)


TOKEN_URL = f"/cgi-bin/token?grant_type=client_credential&appid={APPID}&secret={SECRET}"


def test_wsgi_responds_as_in_process(web: Client, wechat: SimulatedWeChat) -> None:
    # Given the simulator over HTTP / When both token endpoints are asked
    plain = web.get(TOKEN_URL)
    stable = web.post(
        "/cgi-bin/stable_token", json={"grant_type": "client_credential", "appid": APPID, "secret": SECRET}
    )
    # Then the tokens work
    for response in (plain, stable):
        assert response.content_type.startswith("application/json")
        assert wechat.accepts(json.loads(response.data)["access_token"])


def test_wsgi_sees_the_callers_address(web: Client, wechat: SimulatedWeChat) -> None:
    # Given an app whose whitelist is empty
    wechat.add_app(APPID, SECRET, ip_whitelist=[])
    # When 8.149.1.2 calls / Then that address is named
    response = web.get(TOKEN_URL, environ_base={"REMOTE_ADDR": "8.149.1.2"})
    assert "8.149.1.2" in json.loads(response.data)["errmsg"]


def test_wsgi_waits_for_a_slow_response(web: Client, wechat: SimulatedWeChat, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a fault of 7.5 seconds
    waited: list[float] = []
    monkeypatch.setattr("infra.local.simulated_wechat.time.sleep", waited.append)
    wechat.fail("/cgi-bin/token", Fault.slow(7.5))
    # When the call comes / Then it waits that long
    web.get(TOKEN_URL)
    assert waited == [7.5]


@pytest.fixture
def port(wechat: SimulatedWeChat) -> Iterator[int]:
    server = make_server("127.0.0.1", 0, wechat, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_dropped_connection_is_an_error_to_a_real_http_client(wechat: SimulatedWeChat, port: int) -> None:
    # Given a fault that loses the response
    wechat.fail("/cgi-bin/token", Fault.drop_after())
    # When a real client calls / Then it gets no whole response
    with pytest.raises(requests.RequestException):
        requests.get(f"http://127.0.0.1:{port}{TOKEN_URL}", timeout=10)


@pytest.mark.parametrize(
    ("order", "times"),
    [
        ({"path": "/cgi-bin/token", "errcode": -1}, 1),
        ({"path": "/cgi-bin/token", "errcode": -1, "times": 2}, 2),
        ({"path": "/cgi-bin/token", "kind": "http", "account": APPID}, 1),
    ],
)
def test_faults_can_be_ordered_by_hand(web: Client, order: dict[str, object], times: int) -> None:
    # Given a fault ordered over HTTP
    ordered = web.post("/_simulator/faults", json=order)
    assert json.loads(ordered.data) == {"queued": times}
    # When calls come / Then so many of them fail
    responses = [web.get(TOKEN_URL) for _ in range(3)]
    assert [b"access_token" in response.data for response in responses] == [False] * times + [True] * (3 - times)


@pytest.mark.parametrize(
    "order",
    [
        [],
        {},
        {"path": "/cgi-bin/token"},
        {"path": "/cgi-bin/none", "errcode": -1},
        {"path": ["/cgi-bin/token"], "errcode": -1},
        {"path": "/cgi-bin/token", "kind": "flood"},
        {"path": "/cgi-bin/token", "errcode": "busy"},
        {"path": "/cgi-bin/token", "errcode": -1, "times": "often"},
        {"path": "/cgi-bin/token", "errcode": -1, "account": []},
    ],
)
def test_a_wrong_order_is_refused_with_what_is_possible(web: Client, order: object) -> None:
    # Given / When an order cannot be followed
    response = web.post("/_simulator/faults", json=order)
    # Then the kinds and paths are named, and nothing fails
    assert response.status_code == 400
    assert "drop_after" in json.loads(response.data)["error"]
    assert b"access_token" in web.get(TOKEN_URL).data


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("40164", Fault.error(40164)),
        ("-1", Fault.error(-1)),
        ("http", Fault.http()),
        ("drop_after", Fault.drop_after()),
    ],
)
def test_a_fault_has_a_name(name: str, fault: Fault) -> None:
    assert Fault.named(name) == fault


@pytest.mark.parametrize("name", ["nonsense", "", "4e4", "named"])
def test_an_unknown_name_of_a_fault_lists_the_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"errcode of WeChat, or one of http, redirect, .*slow"):
        Fault.named(name)


def test_each_call_meets_the_fault_it_was_made_with(clock: Clock) -> None:
    # Given a simulator that fails, and another fault that is ordered for its next call
    wechat = SimulatedWeChat(clock, fault=Fault.error(40164))
    wechat.add_app(APPID, SECRET)
    wechat.fail("/cgi-bin/token", Fault.error(-1))
    # When / Then
    assert [token(wechat)["errcode"] for _ in range(3)] == [-1, 40164, 40164]
    assert stable_token(wechat)["errcode"] == 40164
    assert get(wechat, "/cgi-bin/gettoken", corpid=CORPID, corpsecret=CORP_SECRET)["errcode"] == 40164


def test_with_a_key_only_who_shows_it_steers(clock: Clock) -> None:
    guarded = Client(SimulatedWeChat(clock, api_key="right"))
    for key, status in ((None, 403), ("", 403), ("wrong", 403), ("rïght", 403), ("right", 200)):
        headers = {} if key is None else {"X-Api-Key": key}
        assert guarded.get("/_simulator/calls", headers=headers).status_code == status


def test_calls_can_be_counted_by_hand_without_any_value(web: Client, wechat: SimulatedWeChat) -> None:
    # Given three calls
    value = json.loads(web.get(TOKEN_URL).data)["access_token"]
    web.get(TOKEN_URL)
    web.get(f"/cgi-bin/get_api_domain_ip?access_token={value}")
    # When they are counted
    counted = web.get("/_simulator/calls")
    # Then they stand by path and account; neither secret nor token shows
    assert json.loads(counted.data) == {
        "calls": [
            {"path": "/cgi-bin/token", "account": APPID, "count": 2},
            {"path": "/cgi-bin/get_api_domain_ip", "account": APPID, "count": 1},
        ]
    }
    assert value.encode() not in counted.data
    assert SECRET.encode() not in counted.data


def test_a_value_can_be_tried_by_hand(web: Client) -> None:
    # Given a token / When it and nonsense are tried / Then only the token is accepted
    value = json.loads(web.get(TOKEN_URL).data)["access_token"]
    assert json.loads(web.get(f"/_simulator/accepts?value={value}").data) == {"accepts": True}
    assert json.loads(web.get("/_simulator/accepts?value=nonsense").data) == {"accepts": False}
    assert web.get("/_simulator/else").status_code == 404
