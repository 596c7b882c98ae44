"""The health of accounts and their credentials, as the API shows it: states, times and remedies, never a value."""

from collections.abc import Mapping
from typing import Any

from token_keeper.budget import CALLS_A_DAY, today
from token_keeper.model import Credential, Kind, Progress, foreign_remedy, rfc3339
from token_keeper.renewal import State, shield_end, state
from token_keeper.table.items import Entry

UNCLEAR_WORTH_SHOWING = 3600
"""Seconds in which WeChat did not say clearly whether a token works."""

_UNKNOWN = (
    *("fingerprint", "fetched_at", "expires_at", "renews_at"),
    *("last_error", "calls_today", "foreign_rotations", "unclear_since"),
)
"""What health does not say of a credential that the table does not hold."""


def account_health(
    entry: Entry, credentials: Mapping[tuple[str, str], Credential], progress: Progress, now: int
) -> dict[str, Any]:
    """One account's health at `now` (epoch seconds), with the credentials the directory names.

    `record_version`: of the parameter that is in force; None while none is. `progress`: the probe's.
    """
    official_account = {"appid": entry.app_id or None, "endpoint": str(entry.kind)}
    identity = {"corpid": entry.app_id} if entry.kind is Kind.CORP_TOKEN else official_account
    health = [_credential_health(name, credentials.get((entry.account, name)), now) for name in entry.credentials]
    unclear_since = progress.unclear_since.get(entry.account, now)
    if now - unclear_since >= UNCLEAR_WORTH_SHOWING:
        health[0]["unclear_since"] = rfc3339(unclear_since)
    return {"account": entry.account, **identity, "record_version": entry.version, "credentials": health}


def _credential_health(name: str, credential: Credential | None, now: int) -> dict[str, Any]:
    if credential is None:
        return {"credential": name, "state": str(State.NEVER_FETCHED), "failures": 0, **dict.fromkeys(_UNKNOWN)}
    error = credential.last_error
    has_value = credential.value is not None
    return {
        "credential": name,
        "state": str(state(credential, now)),
        "fingerprint": credential.fingerprint,
        "fetched_at": rfc3339(credential.fetched_at) if has_value else None,
        "expires_at": rfc3339(credential.expires_at) if has_value else None,
        "renews_at": rfc3339(credential.due_at),
        "failures": credential.failures,
        "last_error": error and {**error.shown, "at": rfc3339(error.at)},
        "calls_today": {"made": today(credential.usage, now).calls, "budget": CALLS_A_DAY.get(credential.kind)},
        "foreign_rotations": _foreign_rotations(credential, now),
        "unclear_since": None,
    }


def _foreign_rotations(credential: Credential, now: int) -> dict[str, Any] | None:
    if not credential.foreign_rotations:
        return None
    shielded_until = shield_end(credential, now)
    return {
        "count": credential.foreign_rotations,
        "last_at": rfc3339(credential.foreign_rotation_at),
        "shielded_until": shielded_until and rfc3339(shielded_until),
        "remedy": foreign_remedy(credential.kind),
    }
