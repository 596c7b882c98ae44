"""Four simulated hours, a read every 15 seconds: this project keeps its promises, and the measure is seen to fail others."""

import pytest

from tests.reports.day import BareTimer, Result, ThisProject, run
from token_keeper.model import Kind

SPAN = 4 * 3600
INTERVAL = 15
READS = SPAN // INTERVAL
CALLS = 3
"""The first token and two renewals: at the rate of 13 or 14 calls a day."""


@pytest.mark.parametrize(("endpoint", "enrolled_after"), [(Kind.TOKEN, 0), (Kind.STABLE_TOKEN, 3615)])
def test_every_reader_gets_a_token_that_works_as_promised(endpoint: Kind, enrolled_after: int) -> None:
    # Given an account that was enrolled with, or some time after, the first tick
    contender = ThisProject(endpoint, enrolled_after=enrolled_after)
    # When readers ask for hours
    result = run(contender, SPAN, INTERVAL)
    # Then all was well, for as few calls as WeChat's tokens allow
    assert result == Result(
        CALLS, result.probes, without_token=0, promises=READS, broken_promises=0, wrongly_promised=0
    )
    # And the live token was asked about every 5 minutes, except those in which it was too young
    assert SPAN // 300 - 2 * CALLS <= result.probes <= SPAN // 300
    # And the schedules alone saw to that: no reader had to ask for a renewal
    assert not any("renew" in event for event in contender.world.events)


def test_a_failed_renewal_is_made_good_before_any_reader_notices() -> None:
    # Given a WeChat that returns -1 for two minutes when the second renewal comes
    contender = ThisProject(Kind.TOKEN, failing_renewal=2, enrolled_after=3615)
    # When readers ask for hours
    result = run(contender, SPAN, INTERVAL)
    # Then it took two calls more, and no reader noticed
    calls = CALLS + 2
    assert result == Result(
        calls, result.probes, without_token=0, promises=READS, broken_promises=0, wrongly_promised=0
    )
    assert not any("renew" in event for event in contender.world.events)


def test_a_bare_timer_on_stable_token_is_seen_to_fail() -> None:
    # Given a bare timer, whose first renewal gets the same token again and comes too early for a new one
    contender = BareTimer(Kind.STABLE_TOKEN)
    # When readers ask for hours
    result = run(contender, SPAN, INTERVAL)
    # Then there is no accepted token from that one's end to the next run
    assert result.without_token == 2 * 6600 - 7200
    assert result.broken_promises == 0


def test_a_bare_timer_on_token_is_seen_to_break_its_promises() -> None:
    # Given a bare timer, which hands out WeChat's expires_in and kills the token before that is over
    contender = BareTimer(Kind.TOKEN)
    # When readers ask for hours
    result = run(contender, SPAN, INTERVAL)
    # Then the last 300 s of each of the three tokens' promises were wrong, although none was missing
    assert result == Result(CALLS, without_token=0, promises=READS, broken_promises=READS, wrongly_promised=3 * 300)


def test_a_bare_timer_on_token_fails_after_one_refused_run() -> None:
    # Given a bare timer whose second renewal WeChat refuses
    contender = BareTimer(Kind.TOKEN, failing_renewal=2)
    # When readers ask for hours
    result = run(contender, SPAN, INTERVAL)
    # Then there is no accepted token from the end of the first renewal's one to the next run
    assert result.without_token == SPAN - (6600 + 7200)
