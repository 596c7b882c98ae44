"""`uv run python -m tests.reports.benchmark`: how fast readers start and respond in the real Lambda runtime, ours and others.

It builds the project, runs each contender in a fresh runtime in turn, several times over, against DynamoDB Local, and
prints minimum, median and maximum with their ratios. All figures are this machine's: only ratios travel. None speaks TLS
here, which makes the contenders' first responses equally too fast.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import boto3
from rich.console import Console
from rich.progress import Progress
from rich.table import Table as Printed

from tests.support import dynamodb_local
from tests.support.lambda_runtime import PROJECT, LambdaRuntime, build
from tests.support.world import create_table, gateway_event
from token_keeper.model import ACCESS_TOKEN, Grant, Kind
from token_keeper.refresh import lifecycle
from token_keeper.table import Table

CONTENDERS = Path(__file__).parent / "contenders"
BARE, FLOOR, USUAL, OURS = "bare handler", "floor: boto3, get_item", "usual: Powertools, resource", "this project"

GOALS = {"cold": (0.65, FLOOR), "memory": (1.6, BARE), "table": (1.1, FLOOR)}
"""At most this much of that contender's median."""

COLUMNS = {"cold": "init + first response", "memory": "warm, from memory", "table": "warm, table read"}


@dataclass
class Contender:
    """What is compared: code that handles the API's event for an account's token. Milliseconds in `measured`."""

    name: str
    code: Path
    handler: str
    measured: dict[str, list[float]] = field(default_factory=dict)
    memory: float = 0.0

    def run(self, environment: Mapping[str, str], accounts: list[str], log: Path) -> None:
        """Start it, ask it for every account, which ours cannot know yet, then as often for the last one."""
        with LambdaRuntime(self.code, self.handler, environment, log) as runtime:
            for account in accounts:
                self._ask(runtime, account)
            first, *table = runtime.durations
            for _ in accounts:
                self._ask(runtime, accounts[-1])
            self.memory = max(self.memory, runtime.peak_memory)
            init, memory = runtime.init, runtime.durations[len(accounts) :]
        self._add("init", [init])
        self._add("cold", [init + first])
        if self.name != BARE:
            self._add("table", table)
        if self.name in (BARE, OURS):
            self._add("memory", memory)

    def _ask(self, runtime: LambdaRuntime, account: str) -> None:
        path = f"/v1/accounts/{account}/access-token"
        response = runtime.invoke(gateway_event(path) | _ROUTED | {"rawPath": path})
        if response.get("statusCode") != 200:
            raise RuntimeError(f"{self.name} does not respond: {response}")

    def _add(self, what: str, milliseconds: list[float]) -> None:
        self.measured.setdefault(what, []).extend(milliseconds)


_ROUTED: dict[str, Any] = {
    "headers": {},
    "rawQueryString": "",
    "isBase64Encoded": False,
    "requestContext": {
        "http": {"method": "GET", "path": ""},
        "stage": "$default",
        "authorizer": {"iam": {"userArn": "arn:aws:iam::123456789012:user/benchmark"}},
    },
}
"""What of API Gateway's event the tests leave out, and Powertools reads."""


def main() -> None:
    """Build, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.reports.benchmark", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="cold starts of each contender (default 7)")
    parser.add_argument("--reads", type=int, default=100, help="warm reads of each kind after each (default 100)")
    asked = parser.parse_args()
    console = Console()
    console.width = max(console.width, 130)
    with tempfile.TemporaryDirectory() as directory, Progress(console=console, transient=True) as progress:
        task = progress.add_task("sam build", total=4 * asked.rounds)
        built = build(Path(directory, "built"))
        contenders = [
            Contender(BARE, CONTENDERS / "bare", "app.handler"),
            Contender(FLOOR, CONTENDERS / "floor", "app.handler"),
            Contender(USUAL, CONTENDERS / "usual", "app.handler"),
            Contender(OURS, built / "ApiFunction", "api.handler"),
        ]
        accounts = [f"account-{number}" for number in range(asked.reads)]
        progress.update(task, description="DynamoDB Local")
        with table(Path(directory), accounts) as environment:
            for number in range(asked.rounds):
                for contender in contenders[number % 4 :] + contenders[: number % 4]:
                    progress.update(task, description=contender.name)
                    contender.run(environment, accounts, Path(directory, "log"))
                    progress.advance(task)
        sizes = {name: zipped(built / name, Path(directory)) for name in ("ApiFunction", "RefreshFunction")}
    show(console, {contender.name: contender for contender in contenders}, asked.rounds, asked.reads)
    for name, size in sizes.items():
        console.print(f"zip of {name}: {size / 1e6:.2f} MB")


@contextmanager
def table(directory: Path, accounts: list[str]) -> Iterator[dict[str, str]]:
    """DynamoDB Local with a fresh token for each account; yields the environment that leads a function there."""
    with dynamodb_local.running(PROJECT / ".pytest_cache/d/dynamodb-local", directory / "dynamodb-local.log") as url:
        dynamodb = boto3.Session("test", "test", region_name="us-east-1").client("dynamodb", endpoint_url=url)
        create_table(dynamodb, "tokens")
        kept, now = Table(dynamodb, "tokens"), int(time.time())
        for account in accounts:
            kept.credentials.enrol(account, ACCESS_TOKEN, Kind.TOKEN, "wx0123456789abcdef", due_at=now)
            enrolled = kept.credentials.get(account, ACCESS_TOKEN)
            assert enrolled is not None
            leased = kept.credentials.change(enrolled, lifecycle.lease(enrolled, now))
            assert leased is not None
            attempt = lifecycle.Attempt(enrolled, leased, now)
            kept.credentials.change(leased, lifecycle.publish(attempt, Grant("t" * 512, 7200, now), now))
        yield {
            "TABLE_NAME": "tokens",
            "REFRESH_FUNCTION_NAME": "refresh",
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_SESSION_TOKEN": "test",
        }


def zipped(code: Path, directory: Path) -> int:
    """The bytes of what is deployed of a function."""
    return Path(shutil.make_archive(str(directory / code.name), "zip", code)).stat().st_size


def show(console: Console, contenders: Mapping[str, Contender], rounds: int, reads: int) -> None:
    """Print the figures and what was aimed at."""
    printed = Printed(
        title=f"milliseconds: min / median / max of {rounds} cold starts, {reads} reads of each kind after each"
    )
    printed.add_column("")
    for heading in ("init", *COLUMNS.values(), "peak memory"):
        printed.add_column(heading, justify="right")
    for contender in contenders.values():
        cells = [_spread(contender.measured.get(what)) for what in ("init", *COLUMNS)]
        printed.add_row(contender.name, *cells, f"{contender.memory:.0f} MB")
    console.print(printed)
    for what, (goal, other) in GOALS.items():
        ratio = median(contenders[OURS].measured[what]) / median(contenders[other].measured[what])
        mark = "reached" if ratio <= goal else "NOT reached"
        console.print(f"{COLUMNS[what]}: {ratio:.2f} of {other}; the goal is at most {goal}: {mark}")


def _spread(milliseconds: list[float] | None) -> str:
    if milliseconds is None:
        return ""
    return f"{min(milliseconds):.1f} / {median(milliseconds):.1f} / {max(milliseconds):.1f}"


if __name__ == "__main__":
    main()
