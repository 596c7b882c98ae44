"""Who gets what from the WeChat-compatible API: the matrix of consumer × account × call, and what is refused with which code."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.integration.wechats_calls import (
    CORPID,
    ask_corp_token,
    ask_stable_token,
    ask_ticket,
    ask_token,
    refused,
    token_query,
)
from tests.support.world import APPID, REQUEST_ID, World

OTHER_APPID = "wx89abcdef01234567"
REVOKED = "wtk_" + "A" * 43
"""A key as they look, of no consumer."""

ACCOUNTS: dict[str, dict[str, Any]] = {
    "main": {"appid": APPID, "secret": "1" * 32, "tickets": ["jsapi"]},
    "main-stable": {"appid": "wx0000000000000003", "secret": "4" * 32, "endpoint": "stable_token"},
    "mini-one": {"appid": "wx0000000000000001", "secret": "2" * 32},
    "mini-two": {"appid": "wx0000000000000002", "secret": "3" * 32, "endpoint": "stable_token"},
    "crm": {"corpid": CORPID, "secret": "crm-secret-of-the-corp"},
    "hr": {"corpid": CORPID, "secret": "hr-secret-of-the-corp"},
}
CONSUMERS = {
    "everything": ["*"],
    "minis": ["mini-*"],
    "one": ["mini-one"],
    "stable": ["main-stable"],
    "shop": ["main", "crm"],
    "unlike": ["mini", "m-*-one"],
    "gone": ["*"],  # revoked
}

TOKEN, STABLE, CORP = "token", "stable_token", "gettoken"
MATRIX: dict[tuple[str, str], dict[str, str | int]] = {
    # (call, appid or corpid): whose token each consumer gets, or the errcode
    (TOKEN, APPID): {"everything": "main", "shop": "main"},
    (STABLE, APPID): {"everything": "main", "shop": "main"},
    (TOKEN, "wx0000000000000003"): {"everything": "main-stable", "stable": "main-stable"},
    (STABLE, "wx0000000000000003"): {"everything": "main-stable", "stable": "main-stable"},
    (TOKEN, "wx0000000000000001"): {"everything": "mini-one", "minis": "mini-one", "one": "mini-one"},
    (STABLE, "wx0000000000000001"): {"everything": "mini-one", "minis": "mini-one", "one": "mini-one"},
    (TOKEN, "wx0000000000000002"): {"everything": "mini-two", "minis": "mini-two"},
    (STABLE, "wx0000000000000002"): {"everything": "mini-two", "minis": "mini-two"},
    # Several apps of one corp: the key does not say which is meant.
    (CORP, CORPID): {"everything": 40013, "shop": "crm"},
    (TOKEN, CORPID): {},
    (CORP, APPID): {},
}


@pytest.fixture(scope="module")
def populated(shared_world: World) -> tuple[World, dict[str, str]]:
    """A world with these accounts and consumers, and the consumers' keys."""
    for name, record in ACCOUNTS.items():
        shared_world.add_account(name, **record)
    keys = {name: shared_world.add_consumer(name, accounts) for name, accounts in CONSUMERS.items()}
    shared_world.revoke(keys["gone"])
    return shared_world, keys


@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize(("call", "app"), MATRIX)
def test_a_consumer_reads_its_accounts_and_no_other(
    populated: tuple[World, dict[str, str]], call: str, app: str, consumer: str
) -> None:
    world, keys = populated
    expected = 40125 if consumer == "gone" else MATRIX[call, app].get(consumer, 40013)
    # When the consumer asks, twice: the second time the instance remembers
    calls: dict[str, Callable[..., dict[str, Any]]] = {TOKEN: ask_token, STABLE: ask_stable_token, CORP: ask_corp_token}
    responses = [calls[call](world, keys[consumer], app) for _ in range(2)]
    # Then it gets the token of its account, or WeChat's refusal
    for response in responses:
        if isinstance(expected, int):
            assert response["errcode"] == expected
            assert "access_token" not in response
        else:
            assert response["access_token"] == world.token(expected)


def test_a_key_for_several_apps_of_a_corp_is_told_what_to_do(populated: tuple[World, dict[str, str]]) -> None:
    world, keys = populated
    response = ask_corp_token(world, keys["everything"])
    hint = "this key may read several apps of this corp: make one consumer for each app"
    assert response == refused(40013, f"invalid corpid, {hint}")


