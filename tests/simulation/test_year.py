"""Some simulated hours full of faults: this project loses no second that it could have saved, and the measure is seen to
fail others; and the shortcuts that make a year affordable change nothing."""

import logging
from collections.abc import Iterator
from functools import cache

import pytest
from moto import mock_aws

from infra.simulated_wechat import HOUR
from tests.simulation.day import Reading
from tests.simulation.year import CONTENDERS, INTERVAL, Contender, Faults, Result, ThisProject, Windows, run
from token_keeper.model import Kind

pytestmark = pytest.mark.long

SEED = 3
SPAN = 36 * HOUR
FAULTS = Faults(SEED, SPAN, density=4)

OURS = ["this project, token", "this project, stable_token"]
OTHERS = [name for name in CONTENDERS if name not in OURS]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable()  # the handlers' own lines, which are many
    yield
    logging.disable(logging.NOTSET)


@cache
def result_of(name: str) -> Result:
    with mock_aws():
        return run(CONTENDERS[name](FAULTS), FAULTS)


@pytest.mark.parametrize("name", OURS)
def test_no_second_is_lost_that_could_have_been_saved(name: str) -> None:
    # Given days full of faults; a failed renewal is tried again within two minutes, and a reader that has just started
    # has nothing to give while the table is down
    retries = 2 * 60 * len(FAULTS.kills)
    cold = sum(INTERVAL for read in FAULTS.reads if read in FAULTS.store_down) if FAULTS.cold_readers else 0
    # When readers ask all the time
    result = result_of(name)
    # Then what they lost is what nobody could have saved, and little more
    assert result.without_token <= FAULTS.unavoidable() + retries + cold


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_way_is_seen_to_fail(name: str) -> None:
    # Given the same days, when readers ask all the time
    result = result_of(name)
    # Then others lose more than both of ours, by far
    assert result.without_token > 3 * max(result_of(ours).without_token for ours in OURS)


class Traced:
    """A contender whose readings are kept, each with its moment."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self.clock, self.wechat = contender.clock, contender.wechat
        self.step, self.refused = contender.step, contender.refused
        self.readings: list[tuple[float, list[Reading | None]]] = []

    @property
    def next_at(self) -> float:
        return self._contender.next_at

    def read(self) -> list[Reading | None]:
        began_at, readings = self.clock(), self._contender.read()
        self.readings.append((began_at, readings))
        return readings


@pytest.mark.parametrize("endpoint", [Kind.TOKEN, Kind.STABLE_TOKEN])
def test_the_shortcuts_change_no_reading(endpoint: Kind) -> None:
    # Given the faults of weeks within hours
    faults = Faults(SEED, 3 * HOUR, density=80)

    def live(*, shortcuts: bool) -> tuple[Result, list[tuple[float, list[Reading | None]]]]:
        with mock_aws():
            contender = Traced(ThisProject(endpoint, faults, shortcuts=shortcuts))
            return run(contender, faults), contender.readings

    # When the same project lives through them with and without shortcuts
    # Then every reading, every promise and every count is the same
    assert live(shortcuts=True) == live(shortcuts=False)


def test_windows_that_overlap_are_one() -> None:
    windows = Windows([(10, 20), (30, 40), (15, 30)])
    assert [moment in windows for moment in (9, 10, 29, 39, 40)] == [False, True, True, True, False]
