"""The command line as an operator meets it: what is shown, what stands in Parameter Store, how it exits.

CloudFormation and Parameter Store are moto's; the API and RefreshFunction are answered over HTTP by the tests.
"""

import errno
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
import responses
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.server import ThreadedMotoServer
from typer.testing import CliRunner, Result

from infra.cli import app, consumer_keys
from infra.cli.api_client import ApiClient
from infra.cli.deployed_stack import DeployedStack
from infra.errors import OperatorError
from infra.local import access_keys
from infra.local.access_keys import Key
from infra.stack import TEMPLATE as TEMPLATE_FILE

APPID = "wx617a123bb8bc99cd"
SECRET = "5f4dcc3b5aa765d61d8327deb882cf99"
CORP_SECRET = "Zy3-Q8_vKp0mTn6bXr1cWd4eHs7jLf9gAuVwBtYiOoE"
ACCOUNTS_PATH = "/elsewhere/accounts"
API = "https://api.example.com"
NOW = "Sun, 22 Nov 2026 13:27:00 GMT"

TEMPLATE = {
    "Parameters": {
        "KmsKeyArn": {"Type": "String", "Default": ""},
        "WeChatCompatibleApi": {"Type": "String", "Default": "enabled"},
    },
    "Resources": {
        "TokenTable": {
            "Type": "AWS::DynamoDB::Table",
            "Properties": {
                "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
                "KeySchema": [
                    {"AttributeName": "pk", "KeyType": "HASH"},
                    {"AttributeName": "sk", "KeyType": "RANGE"},
                ],
                "BillingMode": "PAY_PER_REQUEST",
            },
        }
    },
    "Outputs": {
        "ApiUrl": {"Value": f"{API}/"},
        "TokenTableName": {"Value": {"Ref": "TokenTable"}},
        "RefreshFunctionName": {"Value": "refresh"},
        "AccountsPath": {"Value": ACCOUNTS_PATH},
    },
}

FRESH = {
    "credential": "access_token",
    "state": "fresh",
    "fingerprint": "9f86d081884c7d65",
    "fetched_at": "2026-11-22T13:25:00Z",
    "expires_at": "2026-11-22T15:25:00Z",
    "renews_at": "2026-11-22T15:15:00Z",
    "failures": 0,
    "last_error": None,
}
ERROR = {
    "class": "configuration",
    "errcode": 40164,
    "errmsg": "invalid ip 8.149.1.2, not in whitelist [rid: 1]",
    "remedy": "Add 8.149.1.2 to the IP whitelist.",
    "at": "2026-11-22T13:24:00Z",
}
FAILING = FRESH | {"state": "failing", "failures": 3, "last_error": ERROR, "expires_at": "2026-11-22T13:27:40Z"}
NEVER = FRESH | {
    "credential": "jsapi",
    "state": "never_fetched",
    **dict.fromkeys(("fingerprint", "fetched_at", "expires_at", "renews_at")),
}


def account(name: str, *credentials: dict[str, Any]) -> dict[str, Any]:
    return {"account": name, "appid": APPID, "endpoint": "token", "credentials": list(credentials)}


@pytest.fixture(autouse=True)
def operator(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL", "TOKEN_KEEPER_STACK", "TOKEN_KEEPER_LOCAL_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "example")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "cn-north-1")


@pytest.fixture
def stack() -> Iterator[None]:
    with mock_aws():
        boto3.client("cloudformation").create_stack(StackName="wechat-token-keeper", TemplateBody=json.dumps(TEMPLATE))
        yield


@pytest.fixture
def api(stack: None) -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


class Service:
    """An AWS service that gives one answer, and keeps the path and body of what it was asked."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.answer = ""
        self.url = ""


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            service.requests.append((self.path, self.rfile.read(int(self.headers["Content-Length"])).decode()))
            self.send_response_only(service.status)
            for header in {"Content-Length": str(len(service.answer.encode())), **service.headers}.items():
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(service.answer.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        service.url = f"http://127.0.0.1:{server.server_port}"
        yield service
        server.shutdown()


def run(*arguments: str, stdin: str | bytes = "", **environment: str) -> Result:
    result = CliRunner(env=environment).invoke(app, arguments, input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def stored(name: str) -> dict[str, Any]:
    parameter = boto3.client("ssm").get_parameter(Name=f"{ACCOUNTS_PATH}/{name}", WithDecryption=True)["Parameter"]
    assert parameter["Type"] == "SecureString"
    record: dict[str, Any] = json.loads(parameter["Value"])
    return record


def put_item(**values: str) -> None:
    """Write an item of texts into the stack's table."""
    boto3.client("dynamodb").put_item(
        TableName=table_name(), Item={name: {"S": value} for name, value in values.items()}
    )