@pytest.mark.parametrize("account", ACCOUNTS)
def test_a_token_gets_the_ticket_of_its_own_account(populated: tuple[World, dict[str, str]], account: str) -> None:
    world, _ = populated
    # When a client shows the account's token and asks for a jsapi ticket
    response = ask_ticket(world, world.token(account), instance=world.api_instance())
    # Then it gets that of the same account, if one is kept
    if account == "main":
        assert response["ticket"] == world.get("/v1/accounts/main/tickets/jsapi")[1]["ticket"]
    else:
        assert response["errcode"] == 48001


CONTENT_TYPES = ["application/json", "application/x-www-form-urlencoded", "text/plain", ""]


def multipart(fields: dict[str, str]) -> bytes:
    boundary = "----WebKitFormBoundary7MA4YWxkTrZu0gW"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    return f"{''.join(parts)}--{boundary}--\r\n".encode()


@pytest.mark.parametrize(
    ("call", "where", "content_type"),
    [
        ("GET /cgi-bin/token", "query", ""),
        ("POST /cgi-bin/token", "query", ""),
        ("POST /cgi-bin/token", "form", "application/x-www-form-urlencoded"),
        ("POST /cgi-bin/token", "json", "application/json"),
        ("GET /cgi-bin/token", "json", "application/json"),
        ("POST /cgi-bin/stable_token", "json", "application/json"),
        ("POST /cgi-bin/stable_token", "json", "application/json; charset=utf-8"),
        ("POST /cgi-bin/stable_token", "json", "text/plain"),
        # as `curl -d '{…}'` sends it, and API Gateway then in base64
        ("POST /cgi-bin/stable_token", "json", "application/x-www-form-urlencoded"),
        ("POST /cgi-bin/stable_token", "json", ""),
        ("POST /cgi-bin/stable_token", "form", "application/x-www-form-urlencoded"),
        ("POST /cgi-bin/stable_token", "query", ""),
        ("POST /cgi-bin/token", "multipart", "multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW"),
        ("POST /cgi-bin/stable_token", "multipart", "text/plain"),
        # with a byte order mark
        *(("POST /cgi-bin/token", f"\ufeff {where}", kind) for where in ("json", "form") for kind in CONTENT_TYPES),
    ],
)
def test_parameters_are_taken_from_wherever_sdks_send_them(
    populated: tuple[World, dict[str, str]], call: str, where: str, content_type: str
) -> None:
    world, keys = populated
    query = token_query(keys["shop"])
    mark, _, where = where.rpartition(" ")
    match where:
        case "query":
            response = world.ask(call, **query)
        case "form":
            response = world.ask(call, body=mark + urlencode(query), content_type=content_type)
        case "multipart":
            response = world.ask(call, body=multipart(query), content_type=content_type)
        case _:
            response = world.ask(call, body=mark + json.dumps(query), content_type=content_type)
    assert response == {"access_token": world.token(), "expires_in": 6835}


# --- refusals

