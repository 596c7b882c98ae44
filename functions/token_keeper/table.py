"""Adapter: the table. One item per credential, one per account in a directory, one per claim on an appid, one per
consumer.

| pk | sk | holds |
|---|---|---|
| `credential#<account>` | credential name | the value and all that is known of it (`model.Credential`) |
| `accounts` | account name | app id, kind, the credentials' names, the version of the record they come from |
| `claim#<appid>` | endpoint | the one account that keeps this appid with this endpoint |
| `dropped#<appid>` | ticket type | that such a ticket of this appid was forgotten, which WeChat may still repeat |
| `consumers` | SHA-256 of its key | its name, the accounts it may read, whether it may report (`model.Consumer`) |

The index `due` lists every credential by `due_at`; `fingerprint` and `previous_fingerprint` find a credential by its
value, or by the value before, which works for a while after a rotation. The attribute `ttl` is housekeeping: whatever nobody has touched for
`HOUSEKEEPING` seconds disappears. No rule relies on it.
"""

import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from token_keeper import aws
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
    Spent,
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
_CONSUMERS = "consumers"


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

    def take_lease(self, due: Due, *, now: int, until: int, to_check: bool = False) -> Credential | None:
        """Take the right to renew; None if somebody holds it, or it is not any more as it was seen.

        Returns the credential as it is under the lease: with the epoch that publishing requires, due again when the
        lease ends, and at risk from now on (unless it already was). A lease `to_check` the value does neither, and
        hinders no renewal.

            |  nobody renews  |        leased        |  the lease was never given back
            |-----------------|----------------------|------------------------------------> (time)
                            now = at_risk_since    until = due_at: the next guard takes it
        """
        nobody_renews = "lease_until <= :now AND check_until <= :now" if to_check else "lease_until <= :now"
        values = {":now": now, ":until": until, ":one": 1} | ({} if to_check else {":ttl": until + HOUSEKEEPING})
        if due.epoch is None:
            # The main tick looks ahead: what it saw must still be so, and must not be a failure's next attempt.
            as_it_was_seen = "(due_at <= :now OR (due_at = :seen AND failures = :zero))"
            values |= {":seen": due.due_at, ":zero": 0}
        else:
            as_it_was_seen = "epoch = :seen"
            values[":seen"] = due.epoch
        item = self._update(
            _key(due.account, due.credential),
            ("SET check_until = :until" if to_check else _BEGIN) + " ADD epoch :one",
            f"{nobody_renews} AND {as_it_was_seen}",
            values,
        )
        return _credential(item) if item else None

    def begin_renewal(self, checked: Credential, *, now: int, until: int) -> Credential | None:
        """Go on from a check to a renewal, under its lease; None where a later lease was taken meanwhile."""
        item = self._update_leased(checked, _BEGIN, {":now": now, ":until": until, ":ttl": until + HOUSEKEEPING})
        return _credential(item) if item else None

    def publish(
        self,
        leased: Credential,
        grant: Grant,
        spent: Spent,
        *,
        expires_at: int,
        due_at: int,
        previous_until: int = 0,
        foreign: bool = False,
    ) -> Credential | None:
        """Store a granted value under the lease; None where a later lease was taken (or the account dropped) meanwhile.

        `previous_until`: how long the value that it replaces surely works. `foreign`: that had died before its time, and
        not by us.
        """
        values: dict[str, Any] = {
            ":value": grant.value,
            ":fingerprint": fingerprint(grant.value),
            ":fetched_at": grant.asked_at,
            ":expires_at": expires_at,
            ":due_at": due_at,
            ":zero": 0,
            ":spent": asdict(spent),
            ":ttl": expires_at + HOUSEKEEPING,
        }
        update = (
            "SET #value = :value, fingerprint = :fingerprint, fetched_at = :fetched_at, expires_at = :expires_at, "
            "due_at = :due_at, lease_until = :zero, check_until = :zero, failures = :zero, spent = :spent, #ttl = :ttl"
        )
        if grant.value != leased.value and leased.fingerprint is not None:
            update += ", previous_fingerprint = :previous, previous_digest = :digest, previous_until = :previous_until"
            values |= {":previous": leased.fingerprint, ":digest": digest(leased.value or "")}
            values |= {":previous_until": previous_until}
        if foreign:
            update += ", foreign_rotations = :foreign_rotations, foreign_rotation_at = :foreign_rotation_at"
            values[":foreign_rotations"] = leased.foreign_rotations + 1
            values[":foreign_rotation_at"] = grant.asked_at
        item = self._update_leased(leased, f"{update} REMOVE at_risk_since, last_error", values)
        return _credential(item) if item else None

    def record_failure(
        self, leased: Credential, failure: Failure, spent: Spent, *, due_at: int, at_risk: bool, dead: bool = False
    ) -> bool:
        """Give the lease back after a failure; the value stays. False where a later lease was taken meanwhile.

        `at_risk`: whether a renewal without an answer, this or an earlier one, may have minted a successor.
        `dead`: nobody is to get the value any more: WeChat has refused it, or a forced refresh without an answer may have
        ended it.
        """
        values: dict[str, Any] = {
            ":failures": leased.failures + 1,
            ":last_error": asdict(failure),
            ":due_at": due_at,
            ":zero": 0,
            ":spent": asdict(spent),
            ":ttl": max(due_at, leased.expires_at) + HOUSEKEEPING,
        }
        update = (
            "SET failures = :failures, last_error = :last_error, due_at = :due_at, lease_until = :zero, check_until = :zero, "
            "spent = :spent, #ttl = :ttl"
        )
        if dead:
            update += ", expires_at = :dead_at"
            values[":dead_at"] = min(failure.at, leased.expires_at)
        return self._update_leased(leased, update if at_risk else f"{update} REMOVE at_risk_since", values) is not None

    def release(self, checked: Credential, spent: Spent, *, checked_at: int | None) -> None:
        """Give the lease back after a check. `checked_at`: when the value was found alive."""
        values: dict[str, Any] = {":zero": 0, ":spent": asdict(spent)}
        update = "SET check_until = :zero, spent = :spent"
        if checked_at is not None:
            update += ", checked_at = :checked_at"
            values[":checked_at"] = checked_at
        self._update_leased(checked, update, values)

    def distrust(self, overtaken: Credential, *, since: int, now: int, ended: tuple[str, int] | None = None) -> None:
        """Have what was published instead, or is about to be, renewed at once: its successor may have been minted `since`.

        `ended`: a fingerprint and a moment. Nobody is to get another value than this one that was fetched by then: a forced
        refresh has left it no overlap.
        """
        key = _key(overtaken.account, overtaken.name)
        update = "SET at_risk_since = if_not_exists(at_risk_since, :since), due_at = :now, lease_until = :zero"
        # With its other endpoint, the account has tokens that this one does not touch.
        condition = "app_id = :app_id AND kind = :kind"
        values: dict[str, Any] = {":since": since, ":now": now, ":zero": 0, ":one": 1}
        values |= {":app_id": overtaken.app_id, ":kind": overtaken.kind}
        if ended is not None:
            older = f"{condition} AND fingerprint <> :fingerprint AND fetched_at <= :until"
            bound = {":fingerprint": ended[0], ":until": ended[1]}
            if self._update(key, f"{update}, expires_at = :now ADD epoch :one", older, values | bound):
                return
        self._update(key, f"{update} ADD epoch :one", condition, values)

    # --- enrolling and dropping accounts

    def claim(self, account: Account) -> str:
        """Claim the account's appid and endpoint; returns the account that holds the claim, which may be another."""
        item = _wire({"pk": f"claim#{account.app_id}", "sk": account.claim, "account": account.name})
        try:
            with _translated_errors():
                self._dynamodb.put_item(
                    TableName=self._name,
                    Item=item,
                    ConditionExpression="attribute_not_exists(pk) OR account = :account",
                    ExpressionAttributeValues=_wire({":account": account.name}),
                    ReturnValuesOnConditionCheckFailure="ALL_OLD",
                )
        except _ConditionFailedError as refused:
            return str(refused.item["account"])
        return account.name

    def holder(self, account: Account) -> str | None:
        """The account that has claimed this account's appid and endpoint."""
        key = _wire({"pk": f"claim#{account.app_id}", "sk": account.claim})
        with _translated_errors():
            answer = self._dynamodb.get_item(TableName=self._name, Key=key, ConsistentRead=True)
        return _plain(answer["Item"])["account"] if "Item" in answer else None

    def release_claims(self, account: str, app_id: str, *, but: str | None = None) -> None:
        """Release what the account has claimed of this appid, but for one endpoint."""
        for claim, holder in self.claims(app_id).items():
            if holder == account and claim != but:
                self._delete({"pk": f"claim#{app_id}", "sk": claim}, "account = :account", {":account": account})

    def tickets_seen(self, account: str, app_id: str, tickets: Iterable[str], now: int) -> set[str]:
        """Tickets of the appid that may have been seen before: all, where another account keeps it; those just dropped."""
        if set(self.claims(app_id).values()) - {account}:
            return set(tickets)
        return {item["sk"] for item in self._partition(f"dropped#{app_id}") if now < item["gone_at"]}

    def enrol(
        self, account: str, name: str, kind: Kind, app_id: str, *, due_at: int, age_unknown: bool = False
    ) -> None:
        """Begin to keep a credential; one that is kept already stays as it is, unless it belongs to another appid."""
        item = {
            **{"pk": f"credential#{account}", "sk": name, "kind": kind, "app_id": app_id, "due": "due"},
            **{"due_at": due_at, "lease_until": 0, "check_until": 0, "failures": 0, "ttl": due_at + HOUSEKEEPING},
            # Random, so that a renewal that began before an account was dropped and added again cannot publish into it.
            "epoch": secrets.randbits(48),
            **({"age_unknown": 1} if age_unknown else {}),
        }
        with _unless_refused(), _translated_errors():
            self._dynamodb.put_item(
                TableName=self._name,
                Item=_wire(item),
                ConditionExpression="attribute_not_exists(pk) OR app_id <> :app_id",
                ExpressionAttributeValues=_wire({":app_id": app_id}),
            )

    def make_due(self, seen: Credential, kind: Kind, *, now: int) -> None:
        """Have the credential renewed now, by the rules of `kind`, unless it has changed since it was seen."""
        values = {":now": now, ":kind": kind, ":seen_due_at": seen.due_at}
        update, condition = "SET due_at = :now, kind = :kind", "due_at = :seen_due_at"
        self._update(_key(seen.account, seen.name), update, condition, values)

    def note(self, account: str, name: str, failure: Failure | None) -> None:
        """Note in a credential's health what is wrong with its record; None: nothing any more, unless a renewal failed."""
        key = _key(account, name)
        if failure is None:
            self._update(key, "REMOVE last_error", "failures = :zero", {":zero": 0})
        else:
            values = {":last_error": asdict(failure)}
            self._update(key, "SET last_error = :last_error", "attribute_exists(pk)", values)

    def put_entry(self, entry: Entry) -> None:
        """Write the account's directory entry."""
        item = {"pk": "accounts", "sk": entry.account, "app_id": entry.app_id, "kind": entry.kind}
        item |= {"credentials": " ".join(entry.credentials)} | ({"version": entry.version} if entry.version else {})
        with _translated_errors():
            self._dynamodb.put_item(TableName=self._name, Item=_wire(item))

    def drop_credential(self, account: str, name: str, app_id: str, *, gone_at: int) -> None:
        """Forget a credential and its value; not yet, that WeChat may repeat it until `gone_at` if it is a ticket."""
        if name != ACCESS_TOKEN:
            item = {"pk": f"dropped#{app_id}", "sk": name, "gone_at": gone_at}
            with _translated_errors():
                self._dynamodb.put_item(TableName=self._name, Item=_wire(item | {"ttl": gone_at + HOUSEKEEPING}))
        self._delete({"pk": f"credential#{account}", "sk": name})

    def drop_entry(self, account: str) -> None:
        """Forget the account's directory entry."""
        self._delete({"pk": "accounts", "sk": account})

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

    def _items(self, keys: list[Any]) -> list[dict[str, Any]]:
        items, rounds = [], len(keys) // _BATCH_GET_LIMIT + _BATCH_GET_ROUNDS
        while keys:
            if not rounds:
                raise StoreUnavailableError("DynamoDB: it does not get to all that was asked for")
            rounds -= 1
            with _translated_errors():
                answer: Any = self._dynamodb.batch_get_item(
                    RequestItems={self._name: {"Keys": keys[:_BATCH_GET_LIMIT], "ConsistentRead": True}}
                )
            keys = answer["UnprocessedKeys"].get(self._name, {"Keys": []})["Keys"] + keys[_BATCH_GET_LIMIT:]
            items += [_plain(item) for item in answer["Responses"].get(self._name, [])]
        return items

    def _update_leased(self, leased: Credential, update: str, values: Mapping[str, Any]) -> dict[str, Any] | None:
        key = _key(leased.account, leased.name)
        return self._update(key, update, "epoch = :epoch", {**values, ":epoch": leased.epoch})

    def _update(self, key: Any, update: str, condition: str, values: Mapping[str, Any]) -> dict[str, Any] | None:
        names = {f"#{reserved}": reserved for reserved in ("ttl", "value") if f"#{reserved}" in update + condition}
        try:
            with _translated_errors():
                answer = self._dynamodb.update_item(
                    TableName=self._name,
                    Key=key,
                    UpdateExpression=update,
                    ConditionExpression=condition,
                    ExpressionAttributeValues=_wire(values),
                    ReturnValues="ALL_NEW",
                    **({"ExpressionAttributeNames": names} if names else {}),  # type: ignore[arg-type]
                )
        except _ConditionFailedError:
            return None
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
    except aws.refusals() as error:
        response: Any = error.response  # type: ignore[attr-defined]
        code = response["Error"]["Code"]
        if code == "ConditionalCheckFailedException":
            raise _ConditionFailedError(response.get("Item", {})) from None
        # AWS may quote what was sent, a value among it; a traceback that shows causes would show that.
        raise StoreUnavailableError(f"DynamoDB: {code}") from None
    except aws.outages() as error:
        raise StoreUnavailableError(f"DynamoDB: {type(error).__name__}") from None


