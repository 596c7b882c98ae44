"""The keeper: what each event makes RefreshFunction do. Which accounts are kept is the enrolment's, whether a token still
works the checker's, and one renewal the renewer's matter."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import takewhile

from token_keeper import budget, renewal
from token_keeper.clock import Now, Sleep
from token_keeper.errors import ParametersUnavailableError, RecordSupersededError, StoreUnavailableError
from token_keeper.model import ACCESS_TOKEN, Credential, Due, ReportOutcome
from token_keeper.refresh import outcome
from token_keeper.refresh.checker import Checker, HasTime
from token_keeper.refresh.enrolment import Enrolment
from token_keeper.refresh.events import Events
from token_keeper.refresh.outcome import Outcome, Probed
from token_keeper.refresh.parameter_store import AccountRecord, ParameterStore, written_at
from token_keeper.refresh.renewer import Renewer, not_stored
from token_keeper.refresh.wechat import WeChat
from token_keeper.table import Table

WORKERS = 16
"""Accounts at a time. They wait for WeChat nearly all their time; a broken credential occupies one for half a minute or so."""

SYNC_TIME = 120
"""Seconds after which another run goes on with a sync that has not ended: the function's timeout."""

LEFT = "it was not reached in time; the next run continues"

READ_AGAIN_AFTER = 2
READ_AGAIN = 3
"""Seconds, and times: an event may arrive before Parameter Store shows the change."""


