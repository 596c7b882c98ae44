"""The authorisation matrix of the WeChat-compatible API: consumer × account × call."""

from collections.abc import Iterator

import pytest
from moto import mock_aws

from tests import openapi
from tests.integration.wechats_calls import CORPID, ask_corp_token, ask_stable_token, ask_ticket, ask_token, refused
from tests.world import APPID, World

ACCOUNTS = {
    "main": {"appid": APPID, "secret": "1" * 32, "tickets": ["jsapi"]},
    "main-stable": {"appid": APPID, "secret": "1" * 32, "endpoint": "stable_token"},
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
    (TOKEN, APPID): {"everything": "main", "stable": "main-stable", "shop": "main"},
    (STABLE, APPID): {"everything": "main-stable", "stable": "main-stable", "shop": "main"},
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
def populated() -> Iterator[tuple[World, dict[str, str]]]:
    """A world with these accounts and consumers, and the consumers' keys."""
    with mock_aws():
        world = World()
        world.answered = openapi.check
        for name, record in ACCOUNTS.items():
            world.add_account(name, **record)
        keys = {name: world.add_consumer(name, accounts) for name, accounts in CONSUMERS.items()}
        world.revoke(keys["gone"])
        yield world, keys


@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize(("call", "app"), MATRIX)
def test_a_consumer_reads_its_accounts_and_no_other(
    populated: tuple[World, dict[str, str]], call: str, app: str, consumer: str
) -> None:
    world, keys = populated
    expected = 40125 if consumer == "gone" else MATRIX[call, app].get(consumer, 40013)
    # When the consumer asks, twice: the second time the instance remembers
    ask = {TOKEN: ask_token, STABLE: ask_stable_token, CORP: ask_corp_token}[call]
    answers = [ask(world, keys[consumer], app) for _ in range(2)]
    # Then it gets the token of its account, or WeChat's refusal
    for answer in answers:
        if isinstance(expected, int):
            assert answer["errcode"] == expected
            assert "access_token" not in answer
        else:
            assert answer["access_token"] == world.token(expected)


def test_a_key_for_several_apps_of_a_corp_is_told_what_to_do(populated: tuple[World, dict[str, str]]) -> None:
    world, keys = populated
    answer = ask_corp_token(world, keys["everything"])
    hint = "this key may read several apps of this corp: make one consumer for each app"
    assert answer == refused(40013, f"invalid corpid, {hint}")


@pytest.mark.parametrize("account", ACCOUNTS)
def test_a_token_gets_the_ticket_of_its_own_account(populated: tuple[World, dict[str, str]], account: str) -> None:
    world, _ = populated
    # When somebody shows the account's token and asks for a jsapi ticket
    answer = ask_ticket(world, world.token(account), instance=world.api_instance())
    # Then it gets that of the same account, if one is kept
    if account == "main":
        assert answer["ticket"] == world.get("/v1/accounts/main/tickets/jsapi")[1]["ticket"]
    else:
        assert answer["errcode"] == 48001
