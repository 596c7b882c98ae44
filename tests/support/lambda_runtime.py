"""The real Lambda Runtime Interface Emulator, which aws-sam-cli carries, and AWS's Python runtime client: a built function
runs as in Lambda, without a container. It is Python's own interpreter, with the libraries that Lambda brings (boto3) behind
the function's own; the project's source is not on its path.
"""

import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

from tests.support.tools import HOW_TO_HAVE_THEM

PROJECT = Path(__file__).parents[2]
_MACHINES = {"x86_64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}
_EMULATOR = f"samcli/local/rapid/aws-lambda-rie-{_MACHINES.get(platform.machine(), '')}"
_INIT = re.compile(r"INIT REPORT\(durationMs: ([\d.]+)\)")
_INVOKED = re.compile(r"INVOKE RTDONE\(status: \w+, produced bytes: \d+, duration: ([\d.]+)ms\)")


class BuildError(Exception):
    """The project could not be built, or what is built cannot run here; the text says why."""


def build(target: Path, project: Path = PROJECT) -> Path:
    """Run `sam build` of a project into a directory; returns the directory, in which each function has its own.

    Raises `BuildError`.
    """
    if sys.platform != "linux":
        raise BuildError("the Lambda emulator runs on Linux only")
    sam = Path(sys.executable).with_name("sam")
    if not sam.exists():
        raise BuildError(f"sam is not installed: {HOW_TO_HAVE_THEM}")
    command = [str(sam), "build", "--build-dir", str(target)]
    environment = os.environ | {"SAM_CLI_TELEMETRY": "0"}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"sam build failed: {done.stderr[-2000:]}")
    return target


class LambdaRuntime:
    """One function instance, from the first event on; `handler` is looked up in `code`.

    `environment` is all it gets beside what Lambda sets. What it prints goes to `log`.
    """

    def __init__(self, code: Path, handler: str, environment: Mapping[str, str], log: Path) -> None:
        self._port, runtime_api_port = _free_ports()
        self._log = log
        interpreter: str = getattr(sys, "_base_executable", sys.executable)
        emulator = [
            str(Path(sysconfig.get_path("purelib"), _EMULATOR)),
            "--runtime-interface-emulator-address",
            f"127.0.0.1:{self._port}",
        ]
        emulator += ["--runtime-api-address", f"127.0.0.1:{runtime_api_port}"]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*emulator, interpreter, "-m", "awslambdaric", handler],
                cwd=code,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={
                    "PATH": os.environ["PATH"],
                    # Lambda's own libraries; what a .pth file would add (this project's source) stays away.
                    "PYTHONPATH": sysconfig.get_path("purelib"),
                    # A function's directory cannot be written to.
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "AWS_LAMBDA_LOG_FORMAT": "JSON",
                    "AWS_LAMBDA_FUNCTION_NAME": handler,
                    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
                    "AWS_REGION": "us-east-1",
                    "AWS_DEFAULT_REGION": "us-east-1",
                    "LAMBDA_TASK_ROOT": str(code),
                    **environment,
                },
            )
        self._session = requests.Session()
        self._session.trust_env = False
        self._wait_until_it_listens()

    def invoke(self, event: Mapping[str, Any]) -> Any:
        """Invoke the function, which starts it if it does not run; returns its response, or what Lambda says of its end."""
        url = f"http://127.0.0.1:{self._port}/2015-03-31/functions/function/invocations"
        return json.loads(self._session.post(url, data=json.dumps(event).encode(), timeout=60).content or b"null")

    def kill(self) -> None:
        """SIGKILL to the function's process, as when its machine dies; the next event starts another."""
        for pid in self._function():
            os.kill(pid, signal.SIGKILL)

    @property
    def peak_memory(self) -> float:
        """The most memory that the function's process has used, in megabytes (only on Linux)."""
        (pid,) = self._function()
        (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(kilobytes) / 1024

    def _function(self) -> list[int]:
        children = ["ps", "-o", "pid=", "--ppid", str(self._process.pid)]
        return [int(pid) for pid in subprocess.run(children, capture_output=True, text=True).stdout.split()]

    @property
    def printed(self) -> str:
        """What the function and the emulator have printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def init(self) -> float:
        """Milliseconds of the function's init, as the emulator reports them."""
        (milliseconds,) = _INIT.findall(self.printed)
        return float(milliseconds)

    @property
    def durations(self) -> list[float]:
        """Milliseconds of each invocation so far, as the emulator reports them."""
        return [float(milliseconds) for milliseconds in _INVOKED.findall(self.printed)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session.close()
        self._process.terminate()  # the emulator ends the function's process
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.kill()
            self._process.wait()

    def _wait_until_it_listens(self) -> None:
        ends = time.monotonic() + 120
        while time.monotonic() < ends and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.02)
        raise RuntimeError(f"the Lambda emulator did not start: {self.printed[-500:]}")


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]
