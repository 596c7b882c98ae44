"""Credentials: a value under its epoch, who may renew it, and what has become of it."""

import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from token_keeper.model import (
    ACCESS_TOKEN,
    Credential,
    Failure,
    Grant,
    Kind,
    RenewalTask,
    Usage,
    digest,
    fingerprint,
)
from token_keeper.table.dynamodb import ConditionFailedError, Item, Items, Key
from token_keeper.table.items import (
    HOUSEKEEPING,
    Entry,
    account_of,
    credential_key,
    to_credential,
)

REFUSED_KEPT = 32
"""How many refused values a credential remembers, so that one that WeChat repeats until its end, two hours, is not published
again. In that time 24 probes may find another token refused."""

BEGIN = "SET lease_until = :until, due_at = :until, at_risk_since = if_not_exists(at_risk_since, :now), #ttl = :ttl"

_ALERT_CHANGE = "failing_since = :failing_since, unsent = :unsent"
_ALERT_AS_SEEN = "(attribute_not_exists(unsent) OR (failing_since = :failing_seen AND unsent = :unsent_seen))"
"""An item of the release before has neither."""

type AlertState = tuple[int, str]
"""A credential's `failing_since` and `unsent`."""

type Transition = Callable[[Credential], AlertState]
"""What a write makes of the alert state of the credential as it was before."""


