"""Which accounts are kept: the directory, and the claims on appids."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict

from token_keeper.model import Account, Credential
from token_keeper.table import items
from token_keeper.table.dynamodb import ConditionFailedError, Items
from token_keeper.table.items import HOUSEKEEPING, Entry


class Accounts:
    """The directory of accounts, and what they claim. Every method raises `StoreUnavailableError` where DynamoDB fails."""

    def __init__(self, table: Items) -> None:
        self._items = table

    def entry(self, account: str) -> Entry | None:
        """The account's directory entry."""
        item = self._items.get(items.entry_key(account))
        return items.to_entry(item) if item else None

    def entries(self) -> Iterator[Entry]:
        """The whole directory, by name."""
        return map(items.to_entry, self._items.query("pk = :pk", {":pk": items.ACCOUNTS}))

    def page(self, limit: int, after: str | None) -> tuple[list[Entry], str | None]:
        """Up to `limit` directory entries after the named account, and the name to go on after (None: that was all)."""
        condition = "pk = :pk" if after is None else "pk = :pk AND sk > :after"
        page, last = next(self._items.pages(condition, {":pk": items.ACCOUNTS, ":after": after}, Limit=limit))
        return [items.to_entry(item) for item in page], last["sk"] if last else None

    def in_force(self, account: Account, version: str | None) -> dict[tuple[str, str], Credential]:
        """The account's credentials by account and name, if that version of its record is in force, and it owns its appid.

        In one round trip: as long as a credential has this epoch, it has not been dropped, and so the claim not released.
        """
        claim = items.claim_key(account.app_id, account.claim)
        keys = [items.credential_key(account.name, name) for name in account.credentials]
        found = self._items.get_all([items.entry_key(account.name), claim, *keys])
        entry, owner = found.pop((items.ACCOUNTS, account.name), {}), found.pop((claim["pk"], claim["sk"]), {})
        if entry.get("version") != version or owner.get("account") != account.name:
            return {}
        return {(account.name, name): items.to_credential(item) for (_, name), item in found.items()}

    def put_entry(self, entry: Entry) -> None:
        """Write the account's directory entry."""
        item = asdict(entry) | {"credentials": " ".join(entry.credentials)}
        del item["account"]
        self._items.put(items.entry_key(entry.account) | item)

    def finish_entry(self, entry: Entry) -> bool:
        """Write that the record which the entry is `applying` is in force; False where another change has been begun meanwhile."""
        with suppress(ConditionFailedError):
            changes = {"version": entry.applying}
            self._items.update(items.entry_key(entry.account), changes, only_if={"applying": entry.applying})
            return True
        return False

    def drop_entry(self, account: str) -> None:
        """Delete the account's directory entry."""
        self._items.delete(items.entry_key(account))

    def claims_on(self, app_id: str) -> dict[str, str]:
        """The accounts that keep this appid or corpid, by what they claim of it."""
        found = self._items.query("pk = :pk", {":pk": items.claim_key(app_id, "")["pk"]})
        return {item["sk"]: item["account"] for item in found if "free_at" not in item}

    def acquire_claim(self, account: Account, *, now: int) -> str:
        """Claim the account's appid (or WeCom app); returns its owner, which may be another account, or one that was."""
        key = items.claim_key(account.app_id, account.claim)
        held = self._items.get(key) or {}
        owner, free_at = held.get("account"), held.get("free_at")
        if owner not in (None, account.name) and (free_at is None or now < free_at):
            return str(owner)
        try:
            self._items.put(key | {"account": account.name}, only_if={"account": owner, "free_at": free_at})
        except ConditionFailedError:
            return self.acquire_claim(account, now=now)
        return account.name

    def release_claims(self, account: str, app_id: str, *, free_at: int, but: str | None = None) -> None:
        """Release what the account has claimed of this appid, except the claim `but`. Others may claim it from `free_at` on."""
        changes = {"free_at": free_at, "ttl": free_at + HOUSEKEEPING}
        for claim, owner in self.claims_on(app_id).items():
            if owner == account and claim != but:
                with suppress(ConditionFailedError):
                    self._items.update(items.claim_key(app_id, claim), changes, only_if={"account": account})
