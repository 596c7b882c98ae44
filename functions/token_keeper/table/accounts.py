"""Which accounts are kept: the directory, and the claims on appids."""

from collections.abc import Iterator
from contextlib import suppress

from token_keeper.model import Account, Credential
from token_keeper.table.dynamodb import ConditionFailedError, Items
from token_keeper.table.items import (
    ACCOUNTS,
    HOUSEKEEPING,
    Entry,
    claim_key,
    credential_key,
    entry_key,
    to_credential,
    to_entry,
)


class Accounts:
    """The directory of accounts, and what they claim. Every method raises `StoreUnavailableError` where DynamoDB fails."""

    def __init__(self, items: Items) -> None:
        self._items = items

    def entry(self, account: str) -> Entry | None:
        """The account's directory entry."""
        item = self._items.get(entry_key(account))
        return to_entry(item) if item else None

    def entries(self) -> Iterator[Entry]:
        """The whole directory, by name."""
        page, after = self.page(None, None)
        yield from page
        while after is not None:
            page, after = self.page(None, after)
            yield from page

    def page(self, limit: int | None, after: str | None) -> tuple[list[Entry], str | None]:
        """Up to `limit` directory entries after the named account, and the name to go on after (None: that was all)."""
        items, last = self._items.partition(ACCOUNTS, limit=limit, after=after)
        return [to_entry(item) for item in items], last

    def in_force(self, account: Account, name: str, version: str | None) -> Credential | None:
        """The account's credential, if that version of its record is in force, and the account owns its appid.

        In one round trip: as long as the credential has this epoch, it has not been dropped, and so the claim not released.
        """
        keys = [
            entry_key(account.name),
            claim_key(account.app_id, account.claim),
            credential_key(account.name, name),
        ]
        found = {item["pk"].partition("#")[0]: item for item in self._items.get_all(keys)}
        if not {ACCOUNTS, "claim", "credential"} <= found.keys():
            return None
        if to_entry(found[ACCOUNTS]).version != version or found["claim"]["account"] != account.name:
            return None
        return to_credential(found["credential"])

    def put_entry(self, entry: Entry, *, applying: str | None = None) -> None:
        """Write the account's directory entry. `applying`: the version of the record that is being applied."""
        item = entry_key(entry.account) | {"app_id": entry.app_id, "kind": entry.kind}
        self._items.put(
            {**item, "credentials": " ".join(entry.credentials), "version": entry.version, "applying": applying}
        )

    def finish_entry(self, account: str, *, version: str | None) -> bool:
        """Write which version of the record is in force; False where another change has been begun meanwhile."""
        with suppress(ConditionFailedError):
            self._items.update(entry_key(account), {"version": version}, only_if={"applying": version})
            return True
        return False

    def drop_entry(self, account: str) -> None:
        """Delete the account's directory entry."""
        self._items.delete(entry_key(account))

    def claims_on(self, app_id: str) -> dict[str, str]:
        """The accounts that keep this appid or corpid, by what they claim of it."""
        items, _ = self._items.partition(claim_key(app_id, "")["pk"])
        return {item["sk"]: item["account"] for item in items}

    def acquire_claim(self, account: Account, *, now: int) -> str:
        """Claim the account's appid (or WeCom app); returns its owner, which may be another account, or one that was."""
        key = claim_key(account.app_id, account.claim)
        held = self._items.get(key) or {}
        is_taken = "account" in held and held["account"] != account.name
        if is_taken and ("free_at" not in held or now < held["free_at"]):
            return str(held["account"])
        as_seen = {"account": held.get("account"), "free_at": held.get("free_at")}
        try:
            self._items.put(key | {"account": account.name}, only_if=as_seen)
        except ConditionFailedError:
            return self.acquire_claim(account, now=now)
        return account.name

    def release_claims(self, account: str, app_id: str, *, now: int, free_at: int = 0, but: str | None = None) -> None:
        """Release what the account has claimed of this appid, except the claim `but`. Others may claim it from `free_at` on."""
        owned = {"account": account}
        for claim, owner in self.claims_on(app_id).items():
            if owner != account or claim == but:
                continue
            with suppress(ConditionFailedError):
                if free_at <= now:
                    self._items.delete(claim_key(app_id, claim), only_if=owned)
                else:
                    changes = {"free_at": free_at, "ttl": free_at + HOUSEKEEPING}
                    self._items.update(claim_key(app_id, claim), changes, only_if=owned)
