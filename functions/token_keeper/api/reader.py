"""The reader: hands out what the table holds, with an honest promise; asks for a renewal where there is nothing usable."""

from dataclasses import dataclass
from hmac import compare_digest
from typing import Any

from token_keeper import budget, errors, renewal
from token_keeper.api.refresh_client import Refresher
from token_keeper.clock import Now, Sleep
from token_keeper.model import ACCESS_TOKEN, Credential, ReportOutcome, digest, fingerprint
from token_keeper.table import Table
from token_keeper.table.items import Entry

REMEMBERED_FOR = 15
"""Seconds a warm reader hands out a value without asking the table again."""

REMEMBERED_AT_MOST = 1000
"""Entries of one memory; of credentials they take about a megabyte."""

PATIENCE = 5
"""Seconds a reader waits for a renewal or a check that another instance is making."""

POLL_INTERVAL = 0.25
"""Seconds."""


class Memory[Key, Value](dict[Key, tuple[Value, int]]):
    """What was read, and when (epoch seconds). Of `REMEMBERED_AT_MOST` entries the first makes room for the next."""

    def __setitem__(self, key: Key, read: tuple[Value, int]) -> None:
        if len(self) >= REMEMBERED_AT_MOST:
            self.pop(next(iter(self)), None)
        super().__setitem__(key, read)

    def recent(self, key: Key, now: int) -> Value | None:
        """What was read less than `REMEMBERED_FOR` seconds ago."""
        value, read_at = self.get(key, (None, now))
        return value if 0 <= now - read_at < REMEMBERED_FOR else None


@dataclass(frozen=True)
class Reading:
    """A usable value. `expires_in`: whole seconds it is promised to work; `stale`: from memory, as the table is down."""

    credential: Credential
    value: str
    expires_in: int
    expires_at: int
    stale: bool = False

    @property
    def log_fields(self) -> dict[str, Any]:
        """What the log says of it: never the value."""
        return {
            "account": self.credential.account,
            "credential": self.credential.name,
            "fingerprint": self.credential.fingerprint,
            "stale": self.stale,
        }