class Keeper:
    """Keeps every credential of every account."""

    def __init__(
        self, table: Table, accounts: ParameterStore, wechat: WeChat, events: Events, now: Now, sleep: Sleep
    ) -> None:
        self._table = table
        self._accounts = accounts
        self._now = now
        self._sleep = sleep
        self._checker = Checker(table, wechat, events, now)
        self._enrolment = Enrolment(table, wechat, self._checker, events, now, sleep)
        self._renewer = Renewer(table, wechat, self._checker, events, now, sleep)

    def tick(self, has_time: HasTime) -> Iterator[Outcome]:
        """The main schedule: renew what is due or about to be, then bring the table in line with Parameter Store.

        What there is no time left for is the next guard's.

        Raises `ParametersUnavailableError` or `StoreUnavailableError`, after the renewals.
        """
        now = self._now()
        listed, is_sync_pending = self._table.list_due(None)
        yield from self._renew([due for due in listed if renewal.due_for_tick(due, now)], has_time)
        yield from self._sync(has_time, is_pending=is_sync_pending)

    def guard(self, has_time: HasTime) -> Iterator[Outcome]:
        """The guard schedule: renew what is due, then go on with a sync that was not finished.

        Raises `StoreUnavailableError`; with such a sync `ParametersUnavailableError`, too.
        """
        due, is_sync_pending = self._table.list_due(self._now())
        yield from self._renew(due, has_time)
        if is_sync_pending:
            yield from self._sync(has_time, is_pending=True)

    def probe(self, has_time: HasTime) -> Iterator[Outcome | Probed]:
        """The probe schedule: ask WeChat whether each live access token still works, and replace what is dead.

        Raises `StoreUnavailableError`.
        """
        for found in self._checker.probe(has_time):
            if isinstance(found, Probed):
                yield found
            else:
                yield from self._renew(found, has_time)

    def parameter_changed(self, parameter: str, has_time: HasTime, *, exists: bool) -> list[Outcome]:
        """A parameter was created, changed or deleted, some time ago: where it is an account's, act on what it holds now.

        `exists`: it was not deleted, so Parameter Store has something new to show. Raises `ParametersUnavailableError` or
        `StoreUnavailableError`: the event is then to be delivered again.
        """
        account = self._accounts.name_of(parameter)
        return [] if account is None else self._account_changed(account, has_time, exists=exists)

    def _account_changed(self, account: str, has_time: HasTime, *, exists: bool) -> list[Outcome]:
        entry, record = self._table.accounts.entry(account), self._accounts.read_one(account)
        for _ in range(READ_AGAIN if exists else 0):
            if record.version not in (None, entry and entry.version):
                break
            self._sleep(READ_AGAIN_AFTER)
            record = self._accounts.read_one(account)
        if exists and entry is None and record.version is None:
            unreadable = ParametersUnavailableError("the account's parameter cannot be read yet")
            return [self._enrolment.mark_invalid(account, unreadable)]
        return self._keep_account(account, record, (), has_time, rotate=False)

    def renew(self, account: str, credential: str, has_time: HasTime, *, rotate: bool = False) -> list[Outcome]:
        """Renew one credential if it is due; with `rotate`, replace even a live value (an operator's explicit order)."""
        found = self._table.credentials.get(account, credential)
        if found is None:
            outcomes = self._account_changed(account, has_time, exists=False)
            return outcomes or [outcome.skipped(account, credential, "there is no such account or credential")]
        if reason := self._reason_to_skip(found, rotate):
            return [outcome.skipped(account, credential, reason)]
        due = [found]
        if credential != ACCESS_TOKEN:  # a ticket is asked for with the token
            token = self._table.credentials.get(account, ACCESS_TOKEN)
            due += [token] if token and token.due_at <= self._now() else []
        # What does not live is renewed without force: a forced refresh that is held up would end what comes meanwhile.
        is_live = self._now() < renewal.usable_until(found)
        return self._renew(due, has_time, rotate=rotate and is_live and credential == ACCESS_TOKEN)

    def verify(self, account: str, reported: str, has_time: HasTime) -> list[Outcome]:
        """A client saw an access token refused, named by its fingerprint: check it, and replace it if it is dead."""
        found = self._checker.check(account, reported)
        if isinstance(found, Outcome):
            return [found]
        outcomes = self._renew([found], has_time)
        with suppress(StoreUnavailableError):
            token = self._table.credentials.get(account, ACCESS_TOKEN)
            if token is not None and token.refused_at is None:
                verdict = ReportOutcome.STILL_VALID if token.fingerprint == reported else ReportOutcome.REPLACED
                outcomes.append(outcome.verified(token, verdict))
        return outcomes

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

    def _sync(self, has_time: HasTime, *, is_pending: bool) -> Iterator[Outcome]:
        """Bring all accounts in line with Parameter Store. Where the time is up before that, the guard goes on with it.

        `is_pending`: an earlier run did not finish it.
        """
        held_until = self._now() + SYNC_TIME
        if is_pending:
            self._table.sync_pending_from(held_until)  # no other guard is to do the same meanwhile
        outcomes = self._keep(dict.fromkeys(self._changed(), ()), has_time) if has_time() else None
        yield from outcomes or ()
        if outcomes is None or any(each.details.get("reason") == LEFT for each in outcomes):
            self._table.sync_pending_from(self._now())
        elif is_pending:
            self._table.end_sync(held_until)

    def _changed(self) -> set[str]:
        """The accounts whose record is not the one that is enrolled, or that lost an item."""
        # The directory is read first: an account that is enrolled in between then seems neither deleted nor without an item.
        entries = list(self._table.accounts.entries())
        versions = self._accounts.versions()
        listed, _ = self._table.list_due(None)
        kept = {(each.account, each.name) for each in listed}
        lost = {entry.account for entry in entries if not kept.issuperset(entry.keys)}
        known = {entry.account: entry.version for entry in entries}
        return lost | {name for name in known | versions if known.get(name) != versions.get(name)}

    def _renew(self, due: Iterable[Due], has_time: HasTime, *, rotate: bool = False) -> list[Outcome]:
        """Renew what is due: of the accounts that work before those that fail, and in each the token before tickets."""
        by_account: dict[str, list[Due]] = {}
        for each in sorted(due, key=lambda each: (each.name != ACCESS_TOKEN, each.due_at)):
            by_account.setdefault(each.account, []).append(each)
        working_first = sorted(by_account, key=lambda account: any(each.failures for each in by_account[account]))
        return self._keep({account: by_account[account] for account in working_first}, has_time, rotate=rotate)

    def _keep(self, due: Mapping[str, Sequence[Due]], has_time: HasTime, *, rotate: bool = False) -> list[Outcome]:
        """Bring accounts in line with their records, side by side, and renew what is due of each, or what that makes due."""
        with ThreadPoolExecutor(WORKERS) as workers:
            in_time = takewhile(lambda _: has_time(), self._accounts.read(due))
            keeping = {
                account: workers.submit(self._keep_account, account, record, due[account], has_time, rotate)
                for account, record in in_time
            }
        outcomes: list[Outcome] = []
        for account in due:
            try:
                outcomes += keeping[account].result() if account in keeping else [_left(account)]
            except Exception as error:  # noqa: BLE001 - of ours, or a defect, which must not keep other accounts waiting
                is_left = isinstance(error, ParametersUnavailableError) and not error.refused
                credential = due[account][0].name if due[account] else ACCESS_TOKEN
                outcomes.append(_left(account) if is_left else not_stored(account, credential, error, self._now()))
        return outcomes

    def _keep_account(
        self, account: str, record: AccountRecord, due: Sequence[Due], has_time: HasTime, rotate: bool
    ) -> list[Outcome]:
        """Bring an account's record in force, unless it is and only what is due is to be renewed; then renew that."""
        found = self._enrolment.permit(due, record) if due and has_time() else None
        rotate = rotate and found is not None  # nothing that a change of the record makes due
        is_outdated = bool(due)  # Parameter Store may have shown the record before, or none
        while found is None:
            if not has_time():
                return [_left(account)]
            record = self._accounts.read_one(account) if is_outdated else record
            with suppress(RecordSupersededError):
                found = self._enrolment.apply(account, record)
            # A record that changed meanwhile is applied again: the older one may have overwritten it.
            is_outdated = self._is_outdated(account, record)
            found = None if is_outdated else found
        outcomes: list[Outcome] = []
        for each in found:
            if isinstance(each, Outcome):
                outcomes.append(each)
            elif not has_time():
                return [*outcomes, _left(account)]
            else:
                outcomes += self._renewer.renew(each, record.content, rotate=rotate)
        return outcomes

    def _is_outdated(self, account: str, record: AccountRecord) -> bool:
        ((_, shown),) = self._accounts.read([account])
        is_older = 0 < written_at(shown.version) < written_at(record.version)
        is_unread = isinstance(shown.content, ParametersUnavailableError)
        return shown.version != record.version and not is_older and not is_unread


def _left(account: str) -> Outcome:
    return outcome.skipped(account, ACCESS_TOKEN, LEFT)
