"""The documents and their shell blocks: which of them the tests run, and why the others are left out."""

import re
from collections.abc import Iterator
from pathlib import Path

from infra.sam_template import TEMPLATE

ROOT = TEMPLATE.parent
OPERATIONS = ROOT / "infra" / "docs" / "operations.md"
"""Its blocks are run in order by tests/integration/test_runbook.py, those of the others by test_documented_commands.py."""

DOCUMENTS = sorted(
    path
    for pattern in ("*.md", ".github/**/*.md", "clients/**/*.md", "infra/docs/**/*.md")
    for path in ROOT.glob(pattern)
    if "node_modules" not in path.parts
)

_NEEDS_AWS = "needs an AWS account; tests/integration/test_deploying.py deploys the translated template"
_NEVER_ENDS = "runs until it is stopped; tests/e2e/test_local.py starts it"
_INSTALLS = "installs from the network; .ci/run does the same"
_SAM_DEPLOY = "uv run --group deploy sam deploy"

NOT_RUN = {
    "uv run --group deploy sam build": f"{_NEEDS_AWS}, and tests/e2e/test_packages.py builds it",
    "uv run --group deploy sam delete": _NEEDS_AWS,
    f"{_SAM_DEPLOY} --stack-name staging --s3-prefix staging --parameter-overrides AccountsPath=/staging/accounts": _NEEDS_AWS,
    f"{_SAM_DEPLOY} --parameter-overrides EgressMode=managed": _NEEDS_AWS,
    f"{_SAM_DEPLOY} --parameter-overrides EgressMode=none": _NEEDS_AWS,
    f"{_SAM_DEPLOY} --parameter-overrides WeChatCompatibleApi=disabled": _NEEDS_AWS,
    "git pull": _NEEDS_AWS,
    "aws dynamodb restore-table-to-point-in-time --source-table-name TABLE --target-table-name TABLE-restored "
    "--use-latest-restorable-time": _NEEDS_AWS,
    "aws cloudformation describe-stack-events --stack-name wechat-token-keeper --query "
    "\"StackEvents[?ResourceStatus=='CREATE_FAILED'].[LogicalResourceId,ResourceStatusReason]\"": _NEEDS_AWS,
    "export AWS_SHARED_CREDENTIALS_FILE=~/.wechat-token-keeper/local-3000/credentials": "needs Docker; "
    "tests/e2e/test_built.py runs the built functions without it",
    "pip install uv && uv run token-keeper local": f"{_NEVER_ENDS}, and .ci/run runs the tests",
    "uv run token-keeper local": _NEVER_ENDS,
    "uv run token-keeper local --host 172.17.0.1": _NEVER_ENDS,
    "uv run token-keeper local --speed 60": _NEVER_ENDS,
    "uv run token-keeper console": f"{_NEEDS_AWS}, and tests/integration/test_console.py runs it",
    "read -rs WECHAT_APPSECRET": "needs a real account; tests/e2e/test_local.py starts it with a simulated one",
    "python3.13 -m venv .venv-operator": _INSTALLS,
    "pip install uv": _INSTALLS,
    "uv run pytest": "runs these tests",
    "uv run python -m tests.reports.day": "takes hours; tests/integration/test_programs.py and tests/simulation load the programs",
    "uvx openapi-python-client generate --path infra/openapi.yaml": "installs from the network",
}
"""Shell blocks by their first command, and why no test runs them."""


def blocks(text: str, *languages: str) -> list[str]:
    """The contents of the fenced blocks in one of these languages."""
    return [
        content
        for language, content in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        if language in languages
    ]


def first_command(block: str) -> str:
    """The first line of a shell block, without its comment."""
    return block.partition("\n")[0].partition("  #")[0].strip()


def shell_blocks(document: Path) -> Iterator[str]:
    """The document's shell blocks."""
    yield from blocks(document.read_text(encoding="utf-8"), "bash", "sh")


def blocks_to_run(document: Path) -> Iterator[str]:
    """The document's shell blocks, except those that are left out."""
    yield from (block for block in shell_blocks(document) if first_command(block) not in NOT_RUN)