def table_name() -> str:
    outputs = boto3.client("cloudformation").describe_stacks()["Stacks"][0]["Outputs"]
    return next(output["OutputValue"] for output in outputs if output["OutputKey"] == "TokenTableName")


def names() -> list[str]:
    return [one["Name"] for one in boto3.client("ssm").get_parameters_by_path(Path=ACCOUNTS_PATH)["Parameters"]]


# --- accounts


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
    # Then its whole record is stored, the operator hears what comes next, and nobody sees the secret
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
    history = boto3.client("ssm").get_parameter_history(Name=f"{ACCOUNTS_PATH}/main")["Parameters"]
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
    assert len(boto3.client("ssm").get_parameter_history(Name=f"{ACCOUNTS_PATH}/main")["Parameters"]) == 1


@pytest.mark.parametrize(("is_applied", "says"), [(True, "in force"), (False, "not in force")])
def test_show_tells_the_settings_without_the_secret(api: responses.RequestsMock, is_applied: bool, says: str) -> None:
    # Given an account whose record is applied, or not
    run("accounts", "add", "main", "--appid", APPID, "--no-wait", stdin=SECRET)
    parameter = boto3.client("ssm").get_parameter(Name=f"{ACCOUNTS_PATH}/main")["Parameter"]
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
    boto3.client("ssm").put_parameter(Name=f"{ACCOUNTS_PATH}/main", Value=value, Type="SecureString")
    result = run("accounts", "set-secret", "main", stdin=SECRET)
    assert result.exit_code == 2
    assert "remove the account" in result.stderr
    assert SECRET not in result.output


def test_records_are_encrypted_with_the_key_of_the_stack(stack: None) -> None:
    # Given a stack with a customer key
    key = "arn:aws-cn:kms:cn-north-1:123456789012:key/0a1b"
    boto3.client("cloudformation").create_stack(
        StackName="keyed",
        TemplateBody=json.dumps(TEMPLATE),
        Parameters=[{"ParameterKey": "KmsKeyArn", "ParameterValue": key}],
    )
    # When an account is added and its secret changed
    run("--stack-name", "keyed", "accounts", "add", "main", "--appid", APPID, "--no-wait", stdin=SECRET)
    run("accounts", "set-secret", "main", "--no-wait", stdin="0" * 32, TOKEN_KEEPER_STACK="keyed")
    # Then both versions are encrypted with it
    history = boto3.client("ssm").get_parameter_history(Name=f"{ACCOUNTS_PATH}/main")["Parameters"]
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
    result = run("accounts", *command, "nobody", stdin=SECRET)
    assert result.exit_code == 2
    assert "There is no account 'nobody'" in result.stderr


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


# --- token


def test_token_prints_the_token_alone(api: responses.RequestsMock) -> None:
    answer = {"account": "main", "access_token": "85_Xk3pZk0m", "expires_in": 6826}
    api.get(f"{API}/v1/accounts/main/access-token", json=answer)
    assert run("token", "main").stdout == "85_Xk3pZk0m\n"
    assert json.loads(run("token", "main", "--json").stdout) == answer


def test_where_there_is_no_token_it_says_why(api: responses.RequestsMock) -> None:
    cause = {"class": "configuration", "errcode": 40164, "remedy": "Add 8.149.1.2 to the IP whitelist."}
    problem = {"code": "no_valid_value", "title": "No valid value", "cause": cause}
    api.get(f"{API}/v1/accounts/main/access-token", status=503, json=problem)
    result = run("token", "main")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no usable token right now: configuration 40164" in result.stderr
    assert cause["remedy"] in result.stderr


# --- status


