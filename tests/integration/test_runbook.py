"""The commands of infra/docs/operations.md, run from its first to its last line against the local stack."""

import json
import re
import shlex
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, cast

import pytest
import requests
from typer.testing import CliRunner

from infra.cli import app
from infra.local import access_keys
from infra.local.local_stack import DEMO_RECORD, Clock, LocalStack
from infra.local.simulated_wechat import Fault
from tests.support.documents import NOT_RUN, OPERATIONS, blocks, first_command
from tests.support.local_stack import first_tick

APPID, OTHER_APPID = "wx0123456789abcdef", "wx617a123bb8bc99cd"
OLD_SECRET, NEW_SECRET = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
TRIES_FOR = 240
"""Real seconds after which a command that does not come out as the runbook says has failed."""

TOKEN = "/cgi-bin/token"

pytestmark = pytest.mark.xdist_group("local")


class JumpingClock(Clock):
    """Keeps real time, and jumps where the operator waits: on a busy machine a lease lasts as long as on any other."""

    def __init__(self, speed: float) -> None:
        super().__init__(speed)
        self._jumped = 0.0

    def __call__(self) -> float:
        return super().__call__() + self._jumped

    def jump(self, seconds: float) -> None:
        self._jumped += seconds


def sections() -> Iterator[tuple[str, list[str]]]:
    """The runbook's headings, each with the lines of its commands that are run."""
    for section in re.split(r"^## ", OPERATIONS.read_text(encoding="utf-8"), flags=re.MULTILINE):
        run_here = [block for block in blocks(section, "bash") if first_command(block) not in NOT_RUN]
        yield section.partition("\n")[0], [line for block in run_here for line in block.splitlines()]


def test_the_runbook_covers_what_happens() -> None:
    headings = " ".join(heading for heading, _ in sections())
    wanted = ("Rotate", "token has leaked", "key has leaked", "Move", "40164", "45009", "89503")
    for topic in (*wanted, "Restore", "Delete", "Upgrade"):
        assert topic in headings


def test_no_command_of_the_command_line_is_left_out() -> None:
    text = OPERATIONS.read_text(encoding="utf-8").splitlines()
    written = [line for line in text if line.startswith("uv run token-keeper ")]

    assert written == [line for _, lines in sections() for line in lines if line in written]


def test_every_command_of_the_runbook_does_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.local.local_stack.Clock", JumpingClock)
    with first_tick() as has_ticked, LocalStack(accounts={"main": DEMO_RECORD}) as local:
        # What services' descriptions cost to load, each command would pay again.
        session = local.aws_session()
        monkeypatch.setattr(access_keys, "session", lambda _: session)
        monkeypatch.setenv("TOKEN_KEEPER_LOCAL_PORT", str(local.port))
        assert local.tried.wait(120)
        assert has_ticked.wait(TRIES_FOR)
        leaked: list[str] = []  # consumers' keys
        trouble: dict[str, Callable[[], object]] = {
            "40164": lambda: refused(local, 40164),
            "89503": lambda: refused(local, 89503),
            "45009": lambda: refused(local, 45009),
            "Move": lambda: local.wechat.add_app(OTHER_APPID, NEW_SECRET),
            "A consumer": lambda: leaked.append(used_key(local)),
            "Restore": lambda: lose_the_table(local),
            "Upgrade": lambda: wake(local, "tick"),  # which enrols again what Restore did not
        }
        for heading, lines in sections():
            for words, happens in trouble.items():
                if heading.startswith(words):
                    happens()
            for line in lines:
                run(local, heading, line)
            if heading.startswith("A consumer"):
                jump(local, 15)
                assert ask(local, leaked[0]).get("errcode") == 40125


def run(local: LocalStack, heading: str, line: str) -> None:
    """Do what one line says."""
    if line.startswith("# WeChat: "):
        if "AppSecret" in line:
            local.wechat.change_secret(APPID, OLD_SECRET, NEW_SECRET)
        local.wechat.heal(TOKEN)
    elif line.startswith("sleep "):
        jump(local, float(line.removeprefix("sleep ")))
    elif not line.startswith("#"):
        command, _, fails = line.partition(" #")[0].partition(" || ")
        words = shlex.split(command)
        assert words[:3] == ["uv", "run", "token-keeper"], line
        result = CliRunner().invoke(app, ["--local", *words[3:]], input=NEW_SECRET)
        ends = monotonic() + TRIES_FOR
        while words[3] != "accounts" and result.exit_code != bool(fails) and monotonic() < ends:
            jump(local, 31)  # an operator does not type faster: renewals are 30 s apart, changes take seconds
            wake(local, "guard")
            result = CliRunner().invoke(app, ["--local", *words[3:]], input=NEW_SECRET)
        assert result.exit_code == bool(fails), f"{heading}: {line}\n{result.output}"


def jump(local: LocalStack, seconds: float) -> None:
    assert isinstance(local.clock, JumpingClock)
    local.clock.jump(seconds)


def refused(local: LocalStack, errcode: int) -> None:
    """Let WeChat refuse the next renewals, and one be tried."""
    local.wechat.fail(TOKEN, *[Fault.error(errcode)] * 100)
    jump(local, 31)
    result = CliRunner().invoke(app, ["--local", "refresh", "main"])
    assert (result.exit_code, str(errcode) in result.output) == (1, True), result.output


def used_key(local: LocalStack) -> str:
    """The key of a consumer that has just got a token with it."""
    key = CliRunner().invoke(app, ["--local", "consumers", "add", "billing", "--accounts", "main"]).stdout.strip()
    assert "access_token" in ask(local, key)
    return key


def ask(local: LocalStack, key: str) -> dict[str, Any]:
    """What WeChat's own format returns to a consumer's key."""
    call = {"grant_type": "client_credential", "appid": APPID, "secret": key}
    response = requests.get(f"{local.api_url}/cgi-bin/token", params=call, timeout=120).json()
    return cast("dict[str, Any]", response)


def lose_the_table(local: LocalStack) -> None:
    dynamodb = local.aws_session().client("dynamodb", endpoint_url=local.aws_url)
    table = local.environment("RefreshFunction")["TABLE_NAME"]
    for item in dynamodb.scan(TableName=table)["Items"]:
        dynamodb.delete_item(TableName=table, Key={"pk": item["pk"], "sk": item["sk"]})


def wake(local: LocalStack, schedule: str) -> None:
    function = local.environment("ApiFunction")["REFRESH_FUNCTION_NAME"].removesuffix(":readers")
    client = local.aws_session().client("lambda", endpoint_url=local.aws_url)
    client.invoke(FunctionName=function, Payload=json.dumps({"wake": schedule}))
