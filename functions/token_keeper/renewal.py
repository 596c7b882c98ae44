"""The rules of renewal, as pure functions of a credential and the time: when it is due, how long a reader may be
promised its value, and what follows a failure.

    fetched                                       tick renews    due       expires
    |------------------- 7200 s ------------------|--120--|------540 s-----|          `token`
    |                                             |--------300 s overlap-----|        the old value still works
    |<------------- promised to readers ---------------------------------->|  - 5 s

All times are UTC epoch seconds.
"""

from dataclasses import dataclass
from enum import StrEnum

from token_keeper.model import Credential, Due, Failure, FailureClass, Grant, Kind, fingerprint

LEASE = 60
"""Seconds a renewal may take before somebody else may try. Further attempts are begun only while it lasts; a lease
that is never given back, plus one guard interval, fits twice into the 300 s that an old token has left."""

MARGIN = 5
"""Seconds kept back from every promise: the instances' clocks may differ by this much."""

CACHE_FOR = 60
"""The longest a client should keep a value before it asks again: WeChat's own advice is about a minute."""

TICKET_LIFE = 7200
"""Seconds after which WeChat surely gives another ticket than it gave before."""

OLD_TICKET_LIFE = 300
"""Seconds trusted at a time to a ticket whose life may be over: it came back after its end as we count it, or somebody
here saw it before and it is not known when."""


@dataclass(frozen=True)
class Rule:
    """How one kind of credential is renewed. Seconds, from WeChat's documentation of each endpoint."""

    due_before: int
    """It is due this long before it expires."""
    look_ahead: int
    """The main tick renews it this much before it is due, so that the tick and not the guard does the regular work."""
    overlap: int
    """How long the old value works after a rotation; 0 where WeChat promises nothing."""
    mints_anew: bool
    """Whether a call inside the validity may mint a successor, so that a call without an answer puts the value at risk."""
    asks_again: int | None
    """When the same value came back although it was due: ask again after this long; None: when it expires."""
    counts_from_first_seen: bool = False
    """Whether `expires_in` does not count down, so that the life counts from when the value was first seen."""


RULES = {
    Kind.TOKEN: Rule(due_before=540, look_ahead=120, overlap=300, mints_anew=True, asks_again=60),
    Kind.STABLE_TOKEN: Rule(due_before=270, look_ahead=0, overlap=300, mints_anew=False, asks_again=60),
    Kind.CORP_TOKEN: Rule(due_before=300, look_ahead=0, overlap=0, mints_anew=True, asks_again=None),
    Kind.TICKET: Rule(300, 0, overlap=0, mints_anew=True, asks_again=None, counts_from_first_seen=True),
    Kind.CORP_TICKET: Rule(300, 0, overlap=0, mints_anew=True, asks_again=None, counts_from_first_seen=True),
}


class State(StrEnum):
    """The health of a credential in a word."""

    FRESH = "fresh"
    DUE = "due"
    FAILING = "failing"
    EXPIRED = "expired"
    NEVER_FETCHED = "never_fetched"


def expiry(credential: Credential, grant: Grant) -> int:
    """When the granted value dies, at the earliest.

    A new ticket may be the one of an earlier attempt without an answer, or have been given to somebody else with this appid
    as soon as the old one's life was over.
    """
    if not RULES[credential.kind].counts_from_first_seen:
        return grant.asked_at + grant.expires_in
    trusted_at_least = grant.asked_at + min(OLD_TICKET_LIFE, grant.expires_in)
    if grant.value == credential.value:
        if grant.asked_at < credential.expires_at:
            return min(credential.expires_at, grant.asked_at + grant.expires_in)
        return trusted_at_least
    if credential.value is None and credential.age_unknown:
        return trusted_at_least
    given_at = min(grant.asked_at, credential.at_risk_since or grant.asked_at)
    if credential.value is not None:
        given_at = min(given_at, credential.expires_at)
    return max(given_at + grant.expires_in, trusted_at_least)


SPREAD_PER_MINUTE = 300
"""Renewals that a guard should meet. Where more accounts are renewed together, as after many were added at once, they come
due over so many minutes more that they do not meet again; fewer stay with the main tick."""


