"""`uv run python -m tests.reports.bill`: what a month costs, from counted calls and list prices, beside what else one might run.

The keeper's and the reader's calls are counted over an AWS in memory (`tests/integration/test_calls.py`), with what DynamoDB
would charge for the items' real sizes. Run times, traffic and sizes of Lambda's own log lines are assumptions, below, and generous.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from rich.console import Console
from rich.table import Table as Printed

from infra.sam_template import translate
from tests.integration.test_calls import Kept
from token_keeper.refresh.wechat import KEPT_CONNECTIONS

SECONDS_A_MONTH = 730 * 3600
GUARDS = SECONDS_A_MONTH / 60
TICKS = SECONDS_A_MONTH / (110 * 60)
ROUNDS = TICKS
"""Renewals of a `token` account: one with every main tick."""

REFRESH_MEMORY, API_MEMORY = 1.0, 0.5
"""GB of the functions (template.yaml)."""

PROBES = SECONDS_A_MONTH / 300

READ_SECONDS, GUARD_SECONDS, TICK_SECONDS, RENEWAL_SECONDS = 0.015, 0.03, 0.5, 0.05
"""Assumed billed run time. A renewal: a call to WeChat of 0.5 s, 16 at a time, takes 0.03 of its function's."""

PROBE_CALL_SECONDS, CALLS_AT_A_TIME, PROBE_CPU_SECONDS = 0.15, KEPT_CONNECTIONS, 0.0025
"""Assumed for a probe's question about one token: WeChat's response, how many are under way at a time, and the processor's work at
the share that 1024 MB get, which is done one after the other."""

RENEWED_IN_FIVE_MINUTES = 13_000
"""Accounts that come due together (`tests.reports.scale` renewed 10,000 in 228 s)."""

PROBE_READ_UNITS = 0.5
"""An eventually consistent read of an account's token item, about 1 KB."""

COLD_STARTS, REFRESH_INIT_SECONDS, API_INIT_SECONDS = 0.01, 1.0, 0.2
"""Assumed share of invocations that begin with an initialisation (AWS: typically under 1 %), and its billed time; Lambda bills it
since August 2025."""

TABLE_KEY_CALLS = SECONDS_A_MONTH / 300
"""DynamoDB asks KMS for the table's key every five minutes for each connection that is in use."""

READS_PER_INSTANCE = 4
"""Assumed reads a second for each instance of ApiFunction, and so for each of its connections."""

RENEWAL_KILOBYTES, PROBE_KILOBYTES = 8, 2
"""Assumed traffic of a call to WeChat: with a TLS handshake, and over a connection that is kept."""

LINES_OF_LAMBDA, LINE_OF_OURS, LINE_OF_GATEWAY = 900, 400, 350
"""Assumed bytes of log: Lambda's start and report of an invocation in JSON (ApiFunction writes none), each line of ours, and
API Gateway's access log."""

QUEUE_POLLS = 5 * 3 * 60 * 730
"""Requests of a month with which Lambda waits for messages: 5 pollers, 20 s each time ("Using Lambda with Amazon SQS")."""

NANO_DISK = 4
"""GB of the NAT instance's disk (infra/cloudformation/egress.yaml)."""

LARGEST_BODY = 20
"""What API Gateway counts the largest request as that it takes, of 10 MB: one for each 512 KB."""

SOURCES = {
    "Lambda, arm64": "https://aws.amazon.com/lambda/pricing/",
    "API Gateway, HTTP API": "https://aws.amazon.com/api-gateway/pricing/",
    "DynamoDB, on demand": "https://aws.amazon.com/dynamodb/pricing/on-demand/",
    "EventBridge Scheduler": "https://aws.amazon.com/eventbridge/pricing/",
    "CloudWatch": "https://aws.amazon.com/cloudwatch/pricing/",
    "SQS": "https://aws.amazon.com/sqs/pricing/",
    "KMS": "https://aws.amazon.com/kms/pricing/",
    "ElastiCache": "https://aws.amazon.com/elasticache/pricing/",
    "EC2": "https://aws.amazon.com/ec2/pricing/on-demand/",
    "EBS": "https://aws.amazon.com/ebs/pricing/",
    "VPC": "https://aws.amazon.com/vpc/pricing/",
    "Secrets Manager": "https://aws.amazon.com/secrets-manager/pricing/",
}
PRICED = (
    "list prices of us-east-1 in US dollars, looked up in November 2026; not found, and as known in 2025: cache.t4g.micro "
    "and t4g.micro"
)


