"""`token-keeper console`: the page of a deployed stack, on this machine, with the operator's credentials. It changes nothing."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from secrets import token_urlsafe
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.cli.program import app, stack_of
from infra.cli.terminal import say
from infra.console.history import SHOWN_BEFORE, History
from infra.errors import OperatorError
from infra.signals import until_stopped

if TYPE_CHECKING:
    from infra.cli.aws_connection import Json
    from infra.cli.deployed_stack import DeployedStack

LOOK_EVERY = 10
"""Seconds: so often, at most, AWS is asked, however many pages are open. A look is one call of the API for every 50 accounts,
and one of CloudWatch Logs."""

LATE = 120
"""Seconds of the log that are read again, because CloudWatch Logs shows an event only some time after it was written."""

RECORDS = ("renewed", "failed", "verified", "probed")
"""The messages of RefreshFunction's log that the page shows."""

FILTER = "{ %s }" % " || ".join(f'($.message = "{message}")' for message in RECORDS)  # noqa: UP031 - it holds braces


class DeployedPage:
    """Makes the state of the page from the stack's health and RefreshFunction's log. `clock` gives epoch seconds (UTC)."""

    def __init__(self, stack: "DeployedStack", clock: Callable[[], float] = time.time) -> None:
        self._stack, self._clock = stack, clock
        self._history = History()
        self._accounts: list[Json] = []
        self._trouble: str | None = None
        self._looked_at = float("-inf")
        self._read_until = clock() - SHOWN_BEFORE + LATE
        self._read: set[str] = set()
        self._ahead = 0.0
        """Seconds by which the API's clock is ahead of this machine's."""
        self._lock = Lock()

    def state(self) -> "Json":
        """What the page draws."""
        with self._lock:
            if self._clock() - self._looked_at >= LOOK_EVERY:
                self._look()
                self._looked_at = self._clock()
            return {
                "stack": self._stack.name,
                "speed": 1,
                "poll": LOOK_EVERY,
                "buttons": (),
                "pressed": (),
                "trouble": self._trouble and {"code": "unavailable", "detail": self._trouble},
                **self._history.state(self._accounts, self._clock() + self._ahead),
            }

    def _look(self) -> None:
        """Ask for what is new; what cannot be had is said on the page, above what was known before."""
        self._trouble = None
        try:
            document, now = self._stack.api.health()
            self._accounts, self._ahead = document["accounts"], now - self._clock()
        except OperatorError as error:
            self._trouble = str(error)
        try:
            self._read_log()
        except OperatorError as error:
            self._trouble = self._trouble or str(error)

    def _read_log(self) -> None:
        log = f"/aws/lambda/{self._stack.name}-refresh"
        since = self._read_until - LATE
        where: dict[str, Any] = {"logGroupName": log, "startTime": int(since * 1000), "filterPattern": FILTER}
        found = self._stack.aws.ask_all("logs", "filter_log_events", "events", log, **where)
        self._read_until = self._clock()
        for event in sorted(found, key=lambda event: event["timestamp"]):
            if event["eventId"] not in self._read:
                self._add(event["timestamp"] / 1000, event["message"])
        self._read = {event["eventId"] for event in found}

    def _add(self, at: float, line: str) -> None:
        try:
            record = json.loads(line)
            if record["message"] in RECORDS:
                self._history.add(at, record["message"], record)
        except (ValueError, TypeError, KeyError):
            return  # Lambda's own lines, and those of other releases


@app.command("console")
def show_page(
    ctx: typer.Context,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0 takes a free one.")] = 0,
) -> None:
    """Show the stack on a page of this machine, until Ctrl-C.

    It shows each token's life, renewals, failures and reports of the last hours, and changes nothing.
    """
    stack = stack_of(ctx)
    if stack.is_local:
        raise OperatorError(
            f"The local stack has a page of its own: open {stack.outputs['ApiUrl']}/, or the link that `local` has printed."
        )
    wait = until_stopped()
    with _served(stack, port) as url:
        say(f"page: {url}\nThe link holds this run's key, without which nothing is shown. Press Ctrl-C to stop.")
        wait()


@contextmanager
def _served(stack: "DeployedStack", port: int) -> Iterator[str]:
    """Serve the page; its address, with the key that it asks for."""
    try:
        from infra.console.web import PageServer
        from infra.local.http_server import CannotListenError, Server
    except ModuleNotFoundError as error:
        raise OperatorError(
            f"The page is not installed here ({error.name} is missing): run it with `uv run token-keeper console`."
        ) from None
    api_key = token_urlsafe(30)
    try:
        server = Server(PageServer(DeployedPage(stack).state, api_key=api_key), port)
    except CannotListenError as error:
        raise OperatorError(f"The page cannot be shown: {error}; choose another with --port.") from None
    server.start()
    try:
        yield f"{server.url}/#key={api_key}"
    finally:
        server.stop()