@contextmanager
def _unless_refused() -> Iterator[None]:
    with suppress(_ConditionFailedError):
        yield


def _key(account: str, name: str) -> Any:
    return _wire({"pk": f"credential#{account}", "sk": name})


def _directory_key(account: str) -> Any:
    return _wire({"pk": "accounts", "sk": account})


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


def _credential(item: dict[str, Any]) -> Credential:
    error = item.get("last_error")
    return Credential(
        account=_account_of(item),
        name=item["sk"],
        kind=Kind(item["kind"]),
        app_id=item["app_id"],
        epoch=item["epoch"],
        due_at=item["due_at"],
        age_unknown="age_unknown" in item,
        lease_until=item["lease_until"],
        value=item.get("value"),
        fingerprint=item.get("fingerprint"),
        previous_fingerprint=item.get("previous_fingerprint"),
        previous_digest=item.get("previous_digest"),
        previous_until=item.get("previous_until", 0),
        fetched_at=item.get("fetched_at", 0),
        expires_at=item.get("expires_at", 0),
        at_risk_since=item.get("at_risk_since"),
        failures=item["failures"],
        checked_at=item.get("checked_at", 0),
        check_until=item["check_until"],
        foreign_rotations=item.get("foreign_rotations", 0),
        foreign_rotation_at=item.get("foreign_rotation_at", 0),
        spent=Spent(**item.get("spent", {})),
        last_error=None
        if error is None
        else Failure(
            failure_class=FailureClass(error["failure_class"]),
            errcode=error.get("errcode"),
            errmsg=error["errmsg"],
            remedy=error["remedy"],
            at=error["at"],
        ),
    )


def _account_of(item: dict[str, Any]) -> str:
    account: str = item["pk"].partition("#")[2]
    return account


def _consumer(item: dict[str, Any]) -> Consumer:
    accounts = tuple(item["accounts"].split())
    return Consumer(item["name"], item["sk"], accounts, bool(item["may_report"]), item.get("cache_for"))


def _due(item: dict[str, Any]) -> Due:
    return Due(_account_of(item), item["sk"], Kind(item["kind"]), item["due_at"], item["failures"])


def _entry(item: dict[str, Any]) -> Entry:
    credentials = tuple(item["credentials"].split())
    return Entry(item["sk"], item["app_id"], Kind(item["kind"]), credentials, item.get("version"))
