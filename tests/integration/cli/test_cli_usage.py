"""Options, help and output, and which stack is meant."""

import io
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import responses

from infra.cli import app
from infra.sam_template import TEMPLATE as TEMPLATE_FILE
from tests.support.command_line import (
    API,
    ERROR,
    FRESH,
    TEMPLATE,
    Service,
    account,
    client,
    create_stack,
    run,
    summary,
)


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
    create_stack("keyed", "us-east-1")
    # When it is named before, in or after a command
    with responses.RequestsMock() as mock:
        mock.get(f"{API}/v1/accounts/main", json=account("main", FRESH))
        result = run(*arguments)
        # Then the command is for that stack
        assert result.exit_code == 0, result.output
        assert "/us-east-1/execute-api/" in mock.calls[0].request.headers["Authorization"]
    client("cloudformation", "us-east-1").delete_stack(StackName="keyed")


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


PROGRAM = Path(sys.executable).with_name("token-keeper")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "gbk", "utf-8"])
def test_any_encoding_of_the_output_will_do(
    refresh_function: Service, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a refusal in words with → and Chinese, and an output that may have neither
    failed = {"account": "main", "credential": "access_token", "next_attempt_at": "2026-11-22T13:32:00Z", **ERROR}
    failed["remedy"] = "Add it (公众平台 > IP白名单) – at once"
    refresh_function.response = summary(failed=[failed])
    output, errors = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(errors, encoding))
    # When it is shown
    with pytest.raises(SystemExit) as ended:
        app(["refresh", "main"])
    # Then it can be read, as far as the encoding goes
    sys.stderr.flush()
    shown = output.getvalue().decode(encoding)
    assert (ended.value.code, errors.getvalue()) == (1, b"")
    assert ("->" if encoding in ("ascii", "cp1252") else "→") in shown
    assert ("公众平台" in shown) == (encoding in ("gbk", "utf-8"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_a_full_disk_is_said(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [str(PROGRAM), *arguments]
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


def test_a_stack_that_is_not_there(stack: None) -> None:
    result = run("--stack-name", "other", "--region", "us-east-1", "status")
    assert result.exit_code == 2
    assert "There is no stack 'other' in us-east-1" in result.stderr


def test_a_stack_of_another_kind(stack: None) -> None:
    template = {"Resources": TEMPLATE["Resources"]}
    client("cloudformation").create_stack(StackName="other", TemplateBody=json.dumps(template))
    result = run("--stack-name", "other", "status")
    assert result.exit_code == 2
    assert "no output 'ApiUrl'" in result.stderr
