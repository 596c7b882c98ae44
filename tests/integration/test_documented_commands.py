"""The documents' commands: none has a key or a secret in its arguments, where `ps` and the shell's history show it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import local_keys
from infra.local import DEMO, DEMO_RECORD, LocalStack
from infra.stack import TEMPLATE

ROOT = TEMPLATE.parent
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", ".github/*.md", "clients/**/*.md", "docs/**/*.md", "infra/**/*.md")
    for path in ROOT.glob(pattern)
)
SOURCES = sorted(
    path
    for pattern in ("infra/**/*.py", "infra/*.yaml", "template.yaml", "clients/**/*.*", "tests/events/*")
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


def blocks(text: str, *languages: str) -> list[str]:
    """The contents of the fenced blocks in one of these languages."""
    return [
        content
        for language, content in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        if language in languages
    ]


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


def test_the_documented_curl_commands_work_and_show_no_key(tmp_path: Path) -> None:
    # Given the local stack with the documents' account, and a curl that writes down its arguments
    commands = tmp_path / "bin"
    commands.mkdir()
    arguments, curl = tmp_path / "arguments", shutil.which("curl")
    script(commands / "curl", f'printf "%s\\n" "$@" >> {arguments}\nexec {curl} "$@"')
    program = Path(sys.executable).with_name("token-keeper")
    script(commands / "uv", f'[ "$1 $2" = "run token-keeper" ] && shift 2 && exec {program} --local "$@"')
    text = "\n".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    found = [
        block for block in blocks(text, "bash") if re.search(r"^curl .*(\$API_URL|127\.0\.0\.1:3000)", block, re.M)
    ]
    record = DEMO_RECORD | {"appid": "wx617a123bb8bc99cd"}
    with LocalStack(accounts={"main": record, DEMO: DEMO_RECORD}) as local:
        assert local.tried.wait(120)
        keys = local_keys.read(local.port)
        assert keys
        for block in found:
            for session_token in ("a-session-token", "") if "aws-sigv4" in block else ("",):
                environment = os.environ | {
                    "PATH": f"{commands}:{os.environ['PATH']}",
                    "NO_PROXY": "*",
                    "TOKEN_KEEPER_LOCAL_PORT": str(local.port),
                    # The embedded AWS looks at the signature, which the local API does not ask for.
                    "API_URL": local.aws_url if "aws-sigv4" in block else local.api_url,
                    "AWS_REGION": local_keys.REGION,
                    "AWS_ACCESS_KEY_ID": keys.operator.access_key,
                    "AWS_SECRET_ACCESS_KEY": keys.operator.secret_key,
                    "AWS_SESSION_TOKEN": session_token,
                }
                # When a command is run as it is documented
                shell = ["bash", "-euc", block.replace("http://127.0.0.1:3000", local.api_url)]
                ended = subprocess.run(shell, env=environment, capture_output=True, text=True, timeout=240, check=True)
                # Then it does what it should
                shown = "not use that of execute-api" if "aws-sigv4" in block else '"access_token":"simulated_token_'
                assert shown in ended.stdout, f"{block}\n{ended}"
    # And no key stood in the arguments of curl
    assert arguments.read_text().count("http://") > len(found) > 2
    assert "a-session-token" not in arguments.read_text()
    assert keys.operator.secret_key not in arguments.read_text()
    assert "wtk_" not in arguments.read_text()


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
