"""The values a process has, and that each is asked for once however many threads and tasks want it."""

import asyncio
import copy
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from weakref import WeakSet

from wechat_token_keeper._clock import Clock, Moment
from wechat_token_keeper._source import Received
from wechat_token_keeper.errors import KeeperError, NotEnoughTimeError, UnavailableError

logger = logging.getLogger("wechat_token_keeper")

PAUSE_AFTER_FAILURE = 2
"""Seconds in which a failed call is not repeated: a keeper in trouble is not to get a call for each use of a token."""


@dataclass(frozen=True)
class Entry:
    """A cached value. `asked_at`: just before it was asked for; `known_since`: when this process first asked and got it.

    `cache_for` and `expires_in`: seconds from `asked_at` until it is asked for again, and that it is promised to work.
    """

    value: str = field(repr=False)
    asked_at: Moment
    known_since: Moment
    cache_for: float
    expires_in: float


class Cache:
    """Entries by the name of a credential. Every fetch returns what it received, and raises KeeperError."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._failures: dict[str, tuple[KeeperError, Moment]] = {}
        self.begin_again()
        _caches.add(self)

    def begin_again(self) -> None:
        """Forget which calls are under way. In a forked child their threads do not exist, and a lock may be held."""
        self._lock = threading.Lock()
        self._flights: dict[str, Future[Entry]] = {}

    def entry(self, name: str) -> Entry | None:
        """The entry, however old."""
        return self._entries.get(name)

    def fresh(self, name: str) -> Entry | None:
        """The entry where it need not be asked for again yet."""
        entry = self._entries.get(name)
        return entry if entry is not None and self._clock.age(entry.asked_at) < entry.cache_for else None

    def get(self, name: str, fetch: Callable[[], Received], minimum_seconds: float = 0) -> str:
        """The value; it is fetched where there is no fresh one. Raises NotEnoughTimeError too."""
        entry = self.fresh(name)
        if entry is None:
            entry = self.usable_while_fetched(name, minimum_seconds) or self.fetch(
                name, name, fetch, lambda: self.fresh(name)
            )
        return self._lasting(entry, minimum_seconds).value

    async def get_async(self, name: str, fetch: Callable[[], Received], minimum_seconds: float = 0) -> str:
        """`get` for asyncio: the event loop goes on meanwhile."""
        entry = self.fresh(name)
        if entry is None:
            entry = self.usable_while_fetched(name, minimum_seconds) or await self.fetch_async(
                name, name, fetch, lambda: self.fresh(name)
            )
        return self._lasting(entry, minimum_seconds).value

    def usable_while_fetched(self, name: str, minimum_seconds: float) -> Entry | None:
        """The entry where another thread or task is already asking for its successor, and it lasts."""
        entry = self._entries.get(name)
        if name not in self._flights or entry is None or self._seconds_left(entry) <= max(0, minimum_seconds):
            return None
        return entry

    def fetch(
        self, flight_name: str, name: str, fetch: Callable[[], Received], landed: Callable[[], Entry | None]
    ) -> Entry:
        """Fetch now, or wait for the call of that flight that is under way.

        `landed` gives the entry where a call before has already brought what is wanted.
        """
        flight, is_new = self._join(flight_name, landed)
        if is_new:
            self._run(flight, flight_name, name, fetch)
        return _landed(flight)

    async def fetch_async(
        self, flight_name: str, name: str, fetch: Callable[[], Received], landed: Callable[[], Entry | None]
    ) -> Entry:
        """`fetch` for asyncio. A task that is cancelled does not take the value from those that wait with it."""
        flight, is_new = self._join(flight_name, landed)
        if is_new:
            # Not in the loop's pool of threads: all of them may be waiting for this very call.
            threading.Thread(target=self._run, args=(flight, flight_name, name, fetch), daemon=True).start()
        with suppress(KeeperError):
            await asyncio.wrap_future(flight)
        return _landed(flight)

    def _join(self, flight_name: str, landed: Callable[[], Entry | None]) -> tuple["Future[Entry]", bool]:
        with self._lock:
            flight = self._flights.get(flight_name)
            if flight is not None:
                return flight, False
            flight = Future()
            flight.set_running_or_notify_cancel()  # from here on no waiting task can cancel it
            known = landed()
            error, failed_at = self._failures.get(flight_name, (None, None))
            if known is not None:  # a call that landed between the caller's look and the lock
                flight.set_result(known)
            elif error is not None and failed_at is not None and self._clock.age(failed_at) < PAUSE_AFTER_FAILURE:
                flight.set_exception(error)
            else:
                self._flights[flight_name] = flight
                return flight, True
            return flight, False

    def _run(self, flight: "Future[Entry]", flight_name: str, name: str, fetch: Callable[[], Received]) -> None:
        asked_at = self._clock.now()
        try:
            entry = self._put(name, fetch(), asked_at)
        except UnavailableError as error:
            usable = self._entries.get(name) if flight_name == name else None
            if usable is not None and self._seconds_left(usable) > 0:
                logger.warning("%s: the cached one serves on, as it is still promised. %s", name, error)
                self._land(flight_name, flight, self._keep_a_little(name, usable))
            else:
                self._land(flight_name, flight, error)
        except KeeperError as error:
            self._land(flight_name, flight, error)
        except BaseException as error:
            self._land(
                flight_name, flight, UnavailableError(f"Asking was broken off: {type(error).__name__}", "Ask again.")
            )
            raise
        else:
            self._land(flight_name, flight, entry)

    def _land(self, flight_name: str, flight: "Future[Entry]", outcome: Entry | KeeperError) -> None:
        with self._lock:
            if isinstance(outcome, KeeperError):
                self._failures[flight_name] = (outcome, self._clock.now())
            else:
                self._failures.pop(flight_name, None)
            self._flights.pop(flight_name, None)
        if isinstance(outcome, KeeperError):
            flight.set_exception(outcome)
        else:
            flight.set_result(outcome)

    def _put(self, name: str, received: Received, asked_at: Moment) -> Entry:
        with self._lock:
            before = self._entries.get(name)
            if before is not None and before.asked_at.monotonic > asked_at.monotonic:
                return before  # superseded by a later response
            known_since = before.known_since if before is not None and before.value == received.value else asked_at
            entry = Entry(received.value, asked_at, known_since, received.cache_for, received.expires_in)
            self._entries[name] = entry
            return entry

    def _keep_a_little(self, name: str, entry: Entry) -> Entry:
        age = self._clock.age(entry.asked_at)
        with self._lock:
            kept = replace(entry, cache_for=min(age + PAUSE_AFTER_FAILURE, entry.expires_in))
            if self._entries.get(name) is entry:
                self._entries[name] = kept
            return kept

    def _seconds_left(self, entry: Entry) -> float:
        return entry.expires_in - self._clock.age(entry.asked_at)

    def _lasting(self, entry: Entry, minimum_seconds: float) -> Entry:
        if minimum_seconds <= 0 or self._seconds_left(entry) >= minimum_seconds:
            return entry
        raise NotEnoughTimeError(
            f"The current value is promised for {int(self._seconds_left(entry))} s, not for {minimum_seconds:g} s",
            "Ask again after its renewal, at most 5 minutes before it ends; no value is promised longer than 2 hours, "
            "and a consumer with --cache-for gets less.",
            retry_after=max(1, entry.cache_for - self._clock.age(entry.asked_at)),
        )


def _landed(flight: "Future[Entry]") -> Entry:
    error = flight.exception()
    if error is None:
        return flight.result()
    # Each caller gets an exception of its own: a traceback grows with every raise.
    raise copy.copy(error)


_caches: "WeakSet[Cache]" = WeakSet()


def _begin_again_in_child() -> None:
    for cache in list(_caches):
        cache.begin_again()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_again_in_child)
