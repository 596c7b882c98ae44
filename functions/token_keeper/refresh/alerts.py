"""The events of a credential, and when they are made: pure functions of the credential as the table holds it.

A write that makes a transition also stores its event, in the credential's `unsent`: so each transition has one event,
whichever instance makes it, and none is lost while EventBridge does not respond.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from token_keeper.model import Credential, Failure, FailureClass, foreign_remedy, rfc3339
from token_keeper.renewal import QUICK_FAILURES
from token_keeper.summary import failure_shown
from token_keeper.table.credentials import AlertState, Transition

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


def without(unsent: str, sent: Iterable[str]) -> str:
    """What still waits when these events are sent."""
    return "\n".join(text for text in waiting(unsent) if text not in set(sent))


def needs_alert(failure: Failure, failures: int, next_attempt_at: int, usable_until: int | None) -> bool:
    """Whether an event is made of a failure, the `failures`-th in a row: it needs an operator; or the next attempt comes
    less than `ALERT_BEFORE` seconds before the value's end, or later.

    `usable_until`: of the value; None where there has been none, which one lost call does not make worth an alert.
    """
    match failure.failure_class:
        case FailureClass.CONFIGURATION | FailureClass.CONFIRMATION | FailureClass.DEFECT:
            return True
        case FailureClass.QUOTA if failure.errcode is not None:
            return True
        case FailureClass.UNKNOWN if failures > QUICK_FAILURES:
            return True
    if usable_until is None:
        return failures > 1
    if failures == 1 and next_attempt_at < usable_until:
        return False  # a first ticket is trusted for minutes at a time: one lost call is no trouble yet
    return usable_until - next_attempt_at < ALERT_BEFORE


def renewed(credential: Credential) -> Event:
    """A new value was published."""
    return Event(EventType.RENEWED, credential.fetched_at, _detail(credential))


def failing(failure: Failure, *, next_attempt_at: int, usable_until: int | None) -> Transition:
    """The credential fails from now on, if it did not already. `usable_until`: of its value, None where there is none."""
    trouble = {
        **failure_shown(failure),
        "next_attempt_at": rfc3339(next_attempt_at),
        "usable_until": None if usable_until is None else rfc3339(usable_until),
    }

    def change(seen: Credential) -> AlertState:
        if seen.failing_since:
            return seen.failing_since, seen.unsent
        event = Event(EventType.FAILING, failure.at, _detail(seen) | trouble)
        return failure.at, _append(seen.unsent, event)

    return change


def recovered(now: int, published: Credential | None = None) -> Transition:
    """The credential does not fail any more. `published`: as it is with its new value, where it has got one."""

    def change(seen: Credential) -> AlertState:
        if not seen.failing_since:
            return 0, seen.unsent
        return 0, _append(seen.unsent, Event(EventType.RECOVERED, now, _detail(published or seen)))

    return change


def removed(credential: Credential, now: int) -> Credential:
    """The credential as it was deleted, with the events that are left to send; an open alert is over."""
    if not credential.failing_since:
        return credential
    detail = {**_detail(credential), "fingerprint": None, "expires_at": None, "removed": True}
    return replace(credential, unsent=_append(credential.unsent, Event(EventType.RECOVERED, now, detail)))


def invalidated(now: int) -> Transition:
    """WeChat refuses the value before its end, and not because of us."""

    def change(seen: Credential) -> AlertState:
        trouble = {
            "class": str(FailureClass.CREDENTIAL),
            "errcode": None,
            "errmsg": "WeChat refuses the token before its end",
            "remedy": foreign_remedy(seen.kind),
            "next_attempt_at": rfc3339(now),
            "usable_until": rfc3339(now),
        }
        event = Event(EventType.INVALIDATED, now, _detail(seen) | trouble)
        return seen.failing_since, _append(seen.unsent, event)

    return change


def _append(unsent: str, event: Event) -> str:
    return "\n".join([*waiting(unsent), to_text(event)][-MAX_UNSENT:])


def _detail(credential: Credential) -> dict[str, Any]:
    has_value = credential.fingerprint is not None
    return {
        "account": credential.account,
        "credential": credential.name,
        "fingerprint": credential.fingerprint,
        "expires_at": rfc3339(credential.expires_at) if has_value else None,
    }
