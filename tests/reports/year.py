"""What readers get in a simulated year full of faults: this project beside what others do.

    uv run python -m tests.reports.year [--days 365] [--seed N] [--json FILE]

Every contender lives through the same seeded faults under a clock of its own. For this project the real handlers run.
"""

import argparse
import json
import logging
import math
import multiprocessing
import random
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from botocore.exceptions import EndpointConnectionError
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from urllib3.exceptions import NewConnectionError

from infra import sam_template
from infra.local.simulated_wechat import BEIJING, DAY, HOUR, Fault, Reply, SimulatedWeChat
from tests.reports.day import BARE_TIMER_RATE, Reading, ask
from tests.simulation.memory_aws import MemoryAws
from tests.support.world import APPID, SECRET, START, Clock, World, gateway_event
from token_keeper.model import Kind

YEAR, WEEK, MONTH = 365 * DAY, 7 * DAY, 365 * DAY / 12
"""Seconds."""

INTERVAL = 30
"""Seconds from one reading to the next; each counts for the interval that it begins."""

RETRY = 60
"""Seconds until others than this project try again after a failure."""

RESTART = 10
"""Seconds from the end of a process that a supervisor keeps running to its next beginning."""

CLIENTS = 10

TOKEN_PATHS = ("/cgi-bin/token", "/cgi-bin/stable_token")


# --- faults


class Windows:
    """Spans of time, given as (begin, end) in epoch seconds; they may overlap."""

    def __init__(self, spans: Iterable[tuple[float, float]]) -> None:
        self._bounds: list[float] = []
        for begin, end in sorted(spans):
            if self._bounds and begin <= self._bounds[-1]:
                self._bounds[-1] = max(self._bounds[-1], end)
            else:
                self._bounds += [begin, end]

    def __contains__(self, moment: float) -> bool:
        return bisect_right(self._bounds, moment) % 2 == 1


class Armed:
    """Moments (epoch seconds), each of which strikes once: the next time that a client asks."""

    def __init__(self, moments: Iterable[float]) -> None:
        self._moments = sorted(moments)
        self._next = 0

    @property
    def next_at(self) -> float:
        """The next moment that has not struck."""
        return self._moments[self._next] if self._next < len(self._moments) else math.inf

    def strikes(self, now: float) -> bool:
        """Whether one strikes now."""
        struck = self.next_at <= now
        self._next += struck
        return struck


