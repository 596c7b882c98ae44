"""Some simulated hours full of faults: this project loses no second that it could have saved, and the measure is seen to
fail others."""

import logging
from collections.abc import Iterator
from functools import cache

import pytest

from infra.local.simulated_wechat import HOUR
from tests.reports.year import CONTENDERS, INTERVAL, Faults, Result, Windows, run

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
    return run(CONTENDERS[name](FAULTS), FAULTS)


@pytest.mark.parametrize("name", OURS)
def test_no_second_is_lost_that_could_have_been_saved(name: str) -> None:
    # Given days full of faults; a failed renewal is tried again within two minutes, and a reader that has just started
    # has nothing to give while the table is down
    retries = 2 * 60 * len(FAULTS.kills)
    cold = sum(INTERVAL for read in FAULTS.reads if read in FAULTS.store_down) if FAULTS.cold_readers else 0
    # When readers ask all the time
    result = result_of(name)
    # Then what they lost is what could not have been saved, and little more
    assert result.without_token <= FAULTS.unavoidable() + retries + cold


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_way_is_seen_to_fail(name: str) -> None:
    # Given the same days, when readers ask all the time
    result = result_of(name)
    # Then others lose more than both of ours, by far
    assert result.without_token > 3 * max(result_of(ours).without_token for ours in OURS)


def test_windows_that_overlap_are_one() -> None:
    windows = Windows([(10, 20), (30, 40), (15, 30)])
    assert [moment in windows for moment in (9, 10, 29, 39, 40)] == [False, True, True, True, False]
