"""Adapter: the table. One item per credential, one per account in a directory, one per claim on an appid, one per
consumer, one for the probe.

| pk | sk | holds |
|---|---|---|
| `credential#<account>` | credential name | the value and all that is known of it (`model.Credential`) |
| `accounts` | account name | app id, kind, the credentials' names, the version of the record they come from |
| `claim#<appid>` | `token`, or a WeCom app | the one account that keeps this appid or app |
| `probe` | `progress` | how far the probe has come (`model.Progress`) |
| `consumers` | SHA-256 of its key | its name, the accounts it may read, whether it may report (`model.Consumer`) |
| `consumer_names` | consumer's name | its keys' SHA-256; only the command line reads and writes these |

The index `due` lists every credential by `due_at`; `fingerprint` and `previous_fingerprint` find a credential by its
value, or by the value before, which works for a while after a rotation. The attribute `ttl` is housekeeping: an item disappears
`HOUSEKEEPING` seconds after the last thing that is planned for it. No rule relies on it.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from token_keeper import aws_errors
from token_keeper.errors import StoreUnavailableError
from token_keeper.model import (
    ACCESS_TOKEN,
    Account,
    Consumer,
    Credential,
    Due,
    Failure,
    FailureClass,
    Grant,
    Kind,
    Progress,
    Usage,
    digest,
    fingerprint,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

HOUSEKEEPING = 7 * 86400
"""Seconds an item outlives the last thing that is planned for it."""

_BATCH_GET_LIMIT = 100
_BATCH_GET_ROUNDS = 4
"""DynamoDB leaves out what it is too busy for; so often in all that is asked for."""

_BEGIN = "SET lease_until = :until, due_at = :until, at_risk_since = if_not_exists(at_risk_since, :now), #ttl = :ttl"
_ALERT_CHANGE = "failing_since = :failing_since, unsent = :unsent"
_ALERT_AS_SEEN = "(attribute_not_exists(unsent) OR (failing_since = :failing_seen AND unsent = :unsent_seen))"
"""An item of the release before has neither."""

_ACCOUNTS = "accounts"
_CONSUMERS = "consumers"
_PROGRESS = {"pk": "probe", "sk": "progress"}


type AlertState = tuple[int, str]
"""A credential's `failing_since` and `unsent`."""

type Transition = Callable[[Credential], AlertState]
"""What a write makes of the alert state of the credential as it was before."""


@dataclass(frozen=True)
class Entry:
    """An account in the directory. `version` is None while its record is not (wholly) enrolled."""

    account: str
    app_id: str
    kind: Kind
    credentials: tuple[str, ...]
    version: str | None


