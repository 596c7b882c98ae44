"""What a race needs: many threads that start at one moment, a clock they share, and a WeChat that can be held."""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import cycle, repeat
from typing import Any

from infra.local.simulated_wechat import Reply, SimulatedWeChat
from tests.support.world import Clock, World

RUNNERS = 24

INSTANCES = 4
"""Instances of RefreshFunction; each takes several events at once, which Lambda would not do, but costs time to make."""

DEADLINE = 120
"""Seconds of real time after which something that other threads should have done is taken not to come."""


class RaceClock(Clock):
    """Epoch seconds that pass only while every runner sleeps: to the moment at which the first of them wakes up.

    So however slow this machine is, no runner's patience ends while another is at work.
    """

    def __init__(self) -> None:
        super().__init__()
        self._condition = threading.Condition()
        self._runners = 0
        self._alarms: list[float] = []

    def sleep(self, seconds: float) -> None:
        with self._condition:
            alarm = self.now + seconds
            self._alarms.append(alarm)
            self._pass()
            self._condition.wait_for(lambda: self.now >= alarm)
            self._alarms.remove(alarm)

    def add_runners(self, number: int) -> None:
        """So many more (fewer, where negative) threads must sleep for time to pass."""
        with self._condition:
            self._runners += number
            self._pass()

    def _pass(self) -> None:
        ahead = [alarm for alarm in self._alarms if alarm > self.now]
        if ahead and len(ahead) >= self._runners:
            self.now = min(ahead)
            self._condition.notify_all()


def at_once(*calls: Callable[[], Any], clock: RaceClock | None = None) -> list[Any]:
    """Make all the calls at one moment, each in a thread of its own; returns their results in the calls' order.

    Raises what a call raised, when all have ended. `clock`: one that the calls share.
    """
    start = threading.Barrier(len(calls), timeout=DEADLINE)

    def run(call: Callable[[], Any]) -> Any:
        try:
            start.wait()
            return call()
        finally:
            if clock is not None:
                clock.add_runners(-1)

    if clock is not None:
        clock.add_runners(len(calls))
    with ThreadPoolExecutor(len(calls)) as threads:
        running = [threads.submit(run, call) for call in calls]
    return [each.result() for each in running]


class Hold:
    """Where one thread is held: when it has reached this, it goes on only when it is released."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._released = threading.Event()

    def wait_until_reached(self) -> None:
        """Wait until a thread is held here; AssertionError where none comes."""
        assert self._reached.wait(DEADLINE), "no call came to be held"

    def release(self) -> None:
        """Let that thread go on."""
        self._released.set()

    def stop(self) -> None:
        """Hold the calling thread."""
        self._reached.set()
        assert self._released.wait(DEADLINE), "a held thread was never released"


class HoldingWeChat(SimulatedWeChat):
    """WeChat with a slow line: a call can be held on its way there, or its response on the way back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._requests: list[Hold] = []
        self._responses: list[Hold] = []

    def hold_request(self) -> Hold:
        """Hold the next call: WeChat has done nothing yet."""
        self._requests.append(Hold())
        return self._requests[-1]

    def hold_response(self) -> Hold:
        """Hold the response to the next call: WeChat has done its part."""
        self._responses.append(Hold())
        return self._responses[-1]

    def handle(self, *call: Any, **more: Any) -> Reply:
        """As WeChat does, but held where a hold waits for it."""
        before, after = (holds.pop() if holds else None for holds in (self._requests, self._responses))
        if before:
            before.stop()
        response = super().handle(*call, **more)
        if after:
            after.stop()
        return response


class RaceWorld(World):
    """A world whose threads may race: its clock is a `RaceClock`, its WeChat can be held."""

    def __init__(self, client: Callable[..., Any], table_name: str) -> None:
        self.race_clock = RaceClock()
        super().__init__(client, table_name, self.race_clock)
        self.wechat = self.slow_wechat = HoldingWeChat(self.clock)
        self._instances = [self.refresh_instance() for _ in range(INSTANCES)]

    def race(self, *calls: Callable[[], Any]) -> list[Any]:
        """Make all the calls at one moment, under this world's clock."""
        with self.internet():
            return at_once(*calls, clock=self.race_clock)

    def invoke_at_once(self, *events: dict[str, Any]) -> list[dict[str, Any]]:
        """Invoke RefreshFunction with all the events at one moment; returns the summaries."""
        return self.race(*map(partial, repeat(self.invoke), events, cycle(self._instances)))

    @contextmanager
    def meanwhile(self, event: Mapping[str, Any]) -> Iterator[Callable[[], dict[str, Any]]]:
        """Invoke RefreshFunction in another thread; yields what waits for its summary."""
        with self.internet(), ThreadPoolExecutor(1) as thread:
            running = thread.submit(self.invoke, event, self._instances[0])
            yield partial(running.result, DEADLINE)

    def hold_aws(self, operation: str) -> Hold:
        """Hold the functions' next call of this name (`dynamodb.PutItem`) as it begins."""
        hold = Hold()

        def stop(begun: str, _: bytes) -> None:
            if begun == operation:
                self.before_aws = None
                hold.stop()

        self.before_aws = stop
        return hold
