"""What a wake-up has done: its summary and its log records are made of this. Names, times and fingerprints, never a value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from token_keeper import budget, renewal
from token_keeper.model import Credential, Failure, ReportOutcome, rfc3339


@dataclass(frozen=True)
class Outcome:
    """What became of a credential. `what`: the list of the summary that it belongs to; `details`: what is said of it there."""

    what: str
    account: str
    credential: str
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Probed:
    """How many access tokens a run of the probe found alive, found dead, could not judge, and did not get to."""

    alive: int
    dead: int
    unclear: int
    left: int


def renewed(published: Credential, now: int) -> Outcome:
    """A value was published. `budget_used`: percent of the day's calls."""
    details = {
        "fingerprint": published.fingerprint,
        "expires_at": rfc3339(published.expires_at),
        "promised_until": rfc3339(renewal.promised_until(published, published.seen_at)),
        "renews_at": rfc3339(published.due_at),
        "budget_used": budget.used(published.kind, published.usage, now),
    }
    return Outcome("renewed", published.account, published.name, details)


def skipped(account: str, credential: str, reason: str) -> Outcome:
    """A renewal was not needed, or not ours to make."""
    return Outcome("skipped", account, credential, {"reason": reason})


def failed(account: str, credential: str, failure: Failure, next_attempt_at: int, **details: Any) -> Outcome:
    """What was to be done was not; a live value is untouched."""
    shown = failure.shown | {"next_attempt_at": rfc3339(next_attempt_at)}
    return Outcome("failed", account, credential, shown | details)


def verified(token: Credential, outcome: ReportOutcome, retry_after: int = 0) -> Outcome:
    """The response to a report. `retry_after`: seconds, where it was limited."""
    details = {"outcome": str(outcome), "fingerprint": token.fingerprint, "retry_after": retry_after}
    return Outcome("verified", token.account, token.name, details)
