"""What an outage of the way out costs: nothing beyond DynamoDB can be reached for some minutes, beginning at any second.

    uv run python -m tests.reports.outage

The real handlers, a simulated WeChat and one clock. RefreshFunction's calls to WeChat and to Parameter Store wait for a
connection until their time is over, as where a NAT instance is gone; both take simulated time.

The schedules fire on whole minutes, and nothing of the keeper's happens between them. So all outages that begin within
the same minute meet the same events, and only the first and the last second of each minute are run.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ConnectTimeoutError
from rich.console import Console
from rich.table import Table

from infra import sam_template
from infra.local.simulated_wechat import Fault, Reply, SimulatedWeChat
from tests.reports.day import Timer
from tests.simulation.memory_aws import MemoryAws
from tests.support.world import START, Clock, World
from token_keeper.errors import KeeperError
from token_keeper.refresh.wechat import CONNECT_TIMEOUT

LENGTHS = (240, 300, 540)
"""Seconds."""

CYCLE = 7200
"""Seconds in which each kind of credential is renewed once."""

FIRST_RENEWAL = 6540
"""Seconds from a fetch to the first moment at which any kind is renewed: a `token`, by a main tick that looks ahead."""

PARAMETER_STORE_TIMEOUT = 9
"""Seconds until botocore gives up: three attempts of 2 s, and the waits between them."""

INTERVAL = 5
"""Seconds from one reading to the next."""

ENROLLED_AFTER = (0, 3601, 3631)
"""Seconds from the schedules' beginning to the accounts' enrolment: with a main tick; and so that the guard comes as late as
it can for what is due 540 or 300 s before its end (59 s), and for what is due 270 s before (59 s)."""

SCHEDULES = sam_template.schedules(sam_template.translate())

ACCOUNTS: dict[str, dict[str, Any]] = {
    "token": {"appid": "wx1", "endpoint": "token", "tickets": ["jsapi", "wx_card"]},
    "stable-token": {"appid": "wx2", "endpoint": "stable_token", "tickets": ["jsapi"]},
    "wecom": {"corpid": "ww1", "tickets": ["jsapi", "agent_config"]},
}
CREDENTIALS = {
    f"{account} {credential}": f"/v1/accounts/{account}/{credential}"
    for account, record in ACCOUNTS.items()
    for credential in ("access-token", *(f"tickets/{ticket}" for ticket in record["tickets"]))
}


@dataclass
class Outage:
    """A span of time, in epoch seconds. `loses_response`: a call that is under way at its beginning is carried out by WeChat."""

    begins_at: float
    seconds: int
    loses_response: bool = False

    def __contains__(self, moment: float) -> bool:
        return self.begins_at <= moment < self.begins_at + self.seconds


class FadingWeChat(SimulatedWeChat):
    """WeChat, whose response to the call that is under way as an outage begins may be lost."""

    def __init__(self, clock: Clock, outage: Outage, *, wecom_mints_anew: bool) -> None:
        super().__init__(clock, wecom_mints_anew=wecom_mints_anew)
        self._now, self._outage = clock, outage

    def handle(
        self, method: str, path: str, query: Mapping[str, str], body: bytes, remote_addr: str = "127.0.0.1"
    ) -> Reply:
        """As WeChat does."""
        if self._outage.loses_response and self._now() in self._outage:
            self._outage.loses_response = False
            self.fail(path, Fault.drop_after())
        return super().handle(method, path, query, body, remote_addr)


class CutOffWorld(World):
    """A world whose RefreshFunction has no way out during an outage."""

    def __init__(self, clock: Clock, outage: Outage, *, wecom_mints_anew: bool) -> None:
        self._outage = outage
        super().__init__(MemoryAws(clock).client, clock=clock)
        self.wechat = FadingWeChat(clock, outage, wecom_mints_anew=wecom_mints_anew)
        self.before_aws = self._refuse

    @property
    def unreachable(self) -> bool:
        """Whether the call that begins now waits in vain for its connection to WeChat."""
        cut_off = self._cut_off()
        if cut_off:
            self.clock.sleep(CONNECT_TIMEOUT)
        return cut_off

    @unreachable.setter
    def unreachable(self, unreachable: bool) -> None:
        """The outage alone decides."""

    def _cut_off(self) -> bool:
        return self.clock() in self._outage and not self._outage.loses_response

    def _refuse(self, operation: str, _: bytes) -> None:
        if self._cut_off() and not operation.startswith(("dynamodb.", "lambda.")):
            self.clock.sleep(PARAMETER_STORE_TIMEOUT)
            raise ConnectTimeoutError(endpoint_url="https://ssm.invalid/")


@dataclass
class Loss:
    """Of each credential: the seconds in which a reader got no usable value, and those of promises that were broken."""

    without_value: Counter[str]
    broken_promises: Counter[str]


@contextmanager
def meanwhile(clock: Clock) -> Iterator[None]:
    """What is done takes its time, and others need not wait for it."""
    now = clock.now
    yield
    clock.now = now


def run(outage: Outage, *, enrolled_after: int = 0, wecom_mints_anew: bool = False) -> Loss:
    """Live through one outage; readers ask from its beginning until all is renewed once more."""
    clock = Clock()
    world = CutOffWorld(clock, outage, wecom_mints_anew=wecom_mints_anew)
    clock.sleep(enrolled_after)
    timers = [(Timer(each.rate, clock), each.event) for each in SCHEDULES]
    for name, record in ACCOUNTS.items():
        world.add_account(name, secret=f"secret-of-{name}", **record)

    loss = Loss(Counter(), Counter())
    promised: dict[tuple[str, str], float] = {}  # until when a reader was promised that this value works
    with world.internet():
        while clock() < outage.begins_at + outage.seconds + 300:
            for timer, event in timers:
                # Where it fails, Lambda counts an error; the next guard comes in a minute.
                with meanwhile(clock), suppress(KeeperError):
                    if timer.fires():
                        world.invoke(event, seconds=120)
            now = clock()
            to_next_minute = 60 - (now - START) % 60
            if now < outage.begins_at:
                clock.sleep(min(to_next_minute, outage.begins_at - now))
                continue
            interval = min(INTERVAL, to_next_minute)
            for (name, value), end in list(promised.items()):
                if not world.wechat.accepts(value):
                    loss.broken_promises[name] += max(int(end - now), 0)
                    del promised[name, value]
            for name, path in CREDENTIALS.items():
                with meanwhile(clock):
                    status, body = world.get(path)
                value = str(body.get("access_token") or body.get("ticket"))
                if status == 200 and world.wechat.accepts(value):
                    promised[name, value] = max(now + body["expires_in"], promised.get((name, value), 0))
                else:
                    loss.without_value[name] += int(interval)
            clock.sleep(interval)
    return loss


def worst(seconds: int, *, loses_response: bool = False, wecom_mints_anew: bool = False) -> Loss:
    """What an outage of so many seconds costs at most, whenever in a cycle it begins."""
    most = Loss(Counter(), Counter())
    for enrolled_after in ENROLLED_AFTER:
        enrolled_in = START + enrolled_after // 60 * 60
        # One that ends before any renewal is due meets guards that find nothing.
        for minute in range(enrolled_in + (FIRST_RENEWAL - seconds) // 60 * 60, enrolled_in + CYCLE + 121, 60):
            for begins_at in (minute - 59, minute):
                outage = Outage(begins_at, seconds, loses_response)
                loss = run(outage, enrolled_after=enrolled_after, wecom_mints_anew=wecom_mints_anew)
                most.without_value |= loss.without_value
                most.broken_promises |= loss.broken_promises
    return most


def main() -> None:
    """Run all outages and print what they cost."""
    logging.disable()
    started = time.monotonic()
    table = Table("", title="seconds at most in which a reader got no usable value")
    losses, broken = [], Counter[str]()
    for seconds in LENGTHS:
        table.add_column(f"outage of {seconds} s", justify="right")
        repeated, minted = worst(seconds), worst(seconds, wecom_mints_anew=True)
        wecom = minted.without_value["wecom access-token"]
        losses.append(repeated.without_value | Counter({"wecom access-token, where WeCom mints one early": wecom}))
        broken |= repeated.broken_promises | minted.broken_promises
    for name in sorted([*CREDENTIALS, "wecom access-token, where WeCom mints one early"]):
        table.add_row(name, *(str(loss[name]) for loss in losses))
    console = Console(highlight=False)
    console.print(table, f"broken promises: {dict(broken) or 'none'}", sep="\n")
    console.print(f"It took {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    main()