class Faults:
    """What goes wrong in the `span` seconds from `START`, and when. `density`: how many times the usual number of faults."""

    def __init__(self, seed: int, span: int, density: float = 1) -> None:
        draw = random.Random(seed)
        self.span = span
        self.reads = range(START, START + span, INTERVAL)

        def moments(number: int, period: float) -> list[int]:
            how_many = max(1, round(density * number * span / period))
            return sorted(START + draw.randrange(span) for _ in range(how_many))

        def windows(begins: Iterable[int], shortest: int, longest: int) -> Windows:
            return Windows([(begin, begin + draw.randint(shortest, longest)) for begin in begins])

        store_outages = moments(2, MONTH)
        self.busy = windows(moments(4, WEEK), 60, 600)
        self.unreachable = windows(moments(4, MONTH), 30, 300)
        self.store_down = windows(store_outages, 60, 120)
        self.cold_readers = store_outages[::2]
        self.lost_responses = moments(3, MONTH)
        self.crashes = moments(3, MONTH)
        self.kills = moments(4, MONTH)
        self.restarts = [START + week + draw.randrange(WEEK) for week in range(0, span, WEEK)]

    def responses(self, moment: float) -> bool:
        """Whether WeChat would respond to a fetch then."""
        return moment not in self.busy and moment not in self.unreachable

    def unavoidable(self) -> int:
        """Seconds that a kill costs every renewer: none knows of it before a reader is refused, and nothing can be
        done while WeChat does not respond."""
        lost: set[int] = set()
        for kill in self.kills:
            for reading in self.reads[-(-(kill - START) // INTERVAL) :]:
                lost.add(reading)
                if self.responses(reading):
                    break
        return INTERVAL * sum(reading not in self.unreachable for reading in lost)


class CrashError(Exception):
    """The renewing process ends here."""


class FaultyWeChat(SimulatedWeChat):
    """WeChat with one app, under the faults.

    `fetched` and `checked` count the calls that reached it: for a token, and whether one works. `asker_dies`: who got the last response must end before it stores that.
    """

    def __init__(self, clock: Clock, faults: Faults) -> None:
        super().__init__(clock)
        self.add_app(APPID, SECRET)
        self.fetched = self.checked = 0
        self.killed_at: set[float] = set()
        self.asker_dies = False
        self._now = clock
        self._during = faults
        self._lost, self._crashes = Armed(faults.lost_responses), Armed(faults.crashes)
        self._spent_until, self._refusal_when_spent = 0.0, Reply(200, {}, b"{}")

    def handle(
        self, method: str, path: str, query: Mapping[str, str], body: bytes, remote_addr: str = "127.0.0.1"
    ) -> Reply:
        """As WeChat does. Raises `NewConnectionError` where it cannot be reached."""
        now, is_fetch = self._now(), path in TOKEN_PATHS
        if now in self._during.unreachable:
            raise NewConnectionError(None, "unreachable")  # type: ignore[arg-type]
        self.fetched += is_fetch
        self.checked += not is_fetch
        if is_fetch and now < self._spent_until:
            return self._refusal_when_spent  # as the day's quota does not come back before Beijing's midnight
        if now in self._during.busy:
            self.fail(path, Fault.error(-1))
        elif is_fetch and self._lost.strikes(now):
            self.fail(path, Fault.drop_after())
        self.calls.clear()  # a year's would fill the memory
        response = super().handle(method, path, query, body, remote_addr)
        errcode = self.calls[0].errcode
        if is_fetch and errcode == 0:
            self.asker_dies = self._crashes.strikes(now)
        elif is_fetch and errcode == 45009:
            self._spent_until = (now + BEIJING) // DAY * DAY + DAY - BEIJING
            self._refusal_when_spent = response
        return response

    def dies_at(self, token: str) -> float:
        """When this token dies or died, as far as is known by now."""
        value = self._values.get(token)
        return value.dies_at if value else -math.inf

    def kill_all(self) -> None:
        """Let every live token die now."""
        self.killed_at.add(self._now())
        for value in self._values.values():
            value.dies_by(self._now())


# --- contenders


class YearClock(Clock):
    """A clock that lets the world go on while a caller sleeps. `meanwhile` is given the moment at which the caller wakes."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[float], None] = lambda wakes_at: None

    def sleep(self, seconds: float) -> None:
        """Wake after so many seconds, or later if what happens meanwhile takes longer."""
        wakes_at = self.now + seconds
        self.meanwhile(wakes_at)
        self.now = max(self.now, wakes_at)


class Contender(Protocol):
    """One way to keep one account's token."""

    clock: YearClock
    wechat: FaultyWeChat

    @property
    def next_at(self) -> float:
        """When `step` is to be called next."""

    def step(self) -> None:
        """Do what is due now."""

    def read(self) -> list[Reading | None]:
        """What each client gets now. A promise that is over is none: it ends in the past."""

    def refused(self, reading: Reading) -> Reading | None:
        """A client's token was refused with 40001: it does what it does then, and may get another reading."""


class ThisProject:
    """Both handlers over AWS in memory, woken by the template's schedules; a client that is refused reports it."""

    def __init__(self, endpoint: Kind, faults: Faults) -> None:
        self.clock = YearClock()
        self.wechat = FaultyWeChat(self.clock, faults)
        self.world = World(MemoryAws(self.clock).client, clock=self.clock)
        self.world.wechat = self.wechat
        self.world.before_aws = self._before_aws
        self._faults = faults
        self._cold = Armed(faults.cold_readers)
        self._request = gateway_event("/v1/accounts/main/access-token")
        self._schedules = [(each.rate, each.event) for each in sam_template.schedules(sam_template.translate())]
        self._fires_at = [float(START)] * len(self._schedules)
        self._api = self.world.api_instance()
        self.world.put_parameter("main", json.dumps({"appid": APPID, "secret": SECRET, "endpoint": endpoint}))

    def _before_aws(self, operation: str, _: bytes) -> None:
        if not operation.startswith("dynamodb."):
            return
        if self.clock() in self._faults.store_down:
            raise EndpointConnectionError(endpoint_url="https://dynamodb.invalid/")
        if self.wechat.asker_dies and operation in ("dynamodb.UpdateItem", "dynamodb.PutItem", "dynamodb.DeleteItem"):
            self.wechat.asker_dies = False
            raise CrashError

    @property
    def next_at(self) -> float:
        """The next firing of a schedule."""
        return min(self._fires_at)

    def step(self) -> None:
        """Wake the refresher when a schedule does."""
        now = self.clock()
        for i, (rate, event) in enumerate(self._schedules):
            if self._fires_at[i] <= now:
                self._fires_at[i] += rate
                try:
                    self.world.invoke(event)
                except Exception:  # noqa: BLE001 - as Lambda does; an event of these schedules is not repeated
                    self.wechat.asker_dies = False

    def read(self) -> list[Reading | None]:
        """Ask the API; a client may rely on `expires_in`."""
        if self._cold.strikes(self.clock()):
            self._api = self.world.api_instance()
        return [self._ask_api(self._request)]

    def refused(self, reading: Reading) -> Reading | None:
        """Report it."""
        report = {"access_token": reading[0]}
        return self._ask_api(gateway_event("/v1/accounts/main/access-token/reports", json.dumps(report)))

    def _ask_api(self, request: dict[str, Any]) -> Reading | None:
        response = self._api(request, None)
        asked = int(self.clock())
        body = json.loads(response["body"])
        return (body["access_token"], asked + body["expires_in"]) if response["statusCode"] == 200 else None


class _Script:
    """What the others share: a clock, WeChat, and asking it."""

    def __init__(self, endpoint: Kind, faults: Faults) -> None:
        self.clock = YearClock()
        self.wechat = FaultyWeChat(self.clock, faults)
        self._endpoint = endpoint

    def _fetch(self) -> Reading | None:
        """A token, and when it would expire by WeChat's `expires_in`. Raises `CrashError`."""
        try:
            response = ask(self.wechat, self._endpoint)
        except NewConnectionError:
            return None
        if self.wechat.asker_dies:
            self.wechat.asker_dies = False
            raise CrashError
        return (response[0], int(self.clock()) + response[1]) if response else None


class BareTimer(_Script):
    """A scheduled script: each run asks WeChat and stores the response; a failed run leaves what was stored."""

    def __init__(self, endpoint: Kind, faults: Faults) -> None:
        super().__init__(endpoint, faults)
        self.next_at: float = START
        self._stored: Reading | None = None

    def step(self) -> None:
        """Fetch and store."""
        self.next_at += BARE_TIMER_RATE
        with suppress(CrashError):  # the run is not repeated
            self._stored = self._fetch() or self._stored

    def read(self) -> list[Reading | None]:
        """What is stored, however old, with what is left of WeChat's `expires_in`."""
        return [self._stored]

    def refused(self, reading: Reading) -> None:
        """There is no one to report to."""


class Loop(_Script):
    """An endless loop: fetch, sleep `expires_in - 200`, after a failure 60 s; the token is in its memory.

    It ends once a week, and when it crashes; it starts again `RESTART` seconds later.
    """

    def __init__(self, endpoint: Kind, faults: Faults) -> None:
        super().__init__(endpoint, faults)
        self._restarts = Armed(faults.restarts)
        self._wakes_at: float = START
        self._memory: Reading | None = None

    @property
    def next_at(self) -> float:
        """When it wakes or ends."""
        return min(self._wakes_at, self._restarts.next_at)

    def step(self) -> None:
        """Fetch; or end."""
        try:
            if self._restarts.strikes(self.clock()):
                raise CrashError
            fetched = self._fetch()
        except CrashError:
            self._memory, self._wakes_at = None, self.clock() + RESTART
            return
        self._memory = fetched or self._memory
        self._wakes_at = fetched[1] - 200 if fetched else self.clock() + RETRY

    def read(self) -> list[Reading | None]:
        """What is in its memory, with what is left of WeChat's `expires_in`."""
        return [self._memory]

    def refused(self, reading: Reading) -> None:
        """There is no one to report to."""


class TenClients(_Script):
    """Ten processes, each with a token of its own: whichever is refused fetches, without looking at what others have.

    A client that could not fetch tries again after `RETRY` seconds. It uses what it has until it is refused: no promise.
    """

    next_at = math.inf

    def __init__(self, endpoint: Kind, faults: Faults) -> None:
        super().__init__(endpoint, faults)
        self._tokens: list[str | None] = [None] * CLIENTS
        self._tries_at: list[float] = [START] * CLIENTS

    def step(self) -> None:
        """There is no schedule."""

    def read(self) -> list[Reading | None]:
        """What each has; those that have none fetch first."""
        return [self._have(client) for client in range(CLIENTS)]

    def _have(self, client: int) -> Reading | None:
        if self._tokens[client] is None and self._tries_at[client] <= self.clock():
            self._renew(client)
        token = self._tokens[client]
        return (token, 0) if token else None

    def refused(self, reading: Reading) -> None:
        """Fetch one's own."""
        self._renew(self._tokens.index(reading[0]))

    def _renew(self, client: int) -> None:
        self._tokens[client] = None
        try:
            fetched = self._fetch()
        except CrashError:
            return  # the next reading finds it running again
        if fetched:
            self._tokens[client] = fetched[0]
        else:
            self._tries_at[client] = self.clock() + RETRY


# --- measuring


@dataclass(frozen=True)
class Result:
    """What became of one contender's readers.

    `without_token`: seconds, by interval, in which a reader got no token or a dead one while WeChat was reachable.
    `wrongly_promised`: seconds in which a reader still held a promise for a dead token; `unforced` of these are not due
    to a kill, which cannot be foreseen. `fetched` and `checked`: calls that reached WeChat for a token, and to ask whether one
    works. `promises`: how many were made.
    """

    without_token: float
    wrongly_promised: float
    unforced: float
    fetched: int
    checked: int
    promises: int


class Readers:
    """They ask every `INTERVAL` seconds, and hold what they were promised to its end. WeChat's kills come meanwhile."""

    def __init__(self, contender: Contender, faults: Faults) -> None:
        self._contender, self._faults = contender, faults
        self._clock, self._wechat = contender.clock, contender.wechat
        self._kills = Armed(faults.kills)
        self._reads = faults.reads
        self._next_read = 0
        self._without_token = 0.0
        self._promises = 0
        self._held: dict[str, float] = {}  # token → the latest end of a promise of it
        self._wrong: list[tuple[float, float]] = []  # from a token's death to the end of its promise
        self._clock.meanwhile = self.live

    @property
    def next_at(self) -> float:
        """When something happens to them next."""
        reads_at = self._reads[self._next_read] if self._next_read < len(self._reads) else math.inf
        return min(reads_at, self._kills.next_at)

    def live(self, until: float) -> None:
        """Let happen what happens before that moment."""
        while (moment := self.next_at) < until:
            self._clock.now = max(self._clock.now, moment)
            if self._kills.strikes(moment):
                self._wechat.kill_all()
            else:
                self._next_read += 1
                self._read()

    def result(self) -> Result:
        """What became of them, when the last promise is over."""
        self._clock.now += 2 * HOUR
        self._settle()
        unforced = [(died_at, until) for died_at, until in self._wrong if died_at not in self._wechat.killed_at]
        asked = self._wechat.fetched, self._wechat.checked
        return Result(self._without_token, _covered(self._wrong), _covered(unforced), *asked, self._promises)

    def _read(self) -> None:
        reachable = self._clock() not in self._faults.unreachable
        readings = self._contender.read()
        for reading in readings:
            self._hold(reading)
            if reachable and not (reading and self._wechat.accepts(reading[0])):
                self._without_token += INTERVAL / len(readings)
                if reading:
                    self._hold(self._contender.refused(reading))
        self._settle()

    def _hold(self, reading: Reading | None) -> None:
        if reading and reading[1] > self._clock():
            self._promises += 1
            self._held[reading[0]] = max(reading[1], self._held.get(reading[0], 0))

    def _settle(self) -> None:
        now = self._clock()
        for token, until in list(self._held.items()):
            dies_at = self._wechat.dies_at(token)
            if dies_at <= now and dies_at < until:
                self._wrong.append((dies_at, until))
            if min(dies_at, until) <= now:
                del self._held[token]


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """The seconds that lie within any of the spans."""
    seconds, reached = 0.0, 0.0
    for begin, end in sorted(spans):
        seconds += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return seconds


def run(contender: Contender, faults: Faults, progress: Callable[[float], object] = lambda share: None) -> Result:
    """Let a contender live through the faults. `progress` is given the share that is over (0 to 1)."""
    readers, clock = Readers(contender, faults), contender.clock
    while (moment := min(contender.next_at, readers.next_at)) < START + faults.span:
        # At the same second the contender comes first: a reader asks a moment later.
        if contender.next_at <= moment:
            clock.now = max(clock.now, moment)
            contender.step()
        else:
            readers.live(moment + 1)
        progress((moment - START) / faults.span)
    return readers.result()


CONTENDERS: dict[str, Callable[[Faults], Contender]] = {
    "this project, token": lambda faults: ThisProject(Kind.TOKEN, faults),
    "this project, stable_token": lambda faults: ThisProject(Kind.STABLE_TOKEN, faults),
    "ten clients renewing on 40001, token": lambda faults: TenClients(Kind.TOKEN, faults),
    "endless loop, token": lambda faults: Loop(Kind.TOKEN, faults),
    "bare 110-minute timer, token": lambda faults: BareTimer(Kind.TOKEN, faults),
    "bare 110-minute timer, stable_token": lambda faults: BareTimer(Kind.STABLE_TOKEN, faults),
}

NOTE = f"""
A reader asks every {INTERVAL} s and uses what it gets in that second; a reading counts for the interval that it begins, unless WeChat
cannot be reached then. Wrongly promised: seconds in which a reader still held a promise (this project's expires_in; what is
left of WeChat's expires_in with others) for a dead token, followed to its end. "Not by a kill" leaves out promises that ended
with a kill, even where they would have been broken later anyway. The ten clients promise nothing; their seconds are a client's.
"Unavoidable": a kill costs the reading that meets it, and those until WeChat responds.

Faults, at the same moments for all: -1 to every call for 1-10 min, 4 a week; WeChat unreachable for 0.5-5 min, 4 a month; the response lost
after minting, 3 a month, and a crash between response and write, 3 a month (each strikes the first fetch after its moment); all live
tokens killed, 4 a month; at least one of each, however few the days; DynamoDB down for 1-2 min, 2 a month, for this project alone (every other time its reader has just started).

What may favour this project: its clients report a refused token in the same second, the others' have no one to report to (the ten
clients fetch); calls take no time, except the keeper's own pauses, in which readers go on asking; one reader's instance serves all
and is warm except after those outages; schedules fire on time; a fetch follows the first report whatever other clients do; neither Lambda nor
Parameter Store has outages; it is one account. A loop that ends begins again {RESTART} s later, once a week and after a crash; a timer's crashed
run is not repeated, nor are this project's. The quota is {2000} fetches a day: the ten clients use it up. Where the documentation leaves a
rule open, the simulated WeChat takes the reading that is harder on keepers: with /cgi-bin/token the last but one token dies at once.
"""

_shares: Any = None


def _worker(shares: Any) -> None:
    global _shares
    _shares = shares


def live_through(name: str, seed: int, days: int) -> Result:
    """Let the contender of that name live through the days' faults."""
    logging.disable()  # the handlers' own lines
    faults, number = Faults(seed, days * DAY), list(CONTENDERS).index(name)

    def progress(share: float) -> None:
        if _shares is not None:
            _shares[number] = share

    return run(CONTENDERS[name](faults), faults, progress)


def live_through_all(seed: int, days: int) -> dict[str, Result]:
    """Let all contenders live through the same days, two at a time, and show how far they are."""
    # A fork beside the threads that show the progress could stand still for ever.
    spawn = multiprocessing.get_context("spawn")
    shares = spawn.Array("d", len(CONTENDERS))
    pool = ProcessPoolExecutor(2, spawn, initializer=_worker, initargs=(shares,))
    with Progress(transient=True) as progress, pool:
        running = {name: pool.submit(live_through, name, seed, days) for name in CONTENDERS}
        tasks = [progress.add_task(name, total=1) for name in CONTENDERS]
        while not all(future.done() for future in running.values()):
            for number, task in enumerate(tasks):
                progress.update(task, completed=shares[number])
            time.sleep(0.2)
    return {name: future.result() for name, future in running.items()}


def main() -> None:
    """Run all contenders and print the table."""
    parser = argparse.ArgumentParser(description="What readers get in a simulated year full of faults.")
    parser.add_argument("--days", type=int, default=365, help="days to simulate; the table is scaled to a year")
    parser.add_argument("--seed", type=int, default=1, help="of the faults")
    parser.add_argument(
        "--json", type=Path, help="where to write the figures too, not scaled, for tests.reports.pictures"
    )
    options = parser.parse_args()
    started = time.monotonic()
    results = live_through_all(options.seed, options.days)
    scale = 365 / options.days
    table = Table(
        "", title=f"A simulated year: {options.days} days, seed {options.seed}" + " scaled to 365" * (scale != 1)
    )
    for heading in (
        "no accepted\ntoken (s)",
        "wrongly\npromised (s)",
        "not by\na kill (s)",
        "tokens\nfetched",
        "checks",
    ):
        table.add_column(heading, justify="right")
    for name, result in results.items():
        promised: tuple[float, ...] = (result.wrongly_promised, result.unforced)
        shown = [f"{round(scale * seconds):,}" for seconds in promised] if result.promises else ["none made"] * 2
        counted = (f"{round(scale * count):,}" for count in (result.fetched, result.checked))
        row = f"{round(scale * result.without_token):,}", *shown, *counted
        table.add_row(name, *row)
    unavoidable = Faults(options.seed, options.days * DAY).unavoidable()
    if options.json:
        run_of = {"days": options.days, "seed": options.seed, "unavoidable": unavoidable}
        figures = run_of | {"contenders": {name: asdict(result) for name, result in results.items()}}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    table.add_row("[dim]unavoidable", f"[dim]{round(scale * unavoidable):,}", "", "", "", "")
    note = "\n".join(" ".join(paragraph.split()) for paragraph in NOTE.strip().split("\n\n"))
    Console(highlight=False).print(table, note, f"It took {time.monotonic() - started:.0f} s.", sep="\n")


if __name__ == "__main__":
    main()
