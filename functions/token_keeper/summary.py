"""RefreshFunction's summary and log records: names, times and fingerprints, never a value."""

from typing import Any

from token_keeper.model import Failed, Failure, Outcome, Renewed, ReportOutcome, Skipped, Verified, rfc3339


def failure_shown(failure: Failure) -> dict[str, Any]:
    """A failure without its time, as health and problem documents show it."""
    return {
        "class": str(failure.failure_class),
        "errcode": failure.errcode,
        "errmsg": failure.errmsg,
        "remedy": failure.remedy,
    }


def outcome_fields(outcome: Outcome) -> tuple[str, dict[str, Any]]:
    """The key of the summary under which an outcome is listed, and what is said of it there and in the log."""
    which = {"account": outcome.account, "credential": outcome.credential}
    match outcome:
        case Renewed():
            return "renewed", {
                **which,
                "fingerprint": outcome.fingerprint,
                "expires_at": rfc3339(outcome.expires_at),
                "promised_until": rfc3339(outcome.promised_until),
                "renews_at": rfc3339(outcome.renews_at),
            }
        case Skipped():
            return "skipped", {**which, "reason": outcome.reason}
        case Verified():
            limit = {"retry_after": outcome.retry_after} if outcome.outcome is ReportOutcome.LIMITED else {}
            return "verified", {
                **which,
                "outcome": str(outcome.outcome),
                "fingerprint": outcome.fingerprint,
                **limit,
            }
        case Failed():
            next_attempt = {"next_attempt_at": rfc3339(outcome.next_attempt_at)}
            return "failed", {**which, **failure_shown(outcome.failure), **next_attempt}