@dataclass(frozen=True)
class Price:
    """Dollars for each unit beyond the free ones of a month; the service in `SOURCES`' words."""

    service: str
    unit: str
    dollars: float
    free: float = 0


REQUESTS = Price("Lambda, arm64", "invocations", 0.20e-6)
COMPUTE = Price("Lambda, arm64", "GB-seconds", 0.0000133334)
API = Price("API Gateway, HTTP API", "requests", 1.00e-6)
READS = Price("DynamoDB, on demand", "read units", 0.125e-6)
WRITES = Price("DynamoDB, on demand", "write units", 0.625e-6)
STORAGE = Price("DynamoDB, on demand", "GB stored", 0.25)
SCHEDULES = Price("EventBridge Scheduler", "wake-ups", 1.00e-6, free=14e6)
LOGS = Price("CloudWatch", "GB of logs", 0.50)
LOG_STORAGE = Price("CloudWatch", "GB of logs kept a month", 0.03)
METRICS = Price("CloudWatch", "custom metrics", 0.30, free=10)
ALARMS = Price("CloudWatch", "alarms", 0.10, free=10)
DASHBOARDS = Price("CloudWatch", "dashboards", 3.00, free=3)
EVENTS = Price("EventBridge Scheduler", "custom events", 1.00e-6)
QUEUE = Price("SQS", "requests", 0.40e-6, free=1e6)
DECRYPTIONS = Price("KMS", "decryptions", 0.03 / 10_000, free=20_000)
TABLE_KEYS = Price("KMS", "calls for the table's key", 0.03 / 10_000)
KEY = Price("KMS", "own key (KmsKeyArn)", 1.00)
CACHE_NODE = Price("ElastiCache", "cache.t4g.micro hours", 0.016)
SERVER = Price("EC2", "t4g.micro hours", 0.0084)
GATEWAY = Price("VPC", "NAT gateway hours", 0.045)
GATEWAY_DATA = Price("VPC", "GB through the NAT gateway", 0.045)
ADDRESS = Price("VPC", "public IPv4 address hours", 0.005)
NANO = Price("EC2", "t4g.nano hours", 0.0042)
DISK = Price("EBS", "GB of gp3 disk", 0.08)
SECRET = Price("Secrets Manager", "secrets", 0.40)
SECRET_CALLS = Price("Secrets Manager", "calls", 0.05 / 10_000)

type Usage = dict[Price, float]


class Metered(Kept):
    """So many accounts, and what DynamoDB charges for their reads and writes."""

    def __init__(self, accounts: int) -> None:
        super().__init__(accounts)
        self._units: list[tuple[Price, float]] = []  # of several threads, which may all append
        self.aws.after_write = self._written
        dynamodb = self.aws.client("dynamodb")
        dynamodb.get_item, dynamodb.query = self._read(dynamodb.get_item), self._read(dynamodb.query)
        dynamodb.batch_get_item = self._read_batch(dynamodb.batch_get_item)

    def _read(self, operation: Any) -> Any:
        def read(**asked: Any) -> Any:
            response = operation(**asked)
            found = response.get("Items", [response["Item"]] if "Item" in response else [])
            if "IndexName" in asked:
                found = [{name: item[name] for name in ("pk", "sk", *_INDEXES[0])} for item in found]
            units = max(ceil(sum(map(_size, found)) / 4096), 1)
            self._units.append((READS, units if asked.get("ConsistentRead") else units / 2))
            return response

        return read

    def _read_batch(self, operation: Any) -> Any:
        def read(RequestItems: Any) -> Any:  # noqa: N803 - boto3's name
            response = operation(RequestItems=RequestItems)
            ((table, asked),) = RequestItems.items()
            # Each item is charged by itself, one that is not there as well.
            sizes = [_size(item) for item in response["Responses"][table]]
            units = sum(ceil(size / 4096) for size in sizes) + len(asked["Keys"]) - len(sizes)
            self._units.append((READS, units if asked.get("ConsistentRead") else units / 2))
            return response

        return read

    def _written(self, _what: str, before: Any, after: Any) -> None:
        self._units.append((WRITES, ceil(max(_size(before or {}), _size(after or {})) / 1024)))
        for key, *others in _INDEXES:
            old, new = ({name: item.get(name) for name in (key, *others)} for item in (before or {}, after or {}))
            if old != new and (old[key] or new[key]):
                # A changed key is one entry deleted and one put.
                self._units.append((WRITES, 2 if old[key] and new[key] and old[key] != new[key] else 1))

    def measure(self, work: Any) -> tuple[Usage, Counter[str]]:
        """What DynamoDB charges for some work, and the calls that it takes."""
        self.calls.clear()
        self._units.clear()
        work()
        used = {price: sum(units for kind, units in self._units if kind is price) for price in (READS, WRITES)}
        return used, self.counted()


