"""What all layers share: botocore's descriptions of services, and that a run lists which tests it left out, and why."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from inspect import CO_VARKEYWORDS
from typing import Any
from unittest.mock import patch

import pytest
import typer.testing
from botocore import hooks
from botocore.loaders import Loader

import infra.local  # noqa: F401 - with it botocore parses each description once

# Workers, and the programs that tests start again and again, keep their bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture(scope="session", autouse=True)
def shared_work_of_libraries() -> Iterator[None]:
    """Each session of botocore looks for all services on the disk, and inspects its handlers; each run of a typer program makes
    all its commands. Here that is done once, or in a cheaper way, which halves the time of a command in a test."""
    list_services = Loader.list_available_services
    inspect_handler = hooks.accepts_kwargs
    aliaser: Any = hooks.EventAliaser
    alias: Callable[..., str] = aliaser._alias_event_name
    testing: Any = typer.testing

    @cache
    def list_once(search_paths: tuple[str, ...], kind: str) -> Any:
        return list_services(Loader(extra_search_paths=search_paths, include_default_search_paths=False), kind)

    def accepts_kwargs(handler: Any) -> bool:
        code = getattr(handler, "__code__", None)
        return bool(code.co_flags & CO_VARKEYWORDS) if code else bool(inspect_handler(handler))

    @cache
    def alias_once(name: str) -> str:
        return alias(aliaser(hooks.HierarchicalEmitter()), name)

    with (
        patch.object(
            Loader, "list_available_services", lambda self, type_name: list_once(tuple(self.search_paths), type_name)
        ),
        patch.object(testing, "_get_command", cache(testing._get_command)),
        patch.object(hooks, "accepts_kwargs", accepts_kwargs),
        patch.object(aliaser, "_alias_event_name", lambda _self, name: alias_once(name)),
    ):
        yield


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
