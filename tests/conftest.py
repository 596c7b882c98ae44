"""What all layers share: botocore's descriptions of services, and that a run lists which tests it left out, and why."""

import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import pytest
from botocore.hooks import EventAliaser
from botocore.loaders import Loader

import infra.local  # noqa: F401 - with it botocore parses each description once
from tests.support import dynamodb_local

# Workers, and the programs that tests start again and again, keep their bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


dynamodb_url = dynamodb_local.dynamodb_url
"""Here, so that one DynamoDB Local serves all tests of a worker: each file that defined the fixture would start its own."""


@pytest.fixture(scope="session", autouse=True)
def shared_lookups() -> Iterator[None]:
    """Each session of botocore looks on the disk which services there are, and what each event is called now; here all share
    what the first has found."""
    list_services = Loader.list_available_services
    aliaser: Any = EventAliaser
    aliased = cache(partial(aliaser._alias_event_name, aliaser(None)))

    @cache
    def list_once(search_paths: tuple[str, ...], kind: str) -> Any:
        return list_services(Loader(extra_search_paths=search_paths, include_default_search_paths=False), kind)

    def list_available(self: Loader, type_name: str) -> Any:
        return list_once(tuple(self.search_paths), type_name)

    with (
        patch.object(Loader, "list_available_services", list_available),
        patch.object(EventAliaser, "_alias_event_name", lambda _self, event_name: aliased(event_name)),
    ):
        yield


def pytest_collection_finish() -> None:
    """Leave the imported modules out of garbage collections, each of which would look at all of them."""
    gc.collect()
    gc.freeze()


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
