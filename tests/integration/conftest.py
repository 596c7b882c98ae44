"""A `world` inside moto. Wherever a test leads, no secret and no value may stand in what the system said on the way,
and each response must be one that the OpenAPI document describes."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from moto import mock_aws

from tests.simulation.memory_aws import MemoryAws
from tests.support import openapi
from tests.support.world import Clock, World


class _Log(logging.Handler):
    """Keeps whole log records: message, extra fields, and the text of an exception."""

    def __init__(self, kept: list[str]) -> None:
        super().__init__(logging.DEBUG)
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append(f"{self.format(record)} {vars(record)}")


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Over AWS in memory, which takes a hundredth of moto's time; over moto where a test is marked `moto`."""
    if request.node.get_closest_marker("moto"):
        with mock_aws(), _watched(World()) as world:
            yield world
    else:
        with _in_memory() as world:
            yield world


@pytest.fixture(scope="module")
def shared_world() -> Iterator[World]:
    """One for all tests of a module that change nothing in it. No such module may use `world` too."""
    with _in_memory() as world:
        yield world


@contextmanager
def _in_memory() -> Iterator[World]:
    clock = Clock()
    with _watched(World(MemoryAws(clock).client, clock=clock)) as world:
        yield world


@contextmanager
def _watched(world: World) -> Iterator[World]:
    world.responded = openapi.check
    log = _Log(world.said)
    loggers = [logging.getLogger(name) for name in ("refresh", "api")]
    for logger in loggers:
        logger.addHandler(log)
    yield world
    for logger in loggers:
        logger.removeHandler(log)
    said = "\n".join([*world.said, *map(json.dumps, world.events)])
    leaked = [secret for secret in {*world.secrets, "simulated_token_", "simulated_ticket_"} if secret in said]
    assert not leaked, "a secret or a value stands where it must not"
