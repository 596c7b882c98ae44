"""What readers get in 24 simulated hours: this project beside a bare 110-minute timer.

    uv run python -m tests.simulation.day

The real handlers and a simulated WeChat share one clock. At each second the contender does what is due, one reader asks,
and what was promised before is compared with what WeChat accepts. No second is passed over.
"""

import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from moto import mock_aws
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from infra import stack
from infra.simulated_wechat import DAY, Answer, Fault, SimulatedWeChat
from tests.world import APPID, SECRET, START, Clock, World
from token_keeper.model import Kind

BARE_TIMER_RATE = 110 * 60
"""Seconds."""

OUTAGE = 120
"""Seconds in which WeChat refuses."""

SCHEDULES = stack.schedules(stack.translate())

type Reading = tuple[str, int]
"""A token, and the moment (epoch seconds) until which the reader is promised that it works."""


class FailingWeChat(SimulatedWeChat):
    """WeChat; when its renewal number `failing_renewal` comes, it answers -1 for `OUTAGE` seconds."""

    def __init__(self, clock: Clock, failing_renewal: int | None) -> None:
        super().__init__(clock)
        self._time = clock
        self._failing_renewal = failing_renewal
        self._refuses_until: float | None = None
        self.add_app(APPID, SECRET)

    def answer(self, method: str, path: str, *rest: object, **more: object) -> Answer:
        """As WeChat does."""
        if self._refuses_until is None and len(self.calls) == self._failing_renewal:
            self._refuses_until = self._time() + OUTAGE
        if self._refuses_until is not None and self._time() < self._refuses_until:
            self.fail(path, Fault.error(-1))
        return super().answer(method, path, *rest, **more)  # type: ignore[arg-type]