_INDEXES = (("due_at", "due", "kind", "failures"), ("fingerprint",), ("previous_fingerprint",))
"""Of each index its key, which changes, and what else it holds."""


def _size(item: Mapping[str, Any]) -> int:
    """DynamoDB's measure: names and values; numbers about half a byte a digit, maps their parts."""
    total = 0
    for name, typed in item.items():
        ((kind, value),) = typed.items()
        total += len(name)
        total += _size(value) + 3 if kind == "M" else len(value) // 2 + 1 if kind == "N" else len(value)
    return total


def keeping(accounts: int) -> Usage:
    """A month of everything but the reads."""
    kept = Metered(accounts)
    guard, _ = kept.measure(lambda: list(kept.keeper.guard(kept.has_time)))
    tick, _ = kept.measure(lambda: list(kept.keeper.tick(kept.has_time)))

    def all_once() -> None:
        last = kept.due_times()[-1]
        while kept.clock() < last:
            kept.clock.now = max(kept.clock() + 60, kept.due_times()[0])
            list(kept.keeper.guard(kept.has_time))

    renewed, calls = kept.measure(all_once)
    stored = sum(map(_size, kept.aws.items.values())) / 1e9
    wake_ups = GUARDS + TICKS + PROBES
    seconds = GUARDS * GUARD_SECONDS + TICKS * TICK_SECONDS + ROUNDS * accounts * RENEWAL_SECONDS
    seconds += PROBES * (GUARD_SECONDS + accounts * (PROBE_CALL_SECONDS / CALLS_AT_A_TIME + PROBE_CPU_SECONDS))
    seconds += wake_ups * COLD_STARTS * REFRESH_INIT_SECONDS
    logged = (wake_ups * LINES_OF_LAMBDA + ROUNDS * calls["wechat"] * LINE_OF_OURS) / 1e9
    reads = GUARDS * guard[READS] + TICKS * tick[READS] + ROUNDS * renewed[READS] + PROBES * accounts * PROBE_READ_UNITS
    return {
        REQUESTS: wake_ups,
        COMPUTE: seconds * REFRESH_MEMORY,
        READS: reads,
        WRITES: GUARDS * guard[WRITES] + TICKS * tick[WRITES] + ROUNDS * renewed[WRITES],
        STORAGE: stored,
        SCHEDULES: wake_ups,
        DECRYPTIONS: ROUNDS * accounts,
        # One connection is always in use, and more while many are renewed.
        TABLE_KEYS: TABLE_KEY_CALLS
        + ROUNDS * min(accounts, CALLS_AT_A_TIME) * ceil(accounts / RENEWED_IN_FIVE_MINUTES),
        LOGS: logged,
        LOG_STORAGE: logged,
        EVENTS: ROUNDS * accounts,
        QUEUE: QUEUE_POLLS,
        METRICS: 0,
        ALARMS: 6,
        DASHBOARDS: 1,
    }


def reading(reads: float) -> Usage:
    """A month's reads, as if none were served from a reader's memory."""
    logged = reads * (LINE_OF_OURS + LINE_OF_GATEWAY) / 1e9
    return {
        API: reads,
        REQUESTS: reads,
        COMPUTE: reads * (READ_SECONDS + COLD_STARTS * API_INIT_SECONDS) * API_MEMORY,
        READS: reads,
        TABLE_KEYS: TABLE_KEY_CALLS * max(1, reads / SECONDS_A_MONTH / READS_PER_INSTANCE),
        LOGS: logged,
        LOG_STORAGE: logged,
    }


