"""The functions in one thread and without HTTP: every run can be repeated, and threads meet where the simulation wants it."""

import contextlib
import gc
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any
from unittest.mock import patch

from tests.simulation.watched import WatchedWorld
from token_keeper.refresh import checker, keeper, wechat

LOGGED: list[str] = []
"""What the functions have logged, each line with its extra fields."""


_OF_EACH_RECORD = frozenset(logging.makeLogRecord({}).__dict__) - {"msg", "args", "exc_info"}


class _Log(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        said = {name: value for name, value in record.__dict__.items() if name not in _OF_EACH_RECORD}
        LOGGED.append(f"{self.format(record)} {said}")


@contextlib.contextmanager
def _plain_records() -> Iterator[None]:
    """Log records do not say where they come from: the ways that `logging`'s documentation has to make it faster."""
    with (
        patch.object(logging, "_srcfile", None),
        patch.object(logging, "logThreads", False),
        patch.object(logging, "logProcesses", False),
        patch.object(logging, "logMultiprocessing", False),
        patch.object(logging, "logAsyncioTasks", False),
    ):
        yield


@contextlib.contextmanager
def _rare_garbage_collections() -> Iterator[None]:
    """Each one looks at all that is alive, the imported modules too, which took two fifths of the time."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


class InTurn(contextlib.AbstractContextManager["InTurn"]):
    """A thread pool without threads: what was submitted is done when the pool is left, one task after the other, unless
    `interleave` begins the next one in the middle of another."""

    open: "list[InTurn]" = []  # noqa: RUF012 - of all, the innermost last

    def __init__(self, _workers: int) -> None:
        self._pending: list[Callable[[], None]] = []
        self._depth = len(Session.world.frames)

    def __enter__(self) -> "InTurn":
        self.open.append(self)
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        try:
            while self._pending and failed is None:
                self._pending.pop(0)()
        finally:
            self.open.remove(self)

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(work(*args))
            except Exception as error:  # noqa: BLE001 - it is raised again where the result is asked for
                future.set_exception(error)

        self._pending.append(run)
        return future

    def map(self, work: Callable[[Any], Any], them: Iterable[Any]) -> list[Any]:
        """Done at once."""
        return [work(each) for each in them]

    @classmethod
    def interleave(cls) -> None:
        """Let the next task of this invocation run now, in the middle of the present one."""
        pool = cls.open[-1] if cls.open else None
        if pool is not None and pool._pending and pool._depth == len(Session.world.frames):
            pool._pending.pop(0)()


class Session(contextlib.AbstractContextManager["Session"]):
    """`wechat.Session`, as far as the functions use it. `world`: of the running simulation."""

    world: WatchedWorld

    def __exit__(self, *_: object) -> None:
        pass

    def exchange(self, method: str, url: str, body: bytes | None) -> tuple[int, bytes]:
        """What the simulated WeChat of the running simulation returns, or what urllib3 raises."""
        return self.world.exchange(method, url, body)


@contextlib.contextmanager
def inline() -> Iterator[None]:
    """The functions' threads and their connections to WeChat are replaced, and every log line is kept in `LOGGED`."""
    handler = _Log()
    loggers = [logging.getLogger(name) for name in ("refresh", "api")]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        with (
            patch.object(keeper, "ThreadPoolExecutor", InTurn),
            patch.object(checker, "ThreadPoolExecutor", InTurn),
            patch.object(wechat, "Session", Session),
            _plain_records(),
            _rare_garbage_collections(),
        ):
            yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        LOGGED.clear()
