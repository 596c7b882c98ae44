"""The real code with one small thing broken: what the simulation must catch. Each name says what is broken."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from tests.simulation.inline import Session
from token_keeper import budget, renewal
from token_keeper.api import reader
from token_keeper.model import ACCESS_TOKEN, Credential, Failure, Grant
from token_keeper.refresh import lifecycle, outcome, renewer, wechat
from token_keeper.refresh.checker import Checker
from token_keeper.refresh.enrolment import Enrolment
from token_keeper.refresh.keeper import Keeper
from token_keeper.refresh.lifecycle import Attempt
from token_keeper.refresh.renewer import Renewer
from token_keeper.refresh.wechat import WeChat
from token_keeper.table import credentials, items
from token_keeper.table.credentials import Change, Credentials
from token_keeper.table.items import credential_key, to_credential


@dataclass(frozen=True)
class Mutant:
    """One thing broken in `owner`: its attribute `name` becomes `broken`. `caught_as`: the invariants that may fail."""

    owner: Any
    name: str
    broken: Any
    caught_as: tuple[str, ...]

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Break it meanwhile."""
        with patch.object(self.owner, self.name, self.broken):
            yield


_refusal, _ask, _to_attributes = wechat._refusal, Renewer._ask, items.to_attributes
_lease, _publish, _fail = lifecycle.lease, lifecycle.publish, lifecycle.fail


def _publish_under_any_epoch(attempt: Attempt, grant: Grant, now: int) -> Change:
    def change(current: Credential) -> Credential | None:
        published = _publish(attempt, grant, now)(replace(current, epoch=attempt.leased.epoch))
        return published and replace(published, epoch=current.epoch)

    return change


def _lease_though_held(seen: Credential, now: int) -> Change:
    return lambda current: _lease(replace(seen, lease_until=0), now)(replace(current, lease_until=0))


def _lease_not_due_again(seen: Credential, now: int) -> Change:
    def change(current: Credential) -> Credential | None:
        leased = _lease(seen, now)(current)
        return leased and replace(leased, due_at=current.due_at)

    return change


def _fail_with(**changes: Any) -> Callable[..., Change]:
    def fail(attempt: Attempt, failure: Failure, *, makes_event: bool) -> Change:
        def change(current: Credential) -> Credential | None:
            failed = _fail(attempt, failure, makes_event=makes_event)(current)
            return failed and replace(failed, **changes)

        return change

    return fail


def _failure_ends_the_item(credential: Credential) -> Any:
    attributes = _to_attributes(credential)
    return attributes | ({"ttl": int(Session.world.clock())} if credential.failures else {})


def _read_inconsistently(self: Credentials, account: str, name: str) -> Any:
    items = self._items.get_all([credential_key(account, name)], consistent=False)
    return next(map(to_credential, items.values()), None)


def _error_stored(self: Renewer, *asked: Any, **options: Any) -> Any:
    try:
        return _ask(self, *asked, **options)
    except wechat.WeChatError as error:
        return Grant(error.errmsg, 7200, self._now())


def _secret_told(errcode: int, errmsg: object, call: Any) -> Any:
    return _refusal(errcode, f"{errmsg} {call.secret}", replace(call, secret="none"))


def _still_served(self: Enrolment, name: str) -> Any:
    return []


def _claims_first(self: Enrolment, name: str) -> Any:
    entry = self._table.accounts.entry(name)
    if entry is None:
        return []
    self._table.accounts.release_claims(name, entry.app_id, free_at=self._now())
    for credential in entry.credentials:
        self._table.credentials.drop(name, credential)
    self._table.accounts.drop_entry(name)
    return []


def _owner_unasked(self: Enrolment, due: Any, record: Any) -> Any:
    kept = self._table.credentials.get_all((each.account, each.name) for each in due)
    if any((each.account, each.name) not in kept for each in due):
        return None
    return [self._if_due(each, kept[each.account, each.name]) for each in due]


def _nothing_probed(self: Checker, has_time: Any) -> Iterator[Any]:
    yield outcome.Probed(0, 0, 0, 0)


def _promise_whole_life(credential: Any, read_at: int) -> int:
    return int(credential.expires_at)


def _ttl_trusted(credential: Any) -> int:
    return 2**40 if credential.value else 0


def _life_from_now(credential: Any, grant: Any) -> int:
    return int(grant.asked_at + 7200)


def _bare_timer(credential: Any, grant: Any, *, isolated: bool = False) -> int:
    return int(grant.asked_at + 110 * 60)


