"""What each item of the table holds, and what the model makes of it.

What an item does not hold (it may be of an older release) has its default; what is not known here is left alone.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from token_keeper.model import Consumer, Credential, DueCredential, Failure, FailureClass, Kind, Usage
from token_keeper.table.dynamodb import Item, Key

HOUSEKEEPING = 7 * 86400
"""Seconds an item outlives the last thing that is planned for it. Its `ttl` says so; no rule relies on that."""

ACCOUNTS = "accounts"
CONSUMERS = "consumers"
PROGRESS: Key = {"pk": "probe", "sk": "progress"}
SYNC: Key = {"pk": "sync#ALL", "sk": "pending"}


@dataclass(frozen=True)
class Entry:
    """An account in the directory. `version`: of the record that is in force; None while none is (wholly) enrolled.

    `applying`: of the record that was last begun to be applied.
    """

    account: str
    app_id: str
    kind: Kind
    credentials: tuple[str, ...]
    version: str | None
    applying: str | None = None

    @property
    def keys(self) -> list[tuple[str, str]]:
        """The account and name of each of its credentials."""
        return [(self.account, name) for name in self.credentials]


def credential_key(account: str, name: str) -> Key:
    """The key of a credential's item."""
    return {"pk": f"credential#{account}", "sk": name}


def entry_key(account: str) -> Key:
    """The key of an account's directory entry."""
    return {"pk": ACCOUNTS, "sk": account}


def claim_key(app_id: str, claim: str) -> Key:
    """The key of what an account claims of an appid."""
    return {"pk": f"claim#{app_id}", "sk": claim}


def to_credential(item: Item) -> Credential:
    """A credential and all that is known of it."""
    read = {
        "account": account_of(item),
        "name": item["sk"],
        "kind": Kind(item["kind"]),
        "usage": _known(Usage, item.get("spent", {})),
        "last_error": _failure(item["last_error"]) if "last_error" in item else None,
    }
    return _known(Credential, item | read)


def to_attributes(credential: Credential) -> Item:
    """What a credential's item holds, but for its key; None: the item has no such attribute."""
    attributes = asdict(credential)
    del attributes["account"], attributes["name"]
    attributes["spent"] = attributes.pop("usage")
    planned = max(credential.due_at, credential.lease_until, credential.expires_at)
    return attributes | {"ttl": planned + HOUSEKEEPING}


def to_due_credential(item: Item) -> DueCredential:
    """A credential as the index `due` lists it."""
    return DueCredential(account_of(item), item["sk"], Kind(item["kind"]), item["due_at"], item.get("failures", 0))


def to_entry(item: Item) -> Entry:
    """An account's directory entry."""
    credentials = tuple(item["credentials"].split())
    return Entry(item["sk"], item["app_id"], Kind(item["kind"]), credentials, item.get("version"), item.get("applying"))


def to_consumer(item: Item) -> Consumer:
    """A consumer by its key."""
    accounts = tuple(item["accounts"].split())
    return Consumer(item["name"], item["sk"], accounts, bool(item["may_report"]), item.get("cache_for"))


def account_of(item: Item) -> str:
    """The account whose credential this is."""
    return str(item["pk"].partition("#")[2])


def _failure(stored: Mapping[str, Any]) -> Failure:
    failure_class = FailureClass(stored["failure_class"])
    return Failure(failure_class, stored.get("errcode"), stored["errmsg"], stored["remedy"], stored["at"])


def _known[T](kind: type[T], stored: Mapping[str, Any]) -> T:
    return kind(**{field.name: stored[field.name] for field in fields(kind) if field.name in stored})  # type: ignore[arg-type]