def test_status_shows_every_credential_and_the_remedies(api: responses.RequestsMock) -> None:
    # Given an account that is well, and one that needs a person
    pages = {"accounts": [account("main", FRESH), account("shop", FAILING, NEVER)]}
    api.get(f"{API}/v1/accounts", json=pages, headers={"Date": NOW})
    # When the status is asked for
    result = run("status")
    # Then each credential is a line, times are told from the API's now, and the remedy stands below
    lines = result.stdout.splitlines()
    assert [re.split(r"  +", line.strip()) for line in lines[1:4]] == [
        ["main", "access_token", "fresh", "9f86d081884c7d65", "in 1 h 58 min", "in 1 h 48 min", "0"],
        ["shop", "access_token", "failing", "9f86d081884c7d65", "in 40 s", "in 1 h 48 min", "3"],
        ["shop", "jsapi", "never_fetched", "–", "–", "–", "0"],
    ]
    assert "shop access_token: configuration 40164 invalid ip 8.149.1.2, not in whitelist [rid: 1], 3 min ago" in lines
    assert "  → Add 8.149.1.2 to the IP whitelist." in lines
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("credential", "exit_code"),
    [
        (FRESH, 0),
        (FRESH | {"state": "due"}, 0),
        (FRESH | {"state": "failing"}, 1),
        (FRESH | {"state": "expired"}, 1),
        (NEVER, 1),
        (FRESH | {"last_error": ERROR}, 1),
    ],
)
def test_status_exits_with_1_where_a_person_is_needed(
    api: responses.RequestsMock, credential: dict[str, Any], exit_code: int
) -> None:
    document = account("main", credential)
    api.get(f"{API}/v1/accounts/main", json=document)
    assert run("status", "main").exit_code == exit_code
    machine = run("status", "main", "--json")
    assert (machine.exit_code, json.loads(machine.stdout)) == (exit_code, document)


def test_a_narrow_terminal_hides_nothing(api: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a long name and a terminal of 60 columns
    name = "a-rather-long-name-of-a-shop-in-the-north-of-the-city"
    api.get(f"{API}/v1/accounts", json={"accounts": [account(name, FAILING)]}, headers={"Date": NOW})
    # When the status is shown there
    shown = run("status", COLUMNS="60", FORCE_COLOR="1", TERM="xterm-256color").stdout
    # Then each credential takes as many lines as it needs, and all of it is there
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("\n", "")
    for part in (name, "access_token", "failing", "9f86d081884c7d65", "in 40 s", "in 1 h 48 min", "failed 3", "40164"):
        assert part in text
    assert "…" not in text


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m[red]not in whitelist[/red] [/] \u202egnp.exe\r\nfresh"


def test_what_wechat_says_is_only_shown(
    api: responses.RequestsMock, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an errmsg with commands of a terminal, of the console library, and of the direction of writing
    error = ERROR | {"errmsg": HOSTILE, "remedy": HOSTILE}
    api.get(f"{API}/v1/accounts", json={"accounts": [account("main", FAILING | {"last_error": error})]})
    problem = {"code": "no_valid_value", "cause": error}
    api.get(f"{API}/v1/accounts/main/access-token", status=503, json=problem)
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", service.url)
    failed = {"account": "main", "credential": "access_token", "next_attempt_at": "2026-11-22T13:32:00Z", **error}
    service.answer = summary(failed=[failed])
    # When it is shown by any command
    shown = [run(*command).output for command in (["status"], ["refresh", "main"], ["token", "main"])]
    machine = [run("status", "--json").stdout, run("refresh", "main", "--json").stdout]
    # Then nothing of it is a command, and nothing that can be read is lost
    for text in shown + machine:
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    assert all("[red]not in whitelist[/red] [/]" in text for text in (shown[0], shown[1]))
    # And scripts get it as it was
    assert json.loads(machine[0])["accounts"][0]["credentials"][0]["last_error"]["errmsg"] == HOSTILE
    assert json.loads(machine[1])["failed"][0]["errmsg"] == HOSTILE


@pytest.mark.parametrize(("state", "colour"), [("fresh", 32), ("due", 36), ("failing", 33), ("expired", 31)])
def test_states_have_colours(api: responses.RequestsMock, state: str, colour: int) -> None:
    api.get(f"{API}/v1/accounts", json={"accounts": [account("main", FRESH | {"state": state})]})
    shown = run("status", FORCE_COLOR="1", COLUMNS="120", TERM="xterm-256color").stdout
    assert f"\x1b[{colour}m{state}\x1b[0m" in shown


def test_json_joins_all_pages(api: responses.RequestsMock) -> None:
    first, second = account("main", FRESH), account("shop", FRESH)
    api.get(f"{API}/v1/accounts", json={"accounts": [first], "next": "main"})
    api.get(
        f"{API}/v1/accounts",
        json={"accounts": [second]},
        match=[responses.matchers.query_param_matcher({"next": "main"})],
    )
    assert json.loads(run("status", "--json").stdout) == {"accounts": [first, second]}


def test_an_empty_stack_says_how_to_begin(api: responses.RequestsMock) -> None:
    api.get(f"{API}/v1/accounts", json={"accounts": []})
    result = run("status")
    assert result.exit_code == 0
    assert "accounts add" in result.stdout


def test_the_api_is_asked_with_the_operators_signature(
    api: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an operator with temporary credentials
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ASIAEXAMPLE")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session-of-the-operator")
    api.get(f"{API}/v1/accounts/main", json=account("main", FRESH))
    # When the API is asked
    run("--region", "cn-north-1", "status", "main")
    # Then the request is signed with them, for API Gateway in that region
    headers = api.calls[0].request.headers
    assert headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=ASIAEXAMPLE/")
    assert "/cn-north-1/execute-api/aws4_request" in headers["Authorization"]
    assert headers["X-Amz-Security-Token"] == "session-of-the-operator"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            {
                "status": 404,
                "json": {"code": "unknown_account", "title": "Unknown account", "detail": "main is not kept"},
            },
            "no such account",
        ),
        ({"status": 403, "json": {"message": "Forbidden"}}, "execute-api:Invoke"),
        (
            {"status": 503, "json": {"code": "store_unavailable", "detail": "the store is down"}},
            "503: the store is down",
        ),
        ({"status": 502, "body": "<html>"}, "502 without JSON"),
        ({"body": requests.ConnectionError("no route")}, "cannot be reached"),
        ({"body": requests.Timeout("slow")}, "cannot be reached"),
    ],
)
def test_what_the_api_refuses_is_put_into_words(api: responses.RequestsMock, answer: dict[str, Any], says: str) -> None:
    api.get(f"{API}/v1/accounts/main", **answer)
    result = run("status", "main")
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""


