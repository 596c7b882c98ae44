"""Time as it is injected: UTC wall clock. A monotonic clock stands still while Lambda freezes a process."""

from collections.abc import Callable

type Now = Callable[[], int]
"""Gives the time in whole epoch seconds."""

type Sleep = Callable[[float], None]
"""Waits for so many seconds of that clock."""


def whole_seconds(clock: Callable[[], float]) -> Now:
    """The same clock, without fractions."""
    return lambda: int(clock())