WRONG = {
    "no grant_type": ("GET /cgi-bin/token", {"grant_type": None}, 40002, "invalid grant_type"),
    "another grant_type": ("GET /cgi-bin/token", {"grant_type": "password"}, 40002, "invalid grant_type"),
    "no appid": ("GET /cgi-bin/token", {"appid": None}, 41002, "appid missing"),
    "an empty appid": ("GET /cgi-bin/token", {"appid": ""}, 41002, "appid missing"),
    "no secret": ("GET /cgi-bin/token", {"secret": None}, 41004, "appsecret missing"),
    "a key of no consumer": ("GET /cgi-bin/token", {"secret": REVOKED}, 40125, "invalid appsecret"),
    "no key at all": ("GET /cgi-bin/token", {"secret": "0123456789abcdef0123456789abcdef"}, 40125, "invalid appsecret"),
    "an odd key": ("GET /cgi-bin/token", {"secret": "wtk_é\n' OR 1"}, 40125, "invalid appsecret"),
    "an unknown appid": ("GET /cgi-bin/token", {"appid": OTHER_APPID}, 40013, "invalid appid"),
    "an odd appid": ("GET /cgi-bin/token", {"appid": "../accounts"}, 40013, "invalid appid"),
    "a key of no consumer for an unknown appid": (
        "GET /cgi-bin/token",
        {"secret": REVOKED, "appid": OTHER_APPID},
        40125,
        "invalid appsecret",
    ),
    "a corpid where an appid is asked for": ("GET /cgi-bin/token", {"appid": CORPID}, 40013, "invalid appid"),
    "stable: no grant_type": ("POST /cgi-bin/stable_token", {"grant_type": None}, 40002, "invalid grant_type"),
    "stable: an unknown appid": ("POST /cgi-bin/stable_token", {"appid": OTHER_APPID}, 40013, "invalid appid"),
    "corp: no corpid": ("GET /cgi-bin/gettoken", {"corpid": None}, 41002, "corpid missing"),
    "corp: no corpsecret": ("GET /cgi-bin/gettoken", {"corpsecret": None}, 41004, "corpsecret missing"),
    "corp: a key of no consumer": ("GET /cgi-bin/gettoken", {"corpsecret": REVOKED}, 40125, "invalid appsecret"),
    "corp: an unknown corpid": ("GET /cgi-bin/gettoken", {"corpid": "ww1"}, 40013, "invalid corpid"),
    "corp: an appid where a corpid is asked for": ("GET /cgi-bin/gettoken", {"corpid": APPID}, 40013, "invalid corpid"),
    "ticket: no token": ("GET /cgi-bin/ticket/getticket", {"access_token": None}, 41001, "access_token missing"),
    "ticket: an unknown token": (
        "GET /cgi-bin/ticket/getticket",
        {"access_token": "unknown"},
        40001,
        "invalid credential, access_token is invalid or not latest",
    ),
    "ticket: no type": ("GET /cgi-bin/ticket/getticket", {"type": None}, 40097, "invalid args"),
    "ticket: an unknown type": ("GET /cgi-bin/ticket/getticket", {"type": "access_token"}, 40097, "invalid args"),
    "ticket: one that is not kept": (
        "GET /cgi-bin/ticket/getticket",
        {"type": "wx_card"},
        48001,
        "api unauthorized, no wx_card ticket is kept for this account",
    ),
}


@pytest.mark.parametrize(("call", "change", "errcode", "errmsg"), WRONG.values(), ids=WRONG)
def test_what_wechat_refuses_is_refused_with_wechats_code(
    populated: tuple[World, dict[str, str]], call: str, change: dict[str, str | None], errcode: int, errmsg: str
) -> None:
    # Given parameters that are right except one
    world, keys = populated
    key = keys["shop"]
    right: dict[str, str | None] = {
        **token_query(key),
        **{"corpid": CORPID, "corpsecret": key, "access_token": world.token(), "type": "jsapi"},
    }
    query = {name: value for name, value in (right | change).items() if value is not None}
    # Then it is refused, wherever they stand
    assert world.ask(call, **query) == refused(errcode, errmsg)
    assert world.ask(call, body=json.dumps(query)) == refused(errcode, errmsg)


BODIES = {
    "broken JSON": (b'{"grant_type"', 47001),
    "too deep": (b'{"a":' * 1500 + b"1" + b"}" * 1500, 47001),
    "no UTF-8": (b"\xff\xfe", 47001),
    "too long": (b"grant_type=client_credential&appid=" + b"x" * 9000, 47001),
    "many fields": (b"&".join(b"a=1" for _ in range(200)), 47001),
    "a list": (b'["client_credential"]', 40002),
    "numbers": (b'{"grant_type":"client_credential","appid":1,"secret":2}', 41002),
    "half a surrogate": (b'{"grant_type":"client_credential","appid":"\\ud800","secret":"\\ud800"}', 40125),
    "nothing": (b"", 40002),
}


@pytest.mark.parametrize(("body", "errcode"), BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("content_type", ["application/octet-stream", "application/json"])
def test_a_body_that_is_none_is_refused(
    populated: tuple[World, dict[str, str]], body: bytes, errcode: int, content_type: str
) -> None:
    response = populated[0].ask("POST /cgi-bin/stable_token", body=body, content_type=content_type)
    if body == b"\xff\xfe" and content_type == "application/json":
        errcode = 40002  # the gateway has made text of it
    assert response["errcode"] == errcode
    assert response["errmsg"].endswith(f" rid: {REQUEST_ID}")
