"""`consumers`: keys that are shown once, and what the table keeps of them."""

import errno
import hashlib
import json
import re
from typing import Any

import pytest

from infra.cli import consumer_keys
from infra.cli.deployed_stack import DeployedStack
from infra.errors import OperatorError
from tests.support.command_line import APPID, create_stack, items, put_item, run


def kept_consumers() -> list[dict[str, Any]]:
    return [item for item in items() if item["pk"]["S"] == "consumers"]


def test_a_consumers_key_is_shown_once_and_only_its_hash_is_kept(stack: None) -> None:
    # When a consumer is added
    result = run("consumers", "add", "shop", "--accounts", "main,mini-*", "--may-report")
    # Then standard output has nothing but its key
    assert result.exit_code == 0, result.output
    key = result.stdout.strip()
    assert re.fullmatch(r"wtk_[A-Za-z0-9_-]{43}", key)
    assert key not in result.stderr
    # And the table has its SHA-256, and nothing that ends by itself
    (item,) = kept_consumers()
    del item["created_at"]
    assert item == {
        "pk": {"S": "consumers"},
        "sk": {"S": hashlib.sha256(key.encode()).hexdigest()},
        "name": {"S": "shop"},
        "accounts": {"S": "main mini-*"},
        "may_report": {"N": "1"},
    }


def test_consumers_are_listed_by_name_without_keys(stack: None) -> None:
    keys = [
        run("consumers", "add", "staging", "--accounts", "main").stdout.strip(),
        run("consumers", "add", "shop", "--accounts", "main,mini-*", "--may-report").stdout.strip(),
    ]
    result = run("consumers", "list")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines == [
        ["consumer", "accounts", "may", "report", "cache", "for", "key"],
        ["shop", "main,", "mini-*", "yes", "–", "current"],
        ["staging", "main", "no", "–", "current"],
    ]
    assert not any(key in result.output or hashlib.sha256(key.encode()).hexdigest() in result.output for key in keys)


def test_a_revoked_consumer_is_gone_and_its_name_free_again(stack: None) -> None:
    run("consumers", "add", "shop", "--accounts", "main")
    run("consumers", "add", "staging", "--accounts", "main")
    # When one is revoked
    result = run("consumers", "revoke", "shop")
    # Then only the other is left
    assert result.exit_code == 0
    assert "15 seconds" in result.stdout
    assert [item["name"]["S"] for item in kept_consumers()] == ["staging"]
    assert run("consumers", "add", "shop", "--accounts", "main").exit_code == 0


def test_spaces_after_commas_and_the_longest_life_are_kept(stack: None) -> None:
    result = run("consumers", "add", "shop", "--accounts", "main, mini-*", "--cache-for", "300")
    assert result.exit_code == 0, result.output
    (item,) = kept_consumers()
    assert (item["accounts"], item["cache_for"]) == ({"S": "main mini-*"}, {"N": "300"})
    listed = json.loads(run("consumers", "list", "--json").stdout)["consumers"]
    shop = {
        "consumer": "shop",
        "accounts": ["main", "mini-*"],
        "may_report": False,
        "cache_for": 300,
        "replaced_at": None,
    }
    assert listed == [shop]


def test_accounts_that_match_nothing_get_a_warning(stack: None) -> None:
    # Given one account
    put_item(pk="accounts", sk="main", app_id=APPID, kind="token", credentials="access_token")
    # When a consumer is added that may read others too
    result = run("consumers", "add", "shop", "--accounts", "main,m*,mian,shop-*")
    # Then it is added, and what matches nothing is named
    assert result.exit_code == 0
    assert [line.split()[1] for line in result.stderr.splitlines() if line.startswith("Warning: ")] == [
        "mian",
        "shop-*",
    ]