def spread(account: str, together: int) -> int:
    """Seconds by which an account that is renewed `together` with so many is due earlier: from 0 up, always the same."""
    over = together // SPREAD_PER_MINUTE * 60
    return int(fingerprint(account), 16) % over if over else 0


def next_due(credential: Credential, grant: Grant, *, together: int = 1) -> int:
    """When a just granted value is to be renewed, one of so many accounts that are renewed `together`.

    A value that lives shorter than usual is due at half its life, so that it is never due at once; none is due before
    that. What WeChat repeats until its last minutes is not spread: an earlier call would bring nothing.
    """
    rule = RULES[credential.kind]
    expires_at = expiry(credential, grant)
    left = expires_at - grant.asked_at
    if grant.value != credential.value:
        earlier = spread(credential.account, together) if rule.mints_anew else 0
        return expires_at - min(rule.due_before + earlier, left // 2)
    if left > rule.due_before:
        return expires_at - rule.due_before
    return expires_at if rule.asks_again is None else min(expires_at, grant.asked_at + rule.asks_again)


def due_for_tick(due: Due, now: int) -> bool:
    """Whether the main tick renews it at `now`: it looks ahead, but not to the next attempt after a failure."""
    return due.due_at <= now + (0 if due.failures else RULES[due.kind].look_ahead)


def usable_until(credential: Credential) -> int:
    """When the value stops being usable for sure: its expiry, or the end of the overlap with a possible successor.

    Where WeChat promises no overlap the old value usually lives on, so it is still served, a second at a time.
    """
    rule = RULES[credential.kind]
    if credential.value is None:
        return 0
    if rule.mints_anew and rule.overlap and credential.at_risk_since is not None:
        return min(credential.expires_at, credential.at_risk_since + rule.overlap)
    return credential.expires_at


def promised_until(credential: Credential, read_at: int) -> int:
    """When the promise of a value that was read from the table at `read_at` ends.

    No rotation had begun when it was read, or `at_risk_since` would say so. The next one is planned for `due_at`; it can
    begin at once where that has passed, and after a failure, because a corrected record is tried at once.
    """
    rule = RULES[credential.kind]
    if rule.mints_anew and credential.at_risk_since is not None:
        rotates_at = credential.at_risk_since
    elif credential.failures:
        rotates_at = read_at
    else:
        rotates_at = max(read_at, credential.due_at - rule.look_ahead)
    return min(credential.expires_at, rotates_at + rule.overlap) - MARGIN


def promise(credential: Credential, read_at: int, now: int) -> int | None:
    """Whole seconds a reader may be promised at `now`, at least 1; None where there is no usable value."""
    if now >= usable_until(credential):
        return None
    return max(1, promised_until(credential, read_at) - now)


def state(credential: Credential, now: int) -> State:
    """The health of a credential at `now`."""
    if credential.value is None:
        return State.NEVER_FETCHED
    if now >= usable_until(credential):
        return State.EXPIRED
    if credential.last_error:
        return State.FAILING
    return State.DUE if now >= credential.due_at or now < credential.lease_until else State.FRESH


SLOW_RETRY = 300
"""Seconds between attempts that can only succeed after a person has acted: 12 an hour, against the 2000 failing calls an
hour after which WeCom blocks the caller, and soon enough that somebody who has just acted need not wait long."""

QUOTA_RETRY = 1800
"""Seconds between attempts while WeChat says that the day's calls are used up; a person can clear the quota any time."""

QUICK_FAILURES = 5
"""How often an unknown error is taken for a passing one before it is taken for a matter of configuration."""

CONFIRMATION_WAITS = {89506: 86400, 89507: 3600}
"""Seconds WeChat blocks an IP address after an administrator refused it (89507), or refused it twice (89506)."""


def retry_after(failure: Failure, failures: int) -> int:
    """Seconds until the next attempt after the given failure, the `failures`-th in a row."""
    match failure.failure_class:
        case FailureClass.TRANSIENT | FailureClass.CREDENTIAL:
            return 60
        case FailureClass.QUOTA if failure.errcode is not None:
            return QUOTA_RETRY
        case FailureClass.CONFIRMATION:
            return CONFIRMATION_WAITS.get(failure.errcode or 0, SLOW_RETRY)
        case FailureClass.UNKNOWN if failures <= QUICK_FAILURES:
            return 60
        case _:
            return SLOW_RETRY
