"""What all layers share: botocore's descriptions of services, and that a run tells which tests it left out, and why."""

import os
import sys
from collections import Counter

import pytest

import infra.local  # noqa: F401 - with it botocore parses each description once
from tests.support import dynamodb_local

# Workers, and the programs that tests start again and again, keep their bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


dynamodb_url = dynamodb_local.dynamodb_url
"""Here, so that one DynamoDB Local serves all tests of a worker: each file that defined the fixture would start its own."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the tests that were left out, by file and reason, and how to run them."""
    left_out: Counter[tuple[str, str]] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        file, _, test = report.nodeid.partition("::")
        left_out[file, str(report.longrepr[2]).removeprefix("Skipped: ")] += 1 if test else 0
    lines = [
        f"{file}, {f'{tests} test{"s" if tests > 1 else ""}' if tests else 'all tests'}: {reason}"
        for (file, reason), tests in sorted(left_out.items())
    ]
    if terminalreporter.config.option.markexpr == "not long":
        lines.append("those marked long: `uv run pytest -m long` runs them")
    if lines:
        terminalreporter.section("left out")
    for line in lines:
        terminalreporter.line(line)
