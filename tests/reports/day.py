"""What readers get in 24 simulated hours: this project beside a bare 110-minute timer.

    uv run python -m tests.reports.day

The real handlers and a simulated WeChat share one clock. At every second the contender does what is due, one reader asks,
and what was promised so far is compared with what WeChat accepts. No second is passed over.
"""

import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from infra import sam_template
from infra.local.simulated_wechat import DAY, Fault, Reply, SimulatedWeChat
from tests.simulation.memory_aws import MemoryAws
from tests.support.world import APPID, SECRET, START, Clock, World, gateway_event
from token_keeper.model import Kind

BARE_TIMER_RATE = 110 * 60
"""Seconds."""

OUTAGE = 120
"""Seconds for which WeChat refuses."""

type Reading = tuple[str, int]
"""A token, and the moment (epoch seconds) until which the reader is promised that it works."""


PROBE_PATH = "/cgi-bin/get_api_domain_ip"


def fetches(wechat: SimulatedWeChat) -> int:
    """How often WeChat was asked for a token; the probe's questions have a limit of their own."""
    return sum(call.path != PROBE_PATH for call in wechat.calls)


class FailingWeChat(SimulatedWeChat):
    """WeChat with one app; when renewal number `failing_renewal` comes, it returns -1 for `OUTAGE` seconds."""

    def __init__(self, clock: Clock, failing_renewal: int | None) -> None:
        super().__init__(clock)
        self.add_app(APPID, SECRET)
        self._now = clock
        self._failing_renewal = failing_renewal
        self._refuses_until = 0.0

    def handle(
        self, method: str, path: str, query: Mapping[str, str], body: bytes, remote_addr: str = "127.0.0.1"
    ) -> Reply:
        """As WeChat does."""
        if path != PROBE_PATH and fetches(self) == self._failing_renewal:
            self._refuses_until = self._now() + OUTAGE
        if self._now() < self._refuses_until:
            self.fail(path, Fault.error(-1))
        return super().handle(method, path, query, body, remote_addr)


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
    """Both handlers over AWS in memory, woken by the template's schedules.

    `enrolled_after`: seconds from the schedules' first firing to the account's enrolment.
    """

    def __init__(self, endpoint: Kind, failing_renewal: int | None = None, *, enrolled_after: int = 0) -> None:
        self.clock = Clock()
        self.world = World(MemoryAws(self.clock).client, clock=self.clock)
        self.wechat: SimulatedWeChat = FailingWeChat(self.clock, failing_renewal)
        self.world.wechat = self.wechat
        self._api = self.world.api_instance()
        self._request = gateway_event("/v1/accounts/main/access-token")
        self.clock.sleep(enrolled_after)
        self._timers = [
            (Timer(each.rate, self.clock), each.event) for each in sam_template.schedules(sam_template.translate())
        ]
        self.world.put_parameter("main", json.dumps({"appid": APPID, "secret": SECRET, "endpoint": endpoint}))

    def step(self) -> None:
        """Wake the refresher when a schedule does."""
        for timer, event in self._timers:
            if timer.fires():
                self.world.invoke(event)

    def token_at(self) -> Reading | None:
        """Ask the API; a client may rely on `expires_in`."""
        response = self._api(self._request, None)
        body = json.loads(response["body"])
        return (body["access_token"], int(self.clock()) + body["expires_in"]) if response["statusCode"] == 200 else None


def ask(wechat: SimulatedWeChat, endpoint: Kind) -> tuple[str, int] | None:
    """Ask WeChat for a token as a script does; the token and WeChat's `expires_in`, or None for any other response."""
    fields = {"grant_type": "client_credential", "appid": APPID, "secret": SECRET}
    method = "GET" if endpoint is Kind.TOKEN else "POST"
    response = wechat.handle(method, f"/cgi-bin/{endpoint}", fields, json.dumps(fields).encode())
    body = {} if response.drop else json.loads(response.body)
    return (body["access_token"], body["expires_in"]) if "access_token" in body else None


class BareTimer:
    """A scheduled script: each run asks WeChat and stores the response; a failed run leaves what was stored.

    It promises what such scripts do: what is left of WeChat's `expires_in`, counted down since the fetch.
    """

    def __init__(self, endpoint: Kind, failing_renewal: int | None = None) -> None:
        self.clock = Clock()
        self.wechat: SimulatedWeChat = FailingWeChat(self.clock, failing_renewal)
        self._timer = Timer(BARE_TIMER_RATE, self.clock)
        self._endpoint = endpoint
        self._stored: Reading | None = None

    def step(self) -> None:
        """Fetch and store when the timer fires."""
        if self._timer.fires() and (response := ask(self.wechat, self._endpoint)):
            token, expires_in = response
            self._stored = token, int(self.clock()) + expires_in

    def token_at(self) -> Reading | None:
        """What is stored, however old."""
        return self._stored


