"""`accounts`: what is stored in Parameter Store, what is refused, and what is shown without a secret."""

import json
import re
from typing import Any

import pytest
import responses

from tests.support.command_line import (
    ACCOUNTS_PATH,
    API,
    APPID,
    FRESH,
    NEVER,
    SECRET,
    account,
    client,
    create_stack,
    names,
    put_item,
    run,
    stored,
)

CORP_SECRET = "Zy3-Q8_vKp0mTn6bXr1cWd4eHs7jLf9gAuVwBtYiOoE"


@pytest.mark.parametrize(
    ("options", "secret", "record"),
    [
        (["--appid", APPID], SECRET, {"appid": APPID, "endpoint": "token", "tickets": []}),
        (
            ["--appid", APPID, "--endpoint", "stable_token", "--ticket", "jsapi", "--ticket", "wx_card"],
            SECRET,
            {"appid": APPID, "endpoint": "stable_token", "tickets": ["jsapi", "wx_card"]},
        ),
        (
            ["--corpid", "ww0123456789abcdef", "--ticket", "agent_config"],
            CORP_SECRET,
            {"corpid": "ww0123456789abcdef", "tickets": ["agent_config"]},
        ),
    ],
)
def test_an_added_account_is_in_parameter_store(
    stack: None, options: list[str], secret: str, record: dict[str, Any]
) -> None:
    # When an account is added with its secret on standard input
    result = run("accounts", "add", "main", *options, "--no-wait", stdin=f"{secret}\n")
    # Then its whole record is stored, the operator reads what comes next, and the secret is not shown
    assert result.exit_code == 0
    assert stored("main") == {**record, "secret": secret}
    assert "token-keeper status main" in result.stdout
    assert secret not in result.output


def test_the_secret_is_asked_for_at_a_terminal_and_not_shown(stack: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a terminal
    monkeypatch.setattr("typer.testing._NamedTextIOWrapper.isatty", lambda self: self.name == "<stdin>", raising=False)
    # When an account is added
    result = run("accounts", "add", "main", "--appid", APPID, "--no-wait", stdin=f"{SECRET}\n")
    # Then its secret is asked for
    assert "Secret" in result.output
    assert SECRET not in result.output
    assert stored("main")["secret"] == SECRET


@pytest.mark.parametrize("command", [["accounts", "add", "main", "--appid", APPID], ["accounts", "set-secret", "main"]])
def test_no_option_takes_a_secret(stack: None, command: list[str]) -> None:
    result = run(*command, "--secret", SECRET)
    assert result.exit_code == 2
    assert SECRET not in result.output
    assert names() == []


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "\n",
        " \n",
        f"{SECRET[:16]} {SECRET[16:]}\n",
        f"{SECRET[:16]}\n{SECRET[16:]}",
        f"\x00{SECRET[1:]}",
        SECRET[1:],
        b"\xff" * 32,
    ],
)
def test_a_secret_that_cannot_be_one_is_refused(stack: None, secret: str | bytes) -> None:
    result = run("accounts", "add", "main", "--appid", APPID, "--no-wait", stdin=secret)
    assert result.exit_code == 2
    assert "secret" in result.stderr.lower()
    assert SECRET[16:] not in result.output
    assert names() == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["main"], "--appid"),
        (["main", "--appid", APPID, "--corpid", "ww0123456789abcdef"], "either"),
        (["main", "--appid", "wx123"], "16 lower-case hex digits"),
        (["main", "--corpid", ""], "corpid"),
        (["main", "--corpid", "ww0123456789abcdef", "--endpoint", "token"], "WeCom"),
        (["main", "--corpid", "ww0123456789abcdef", "--ticket", "wx_card"], "agent_config"),
        (["main", "--appid", APPID, "--endpoint", "gettoken"], "stable_token"),
        (["../other", "--appid", APPID], "lower-case letters"),
        (["Main", "--appid", APPID], "lower-case letters"),
    ],
)
def test_an_account_that_cannot_be_is_refused(stack: None, arguments: list[str], says: str) -> None:
    result = run("accounts", "add", *arguments, stdin=SECRET)
    assert result.exit_code == 2
    assert says in result.stderr
    assert names() == []


@pytest.mark.parametrize(
    "pasted", [f"  {SECRET}\n", f"{SECRET} \n", f"{SECRET}\r\n\r\n", f"\ufeff{SECRET}", f"{SECRET}\u3000"]
)
def test_blanks_around_a_pasted_secret_are_left_out(stack: None, pasted: str) -> None:
    result = run("accounts", "add", "main", "--appid", APPID, "--no-wait", stdin=pasted)
    assert result.exit_code == 0, result.output
    assert stored("main")["secret"] == SECRET
    assert "spaces or line ends around the secret were left out" in result.stderr


