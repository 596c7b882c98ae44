"""What `accounts add`, `set-secret` and `set` say of WeChat's verdict, against the local stack."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from typer.testing import CliRunner, Result

from infra.cli import app
from infra.local.local_stack import LocalStack
from infra.local.simulated_wechat import Fault

SECRET, NEW_SECRET = "00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"
TOKEN, TICKET = "/cgi-bin/token", "/cgi-bin/ticket/getticket"

pytestmark = pytest.mark.xdist_group("local")


@pytest.fixture(scope="module")
def local() -> Iterator[LocalStack]:
    with LocalStack(speed=60) as local:
        assert local.tried.wait(120)
        yield local


@pytest.fixture(autouse=True)
def port(local: LocalStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_KEEPER_LOCAL_PORT", local.api_url.rpartition(":")[2])


def accounts(*arguments: str, secret: str = SECRET) -> Result:
    result = CliRunner().invoke(app, ["accounts", *arguments, "--local"], input=secret)
    assert SECRET not in result.output
    return result


def keep(local: LocalStack, name: str) -> str:
    """Keep an account that WeChat knows; returns its appid."""
    appid = f"wx{name.encode().hex():0>16}"
    local.wechat.add_app(appid, SECRET)
    result = accounts("add", name, "--appid", appid)
    assert result.exit_code == 0, result.output
    return appid


def token(local: LocalStack, name: str) -> str:
    return str(requests.get(f"{local.api_url}/v1/accounts/{name}/access-token", timeout=120).json()["access_token"])


def parameter(local: LocalStack, name: str) -> dict[str, Any]:
    ssm = local.aws_session().client("ssm", endpoint_url=local.aws_url)
    found = ssm.get_parameter(Name=f"/wechat-token-keeper/accounts/{name}", WithDecryption=True)
    record: dict[str, Any] = json.loads(found["Parameter"]["Value"])
    return record


def test_an_account_that_wechat_accepts(local: LocalStack) -> None:
    # Given an account that WeChat knows
    local.wechat.add_app("wx00000000000000aa", SECRET)
    # When it is added with a ticket
    result = accounts("add", "good", "--appid", "wx00000000000000aa", "--tickets", "jsapi")
    # Then its token and its ticket are there when the command ends
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "Added good: WeChat accepts it, and its token is kept.\n"
    assert local.wechat.accepts(token(local, "good"))
    assert CliRunner().invoke(app, ["--local", "status", "good"]).exit_code == 0


@pytest.mark.parametrize(
    ("name", "appid", "known_secret", "errcode"),
    [("unknown", "wx00000000000000bb", None, 40013), ("typo", "wx00000000000000cc", NEW_SECRET, 40125)],
)
def test_an_account_that_wechat_refuses(
    local: LocalStack, name: str, appid: str, known_secret: str | None, errcode: int
) -> None:
    # Given an appid that WeChat does not know, or one with another secret
    if known_secret:
        local.wechat.add_app(appid, known_secret)
    # When it is added
    result = accounts("add", name, "--appid", appid)
    # Then the command says that WeChat refuses it, and what to do
    assert result.exit_code == 1
    assert re.search(
        rf"^Added {name}, but it is refused:\naccess_token: configuration {errcode} .+\n  → \w", result.stdout
    )


def test_a_wecom_app_that_wechat_accepts_or_refuses(local: LocalStack) -> None:
    local.wechat.add_corp_app("ww0123456789abcdef", SECRET)
    accepted = accounts("add", "corp", "--corpid", "ww0123456789abcdef", "--tickets", "agent_config")
    refused = accounts("add", "typo-corp", "--corpid", "ww0123456789abcdef", secret=NEW_SECRET)
    assert (accepted.exit_code, refused.exit_code) == (0, 1)
    assert "access_token: configuration 40001" in refused.stdout


def test_a_new_secret_that_wechat_refuses_or_accepts(local: LocalStack) -> None:
    # Given an account with a token
    appid = keep(local, "keyed")
    # When it gets a secret that WeChat does not know
    refused = accounts("set-secret", "keyed", secret=NEW_SECRET)
    # Then that is said, and the token is served as before
    assert refused.exit_code == 1
    assert refused.stdout.startswith("Changed the secret of keyed, but it is refused:\naccess_token: configuration 40")
    assert local.wechat.accepts(token(local, "keyed"))
    # When the secret is reset at WeChat, and given again
    local.wechat.change_secret(appid, SECRET, NEW_SECRET)
    accepted = accounts("set-secret", "keyed", secret=NEW_SECRET)
    # Then the earlier refusal is not taken for a new one
    assert accepted.exit_code == 0, accepted.output
    assert accepted.stdout == "Changed the secret of keyed: WeChat accepts it, and it is in force.\n"


def test_settings_change_while_the_token_is_served(local: LocalStack) -> None:
    # Given an account with a token
    keep(local, "moving")
    # When it gets another endpoint and a ticket
    result = accounts("set", "moving", "--endpoint", "stable_token", "--tickets", "jsapi")
    # Then both are in force when the command ends, and there is a token
    assert result.exit_code == 0, result.output
    assert local.wechat.accepts(token(local, "moving"))
    ticket = requests.get(f"{local.api_url}/v1/accounts/moving/tickets/jsapi", timeout=120).json()["ticket"]
    assert local.wechat.accepts(ticket)
    assert parameter(local, "moving")["endpoint"] == "stable_token"
    shown = json.loads(CliRunner().invoke(app, ["accounts", "show", "moving", "--json", "--local"]).stdout)
    assert (shown["endpoint"], shown["tickets"], shown["record"]["in_force"]) == ("stable_token", ["jsapi"], True)
    # And no tickets is a setting too
    assert accounts("set", "moving", "--tickets", "none").exit_code == 0
    assert requests.get(f"{local.api_url}/v1/accounts/moving/tickets/jsapi", timeout=120).status_code == 404


def test_a_ticket_that_wechat_refuses(local: LocalStack) -> None:
    # Given an account that may have no tickets
    appid = keep(local, "limited")
    local.wechat.fail(TICKET, *[Fault.error(48001, "api unauthorized")] * 20, account=appid)
    # When it gets one
    result = accounts("set", "limited", "--tickets", "jsapi")
    # Then the verdict is that of the ticket
    assert result.exit_code == 1, result.output
    assert "jsapi: configuration 48001 api unauthorized" in result.stdout


def test_without_a_verdict_it_ends_with_2(local: LocalStack, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a WeChat that is busy, and an operator whose minute is over at the second look
    local.wechat.add_app("wx00000000000000dd", SECRET)
    local.wechat.fail(TOKEN, *[Fault.error(-1)] * 50, account="wx00000000000000dd")
    moments = iter((0, 30, *range(61, 1000)))
    monkeypatch.setattr("infra.cli.accounts.monotonic", lambda: next(moments))
    # When an account is added
    result = accounts("add", "late", "--appid", "wx00000000000000dd")
    # Then it is added, and where its verdict will be is named
    assert result.exit_code == 2
    assert "Added late, but WeChat's verdict is not known after 60 s: `token-keeper status late`" in result.stderr
    local.wechat.heal(TOKEN)


def test_no_wait_does_not_wait(local: LocalStack) -> None:
    result = accounts("add", "soon", "--appid", "wx00000000000000ee", "--no-wait")
    assert result.exit_code == 0
    assert "see `token-keeper status soon`" in result.stdout