class Reader:
    """Reads credentials. Each instance remembers what it read for `REMEMBERED_FOR` seconds."""

    def __init__(self, table: Table, refresher: Refresher, now: Now, sleep: Sleep) -> None:
        self._table = table
        self._refresher = refresher
        self._now = now
        self._sleep = sleep
        self._remembered: Memory[tuple[str, str], Credential] = Memory()

    def read(self, account: str, name: str) -> Reading:
        """The credential's value and promise.

        Raises `UnknownAccountError`, `UnknownCredentialError`, `NoValidValueError`.
        """
        if reading := self._from_memory(account, name):
            return reading
        try:
            return self._read_through(account, name)
        except errors.StoreUnavailableError as error:
            if reading := self._from_memory(account, name, stale=True):
                return reading
            raise errors.NoValidValueError(error.failure(self._now())) from error

    def report(self, account: str, reported: str) -> tuple[ReportOutcome, Reading]:
        """A client saw an access token refused, named by its fingerprint: the current one, and whether theirs was behind,
        alive or replaced.

        Raises what `read` raises, and `TooManyReportsError`.
        """
        asked_at, verified = self._now(), None
        try:
            while True:
                reading = self._read_through(account, ACCESS_TOKEN)
                token, now = reading.credential, self._now()
                if token.fingerprint != reported:
                    return verified if verified is ReportOutcome.REPLACED else ReportOutcome.SUPERSEDED, reading
                if verified is ReportOutcome.STILL_VALID or renewal.is_checked(token, asked_at):
                    return ReportOutcome.STILL_VALID, reading
                is_under_way = now < max(token.lease_until, token.check_until)
                if is_under_way and now - asked_at < PATIENCE:
                    verified = ReportOutcome.UNVERIFIED  # another instance asks, so this one does not
                    self._sleep(POLL_INTERVAL)
                elif is_under_way or verified is not None:
                    return ReportOutcome.UNVERIFIED, reading
                elif wait := budget.report_wait(token.checks_booked_until, now):
                    raise errors.TooManyReportsError(wait)
                else:
                    verified = self._verify(account, reported)
        except errors.StoreUnavailableError as error:
            raise errors.NoValidValueError(error.failure(self._now())) from error

    def entry(self, account: str) -> Entry:
        """The account in the directory. Raises `UnknownAccountError`, `StoreUnavailableError`."""
        entry = self._table.accounts.entry(account)
        if entry is None:
            raise errors.UnknownAccountError(f"no account named {account} is kept")
        return entry

    def owner_of(self, access_token: str, ticket: str) -> Credential:
        """The credential of an account's access token: the current one, or the one before for as long as WeChat accepts it.

        The account's ticket of that type is read along. Raises `UnknownAccountError`, `StoreUnavailableError`.
        """
        now, name = self._now(), fingerprint(access_token)
        for key in list(self._remembered):
            credential = self._remembered.recent(key, now)
            if credential and _is_accepted(credential, access_token, now):
                return credential
        for index in ("fingerprint", "previous_fingerprint"):
            account = self._table.credentials.account_of_token(index, name)
            if account is None:
                continue
            # The table itself does not lag, as the index may.
            read_at = self._now()
            found = self._table.credentials.get_all([(account, ACCESS_TOKEN), (account, ticket)])
            for key, credential in found.items():
                self._remembered[key] = credential, read_at
            current = found.get((account, ACCESS_TOKEN))
            if current is not None and _is_accepted(current, access_token, read_at):
                return current
        raise errors.UnknownAccountError("no account that is kept has this access token")

    def _verify(self, account: str, reported: str) -> ReportOutcome:
        try:
            summary = self._refresher.verify(account, reported)
        except errors.RefresherUnavailableError:
            return ReportOutcome.UNVERIFIED
        verified: dict[str, Any] = next(iter(summary.get("verified", ())), {"outcome": ReportOutcome.UNVERIFIED})
        if verified["outcome"] == ReportOutcome.LIMITED:
            raise errors.TooManyReportsError(verified["retry_after"])
        return ReportOutcome(verified["outcome"])

    def _from_memory(self, account: str, name: str, *, stale: bool = False) -> Reading | None:
        """What was read a moment ago; `stale`: or at any time, as long as the promise made then holds."""
        now = self._now()
        credential, read_at = self._remembered.get((account, name), (None, 0))
        is_recent = 0 <= now - read_at < REMEMBERED_FOR
        if credential is None or not (is_recent or stale) or now >= renewal.promised_until(credential, read_at):
            return None
        return _reading(credential, read_at, now, stale=stale)

    def _read_through(self, account: str, name: str) -> Reading:
        """What the table holds; where that is not usable any more, after a renewal."""
        asked_at, has_asked, unavailable = self._now(), False, None
        while True:
            read_at, credential = self._now(), self._table.credentials.get(account, name)
            if credential is None:
                self._remembered.pop((account, name), None)
            else:
                self._remembered[account, name] = credential, read_at
                if reading := _reading(credential, read_at, self._now()):
                    return reading
            if not has_asked and (credential is None or credential.due_at <= asked_at):
                # The directory decides: TTL expiry may have deleted the credential itself.
                if credential is None and name not in self.entry(account).credentials:
                    raise errors.UnknownCredentialError(f"the account {account} has no {name}")
                has_asked = True
                try:
                    self._refresher.renew(account, name)
                except errors.RefresherUnavailableError as error:
                    unavailable = error.failure(asked_at)  # but it may have published, and responded too late
            elif unavailable or credential is None:
                raise errors.NoValidValueError(unavailable)
            elif (now := self._now()) >= credential.lease_until or now - asked_at >= PATIENCE:
                raise errors.NoValidValueError(credential.last_error, credential.due_at - now)
            else:
                self._sleep(POLL_INTERVAL)


def _reading(credential: Credential, read_at: int, now: int, *, stale: bool = False) -> Reading | None:
    expires_in = renewal.promise(credential, read_at, now)
    if expires_in is None or credential.value is None:
        return None
    return Reading(credential, credential.value, expires_in, now + expires_in, stale)


def _is_accepted(credential: Credential, access_token: str, now: int) -> bool:
    """Whether WeChat accepts this access token as the credential's account's."""
    if credential.name != ACCESS_TOKEN:
        return False
    if compare_digest((credential.value or "").encode(), access_token.encode()):
        return now < renewal.usable_until(credential)
    is_previous = compare_digest(credential.previous_digest or "", digest(access_token))
    return is_previous and now < credential.previous_until
