"""The keeper: what each event makes RefreshFunction do. Which accounts are kept is the enrolment's, whether a token still
works the checker's, and one renewal the renewer's matter."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, takewhile

from token_keeper import budget, renewal
from token_keeper.errors import KeeperError, ParametersUnavailableError, RecordSupersededError
from token_keeper.model import (
    ACCESS_TOKEN,
    Credential,
    DueCredential,
    Failed,
    Outcome,
    Probed,
    Renewed,
    ReportOutcome,
    Skipped,
    Verified,
)
from token_keeper.refresh.checker import Checker
from token_keeper.refresh.enrolment import Enrolment
from token_keeper.refresh.events import Events
from token_keeper.refresh.parameter_store import AccountRecord, ParameterStore
from token_keeper.refresh.renewer import Renewer, not_stored
from token_keeper.refresh.wechat import WeChat
from token_keeper.table import Table

WORKERS = 16
"""Renewals at a time. They wait for WeChat nearly all their time; a broken credential occupies one for half a minute or so."""

MIN_TIME = 45
"""Seconds of run time that must be left to begin with a credential: three calls to WeChat of 11 s each, and what is read and
written around them."""

SYNC_TIME = 120
"""Seconds after which another run goes on with a sync that has not ended: the function's timeout."""

LEFT = "it was not reached in time; the next run continues"

READ_AGAIN_AFTER = 2
READ_AGAIN = 3
"""Seconds, and times: an event may arrive before Parameter Store shows the change."""

type Found = list[Credential | Failed] | KeeperError | None


