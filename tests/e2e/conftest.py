"""One `token-keeper local` for all tests that drive it. They share an xdist group, and the last of `test_local` stops it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.test_local import Local


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Local]":
    from tests.e2e.test_local import Local

    running = Local(tmp_path_factory.mktemp("local") / "printed.txt")
    yield running
    if running.process.poll() is None:
        running.stop()