def test_rotate_makes_a_second_key_until_the_old_is_revoked(stack: None) -> None:
    # Given a consumer
    old = run("consumers", "add", "shop", "--accounts", "main", "--may-report", "--cache-for", "60").stdout.strip()
    # When its key is rotated
    rotated = run("consumers", "rotate", "shop")
    # Then there is another key with the same rights beside it
    new = rotated.stdout.strip()
    assert (rotated.exit_code, new != old) == (0, True)
    assert "consumers revoke shop --old" in rotated.stderr
    items = {item["sk"]["S"]: item for item in kept_consumers()}
    first, second = (items.pop(hashlib.sha256(key.encode()).hexdigest()) for key in (old, new))
    assert (items, int(first.pop("rotated_at")["N"]) > 0) == ({}, True)
    rights = ("name", "accounts", "may_report", "cache_for")
    assert [first[right] for right in rights] == [second[right] for right in rights]
    assert "rotated_at" not in second
    # And a third is not made while there are two
    again = run("consumers", "rotate", "shop")
    assert (again.exit_code, "has two keys already" in again.stderr, len(kept_consumers())) == (2, True, 2)
    # When the old one is revoked, the new one stays, and can be rotated
    assert run("consumers", "revoke", "shop", "--old").exit_code == 0
    assert [item["sk"]["S"] for item in kept_consumers()] == [hashlib.sha256(new.encode()).hexdigest()]
    assert run("consumers", "rotate", "shop").exit_code == 0
    # And without --old, all go
    assert run("consumers", "revoke", "shop").exit_code == 0
    assert kept_consumers() == []


def test_of_two_operators_one_adds_a_consumer(stack: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given two operators who look at the same moment, when there is none of that name
    deployed = DeployedStack("wechat-token-keeper")
    monkeypatch.setattr(consumer_keys, "list_keys", lambda _: [])
    consumer_keys.add_consumer(deployed, "shop", ["main"], may_report=False)
    # When the second adds it too
    with pytest.raises(OperatorError, match="'shop' exists"):
        consumer_keys.add_consumer(deployed, "shop", ["main"], may_report=False)
    # Then there is one
    assert len(kept_consumers()) == 1


def test_a_key_that_cannot_be_written_is_taken_back(stack: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a full disk behind standard output
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("infra.cli.consumers.say", full)
    # When a consumer is added
    result = run("consumers", "add", "shop", "--accounts", "main")
    # Then its key, which was not read, is valid nowhere
    assert result.exit_code == 2
    assert "so shop was not added" in result.stderr
    assert "No space left on device" in result.stderr
    assert kept_consumers() == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add", "shop"], "--accounts"),
        (["add", "shop", "--accounts", ""], "'' is no account"),
        (["add", "shop", "--accounts", "main,"], "'' is no account"),
        (["add", "shop", "--accounts", "ma?n"], "'ma?n' is no account"),
        (["add", "Shop", "--accounts", "main"], "lower-case letters"),
        (["add", "staging", "--accounts", "main"], "The consumer 'staging' exists"),
        (["add", "shop", "--accounts", "main", "--cache-for", "0"], "not in the range 1<=x<=7200"),
        (["revoke", "shop"], "There is no consumer 'shop'"),
        (["rotate", "shop"], "There is no consumer 'shop'"),
        (["revoke", "staging", "--old"], "'staging' has no old key"),
    ],
)
def test_what_cannot_be_done_with_consumers_is_said(stack: None, arguments: list[str], says: str) -> None:
    run("consumers", "add", "staging", "--accounts", "main")
    result = run("consumers", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""
    assert len(kept_consumers()) == 1


def test_a_key_that_cannot_be_used_yet_is_said_to_be_one(stack: None) -> None:
    # Given a stack that does not respond in WeChat's format
    create_stack("quiet", WeChatCompatibleApi="disabled")
    result = run("--stack-name", "quiet", "consumers", "add", "shop", "--accounts", "main")
    assert result.exit_code == 0
    assert "WeChatCompatibleApi=disabled" in result.stderr
    assert result.stdout.startswith("wtk_")
