"""`token` and `status`: what the API says, for operators and for scripts."""

import json
import re
from typing import Any

import pytest
import requests
import responses

from tests.support.command_line import API, ERROR, FAILING, FRESH, NEVER, NOW, Service, account, run, summary


def test_token_prints_the_token_alone(api: responses.RequestsMock) -> None:
    response = {"account": "main", "access_token": "85_Xk3pZk0m", "expires_in": 6826}
    api.get(f"{API}/v1/accounts/main/access-token", json=response)
    assert run("token", "main").stdout == "85_Xk3pZk0m\n"
    assert json.loads(run("token", "main", "--json").stdout) == response


def test_where_there_is_no_token_it_says_why(api: responses.RequestsMock) -> None:
    remedy = "Add 8.149.1.2 to the IP whitelist."
    cause: dict[str, Any] = {"class": "configuration", "errcode": 40164, "remedy": remedy}
    problem = {"code": "no_valid_value", "title": "No valid value", "cause": cause}
    api.get(f"{API}/v1/accounts/main/access-token", status=503, json=problem)
    result = run("token", "main")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no usable token right now: configuration 40164" in result.stderr
    assert remedy in result.stderr


def test_status_shows_every_credential_and_the_remedies(api: responses.RequestsMock) -> None:
    # Given an account that is well, and one that needs an operator
    pages = {"accounts": [account("main", FRESH), account("shop", FAILING, NEVER)]}
    api.get(f"{API}/v1/accounts", json=pages, headers={"Date": NOW})
    # When the status is asked for
    result = run("status")
    # Then each credential is a line, times are relative to the API's now, and the remedy is below
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
    service.response = summary(failed=[failed])
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
    ("response", "says"),
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
def test_what_the_api_refuses_is_put_into_words(
    api: responses.RequestsMock, response: dict[str, Any], says: str
) -> None:
    api.get(f"{API}/v1/accounts/main", **response)
    result = run("status", "main")
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""