class Credentials:
    """The credentials of all accounts. Every method raises `StoreUnavailableError` where DynamoDB fails."""

    def __init__(self, items: Items) -> None:
        self._items = items

    # --- reading

    def get(self, account: str, name: str) -> Credential | None:
        """One credential, read consistently: a promise is made of it."""
        item = self._items.get(credential_key(account, name))
        return to_credential(item) if item else None

    def of(self, entries: Iterable[Entry]) -> dict[tuple[str, str], Credential]:
        """The credentials of the given accounts, by (account, name)."""
        keys = [credential_key(entry.account, name) for entry in entries for name in entry.credentials]
        credentials = map(to_credential, self._items.get_all(keys))
        return {(credential.account, credential.name): credential for credential in credentials}

    def tokens(self, accounts: Iterable[str]) -> list[Credential]:
        """The accounts' access tokens, as they are now or were a moment ago."""
        keys = [credential_key(account, ACCESS_TOKEN) for account in accounts]
        return [to_credential(item) for item in self._items.get_all(keys, consistent=False)]

    def token_and_ticket(self, account: str, ticket: str) -> tuple[Credential | None, Credential | None]:
        """An account's access token and one of its tickets; in one round trip."""
        items = self._items.get_all([credential_key(account, ACCESS_TOKEN), credential_key(account, ticket)])
        found = {item["sk"]: to_credential(item) for item in items}
        return found.get(ACCESS_TOKEN), found.get(ticket)

    def account_of_token(self, index: str, token_fingerprint: str) -> str | None:
        """The account whose access token has, or had, that fingerprint by the index, which may lag."""
        found = self._items.index(index, f"{index} = :fingerprint", {":fingerprint": token_fingerprint})
        return next((account_of(item) for item in found if item["sk"] == ACCESS_TOKEN), None)

    # --- a renewal: lease, then publish or record the failure

    def take_lease(self, task: RenewalTask, *, now: int, until: int) -> Credential | None:
        """Take the right to renew; None if another instance has it, or the credential is not any more as the task says.

        Returns the credential as it is under the lease: with the epoch that publishing requires, due again when the
        lease ends, and at risk from now on (unless it already was).

            |   no renewal    |        leased        |  the lease was never given back
            |-----------------|----------------------|------------------------------------> (time)
                            now = at_risk_since    until = due_at: the next guard takes it
        """
        values = {":now": now, ":until": until, ":one": 1, ":ttl": until + HOUSEKEEPING}
        values |= {":epoch": task.epoch, ":seen": task.lost_lease_until}
        # Under one epoch a lease that was seen to be lost may have been given back since, with a new value.
        as_seen = "epoch = :epoch AND lease_until = :seen"
        key = credential_key(task.account, task.credential)
        item = self._update(key, f"{BEGIN} ADD epoch :one", f"lease_until <= :now AND {as_seen}", values)
        return to_credential(item) if item else None

    def begin_forced(self, leased: Credential, usage: Usage, *, now: int) -> bool:
        """Record a forced refresh ahead of its call, which ends the value; False where a later lease was taken meanwhile."""
        values = {":usage": asdict(usage), ":now": now}
        # A value that was refused before stays so from then on, also for a reader whose clock is behind.
        update = "SET spent = :usage, refused_at = if_not_exists(refused_at, :now)"
        return self._update_leased(leased, update, values) is not None

    def publish(
        self,
        leased: Credential,
        grant: Grant,
        usage: Usage,
        *,
        expires_at: int,
        due_at: int,
        minted_at: int,
        previous_until: int = 0,
        transition: Transition | None = None,
    ) -> Credential | None:
        """Store a granted value under the lease; None where a later lease was taken (or the account dropped) meanwhile.

        `previous_until`: how long the value that it replaces surely works.
        """
        values: dict[str, Any] = {
            ":expires_at": expires_at,
            ":due_at": due_at,
            ":minted_at": minted_at,
            ":zero": 0,
            ":usage": asdict(usage),
            ":ttl": expires_at + HOUSEKEEPING,
        }
        update = (
            "SET expires_at = :expires_at, due_at = :due_at, minted_at = :minted_at, lease_until = :zero, "
            "check_until = :zero, failures = :zero, spent = :usage, #ttl = :ttl"
        )
        removed = "at_risk_since, refused_at, last_error"
        if grant.value == leased.value:
            removed += ", refused_fingerprints"
        else:
            replaced, new = _new_value(leased, grant, previous_until)
            update, values = f"{update}, {replaced}", values | new
        return self._update_leased(leased, f"{update} REMOVE {removed}", values, transition)

    def record_failure(
        self,
        leased: Credential,
        failure: Failure,
        usage: Usage,
        *,
        due_at: int,
        at_risk: bool,
        refused: bool,
        transition: Transition | None = None,
    ) -> Credential | None:
        """Give the lease back after a failure; the value stays. None where a later lease was taken meanwhile.

        `at_risk`: whether a renewal whose outcome is unknown, this or an earlier one, may have minted a successor.
        `refused`: whether the value is still one that must not be served.
        """
        values: dict[str, Any] = {
            ":failures": leased.failures + 1,
            ":last_error": asdict(failure),
            ":due_at": due_at,
            ":zero": 0,
            ":usage": asdict(usage),
            ":ttl": max(due_at, leased.expires_at) + HOUSEKEEPING,
        }
        update = (
            "SET failures = :failures, last_error = :last_error, due_at = :due_at, lease_until = :zero, "
            "check_until = :zero, spent = :usage, #ttl = :ttl"
        )
        removed = [*([] if at_risk else ["at_risk_since"]), *([] if refused else ["refused_at"])]
        update += f" REMOVE {', '.join(removed)}" if removed else ""
        return self._update_leased(leased, update, values, transition)

    # --- a check of a token

    def begin_check(self, token: Credential, *, until: int, booked_until: int) -> bool:
        """Take the right to ask WeChat about a reported token; False if another instance asks, or the token has changed.

        It blocks no renewal. `booked_until`: what the reports' allowance is booked to by this check.
        """
        values = {":until": until, ":booked_until": booked_until, ":epoch": token.epoch}
        values[":seen"] = token.checks_booked_until
        update = "SET check_until = :until, checks_booked_until = :booked_until"
        # Each check books more, so of all that saw the same only one begins.
        condition = "epoch = :epoch AND (attribute_not_exists(checks_booked_until) OR checks_booked_until = :seen)"
        return self._update(credential_key(token.account, token.name), update, condition, values) is not None

    def end_check(self, token: Credential, *, accepted_at: int | None) -> None:
        """Give the right to check back. `accepted_at`: when the check began in which WeChat accepted the token."""
        update, values = "SET check_until = :zero", {":zero": 0, ":fingerprint": token.fingerprint}
        if accepted_at is not None:
            update += ", checked_at = :accepted_at"
            values[":accepted_at"] = accepted_at
        self._update(credential_key(token.account, token.name), update, "fingerprint = :fingerprint", values)

    def mark_refused(
        self, token: Credential, *, now: int, foreign: bool, transition: Transition | None = None
    ) -> Credential | None:
        """Stop serving a token that WeChat refuses, and have it replaced now; None if it has changed since it was seen.

        `foreign`: another client has invalidated it.
        """
        values: dict[str, Any] = {":now": now, ":fingerprint": token.fingerprint}
        kept = token.refused_fingerprints.split()[1 - REFUSED_KEPT :]
        values[":refused"] = " ".join([*kept, str(token.fingerprint)])
        update = "SET refused_at = :now, refused_fingerprints = :refused, due_at = :now"
        if foreign:
            update += ", foreign_rotation_at = :now ADD foreign_rotations :one"
            values[":one"] = 1
        condition = "fingerprint = :fingerprint AND attribute_not_exists(refused_at)"
        return self._update_leased(token, update, values, transition, condition)

    # --- keeping and dropping

    def enrol(
        self, account: str, name: str, kind: Kind, app_id: str, *, due_at: int, before: Credential | None = None
    ) -> None:
        """Begin to keep a credential; one that is kept already stays as it is, unless it belongs to another appid.

        `before`: the credential of another appid that it takes the place of; an alert about it stays open.
        """
        item: Item = {
            **{"pk": f"credential#{account}", "sk": name, "kind": kind, "app_id": app_id, "due": "due"},
            **{"due_at": due_at, "lease_until": 0, "failures": 0, "ttl": due_at + HOUSEKEEPING},
            "check_until": 0,  # the release before cannot read an item without it
            # Random, so that a renewal that began before an account was dropped and added again cannot publish into it.
            "epoch": secrets.randbits(48),
        }
        if before is not None:
            item |= {"failing_since": before.failing_since, "unsent": before.unsent}
        with suppress(ConditionFailedError):
            self._items.put(item, "attribute_not_exists(pk) OR app_id <> :app_id", {":app_id": app_id})

    def reschedule(self, seen: Credential, *, due_at: int) -> None:
        """Set when the credential is due, unless it has changed since it was seen."""
        values = {":due_at": due_at, ":seen": seen.due_at, ":epoch": seen.epoch}
        self._update(
            credential_key(seen.account, seen.name), "SET due_at = :due_at", "due_at = :seen AND epoch = :epoch", values
        )

    def change_kind(self, seen: Credential, kind: Kind, *, now: int, expires_at: int, minted_at: int) -> None:
        """Keep the credential by the rules of another kind, and have it renewed, unless it has changed since it was seen.

        `expires_at`, `minted_at`: what the rules of the old kind say of its present value.
        """
        values: dict[str, Any] = {":now": now, ":seen": seen.due_at, ":epoch": seen.epoch}
        values |= {":kind": kind, ":expires_at": expires_at, ":minted_at": minted_at}
        update = "SET due_at = :now, kind = :kind, expires_at = :expires_at, minted_at = :minted_at"
        self._update(credential_key(seen.account, seen.name), update, "due_at = :seen AND epoch = :epoch", values)

    def set_record_error(
        self, account: str, name: str, failure: Failure | None, transition: Transition | None = None
    ) -> Credential | None:
        """Show in a credential's health what is wrong with its record; None: nothing any more, unless a renewal failed.

        Returns the credential as it is then; None where nothing was written.
        """
        seen = self.get(account, name)
        while seen is not None:
            values: dict[str, Any] = {":zero": 0} if failure is None else {":last_error": asdict(failure)}
            update, condition = "SET last_error = :last_error", "attribute_exists(pk)"
            if failure is None:
                update, condition = "REMOVE last_error", "failures = :zero"
            written = self._update_leased(seen, update, values, transition, condition)
            if written is not None:
                return written
            found = self.get(account, name)
            # Where a lease was taken since it was seen, it is written all the same.
            seen = found if found is not None and found.epoch != seen.epoch else None
        return None

    def change_unsent(self, account: str, name: str, change: Callable[[str], str]) -> None:
        """Replace the events that wait in a credential's item; `change` may be called more than once."""
        seen = self.get(account, name)
        while seen is not None and (unsent := change(seen.unsent)) != seen.unsent:
            values: dict[str, Any] = {":seen": seen.unsent, ":unsent": unsent}
            if (
                self._update(credential_key(account, name), "SET unsent = :unsent", "unsent = :seen", values)
                is not None
            ):
                return
            seen = self.get(account, name)

    def drop(self, account: str, name: str) -> Credential | None:
        """Delete a credential and its value. Returns it as it was; None where there is no such credential."""
        item = self._items.delete(credential_key(account, name))
        return to_credential(item) if item else None

    # --- writing

    def _update_leased(
        self,
        leased: Credential,
        update: str,
        values: Mapping[str, Any],
        transition: Transition | None = None,
        condition: str = "",
    ) -> Credential | None:
        """Update the credential while it has the epoch it was seen with, and make the transition of its alert state."""
        seen, key = leased, credential_key(leased.account, leased.name)
        condition = f"epoch = :epoch AND {condition}" if condition else "epoch = :epoch"
        values = {**values, ":epoch": leased.epoch}
        if transition is None:
            item = self._update(key, update, condition, values)
            return to_credential(item) if item else None
        update = f"SET {_ALERT_CHANGE}{', ' if update.startswith('SET ') else ' '}{update.removeprefix('SET ')}"
        while True:
            values |= {":failing_seen": seen.failing_since, ":unsent_seen": seen.unsent}
            values[":failing_since"], values[":unsent"] = transition(seen)
            try:
                return to_credential(self._items.update(key, update, f"{condition} AND {_ALERT_AS_SEEN}", values))
            except ConditionFailedError as refused:
                found = to_credential(refused.item) if refused.item else None
            if found is None or found.epoch != leased.epoch or _alert_state(found) == _alert_state(seen):
                return None
            seen = found  # another write has made a transition since

    def _update(self, key: Key, update: str, condition: str, values: Mapping[str, Any]) -> Item | None:
        try:
            return self._items.update(key, update, condition, values)
        except ConditionFailedError:
            return None


def _new_value(leased: Credential, grant: Grant, previous_until: int) -> tuple[str, dict[str, Any]]:
    """What replaces a value by another, and remembers the one before."""
    update = "#value = :value, fingerprint = :fingerprint, fetched_at = :fetched_at"
    values = {":value": grant.value, ":fingerprint": fingerprint(grant.value), ":fetched_at": grant.asked_at}
    if leased.value is None:
        return update, values
    update += ", previous_fingerprint = :previous, previous_digest = :digest, previous_until = :until"
    values |= {":previous": fingerprint(leased.value), ":digest": digest(leased.value), ":until": previous_until}
    return update, values


def _alert_state(credential: Credential) -> AlertState:
    return credential.failing_since, credential.unsent