class Keeper:
    """Keeps every credential of every account.

    `clock` gives epoch seconds (UTC), `sleep` waits seconds of that clock. `time_left`: seconds this invocation may take.
    """

    def __init__(
        self,
        table: Table,
        accounts: ParameterStore,
        wechat: WeChat,
        events: Events,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._table = table
        self._accounts = accounts
        self._clock = clock
        self._sleep = sleep
        self._checker = Checker(table, wechat, events, clock)
        self._enrolment = Enrolment(table, wechat, events, clock, sleep)
        self._renewer = Renewer(table, wechat, self._checker, events, clock)

    def tick(self, time_left: Callable[[], float]) -> Iterator[Outcome]:
        """The main schedule: renew what is due or about to be, then bring the table in line with Parameter Store.

        What there is no time left for is the next guard's.

        Raises `ParametersUnavailableError` or `StoreUnavailableError`, after the renewals.
        """
        now = self._now()
        listed, is_sync_pending = self._table.list_due(None)
        yield from self._renew_all([task for task in listed if renewal.due_for_tick(task, now)], time_left)
        yield from self._sync_changed(time_left, is_pending=is_sync_pending)

    def guard(self, time_left: Callable[[], float]) -> Iterator[Outcome]:
        """The guard schedule: renew what is due, then go on with a sync that was not finished.

        Raises `StoreUnavailableError`; with such a sync `ParametersUnavailableError`, too.
        """
        tasks, is_sync_pending = self._table.list_due(self._now())
        yield from self._renew_all(tasks, time_left)
        if is_sync_pending:
            yield from self._sync_changed(time_left, is_pending=True)

    def probe(self, time_left: Callable[[], float]) -> Iterator[Outcome | Probed]:
        """The probe schedule: ask WeChat whether each live access token still works, and replace what is dead.

        Raises `StoreUnavailableError`.
        """
        for found in self._checker.probe(time_left):
            if isinstance(found, Probed):
                yield found
            else:
                yield from self._renew_all(found, time_left)

    def account_changed(self, account: str, time_left: Callable[[], float], *, exists: bool = False) -> list[Outcome]:
        """An account's parameter was created, changed or deleted, some time ago: act on what it holds now.

        `exists`: it was not deleted, so Parameter Store has something new to show. Raises `ParametersUnavailableError` or
        `StoreUnavailableError`: the event is then to be delivered again.
        """
        if exists and not self._is_readable(account):
            unreadable = ParametersUnavailableError("the account's parameter cannot be read yet")
            return [self._enrolment.mark_invalid(account, unreadable)]
        return self._sync([account], time_left, raising=True)

    def renew(
        self, account: str, credential: str, time_left: Callable[[], float], *, rotate: bool = False
    ) -> list[Outcome]:
        """Renew one credential if it is due; with `rotate`, replace even a live value (an operator's explicit order)."""
        found = self._table.credentials.get(account, credential)
        if found is None:
            outcomes = self.account_changed(account, time_left)
            return outcomes or [Skipped(account, credential, "there is no such account or credential")]
        if reason := self._reason_to_skip(found, rotate):
            return [Skipped(account, credential, reason)]
        # A ticket is asked for with the token.
        token = self._table.credentials.get(account, ACCESS_TOKEN) if credential != ACCESS_TOKEN else None
        outcomes = []
        if token is not None and token.due_at <= self._now():
            outcomes = self._renew_all([token], time_left)
        return outcomes + self._renew_all([found], time_left, rotate=rotate)

    def verify(self, account: str, reported: str, time_left: Callable[[], float]) -> list[Outcome]:
        """A client saw an access token refused, named by its fingerprint: check it, and replace it if it is dead."""
        found = self._checker.check(account, reported)
        if not isinstance(found, Credential):
            return [found]
        outcomes = self._renew_all([found], time_left)
        for renewed in (outcome for outcome in outcomes if isinstance(outcome, Renewed)):
            if renewed.credential == ACCESS_TOKEN:
                outcome = ReportOutcome.STILL_VALID if renewed.fingerprint == reported else ReportOutcome.REPLACED
                return [*outcomes, Verified(account, ACCESS_TOKEN, outcome, renewed.fingerprint)]
        return outcomes

    # --- renewing

    def _reason_to_skip(self, found: Credential, rotate: bool) -> str | None:
        now = self._now()
        if not rotate and found.due_at > now:
            return "not due"
        if now < found.lease_until:
            return "another renewal is in progress"
        if rotate and now - found.fetched_at < budget.FORCED_APART:
            return f"it was fetched less than {budget.FORCED_APART} s ago"
        if rotate and not budget.may_rotate(found.kind, found.usage, now):
            return "today's remaining calls are reserved for scheduled renewals"
        return None

    def _renew_all(
        self, tasks: Iterable[DueCredential | Credential], time_left: Callable[[], float], *, rotate: bool = False
    ) -> list[Outcome]:
        """Renew the accounts side by side, those that work before those that fail; in each, the token before tickets."""
        by_account: dict[str, list[DueCredential | Credential]] = {}
        for task in sorted(tasks, key=lambda task: (task.failures > 0, task.name != ACCESS_TOKEN, task.due_at)):
            by_account.setdefault(task.account, []).append(task)
        if not by_account:
            return []

        with ThreadPoolExecutor(min(WORKERS, len(by_account))) as workers:
            in_time = self._read(by_account, time_left)
            renewals = {
                account: workers.submit(self._renew_account, by_account[account], record, time_left, rotate)
                for account, record in in_time
            }
        skipped = [_left(account) for account in by_account if account not in renewals]
        return [*chain.from_iterable(each.result() for each in renewals.values()), *skipped]

    def _read(self, accounts: Iterable[str], time_left: Callable[[], float]) -> Iterator[tuple[str, AccountRecord]]:
        """The accounts' records, as long as there is time to read and use them."""
        return takewhile(lambda _: time_left() >= MIN_TIME, self._accounts.read(accounts))

    def _renew_account(
        self,
        tasks: list[DueCredential | Credential],
        record: AccountRecord,
        time_left: Callable[[], float],
        rotate: bool,
    ) -> list[Outcome]:
        """Renew what is due of one account; where its record is not in force, apply that first."""
        outcomes: list[Outcome] = []
        for task in tasks:
            if time_left() < MIN_TIME:
                return [*outcomes, _left(task.account)]
            try:
                permitted = self._enrolment.permit(task, record)
                if record.content is None or permitted is None:
                    return outcomes + self._sync([task.account], time_left)
            except KeeperError as error:
                return [*outcomes, not_stored(task.account, task.name, error.failure(self._now()))]
            if isinstance(permitted, Skipped):
                outcomes.append(permitted)
            else:
                outcomes += self._renewer.renew(permitted, record.content, rotate=rotate)
        return outcomes

    # --- which accounts are kept

    def _is_readable(self, account: str) -> bool:
        """Wait a few seconds for Parameter Store to show a changed record; whether there is any record."""
        entry = self._table.accounts.entry(account)
        for _ in range(READ_AGAIN):
            version = self._accounts.read_one(account).version
            if version is not None and (entry is None or version != entry.version):
                break
            self._sleep(READ_AGAIN_AFTER)
        return entry is not None or version is not None

    def _sync_changed(self, time_left: Callable[[], float], *, is_pending: bool) -> Iterator[Outcome]:
        """Bring all accounts in line with Parameter Store. Where the time is up before that, the guard goes on with it.

        `is_pending`: an earlier run did not finish it.
        """
        held_until = self._now() + SYNC_TIME
        if is_pending:
            self._table.sync_pending_from(held_until)  # no other guard is to do the same meanwhile
        is_finished = False
        if time_left() >= MIN_TIME:
            outcomes = self._sync(self._changed(), time_left)
            is_finished = not any(map(_is_left, outcomes))
            yield from outcomes
        if not is_finished:
            self._table.sync_pending_from(self._now())
        elif is_pending:
            self._table.end_sync(held_until)

    def _changed(self) -> set[str]:
        """The accounts whose record is not the one that is enrolled, or that lost an item."""
        # The directory is read first: an account that is enrolled in between then seems neither deleted nor without an item.
        entries = {entry.account: entry for entry in self._table.accounts.entries()}
        versions = self._accounts.versions()
        listed, _ = self._table.list_due(None)
        kept = {(due.account, due.name) for due in listed}
        lost = {
            entry.account
            for entry in entries.values()
            if any((entry.account, name) not in kept for name in entry.credentials)
        }
        known = {name: entry.version for name, entry in entries.items()}
        return lost | {name for name in known.keys() | versions.keys() if known.get(name) != versions.get(name)}

    def _sync(self, names: Iterable[str], time_left: Callable[[], float], *, raising: bool = False) -> list[Outcome]:
        """Bring each named account in line with its parameter as it is now, and renew what that makes due.

        `raising`: raise the error that prevents that, instead of returning it as a failure.
        """
        outcomes: list[Outcome] = []
        tasks: list[Credential] = []
        pending = list(names)
        while pending:
            applied: dict[str, str | None] = {}
            superseded: list[str] = []
            for name, version, found in self._apply_all(pending, time_left):
                match found:
                    case RecordSupersededError():
                        superseded.append(name)
                    case KeeperError() if raising:
                        raise found
                    case None | ParametersUnavailableError(refused=False):
                        outcomes.append(_left(name))
                    case KeeperError():
                        outcomes.append(not_stored(name, ACCESS_TOKEN, found.failure(self._now())))
                    case _:
                        applied[name] = version
                        tasks += [task for task in found if isinstance(task, Credential)]
                        outcomes += [outcome for outcome in found if isinstance(outcome, Failed)]
            # A record that changed meanwhile is applied again: the older one may have overwritten it.
            pending = superseded + [
                name
                for name, record in self._read(applied, time_left)
                if record.version != applied[name] and not isinstance(record.content, ParametersUnavailableError)
            ]
        return outcomes + self._renew_all(tasks, time_left)

    def _apply_all(self, names: list[str], time_left: Callable[[], float]) -> Iterator[tuple[str, str | None, Found]]:
        """Apply the accounts' records side by side; None for what there was no time for."""

        def apply(name: str, record: AccountRecord) -> Found:
            try:
                return self._enrolment.apply(name, record) if time_left() >= MIN_TIME else None
            except KeeperError as error:
                return error

        with ThreadPoolExecutor(min(WORKERS, len(names))) as workers:
            in_time = self._read(names, time_left)
            applying = {name: (record.version, workers.submit(apply, name, record)) for name, record in in_time}
        for name in names:
            version, found = applying.get(name, (None, None))
            yield name, version, found.result() if found else None

    def _now(self) -> int:
        return int(self._clock())


def _left(account: str) -> Skipped:
    return Skipped(account, ACCESS_TOKEN, LEFT)


def _is_left(outcome: Outcome) -> bool:
    return isinstance(outcome, Skipped) and outcome.reason == LEFT