def test_a_line_end_after_a_secret_needs_no_words(stack: None) -> None:
    assert run("accounts", "add", "main", "--appid", APPID, "--no-wait", stdin=f"{SECRET}\n").stderr == ""


@pytest.mark.parametrize(
    ("name", "appid", "says"),
    [
        ("main", "wx0000000000000000", "The account 'main' exists: use `accounts set`"),
        ("other", APPID, f"{APPID} is kept already, as account main"),
    ],
)
def test_what_is_taken_is_said_before_a_secret_is_asked_for(stack: None, name: str, appid: str, says: str) -> None:
    # Given an account that is kept
    run("accounts", "add", "main", "--appid", APPID, "--no-wait", stdin=SECRET)
    put_item(pk="accounts", sk="main", app_id=APPID, kind="token", credentials="access_token")
    # When another of its name or its appid is added, by an operator who gives no secret
    result = run("accounts", "add", name, "--appid", appid, stdin="")
    # Then it is refused for that, and not for the secret, and the first is unchanged
    assert result.exit_code == 2
    assert says in result.stderr
    assert stored("main")["appid"] == APPID
    assert names() == [f"{ACCOUNTS_PATH}/main"]


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (["--endpoint", "stable_token"], {"endpoint": "stable_token"}),
        (["--tickets", "jsapi, wx_card"], {"tickets": ["jsapi", "wx_card"]}),
        (["--tickets", "wx_card", "--endpoint", "stable_token"], {"tickets": ["wx_card"], "endpoint": "stable_token"}),
        (["--tickets", "none"], {"tickets": []}),
        (["--tickets", ""], {"tickets": []}),
    ],
)
def test_set_changes_what_it_is_told_and_nothing_else(stack: None, options: list[str], changes: dict[str, Any]) -> None:
    # Given an account with a ticket
    run("accounts", "add", "main", "--appid", APPID, "--tickets", "jsapi", "--no-wait", stdin=SECRET)
    before = stored("main")
    # When its settings are changed
    result = run("accounts", "set", "main", *options, "--no-wait")
    # Then its parameter has a second version with the changes, and was never removed
    assert result.exit_code == 0, result.output
    assert stored("main") == {**before, **changes}
    history = client("ssm").get_parameter_history(Name=f"{ACCOUNTS_PATH}/main")["Parameters"]
    assert [version["Version"] for version in history] == [1, 2]
    assert SECRET not in result.output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "give --endpoint, --tickets, or both"),
        (["--tickets", "agent_config"], "--tickets takes jsapi, wx_card"),
        (["--endpoint", "gettoken"], "stable_token"),
    ],
)
def test_set_refuses_what_wechat_does_not_have(stack: None, options: list[str], says: str) -> None:
    run("accounts", "add", "main", "--appid", APPID, "--no-wait", stdin=SECRET)
    result = run("accounts", "set", "main", *options)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "endpoint" in stored("main")
    assert stored("main")["tickets"] == []


def test_set_without_a_change_writes_nothing(stack: None) -> None:
    run("accounts", "add", "main", "--appid", APPID, "--no-wait", stdin=SECRET)
    result = run("accounts", "set", "main", "--endpoint", "token", "--tickets", "none")
    assert (result.exit_code, "nothing was changed" in result.stdout) == (0, True)
    assert len(client("ssm").get_parameter_history(Name=f"{ACCOUNTS_PATH}/main")["Parameters"]) == 1


@pytest.mark.parametrize(("is_applied", "says"), [(True, "in force"), (False, "not in force")])
def test_show_tells_the_settings_without_the_secret(api: responses.RequestsMock, is_applied: bool, says: str) -> None:
    # Given an account whose record is applied, or not
    run("accounts", "add", "main", "--appid", APPID, "--no-wait", stdin=SECRET)
    parameter = client("ssm").get_parameter(Name=f"{ACCOUNTS_PATH}/main")["Parameter"]
    version = f"1@{parameter['LastModifiedDate'].timestamp():.3f}" if is_applied else "1@0.000"
    entry = {"app_id": APPID, "kind": "token", "credentials": "access_token jsapi", "version": version}
    put_item(pk="accounts", sk="main", **entry)
    api.get(f"{API}/v1/accounts/main", json=account("main", FRESH, NEVER))
    # When it is shown, to an operator and to a script
    shown, machine = run("accounts", "show", "main"), run("accounts", "show", "main", "--json")
    # Then both say what it is and whether its record is in force
    lines = [line.split(maxsplit=1) for line in shown.stdout.splitlines()]
    assert lines[:4] == [["account:", "main"], ["appid:", APPID], ["endpoint:", "token"], ["tickets:", "jsapi"]]
    assert re.match(rf"of \S+, {says}", lines[4][1])
    document = json.loads(machine.stdout)
    assert (document["endpoint"], document["tickets"], document["record"]["in_force"]) == (
        "token",
        ["jsapi"],
        is_applied,
    )
    assert SECRET not in shown.output + machine.output


