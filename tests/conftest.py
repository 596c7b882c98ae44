"""What all layers share: the run says at its end which tests it left out, and why."""

from collections import Counter

import pytest


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
