"""The enrolment: which accounts are kept, and what a created, changed or deleted record makes due. It never renews."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from token_keeper import errors, renewal
from token_keeper.clock import Now, Sleep
from token_keeper.model import ACCESS_TOKEN, Account, Credential, Due, Failure, FailureClass, Kind
from token_keeper.refresh import alerts, lifecycle, outcome
from token_keeper.refresh.checker import Checker
from token_keeper.refresh.events import Events
from token_keeper.refresh.outcome import Outcome
from token_keeper.refresh.parameter_store import AccountRecord, written_at
from token_keeper.refresh.wechat import WeChat, WeChatError
from token_keeper.table import Table
from token_keeper.table.items import Entry

MAX_WAIT = 15
"""Seconds for which a change waits for a renewal that is under way; one that takes longer has probably died."""

CLAIM_RETRY = 60
"""Seconds until a record is tried again whose appid another account keeps."""


class Enrolment:
    """Brings the table in line with accounts' records."""

    def __init__(self, table: Table, wechat: WeChat, checker: Checker, events: Events, now: Now, sleep: Sleep) -> None:
        self._table = table
        self._wechat = wechat
        self._checker = checker
        self._events = events
        self._now = now
        self._sleep = sleep

    def permit(self, due: Sequence[Due], record: AccountRecord) -> list[Credential | Outcome] | None:
        """What is due of an account, as read, if it may fetch: its record is in force, and it owns its appid. None otherwise.

        Where the record cannot be read, the renewer is to report that. Raises `StoreUnavailableError`.
        """
        kept: dict[tuple[str, str], Credential] = {}
        if isinstance(record.content, errors.ParametersUnavailableError):
            kept = self._table.credentials.get_all((each.account, each.name) for each in due)
        elif isinstance(record.content, Account):
            kept = self._table.accounts.in_force(record.content, record.version)
        if any((each.account, each.name) not in kept for each in due):
            return None
        return [self._if_due(each, kept[each.account, each.name]) for each in due]

    def apply(self, name: str, record: AccountRecord) -> list[Credential | Outcome]:
        """Bring the table in line with the account's record: what that makes due, and what is wrong with it.

        Raises `ParametersUnavailableError` where the record could not be read, `RecordChangedError`, `WeChatError` and
        `StoreUnavailableError` where the change could not be applied wholly: it is then to be applied again. After
        `RecordSupersededError` at once, because health may show what this record deserved, and not the newest.
        """
        try:
            if record.content is None:
                return self._drop(name)
            if isinstance(record.content, errors.KeeperError):
                raise record.content
            return self._enrol(record.content, record.version)
        except errors.InvalidRecordError as error:
            return [self.mark_invalid(name, error)]

    def mark_invalid(self, account: str, error: errors.KeeperError) -> Outcome:
        """Leave an account whose record cannot be used as it is, say so in its health, and have it tried again later."""
        failure = error.failure(self._now())
        is_taken = isinstance(error, errors.AppIdTakenError)
        retry_at = failure.at + (CLAIM_RETRY if is_taken else renewal.retry_after(failure, 1))
        entry = self._table.accounts.entry(account) or Entry(account, "", Kind.TOKEN, (ACCESS_TOKEN,), None)
        self._table.accounts.put_entry(replace(entry, version=None, applying=None))
        self._table.credentials.enrol(account, ACCESS_TOKEN, entry.kind, entry.app_id, due_at=retry_at)
        self._show_record_error(account, failure, retry_at, alert_after=CLAIM_RETRY if is_taken else 0)
        for credential in self._table.credentials.get_all(entry.keys).values():
            if credential.due_at <= failure.at:
                self._table.credentials.change(credential, lifecycle.reschedule(credential, retry_at))
        return outcome.failed(account, ACCESS_TOKEN, failure, retry_at)

    def _if_due(self, listed: Due, credential: Credential) -> Credential | Outcome:
        if isinstance(listed, Credential):
            return listed
        if renewal.is_still_due(listed, credential, self._now()):
            return credential
        return outcome.skipped(listed.account, listed.name, "not due any more")

    def _enrol(self, account: Account, version: str | None) -> list[Credential | Outcome]:
        old = self._table.accounts.entry(account.name)
        if old is not None and written_at(version) < written_at(old.version):
            raise errors.RecordChangedError("an older version of the record was read than the one that is in force")
        stays = old is not None and old.app_id == account.app_id
        in_force = version if old is not None and old.version == version else None
        entry = Entry(account.name, account.app_id, account.kind, tuple(account.credentials), in_force, version)
        # The order makes a crash at any point repairable: (1) delete the old credentials, (2) then release the old claim,
        # because until then another account must not fetch, (3) write the entry, without a version unless this one is in
        # force, (4) claim the appid, (5) create the new credentials, (6) write the version. An entry without a version is
        # applied again.
        dropped: dict[str, Credential] = {}
        if old is not None:
            gone = set(old.credentials) - (account.credentials.keys() if stays else set())
            dropped = self._give_up(old, gone, but=account.claim if stays else None)
        self._table.accounts.put_entry(entry)
        now = self._now()
        owner = self._table.accounts.acquire_claim(account, now=now)
        is_owner = owner == account.name
        for name, kind in account.credentials.items():
            if is_owner or name == ACCESS_TOKEN:  # which shows what is wrong
                # An alert about it stays open where another appid takes its place, until its first renewal.
                before = dropped.pop(name, None)
                self._table.credentials.enrol(account.name, name, kind, account.app_id, due_at=now, before=before)
        self._report_removed(dropped.values())
        if not is_owner:
            raise errors.AppIdTakenError(f"{account.app_id} is already kept, as account {owner}")
        found = [self._schedule(account, name, kind) for name, kind in account.credentials.items()]
        if not self._table.accounts.finish_entry(entry):
            if self._table.accounts.entry(account.name) is None:
                # The account was deleted meanwhile. What has been written since is found by its entry, and deleted, too.
                self._table.accounts.put_entry(replace(entry, version=None))
            raise errors.RecordSupersededError("the account's record has changed once more; it is applied again")
        return [each for each in found if each]

    def _schedule(self, account: Account, name: str, kind: Kind) -> Credential | Outcome | None:
        """What a created or changed record makes due. A live value is never rotated early for it."""
        gives_up_at = self._now() + MAX_WAIT
        while (credential := self._table.credentials.get(account.name, name)) is not None:
            now = self._now()
            if now < credential.lease_until:
                if now >= gives_up_at:
                    raise errors.RecordChangedError("another renewal is in progress; the change is applied after it")
                self._sleep(1)  # it may use the old record: its outcome decides
            elif credential.kind is not kind:
                self._table.credentials.change(credential, lifecycle.change_kind(credential, kind, now))
            elif credential.due_at <= now:
                return credential
            elif not credential.failures and now < renewal.usable_until(credential):
                return self._check_change(account, credential)
            else:
                self._table.credentials.change(credential, lifecycle.reschedule(credential, now))
        return None

    def _check_change(self, account: Account, token: Credential) -> Credential | Outcome | None:
        """Have WeChat check what a changed record says of an account whose token lives: the token, and the secret."""
        if account.kind is Kind.CORP_TOKEN:
            # WeCom has no call that would only check a secret; for the right one it repeats what lives. With the secret of
            # another app the tickets are others, too.
            return self._table.credentials.change(token, lifecycle.reschedule(token, self._now())) or token
        if token.name != ACCESS_TOKEN:
            return None
        if not renewal.is_too_young_to_check(token, self._now()) and self._checker.accepts(token) is False:
            refused = self._table.credentials.change(token, lifecycle.refuse(token, self._now(), foreign=False))
            if refused is not None:
                return refused
        failure = None
        try:
            self._wechat.fetch_token(account, isolated=True)
        except WeChatError as error:
            if error.failure_class is FailureClass.TRANSIENT:
                raise  # the record is not applied yet, so it is checked again
            if error.failure_class is FailureClass.QUOTA:
                return None  # WeChat has not looked at the secret
            failure = error.failure(self._now())
        self._show_record_error(account.name, failure, token.due_at)
        return None if failure is None else outcome.failed(account.name, token.name, failure, token.due_at)

    def _show_record_error(self, account: str, failure: Failure | None, retry_at: int, *, alert_after: int = 0) -> None:
        """Say in the token's health what is wrong with its account's record (None: nothing any more), and alert others.

        `alert_after`: seconds for which health must have shown an error already. A renamed account is two for a moment.
        """
        step = lifecycle.clear_record_error(self._now())
        if failure is not None:
            step = lifecycle.note_record_error(failure, next_attempt_at=retry_at, alert_after=alert_after)
        token = self._table.credentials.get(account, ACCESS_TOKEN)
        if shown := token and self._table.credentials.change(token, step):
            self._events.add(shown)

    def _drop(self, name: str) -> list[Credential | Outcome]:
        if entry := self._table.accounts.entry(name):
            self._report_removed(self._give_up(entry, entry.credentials).values())
            self._table.accounts.drop_entry(name)
        return []

    def _give_up(self, entry: Entry, credentials: Iterable[str], *, but: str | None = None) -> dict[str, Credential]:
        """Delete credentials of an account, then release what it claims of its appid, except the claim `but`.

        Returns the credentials as they were, by name.
        """
        now = self._now()
        dropped = {name: self._table.credentials.drop(entry.account, name) for name in credentials}
        # A renewal under its lease may still mint a token, and end another owner's. What was deleted before may have had one.
        ends = [now + renewal.LEASE if each is None else each.lease_until for each in dropped.values()]
        free_at = max([now, *ends])
        self._table.accounts.release_claims(entry.account, entry.app_id, free_at=free_at, but=but)
        return {name: credential for name, credential in dropped.items() if credential is not None}

    def _report_removed(self, dropped: Iterable[Credential]) -> None:
        for credential in dropped:
            self._events.add(alerts.removed(credential, self._now()))