def test_set_secret_keeps_all_else(stack: None) -> None:
    # Given an account with a ticket
    run("accounts", "add", "main", "--appid", APPID, "--ticket", "jsapi", "--no-wait", stdin=SECRET)
    before = stored("main")
    # When its secret is changed
    result = run("accounts", "set-secret", "main", "--no-wait", stdin="0" * 32)
    # Then only the secret differs
    assert result.exit_code == 0
    assert "token-keeper status main" in result.stdout
    assert stored("main") == {**before, "secret": "0" * 32}
    assert "0" * 32 not in result.output


@pytest.mark.parametrize("value", ["not JSON " + SECRET, '["' + SECRET + '"]'])
def test_a_broken_record_is_not_echoed(stack: None, value: str) -> None:
    client("ssm").put_parameter(Name=f"{ACCOUNTS_PATH}/main", Value=value, Type="SecureString")
    result = run("accounts", "set-secret", "main", stdin=SECRET)
    assert result.exit_code == 2
    assert "remove the account" in result.stderr
    assert SECRET not in result.output


def test_records_are_encrypted_with_the_key_of_the_stack(stack: None) -> None:
    # Given a stack with a customer key
    key = "arn:aws-cn:kms:cn-north-1:123456789012:key/0a1b"
    create_stack("keyed", KmsKeyArn=key)
    # When an account is added and its secret changed
    run("--stack-name", "keyed", "accounts", "add", "main", "--appid", APPID, "--no-wait", stdin=SECRET)
    run("accounts", "set-secret", "main", "--no-wait", stdin="0" * 32, TOKEN_KEEPER_STACK="keyed")
    # Then both versions are encrypted with it
    history = client("ssm").get_parameter_history(Name=f"{ACCOUNTS_PATH}/main")["Parameters"]
    assert [version["KeyId"] for version in history] == [key, key]


def test_remove_asks_first(stack: None) -> None:
    # Given an account
    run("accounts", "add", "main", "--appid", APPID, "--no-wait", stdin=SECRET)
    # When its removal is not confirmed, it stays
    assert run("accounts", "remove", "main", stdin="n\n").exit_code == 1
    assert names() == [f"{ACCOUNTS_PATH}/main"]
    # When it is confirmed, it goes
    assert run("accounts", "remove", "main", stdin="y\n").exit_code == 0
    assert names() == []


@pytest.mark.parametrize("command", [["remove", "--yes"], ["set-secret"]])
def test_an_unknown_account_is_said_to_be_one(stack: None, command: list[str]) -> None:
    result = run("accounts", *command, "unknown", stdin=SECRET)
    assert result.exit_code == 2
    assert "There is no account 'unknown'" in result.stderr


def test_list_shows_the_accounts_without_reading_records(api: responses.RequestsMock) -> None:
    # Given a public account with a ticket and a WeCom app, on two pages
    wecom = {"account": "corp", "corpid": "ww0123456789abcdef", "credentials": [FRESH]}
    api.get(f"{API}/v1/accounts", json={"accounts": [account("main", FRESH, NEVER)], "next": "a/b+c="})
    api.get(
        f"{API}/v1/accounts",
        json={"accounts": [wecom]},
        match=[responses.matchers.query_param_matcher({"next": "a/b+c="})],
    )
    # When they are listed
    result = run("accounts", "list")
    # Then each is a line
    assert result.exit_code == 0
    assert [line.split() for line in result.stdout.splitlines()[1:]] == [
        ["main", APPID, "token", "jsapi"],
        ["corp", "ww0123456789abcdef", "–", "–"],
    ]


def test_lists_are_there_for_scripts_too(api: responses.RequestsMock) -> None:
    api.get(f"{API}/v1/accounts", json={"accounts": [account("main", FRESH, NEVER)]})
    listed = {"account": "main", "appid": APPID, "corpid": None, "endpoint": "token", "tickets": ["jsapi"]}
    assert json.loads(run("accounts", "list", "--json").stdout) == {"accounts": [listed]}
