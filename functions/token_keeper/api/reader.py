"""The reader: hands out what the table holds, with an honest promise; asks for a renewal where there is nothing usable."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from hmac import compare_digest

from token_keeper import budget, renewal
from token_keeper.api.refresh_client import Refresher
from token_keeper.errors import KeeperError, RefresherUnavailableError, StoreUnavailableError
from token_keeper.model import ACCESS_TOKEN, Credential, Failure, ReportOutcome
from token_keeper.table import Table

REMEMBERED_FOR = 15
"""Seconds a warm reader hands out a value without asking the table again."""

REMEMBERED_AT_MOST = 1000
"""Credentials in one reader's memory: about a megabyte."""

PATIENCE = 5
"""Seconds a reader waits for a renewal or a check that another instance is making."""

POLL_INTERVAL = 0.25
"""Seconds."""

LONGEST_RETRY_AFTER = 60
"""Seconds: an operator may solve the problem at any time, so no client is sent away for longer."""


class UnknownAccountError(KeeperError):
    """No account of that name is kept."""

    code = "unknown_account"


class UnknownCredentialError(KeeperError):
    """The account is kept, but has no such credential."""

    code = "unknown_credential"


class NoValidValueError(KeeperError):
    """There is no usable value right now. `cause`: why, where known; `retry_after`: seconds."""

    code = "no_valid_value"

    def __init__(self, cause: Failure | None, retry_after: int) -> None:
        super().__init__("there is no usable value right now")
        self.cause = cause
        self.retry_after = min(max(retry_after, 1), LONGEST_RETRY_AFTER)


class TooManyReportsError(KeeperError):
    """Checks or calls that reports may spend are used up. `retry_after`: seconds."""

    code = "too_many_reports"

    def __init__(self, retry_after: int) -> None:
        super().__init__("the checks and calls that reports may spend are used up")
        self.retry_after = retry_after


@dataclass(frozen=True)
class Reading:
    """A usable value. `expires_in`: whole seconds it is promised to work; `stale`: from memory, as the table is down."""

    credential: Credential
    value: str
    expires_in: int
    expires_at: int
    stale: bool = False

    @property
    def cache_for(self) -> int:
        """Seconds a client may keep the value before it asks again."""
        return min(renewal.CACHE_FOR, self.expires_in)