def egress(accounts: int) -> dict[str, Usage]:
    """A month of a fixed address, by `EgressMode`. DynamoDB has an endpoint of its own, and what goes out is within the free 100 GB."""
    calls = (ROUNDS * RENEWAL_KILOBYTES + PROBES * PROBE_KILOBYTES) * accounts
    return {
        "managed": {GATEWAY: 730, ADDRESS: 730, GATEWAY_DATA: calls / 1e6},
        "instance": {NANO: 730, ADDRESS: 730, DISK: NANO_DISK},
    }


def worst_day() -> float:
    """Requests of a day in which all open routes are asked without a valid key, as fast as their limits let through."""
    resources = translate()["Resources"].values()
    (stage,) = (each["Properties"] for each in resources if each["Type"] == "AWS::ApiGatewayV2::Stage")
    return float(sum(limit["ThrottlingRateLimit"] for limit in stage["RouteSettings"].values()) * 86400)


def dollars(usage: Usage) -> float:
    """What a usage costs a month."""
    return sum(max(units - price.free, 0) * price.dollars for price, units in usage.items())


def main() -> None:
    """Count and print."""
    console = Console()
    console.width = max(console.width, 110)
    sizes = {
        (1, 1e6): "1 account, 1 M reads",
        (100, 100e6): "100 accounts, 100 M",
        (10_000, 100e6): "10 000 accounts, 100 M",
    }
    bills = {
        name: {
            "everything but the reads": keeping(accounts),
            "the reads": reading(reads),
            **{f"EgressMode {mode}": usage for mode, usage in egress(accounts).items()},
        }
        for (accounts, reads), name in sizes.items()
    }
    printed = Printed(title="dollars a month")
    for heading, side in (("", "left"), ("unit", "left"), ("$ for each", "right"), ("free", "right")):
        printed.add_column(heading, justify=side)  # type: ignore[arg-type]
    for name in bills:
        printed.add_column(name, justify="right")
    for title, usage in next(iter(bills.values())).items():
        for price in usage:
            costs = [f"{dollars({price: bill[title][price]}):.4f}" for bill in bills.values()]
            printed.add_row(
                price.service,
                price.unit,
                f"{price.dollars:.10f}".rstrip("0").rstrip("."),
                f"{price.free or ''}",
                *costs,
            )
        totals = [f"[bold]{dollars(bill[title]):.2f}" for bill in bills.values()]
        printed.add_row(f"[bold]{title}", "", "", "", *totals, end_section=True)
    console.print(printed)
    each, _, many = (dollars(bill["everything but the reads"]) for bill in bills.values())
    console.print(f"each further account: {(many - each) / 9999:.4f} $ a month")
    console.print(f"an own key for the parameters: {dollars({KEY: 1}):.2f} $")
    requests = worst_day()
    console.print(
        f"a day of requests without a valid key, at the limits of the open routes: {requests / 1e6:.1f} M requests, "
        f"{dollars(reading(requests)):.0f} $; with bodies of 10 MB, {LARGEST_BODY} requests each to the gateway, "
        f"{dollars({API: requests * (LARGEST_BODY - 1)}):.0f} $ more"
    )
    allowed = {ALARMS: 16, DASHBOARDS: 4, QUEUE: 1e6 + QUEUE_POLLS}
    console.print(
        f"where other things use up what CloudWatch and SQS give every AWS account free: {dollars(allowed):.2f} $ more"
    )
    console.print("\nbeside it, without the reads' own costs:")
    pair = dollars({CACHE_NODE: 2 * 730})
    console.print(
        f"a pair of Redis nodes (ElastiCache): {pair:.2f} $; on two servers (EC2): {dollars({SERVER: 2 * 730}):.2f} $, "
        "and a server still has to fetch the tokens"
    )
    secrets = {SECRET: 1, SECRET_CALLS: 1e6}
    console.print(
        f"Secrets Manager, 1 account and 1 M reads: {dollars(secrets):.2f} $; but its shortest schedule is 4 hours, "
        "and a token lives 2"
    )
    console.print(f"\n{PRICED}:")
    for service, url in SOURCES.items():
        console.print(f"  {service}: {url}")


if __name__ == "__main__":
    main()