# --- refresh


@pytest.fixture
def refresh_function(service: Service, stack: None, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", service.url)
    return service


def summary(**outcomes: Any) -> str:
    return json.dumps({"woken_by": "renew", "renewed": [], "skipped": [], "failed": [], **outcomes})


def test_refresh_replaces_the_token_and_says_so(refresh_function: Service) -> None:
    # Given a RefreshFunction that renews
    times = {
        "expires_at": "2026-11-22T15:32:00Z",
        "promised_until": "2026-11-22T15:26:55Z",
        "renews_at": "2026-11-22T15:23:00Z",
    }
    renewed = {"account": "main", "credential": "access_token", "fingerprint": "9f86d081884c7d65", **times}
    refresh_function.answer = summary(renewed=[renewed])
    # When the token is refreshed
    result = run("refresh", "main")
    # Then it was asked to rotate, and the new value is named
    event = {"renew": {"account": "main", "credential": "access_token", "rotate": True}}
    assert refresh_function.requests == [("/2015-03-31/functions/refresh/invocations", json.dumps(event))]
    assert result.exit_code == 0
    assert all(text in result.stdout for text in ("9f86d081884c7d65", *times.values(), "5 minutes"))


@pytest.mark.parametrize(
    ("outcomes", "says"),
    [
        (
            {"skipped": [{"account": "main", "credential": "jsapi", "reason": "another renewal is in progress"}]},
            ["another"],
        ),
        (
            {
                "failed": [
                    {"account": "main", "credential": "jsapi", "next_attempt_at": "2026-11-22T13:32:00Z", **ERROR}
                ]
            },
            ["configuration 40164 invalid ip", ERROR["remedy"], "2026-11-22T13:32:00Z"],
        ),
        (
            {
                "failed": [
                    {"account": "main", "credential": "jsapi", "next_attempt_at": "2026-11-22T13:32:00Z"}
                    | {"class": "transient", "errcode": None, "errmsg": "no answer", "remedy": "Wait."}
                ]
            },
            ["transient no answer."],
        ),
    ],
)
def test_refresh_exits_with_1_where_nothing_was_renewed(
    refresh_function: Service, outcomes: dict[str, Any], says: list[str]
) -> None:
    refresh_function.answer = summary(**outcomes)
    result = run("refresh", "main", "--credential", "jsapi")
    assert '"credential": "jsapi"' in refresh_function.requests[0][1]
    assert result.exit_code == 1
    assert all(text in result.stdout for text in says)


def test_a_broken_refresh_function_is_asked_once(refresh_function: Service) -> None:
    # Given a RefreshFunction that breaks off, with a text nobody has looked through
    refresh_function.headers = {"X-Amz-Function-Error": "Unhandled"}
    refresh_function.answer = json.dumps({"errorType": "KeyError", "errorMessage": SECRET})
    # When the token is refreshed
    result = run("refresh", "main")
    # Then the log is pointed to, and no second rotation was asked for
    assert result.exit_code == 2
    assert "refresh failed with KeyError: read its log" in result.stderr
    assert SECRET not in result.output
    assert len(refresh_function.requests) == 1


# --- consumers


def kept_consumers() -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = boto3.client("dynamodb").scan(TableName=table_name())["Items"]
    return [item for item in items if item["pk"]["S"] == "consumers"]


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
    # Then its key, which nobody has read, is valid for nobody
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
        (["add", "shop", "--accounts", "main", "--cache-for", "0"], "greater than or equal to 1"),
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


def test_where_nobody_would_answer_a_consumer_that_is_said(stack: None) -> None:
    # Given a stack that does not answer in WeChat's format
    boto3.client("cloudformation").update_stack(
        StackName="wechat-token-keeper",
        TemplateBody=json.dumps(TEMPLATE),
        Parameters=[{"ParameterKey": "WeChatCompatibleApi", "ParameterValue": "disabled"}],
    )
    result = run("consumers", "add", "shop", "--accounts", "main")
    assert result.exit_code == 0
    assert "WeChatCompatibleApi=disabled" in result.stderr
    assert result.stdout.startswith("wtk_")


# --- misuse, and what is in the way: input → exit code → what the message says


@pytest.mark.parametrize(
    "arguments",
    [
        ["--stack-name", "keyed", "--region", "us-east-1", "status", "main"],
        ["status", "--stack-name", "keyed", "main", "--region=us-east-1"],
        ["status", "main", "--region", "us-east-1", "--stack-name=keyed"],
    ],
)
def test_the_options_of_the_stack_stand_anywhere(
    stack: None, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a stack in another region
    cloudformation = boto3.client("cloudformation", region_name="us-east-1")
    cloudformation.create_stack(StackName="keyed", TemplateBody=json.dumps(TEMPLATE))
    # When it is named before, in or after a command
    with responses.RequestsMock() as mock:
        mock.get(f"{API}/v1/accounts/main", json=account("main", FRESH))
        result = run(*arguments)
        # Then the command is for that stack
        assert result.exit_code == 0, result.output
        assert "/us-east-1/execute-api/" in mock.calls[0].request.headers["Authorization"]


@pytest.mark.parametrize(
    ("environment", "region"),
    [
        ({"AWS_REGION": "eu-central-1", "AWS_DEFAULT_REGION": "us-west-2"}, "eu-central-1"),
        ({"AWS_REGION": "eu-central-1", "AWS_DEFAULT_REGION": ""}, "eu-central-1"),
        ({"AWS_REGION": "", "AWS_DEFAULT_REGION": "us-west-2"}, "us-west-2"),
    ],
)
def test_both_names_of_the_region_are_honoured(stack: None, environment: dict[str, str], region: str) -> None:
    result = run("status", **environment)
    assert result.exit_code == 2
    assert f"There is no stack 'wechat-token-keeper' in {region}" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["status", "--region"], "Option '--region' requires an argument"),
        (["--stack-name", "other", "--region", "us-east-1", "status"], "There is no stack 'other' in us-east-1"),
        (["--stack-name", "", "status"], "'--stack-name': is empty"),
        (["status", "Main"], "lower-case letters"),
        (["status", "--jsn"], "--json"),
        (["stauts"], "Did you mean 'status'?"),
        (["status", "--watch"], "leave it out in scripts"),
        (["--region", "us east 1", "status"], "'us east 1' is no AWS region"),
    ],
)
def test_wrong_usage(stack: None, arguments: list[str], says: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr


NO_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": None,
    "AWS_SECRET_ACCESS_KEY": None,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_CONFIG_FILE": os.devnull,
}


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (NO_CREDENTIALS, "AWS credentials are missing: sign in to AWS again"),
        ({"AWS_SECRET_ACCESS_KEY": None, "AWS_CONFIG_FILE": os.devnull}, "AWS credentials are missing"),
        ({"AWS_PROFILE": "nobodys", "AWS_CONFIG_FILE": os.devnull}, "has no profile 'nobodys': correct AWS_PROFILE"),
        ({"AWS_DEFAULT_REGION": None, "AWS_CONFIG_FILE": os.devnull}, "give --region, or set AWS_REGION"),
        ({"AWS_CONFIG_FILE": __file__}, "configuration file (~/.aws/config or ~/.aws/credentials) cannot be read"),
        ({"AWS_ENDPOINT_URL": "nonsense"}, "AWS_ENDPOINT_URL is no address"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "AWS cannot be reached: check the network"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_REGION": "mars-1"}, "'mars-1' is perhaps no AWS region"),
        ({"HTTPS_PROXY": "http://127.0.0.1:9"}, "The proxy cannot be reached: check HTTPS_PROXY"),
        ({"TOKEN_KEEPER_LOCAL_PORT": "65536"}, "TOKEN_KEEPER_LOCAL_PORT"),
        ({"TOKEN_KEEPER_LOCAL_PORT": "0"}, "TOKEN_KEEPER_LOCAL_PORT"),
        ({"TOKEN_KEEPER_LOCAL_PORT": "http"}, "TOKEN_KEEPER_LOCAL_PORT"),
    ],
)
def test_a_wrong_environment(environment: dict[str, str | None], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    result = run("status")
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("ExpiredToken", "Your AWS session has expired: sign in to AWS again"),
        ("InvalidClientTokenId", "AWS does not know your access key in cn-north-1"),
        ("InvalidClientTokenId", "an opt-in region"),
        ("OptInRequired", "an opt-in region"),
        ("SignatureDoesNotMatch", "The secret access key does not belong to the access key"),
        ("RequestExpired", "The clock of this machine differs too much from AWS's"),
        ("AccessDenied", "AWS does not let you DescribeStacks for 'wechat-token-keeper'"),
        ("Throttling", "wait a minute"),
        ("InternalFailure", "try again in a minute"),
        ("SomethingNew", "AWS refused to DescribeStacks for 'wechat-token-keeper': SomethingNew"),
    ],
)
def test_what_aws_refuses(service: Service, monkeypatch: pytest.MonkeyPatch, code: str, says: str) -> None:
    # Given a CloudFormation that refuses, with a text that may repeat what was sent
    service.status = 400
    service.answer = f"<ErrorResponse><Error><Code>{code}</Code><Message>{SECRET}</Message></Error></ErrorResponse>"
    monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDFORMATION", service.url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    # When the status is asked for
    result = run("status")
    # Then the operator reads what to do, and not that text
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert SECRET not in result.output


