"""The real code with one small thing broken: what the simulation must catch. Each name says what is broken."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from token_keeper import budget, reader, renewal, table, wechat
from token_keeper.keeper import Keeper
from token_keeper.model import Failed, Grant, Verdict
from token_keeper.table import Table
from token_keeper.wechat import WeChat


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


_update, _update_leased = Table._update, Table._update_leased
_record_failure = Table.record_failure
_refusal, _ask = wechat._refusal, Keeper._ask


def _without_epoch(self: Table, leased: Any, update: str, values: Any) -> Any:
    key = table._key(leased.account, leased.name)
    return _update(self, key, update, "attribute_exists(pk) OR epoch = :epoch", {**values, ":epoch": leased.epoch})


def _failure_ends_the_value(self: Table, leased: Any, failure: Any, spent: Any, **told: Any) -> bool:
    return _record_failure(self, leased, failure, spent, **{**told, "dead": True})


def _failure_clears_the_value(self: Table, leased: Any, update: str, values: Any) -> Any:
    if ":last_error" in values:
        update += ", #value, fingerprint" if " REMOVE " in update else " REMOVE #value, fingerprint"
    return _update_leased(self, leased, update, values)


def _error_stored(self: Keeper, *asked: Any, **options: Any) -> Any:
    try:
        return _ask(self, *asked, **options)
    except wechat.WeChatError as error:
        return Grant(error.errmsg, 7200, int(self._clock()))


def _secret_told(errcode: object, errmsg: object, call: Any) -> Any:
    return _refusal(errcode, f"{errmsg} {dict(call.query)} {call.body}", wechat._Call("GET", "", {}))


def _still_served(self: Keeper, name: str) -> bool:
    return False


def _promise_whole_life(credential: Any, read_at: int) -> int:
    return int(credential.expires_at)


def _ttl_trusted(credential: Any) -> int:
    return 2**40 if credential.value else 0


def _life_from_now(credential: Any, grant: Any) -> int:
    return int(grant.asked_at + 7200)


def _lease_though_held(self: Table, key: Any, update: str, condition: str, values: Any) -> Any:
    return _update(self, key, update, condition.replace("lease_until <= :now AND ", ""), values)


def _bare_timer(credential: Any, grant: Any, *, together: int = 1) -> int:
    return int(grant.asked_at + 110 * 60)


def _lost_answer_is_a_refusal(self: Table, leased: Any, failure: Any, spent: Any, **told: Any) -> bool:
    return _record_failure(self, leased, failure, spent, **{**told, "at_risk": False})


def _stopped_by_a_failure(self: Keeper, dues: Any, seconds_left: Any, *, rotate: bool = False) -> Any:
    outcomes: list[Any] = []
    for due in sorted(dues, key=lambda due: -due.failures):
        for _name, record in self._accounts.read([due.account]):
            outcomes += self._renew(due, record, seconds_left, rotate=rotate, together=1)
        if isinstance(outcomes[-1], Failed):
            break
    return outcomes


def _report_uncompared(self: Any, account: str, reported: str) -> Any:
    # Whatever was reported, the current token is rotated for it.
    self._refresher._invoke({"renew": {"account": account, "credential": "access_token", "rotate": True}})
    return Verdict.REPLACED, self._read_afresh(account, "access_token")


MUTANTS = {
    "publishing does not require the epoch": Mutant(
        Table, "_update_leased", _without_epoch, ("order", "answers", "promise", "deleted")
    ),
    "a failure ends the live value": Mutant(Table, "record_failure", _failure_ends_the_value, ("answers",)),
    "a failure clears the live value": Mutant(Table, "_update_leased", _failure_clears_the_value, ("answers",)),
    "an error is stored as a value": Mutant(Keeper, "_ask", _error_stored, ("answers",)),
    "a malformed answer is taken as it comes": Mutant(wechat, "_parse", json.loads, ("defect",)),
    "a promise is WeChat's expires_in": Mutant(renewal, "promised_until", _promise_whole_life, ("promise",)),
    "the item's presence is trusted instead of its times": Mutant(
        renewal, "usable_until", _ttl_trusted, ("promise", "liveness")
    ),
    "a repeated value lives anew": Mutant(renewal, "expiry", _life_from_now, ("promise", "liveness")),
    "every report replaces": Mutant(WeChat, "accepts", lambda *_: False, ("promise", "reader", "answers", "one fetch")),
    "a report is not compared": Mutant(reader.Reader, "report", _report_uncompared, ("reader", "promise")),
    "what a late renewal has ended is not told": Mutant(
        Table, "distrust", lambda *_, **__: None, ("promise", "liveness")
    ),
    "a lease is taken though somebody holds it": Mutant(Table, "_update", _lease_though_held, ("one fetch", "promise")),
    "a lease never ends": Mutant(renewal, "LEASE", 10**6, ("liveness",)),
    "a lease does not make due again": Mutant(
        table, "_BEGIN", table._BEGIN.replace("due_at = :until, ", ""), ("liveness",)
    ),
    "whatever comes back is due in 110 minutes": Mutant(renewal, "next_due", _bare_timer, ("liveness",)),
    "a lost answer is taken for a refusal": Mutant(
        Table, "record_failure", _lost_answer_is_a_refusal, ("promise", "liveness")
    ),
    "a broken account stops the others": Mutant(Keeper, "_work_off", _stopped_by_a_failure, ("liveness",)),
    "a ticket of unknown age is trusted": Mutant(Table, "tickets_seen", lambda *_: set(), ("promise", "liveness")),
    "the forced refreshes are not counted": Mutant(budget, "may_force", lambda *_: True, ("budget",)),
    "the secret stands in the error's text": Mutant(wechat, "_refusal", _secret_told, ("secret",)),
    "a deleted account stays": Mutant(Keeper, "_drop", _still_served, ("deleted",)),
}
"""By what is broken."""
