"""The renewer: one credential's renewal, from the lease to the published value.

take the lease ──► fetch from WeChat ──► publish                    (epoch still ours: the new value is served)
     │                    └─ failed ───► record the failure         (the old value stays; it is retried later)
     └ the process dies anywhere ──────► due again when the lease ends
"""

from collections.abc import Callable

from token_keeper import budget, renewal
from token_keeper.clock import Now, Sleep
from token_keeper.errors import KeeperError, LeaseOverError, QuotaError, RecordChangedError
from token_keeper.model import ACCESS_TOKEN, Account, Credential, Failure, FailureClass, Grant, Kind, fingerprint
from token_keeper.refresh import lifecycle, outcome
from token_keeper.refresh.checker import Checker
from token_keeper.refresh.events import Events
from token_keeper.refresh.lifecycle import Attempt
from token_keeper.refresh.outcome import Outcome
from token_keeper.refresh.wechat import WeChat, WeChatError
from token_keeper.table import Table

SUPERSEDED_ERRMSG = "a later renewal has superseded this one"

YOUNG_TOKEN_PAUSE = 5
"""Seconds until a ticket is asked for again with a young token that was refused: WeChat may need some until it accepts what it has
handed out."""

REPEATED_ERRMSG = "WeChat repeated the token that it refuses"

DEFECT_REMEDY = "Internal error in token-keeper: please report it. It will be retried automatically."


class _NoTokenError(WeChatError):
    """There is no token to ask for a ticket with; the event is that of the token's failure."""


