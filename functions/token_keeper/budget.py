"""What WeChat allows in a day, and who may use it: pure functions of the recorded usage and the time.

Renewals that are due always have room. Reports and operators may only use what is left above the reserve for those.
"""

from dataclasses import replace

from token_keeper.model import Kind, Usage

BEIJING = 8 * 3600
"""Seconds ahead of UTC; WeChat's day begins at midnight there, all year round."""

DAY = 86400

CALLS_A_DAY = {Kind.TOKEN: 2000, Kind.STABLE_TOKEN: 500_000}
"""WeChat's documented quota of a new account, by endpoint. WeCom and the tickets have none a day that is published."""

RESERVE = 1600
"""Calls a day that are kept for renewals: one every 55 s while WeChat fails (1571), and the 14 of a usual day."""

ON_DEMAND_A_DAY = 500
"""Calls a day for all that is not a due renewal, where WeChat publishes no quota."""

FORCED_A_DAY = 20
FORCED_APART = 30
"""Seconds. WeChat's limits for `force_refresh`; beyond them the old token comes back without a word."""

CHECKS_A_DAY = 1000
"""Calls of `get_api_domain_ip` a day, by a post in WeChat's community. The probe takes 288 of them."""

REPORT_BURST = 20
REPORT_INTERVAL = 125
"""Seconds in which the allowance for reports regains one check: 691 a day, and a burst, beside the probe's 288."""

CHECK_SERVES = 10
"""Seconds for which one check of a token serves all its reports."""


def seconds_to_midnight(now: int) -> int:
    """Seconds until WeChat's next day begins."""
    return DAY - (now + BEIJING) % DAY


def today(usage: Usage, now: int) -> Usage:
    """What has been used on WeChat's present day."""
    day = (now + BEIJING) // DAY
    return usage if usage.day == day else Usage(day=day, forced_at=usage.forced_at)


def record(usage: Usage, now: int, *, calls: int = 0, forced: bool = False) -> Usage:
    """Add calls to the day's usage; `forced`: one of them forces a refresh, now."""
    before = today(usage, now)
    if forced:
        before = replace(before, forced=before.forced + 1, forced_at=now)
    return replace(before, calls=before.calls + calls)


def used(kind: Kind, usage: Usage, now: int) -> int:
    """Percent of the day's calls that are used up; 0 where WeChat publishes no quota."""
    quota = CALLS_A_DAY.get(kind)
    return 0 if quota is None else today(usage, now).calls * 100 // quota


def may_fetch_on_demand(kind: Kind, usage: Usage, now: int) -> bool:
    """Whether there is room for a fetch that is not a due renewal."""
    quota = CALLS_A_DAY.get(kind)
    return today(usage, now).calls < (ON_DEMAND_A_DAY if quota is None else quota - RESERVE)


def may_force(usage: Usage, now: int) -> bool:
    """Whether WeChat would carry out a `force_refresh`."""
    return today(usage, now).forced < FORCED_A_DAY and now - usage.forced_at >= FORCED_APART


def may_rotate(kind: Kind, usage: Usage, now: int) -> bool:
    """Whether a live value may be replaced; for `stable_token` that takes a `force_refresh`."""
    return may_fetch_on_demand(kind, usage, now) and (kind is not Kind.STABLE_TOKEN or may_force(usage, now))


def report_wait(booked_until: int, now: int) -> int:
    """Seconds until the allowance for reports has room for one more check; 0: it has now.

    Each check books `REPORT_INTERVAL` seconds of the day; `booked_until` may be ahead of the clock by a burst.
    """
    return max(booked_until - now - (REPORT_BURST - 1) * REPORT_INTERVAL, 0)


def book_check(booked_until: int, now: int) -> int:
    """The new `booked_until` once a report is checked."""
    return max(booked_until, now) + REPORT_INTERVAL
