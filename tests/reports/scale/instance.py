"""A process that is one instance of RefreshFunction: it takes events as lines of JSON and responds with what became of each.

`ahead` is by how many seconds the function's clock is ahead of this machine's.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import refresh


class Context:
    """Lambda's context, as far as RefreshFunction uses it."""

    invoked_function_arn = "arn:aws:lambda:us-east-1:123456789012:function:refresh"

    def __init__(self, seconds: float) -> None:
        self._ends_at = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        """Until Lambda ends the invocation."""
        return int((self._ends_at - time.monotonic()) * 1000)


def main(timeout: float) -> None:
    """Serve until the input ends."""
    responses = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the log's lines are made, and go nowhere
    ahead = 0.0
    handler = refresh.create_handler(os.environ, lambda: time.time() + ahead)

    def respond(something: dict[str, Any]) -> None:
        responses.write(json.dumps(something) + "\n")
        responses.flush()

    respond({})
    for line in sys.stdin:
        message = json.loads(line)
        ahead = message["ahead"]
        began = time.process_time()
        result = _invoke(lambda: handler(message["event"], Context(timeout)))  # noqa: B023
        respond(result | {"cpu": time.process_time() - began})


def _invoke(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        summary = json.dumps(work())
    except Exception as error:  # noqa: BLE001 - as Lambda does
        return {"error": type(error).__name__}
    outcomes = {what: len(found) for what, found in json.loads(summary).items() if isinstance(found, list)}
    return {"outcomes": outcomes, "bytes": len(summary)}


if __name__ == "__main__":
    main(float(sys.argv[1]))
