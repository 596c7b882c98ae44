"""The command line as an operator meets it: what is shown, what stands in Parameter Store, how it exits.

CloudFormation and Parameter Store are moto's; the API and RefreshFunction are answered over HTTP by the tests.
"""

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
import responses
from moto import mock_aws
from moto.server import ThreadedMotoServer
from typer.testing import CliRunner, Result

from infra import local_keys
from infra.cli import app
from infra.local_keys import Key

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
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "TOKEN_KEEPER_STACK", "TOKEN_KEEPER_LOCAL_PORT"):
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
            self.send_response(service.status)
            for header in {**service.headers, "Content-Length": str(len(service.answer))}.items():
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
def test_an_added_account_stands_in_parameter_store(
    stack: None, options: list[str], secret: str, record: dict[str, Any]
) -> None:
    # When an account is added with its secret on standard input
    result = run("accounts", "add", "main", *options, stdin=f"{secret}\n")
    # Then its whole record is stored, the operator hears what comes next, and nobody sees the secret
    assert result.exit_code == 0
    assert stored("main") == {**record, "secret": secret}
    assert "token-keeper status main" in result.stdout
    assert secret not in result.output


def test_the_secret_is_asked_for_at_a_terminal_and_not_shown(stack: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a terminal
    monkeypatch.setattr("typer.testing._NamedTextIOWrapper.isatty", lambda self: self.name == "<stdin>", raising=False)
    # When an account is added
    result = run("accounts", "add", "main", "--appid", APPID, stdin=f"{SECRET}\n")
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
    ["", "\n", " \n", f"{SECRET} \n", f"{SECRET[:16]}\n{SECRET[16:]}", f"\x00{SECRET[1:]}", SECRET[1:], b"\xff" * 32],
)
def test_a_secret_that_cannot_be_one_is_refused(stack: None, secret: str | bytes) -> None:
    result = run("accounts", "add", "main", "--appid", APPID, stdin=secret)
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


def test_adding_never_overwrites(stack: None) -> None:
    # Given an account
    run("accounts", "add", "main", "--appid", APPID, stdin=SECRET)
    # When another of its name is added
    result = run("accounts", "add", "main", "--appid", "wx0000000000000000", stdin="0" * 32)
    # Then the first one stands, and the way on is named
    assert result.exit_code == 2
    assert "set-secret" in result.stderr
    assert stored("main")["appid"] == APPID


def test_set_secret_keeps_all_else(stack: None) -> None:
    # Given an account with a ticket
    run("accounts", "add", "main", "--appid", APPID, "--ticket", "jsapi", stdin=SECRET)
    before = stored("main")
    # When its secret is changed
    result = run("accounts", "set-secret", "main", stdin="0" * 32)
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
    run("--stack-name", "keyed", "accounts", "add", "main", "--appid", APPID, stdin=SECRET)
    run("accounts", "set-secret", "main", stdin="0" * 32, TOKEN_KEEPER_STACK="keyed")
    # Then both versions are encrypted with it
    history = boto3.client("ssm").get_parameter_history(Name=f"{ACCOUNTS_PATH}/main")["Parameters"]
    assert [version["KeyId"] for version in history] == [key, key]


def test_remove_asks_first(stack: None) -> None:
    # Given an account
    run("accounts", "add", "main", "--appid", APPID, stdin=SECRET)
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
            {"skipped": [{"account": "main", "credential": "jsapi", "reason": "somebody else is renewing it"}]},
            ["somebody"],
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
    table = boto3.client("cloudformation").describe_stacks()["Stacks"][0]["Outputs"]
    name = next(output["OutputValue"] for output in table if output["OutputKey"] == "TokenTableName")
    items: list[dict[str, Any]] = boto3.client("dynamodb").scan(TableName=name)["Items"]
    return items


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
        ["consumer", "accounts", "may", "report"],
        ["shop", "main,", "mini-*", "yes"],
        ["staging", "main", "no"],
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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add", "shop"], "--accounts"),
        (["add", "shop", "--accounts", ""], "'' is no account"),
        (["add", "shop", "--accounts", "main,"], "'' is no account"),
        (["add", "shop", "--accounts", "main, other"], "' other' is no account"),
        (["add", "shop", "--accounts", "ma?n"], "'ma?n' is no account"),
        (["add", "Shop", "--accounts", "main"], "lower-case letters"),
        (["add", "staging", "--accounts", "main"], "The consumer 'staging' exists"),
        (["revoke", "shop"], "There is no consumer 'shop'"),
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


def test_no_credentials(stack: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    result = run("status")
    assert result.exit_code == 2
    assert "sign in to AWS again" in result.stderr


def test_no_region(stack: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    result = run("status")
    assert result.exit_code == 2
    assert "--region" in result.stderr


@pytest.mark.parametrize(
    ("code", "says"), [("ExpiredToken", "sign in to AWS again"), ("AccessDenied", "does not let you DescribeStacks")]
)
def test_credentials_that_aws_refuses(service: Service, monkeypatch: pytest.MonkeyPatch, code: str, says: str) -> None:
    # Given a CloudFormation that refuses, with a text nobody has looked through
    service.status = 403
    service.answer = f"<ErrorResponse><Error><Code>{code}</Code><Message>{SECRET}</Message></Error></ErrorResponse>"
    monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDFORMATION", service.url)
    # When the status is asked for
    result = run("status")
    # Then the operator reads what to do, and not that text
    assert result.exit_code == 2
    assert says in result.stderr
    assert SECRET not in result.output


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
    local_keys.write(port - 1, endpoint["endpoint_url"], {"operator": Key.of("operator")}, "api-key")
    boto3.client("cloudformation", **endpoint).create_stack(StackName="local", TemplateBody=json.dumps(TEMPLATE))
    # When an account is added to it
    elsewhere = {"HTTP_PROXY": "http://127.0.0.1:9", "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_PROFILE": "no-such"}
    local_port = {"TOKEN_KEEPER_LOCAL_PORT": str(port - 1)}
    result = run("--local", "accounts", "add", "main", "--appid", APPID, stdin=SECRET, **elsewhere, **local_port)
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
    local_keys.write(port - 1, service.url, {"operator": Key.of("operator")}, "api-key")
    # When the local stack is asked
    result = run("--local", "status", TOKEN_KEEPER_LOCAL_PORT=str(port - 1))
    # Then one sentence says that this is no local stack
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert service.url in result.stderr


@pytest.mark.parametrize("content", ["", "[operator]\n", "[operator", "<html>", "[operator]\naws_access_key_id = é\n"])
def test_local_keys_that_cannot_be_read(content: str, home: None) -> None:
    # Given a file of keys that a full disk, or another version, has left
    local_keys.folder(3000).mkdir(parents=True)
    (local_keys.folder(3000) / "credentials").write_text(content)
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
