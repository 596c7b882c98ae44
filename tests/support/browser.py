"""A real browser: Debian's Chromium, driven by Playwright. Tests that need it are left out where there is none, but not in CI."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import pytest

from infra.local.local_stack import LocalStack
from tests.support.tools import needed

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """A Playwright browser."""
    playwright = needed("playwright.sync_api")
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        assert not os.environ.get("CI"), "needs Chromium: apt-get install chromium"
        pytest.skip("needs Chromium: `apt-get install chromium` and `uv run --group ci pytest` run it")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def pass_time(local: LocalStack, seconds: float) -> None:
    """Move the local stack's clock forward."""
    local.clock._began_at += seconds


def violations(page: Any) -> list[str]:
    """What axe-core finds wrong with the page as it stands: the rule, and where."""
    needed("axe_playwright_python")
    page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    return [f"{rule['id']}: {', '.join(str(node['target']) for node in rule['nodes'])}" for rule in found]
