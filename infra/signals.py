"""Being stopped by Ctrl-C or SIGTERM."""

import signal
from collections.abc import Callable
from queue import SimpleQueue


def until_stopped() -> Callable[[], object]:
    """Take Ctrl-C and SIGTERM from now on. Returns what waits for the first of them.

    Several may come at once: `uv run` passes on what the terminal, or a service manager, has sent to its process too.
    """
    stops = SimpleQueue[int]()  # the one queue that a signal's handler may interrupt while it is in use
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stops.put(number))
    return stops.get
