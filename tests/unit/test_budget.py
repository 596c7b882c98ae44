"""What may be spent of WeChat's limits, and on whose day."""

from dataclasses import replace

import pytest

from token_keeper import budget
from token_keeper.model import Kind, Spent

MIDNIGHT = 20_718 * 86400 - 8 * 3600
"""A midnight in Beijing, 16:00 UTC."""


def test_wechats_day_begins_at_midnight_in_beijing() -> None:
    # Given what was spent a second before midnight
    spent = budget.spend(Spent(), MIDNIGHT - 1, epoch=1, calls=7, forced=1, checks=3)
    # Then it counts until then, and not after
    assert budget.today(spent, MIDNIGHT - 1).calls == 7
    assert budget.today(spent, MIDNIGHT) == Spent(day=spent.day + 1, epoch=1, forced_at=MIDNIGHT - 1)


def test_a_lease_that_never_told_counts_as_a_call() -> None:
    # Given a renewal under lease 5, and two that died after it
    spent = budget.spend(Spent(), MIDNIGHT, epoch=5, calls=1)
    # When the next one tells what it spent
    spent = budget.spend(spent, MIDNIGHT + 180, epoch=8, calls=1)
    # Then theirs are counted too
    assert spent.calls == 4


@pytest.mark.parametrize(
    ("kind", "calls", "room"),
    [
        (Kind.TOKEN, 499, True),
        (Kind.TOKEN, 500, False),
        (Kind.STABLE_TOKEN, 498_499, True),
        (Kind.STABLE_TOKEN, 498_500, False),
        (Kind.CORP_TOKEN, 499, True),
        (Kind.CORP_TOKEN, 500, False),
    ],
)
def test_reports_and_operators_spend_what_is_left_above_the_reserve(kind: Kind, calls: int, room: bool) -> None:
    spent = budget.spend(Spent(), MIDNIGHT, epoch=1, calls=calls)
    assert budget.may_wish(kind, spent, MIDNIGHT) is room


def test_the_reserve_covers_a_day_in_which_every_attempt_fails() -> None:
    assert budget.RESERVE >= 86400 // 60


@pytest.mark.parametrize(
    ("forced", "since", "heeded"), [(0, 10**9, True), (19, 30, True), (19, 29, False), (20, 3600, False)]
)
def test_a_forced_refresh_keeps_to_wechats_limits(forced: int, since: int, heeded: bool) -> None:
    spent = replace(budget.spend(Spent(), MIDNIGHT, epoch=1), forced=forced, forced_at=MIDNIGHT + 3600 - since)
    now = MIDNIGHT + 3600
    assert budget.may_force(spent, now) is heeded
    assert budget.may_rotate(Kind.STABLE_TOKEN, spent, now) is heeded
    assert budget.may_rotate(Kind.TOKEN, spent, now)


def test_checks_have_a_limit_of_their_own() -> None:
    spent = budget.spend(Spent(), MIDNIGHT, epoch=1, checks=budget.CHECKS_A_DAY)
    assert not budget.may_check(spent, MIDNIGHT)
    assert budget.may_check(spent, MIDNIGHT + 86400)