@pytest.mark.parametrize(("minutes", "says"), [(-17, "17 minutes ahead of AWS's"), (42, "42 minutes behind AWS's")])
def test_a_wrong_clock_is_named_as_the_cause(
    service: Service, monkeypatch: pytest.MonkeyPatch, minutes: int, says: str
) -> None:
    # Given an AWS whose clock shows another time, and which refuses signatures of this one
    service.status = 403
    service.headers = {"Date": format_datetime(datetime.now(UTC) + timedelta(minutes=minutes), usegmt=True)}
    error = "<Error><Code>SignatureDoesNotMatch</Code><Message>Signature expired</Message></Error>"
    service.answer = f"<ErrorResponse>{error}</ErrorResponse>"
    monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDFORMATION", service.url)
    # When the status is asked for
    result = run("status")
    # Then the clock is named, and not the key
    assert result.exit_code == 2
    assert f"The clock of this machine is {says}: set it right" in result.stderr


PAGE = "<html><body>Sign in to the guest network</body></html>"


@pytest.mark.parametrize(
    ("status_code", "answer"), [(200, PAGE), (404, PAGE), (407, PAGE), (200, ""), (200, "{}"), (200, '{"Stacks": 1}')]
)
@pytest.mark.parametrize("is_local", [False, True])
def test_another_program_that_answers_is_not_taken_for_aws(
    home: None, service: Service, monkeypatch: pytest.MonkeyPatch, status_code: int, answer: str, is_local: bool
) -> None:
    # Given a proxy that answers for CloudFormation, or another program on the port of the embedded AWS
    service.status, service.answer = status_code, answer
    monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDFORMATION", service.url)
    port = int(service.url.rpartition(":")[2]) - 1
    monkeypatch.setenv("TOKEN_KEEPER_LOCAL_PORT", str(port))
    access_keys.write(port, service.url, {"operator": Key.of("operator")}, "api-key")
    # When the status is asked for
    result = run("status", *(["--local"] if is_local else []))
    # Then that is said, and nothing of the page
    assert (result.exit_code, result.stdout) == (2, "")
    assert ("is no local stack of yours" if is_local else "What answered is not AWS") in result.stderr
    assert "guest" not in result.stderr