class Timer:
    """Fires at `START`, when everything is deployed, and every `rate` seconds from then on."""

    def __init__(self, rate: int, clock: Clock) -> None:
        self._rate = rate
        self._clock = clock
        self._next = START + -(-(clock() - START) // rate) * rate

    def fires(self) -> bool:
        """Whether it fires now; asked again, it does not."""
        if self._clock() < self._next:
            return False
        self._next += self._rate
        return True


class Contender(Protocol):
    """One way to keep one account's token. It has its first token after its first step."""

    clock: Clock
    wechat: SimulatedWeChat

    def step(self) -> None:
        """Do what is due at this second."""

    def token_at(self) -> Reading | None:
        """What a reader gets at this second."""


class ThisProject:
    """Both handlers, woken by the template's schedules; inside moto's `mock_aws`.

    `enrolled_after`: seconds from the schedules' first firing to the account's enrolment.
    """

    def __init__(self, endpoint: Kind, failing_renewal: int | None = None, *, enrolled_after: int = 0) -> None:
        self._world = World()
        self.clock = self._world.clock
        self.wechat = self._world.wechat = FailingWeChat(self.clock, failing_renewal)
        self.clock.sleep(enrolled_after)
        self._timers = [(Timer(schedule.rate, self.clock), schedule.event) for schedule in SCHEDULES]
        record = {"appid": APPID, "secret": SECRET, "endpoint": endpoint}
        self._world.put_parameter("main", json.dumps(record))

    def step(self) -> None:
        """Wake the refresher as often as the schedules do."""
        for timer, event in self._timers:
            if timer.fires():
                self._world.invoke(event)

    def token_at(self) -> Reading | None:
        """Ask the API; a client may rely on `expires_in`."""
        status, body = self._world.get("/v1/accounts/main/access-token")
        return (body["access_token"], int(self.clock()) + body["expires_in"]) if status == 200 else None


class BareTimer:
    """A scheduled script: each run asks WeChat and stores the answer; a failed run leaves what was stored.

    It promises what such scripts do: what is left of WeChat's `expires_in`, counted down since the fetch.
    """

    def __init__(self, endpoint: Kind, failing_renewal: int | None = None) -> None:
        self.clock = Clock()
        self.wechat = FailingWeChat(self.clock, failing_renewal)
        self._timer = Timer(BARE_TIMER_RATE, self.clock)
        self._method, self._path = ("GET" if endpoint is Kind.TOKEN else "POST"), f"/cgi-bin/{endpoint}"
        self._stored: Reading | None = None

    def step(self) -> None:
        """Fetch and store, when the timer fires."""
        if not self._timer.fires():
            return
        fields = {"grant_type": "client_credential", "appid": APPID, "secret": SECRET}
        answer = json.loads(self.wechat.answer(self._method, self._path, fields, json.dumps(fields).encode()).body)
        if "access_token" in answer:
            self._stored = answer["access_token"], int(self.clock()) + answer["expires_in"]

    def token_at(self) -> Reading | None:
        """What is stored, however old."""
        return self._stored


@dataclass
class Result:
    """What became of one contender's readers.

    `without_token`: seconds of the span in which a reader got no token, or one that WeChat did not accept at that second.
    `broken_promises`: of the `promises`, one per reading, those whose token WeChat stopped accepting before their end.
    `wrongly_promised`: seconds in which somebody held a promise for a token that WeChat did not accept any more; the
    promises of the span are followed to their end, so these seconds may lie behind it.
    """

    calls: int = 0
    without_token: int = 0
    promises: int = 0
    broken_promises: int = 0
    wrongly_promised: int = 0


def run(
    contender: Contender, span: int = DAY, interval: int = 1, progress: Callable[[int], object] = lambda seconds: None
) -> Result:
    """Let a reader ask every `interval` seconds for `span` seconds; each reading counts for the interval it begins.

    An interval above 1 rounds what becomes of promises to its multiples.
    """
    result = Result()
    clock, wechat = contender.clock, contender.wechat
    ends = clock() + span
    held: defaultdict[str, Counter[int]] = defaultdict(Counter)  # token → how many were promised it until then
    broken_until = 0
    while (now := clock()) < ends or any(max(promised) > now for promised in held.values()):
        contender.step()
        if now < ends:
            progress(interval)
            result.calls = len(wechat.calls)
            reading = contender.token_at()
            if reading is None or not wechat.accepts(reading[0]):
                result.without_token += interval
            if reading is not None and reading[1] > now:
                result.promises += 1
                held[reading[0]][reading[1]] += 1
        for token in [token for token in held if not wechat.accepts(token)]:
            broken = Counter({until: count for until, count in held.pop(token).items() if until > now})
            result.broken_promises += broken.total()
            broken_until = max(broken_until, *broken, 0)
        result.wrongly_promised += interval * (now < broken_until)
        assert clock() == now, "a call that takes time would take it from the readers: none does here"
        clock.sleep(interval)
    return result


UNDISTURBED, ONE_FAILED = "undisturbed", "one failed renewal"
FAILING_RENEWAL = 3
CONTENDERS: dict[tuple[str, str], Callable[[], Contender]] = {
    ("this project, token", UNDISTURBED): lambda: ThisProject(Kind.TOKEN),
    ("this project, stable_token", UNDISTURBED): lambda: ThisProject(Kind.STABLE_TOKEN),
    ("bare timer, token", UNDISTURBED): lambda: BareTimer(Kind.TOKEN),
    ("bare timer, stable_token", UNDISTURBED): lambda: BareTimer(Kind.STABLE_TOKEN),
    ("this project, token", ONE_FAILED): lambda: ThisProject(Kind.TOKEN, FAILING_RENEWAL),
    ("bare timer, token", ONE_FAILED): lambda: BareTimer(Kind.TOKEN, FAILING_RENEWAL),
}


def main() -> None:
    """Run all contenders and print the table."""
    logging.disable()  # the handlers' own lines
    began = time.monotonic()
    table = Table(
        "", "WeChat calls", "seconds without\nan accepted token", title="24 simulated hours, a read per second"
    )
    table.add_column("broken promises")
    table.add_column("wrongly promised\nseconds")
    for column in table.columns[1:]:
        column.justify = "right"
    day = ""
    with Progress(transient=True) as progress:
        for (name, kind_of_day), contender in CONTENDERS.items():
            if kind_of_day != day:
                day = kind_of_day
                table.add_section()
                table.add_row(f"[bold]{day}")
            task = progress.add_task(f"{name}, {day}", total=DAY)
            with mock_aws():
                result = run(contender(), progress=lambda seconds, task=task: progress.advance(task, seconds))  # type: ignore[misc]
            broken = f"{result.broken_promises:,} of {result.promises:,}"
            row = f"{result.calls:,}", f"{result.without_token:,}", broken, f"{result.wrongly_promised:,}"
            table.add_row(name, *row)
    console = Console()
    console.print(table)
    console.print(
        f"One failed renewal: at renewal {FAILING_RENEWAL} WeChat answers -1 (system busy) for {OUTAGE} s.\n"
        "Every reading is a promise: this project's expires_in, or what is left of WeChat's expires_in since the bare\n"
        "timer's fetch. It is broken if WeChat stops accepting the token before its end. Wrongly promised is each second\n"
        "in which somebody still held such a promise for a dead token.",
        highlight=False,
    )
    console.print(f"Took {time.monotonic() - began:.0f} s.", highlight=False)


if __name__ == "__main__":
    main()