class Renewer:
    """Renews one credential at a time."""

    def __init__(self, table: Table, wechat: WeChat, checker: Checker, events: Events, now: Now, sleep: Sleep) -> None:
        self._table = table
        self._wechat = wechat
        self._checker = checker
        self._events = events
        self._now = now
        self._sleep = sleep

    def renew(self, seen: Credential, record: Account | KeeperError | None, *, rotate: bool = False) -> list[Outcome]:
        """Renew a credential as it was read, with the account's record (or why there is none); `rotate`: even a live value.

        Returns what became of it, and of its account's token where a ticket call was refused for that. Raises nothing.
        """
        others: list[Outcome] = []
        try:
            renewed = self._renew(seen, record, rotate, others)
        except Exception as error:  # noqa: BLE001 - of the table, or a defect, which must not keep the account's others waiting
            renewed = not_stored(seen.account, seen.name, error, self._now())
        return [*others, renewed]

    def _renew(
        self, seen: Credential, record: Account | KeeperError | None, rotate: bool, others: list[Outcome]
    ) -> Outcome:
        if seen.name != ACCESS_TOKEN and self._is_token_renewal_under_way(seen.account):
            return outcome.skipped(seen.account, seen.name, "its access token is being renewed; the ticket comes next")
        now = self._now()
        leased = self._table.credentials.change(seen, lifecycle.lease(seen, now))
        if leased is None:
            return outcome.skipped(seen.account, seen.name, "not due any more, or another renewal is in progress")
        attempt = Attempt(seen, leased, now, others=others)
        try:
            grant = self._fetch(attempt, record, rotate)
        except KeeperError as error:
            return self._fail(attempt, error)
        return self._publish(attempt, grant)

    # --- fetching

    def _fetch(self, attempt: Attempt, record: Account | KeeperError | None, rotate: bool) -> Grant:
        if isinstance(record, KeeperError):
            raise record
        leased = attempt.leased
        if not record or record.app_id != leased.app_id or record.credentials.get(leased.name) is not leased.kind:
            raise RecordChangedError("the account's record has changed; the change is being applied")
        if leased.name != ACCESS_TOKEN:
            return self._fetch_ticket(attempt, record)
        if record.kind is Kind.CORP_TOKEN:
            return self._fetch_corp_token(attempt, record)
        return self._fetch_public_token(attempt, record, rotate)

    def _fetch_public_token(self, attempt: Attempt, account: Account, rotate: bool) -> Grant:
        """The next token of an appid: from `stable_token` in normal mode wherever minting might break a promise.

        Where that repeats a token that WeChat has refused, or refuses itself, a new one is minted as soon as that ends no
        token that readers are promised.
        """
        before, is_stable = attempt.before, account.kind is Kind.STABLE_TOKEN
        if not rotate and (is_stable or renewal.is_isolated(before, attempt.began_at)):
            ends_promise = not is_stable and not renewal.may_mint(before, attempt.began_at)
            try:
                grant = self._ask_stable_token(attempt, account)
                if not _is_refused(before, grant):
                    return grant
                if ends_promise:
                    raise WeChatError(REPEATED_ERRMSG)
            except WeChatError as error:
                # Where that fails once more for a transient reason, a token that is refused cannot wait for it.
                is_first_try = before.refused_at is None or before.failures == 0
                if is_stable or ends_promise or (error.failure_class is FailureClass.TRANSIENT and is_first_try):
                    raise
        try:
            grant = self._mint(attempt, account)
        except WeChatError as error:
            if error.outcome_known:
                raise
            # The response was lost. Normal mode repeats what a forced refresh has minted, and endangers nothing.
            grant = self._ask_stable_token(attempt, account)
        if _is_refused(before, grant):
            raise WeChatError(REPEATED_ERRMSG)
        return grant

    def _fetch_corp_token(self, attempt: Attempt, account: Account) -> Grant:
        grant = self._ask(attempt, lambda: self._wechat.fetch_token(account))
        if _is_refused(attempt.leased, grant) and not self._wechat.accepts(account.kind, grant.value):
            raise WeChatError(REPEATED_ERRMSG)
        return grant

    def _ask_stable_token(self, attempt: Attempt, account: Account) -> Grant:
        attempt.isolated = account.kind is Kind.TOKEN
        return self._ask(attempt, lambda: self._wechat.fetch_token(account, isolated=True), mints=False)

    def _mint(self, attempt: Attempt, account: Account) -> Grant:
        leased, now = attempt.leased, self._now()
        if leased.refused_at is not None and not budget.may_fetch_on_demand(leased.kind, attempt.usage, now):
            raise QuotaError("the day's calls for refused tokens are used up; what is left is kept for renewals")
        if account.kind is Kind.TOKEN:
            attempt.mint_asked_at, attempt.isolated = now, False
            return self._ask(attempt, lambda: self._wechat.fetch_token(account))
        if not budget.may_force(attempt.usage, now):
            raise QuotaError("WeChat repeats the old token, and may not be forced to mint another one yet")
        # Recorded before it is made: it is counted, and the old value is served no more, even if this process dies.
        attempt.usage = budget.record(attempt.usage, now, forced=True)
        if self._table.credentials.change(leased, lifecycle.force(leased, attempt.usage, now)) is None:
            raise LeaseOverError(SUPERSEDED_ERRMSG)
        attempt.forced = True
        return self._ask(attempt, lambda: self._wechat.fetch_token(account, force=True))

    def _fetch_ticket(self, attempt: Attempt, account: Account) -> Grant:
        token = self._usable_token(account.name)
        try:
            return self._ask_ticket(attempt, account, token)
        except WeChatError as error:
            if error.failure_class is not FailureClass.CREDENTIAL or token.fingerprint is None:
                raise
        found = self._checker.check(account.name, token.fingerprint)
        if isinstance(found, Credential):
            attempt.others += self.renew(found, account)
        else:
            attempt.others.append(found)
            self._sleep(YOUNG_TOKEN_PAUSE if renewal.is_too_young_to_check(token, self._now()) else 0)
        return self._ask_ticket(attempt, account, self._usable_token(account.name))

    def _ask_ticket(self, attempt: Attempt, account: Account, token: Credential) -> Grant:
        return self._ask(attempt, lambda: self._wechat.fetch_ticket(account, attempt.leased.name, token.value or ""))

    def _usable_token(self, account: str) -> Credential:
        token = self._table.credentials.get(account, ACCESS_TOKEN)
        if token is None or self._now() >= renewal.usable_until(token):
            raise _NoTokenError("the account has no usable access token to ask with")
        return token

    def _is_token_renewal_under_way(self, account: str) -> bool:
        # Its renewer goes on with the account's tickets; a failure here would only have them wait.
        token = self._table.credentials.get(account, ACCESS_TOKEN)
        return token is not None and renewal.usable_until(token) <= self._now() < token.lease_until

    def _ask(self, attempt: Attempt, fetch: Callable[[], Grant], *, mints: bool = True) -> Grant:
        """Call WeChat under the lease. `mints`: the call may mint a value."""
        now = self._now()
        if now >= attempt.leased.lease_until:
            # Its result would be discarded, but WeChat would have minted it, and ended what another instance publishes.
            raise LeaseOverError("the lease ended before WeChat could be asked")
        if not attempt.isolated:  # which has another quota
            attempt.usage = budget.record(attempt.usage, now, calls=1)
        try:
            return fetch()
        except WeChatError as error:
            attempt.outcome_unknown |= mints and not error.outcome_known
            raise

    # --- what comes of it

    def _publish(self, attempt: Attempt, grant: Grant) -> Outcome:
        leased = attempt.leased
        published = self._table.credentials.change(leased, lifecycle.publish(attempt, grant, self._now()))
        if published is None:
            return outcome.skipped(leased.account, leased.name, SUPERSEDED_ERRMSG)
        self._events.add(published, is_renewed=published.fingerprint != leased.fingerprint)
        return outcome.renewed(published, self._now())

    def _fail(self, attempt: Attempt, error: KeeperError) -> Outcome:
        leased, failure = attempt.leased, error.failure(self._now())
        step = lifecycle.fail(attempt, failure, makes_event=not isinstance(error, _NoTokenError))
        failed = self._table.credentials.change(leased, step)
        if failed is None:
            return outcome.skipped(leased.account, leased.name, SUPERSEDED_ERRMSG)
        self._events.add(failed)
        used = budget.used(leased.kind, attempt.usage, failure.at)
        return outcome.failed(leased.account, leased.name, failure, failed.due_at, budget_used=used)


def not_stored(account: str, credential: str, error: Exception, now: int) -> Outcome:
    """A failure that could not be recorded: the lease, or what was due before, brings the next attempt."""
    failure = Failure(FailureClass.DEFECT, None, type(error).__name__, DEFECT_REMEDY, now)
    if isinstance(error, KeeperError):
        failure = error.failure(now)
    return outcome.failed(account, credential, failure, now + renewal.LEASE)


def _is_refused(leased: Credential, grant: Grant) -> bool:
    return fingerprint(grant.value) in leased.refused_fingerprints.split()