@pytest.mark.parametrize("profile", ["AWS_PROFILE", "AWS_CONFIG_FILE"])
def test_no_configuration_of_aws_matters_to_the_local_stack(profile: str) -> None:
    # Given a profile that is not there, or a file that cannot be read
    result = run("--local", "status", **{profile: __file__, "TOKEN_KEEPER_LOCAL_PORT": "8"})
    # Then it is not looked at
    assert result.exit_code == 2
    assert "is `token-keeper local` running?" in result.stderr


def test_an_unexpected_error_asks_for_a_report_without_values(stack: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a defect whose text holds a secret
    def broken(*_: object) -> None:
        raise KeyError(SECRET)

    monkeypatch.setattr(ApiClient, "health", broken)
    # When a command meets it
    result = run("status")
    # Then it exits with 2 and says where, and nothing else
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.search(r"unexpected KeyError at \w+\.py:\d+ in token-keeper \d.*please report it", result.stderr)
    assert SECRET not in result.stderr
    assert "Traceback" not in result.stderr


PROGRAM = Path(sys.executable).with_name("token-keeper")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "gbk", "utf-8"])
def test_any_encoding_of_the_output_will_do(service: Service, encoding: str) -> None:
    # Given a refusal in words with → and Chinese, and an output that may have neither
    failed = {"account": "main", "credential": "access_token", "next_attempt_at": "2026-11-22T13:32:00Z", **ERROR}
    failed["remedy"] = "Add it (公众平台 > IP白名单) – at once"
    # When it is shown
    code = (
        "import sys; from infra.cli.program import Program, app; from infra.cli import health; "
        "import infra.cli.program as p; "
        f"s = type('S', (), {{'renew': lambda *_: {json.loads(summary(failed=[failed]))!r}}})(); "
        "health.stack_of = lambda _: s; app()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "refresh", "main"],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
        timeout=240,
    )
    # Then it can be read, as far as the encoding goes
    shown = ended.stdout.decode(encoding)
    assert (ended.returncode, ended.stderr) == (1, b"")
    assert ("->" if encoding in ("ascii", "cp1252") else "→") in shown
    assert ("公众平台" in shown) == (encoding in ("gbk", "utf-8"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_a_full_disk_is_said(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [PROGRAM, *arguments]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=240)
    assert ended.returncode == 2
    assert ended.stderr == "Error: the operating system says: No space left on device.\n"


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", [[], ["status"], ["accounts"], ["accounts", "add"], ["consumers", "rotate"]])
def test_help_is_everywhere_and_shows_flags_as_flags(command: list[str], flag: str) -> None:
    result = run(*command, flag)
    assert result.exit_code == 0
    assert "Usage: " in result.stdout
    assert "bool" not in result.stdout


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((TEMPLATE_FILE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert run("--version").stdout == f"token-keeper {project['version']}\n"


def test_a_shell_completes_commands_and_options() -> None:
    for typed, completed in (("token-keeper acc", "accounts"), ("token-keeper accounts set", "set-secret")):
        environment = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
        ended = subprocess.run(
            [PROGRAM],
            env=os.environ | environment | {"_TOKEN_KEEPER_COMPLETE": "complete_bash"},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert completed in ended.stdout.split()


# --- where the stack is


def test_a_stack_that_is_not_there(stack: None) -> None:
    result = run("--stack-name", "other", "--region", "us-east-1", "status")
    assert result.exit_code == 2
    assert "There is no stack 'other' in us-east-1" in result.stderr


def test_a_stack_of_another_kind(stack: None) -> None:
    template = {"Resources": TEMPLATE["Resources"]}
    boto3.client("cloudformation").create_stack(StackName="other", TemplateBody=json.dumps(template))
    result = run("--stack-name", "other", "status")
    assert result.exit_code == 2
    assert "no output 'ApiUrl'" in result.stderr


# --- the local stack


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own for the keys of local stacks."""
    monkeypatch.setenv("HOME", str(tmp_path))


def test_local_operates_the_stack_of_this_machine(home: None) -> None:
    # Given the embedded AWS of a local stack, on the port after its API's, and an environment that points elsewhere
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    endpoint: Any = {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1"}
    access_keys.write(port - 1, endpoint["endpoint_url"], {"operator": Key.of("operator")}, "api-key")
    boto3.client("cloudformation", **endpoint).create_stack(StackName="local", TemplateBody=json.dumps(TEMPLATE))
    with pytest.raises(ClientError):  # the server loads what its errors need with the environment of its first one
        boto3.client("ssm", **endpoint).get_parameter(Name="none")
    # When an account is added to it
    elsewhere = {"HTTP_PROXY": "http://127.0.0.1:9", "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_PROFILE": "no-such"}
    local_port = {"TOKEN_KEEPER_LOCAL_PORT": str(port - 1)}
    result = run(
        "--local", "accounts", "add", "main", "--appid", APPID, "--no-wait", stdin=SECRET, **elsewhere, **local_port
    )
    found = boto3.client("ssm", **endpoint).get_parameters_by_path(Path=ACCOUNTS_PATH)["Parameters"]
    server.stop()
    # Then it is there
    assert result.exit_code == 0, result.output
    assert [one["Name"] for one in found] == [f"{ACCOUNTS_PATH}/main"]


@pytest.mark.parametrize("answer", ["<!DOCTYPE html><title>It works", "<html></html>", "", "{}"])
@pytest.mark.parametrize("status", [200, 400, 403, 404])
def test_another_program_on_the_local_port(service: Service, home: None, status: int, answer: str) -> None:
    # Given the keys of a local stack that was killed, and a program that has taken its port
    service.status, service.answer = status, answer
    port = int(service.url.rpartition(":")[2])
    access_keys.write(port - 1, service.url, {"operator": Key.of("operator")}, "api-key")
    # When the local stack is asked
    result = run("--local", "status", TOKEN_KEEPER_LOCAL_PORT=str(port - 1))
    # Then one sentence says that this is no local stack
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert service.url in result.stderr


@pytest.mark.parametrize("content", ["", "[operator]\n", "[operator", "<html>", "[operator]\naws_access_key_id = é\n"])
def test_local_keys_that_cannot_be_read(content: str, home: None) -> None:
    # Given a file of keys that a full disk, or another version, has left
    access_keys.folder(3000).mkdir(parents=True)
    (access_keys.folder(3000) / "credentials").write_text(content)
    # When / Then
    result = run("--local", "status", AWS_PROFILE="no-such-profile")
    assert result.exit_code == 2
    assert "On port 3000 there is no local stack of yours" in result.stderr


def test_a_local_port_that_is_none() -> None:
    result = run("--local", "status", TOKEN_KEEPER_LOCAL_PORT="70000")
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert "TOKEN_KEEPER_LOCAL_PORT" in result.stderr


def test_a_local_stack_that_does_not_run() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    result = run("--local", "status", TOKEN_KEEPER_LOCAL_PORT=str(port - 1))
    assert result.exit_code == 2
    assert "is `token-keeper local` running?" in result.stderr
