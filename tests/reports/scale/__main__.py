"""`uv run python -m tests.reports.scale [ACCOUNTS ...]`: how long RefreshFunction takes with so many accounts, measured.

The real handler runs with its real libraries and threads, each instance a process of its own, against a process that
stands in for WeChat, DynamoDB and Parameter Store and responds as slowly as they do (`stand_ins`). An instance gets the share of
a processor that Lambda gives to the function's memory size: whenever it has used more, it is stopped until that has
evened out. It is killed when the function's timeout is over. The clock is real while something runs, and jumps to the next event
of the schedules when nothing does. Figures are this machine's; on Linux only. With every size it takes about an hour.
"""

import argparse
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import certifi
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from rich.console import Console
from rich.table import Table as Printed

from infra import sam_template
from tests.reports.scale.stand_ins import ACCOUNTS_PATH

_TEMPLATE = sam_template.translate()
_FUNCTION = _TEMPLATE["Resources"]["RefreshFunction"]["Properties"]
_RATES = {schedule.event["wake"]: schedule.rate for schedule in sam_template.schedules(_TEMPLATE)}

TIMEOUT: int = _FUNCTION["Timeout"]
"""Seconds after which Lambda ends an invocation."""

SHARE: float = _FUNCTION["MemorySize"] / 1769
"""Of a processor: Lambda gives a whole one to 1769 MB (https://docs.aws.amazon.com/lambda/latest/dg/configuration-memory.html)."""

PERIOD, LOOK = 0.02, 0.002
"""Seconds: what an instance leaves unused of its share is gone after a period; how often is looked at what it has used."""

RETRY_AFTER = 60
"""Seconds after which Lambda tries an event again that has failed; once, by the template."""

HOUR = 3600

WECHAT_DELAY = 0.15
"""Seconds, the network's part of a new connection included."""

LIMITS = (
    "What limits the number of accounts: Parameter Store holds 10,000 standard parameters in a region of an AWS account, and "
    "serves 40 calls a second by default."
)


@dataclass
class Measured:
    """What a piece of work took: seconds, invocations by event, seconds of processor time, calls by service."""

    name: str
    seconds: float = 0.0
    invocations: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0
    processor: float = 0.0
    calls: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    gave_up_with: str = ""

    def calls_to(self, service: str) -> int:
        """How often a service was called."""
        return sum(calls for call, calls in self.calls.items() if call.startswith(service) and "throttled" not in call)


@dataclass
class Report:
    """All that was measured with so many accounts; `lost` counts tokens that ended before their successors came."""

    accounts: int
    rows: list[Measured]
    megabytes: float
    largest_summary: int
    usable: int
    lost: int

    @property
    def problems(self) -> list[str]:
        """What must not be."""
        found = [f"{row.name}: not reached, {row.gave_up_with}" for row in self.rows if row.gave_up_with]
        found += [
            f"{row.name}: {number} invocations failed: {error}"
            for row in self.rows
            for error, number in row.errors.items()
        ]
        found += [f"{self.lost} tokens ended before they were replaced"] if self.lost else []
        found += [f"{self.accounts - self.usable} accounts have no usable token"] if self.usable < self.accounts else []
        return found


class _Process:
    """A process that is spoken to by lines of JSON."""

    def __init__(self, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=sam_template.TEMPLATE.parent,
            env={**os.environ, **(environment or {})},
        )
        self._lock = threading.Lock()
        self.ready = self._read()

    def ask(self, message: Mapping[str, Any], timeout: float | None = None) -> Any:
        """Say something and return the response. TimeoutError after so many seconds."""
        assert self.process.stdin is not None
        with self._lock:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
            return self._read(timeout)

    def _read(self, timeout: float | None = None) -> Any:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            raise TimeoutError
        return json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class Instance(_Process):
    """An instance of RefreshFunction, held to its share of a processor."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__("tests.reports.scale.instance", str(TIMEOUT), environment=environment)
        # Lambda gives a function a whole processor until it is initialised.
        threading.Thread(target=self._hold_to_share, daemon=True).start()

    def _hold_to_share(self) -> None:
        process_clock = (~self.process.pid << 3) | 2  # as clock_getcpuclockid(3) makes it
        looked_at, used, allowance = time.monotonic(), time.clock_gettime(process_clock), 0.0
        try:
            while True:
                time.sleep(LOOK)
                before, looked_at = looked_at, time.monotonic()
                used_before, used = used, time.clock_gettime(process_clock)
                allowance = min(allowance + SHARE * (looked_at - before), SHARE * PERIOD) - (used - used_before)
                if allowance < 0:
                    self.process.send_signal(signal.SIGSTOP)
                    time.sleep(-allowance / SHARE)
                    self.process.send_signal(signal.SIGCONT)
        except OSError:
            return  # it has ended

    @property
    def megabytes(self) -> float:
        """The most memory that it has used."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


