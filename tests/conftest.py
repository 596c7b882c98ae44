"""What all layers share: botocore's descriptions of services, and that a run tells which tests it left out, and why."""

from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
from botocore.loaders import JSONFileLoader


@pytest.fixture(scope="session", autouse=True)
def parsed_models() -> Iterator[None]:
    """Each session of botocore parses the megabytes that describe a service; here all share what the first has parsed."""
    load_file = JSONFileLoader.load_file

    @cache
    def load_once(path: str) -> Any:
        return load_file(JSONFileLoader(), path)

    with patch.object(JSONFileLoader, "load_file", lambda _self, path: load_once(path)):
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the tests that were left out, by file and reason."""
    left_out = Counter(
        (report.nodeid.partition("::")[0], str(report.longrepr[2]).removeprefix("Skipped: "))
        for report in terminalreporter.stats.get("skipped", [])
    )
    if left_out:
        terminalreporter.section("left out")
    for (file, reason), tests in sorted(left_out.items()):
        terminalreporter.line(f"{file}, {tests} test{'s' if tests > 1 else ''}: {reason}")