class Reader:
    """Reads credentials. Each instance remembers what it read for `REMEMBERED_FOR` seconds.

    `clock` gives epoch seconds (UTC), `sleep` waits seconds of that clock.
    """

    def __init__(
        self,
        table: Table,
        refresher: Refresher,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._table = table
        self._refresher = refresher
        self._clock = clock
        self._sleep = sleep
        self._remembered: dict[tuple[str, str], tuple[Credential, int]] = {}

    def read(self, account: str, name: str) -> Reading:
        """The credential's value and promise.

        Raises `UnknownAccountError`, `UnknownCredentialError`, `NoValidValueError`.
        """
        now = self._now()
        remembered = self._remembered.get((account, name))
        if remembered is not None:
            credential, read_at = remembered
            in_time = 0 <= now - read_at <= REMEMBERED_FOR and now < renewal.promised_until(credential, read_at)
            if in_time and (reading := _reading(credential, read_at, now)):
                return reading
        try:
            return self._read_through(account, name)
        except StoreUnavailableError as error:
            if remembered is not None and (reading := _stale_reading(*remembered, self._now())):
                return reading
            raise NoValidValueError(error.failure(self._now()), retry_after=1) from error

    def report(self, account: str, fingerprint: str) -> tuple[ReportOutcome, Reading]:
        """A client saw an access token refused: the current one, and whether theirs was behind, alive or replaced.

        Raises what `read` raises, and `TooManyReportsError`.
        """
        try:
            reading = self._read_through(account, ACCESS_TOKEN)
            asked_at = self._now()
            outcome = self._known_outcome(reading.credential, fingerprint, asked_at)
            if outcome is None and not self._is_under_way(reading.credential):
                if wait := budget.report_wait(reading.credential.checks_booked_until, asked_at):
                    raise TooManyReportsError(wait)
                outcome = self._verify(account, fingerprint)
                reading = self._read_through(account, ACCESS_TOKEN)
            while outcome in (None, ReportOutcome.UNVERIFIED):
                outcome = self._known_outcome(reading.credential, fingerprint, asked_at)
                is_waiting = self._is_under_way(reading.credential) and self._now() - asked_at < PATIENCE
                if outcome is not None or not is_waiting:
                    break
                self._sleep(POLL_INTERVAL)
                reading = self._read_through(account, ACCESS_TOKEN)
            if outcome is ReportOutcome.STILL_VALID and reading.credential.fingerprint != fingerprint:
                outcome = ReportOutcome.SUPERSEDED  # by a renewal meanwhile
            return outcome or ReportOutcome.UNVERIFIED, reading
        except StoreUnavailableError as error:
            raise NoValidValueError(error.failure(self._now()), retry_after=1) from error

    def account_of_token(self, access_token: str) -> str | None:
        """The account whose current access token this is, as far as this reader remembers."""
        now, asked = self._now(), access_token.encode()
        for (account, name), (credential, read_at) in list(self._remembered.items()):
            is_asked_for = name == ACCESS_TOKEN and compare_digest((credential.value or "").encode(), asked)
            if is_asked_for and 0 <= now - read_at <= REMEMBERED_FOR and now < renewal.usable_until(credential):
                return account
        return None

    def _known_outcome(self, token: Credential, fingerprint: str, asked_at: int) -> ReportOutcome | None:
        """What the item already says of a token reported at `asked_at`."""
        if token.fingerprint != fingerprint:
            return ReportOutcome.SUPERSEDED
        if renewal.is_checked(token, asked_at):
            return ReportOutcome.STILL_VALID
        return None

    def _is_under_way(self, token: Credential) -> bool:
        return self._now() < max(token.lease_until, token.check_until)

    def _verify(self, account: str, fingerprint: str) -> ReportOutcome:
        try:
            summary = self._refresher.verify(account, fingerprint)
        except RefresherUnavailableError:
            return ReportOutcome.UNVERIFIED
        for verified in summary.get("verified", ()):
            outcome = ReportOutcome(verified["outcome"])
            if outcome is ReportOutcome.LIMITED:
                raise TooManyReportsError(verified["retry_after"])
            return outcome
        return ReportOutcome.UNVERIFIED

    def _read_through(self, account: str, name: str) -> Reading:
        credential, reading = self._read_table(account, name)
        return reading or self._read_after_renewal(account, name, credential)

    def _read_table(self, account: str, name: str) -> tuple[Credential | None, Reading | None]:
        read_at = self._now()
        credential = self._table.credentials.get(account, name)
        reading = _reading(credential, read_at, self._now()) if credential else None
        if credential and reading:
            self.remember(credential, read_at)
        else:
            self._remembered.pop((account, name), None)
        return credential, reading

    def _read_after_renewal(self, account: str, name: str, credential: Credential | None) -> Reading:
        asked_at = self._now()
        if credential is None:
            self._check_kept(account, name)
        if credential is None or credential.due_at <= asked_at:
            try:
                self._refresher.renew(account, name)
            except RefresherUnavailableError as error:
                # It may have published and responded too late.
                _, reading = self._read_table(account, name)
                if reading is not None:
                    return reading
                raise NoValidValueError(error.failure(asked_at), retry_after=1) from error
        while True:
            credential, reading = self._read_table(account, name)
            if reading is not None:
                return reading
            now = self._now()
            if credential is None:
                raise NoValidValueError(None, retry_after=1)
            if now >= credential.lease_until or now - asked_at >= PATIENCE:
                raise NoValidValueError(credential.last_error, credential.due_at - now)
            self._sleep(POLL_INTERVAL)

    def _check_kept(self, account: str, name: str) -> None:
        # The directory decides: TTL expiry may have deleted the credential itself.
        entry = self._table.accounts.entry(account)
        if entry is None:
            raise UnknownAccountError(f"no account named {account} is kept")
        if name not in entry.credentials:
            raise UnknownCredentialError(f"the account {account} has no {name}")

    def remember(self, credential: Credential, read_at: int) -> None:
        """Hand out this credential, which was read (consistently) at `read_at`, as if this reader had read it itself."""
        if len(self._remembered) >= REMEMBERED_AT_MOST:
            self._remembered.pop(next(iter(self._remembered)))
        self._remembered[credential.account, credential.name] = (credential, read_at)

    def _now(self) -> int:
        return int(self._clock())


def _reading(credential: Credential, read_at: int, now: int) -> Reading | None:
    expires_in = renewal.promise(credential, read_at, now)
    if expires_in is None or credential.value is None:
        return None
    return Reading(credential, credential.value, expires_in, now + expires_in)


def _stale_reading(credential: Credential, read_at: int, now: int) -> Reading | None:
    expires_in = renewal.promised_until(credential, read_at) - now
    if expires_in < 1 or credential.value is None:
        return None
    return Reading(credential, credential.value, expires_in, now + expires_in, stale=True)