class Deployment:
    """The stack with so many accounts: its schedules, instances of its function, and what stands outside."""

    def __init__(self, accounts: int, certificate: Path, authorities: Path, said: Callable[[str], object]) -> None:
        self.accounts = accounts
        self._say = said
        self._outside = _Process("tests.reports.scale.stand_ins", str(accounts), str(WECHAT_DELAY), str(certificate))
        self._environment = {
            "TABLE_NAME": "tokens",
            "STACK_NAME": "scale",
            "ACCOUNTS_PATH": ACCOUNTS_PATH,
            "WECHAT_API_URL": self._outside.ready["wechat_url"],
            "WECOM_API_URL": self._outside.ready["wechat_url"],
            "AWS_ENDPOINT_URL": self._outside.ready["aws_url"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "REQUESTS_CA_BUNDLE": str(authorities),
            "SSL_CERT_FILE": str(authorities),
            "POWERTOOLS_LOG_LEVEL": "INFO",
        }
        self._ahead = 0.0
        self._all: list[Instance] = []
        with ThreadPoolExecutor() as starting:  # as many as fire in the same minute; how they start is not measured
            self._idle = list(starting.map(lambda _: self._start(), _RATES))
        self.megabytes, self.largest_summary = 0.0, 0

    def stop(self) -> None:
        """End all processes."""
        for process in (*self._all, self._outside):
            process.kill()

    def now(self) -> float:
        """The time by the function's clock."""
        return time.time() + self._ahead

    def jump_to(self, moment: float) -> None:
        """Let it be that time, if it is not later."""
        seconds = max(moment - self.now(), 0.0)
        self._ahead += seconds
        self.outside("jump", seconds)

    def outside(self, do: str, *arguments: Any) -> Any:
        """Have the stand-ins do something."""
        return self._outside.ask({"do": do, "with": arguments})

    def _invoke(self, wake: str) -> dict[str, Any]:
        instance = self._idle.pop() if self._idle else self._start()
        began = time.monotonic()
        try:
            reply: dict[str, Any] = instance.ask({"event": {"wake": wake}, "ahead": self._ahead}, TIMEOUT)
        except TimeoutError:
            self.megabytes = max(self.megabytes, instance.megabytes)
            self._all.remove(instance)
            instance.kill()
            return {"error": "timed out", "seconds": TIMEOUT}
        self.megabytes = max(self.megabytes, instance.megabytes)
        self._idle.append(instance)
        return reply | {"seconds": time.monotonic() - began}

    def _start(self) -> Instance:
        instance = Instance(self._environment)
        self._all.append(instance)
        return instance

    def run(
        self,
        name: str,
        events: Sequence[tuple[str, int | None]],
        done: Callable[[Mapping[str, int]], bool] | None = None,
        give_up_after: float = 12 * HOUR,
    ) -> Measured:
        """Let events come, each now and then every so many seconds, until `done` says so of what stands outside.

        Events that come once and fail come again, as Lambda has it. It gives up after so many seconds of the function's clock.
        """
        measured, began, checked = Measured(name), self.now(), 0
        upcoming = [(began, number, wake, every, True) for number, (wake, every) in enumerate(events)]
        running: dict[Future[dict[str, Any]], tuple[str, bool]] = {}
        over, progressed_at, so_far = False, began, ""

        def look() -> bool:
            nonlocal checked, progressed_at, so_far
            state = self.outside("state")
            measured.calls.update(state["calls"])
            checked, progressed_at = checked + state["checked"], state["progressed_at"]
            passed = timedelta(seconds=round(self.now() - began))
            so_far = (
                f"after {passed}: {state['usable']:,} usable, {state['renewed']:,} renewed, {checked:,} checked tokens"
            )
            self._say(f"{self.accounts:,} accounts, {name}, {so_far}")
            return done is not None and done({**state, "checked": checked})

        with ThreadPoolExecutor(20) as invoking:
            while running or (upcoming and not over):
                while not over and upcoming and upcoming[0][0] <= self.now():
                    at, number, wake, every, retried = heappop(upcoming)
                    if every is not None:
                        heappush(upcoming, (at + every, number, wake, every, retried))
                    measured.invocations[wake] += 1
                    running[invoking.submit(self._invoke, wake)] = (wake, retried)
                if not running:
                    self.jump_to(upcoming[0][0])
                    continue
                next_at = upcoming[0][0] - self.now() if upcoming and not over else 2.0
                finished, _ = wait(running, timeout=max(min(next_at, 2.0), 0.0), return_when=FIRST_COMPLETED)
                for item in finished:
                    wake, retried = running.pop(item)
                    reply = item.result()
                    measured.longest = max(measured.longest, reply["seconds"])
                    measured.processor += reply.get("cpu", 0.0)
                    self.largest_summary = max(self.largest_summary, reply.get("bytes", 0))
                    if "error" in reply:
                        measured.errors[reply["error"]] += 1
                        if retried and not over:
                            heappush(upcoming, (self.now() + RETRY_AFTER, -1, wake, None, False))
                over = look() or over
                if self.now() - began > give_up_after:
                    over, measured.gave_up_with = True, so_far
        measured.seconds = (progressed_at if done and progressed_at > began else self.now()) - began
        return measured


def measure(accounts: int, said: Callable[[str], object], slow_probe: float | None = None) -> Report:
    """Measure all there is to measure with so many accounts; `slow_probe`: also a probe while WeChat takes so many seconds."""
    with _certificate() as (certificate, authorities):
        deployment = Deployment(accounts, certificate, authorities, said)
        try:
            return _measure(deployment, slow_probe)
        finally:
            deployment.stop()


def _measure(deployment: Deployment, slow_probe: float | None) -> Report:
    accounts, run = deployment.accounts, deployment.run
    rows = [run("every account's first token", list(_RATES.items()), lambda state: state["usable"] == accounts)]
    if kept := deployment.outside("state")["usable"]:
        guards = [run("a guard, nothing due", [("guard", None)]) for _ in range(5)]
        rows += [min(guards, key=lambda row: row.seconds), run("a tick, nothing due", [("tick", None)])]
        deployment.jump_to(deployment.now() + 600)  # a young token is not probed
        rows.append(run("a probe run", [("probe", None)]))
        probing = [("probe", _RATES["probe"])]
        rows.append(run("every token probed", probing, lambda state: state["checked"] >= kept, HOUR))
        if slow_probe is not None:
            deployment.outside("slow_down", slow_probe)
            rows.append(run(f"a probe run, WeChat takes {slow_probe:g} s", [("probe", None)]))
            deployment.outside("slow_down", WECHAT_DELAY)
        deployment.jump_to(deployment.outside("make_all_due"))
        rows.append(run("all due in one minute", [("guard", 60)], lambda state: state["renewed"] >= kept, HOUR))
    state = deployment.outside("state")
    return Report(accounts, rows, deployment.megabytes, deployment.largest_summary, state["usable"], state["lost"])


@contextmanager
def _certificate() -> Iterator[tuple[Path, Path]]:
    """A certificate of 127.0.0.1 with its key, and the authorities to trust: all that requests trusts, and this one."""
    key, name = rsa.generate_private_key(65537, 2048), x509.Name([])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    ).public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with tempfile.TemporaryDirectory() as directory:
        certificate, authorities = Path(directory, "certificate.pem"), Path(directory, "authorities.pem")
        certificate.write_bytes(secret + made)
        authorities.write_bytes(Path(certifi.where()).read_bytes() + made)
        yield certificate, authorities


