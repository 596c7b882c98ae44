"""What an outage of the way out costs, where a renewal falls into it: the figures of infra/docs/network.md.

The program goes through a whole cycle; here are the beginnings that cost most, and some that cost nothing.
"""

from collections import Counter

import pytest

from tests.reports.outage import Outage, run
from tests.support.world import START


def of_access_tokens(lost: Counter[str]) -> dict[str, int]:
    return {name: seconds for name, seconds in lost.items() if seconds and name.endswith("access-token")}


@pytest.mark.parametrize(
    ("enrolled_after", "begins_at"),
    [
        (0, 6600),  # the main tick renews a `token`
        (3601, 3601 + 6719),  # the guard does, as late as it can
        (3601, 3601 + 6959),  # what is due 300 s before its end is renewed as late as it can be
    ],
)
def test_outage_of_240_s_costs_no_access_token_but_stable(enrolled_after: int, begins_at: int) -> None:
    loss = run(Outage(START + begins_at, 240), enrolled_after=enrolled_after, wecom_mints_anew=True)

    assert of_access_tokens(loss.without_value) == of_access_tokens(loss.broken_promises) == {}


def test_stable_token_lacks_a_minute_at_worst_after_240_s() -> None:
    # Given a guard that comes 59 s after the token is due, and finds no way out
    loss = run(Outage(START + 3631 + 6989, 240), enrolled_after=3631, wecom_mints_anew=True)

    # Then the token ends during the outage, and no reader is given it longer
    assert 0 < loss.without_value["stable-token access-token"] <= 70
    assert of_access_tokens(loss.without_value).keys() == {"stable-token access-token"}
    assert of_access_tokens(loss.broken_promises) == {}


def test_a_repeated_token_is_missing_until_the_outage_ends() -> None:
    # Given an outage that begins as the tickets end, which are repeated until then
    loss = run(Outage(START + 7200, 240), enrolled_after=0)

    assert 240 <= loss.without_value["token tickets/jsapi"] <= 280
    assert loss.without_value["token access-token"] == loss.without_value["stable-token access-token"] == 0
    assert of_access_tokens(loss.broken_promises) == {}


def test_an_outage_in_mid_life_is_not_noticed() -> None:
    loss = run(Outage(START + 3000, 540))

    assert of_access_tokens(loss.without_value) == of_access_tokens(loss.broken_promises) == {}
