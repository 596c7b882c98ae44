"""The keeper: the one place where a credential changes. Lease, fetch, publish; and which accounts are kept at all.

take the lease ──► fetch from WeChat ──► publish                    (epoch still ours: the new value is served)
     │                    └─ refused ──► record the failure         (the old value stays; tried again later)
     └ the process dies anywhere ──────► due again when the lease ends
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, takewhile

from token_keeper import budget, renewal
from token_keeper.accounts import Accounts, Record
from token_keeper.errors import (
    BudgetError,
    InvalidRecordError,
    KeeperError,
    LeaseOverError,
    ParametersUnavailableError,
    RecordChangedError,
    StoreUnavailableError,
)
from token_keeper.model import (
    ACCESS_TOKEN,
    Account,
    Credential,
    Due,
    Failed,
    Failure,
    FailureClass,
    Grant,
    Kind,
    Outcome,
    Renewed,
    Skipped,
    Spent,
    Verdict,
    Verified,
    fingerprint,
)
from token_keeper.table import Entry, Table
from token_keeper.wechat import WeChat, WeChatError

WORKERS = 16
"""Renewals at a time. They wait for WeChat nearly all their time; a broken account occupies one for a minute at most."""

PAUSES_WITHOUT_ANSWER = (0, 10)
"""Seconds before each further attempt under the same lease, when a call got no whole answer. It may have minted a token,
so the live one may have 300 s left: the sooner the answer is known, the better. After these, as any failure."""

PATIENCE = 5
"""Seconds that a report waits for whoever renews or checks the token already."""

POLL_INTERVAL = 0.5
"""Seconds."""

LONGEST_ATTEMPT = 15
"""Seconds of run time that must be left to begin an attempt. A peer that drips can take longer: then the epoch decides."""

DEFECT_REMEDY = "A defect of the token keeper: please report it. It is tried again by itself."


class Keeper:
    """Keeps every credential of every account.

    `clock` gives epoch seconds (UTC), `sleep` waits seconds of that clock.
    """

    def __init__(
        self,
        table: Table,
        accounts: Accounts,
        wechat: WeChat,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._table = table
        self._accounts = accounts
        self._wechat = wechat
        self._clock = clock
        self._sleep = sleep

    def tick(self, seconds_left: Callable[[], float]) -> Iterator[Outcome]:
        """The main schedule: renew what is due or about to be, then bring the table in line with Parameter Store.

        Raises `ParametersUnavailableError` or `StoreUnavailableError`, after the renewals.
        """
        now = self._now()
        listed = self._table.due(None)
        about = [due for due in listed if renewal.due_for_tick(due, now)]
        yield from self._work_off(about, seconds_left)
        yield from self._sync(self._changed({(due.account, due.credential) for due in listed}), seconds_left)

    def guard(self, seconds_left: Callable[[], float]) -> list[Outcome]:
        """The guard schedule: renew what is due."""
        return self._work_off(self._table.due(self._now()), seconds_left)

    def account_changed(self, account: str, seconds_left: Callable[[], float]) -> list[Outcome]:
        """An account's parameter was created, changed or deleted, some time ago: act on what it holds now.

        Raises `ParametersUnavailableError` or `StoreUnavailableError`: the event is then to be delivered again.
        """
        return self._sync([account], seconds_left, raising=True)

    def renew(
        self, account: str, credential: str, seconds_left: Callable[[], float], *, rotate: bool = False
    ) -> list[Outcome]:
        """Renew one credential if it is due; with `rotate`, replace even a live value (an operator's explicit wish)."""
        found = self._table.credential(account, credential)
        if found is None:
            outcomes = self.account_changed(account, seconds_left)
            return outcomes or [Skipped(account, credential, "there is no such account or credential")]
        if not rotate and found.due_at > self._now():
            return [Skipped(account, credential, "not due")]
        if self._now() < found.lease_until:
            return [Skipped(account, credential, "somebody else is renewing it")]
        if rotate and self._now() - found.fetched_at < budget.FORCED_APART:
            return [Skipped(account, credential, f"it was fetched less than {budget.FORCED_APART} s ago")]
        if rotate and not budget.may_rotate(found.kind, found.spent, self._now()):
            return [Skipped(account, credential, "the calls that are left today are kept for renewals that are due")]
        # A ticket is asked for with the token.
        token = self._table.credential(account, ACCESS_TOKEN) if credential != ACCESS_TOKEN else None
        if token is not None and token.due_at <= self._now():
            return self._work_off([_due(token)], seconds_left) + self._work_off(
                [_due(found)], seconds_left, rotate=rotate
            )
        return self._work_off([_due(found)], seconds_left, rotate=rotate)

    def verify(self, account: str, reported: str) -> list[Outcome]:
        """Somebody's access token, named by its fingerprint, was refused: check it, and replace it if it is dead.

        However many report it, WeChat is asked once in `budget.CHECK_SERVES` seconds, and a dead token is replaced once.
        """
        asked_at = self._now()
        while (token := self._table.credential(account, ACCESS_TOKEN)) is not None and token.value is not None:
            now = self._now()
            if token.fingerprint != reported:
                return [Verified(account, ACCESS_TOKEN, Verdict.SUPERSEDED, token.fingerprint)]
            if 0 <= now - token.checked_at < budget.CHECK_SERVES:
                return [Verified(account, ACCESS_TOKEN, Verdict.STILL_VALID, token.fingerprint)]
            if not budget.may_check(token.spent, now):
                wait = renewal.SLOW_RETRY
                return [Verified(account, ACCESS_TOKEN, Verdict.LIMITED, token.fingerprint, retry_after=wait)]
            if now < max(token.lease_until, token.check_until):
                if now - asked_at >= PATIENCE:
                    break
                self._sleep(POLL_INTERVAL)
                continue
            leased = self._table.take_lease(_due(token), now=now, until=now + renewal.LEASE, to_check=True)
            if leased is not None:
                return self._check(leased)
        return [Skipped(account, ACCESS_TOKEN, "it cannot be checked right now")]

    # --- checking

    def _check(self, leased: Credential) -> list[Outcome]:
        """Ask WeChat about the token under the lease, and replace it if it is dead."""
        began_at = self._now()
        tally = _Tally(checks=1)
        checked_at: int | None = None
        outcome: Outcome
        try:
            if not self._wechat.accepts(leased.kind, leased.value or ""):
                return self._replace(leased, tally)
            checked_at = began_at
            outcome = Verified(leased.account, leased.name, Verdict.STILL_VALID, leased.fingerprint)
        except WeChatError as error:
            outcome = _not_stored(leased.account, leased.name, _failure(error, began_at))
        self._table.release(leased, self._spent(leased, tally), checked_at=checked_at)
        return [outcome]

    def _replace(self, checked: Credential, tally: "_Tally") -> list[Outcome]:
        """Put a value in place of one that is dead."""
        began_at, foreign = self._now(), checked.at_risk_since is None
        leased = self._table.begin_renewal(checked, now=began_at, until=began_at + renewal.LEASE)
        if leased is None:
            return [Skipped(checked.account, checked.name, "a later renewal has overtaken this one")]
        try:
            if not budget.may_wish(leased.kind, leased.spent, began_at):
                raise BudgetError("the day's calls for reported tokens are used up; what is left is kept for renewals")
            account = self._rightful(self._accounts.read_one(leased.account), leased)
            grant = self._ask(account, replace(leased, expires_at=began_at), tally)
            if grant.value == leased.value:
                raise WeChatError(FailureClass.TRANSIENT, "WeChat gave the token again that it calls dead")
        except KeeperError as error:
            return [self._failed(leased, error, tally, began_at=began_at, dead=True)]
        renewed = self._publish(leased, grant, tally, foreign=foreign, dead=True)
        if not isinstance(renewed, Renewed):
            return [renewed]
        return [renewed, Verified(leased.account, leased.name, Verdict.REPLACED, renewed.fingerprint)]

    def _spent(self, leased: Credential, tally: "_Tally") -> Spent:
        return budget.spend(
            leased.spent,
            self._now(),
            epoch=leased.epoch,
            calls=tally.calls,
            forced=tally.forced,
            checks=tally.checks,
        )

    # --- renewing

    def _work_off(
        self, dues: Iterable[Due], seconds_left: Callable[[], float], *, rotate: bool = False
    ) -> list[Outcome]:
        """Renew the accounts side by side, those that work before those that fail; in each, the token before tickets."""
        by_account: dict[str, list[Due]] = {}
        for due in sorted(dues, key=lambda due: (due.failures > 0, due.credential != ACCESS_TOKEN, due.due_at)):
            by_account.setdefault(due.account, []).append(due)
        if not by_account:
            return []

        def renew_account(account: str, record: Record) -> list[Outcome]:
            together = len(by_account)
            renewed = (
                self._renew(due, record, seconds_left, rotate=rotate, together=together) for due in by_account[account]
            )
            return list(chain.from_iterable(renewed))

        with ThreadPoolExecutor(min(WORKERS, len(by_account))) as workers:
            renewals = [workers.submit(renew_account, *found) for found in self._accounts.read(by_account)]
        return list(chain.from_iterable(each.result() for each in renewals))

    def _renew(
        self, due: Due, record: Record, seconds_left: Callable[[], float], *, rotate: bool, together: int
    ) -> list[Outcome]:
        if seconds_left() < LONGEST_ATTEMPT:
            return [Skipped(due.account, due.credential, "out of time; the next wake-up goes on")]
        now = self._now()
        tally = _Tally()
        try:
            if due.credential != ACCESS_TOKEN and self._awaits_token(due.account):
                return [
                    Skipped(due.account, due.credential, "its access token is being renewed; the ticket comes next")
                ]
            leased = self._table.take_lease(due, now=now, until=now + renewal.LEASE)
            if leased is None:
                return [Skipped(due.account, due.credential, "not due any more, or somebody else is renewing it")]
            try:
                grant = self._fetch(leased, record, seconds_left, rotate, tally)
            except KeeperError as error:
                return [*tally.beside, self._failed(leased, error, tally, began_at=now)]
            return [*tally.beside, self._publish(leased, grant, tally, together=together)]
        except StoreUnavailableError as error:
            return [*tally.beside, _not_stored(due.account, due.credential, _failure(error, self._now()))]
        except Exception as error:  # noqa: BLE001 - a defect; it must not keep the other accounts waiting
            failure = Failure(FailureClass.DEFECT, None, type(error).__name__, DEFECT_REMEDY, self._now())
            return [*tally.beside, _not_stored(due.account, due.credential, failure)]

    def _rightful(self, record: Record, leased: Credential) -> Account:
        """The account of the record, if it is still the one that the credential was enrolled for."""
        account = record.content
        if account is None:
            raise InvalidRecordError("the account's parameter does not exist any more")
        if isinstance(account, KeeperError):
            raise account
        if account.app_id != leased.app_id or account.credentials.get(leased.name) is not leased.kind:
            holder = self._table.holder(account)
            if holder not in (None, account.name):
                raise _kept_already(account, holder)
            raise RecordChangedError("the account's record has changed; the change is being taken over")
        return account

    def _fetch(
        self, leased: Credential, record: Record, seconds_left: Callable[[], float], rotate: bool, tally: "_Tally"
    ) -> Grant:
        account = self._rightful(record, leased)
        # Once it has failed, the next attempt is a minute away: three calls each time would use up the day's.
        for pause in PAUSES_WITHOUT_ANSWER if leased.failures == 0 else ():
            try:
                return self._ask(account, leased, tally, rotate=rotate)
            except WeChatError as error:
                ends_at = self._now() + pause + LONGEST_ATTEMPT
                in_time = seconds_left() > pause + LONGEST_ATTEMPT and ends_at <= leased.lease_until
                if error.outcome_known or not (rotate or renewal.RULES[leased.kind].mints_anew) or not in_time:
                    raise
            self._sleep(pause)
            rotate = False  # stable_token: normal mode now tells what the forced refresh has minted
        return self._ask(account, leased, tally, rotate=rotate)

    def _ask(self, account: Account, leased: Credential, tally: "_Tally", *, rotate: bool = False) -> Grant:
        if leased.name != ACCESS_TOKEN:
            return self._ask_for_ticket(account, leased, tally)
        if leased.kind is not Kind.STABLE_TOKEN:
            return self._fetch_token(account, leased, tally)
        if not rotate:
            grant = self._fetch_token(account, leased, tally)
            if grant.value != leased.value or grant.asked_at < leased.expires_at:
                return grant
        # The value is dead or unwanted, and normal mode repeats it for the rest of its life.
        before = budget.spent_before(leased.spent, self._now(), leased.epoch)
        if not budget.may_force(before, self._now()):
            raise BudgetError("WeChat repeats the old token, and may not be forced to mint another one yet")
        return self._fetch_token(account, leased, tally, force=True)

    def _ask_for_ticket(self, account: Account, leased: Credential, tally: "_Tally") -> Grant:
        token = self._usable_token(account.name)
        try:
            return self._fetch_ticket(account, leased, token, tally)
        except WeChatError as error:
            if error.failure_class is not FailureClass.CREDENTIAL or token.fingerprint is None:
                raise
            tally.beside += self.verify(account.name, token.fingerprint)
        return self._fetch_ticket(account, leased, self._usable_token(account.name), tally)

    def _usable_token(self, account: str) -> Credential:
        token = self._table.credential(account, ACCESS_TOKEN)
        if token is None or self._now() >= renewal.usable_until(token):
            raise WeChatError(FailureClass.TRANSIENT, "the account has no usable access token to ask with")
        return token

    def _awaits_token(self, account: str) -> bool:
        # Whoever renews the token goes on with its tickets; a failure here would only have them wait.
        token = self._table.credential(account, ACCESS_TOKEN)
        return token is not None and renewal.usable_until(token) <= self._now() < token.lease_until

    def _fetch_token(self, account: Account, leased: Credential, tally: "_Tally", *, force: bool = False) -> Grant:
        self._check_lease(leased)
        tally.forced += force
        return tally.counted(lambda: self._wechat.fetch_token(account, force=force))

    def _fetch_ticket(self, account: Account, leased: Credential, token: Credential, tally: "_Tally") -> Grant:
        self._check_lease(leased)
        return tally.counted(lambda: self._wechat.fetch_ticket(account, leased.name, token.value or ""))

    def _check_lease(self, leased: Credential) -> None:
        # The epoch would refuse what is brought too late, but WeChat would have minted it, and ended what others publish.
        if self._now() >= leased.lease_until:
            raise LeaseOverError("the lease was over before WeChat could be asked")

    def _publish(
        self,
        leased: Credential,
        grant: Grant,
        tally: "_Tally",
        *,
        foreign: bool = False,
        dead: bool = False,
        together: int = 1,
    ) -> Outcome:
        expires_at = renewal.expiry(leased, grant)
        due_at = renewal.next_due(leased, grant, together=together)
        spent = self._spent(leased, tally)
        overlap = 0 if dead or tally.forced else renewal.RULES[leased.kind].overlap
        published = self._table.publish(
            leased,
            grant,
            spent,
            expires_at=expires_at,
            due_at=due_at,
            previous_until=min(leased.expires_at, grant.asked_at + overlap),
            foreign=foreign,
        )
        if published is None or published.fingerprint is None:
            if renewal.RULES[leased.kind].mints_anew or tally.forced:
                # WeChat forces nothing again sooner, so what was fetched by then is no later value.
                ended = (fingerprint(grant.value), grant.asked_at + budget.FORCED_APART) if tally.forced else None
                self._table.distrust(leased, since=grant.asked_at, now=self._now(), ended=ended)
            return Skipped(leased.account, leased.name, "a later renewal has overtaken this one")
        return Renewed(
            account=leased.account,
            credential=leased.name,
            fingerprint=published.fingerprint,
            expires_at=expires_at,
            promised_until=renewal.promised_until(published, grant.asked_at),
            renews_at=due_at,
            foreign=foreign,
            budget_used=budget.used(leased.kind, spent, self._now()),
        )

    def _failed(
        self, leased: Credential, error: KeeperError, tally: "_Tally", *, began_at: int, dead: bool = False
    ) -> Outcome:
        failure = _failure(error, self._now())
        due_at = failure.at + renewal.retry_after(failure, leased.failures + 1)
        dead |= tally.forced > 0 and tally.lost  # a forced refresh leaves the old value no overlap
        at_risk = tally.lost or leased.at_risk_since != began_at
        spent = self._spent(leased, tally)
        if not self._table.record_failure(leased, failure, spent, due_at=due_at, at_risk=at_risk, dead=dead):
            if tally.lost and (renewal.RULES[leased.kind].mints_anew or tally.forced):
                self._table.distrust(leased, since=began_at, now=failure.at)
            return Skipped(leased.account, leased.name, "a later renewal has overtaken this one")
        left = replace(leased, at_risk_since=leased.at_risk_since if at_risk else None)
        usable_until = None if leased.value is None else failure.at if dead else renewal.usable_until(left)
        used = budget.used(leased.kind, spent, failure.at)
        return Failed(leased.account, leased.name, failure, due_at, usable_until, used)

    # --- which accounts are kept

    def _changed(self, listed: Collection[tuple[str, str]]) -> set[str]:
        """The accounts whose record is not the one that is enrolled, or that lost an item."""
        # The directory is read first: an account that is enrolled in between is then not taken for a deleted one.
        entries = {entry.account: entry for entry in self._table.entries()}
        versions = self._accounts.versions()
        lost = {
            entry.account
            for entry in entries.values()
            if any((entry.account, name) not in listed for name in entry.credentials)
        }
        known = {name: entry.version for name, entry in entries.items()}
        return lost | {name for name in known.keys() | versions.keys() if known.get(name) != versions.get(name)}

    def _sync(self, names: Iterable[str], seconds_left: Callable[[], float], *, raising: bool = False) -> list[Outcome]:
        """Bring each named account in line with its parameter as it is now, and renew what that makes due.

        `raising`: let out what hinders that, and do not note it as a failure.
        """
        due: list[Due] = []
        outcomes: list[Outcome] = []
        pending = list(names)

        def take_over(name: str, record: Record) -> list[Due | Failed] | None:
            return self._take_over(name, record) if seconds_left() >= LONGEST_ATTEMPT else None

        while pending:
            with ThreadPoolExecutor(min(WORKERS, len(pending))) as workers:
                # Reading and decrypting ends with the time, too.
                in_time = takewhile(lambda _: seconds_left() >= LONGEST_ATTEMPT, self._accounts.read(pending))
                taking = {name: (record.version, workers.submit(take_over, name, record)) for name, record in in_time}
            taken: dict[str, str | None] = {}
            for name in pending:
                version, taking_over = taking.get(name, (None, None))
                try:
                    to_do = taking_over.result() if taking_over else None
                except KeeperError as error:
                    if raising:
                        raise
                    outcomes.append(_not_stored(name, ACCESS_TOKEN, _failure(error, self._now())))
                    continue
                if to_do is None:
                    outcomes.append(Skipped(name, ACCESS_TOKEN, "out of time; the next main tick goes on"))
                    continue
                taken[name] = version
                due += [one for one in to_do if isinstance(one, Due)]
                outcomes += [one for one in to_do if isinstance(one, Failed)]
            # Where a record changed meanwhile, whoever took that over may have been undone by this.
            pending = [
                name
                for name, record in self._accounts.read(taken)
                if record.version != taken[name] and not isinstance(record.content, ParametersUnavailableError)
            ]
        return outcomes + self._work_off(due, seconds_left)

    def _take_over(self, name: str, record: Record) -> list[Due | Failed]:
        """What the account's record makes due, and what is wrong with it."""
        try:
            if record.content is None:
                self._drop(name)
                return []
            if isinstance(record.content, KeeperError):
                raise record.content
            return self._enrol(record.content, record.version)
        except InvalidRecordError as error:
            return [self._refuse(name, error)]

    def _enrol(self, account: Account, version: str | None) -> list[Due | Failed]:
        displaced = self._make_room(account)
        now = self._now()
        old = self._table.entry(account.name)
        entry = Entry(account.name, account.app_id, account.kind, tuple(account.credentials), None)
        # Nobody else may fetch for what is still served, so a claim goes after its credentials. The directory forgets the old
        # record only when nothing of it is left, and learns of the new one before anything of it is there; without a version
        # until all is. So whatever dies halfway is begun again by the next tick.
        if old is not None:
            stays = old.app_id == account.app_id
            for name in set(old.credentials) - (account.credentials.keys() if stays else set()):
                self._drop_credential(old, name)
            self._table.release_claims(account.name, old.app_id, but=account.claim if stays else None)
        self._table.put_entry(entry)
        holder = self._table.claim(account)
        if holder != account.name:
            raise _kept_already(account, holder)
        seen = (
            self._table.tickets_seen(account.name, account.app_id, account.tickets, now) if account.tickets else set()
        )
        if old is not None and old.app_id == account.app_id:
            seen |= set(old.credentials)  # where its item is not there any more
        for name, kind in account.credentials.items():
            self._table.enrol(account.name, name, kind, account.app_id, due_at=now, age_unknown=name in seen)
        is_known = old is not None and old.version == version
        to_do = [self._act_on_change(account, name, kind, is_known) for name, kind in account.credentials.items()]
        self._table.put_entry(replace(entry, version=version))
        taken_over = self._take_over(displaced, self._accounts.read_one(displaced)) if displaced else []
        return [one for one in to_do if one] + taken_over

    def _make_room(self, account: Account) -> str | None:
        """Drop the account that holds this one's claim if its own record does not ask for it any more; returns which.

        Else two accounts that have exchanged their endpoints would wait for each other. Raises `InvalidRecordError` where
        it does ask for it, `ParametersUnavailableError`.
        """
        holder = self._table.holder(account)
        if holder in (None, account.name):
            return None
        held_for = self._accounts.read_one(holder).content
        is_given_up = held_for is None or (
            isinstance(held_for, Account) and (held_for.app_id, held_for.claim) != (account.app_id, account.claim)
        )
        if not is_given_up:
            raise _kept_already(account, holder)
        self._drop(holder)
        return holder

    def _act_on_change(self, account: Account, name: str, kind: Kind, is_known: bool) -> Due | Failed | None:
        """What a created or changed record makes due. A live value is never rotated early for it: its secret is checked.

        `is_known`: this very record was taken over before, and its secret checked.
        """
        while (credential := self._table.credential(account.name, name)) is not None:
            now = self._now()
            if now < credential.lease_until:
                self._sleep(1)  # somebody is renewing it, perhaps with the old record: what comes of that decides
            elif credential.kind is kind and credential.due_at <= now:
                return _due(credential)
            elif credential.kind is kind and not credential.failures and now < renewal.usable_until(credential):
                if is_known:
                    return None
                failure = self._secret_failure(account, kind)
                self._table.note(account.name, name, failure)
                return None if failure is None else Failed(account.name, name, failure, credential.due_at)
            else:
                self._table.make_due(credential, kind, now=now)
        return None

    def _secret_failure(self, account: Account, kind: Kind) -> Failure | None:
        if kind not in (Kind.TOKEN, Kind.STABLE_TOKEN):
            return None  # WeCom has no call that would check a secret and surely mint nothing
        try:
            self._wechat.fetch_token(account, isolated=True)
        except WeChatError as error:
            if error.failure_class is FailureClass.TRANSIENT:
                raise  # the record is not taken over yet, so it is checked again
            return None if error.failure_class is FailureClass.QUOTA else _failure(error, self._now())
        return None

    def _refuse(self, name: str, error: InvalidRecordError) -> Failed:
        """Leave an account whose record cannot be used as it is, and say so in its health."""
        failure = _failure(error, self._now())
        tried_again_at = failure.at + renewal.retry_after(failure, 1)
        entry = self._table.entry(name) or Entry(name, "", Kind.TOKEN, (ACCESS_TOKEN,), None)
        self._table.put_entry(replace(entry, version=None))
        self._table.enrol(name, ACCESS_TOKEN, entry.kind, entry.app_id, due_at=tried_again_at)
        self._table.note(name, ACCESS_TOKEN, failure)
        return Failed(name, ACCESS_TOKEN, failure, tried_again_at)

    def _drop(self, name: str) -> None:
        """Forget the account."""
        entry = self._table.entry(name)
        if entry is None:
            return
        for credential in entry.credentials:
            self._drop_credential(entry, credential)
        self._table.release_claims(name, entry.app_id)
        self._table.drop_entry(name)

    def _drop_credential(self, entry: Entry, credential: str) -> None:
        self._table.drop_credential(entry.account, credential, entry.app_id, gone_at=self._now() + renewal.TICKET_LIFE)

    def _now(self) -> int:
        return int(self._clock())


@dataclass
class _Tally:
    """What was asked of WeChat under one lease, and whether an answer was lost that may have brought a value.

    `beside`: what became of another credential on the way.
    """

    calls: int = 0
    forced: int = 0
    checks: int = 0
    lost: bool = False
    beside: list[Outcome] = field(default_factory=list)

    def counted(self, fetch: Callable[[], Grant]) -> Grant:
        self.calls += 1
        try:
            return fetch()
        except WeChatError as error:
            self.lost |= not error.outcome_known
            raise


def _due(credential: Credential) -> Due:
    return Due(
        credential.account,
        credential.name,
        credential.kind,
        credential.due_at,
        credential.failures,
        credential.epoch,
    )


def _not_stored(account: str, credential: str, failure: Failure) -> Failed:
    """A failure that could not be recorded: the lease, or what was due before, brings the next attempt."""
    return Failed(account, credential, failure, failure.at + renewal.LEASE)


def _kept_already(account: Account, holder: str) -> InvalidRecordError:
    return InvalidRecordError(f"{account.app_id} is already kept with this endpoint, as account {holder}")


def _failure(error: KeeperError, at: int) -> Failure:
    if isinstance(error, WeChatError):
        return Failure(error.failure_class, error.errcode, error.errmsg, error.remedy, at)
    if isinstance(error, BudgetError):
        remedy = "Find out who else fetches with this AppSecret, and let it ask here instead; `stable_token` isolates."
        return Failure(FailureClass.QUOTA, None, str(error), remedy, at)
    if isinstance(error, InvalidRecordError):
        remedy = "Correct the account's parameter (`token-keeper accounts remove` and `add`); it is tried at once."
        return Failure(FailureClass.CONFIGURATION, None, str(error), remedy, at)
    return Failure(FailureClass.TRANSIENT, None, str(error), "Nothing to do: it is tried again by itself.", at)
