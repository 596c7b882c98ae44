"""What may be used of WeChat's limits, and on whose day."""

from dataclasses import replace

import pytest

from token_keeper import budget, renewal
from token_keeper.model import Kind, Usage

MIDNIGHT = 20_718 * 86400 - 8 * 3600
"""A midnight in Beijing, 16:00 UTC."""


def test_wechats_day_begins_at_midnight_in_beijing() -> None:
    # Given what was used a second before midnight
    usage = budget.record(Usage(), MIDNIGHT - 1, calls=7, forced=True)
    # Then it counts until then, and not after
    assert budget.today(usage, MIDNIGHT - 1).calls == 7
    assert budget.today(usage, MIDNIGHT) == Usage(day=usage.day + 1, forced_at=MIDNIGHT - 1)
    assert [budget.seconds_to_midnight(MIDNIGHT + second) for second in (-1, 0, 1)] == [1, 86400, 86399]


@pytest.mark.parametrize(
    ("kind", "calls", "room"),
    [
        (Kind.TOKEN, 399, True),
        (Kind.TOKEN, 400, False),
        (Kind.STABLE_TOKEN, 498_399, True),
        (Kind.STABLE_TOKEN, 498_400, False),
        (Kind.CORP_TOKEN, 499, True),
        (Kind.CORP_TOKEN, 500, False),
    ],
)
def test_on_demand_fetches_leave_the_reserve(kind: Kind, calls: int, room: bool) -> None:
    usage = budget.record(Usage(), MIDNIGHT, calls=calls)
    assert budget.may_fetch_on_demand(kind, usage, MIDNIGHT) is room


def test_the_reserve_covers_a_day_in_which_every_attempt_fails() -> None:
    assert budget.RESERVE >= 86400 // renewal.RETRY


@pytest.mark.parametrize(
    ("forced", "since", "honoured"), [(0, 10**9, True), (19, 30, True), (19, 29, False), (20, 3600, False)]
)
def test_a_forced_refresh_keeps_to_wechats_limits(forced: int, since: int, honoured: bool) -> None:
    now = MIDNIGHT + 3600
    usage = replace(budget.record(Usage(), MIDNIGHT), forced=forced, forced_at=now - since)
    assert budget.may_force(usage, now) is honoured
    assert budget.may_rotate(Kind.STABLE_TOKEN, usage, now) is honoured
    assert budget.may_rotate(Kind.TOKEN, usage, now)


def test_reports_have_an_allowance_that_regains() -> None:
    # Given a burst of reports at one moment
    booked_until = 0
    for _ in range(budget.REPORT_BURST):
        assert budget.report_wait(booked_until, MIDNIGHT) == 0
        booked_until = budget.book_check(booked_until, MIDNIGHT)
    # Then one more has to wait until the allowance has regained one
    assert budget.report_wait(booked_until, MIDNIGHT) == budget.REPORT_INTERVAL
    assert budget.report_wait(booked_until, MIDNIGHT + budget.REPORT_INTERVAL) == 0


def test_reports_leave_the_probe_its_share() -> None:
    probes = 86400 // 300
    assert budget.REPORT_BURST + 86400 // budget.REPORT_INTERVAL + probes <= budget.CHECKS_A_DAY
