"""The documents' commands: each does what it should or is listed with a reason, and none has a secret in its arguments, where
`ps` and the shell's history show it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from infra.cli import app
from infra.local import access_keys
from infra.local.local_stack import DEMO, DEMO_RECORD, LocalStack
from tests.support.documents import (
    DOCUMENTS,
    NOT_RUN,
    OPERATIONS,
    ROOT,
    blocks,
    blocks_to_run,
    first_command,
    shell_blocks,
)

SOURCES = sorted(
    path
    for pattern in ("infra/**/*.py", "infra/**/*.yaml", "template.yaml", "clients/**/*.*", "tests/events/*")
    for path in ROOT.glob(pattern)
    if path.is_file() and path not in DOCUMENTS and "__pycache__" not in path.parts
)
"""What shows commands too: in help texts, descriptions and comments."""

SHOWS_A_SECRET = re.compile(
    r"""
      \b(?:corp)?secret= | \baccess_token=                                # in a query or a form
    | \bwtk_ | (?<![\w-])(?:-u|--user)[ =]
    | (?:x-api-key|x-amz-security-token|authorization):
    | --(?:secret|password|key|token)\b
    | \$\{?\w*(?:SECRET|KEY|TOKEN)\b | \b\w*(?:SECRET|KEY|TOKEN)=(?!\$\()  # but `KEY=$(…)` shows nothing
    """,
    re.VERBOSE | re.IGNORECASE,
)
COMMAND = re.compile(r"(?:curl|wget|aws|uv|sam|token-keeper|export|read)\s")

pytestmark = pytest.mark.xdist_group("local")


def command_lines(text: str) -> Iterator[str]:
    """The command lines of a document, as a shell reads them: continued lines in one, no here-document, no comment."""
    shown = blocks(text, "bash", "sh", "text", "console", "")
    shown += [span for span in re.findall(r"`([^`\n]+)`", text) if COMMAND.match(span)]
    for block in shown:
        without_input = re.sub(r"(<<-?[\"']?(\w+)[\"']?[^\n]*)\n.*?^\2$", r"\1", block, flags=re.DOTALL | re.MULTILINE)
        for line in without_input.replace("\\\n", " ").splitlines():
            yield line.partition(" #")[0]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_documented_command_shows_a_secret(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert [line for line in command_lines(text) if SHOWS_A_SECRET.search(line)] == []


def test_no_command_in_a_help_text_shows_a_secret() -> None:
    lines = [line for path in SOURCES for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line for line in lines if re.search(r"\b(?:curl|wget) ", line) and SHOWS_A_SECRET.search(line)] == []


@pytest.mark.parametrize(
    ("block", "shows"),
    [
        ('curl "$API_URL/cgi-bin/token?appid=wx1&secret=$KEY"', True),
        ('curl "$API_URL/cgi-bin/gettoken" \\\n  -d corpsecret=abc', True),
        ('curl --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" "$API_URL"', True),
        ('curl -H "x-amz-security-token: $AWS_SESSION_TOKEN" "$API_URL"', True),
        ('curl -H "X-Api-Key: abc" "$API_URL"', True),
        ("WECHAT_APPSECRET=0123 uv run token-keeper local", True),
        ("uv run token-keeper accounts add main --secret 0123", True),
        ('curl "$API_URL" --data @- <<END\nsecret=$KEY\nEND\ncurl "$API_URL?secret=$KEY"', True),
        ('curl "$API_URL" --data @- <<END\nsecret=$KEY\nEND', False),
        ("KEY=$(uv run token-keeper consumers add shop --accounts main)    # the key", False),
        ("curl -H @file http://127.0.0.1:3000/v1/accounts", False),
        ("read -rs WECHAT_APPSECRET", False),
    ],
)
def test_the_rule_finds_what_a_command_line_shows(block: str, shows: bool) -> None:
    document = f"Text.\n\n```bash\n{block}\n```\n"
    assert any(SHOWS_A_SECRET.search(line) for line in command_lines(document)) == shows


def test_what_is_left_out_is_listed_and_still_there() -> None:
    left_out = {first_command(block) for document in DOCUMENTS for block in shell_blocks(document)} & NOT_RUN.keys()
    assert left_out == NOT_RUN.keys()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_in_shell_blocks(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    others = re.findall(r"^```(?!bash)\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert [line for content in others for line in content.splitlines() if COMMAND.match(line)] == []


def test_the_documented_commands_do_what_they_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given the local stack with the documents' account, and a curl that writes down its arguments
    commands = tmp_path / "bin"
    commands.mkdir()
    (tmp_path / "infra").symlink_to(ROOT / "infra")
    arguments, curl = tmp_path / "arguments", shutil.which("curl")
    script(commands / "curl", f'printf "%s\\n" "$@" >> {arguments}\nexec {curl} "$@"')
    program = Path(sys.executable).with_name("token-keeper")
    script(commands / "uv", f'[ "$1 $2" = "run token-keeper" ] && shift 2 && exec {program} --local "$@"')
    found = {
        without_comments(block): document
        for document in DOCUMENTS
        if document != OPERATIONS
        for block in blocks_to_run(document)
    }
    record = DEMO_RECORD | {"appid": "wx617a123bb8bc99cd"}
    with LocalStack(accounts={"main": record, DEMO: DEMO_RECORD}) as local:
        assert local.tried.wait(120)
        keys = access_keys.read(local.port)
        assert keys
        session = local.aws_session()
        monkeypatch.setattr(access_keys, "session", lambda _: session)
        monkeypatch.setenv("TOKEN_KEEPER_LOCAL_PORT", str(local.port))
        monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
        for name, value in {
            "NO_PROXY": "*",
            "AWS_DEFAULT_REGION": access_keys.REGION,
            "AWS_ACCESS_KEY_ID": keys.operator.access_key,
            "AWS_SECRET_ACCESS_KEY": keys.operator.secret_key,
        }.items():
            monkeypatch.setenv(name, value)
        for block, document in found.items():
            # When a block is run as it is documented
            lines = [line.partition(" || ") for line in block.splitlines()]
            if all(line.startswith("uv run token-keeper ") for line, _, _ in lines):
                for line, _, fails in lines:
                    if " accounts add main " in line:
                        run_in_process("accounts remove main --yes", "")  # it is not there yet
                    is_robot = " notifications add " in line
                    typed = f"{local.wechat_url}/robot/send?access_token=group" if is_robot else record["secret"]
                    result = run_in_process(line.removeprefix("uv run token-keeper "), typed)
                    # Then it does what it should
                    assert result.exit_code == bool(fails), f"{document.name}: {line}\n{result.output}"
                continue
            for session_token in ("a-session-token", "") if "aws-sigv4" in block else ("",):
                # The embedded AWS looks at the signature, which the local API does not ask for.
                api_url = local.aws_url if "aws-sigv4" in block else local.api_url
                ended = subprocess.run(
                    ["bash", "-euc", block.replace("http://127.0.0.1:3000", local.api_url)],
                    env=os.environ | {"API_URL": api_url, "AWS_SESSION_TOKEN": session_token},
                    cwd=tmp_path,
                    capture_output=True,
                    text=True,
                    timeout=240,
                    check=False,
                )
                assert ended.returncode == 0, f"{document.name}: {block}\n{ended}"
                if "curl " in block:
                    shown = (
                        "not use that of execute-api" if "aws-sigv4" in block else '"access_token":"simulated_token_'
                    )
                    assert shown in ended.stdout, f"{document.name}: {block}\n{ended}"
    # And no key stood in the arguments of curl
    assert arguments.read_text().count("http://") > len(blocks_with("curl ", found)) > 2
    assert "a-session-token" not in arguments.read_text()
    assert keys.operator.secret_key not in arguments.read_text()
    assert "wtk_" not in arguments.read_text()


def without_comments(block: str) -> str:
    return re.sub(r" +#.*", "", block)


def blocks_with(command: str, found: Iterable[str]) -> list[str]:
    return [block for block in found if command in block]


def run_in_process(arguments: str, response: str) -> Result:
    return CliRunner().invoke(app, ["--local", *shlex.split(arguments)], input=response)


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
