"""The life of a credential: what each step of it writes. Pure functions.

    lease ──► publish ──► begin_check ──► end_check ──► lease ──► …
      └─────► fail ──► lease      └─────► refuse ─────► lease

Each returns a `Change` for `Credentials.change`: it is made of the credential as it is at the moment of the write, and makes nothing
where another instance has meanwhile written what the step depends on.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

from token_keeper import budget, renewal
from token_keeper.model import Credential, Failure, Grant, Kind, Usage, digest, fingerprint
from token_keeper.refresh import alerts
from token_keeper.refresh.outcome import Outcome
from token_keeper.table.credentials import Change

CHECK_TIME = 20
"""Seconds that a check can take."""

REFUSED_KEPT = 32
"""How many refused values a credential remembers, so that one that WeChat repeats until its end, two hours, is not published
again. In that time 24 probes may find another token refused."""


@dataclass
class Attempt:
    """One renewal under its lease, taken at `began_at`: what it has used so far, and what WeChat may have minted for it.

    `before`: the credential as it was before the lease. `isolated`: whether a `token` account's value comes from `stable_token`.
    `forced`: whether it had WeChat force a refresh, which ends the old value at once. `mint_asked_at`: when it called
    `/cgi-bin/token`. `outcome_unknown`: a response was lost that may have held a new value. `others`: takes what
    became of the account's token, where WeChat refused a ticket call for that.
    """

    before: Credential
    leased: Credential
    began_at: int
    usage: Usage = field(init=False)
    isolated: bool = False
    forced: bool = False
    mint_asked_at: int | None = None
    outcome_unknown: bool = False
    others: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.usage = self.leased.usage
        # Another instance may have written since it was read; not what tells of a renewal, or there would be no lease.
        self.before = replace(self.leased, at_risk_since=self.before.at_risk_since, lease_until=self.before.lease_until)


def lease(seen: Credential, now: int) -> Change:
    """Take the right to renew. The credential is at risk from now on, unless it already was, and due again when the lease ends.

    |   no renewal    |        leased        |  the lease was never given back
    |-----------------|----------------------|------------------------------------> (time)
                    now = at_risk_since    until = due_at: the next guard takes it
    """

    def change(current: Credential) -> Credential | None:
        if now < current.lease_until:
            return None
        until = now + renewal.LEASE
        at_risk_since = now if current.at_risk_since is None else current.at_risk_since
        return replace(current, epoch=current.epoch + 1, lease_until=until, due_at=until, at_risk_since=at_risk_since)

    # Under one epoch a lease that was seen to be lost may have been given back since, with a new value.
    return _while("epoch lease_until", seen, change)


def force(leased: Credential, usage: Usage, now: int) -> Change:
    """Record a forced refresh ahead of its call, which ends the value."""

    def change(current: Credential) -> Credential:
        # A value that was refused before stays so from then on, also for a reader whose clock is behind.
        refused_at = now if current.refused_at is None else current.refused_at
        return replace(current, usage=usage, refused_at=refused_at)

    return _while("epoch", leased, change)


def publish(attempt: Attempt, grant: Grant, now: int) -> Change:
    """Store what WeChat granted, and give the lease back."""
    before = attempt.before
    changes: dict[str, Any] = {
        "expires_at": renewal.expiry(before, grant),
        "due_at": renewal.next_due(before, grant, isolated=attempt.isolated),
        "minted_at": attempt.mint_asked_at or renewal.last_mint(before),
        "seen_at": grant.asked_at,
        "usage": attempt.usage,
        **{"lease_until": 0, "check_until": 0, "failures": 0},
        **{"at_risk_since": None, "refused_at": None, "last_error": None},
    }
    if grant.value == before.value:
        changes["refused_fingerprints"] = ""
    else:
        changes |= {"value": grant.value, "fingerprint": fingerprint(grant.value), "fetched_at": grant.asked_at}
        if before.value is not None:
            overlap = 0 if attempt.forced else renewal.RULES[before.kind].overlap
            changes["previous_fingerprint"] = before.fingerprint
            changes["previous_digest"] = digest(before.value)
            changes["previous_until"] = min(renewal.usable_until(before), grant.asked_at + overlap)
    return _while("epoch", attempt.leased, lambda current: alerts.recovered(replace(current, **changes), now))


def fail(attempt: Attempt, failure: Failure, *, makes_event: bool) -> Change:
    """Record a failure, and give the lease back; the value stays."""
    failures = attempt.before.failures + 1
    # This renewal, or an earlier one whose outcome is unknown, may have minted a successor.
    is_at_risk = attempt.outcome_unknown or attempt.before.at_risk_since is not None
    # Counted from the beginning, so that the next guard retries also after an attempt that timed out.
    due_at = attempt.began_at + renewal.retry_after(failure, failures)
    # It was recorded as refused because of a forced refresh that was not made.
    is_served_again = attempt.forced and not attempt.outcome_unknown and attempt.before.refused_at is None

    def change(current: Credential) -> Credential:
        failed = replace(
            current,
            failures=failures,
            last_error=failure,
            due_at=due_at,
            lease_until=0,
            check_until=0,
            usage=attempt.usage,
            at_risk_since=current.at_risk_since if is_at_risk else None,
            refused_at=None if is_served_again else current.refused_at,
        )
        return alerts.failing(failed, failure, failures=failures, next_attempt_at=due_at) if makes_event else failed

    return _while("epoch", attempt.leased, change)


def begin_check(token: Credential, now: int) -> Change:
    """Take the right to ask WeChat about a reported token, and book the call. It blocks no renewal."""
    booked_until = budget.book_check(token.checks_booked_until, now)

    def change(current: Credential) -> Credential:
        return replace(current, check_until=now + CHECK_TIME, checks_booked_until=booked_until)

    # Each check books more, so of all that saw the same only one begins.
    return _while("epoch checks_booked_until", token, change)


def end_check(token: Credential, *, accepted_at: int | None) -> Change:
    """Give the right to check back. `accepted_at`: when the check began in which WeChat accepted the token."""

    def change(current: Credential) -> Credential:
        return replace(current, check_until=0, checked_at=current.checked_at if accepted_at is None else accepted_at)

    return _while("fingerprint", token, change)


def refuse(token: Credential, now: int, *, foreign: bool) -> Change:
    """Stop serving a token that WeChat refuses, and have it replaced now. `foreign`: another client has invalidated it."""

    def change(current: Credential) -> Credential | None:
        if current.refused_at is not None:
            return None
        refused = [*current.refused_fingerprints.split(), str(current.fingerprint)][-REFUSED_KEPT:]
        dead = replace(current, refused_at=now, refused_fingerprints=" ".join(refused), due_at=now)
        if not foreign:
            return dead
        counted = replace(dead, foreign_rotations=dead.foreign_rotations + 1, foreign_rotation_at=now)
        return alerts.invalidated(counted, now)

    return _while("epoch fingerprint", token, change)


def reschedule(seen: Credential, due_at: int) -> Change:
    """Set when the credential is due."""
    return _while("epoch due_at", seen, lambda current: replace(current, due_at=due_at))


def change_kind(seen: Credential, kind: Kind, now: int) -> Change:
    """Keep the credential by the rules of another kind, and have it renewed now."""
    # The rules of the old endpoint say how long its value still works, and until when no call may end it.
    expires_at = min(seen.expires_at, renewal.usable_until(seen))
    minted_at = seen.minted_at
    if seen.kind is Kind.TOKEN and seen.value is not None:
        minted_at = max(minted_at, expires_at - renewal.RULES[Kind.TOKEN].overlap)

    def change(current: Credential) -> Credential:
        return replace(current, kind=kind, due_at=now, expires_at=expires_at, minted_at=minted_at)

    return _while("epoch due_at", seen, change)


def note_record_error(failure: Failure, *, next_attempt_at: int, alert_after: int) -> Change:
    """Say what is wrong with the account's record. `alert_after`: seconds for which that must have been shown to make an event."""

    def change(current: Credential) -> Credential:
        shown_since = failure.at if current.last_error is None else current.last_error.at
        noted = replace(current, last_error=failure)
        if max(failure.at - shown_since, 0) < alert_after:
            return noted
        return alerts.failing(noted, failure, failures=current.failures + 1, next_attempt_at=next_attempt_at)

    return change


def clear_record_error(now: int) -> Change:
    """Nothing is wrong with the account's record any more; what a renewal has failed with stays."""

    def change(current: Credential) -> Credential | None:
        if current.failures or not (current.last_error or current.failing_since):
            return None
        return alerts.recovered(replace(current, last_error=None), now)

    return change


def _while(names: str, seen: Credential, change: Change) -> Change:
    """The change, as long as these attributes are as they were seen."""
    attributes: Callable[[Credential], Any] = attrgetter(*names.split())
    return lambda current: change(current) if attributes(current) == attributes(seen) else None
