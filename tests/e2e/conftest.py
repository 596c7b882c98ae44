"""One `token-keeper local` for all tests that drive it, and one build for all that look at it or run it. Each have their xdist
group, the build that of DynamoDB Local, with which it runs; the last of `test_local` stops the first."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.lambda_runtime import PROJECT, BuildError, build

if TYPE_CHECKING:
    from tests.e2e.test_local import Local


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Local]":
    from tests.e2e.test_local import Local

    running = Local(tmp_path_factory.mktemp("local") / "printed.txt")
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.fixture(scope="session")
def fast(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Local]":
    """One whose clock passes so fast that a renewal comes within a minute."""
    from tests.e2e.test_local import HIGH_SPEED, Local

    running = Local(tmp_path_factory.mktemp("fast") / "printed.txt", speed=HIGH_SPEED)
    yield running
    running.stop()


def copy(target: Path) -> Path:
    """What of the project is needed to build it."""
    for directory in ("functions", "infra"):
        shutil.copytree(PROJECT / directory, target / directory, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("template.yaml", "samconfig.toml"):
        shutil.copy(PROJECT / file, target)
    return target


def build_or_skip(target: Path, project: Path) -> Path:
    """Build the project; where that cannot be done here, the test is skipped, but not in CI."""
    try:
        return build(target, project)
    except BuildError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"needs sam build and the Lambda emulator: {error}")


@pytest.fixture(scope="session")
def built_download(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is built of a download of the project, which is no repository."""
    directory = tmp_path_factory.mktemp("download")
    return build_or_skip(directory / "build", copy(directory / "project"))
