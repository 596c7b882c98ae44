"""The checker: asks WeChat whether access tokens still work. It never renews: what is dead it returns, to be renewed."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import batched

from token_keeper import budget, renewal
from token_keeper.clock import Now
from token_keeper.model import ACCESS_TOKEN, Credential, Progress, ReportOutcome
from token_keeper.refresh import lifecycle
from token_keeper.refresh.events import Events
from token_keeper.refresh.outcome import Outcome, Probed, skipped, verified
from token_keeper.refresh.wechat import KEPT_CONNECTIONS, Session, WeChat
from token_keeper.table import Table

PROBE_BATCH = 100
"""Accounts whose tokens are read in one call of DynamoDB (its limit), and probed together."""

type HasTime = Callable[[], bool]
"""Whether this invocation has time to begin with another credential, or with another batch of the probe."""

UNCLEAR_AT_MOST = 1000
"""Accounts that are remembered as unclear; their item then has some 80 KB, and DynamoDB takes 400."""


class Checker:
    """Checks access tokens, one that was reported or all of them."""

    def __init__(self, table: Table, wechat: WeChat, events: Events, now: Now) -> None:
        self._table = table
        self._events = events
        self._wechat = wechat
        self._now = now

    def check(self, account: str, reported: str) -> Outcome | Credential:
        """What is to be said of an access token, named by its fingerprint, that a client saw refused; the token if it is dead.

        However many report it, WeChat is asked once in `budget.CHECK_SERVES` seconds; nothing waits for a check under way.
        """
        token = self._table.credentials.get(account, ACCESS_TOKEN)
        if token is None or token.value is None:
            return skipped(account, ACCESS_TOKEN, "there is no token to check")
        now = self._now()
        if token.fingerprint != reported:
            return verified(token, ReportOutcome.SUPERSEDED)
        if renewal.is_checked(token, now):
            return verified(token, ReportOutcome.STILL_VALID)
        if token.refused_at is not None or now < max(token.lease_until, token.check_until):
            return verified(token, ReportOutcome.UNVERIFIED)
        if wait := budget.report_wait(token.checks_booked_until, now):
            return verified(token, ReportOutcome.LIMITED, retry_after=wait)
        checking = self._table.credentials.change(token, lifecycle.begin_check(token, now))
        if checking is None:
            return self.check(account, reported)  # another instance has begun one since
        accepts = self.accepts(checking)
        if accepts is False:
            return self._invalidate(checking) or verified(checking, ReportOutcome.UNVERIFIED)
        self._table.credentials.change(checking, lifecycle.end_check(checking, accepted_at=now if accepts else None))
        return verified(checking, ReportOutcome.STILL_VALID if accepts else ReportOutcome.UNVERIFIED)

    def probe(self, has_time: HasTime) -> Iterator[list[Credential] | Probed]:
        """Ask WeChat about every live access token: yields the dead ones, batch by batch, and at last the counts.

        A run that is cut off goes on where the one before stopped. Raises `StoreUnavailableError`.
        """
        progress = self._table.progress()
        accounts = [entry.account for entry in self._table.accounts.entries()]
        queue = sorted(accounts, key=lambda name: (name <= (progress.after or ""), name))
        unclear_since = {name: since for name, since in progress.unclear_since.items() if name in set(accounts)}
        counts, after = Counter[bool | None](), progress.after
        with self._wechat.probe_session() as session, ThreadPoolExecutor(KEPT_CONNECTIONS) as workers:
            for batch in batched(queue, PROBE_BATCH, strict=False):
                if not has_time():
                    break
                now = self._now()
                kept = self._table.credentials.get_all(
                    [(name, ACCESS_TOKEN) for name in batch], consistent=False
                ).values()
                for token in kept:
                    self._events.add_left(token, now)
                tokens = [token for token in kept if renewal.is_to_be_probed(token, now)]
                found = list(zip(tokens, workers.map(lambda token: self.accepts(token, session), tokens), strict=True))
                for token, accepts in found:
                    counts[accepts] += 1
                    if accepts is None:
                        unclear_since.setdefault(token.account, now)
                    else:
                        unclear_since.pop(token.account, None)
                dead = [self._invalidate(token) for token, accepts in found if accepts is False]
                yield [token for token in dead if token]
                after = batch[-1]
                queue = queue[len(batch) :]
        reached = Progress(after if queue else None, dict(sorted(unclear_since.items())[:UNCLEAR_AT_MOST]))
        if reached != progress:
            self._table.put_progress(reached)
        yield Probed(counts[True], counts[False], counts[None], len(queue))

    def _invalidate(self, token: Credential) -> Credential | None:
        """Stop serving a dead token; returns it, to be replaced, or None where it has changed meanwhile."""
        # A renewal of our own whose outcome is unknown may be the reason, too.
        foreign = token.at_risk_since is None
        refused = self._table.credentials.change(token, lifecycle.refuse(token, self._now(), foreign=foreign))
        if refused is not None:
            self._events.add(refused)
        return refused

    def accepts(self, token: Credential, session: Session | None = None) -> bool | None:
        """Whether WeChat accepts the token; None where it neither accepted nor refused it."""
        try:
            return self._wechat.accepts(token.kind, token.value or "", session)
        except Exception:  # noqa: BLE001 - WeChatError, or a defect, which must not keep the other accounts from being probed
            return None
