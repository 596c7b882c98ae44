"""How much time has passed since a moment, where neither clock of a machine can be trusted alone."""

import time
from collections.abc import Callable
from typing import NamedTuple


class Moment(NamedTuple):
    """One moment on both clocks, in seconds. Neither number means anything but by its difference to a later one."""

    monotonic: float
    wall: float


class Clock:
    """Two clocks, of which the one counts that has advanced further.

    The wall clock may be wrong, and may be set back. The monotonic clock is not set, but stands still while a Lambda
    function is frozen or a machine sleeps.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._monotonic = monotonic
        self._wall = wall

    def now(self) -> Moment:
        """This moment."""
        return Moment(self._monotonic(), self._wall())

    def epoch_seconds(self) -> int:
        """The wall clock, for what has to carry a date."""
        return int(self._wall())

    def age(self, moment: Moment) -> float:
        """Seconds since then."""
        monotonic, wall = moment
        by_monotonic, by_wall = self._monotonic() - monotonic, self._wall() - wall
        return by_monotonic if by_monotonic > by_wall else by_wall
