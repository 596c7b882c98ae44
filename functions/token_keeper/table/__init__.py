"""The table: what the keeper and the readers know of it. One item per credential, one per account in a directory, one per
claim on an appid, one per consumer, one for the probe, and one for a sync that was not finished.

| pk | sk | holds |
|---|---|---|
| `credential#<account>` | credential name | the value and all that is known of it (`model.Credential`) |
| `accounts` | account name | app id, kind, the credentials' names, the version of the record they come from |
| `claim#<appid>` | `token`, or a WeCom app | the one account that keeps this appid or app; `free_at` once it has released that |
| `probe` | `progress` | how far the probe has come (`model.Progress`) |
| `sync#ALL` | `pending` | from when on the guard is to go on with a sync that was not finished |
| `consumers` | SHA-256 of its key | its name, the accounts it may read, whether it may report (`model.Consumer`) |
| `consumer_names` | consumer's name | its keys' SHA-256; only the command line reads and writes these |

The index `due` lists every credential, and such a sync, by `due_at`; `fingerprint` and `previous_fingerprint` find a
credential by its value, or by the value before, which works for a while after a rotation. The attribute `ttl` only tidies
up: no rule relies on it.
"""

from contextlib import suppress
from typing import TYPE_CHECKING

from token_keeper.model import Consumer, DueCredential, Progress
from token_keeper.table.accounts import Accounts
from token_keeper.table.credentials import Credentials
from token_keeper.table.dynamodb import ConditionFailedError, Items
from token_keeper.table.items import CONSUMERS, HOUSEKEEPING, PROGRESS, SYNC, to_consumer, to_due_credential

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


class Table:
    """The table by what it holds. Every method, of its parts too, raises `StoreUnavailableError` where DynamoDB fails."""

    def __init__(self, dynamodb: "DynamoDBClient", name: str) -> None:
        self._items = Items(dynamodb, name)
        self.accounts = Accounts(self._items)
        self.credentials = Credentials(self._items)

    def consumer(self, key_digest: str) -> Consumer | None:
        """A consumer by its key, read consistently: a revoked key stops working at once."""
        item = self._items.get({"pk": CONSUMERS, "sk": key_digest})
        return to_consumer(item) if item else None

    def list_due(self, until: int | None) -> tuple[list[DueCredential], bool]:
        """The credentials that the index lists as due at `until` or before (all that it lists, where that is None), and
        whether it lists a sync that was not finished.
        """
        condition = "due = :due" if until is None else "due = :due AND due_at <= :until"
        items = list(self._items.query(condition, {":due": "due", ":until": until}, IndexName="due"))
        tasks = [to_due_credential(item) for item in items if item["pk"] != SYNC["pk"]]
        return tasks, len(tasks) < len(items)

    def sync_pending_from(self, due_at: int) -> None:
        """Have the guard go on with the sync from that time on."""
        self._items.put({**SYNC, "due": "due", "due_at": due_at, "ttl": due_at + HOUSEKEEPING})

    def end_sync(self, due_at: int) -> None:
        """The sync that was to go on at that time is finished; what another run has left since is not."""
        with suppress(ConditionFailedError):
            self._items.delete(SYNC, only_if={"due_at": due_at})

    def progress(self) -> Progress:
        """How far the probe has come."""
        item = self._items.get(PROGRESS) or {}
        return Progress(item.get("after"), item.get("unclear", {}))

    def put_progress(self, progress: Progress) -> None:
        """Write how far the probe has come."""
        self._items.put({**PROGRESS, "after": progress.after, "unclear": dict(progress.unclear_since)})
