"""Credentials: a value under its epoch, who may renew it, and what has become of it."""

import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace

from token_keeper.model import ACCESS_TOKEN, Credential, Kind
from token_keeper.table.dynamodb import ConditionFailedError, Item, Items
from token_keeper.table.items import account_of, credential_key, to_attributes, to_credential

type Change = Callable[[Credential], Credential | None]
"""What a write makes of a credential as it is at that moment; None: the write is not to be made."""


class Credentials:
    """The credentials of all accounts. Every method raises `StoreUnavailableError` where DynamoDB fails."""

    def __init__(self, items: Items) -> None:
        self._items = items

    # --- reading

    def get(self, account: str, name: str) -> Credential | None:
        """One credential, read consistently: a promise is made of it."""
        item = self._items.get(credential_key(account, name))
        return to_credential(item) if item else None

    def get_all(
        self, names: Iterable[tuple[str, str]], *, consistent: bool = True
    ) -> dict[tuple[str, str], Credential]:
        """Those that there are of these credentials, by account and name; not `consistent`: as they are, or were a moment ago."""
        keys = [credential_key(account, name) for account, name in names]
        found = map(to_credential, self._items.get_all(keys, consistent=consistent).values())
        return {(credential.account, credential.name): credential for credential in found}

    def account_of_token(self, index: str, token_fingerprint: str) -> str | None:
        """The account whose access token has, or had, that fingerprint by the index, which may lag."""
        found = self._items.query(f"{index} = :fingerprint", {":fingerprint": token_fingerprint}, IndexName=index)
        return next((account_of(item) for item in found if item["sk"] == ACCESS_TOKEN), None)

    # --- writing

    def change(self, seen: Credential, change: Change) -> Credential | None:
        """Write what `change` makes of a credential; returns it as it is then. None where it makes nothing, or there is none.

        `seen`: the credential as it was read. What another instance has written since is never overwritten: `change` is then
        made of that.
        """
        while (changed := change(seen)) is not None:
            changed = replace(changed, revision=seen.revision + 1)
            before, after = to_attributes(seen), to_attributes(changed)
            changes = {name: value for name, value in after.items() if value != before[name]}
            if "unsent" in changes:
                # The release before publishes nothing into an item that has only one of the two.
                changes["failing_since"] = changed.failing_since
            as_seen = {"epoch": seen.epoch, "revision": seen.revision or None}
            try:
                item = self._items.update(credential_key(seen.account, seen.name), changes, only_if=as_seen)
            except ConditionFailedError as refused:
                if not refused.item:
                    return None
                seen = to_credential(refused.item)
            else:
                return to_credential(item)
        return None

    def enrol(
        self, account: str, name: str, kind: Kind, app_id: str, *, due_at: int, before: Credential | None = None
    ) -> None:
        """Begin to keep a credential; one that is kept already stays as it is, unless it belongs to another appid.

        `before`: the credential of another appid that it takes the place of; an alert about it stays open.
        """
        # The epoch is random, so that a renewal that began before an account was dropped and added again cannot publish into it.
        new = Credential(account, name, kind, app_id, epoch=secrets.randbits(48), due_at=due_at)
        if before is not None:
            new = replace(new, failing_since=before.failing_since, unsent=before.unsent)
        # The release before takes no lease without these.
        always = ("app_id", "due_at", "lease_until", "failures", "failing_since")
        known = {attribute: value for attribute, value in to_attributes(new).items() if value or attribute in always}
        item = {**credential_key(account, name), "due": "due", **known}
        only_if: Item | None = {"pk": None}
        while only_if:
            try:
                self._items.put(item, only_if=only_if)
            except ConditionFailedError as kept:
                only_if = None if kept.item.get("app_id") == app_id else {"epoch": kept.item.get("epoch")}
            else:
                return

    def drop(self, account: str, name: str) -> Credential | None:
        """Delete a credential and its value. Returns it as it was; None where there is no such credential."""
        item = self._items.delete(credential_key(account, name))
        return to_credential(item) if item else None