class Table:
    """The keeper's and the readers' view of the table. Every method raises `StoreUnavailableError` where DynamoDB fails."""

    def __init__(self, dynamodb: "DynamoDBClient", name: str) -> None:
        self._dynamodb = dynamodb
        self._name = name

    # --- reading

    def credential(self, account: str, name: str) -> Credential | None:
        """One credential, read consistently: a promise is made of it."""
        with _translated_errors():
            answer = self._dynamodb.get_item(TableName=self._name, Key=_key(account, name), ConsistentRead=True)
        return _credential(_plain(answer["Item"])) if "Item" in answer else None

    def entry(self, account: str) -> Entry | None:
        """The account's directory entry."""
        with _translated_errors():
            answer = self._dynamodb.get_item(TableName=self._name, Key=_directory_key(account), ConsistentRead=True)
        return _entry(_plain(answer["Item"])) if "Item" in answer else None

    def entries(self) -> Iterator[Entry]:
        """The whole directory, by name."""
        page, after = self.page(None, None)
        yield from page
        while after is not None:
            page, after = self.page(None, after)
            yield from page

    def page(self, limit: int | None, after: str | None) -> tuple[list[Entry], str | None]:
        """Up to `limit` directory entries after the named account, and the name to go on after (None: that was all)."""
        query: dict[str, Any] = {
            "TableName": self._name,
            "KeyConditionExpression": "pk = :accounts",
            "ExpressionAttributeValues": _wire({":accounts": "accounts"}),
            "ConsistentRead": True,
        }
        if limit is not None:
            query["Limit"] = limit
        if after is not None:
            query["ExclusiveStartKey"] = _directory_key(after)
        with _translated_errors():
            answer = self._dynamodb.query(**query)
        last = answer.get("LastEvaluatedKey")
        return [_entry(_plain(item)) for item in answer["Items"]], _plain(last)["sk"] if last else None

    def credentials(self, entries: Iterable[Entry]) -> dict[tuple[str, str], Credential]:
        """The credentials of the given accounts, by (account, name)."""
        items = self._items([_key(entry.account, name) for entry in entries for name in entry.credentials])
        credentials = map(_credential, items)
        return {(credential.account, credential.name): credential for credential in credentials}

    def consumer(self, key_digest: str) -> Consumer | None:
        """A consumer by its key, read consistently: a revoked key stops working at once."""
        with _translated_errors():
            answer = self._dynamodb.get_item(TableName=self._name, Key=_consumer_key(key_digest), ConsistentRead=True)
        return _consumer(_plain(answer["Item"])) if "Item" in answer else None

    def in_force(self, account: Account, name: str, version: str | None) -> Credential | None:
        """The account's credential, if that version of its record is in force, and the account owns its appid.

        In one round trip: as long as the credential has this epoch, it has not been dropped, and so the claim not released.
        """
        items = self._items([_directory_key(account.name), _claim_key(account), _key(account.name, name)])
        found = {item["pk"].partition("#")[0]: item for item in items}
        if not {_ACCOUNTS, "claim", "credential"} <= found.keys():
            return None
        if _entry(found[_ACCOUNTS]).version != version or found["claim"]["account"] != account.name:
            return None
        return _credential(found["credential"])

    def tokens(self, accounts: Iterable[str]) -> list[Credential]:
        """The accounts' access tokens, as they are now or were a moment ago."""
        keys = [_key(account, ACCESS_TOKEN) for account in accounts]
        return [_credential(item) for item in self._items(keys, consistent=False)]

    def token_and_ticket(self, account: str, ticket: str) -> tuple[Credential | None, Credential | None]:
        """An account's access token and one of its tickets; in one round trip."""
        items = self._items([_key(account, ACCESS_TOKEN), _key(account, ticket)])
        found = {item["sk"]: _credential(item) for item in items}
        return found.get(ACCESS_TOKEN), found.get(ticket)

    def holder_of_token(self, index: str, token_fingerprint: str) -> str | None:
        """The account whose access token has, or had, that fingerprint by the index, which may lag."""
        with _translated_errors():
            answer = self._dynamodb.query(
                TableName=self._name,
                IndexName=index,
                KeyConditionExpression=f"{index} = :fingerprint",
                ExpressionAttributeValues=_wire({":fingerprint": token_fingerprint}),
            )
        found = map(_plain, answer["Items"])
        return next((_account_of(item) for item in found if item["sk"] == ACCESS_TOKEN), None)

    def claims(self, app_id: str) -> dict[str, str]:
        """The accounts that keep this appid or corpid, by what they claim of it."""
        return {item["sk"]: item["account"] for item in self._partition(f"claim#{app_id}")}

    def due(self, until: int | None) -> list[Due]:
        """What the index lists as due at `until` or before; everything it lists, where that is None."""
        query: dict[str, Any] = {
            "TableName": self._name,
            "IndexName": "due",
            "KeyConditionExpression": "due = :due" if until is None else "due = :due AND due_at <= :until",
            "ExpressionAttributeValues": _wire({":due": "due"} if until is None else {":due": "due", ":until": until}),
        }
        with _translated_errors():
            pages = self._dynamodb.get_paginator("query").paginate(**query)
            return [_due(_plain(item)) for page in pages for item in page["Items"]]

    # --- a renewal: lease, then publish or record the failure

    def take_lease(self, due: Due, *, now: int, until: int) -> Credential | None:
        """Take the right to renew; None if another instance has it, or the credential is not any more as it was seen.

        Returns the credential as it is under the lease: with the epoch that publishing requires, due again when the
        lease ends, and at risk from now on (unless it already was).

            |   no renewal    |        leased        |  the lease was never given back
            |-----------------|----------------------|------------------------------------> (time)
                            now = at_risk_since    until = due_at: the next guard takes it
        """
        values = {":now": now, ":until": until, ":one": 1, ":ttl": until + HOUSEKEEPING}
        if due.epoch is None:
            # The main tick looks ahead: what it saw must still be so, and must not be a failure's next attempt.
            as_it_was_seen = "(due_at <= :now OR (due_at = :seen AND failures = :zero))"
            values |= {":seen": due.due_at, ":zero": 0}
        else:
            as_it_was_seen = "epoch = :seen"
            values[":seen"] = due.epoch
        key = _key(due.account, due.credential)
        item = self._update(key, f"{_BEGIN} ADD epoch :one", f"lease_until <= :now AND {as_it_was_seen}", values)
        return _credential(item) if item else None

    def begin_forced(self, leased: Credential, usage: Usage, *, now: int) -> bool:
        """Record a forced refresh ahead of its call, which ends the value; False where a later lease was taken meanwhile."""
        values = {":usage": asdict(usage), ":now": now}
        return self._update_leased(leased, "SET spent = :usage, refused_at = :now", values) is not None

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
            update += ", #value = :value, fingerprint = :fingerprint, fetched_at = :fetched_at"
            values |= {":value": grant.value, ":fingerprint": fingerprint(grant.value), ":fetched_at": grant.asked_at}
            if leased.value is not None:
                update += ", previous_fingerprint = :previous, previous_digest = :digest, previous_until = :until"
                values |= {
                    ":previous": fingerprint(leased.value),
                    ":digest": digest(leased.value),
                    ":until": previous_until,
                }
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

        It hinders no renewal. `booked_until`: what the reports' allowance is booked to by this check.
        """
        values = {":until": until, ":booked_until": booked_until, ":epoch": token.epoch}
        values[":seen"] = token.checks_booked_until
        update = "SET check_until = :until, checks_booked_until = :booked_until"
        # Each check books more, so of all that saw the same only one begins.
        condition = "epoch = :epoch AND (attribute_not_exists(checks_booked_until) OR checks_booked_until = :seen)"
        return self._update(_key(token.account, token.name), update, condition, values) is not None

    def end_check(self, token: Credential, *, accepted_at: int | None) -> None:
        """Give the right to check back. `accepted_at`: when the check began in which WeChat accepted the token."""
        update, values = "SET check_until = :zero", {":zero": 0, ":fingerprint": token.fingerprint}
        if accepted_at is not None:
            update += ", checked_at = :accepted_at"
            values[":accepted_at"] = accepted_at
        self._update(_key(token.account, token.name), update, "fingerprint = :fingerprint", values)

    def mark_refused(
        self, token: Credential, *, now: int, foreign: bool, transition: Transition | None = None
    ) -> Credential | None:
        """Stop serving a token that WeChat refuses, and have it replaced now; None if it has changed since it was seen.

        `foreign`: another client has invalidated it.
        """
        values: dict[str, Any] = {":now": now, ":fingerprint": token.fingerprint}
        values[":refused"] = f"{token.refused_fingerprints.rpartition(' ')[2]} {token.fingerprint}"
        update = "SET refused_at = :now, refused_fingerprints = :refused, due_at = :now"
        if foreign:
            update += ", foreign_rotation_at = :now ADD foreign_rotations :one"
            values[":one"] = 1
        condition = "fingerprint = :fingerprint AND attribute_not_exists(refused_at)"
        return self._update_leased(token, update, values, transition, condition)

    def progress(self) -> Progress:
        """How far the probe has come."""
        with _translated_errors():
            answer = self._dynamodb.get_item(TableName=self._name, Key=_wire(_PROGRESS), ConsistentRead=True)
        item = _plain(answer.get("Item", {}))
        return Progress(item.get("after"), item.get("unclear", {}))

    def put_progress(self, progress: Progress) -> None:
        """Write how far the probe has come."""
        item = {**_PROGRESS, "after": progress.after, "unclear": dict(progress.unclear_since)}
        with _translated_errors():
            self._dynamodb.put_item(TableName=self._name, Item=_wire(item))

    # --- enrolling and dropping accounts

    def claim(self, account: Account, *, now: int) -> str:
        """Claim the account's appid (or WeCom app); returns its owner, which may be another account, or one that was."""
        # The release before named the claim of a stable_token account otherwise.
        keys = [_wire({"pk": f"claim#{account.app_id}", "sk": kind}) for kind in (Kind.TOKEN, Kind.STABLE_TOKEN)]
        held = {item["sk"]: str(item["account"]) for item in self._items(keys)}
        if Kind.TOKEN not in held and held.get(Kind.STABLE_TOKEN, account.name) != account.name:
            return held[Kind.STABLE_TOKEN]
        item = _claim_key(account) | _wire({"account": account.name})
        try:
            with _translated_errors():
                self._dynamodb.put_item(
                    TableName=self._name,
                    Item=item,
                    ConditionExpression="attribute_not_exists(pk) OR account = :account OR free_at <= :now",
                    ExpressionAttributeValues=_wire({":account": account.name, ":now": now}),
                    ReturnValuesOnConditionCheckFailure="ALL_OLD",
                )
        except _ConditionFailedError as refused:
            return str(refused.item["account"])
        return account.name

    def release_claims(self, account: str, app_id: str, *, now: int, free_at: int = 0, but: str | None = None) -> None:
        """Release what the account has claimed of this appid, except the claim `but`. Others may claim it from `free_at` on."""
        for claim, holder in self.claims(app_id).items():
            key, owned, values = {"pk": f"claim#{app_id}", "sk": claim}, "account = :account", {":account": account}
            if holder != account or claim == but:
                continue
            if free_at <= now:
                self._delete(key, owned, values)
            else:
                times = {":free_at": free_at, ":ttl": free_at + HOUSEKEEPING}
                self._update(_wire(key), "SET free_at = :free_at, #ttl = :ttl", owned, values | times)

    def enrol(
        self, account: str, name: str, kind: Kind, app_id: str, *, due_at: int, before: Credential | None = None
    ) -> None:
        """Begin to keep a credential; one that is kept already stays as it is, unless it belongs to another appid.

        `before`: the credential of another appid that it takes the place of; an alert about it stays open.
        """
        item: dict[str, Any] = {
            **{"pk": f"credential#{account}", "sk": name, "kind": kind, "app_id": app_id, "due": "due"},
            **{"due_at": due_at, "lease_until": 0, "failures": 0, "ttl": due_at + HOUSEKEEPING},
            "check_until": 0,  # the release before cannot read an item without it
            # Random, so that a renewal that began before an account was dropped and added again cannot publish into it.
            "epoch": secrets.randbits(48),
        }
        if before is not None:
            item |= {"failing_since": before.failing_since, "unsent": before.unsent}
        with _unless_refused(), _translated_errors():
            self._dynamodb.put_item(
                TableName=self._name,
                Item=_wire(item),
                ConditionExpression="attribute_not_exists(pk) OR app_id <> :app_id",
                ExpressionAttributeValues=_wire({":app_id": app_id}),
            )

    def reschedule(self, seen: Credential, *, due_at: int) -> None:
        """Set when the credential is due, unless it has changed since it was seen."""
        values = {":due_at": due_at, ":seen": seen.due_at, ":epoch": seen.epoch}
        self._update(_key(seen.account, seen.name), "SET due_at = :due_at", "due_at = :seen AND epoch = :epoch", values)

    def change_kind(self, seen: Credential, kind: Kind, *, now: int, expires_at: int, minted_at: int) -> None:
        """Keep the credential by the rules of another kind, and have it renewed, unless it has changed since it was seen.

        `expires_at`, `minted_at`: what the rules of the old kind say of its present value.
        """
        values: dict[str, Any] = {":now": now, ":seen": seen.due_at, ":epoch": seen.epoch}
        values |= {":kind": kind, ":expires_at": expires_at, ":minted_at": minted_at}
        update = "SET due_at = :now, kind = :kind, expires_at = :expires_at, minted_at = :minted_at"
        self._update(_key(seen.account, seen.name), update, "due_at = :seen AND epoch = :epoch", values)

    def set_record_error(
        self, account: str, name: str, failure: Failure | None, transition: Transition | None = None
    ) -> Credential | None:
        """Show in a credential's health what is wrong with its record; None: nothing any more, unless a renewal failed.

        Returns the credential as it is then; None where nothing was written.
        """
        seen = self.credential(account, name)
        while seen is not None:
            values: dict[str, Any] = {":zero": 0} if failure is None else {":last_error": asdict(failure)}
            update, condition = "SET last_error = :last_error", "attribute_exists(pk)"
            if failure is None:
                update, condition = "REMOVE last_error", "failures = :zero"
            written = self._update_leased(seen, update, values, transition, condition)
            if written is not None:
                return written
            found = self.credential(account, name)
            # Where a lease was taken since it was seen, it is written all the same.
            seen = found if found is not None and found.epoch != seen.epoch else None
        return None

    def change_unsent(self, account: str, name: str, change: Callable[[str], str]) -> None:
        """Replace the events that wait in a credential's item; `change` may be called more than once."""
        seen = self.credential(account, name)
        while seen is not None and (unsent := change(seen.unsent)) != seen.unsent:
            values: dict[str, Any] = {":seen": seen.unsent, ":unsent": unsent}
            if self._update(_key(account, name), "SET unsent = :unsent", "unsent = :seen", values) is not None:
                return
            seen = self.credential(account, name)

    def put_entry(self, entry: Entry, *, applying: str | None = None) -> None:
        """Write the account's directory entry. `applying`: the version of the record that is being applied."""
        item = {
            "applying": applying,
            "app_id": entry.app_id,
            "kind": entry.kind,
            "credentials": " ".join(entry.credentials),
        }
        item |= {"version": entry.version} if entry.version else {}
        with _translated_errors():
            self._dynamodb.put_item(TableName=self._name, Item=_directory_key(entry.account) | _wire(item))

    def finish_entry(self, account: str, *, version: str | None) -> bool:
        """Write which version of the record is in force; False where another change has been begun meanwhile."""
        key, values = _directory_key(account), {":version": version}
        return self._update(key, "SET version = :version", "applying = :version", values) is not None

    def drop_credential(self, account: str, name: str) -> Credential | None:
        """Delete a credential and its value. Returns it as it was; None where there is no such credential."""
        with _translated_errors():
            answer = self._dynamodb.delete_item(TableName=self._name, Key=_key(account, name), ReturnValues="ALL_OLD")
        return _credential(_plain(answer["Attributes"])) if "Attributes" in answer else None

    def drop_entry(self, account: str) -> None:
        """Delete the account's directory entry."""
        self._delete({"pk": _ACCOUNTS, "sk": account})

    # --- the wire

    def _partition(self, pk: str) -> list[dict[str, Any]]:
        with _translated_errors():
            answer = self._dynamodb.query(
                TableName=self._name,
                KeyConditionExpression="pk = :pk",
                ExpressionAttributeValues=_wire({":pk": pk}),
                ConsistentRead=True,
            )
        return [_plain(item) for item in answer["Items"]]

    def _items(self, keys: list[Any], *, consistent: bool = True) -> list[dict[str, Any]]:
        items, rounds = [], len(keys) // _BATCH_GET_LIMIT + _BATCH_GET_ROUNDS
        while keys:
            if not rounds:
                raise StoreUnavailableError("DynamoDB: it does not get to all that was asked for")
            rounds -= 1
            with _translated_errors():
                answer: Any = self._dynamodb.batch_get_item(
                    RequestItems={self._name: {"Keys": keys[:_BATCH_GET_LIMIT], "ConsistentRead": consistent}}
                )
            keys = answer["UnprocessedKeys"].get(self._name, {"Keys": []})["Keys"] + keys[_BATCH_GET_LIMIT:]
            items += [_plain(item) for item in answer["Responses"].get(self._name, [])]
        return items

    def _update_leased(
        self,
        leased: Credential,
        update: str,
        values: Mapping[str, Any],
        transition: Transition | None = None,
        condition: str = "",
    ) -> Credential | None:
        """Update the credential while it has the epoch it was seen with, and make the transition of its alert state."""
        seen, key = leased, _key(leased.account, leased.name)
        condition = f"epoch = :epoch AND {condition}" if condition else "epoch = :epoch"
        values = {**values, ":epoch": leased.epoch}
        if transition is None:
            item = self._update(key, update, condition, values)
            return _credential(item) if item else None
        update = f"SET {_ALERT_CHANGE}{', ' if update.startswith('SET ') else ' '}{update.removeprefix('SET ')}"
        while True:
            values |= {":failing_seen": seen.failing_since, ":unsent_seen": seen.unsent}
            values[":failing_since"], values[":unsent"] = transition(seen)
            try:
                return _credential(self._try_update(key, update, f"{condition} AND {_ALERT_AS_SEEN}", values))
            except _ConditionFailedError as refused:
                found = _credential(refused.item) if refused.item else None
            if found is None or found.epoch != leased.epoch or _alert_state(found) == _alert_state(seen):
                return None
            seen = found  # another write has made a transition since

    def _update(self, key: Any, update: str, condition: str, values: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            return self._try_update(key, update, condition, values)
        except _ConditionFailedError:
            return None

    def _try_update(self, key: Any, update: str, condition: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Update an item; raises `_ConditionFailedError` with the item as it is where the condition does not hold."""
        names = {f"#{reserved}": reserved for reserved in ("ttl", "value") if f"#{reserved}" in update + condition}
        with _translated_errors():
            answer = self._dynamodb.update_item(
                TableName=self._name,
                Key=key,
                UpdateExpression=update,
                ConditionExpression=condition,
                ExpressionAttributeValues=_wire(values),
                ReturnValues="ALL_NEW",
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
                **({"ExpressionAttributeNames": names} if names else {}),  # type: ignore[arg-type]
            )
        return _plain(answer["Attributes"])

    def _delete(self, key: Mapping[str, str], condition: str = "", values: Mapping[str, str] | None = None) -> None:
        conditions: Any = {}
        if condition:
            conditions = {"ConditionExpression": condition, "ExpressionAttributeValues": _wire(values or {})}
        with _unless_refused(), _translated_errors():
            self._dynamodb.delete_item(TableName=self._name, Key=_wire(key), **conditions)


class _ConditionFailedError(Exception):
    def __init__(self, item: Mapping[str, Any]) -> None:
        super().__init__("condition failed")
        self.item = _plain(item)


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except aws_errors.refusals() as error:
        response: Any = error.response  # type: ignore[attr-defined]
        code = response["Error"]["Code"]
        if code == "ConditionalCheckFailedException":
            raise _ConditionFailedError(response.get("Item", {})) from None
        # AWS may quote what was sent, a value among it; a traceback that shows causes would show that.
        raise StoreUnavailableError(f"DynamoDB: {code}") from None
    except aws_errors.outages() as error:
        raise StoreUnavailableError(f"DynamoDB: {type(error).__name__}") from None


@contextmanager
def _unless_refused() -> Iterator[None]:
    with suppress(_ConditionFailedError):
        yield


def _alert_state(credential: Credential) -> AlertState:
    return credential.failing_since, credential.unsent


def _key(account: str, name: str) -> Any:
    return _wire({"pk": f"credential#{account}", "sk": name})


def _directory_key(account: str) -> Any:
    return _wire({"pk": _ACCOUNTS, "sk": account})


def _claim_key(account: Account) -> Any:
    return _wire({"pk": f"claim#{account.app_id}", "sk": account.claim})


def _consumer_key(key_digest: str) -> Any:
    return _wire({"pk": _CONSUMERS, "sk": key_digest})


# The items hold text, whole numbers and one map; boto3's own serializer costs the readers an import and makes Decimals.


def _wire(values: Mapping[str, Any]) -> Any:
    return {name: _wire_value(value) for name, value in values.items() if value is not None}


def _wire_value(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"S": str(value)}
    return {"M": _wire(value)} if isinstance(value, dict) else {"N": str(value)}


def _plain(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain_value(value) for name, value in item.items()}


def _plain_value(value: Mapping[str, Any]) -> Any:
    if "N" in value:
        return int(value["N"])
    return _plain(value["M"]) if "M" in value else value["S"]


# What an item does not hold (it may be of an older release) has its default; what is not known here is left alone.


def _credential(item: dict[str, Any]) -> Credential:
    stored = {name: item[name] for name in _CREDENTIAL_FIELDS if name in item}
    return Credential(
        **stored,
        account=_account_of(item),
        name=item["sk"],
        kind=Kind(item["kind"]),
        app_id=item["app_id"],
        epoch=item["epoch"],
        due_at=item["due_at"],
        usage=_known(Usage, item.get("spent", {})),
        last_error=_failure(item["last_error"]) if "last_error" in item else None,
    )


_CREDENTIAL_FIELDS = {field.name for field in fields(Credential)} - {
    *("account", "name", "kind", "app_id", "epoch", "due_at", "usage", "last_error")
}


def _failure(stored: dict[str, Any]) -> Failure:
    failure_class = FailureClass(stored["failure_class"])
    return Failure(failure_class, stored.get("errcode"), stored["errmsg"], stored["remedy"], stored["at"])


def _known[T](kind: type[T], stored: Mapping[str, Any]) -> T:
    return kind(**{field.name: stored[field.name] for field in fields(kind) if field.name in stored})  # type: ignore[arg-type]


def _account_of(item: dict[str, Any]) -> str:
    account: str = item["pk"].partition("#")[2]
    return account


def _consumer(item: dict[str, Any]) -> Consumer:
    accounts = tuple(item["accounts"].split())
    return Consumer(item["name"], item["sk"], accounts, bool(item["may_report"]), item.get("cache_for"))


def _due(item: dict[str, Any]) -> Due:
    return Due(_account_of(item), item["sk"], Kind(item["kind"]), item["due_at"], item.get("failures", 0))


def _entry(item: dict[str, Any]) -> Entry:
    credentials = tuple(item["credentials"].split())
    return Entry(item["sk"], item["app_id"], Kind(item["kind"]), credentials, item.get("version"))