@dataclass
class Result:
    """What became of one contender's readers.

    `calls` fetched a token, `probes` only asked whether it works.
    `without_token`: seconds in which a reader got no token, or one that WeChat did not accept at that second.
    `broken_promises`: of the `promises` (one per reading, unless none was made), those whose token died before their end.
    `wrongly_promised`: seconds in which a reader still held a promise for a dead token; promises are followed to their
    end, so these seconds may lie behind the last reading.
    """

    calls: int = 0
    probes: int = 0
    without_token: int = 0
    promises: int = 0
    broken_promises: int = 0
    wrongly_promised: int = 0


def run(
    contender: Contender, span: int = DAY, interval: int = 1, progress: Callable[[int], object] = lambda seconds: None
) -> Result:
    """Let a reader ask every `interval` seconds for `span` seconds; each reading counts for the interval it begins.

    An interval above 1 rounds what becomes of promises to its multiples. `progress` is given the seconds that are over.
    """
    result = Result()
    clock, wechat = contender.clock, contender.wechat
    began = now = clock()
    held: defaultdict[str, Counter[int]] = defaultdict(Counter)  # live token → how many were promised it until then
    asked = 0
    broken_until = 0  # the end of the longest broken promise
    while now < began + span or now < max([broken_until, *(max(promised) for promised in held.values())]):
        contender.step()
        if now < began + span:
            asked = len(wechat.calls)
            reading = contender.token_at()
            if reading is None or not wechat.accepts(reading[0]):
                result.without_token += interval
            if reading is not None and reading[1] > now:
                result.promises += 1
                held[reading[0]][reading[1]] += 1
            progress(int(now - began))
        for token in [token for token in held if not wechat.accepts(token)]:
            broken = Counter({until: count for until, count in held.pop(token).items() if until > now})
            result.broken_promises += broken.total()
            broken_until = max(broken_until, *broken, 0)
        result.wrongly_promised += interval * (now < broken_until)
        assert clock() == now, "no call takes time here: it would take it from the readers"
        clock.sleep(interval)
        now = clock()
    result.probes = sum(call.path == PROBE_PATH for call in wechat.calls[:asked])
    result.calls = asked - result.probes
    return result


FAILING_RENEWAL = 3
DAYS: dict[str, dict[str, Callable[[], Contender]]] = {
    "undisturbed": {
        "this project, token": lambda: ThisProject(Kind.TOKEN),
        "this project, stable_token": lambda: ThisProject(Kind.STABLE_TOKEN),
        "bare timer, token": lambda: BareTimer(Kind.TOKEN),
        "bare timer, stable_token": lambda: BareTimer(Kind.STABLE_TOKEN),
    },
    "one failed renewal": {
        "this project, token": lambda: ThisProject(Kind.TOKEN, FAILING_RENEWAL),
        "bare timer, token": lambda: BareTimer(Kind.TOKEN, FAILING_RENEWAL),
    },
}
NOTE = f"""
A reader asks every second; what it gets is a promise: this project's expires_in, or what is left of WeChat's expires_in
since the bare timer's fetch. A promise is broken when WeChat stops accepting the token before the promise's end; wrongly
promised are the seconds in which a reader still held such a promise. One failed renewal: when the third comes, WeChat
returns -1 (system busy) for {OUTAGE} seconds.
"""


def main() -> None:
    """Run all contenders and print the table."""
    logging.disable()  # the handlers' own lines
    started = time.monotonic()
    table = Table("", title="24 simulated hours")
    for heading in ("tokens\nfetched", "probes", "no accepted\ntoken (s)", "broken\npromises", "wrongly\npromised (s)"):
        table.add_column(heading, justify="right")
    with Progress(transient=True) as progress:
        for day, contenders in DAYS.items():
            table.add_section()
            table.add_row(f"[bold]{day}")
            for name, contender in contenders.items():
                task = progress.add_task(f"{name}, {day}", total=DAY)

                def show(seconds: int, task: TaskID = task) -> None:
                    if seconds % 60 == 0:
                        progress.update(task, completed=seconds + 60)

                result = run(contender(), progress=show)
                lost = result.without_token, result.broken_promises, result.wrongly_promised
                numbers = result.calls, result.probes, *lost
                table.add_row(name, *(f"{number:,}" for number in numbers))
    console = Console(highlight=False)
    console.print(table, " ".join(NOTE.split()), f"It took {time.monotonic() - started:.0f} s.", sep="\n")


if __name__ == "__main__":
    main()
