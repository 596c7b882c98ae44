"""What tests of the local stack wait for."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event


class _Ticks(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.has_ended = Event()

    def emit(self, record: logging.LogRecord) -> None:
        if (record.getMessage(), getattr(record, "woken_by", None)) == ("woken", "tick"):
            self.has_ended.set()


@contextmanager
def first_tick() -> Iterator[Event]:
    """An event that is set when a tick has ended. The one that fires at the start may still be applying the first record, beside
    the record's own event, when a test changes something."""
    logger, ticks = logging.getLogger("refresh"), _Ticks()
    logger.addHandler(ticks)
    try:
        yield ticks.has_ended
    finally:
        logger.removeHandler(ticks)