def show(console: Console, report: Report) -> None:
    """Print what was measured."""
    printed = Printed(title=f"{report.accounts:,} account{'s' if report.accounts > 1 else ''}", title_justify="left")
    printed.add_column("")
    for heading in ("time", "invocations", "longest", "processor", "DynamoDB", "Parameter Store", "WeChat", "failed"):
        printed.add_column(heading, justify="right")
    for row in report.rows:
        throttled = row.calls["SSM throttled"]
        printed.add_row(
            row.name,
            f"over {_duration(row.seconds)}" if row.gave_up_with else _duration(row.seconds),
            ", ".join(f"{number} {wake}" for wake, number in row.invocations.items()),
            _duration(row.longest),
            _duration(row.processor),
            f"{row.calls_to('DynamoDB'):,}",
            f"{row.calls_to('SSM'):,}" + (f" ({throttled:,} throttled)" if throttled else ""),
            f"{row.calls_to('WeChat'):,}",
            ", ".join(f"{number} {error}" for error, number in row.errors.items()),
        )
    console.print(printed)
    console.print(
        f"peak memory of an instance: {report.megabytes:.0f} MB; largest summary: {report.largest_summary:,} bytes"
    )
    for problem in report.problems or ["no token was lost, and nothing outlived the timeout"]:
        console.print(problem)


def _say(progress: str) -> None:
    sys.stderr.write(f"\r{progress:<120}")
    sys.stderr.flush()


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms" if seconds < 1 else f"{seconds:,.1f} s"


def main() -> int:
    """Measure and print; 1 where something is as it must not be."""
    parser = argparse.ArgumentParser(prog="python -m tests.reports.scale", description=__doc__)
    parser.add_argument("accounts", type=int, nargs="*", default=[1, 100, 1_000, 10_000])
    parser.add_argument("--slow-probe", type=float, help="measure a probe run, too, while WeChat takes so many seconds")
    asked = parser.parse_args()
    console = Console()
    console.width = max(console.width, 150)
    console.print(
        f"RefreshFunction with {SHARE:.2f} of a processor and {TIMEOUT} s; WeChat responds in {WECHAT_DELAY * 1000:.0f} ms"
    )
    well = True
    for accounts in asked.accounts:
        report = measure(accounts, _say, asked.slow_probe)
        show(console, report)
        well &= not report.problems
    console.print(LIMITS)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
