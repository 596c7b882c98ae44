"""The events of a credential, and when they are made: pure functions of the credential as the table is to hold it.

What is written of a failure or its end also holds its event, in the credential's `unsent`: so each has one event, whichever
instance writes it, and none is lost while EventBridge does not respond.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from token_keeper import renewal
from token_keeper.model import Credential, Failure, FailureClass, foreign_remedy, rfc3339

ALERT_BEFORE = 180
"""Seconds. A failure makes an event when the next attempt leaves less than this of the token's life."""

MAX_UNSENT = 20
"""Events that an item keeps. More than that only wait where EventBridge refuses them for hours; the newest count."""


class EventType(StrEnum):
    """What happened: an event's detail-type."""

    RENEWED = "Credential Renewed"
    FAILING = "Credential Failing"
    RECOVERED = "Credential Recovered"
    INVALIDATED = "Credential Invalidated"


@dataclass(frozen=True)
class Event:
    """One event; `detail` never holds a value."""

    event_type: EventType
    at: int
    detail: Mapping[str, Any]


def to_text(event: Event) -> str:
    """The event as it waits in the table: one line."""
    return json.dumps({"type": event.event_type, "at": event.at, "detail": event.detail})


def from_text(text: str) -> Event:
    """The event that waits in the table."""
    stored = json.loads(text)
    return Event(EventType(stored["type"]), stored["at"], stored["detail"])


def waiting(unsent: str) -> list[str]:
    """The events that wait in a credential's `unsent`, oldest first."""
    return unsent.splitlines()


def sent(credential: Credential, text: str) -> Credential | None:
    """The credential without an event that is sent; None where it does not wait any more."""
    left = waiting(credential.unsent)
    if text not in left:
        return None
    left.remove(text)
    return replace(credential, unsent="\n".join(left))


def _needs_alert(credential: Credential, failure: Failure, failures: int, next_attempt_at: int) -> bool:
    """Whether an event is made of a failure, the `failures`-th in a row: it needs an operator; or the next attempt comes
    less than `ALERT_BEFORE` seconds before the value's end, or later. One lost call is not worth it where there is no value."""
    match failure.failure_class:
        case FailureClass.CONFIGURATION | FailureClass.CONFIRMATION | FailureClass.DEFECT:
            return True
        case FailureClass.QUOTA if failure.errcode is not None:
            return True
        case FailureClass.UNKNOWN if failures > renewal.QUICK_FAILURES:
            return True
    if credential.value is None:
        return failures > 1
    left = renewal.usable_until(credential) - next_attempt_at
    if failures == 1 and left > 0:
        return False  # a first ticket is trusted for minutes at a time: one lost call is no trouble yet
    return left < ALERT_BEFORE


def renewed(credential: Credential) -> Event:
    """A new value was published."""
    return Event(EventType.RENEWED, credential.fetched_at, _detail(credential))


def failing(credential: Credential, failure: Failure, *, failures: int, next_attempt_at: int) -> Credential:
    """The credential after a failure, the `failures`-th in a row, with an event where it begins to fail in a way that makes one."""
    if credential.failing_since or not _needs_alert(credential, failure, failures, next_attempt_at):
        return credential
    trouble = {
        **failure.shown,
        "next_attempt_at": rfc3339(next_attempt_at),
        "usable_until": None if credential.value is None else rfc3339(renewal.usable_until(credential)),
    }
    return replace(_with_event(credential, EventType.FAILING, failure.at, trouble), failing_since=failure.at)


def recovered(credential: Credential, now: int) -> Credential:
    """The credential, which does not fail any more, with an event if it did."""
    if not credential.failing_since:
        return credential
    return replace(_with_event(credential, EventType.RECOVERED, now), failing_since=0)


def removed(credential: Credential, now: int) -> Credential:
    """The credential as it was deleted, with the events that are left to send; an open alert is over."""
    if not credential.failing_since:
        return credential
    nothing_left = {"fingerprint": None, "expires_at": None, "removed": True}
    return _with_event(credential, EventType.RECOVERED, now, nothing_left)


def invalidated(credential: Credential, now: int) -> Credential:
    """The credential, with the event that WeChat refuses the value before its end, and not because of us."""
    trouble = {
        "class": str(FailureClass.CREDENTIAL),
        "errcode": None,
        "errmsg": "WeChat refuses the token before its end",
        "remedy": foreign_remedy(credential.kind),
        "next_attempt_at": rfc3339(now),
        "usable_until": rfc3339(now),
    }
    return _with_event(credential, EventType.INVALIDATED, now, trouble)


def _with_event(
    credential: Credential, event_type: EventType, at: int, detail: Mapping[str, Any] | None = None
) -> Credential:
    event = Event(event_type, at, {**_detail(credential), **(detail or {})})
    return replace(credential, unsent="\n".join([*waiting(credential.unsent), to_text(event)][-MAX_UNSENT:]))


def _detail(credential: Credential) -> dict[str, Any]:
    has_value = credential.fingerprint is not None
    return {
        "account": credential.account,
        "credential": credential.name,
        "fingerprint": credential.fingerprint,
        "expires_at": rfc3339(credential.expires_at) if has_value else None,
    }
