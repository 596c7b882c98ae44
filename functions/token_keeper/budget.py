"""What WeChat allows in a day, and who may spend it: pure functions of what has been spent and the time.

Renewals that are due always have room. Reports, operators and other wishes may only spend what is left above the reserve
for those.
"""

from dataclasses import replace

from token_keeper.model import Kind, Spent

BEIJING = 8 * 3600
"""Seconds ahead of UTC; WeChat's day begins at midnight there, all year round."""

CALLS_A_DAY = {Kind.TOKEN: 2000, Kind.STABLE_TOKEN: 500_000}
"""WeChat's documented quota of a new account, by endpoint. WeCom and the tickets have none a day that is published."""

RESERVE = 1500
"""Calls a day that are kept for renewals: one a minute while WeChat fails (1440), and the 14 of a usual day."""

WISHES_A_DAY = 500
"""Calls a day for all that is not a due renewal, where WeChat publishes no quota."""

FORCED_A_DAY = 20
FORCED_APART = 30
"""Seconds. WeChat's limits for `force_refresh`; beyond them the old token comes back without a word."""

CHECKS_A_DAY = 1000
"""Our own limit: the quota of `get_api_domain_ip` is not published."""

CHECK_SERVES = 10
"""Seconds for which one check of a token answers everybody who reports it."""


def today(spent: Spent, now: int) -> Spent:
    """What has been spent on WeChat's present day."""
    day = (now + BEIJING) // 86400
    return spent if spent.day == day else Spent(day=day, epoch=spent.epoch, forced_at=spent.forced_at)


def spent_before(spent: Spent, now: int, epoch: int) -> Spent:
    """What had been spent today before the lease of this epoch; a forced call for each lease that never told."""
    before = today(spent, now)
    untold = max(epoch - before.epoch - 1, 0) if before.epoch else 0
    return replace(before, epoch=epoch - 1, calls=before.calls + untold, forced=before.forced + untold)


def spend(spent: Spent, now: int, *, epoch: int, calls: int = 0, forced: int = 0, checks: int = 0) -> Spent:
    """Add what the lease of this epoch has spent."""
    before = spent_before(spent, now, epoch)
    return replace(
        before,
        epoch=epoch,
        calls=before.calls + calls,
        forced=before.forced + forced,
        forced_at=now if forced else before.forced_at,
        checks=before.checks + checks,
    )


def used(kind: Kind, spent: Spent, now: int) -> int:
    """Percent of the day's calls that are used up; 0 where WeChat publishes no quota."""
    quota = CALLS_A_DAY.get(kind)
    return 0 if quota is None else today(spent, now).calls * 100 // quota


def may_wish(kind: Kind, spent: Spent, now: int) -> bool:
    """Whether there is room for a fetch that is not a due renewal."""
    quota = CALLS_A_DAY.get(kind)
    return today(spent, now).calls < (WISHES_A_DAY if quota is None else quota - RESERVE)


def may_force(spent: Spent, now: int) -> bool:
    """Whether a `force_refresh` would be heeded."""
    return today(spent, now).forced < FORCED_A_DAY and now - spent.forced_at >= FORCED_APART


def may_rotate(kind: Kind, spent: Spent, now: int) -> bool:
    """Whether a live value may be replaced; for `stable_token` that takes a `force_refresh`."""
    return may_wish(kind, spent, now) and (kind is not Kind.STABLE_TOKEN or may_force(spent, now))


def may_check(spent: Spent, now: int) -> bool:
    """Whether there is room for a check of the token."""
    return today(spent, now).checks < CHECKS_A_DAY