def _stopped_by_a_failure(self: Keeper, due: Any, has_time: Any, *, rotate: bool = False) -> Any:
    outcomes: list[Any] = []
    for each in sorted(due, key=lambda each: -each.failures):
        outcomes += self._keep({each.account: [each]}, has_time, rotate=rotate)
        if outcomes and outcomes[-1].what == "failed":
            break
    return outcomes


def _report_uncompared(self: reader.Reader, account: str, reported: str) -> Any:
    # Whatever was reported, the current token is checked.
    current = self._read_through(account, ACCESS_TOKEN).credential.fingerprint
    return self._verify(account, current or ""), self._read_through(account, ACCESS_TOKEN)


MUTANTS = {
    # 1: no promise is broken, and nothing older comes after something newer
    "a promise is WeChat's expires_in": Mutant(renewal, "promised_until", _promise_whole_life, ("promise",)),
    "a repeated value gets a full life again": Mutant(renewal, "expiry", _life_from_now, ("promise", "liveness")),
    "a credential is not read consistently": Mutant(
        Credentials, "get", _read_inconsistently, ("promise", "order", "dead", "reader")
    ),
    # 2: the epoch
    "publishing does not require the epoch": Mutant(
        lifecycle, "publish", _publish_under_any_epoch, ("order", "responses", "promise", "deleted", "claim")
    ),
    "a lease is taken though another instance holds it": Mutant(
        lifecycle, "lease", _lease_though_held, ("one fetch", "promise")
    ),
    # 3: the lease
    "a lease never ends": Mutant(renewal, "LEASE", 20_000, ("liveness",)),
    "a lease does not make due again": Mutant(lifecycle, "lease", _lease_not_due_again, ("liveness",)),
    "whatever comes back is due in 110 minutes": Mutant(renewal, "next_due", _bare_timer, ("liveness",)),
    # 4: failures
    "a failure clears the live value": Mutant(
        lifecycle, "fail", _fail_with(value=None, fingerprint=None), ("responses",)
    ),
    "a lost response is taken for a refusal": Mutant(
        lifecycle, "fail", _fail_with(at_risk_since=None), ("promise", "liveness")
    ),
    "repairs are not isolated": Mutant(renewal, "is_isolated", lambda *_: False, ("promise",)),
    "a token may be minted at any time": Mutant(renewal, "may_mint", lambda *_: True, ("promise",)),
    "an error is stored as a value": Mutant(Renewer, "_ask", _error_stored, ("responses", "defect")),
    "a malformed response is taken as it comes": Mutant(wechat, "json_object", json.loads, ("defect",)),
    "what a lagging index lists is renewed": Mutant(renewal, "is_still_due", lambda *_: True, ("retry", "one fetch")),
    # 5: one call, whatever is reported
    "every report replaces": Mutant(
        WeChat, "accepts", lambda *_: False, ("promise", "reader", "responses", "one fetch")
    ),
    "a report is not compared": Mutant(reader.Reader, "report", _report_uncompared, ("reader", "promise")),
    "reports are not limited": Mutant(budget, "report_wait", lambda *_: 0, ("budget",)),
    "a young token is declared dead": Mutant(renewal, "MIN_AGE_TO_CHECK", 0, ("responses",)),
    "what WeChat has refused is published again": Mutant(renewer, "_is_refused", lambda *_: False, ("dead",)),
    "the forced refreshes are not counted": Mutant(budget, "may_force", lambda *_: True, ("budget",)),
    # 6: times and not presence
    "the item's presence is trusted instead of its times": Mutant(
        renewal, "usable_until", _ttl_trusted, ("promise", "liveness", "dead")
    ),
    "a failure ends the item": Mutant(credentials, "to_attributes", _failure_ends_the_item, ("ttl",)),
    # 7: neighbours
    "a broken account stops the others": Mutant(Keeper, "_renew", _stopped_by_a_failure, ("liveness",)),
    # 8: secrets
    "the secret stands in the error's text": Mutant(wechat, "_refusal", _secret_told, ("secret",)),
    # 9: what dies early is found out
    "the probe asks nothing": Mutant(Checker, "probe", _nothing_probed, ("liveness",)),
    # which accounts are kept
    "a deleted account stays": Mutant(Enrolment, "_drop", _still_served, ("deleted",)),
    "a claim is released before its credentials are gone": Mutant(Enrolment, "_drop", _claims_first, ("claim",)),
    "an account fetches for an appid that it does not own": Mutant(
        Enrolment, "permit", _owner_unasked, ("claim", "promise")
    ),
}
"""By what is broken; in the order of the invariants in infra/docs/DESIGN.md."""
