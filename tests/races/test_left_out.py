"""Where DynamoDB Local cannot run, the races are left out and the run says so; CI leaves nothing out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import dynamodb_local

RACE = "tests/races/test_table.py::test_the_engine_takes_what_the_method_sends"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("missing", ["java", "npm"])
def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    # Given a machine without one of the two programs, on which nothing is installed yet
    programs = tmp_path / "bin"
    programs.mkdir()
    for present in {"java", "npm"} - {missing}:
        (programs / present).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(programs))
    # When DynamoDB Local is to run
    # Then that program is named
    with (
        pytest.raises(dynamodb_local.NotAvailableError, match=f"^{missing} is not installed$"),
        dynamodb_local.running(tmp_path / "cache", tmp_path / "log"),
    ):
        pass


def test_what_is_left_out_is_told_at_the_end(tmp_path: Path) -> None:
    # Given a machine with neither of them
    variables = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("PYTEST_")}
    # When some of the races are run
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-k", "entry", RACE],
        cwd=ROOT,
        env={**variables, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    # Then the run passes and tells at its end what it left out, and why
    assert run.returncode == 0, run.stdout + run.stderr
    _, end = run.stdout.split(" left out ")
    assert "tests/races/test_table.py, 3 tests: needs DynamoDB Local: java is not installed" in end


def test_ci_leaves_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given CI
    monkeypatch.setenv("CI", "true")
    # When DynamoDB Local cannot run
    # Then the tests that need it fail, and say what is missing
    with pytest.raises(dynamodb_local.NotAvailableError, match=r"^java is not installed$"):
        dynamodb_local.leave_out(dynamodb_local.NotAvailableError("java is not installed"))
