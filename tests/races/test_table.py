"""Every method of the table once on DynamoDB's own engine: it knows the reserved words and refuses what moto lets pass."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import pytest

from infra import sam_template
from infra.cli.consumer_keys import new_consumer
from tests.support.world import START
from token_keeper.errors import StoreUnavailableError
from token_keeper.model import (
    ACCESS_TOKEN,
    Account,
    Consumer,
    Credential,
    DueCredential,
    Failure,
    FailureClass,
    Grant,
    Kind,
    Progress,
    Usage,
    digest,
    fingerprint,
)
from token_keeper.refresh import alerts, lifecycle
from token_keeper.refresh.lifecycle import Attempt
from token_keeper.table import Table
from token_keeper.table.accounts import Accounts
from token_keeper.table.credentials import Change, Credentials
from token_keeper.table.items import Entry

pytestmark = pytest.mark.xdist_group("dynamodb-local")

APP_ID = "wx0"
FAILURE = Failure(FailureClass.CONFIGURATION, 40013, "invalid appid", "Correct it.", START)
PASSING = Failure(FailureClass.TRANSIENT, None, "the connection broke", "Nothing to do.", START)
ENTRY = Entry("main", APP_ID, Kind.TOKEN, (ACCESS_TOKEN, "jsapi"), "1@0.000")
USAGE = Usage(day=20717, calls=2, forced=3, forced_at=START)
LEASE_END = START + 60
RETRIED_AT = START + 55
EXPIRES = START + 7200
DUE = EXPIRES - 540


def read(table: Table, account: str = "main") -> Credential:
    """The account's token as the table holds it."""
    credential = table.credentials.get(account, ACCESS_TOKEN)
    assert credential is not None
    return credential


def enrolled(table: Table, account: str = "main") -> Credential:
    """An enrolled token without a value, due at `START`."""
    table.credentials.enrol(account, ACCESS_TOKEN, Kind.TOKEN, APP_ID, due_at=START)
    return read(table, account)


def write(table: Table, seen: Credential, step: Change) -> Credential | None:
    """Write a step of the credential's life."""
    return table.credentials.change(seen, step)


def try_lease(table: Table, seen: Credential, now: int) -> Credential | None:
    """Try for a lease of a minute, as an instance that read the token like this."""
    return write(table, seen, lifecycle.lease(seen, now))


def leased(table: Table, now: int = START) -> Credential:
    """The token under a lease taken at `now`."""
    taken = try_lease(table, read(table), now)
    assert taken is not None
    return taken


def attempt_of(held: Credential, **changes: Any) -> Attempt:
    """The renewal that holds the lease, with all its calls made."""
    began_at = held.lease_until - 60
    before = replace(held, lease_until=0, at_risk_since=held.at_risk_since if held.at_risk_since != began_at else None)
    attempt = Attempt(before, held, began_at, **changes)
    attempt.usage = USAGE
    return attempt


def give(table: Table, held: Credential, value: str, *, asked_at: int = START) -> Credential | None:
    """Publish a value under the lease."""
    step = lifecycle.publish(attempt_of(held, mint_asked_at=asked_at), Grant(value, 7200, asked_at), asked_at)
    return write(table, held, step)


def fail(table: Table, held: Credential, failure: Failure, **changes: Any) -> Credential | None:
    """Record a failure under the lease."""
    return write(table, held, lifecycle.fail(attempt_of(held, **changes), failure, makes_event=False))


def alike(one: Credential | None, other: Credential | None) -> bool:
    """Whether both are the same, but for how often they have been written."""
    return one is not None and other is not None and replace(one, revision=0) == replace(other, revision=0)


def published(table: Table, value: str = "first") -> Credential:
    """An enrolled token with a value, fetched at `START`."""
    enrolled(table)
    credential = give(table, leased(table), value)
    assert credential is not None
    return credential


def account(name: str = "main", kind: Kind = Kind.TOKEN) -> Account:
    return Account(name, APP_ID, "secret", kind)


class AfterARefusal(Table):
    """The table, where something happens as soon as it has refused to put an item."""

    def __init__(self, table: Table, meanwhile: Callable[[], object]) -> None:
        super().__init__(self, table._items._name)  # type: ignore[arg-type]
        self._dynamodb, self._meanwhile = table._items._dynamodb, [meanwhile]

    def put_item(self, **put: Any) -> Any:
        try:
            return self._dynamodb.put_item(**put)
        except self._dynamodb.exceptions.ConditionalCheckFailedException:
            while self._meanwhile:
                self._meanwhile.pop()()
            raise


# --- one function for each method of Table, by the method's name


def get(table: Table) -> None:
    # Given a credential with all that can be known of one
    known = published(table)
    fail(table, leased(table, DUE), FAILURE, outcome_unknown=True)
    # When it is read
    # Then all of it is there; and a credential that is not kept is absent
    failed = replace(known, epoch=known.epoch + 1, due_at=DUE + 300, at_risk_since=DUE, failures=1, last_error=FAILURE)
    assert alike(table.credentials.get("main", ACCESS_TOKEN), failed)
    assert table.credentials.get("other", ACCESS_TOKEN) is None


def entry(table: Table) -> None:
    table.accounts.put_entry(ENTRY)
    assert table.accounts.entry("main") == ENTRY
    assert table.accounts.entry("other") is None


def entries(table: Table) -> None:
    # Given more entries than DynamoDB hands out at once: a page is a megabyte
    long = " ".join(["x" * 1000] * 250)
    wanted = [Entry(name, APP_ID, Kind.TOKEN, tuple(long.split()), None) for name in "abcdef"]
    for each in reversed(wanted):
        table.accounts.put_entry(each)
    # When they are read
    # Then all come, by name
    assert list(table.accounts.entries()) == wanted


def page(table: Table) -> None:
    # Given three entries
    for name in "abc":
        table.accounts.put_entry(replace(ENTRY, account=name))
    # When they are read by twos
    first, following = table.accounts.page(2, None)
    rest, end = table.accounts.page(2, following)
    # Then two come, and then the last one
    assert [each.account for each in (*first, *rest)] == ["a", "b", "c"]
    assert (following, end) == ("b", None)


def get_all(table: Table) -> None:
    # Given more credentials than one call may ask for
    names = [(f"a{number}", ACCESS_TOKEN) for number in range(101)]
    for name, _ in names:
        enrolled(table, name)
    # When all are asked for, and some that are not kept, as they are or as they were a moment ago
    asked = [*names, ("other", ACCESS_TOKEN), ("a0", "jsapi")]
    for consistent in (True, False):
        found = table.credentials.get_all(asked, consistent=consistent)
        # Then those that are kept come; nothing comes of nothing
        assert found == {(name, ACCESS_TOKEN): read(table, name) for name, _ in names}
    assert table.credentials.get_all([]) == {}


def list_due(table: Table) -> None:
    # Given a token that is due, one that has failed and is due later, and an account's entry, which is no credential
    enrolled(table)
    fail(table, leased(table), PASSING)
    enrolled(table, "early")
    table.accounts.put_entry(ENTRY)
    # When the index is asked
    # Then it lists what is due by then, or all, in the order in which they are due
    early, late = (
        DueCredential("early", ACCESS_TOKEN, Kind.TOKEN, START, 0),
        DueCredential("main", ACCESS_TOKEN, Kind.TOKEN, RETRIED_AT, 1),
    )
    assert table.list_due(START - 1) == ([], False)
    assert table.list_due(RETRIED_AT - 1) == ([early], False)
    assert table.list_due(RETRIED_AT) == table.list_due(None) == ([early, late], False)


def lease(table: Table) -> None:
    # Given a token that is due
    before = enrolled(table)
    # When a lease is taken, and at its end another one
    first, second = leased(table), leased(table, LEASE_END)
    # Then each raises the epoch and makes due again at its end; the risk counts from the first
    expected = replace(before, epoch=before.epoch + 1, due_at=LEASE_END, lease_until=LEASE_END, at_risk_since=START)
    assert alike(first, expected)
    assert alike(second, replace(expected, epoch=before.epoch + 2, due_at=LEASE_END + 60, lease_until=LEASE_END + 60))
    # And no instance gets one before that end, or of what is not kept
    for seen in (second, replace(second, account="other")):
        assert try_lease(table, seen, LEASE_END + 59 + 60 * (seen is not second)) is None
    # And, once a value is published, only one that has read it since, not one that saw the lease before it was given back
    live = give(table, second, "first")
    assert live is not None
    for seen in (before, second):
        assert try_lease(table, seen, DUE) is None
    assert try_lease(table, live, DUE) is not None


def publish(table: Table) -> None:
    # Given a token of 2000 characters, and a renewal of it that failed
    long = "x" * 2000
    published(table, long)
    fail(table, leased(table, DUE), PASSING, outcome_unknown=True)
    # When a new one is published
    held = leased(table, DUE + 60)
    now = give(table, held, "second", asked_at=DUE + 60)
    # Then it is all that counts, and what it replaced is known by its fingerprint
    assert now == read(table)
    assert now is not None
    assert now == Credential(
        "main",
        ACCESS_TOKEN,
        Kind.TOKEN,
        APP_ID,
        held.epoch,
        due_at=DUE + 6720,
        revision=now.revision,
        value="second",
        fingerprint=fingerprint("second"),
        previous_fingerprint=fingerprint(long),
        previous_digest=digest(long),
        previous_until=DUE + 300,
        fetched_at=DUE + 60,
        seen_at=DUE + 60,
        expires_at=DUE + 7260,
        minted_at=DUE + 60,
        usage=USAGE,
    )
    # And the same value again leaves that fingerprint as it is
    again = give(table, leased(table, DUE + 6720), "second", asked_at=DUE + 6720)
    assert again is not None
    assert again.previous_fingerprint == fingerprint(long)
    # And its age, too
    assert (again.fetched_at, again.expires_at) == (DUE + 60, DUE + 13920)
    # And nothing is published under an epoch that is over
    assert give(table, held, "old") is None


def fail_a_renewal(table: Table) -> None:
    # Given a live token whose renewal is under way
    before = published(table)
    held = leased(table, DUE)
    # When WeChat refuses
    assert fail(table, held, FAILURE)
    # Then it is due again, at no risk, and not leased; the value is as it was
    refused = replace(before, epoch=held.epoch, due_at=DUE + 300, failures=1, last_error=FAILURE)
    assert alike(read(table), refused)
    # And a failure without a response leaves it at risk, one without an error code is distinguished
    held = leased(table, DUE + 300)
    assert fail(table, held, PASSING, outcome_unknown=True)
    without_response = replace(
        refused, epoch=held.epoch, due_at=DUE + 355, at_risk_since=DUE + 300, failures=2, last_error=PASSING
    )
    assert alike(read(table), without_response)
    # And a value that must not be served stays so where the response to a forced refresh was lost, and else is served again
    held = leased(table, DUE + 360)
    forced = write(table, held, lifecycle.force(held, USAGE, DUE + 361))
    for is_lost, refused_at in ((True, DUE + 361), (False, None)):
        assert fail(table, held, PASSING, forced=True, outcome_unknown=is_lost)
        marked: dict[str, Any] = {"failures": 3, "refused_at": refused_at}
        assert alike(read(table), replace(without_response, epoch=held.epoch, due_at=DUE + 415, **marked))
    assert forced is not None
    # And nothing is recorded under an epoch that is over
    assert not fail(table, replace(held, epoch=held.epoch - 1), FAILURE)
    # And a value that WeChat has refused meanwhile, as the renewal takes longer than its lease, stays so
    seen = read(table)
    assert write(table, seen, lifecycle.refuse(seen, DUE + 420, foreign=False))
    assert fail(table, held, PASSING)
    assert read(table).refused_at == DUE + 420


def begin_check(table: Table) -> None:
    # Given a live token
    before = published(table)
    # When it is checked
    assert write(table, before, lifecycle.begin_check(before, START + 100))
    # Then nothing else has changed, and no renewal is hindered
    assert alike(read(table), replace(before, check_until=START + 120, checks_booked_until=START + 225))
    # And no other instance that saw the same begins one, nor one that saw a token which has been renewed since
    assert not write(table, before, lifecycle.begin_check(before, START + 100))
    seen = read(table)
    assert write(table, seen, lifecycle.begin_check(seen, START + 120))
    seen = read(table)
    leased(table, DUE)
    assert not write(table, seen, lifecycle.begin_check(seen, DUE))


def end_check(table: Table) -> None:
    # Given a check under way
    before = published(table)
    checking = write(table, before, lifecycle.begin_check(before, START + 100))
    assert checking is not None
    # When WeChat neither accepts nor refuses it, then only the check has ended
    write(table, before, lifecycle.end_check(before, accepted_at=None))
    assert alike(read(table), replace(before, checks_booked_until=START + 225))
    # And when it accepts the token, that is known
    write(table, before, lifecycle.end_check(before, accepted_at=START + 100))
    assert alike(read(table), replace(before, checks_booked_until=START + 225, checked_at=START + 100))
    # And nothing is said of another token
    renewed = give(table, leased(table, DUE), "second", asked_at=DUE)
    write(table, before, lifecycle.end_check(before, accepted_at=START + 200))
    assert read(table) == renewed


def refuse(table: Table) -> None:
    # Given a live token
    before = published(table)
    # When WeChat refuses it, because another client has invalidated it
    refused = write(table, before, lifecycle.refuse(before, START + 100, foreign=True))
    # Then it is due, that is counted, once, and makes an event
    expected = replace(before, refused_at=START + 100, refused_fingerprints=str(before.fingerprint), due_at=START + 100)
    expected = replace(expected, foreign_rotations=1, foreign_rotation_at=START + 100)
    assert refused == read(table)
    assert alike(replace(refused, unsent=""), expected)
    assert len(alerts.waiting(refused.unsent)) == 1
    assert not write(table, refused, lifecycle.refuse(refused, START + 101, foreign=True))
    # And its successor is served
    renewed = give(table, leased(table, START + 100), "second", asked_at=START + 100)
    assert renewed is not None
    assert (renewed.refused_at, renewed.foreign_rotations) == (None, 1)
    # And nothing is said of a token that has been renewed since
    assert not write(table, before, lifecycle.refuse(before, START + 200, foreign=False))
    assert read(table) == renewed
    # And the first is still remembered when so many have been refused as two hours of probes can find
    for at in range(START + 300, START + 300 + 24 * 300, 300):
        seen = read(table)
        assert write(table, seen, lifecycle.refuse(seen, at, foreign=False))
        give(table, leased(table, at), f"after {at}", asked_at=at)
    assert str(before.fingerprint) in read(table).refused_fingerprints.split()


def force(table: Table) -> None:
    # Given a renewal under way
    before = published(table)
    held = leased(table, DUE)
    # When it is about to force a refresh, then that is stored, under its own epoch only
    later = replace(USAGE, calls=9)
    assert write(table, held, lifecycle.force(held, later, DUE + 1))
    assert alike(read(table), replace(held, usage=later, refused_at=DUE + 1))
    # And once more under the same lease: the value has not been served since the first time
    assert write(table, held, lifecycle.force(held, later, DUE + 9))
    assert alike(read(table), replace(held, usage=later, refused_at=DUE + 1))
    assert not write(table, before, lifecycle.force(before, USAGE, DUE + 2))


def progress(table: Table) -> None:
    assert table.progress() == Progress()
    put_progress(table)


def sync_pending_from(table: Table) -> None:
    # Given a token that is due, and a sync to go on with later
    enrolled(table)
    table.sync_pending_from(START + 1)
    # Then it is listed from then on, and is no credential
    token = DueCredential("main", ACCESS_TOKEN, Kind.TOKEN, START, 0)
    assert table.list_due(START) == ([token], False)
    assert table.list_due(START + 1) == table.list_due(None) == ([token], True)


def end_sync(table: Table) -> None:
    # Given a sync that a run goes on with, and that another run has left unfinished since
    table.sync_pending_from(START)
    table.sync_pending_from(START + 1)
    # When the first has finished it, then it is still to be gone on with, until the other has finished it, too
    table.end_sync(START)
    assert table.list_due(None) == ([], True)
    for _ in range(2):
        table.end_sync(START + 1)
        assert table.list_due(None) == ([], False)


def put_progress(table: Table) -> None:
    for reached in (Progress("main", {"a": START, "b": START + 1}), Progress()):
        table.put_progress(reached)
        assert table.progress() == reached


def in_force(table: Table) -> None:
    def found() -> dict[tuple[str, str], Credential]:
        return table.accounts.in_force(account(), ENTRY.version)

    # Given a credential and its record, but no claim; then another account's claim
    token = enrolled(table)
    table.accounts.put_entry(ENTRY)
    assert found() == {}
    table.accounts.acquire_claim(account("other"), now=START)
    assert found() == {}
    table.accounts.release_claims("other", APP_ID, free_at=START)
    # When the account owns its appid
    table.accounts.acquire_claim(account(), now=START)
    # Then its credential comes, unless another version of the record is in force
    assert found() == {("main", ACCESS_TOKEN): token}
    table.accounts.put_entry(replace(ENTRY, version="2"))
    assert found() == {}


def acquire_claim(table: Table) -> None:
    # Given an account that claims its appid, twice
    assert (
        table.accounts.acquire_claim(account(), now=START)
        == table.accounts.acquire_claim(account(), now=START)
        == "main"
    )
    # When another account claims the same, whatever the endpoint
    # Then it gets the owner's name
    assert table.accounts.acquire_claim(account("other"), now=START) == "main"
    assert table.accounts.acquire_claim(account("other", Kind.STABLE_TOKEN), now=START) == "main"


def release_claims(table: Table) -> None:
    # Given an account with claims on two apps of a corp
    first, second = (Account("main", "ww0", secret, Kind.CORP_TOKEN) for secret in ("first", "second"))
    table.accounts.acquire_claim(first, now=START)
    table.accounts.acquire_claim(second, now=START)
    # When it releases all except one, and another account releases what it never had
    table.accounts.release_claims("main", "ww0", free_at=START, but=second.claim)
    table.accounts.release_claims("other", "ww0", free_at=START)
    # Then it owns that one
    assert table.accounts.acquire_claim(replace(first, name="other"), now=START) == "other"
    assert table.accounts.acquire_claim(replace(second, name="other"), now=START) == "main"
    # And in the end none is
    table.accounts.release_claims("main", APP_ID, free_at=START)
    assert table.accounts.acquire_claim(account("other", Kind.STABLE_TOKEN), now=START) == "other"
    # And one that is released for later can be claimed from then on
    table.accounts.release_claims("other", APP_ID, free_at=LEASE_END)
    assert table.accounts.acquire_claim(account(), now=LEASE_END - 1) == "other"
    assert table.accounts.acquire_claim(account(), now=LEASE_END) == "main"


def enrol(table: Table) -> None:
    # Given a credential that is kept
    before = published(table)
    # When it is enrolled again
    table.credentials.enrol("main", ACCESS_TOKEN, Kind.STABLE_TOKEN, APP_ID, due_at=DUE + 1)
    # Then it stays as it is
    assert read(table) == before
    # And for another appid, or for none where the record names none, it begins again
    for app_id in ("wx1", ""):
        table.credentials.enrol("main", ACCESS_TOKEN, Kind.STABLE_TOKEN, app_id, due_at=DUE + 1)
        now = read(table)
        assert now == Credential("main", ACCESS_TOKEN, Kind.STABLE_TOKEN, app_id, now.epoch, DUE + 1)
        assert now.epoch != before.epoch
    # And also where a renewal of the other appid begins or ends meanwhile, or its item is deleted
    for meanwhile in (lambda: leased(table, DUE + 1), lambda: table.credentials.drop("main", ACCESS_TOKEN)):
        table.credentials.enrol("main", ACCESS_TOKEN, Kind.TOKEN, "wx1", due_at=DUE + 1)
        AfterARefusal(table, meanwhile).credentials.enrol("main", ACCESS_TOKEN, Kind.TOKEN, "wx2", due_at=DUE + 1)
        assert read(table).app_id == "wx2"


def reschedule(table: Table) -> None:
    # Given a live token
    before = published(table)
    # When it is made due, and once more by an instance that saw it earlier
    for due_at in (START + 1, START + 2):
        write(table, before, lifecycle.reschedule(before, due_at))
    # Then only the first has done it, for all that look for what is due
    assert alike(read(table), replace(before, due_at=START + 1))
    assert table.list_due(START + 1) == ([DueCredential("main", ACCESS_TOKEN, Kind.TOKEN, START + 1, 0)], False)
    # And what is not kept does not begin to exist
    other = replace(before, account="other")
    write(table, other, lifecycle.reschedule(other, START + 1))
    assert table.credentials.get("other", ACCESS_TOKEN) is None


def change_kind(table: Table) -> None:
    # Given a live token whose renewal has been lost
    published(table)
    before = fail(table, leased(table, START + 60), PASSING, outcome_unknown=True)
    assert before is not None
    # When it is kept by the rules of another endpoint, and once more by an instance that saw it earlier
    for kind in (Kind.STABLE_TOKEN, Kind.TOKEN):
        write(table, before, lifecycle.change_kind(before, kind, START + 70))
    # Then only the first has done it; the rules of the old endpoint say how long the value works, and what no call may end
    changed: dict[str, Any] = {"due_at": START + 70, "expires_at": START + 360, "minted_at": START + 60}
    assert alike(read(table), replace(before, kind=Kind.STABLE_TOKEN, **changed))


def finish_entry(table: Table) -> None:
    # Given a change that is being applied
    first, second = (replace(ENTRY, version=None, applying=version) for version in ("1@0.000", "2@0.000"))
    table.accounts.put_entry(first)
    # When another is begun before it is finished
    table.accounts.put_entry(second)
    # Then only the later can be finished, by each instance that applies it
    assert not table.accounts.finish_entry(first)
    assert table.accounts.finish_entry(second)
    assert table.accounts.finish_entry(second)
    assert table.accounts.entry("main") == replace(second, version="2@0.000")
    # And an entry that is gone does not come back
    table.accounts.drop_entry("main")
    assert not table.accounts.finish_entry(second)
    assert table.accounts.entry("main") is None


def note_record_error(table: Table) -> None:
    # Given a live token
    before = published(table)
    # When something is noted that is not to make an event yet, and later again
    noted, again = (
        write(table, before, lifecycle.note_record_error(replace(FAILURE, at=at), next_attempt_at=DUE, alert_after=60))
        for at in (START, START + 60)
    )
    # Then it is in its health, and the second time it makes an event
    assert noted is not None
    assert again == read(table)
    assert alike(noted, replace(before, last_error=FAILURE))
    assert (again.failing_since, len(alerts.waiting(again.unsent))) == (START + 60, 1)
    # And one that is to make an event at once does so also beside an error of another instance, whose clock is ahead
    other = enrolled(table, "late")
    write(table, other, lifecycle.note_record_error(replace(PASSING, at=START + 2), next_attempt_at=DUE, alert_after=0))
    late = write(table, other, lifecycle.note_record_error(FAILURE, next_attempt_at=DUE, alert_after=0))
    assert late is not None
    assert len(alerts.waiting(late.unsent)) == 1
    # And what is not kept does not begin to exist
    other = replace(before, account="other")
    assert write(table, other, lifecycle.note_record_error(FAILURE, next_attempt_at=DUE, alert_after=0)) is None
    assert table.credentials.get("other", ACCESS_TOKEN) is None


def clear_record_error(table: Table) -> None:
    # Given a live token with an error of its record
    before = published(table)
    write(table, before, lifecycle.note_record_error(FAILURE, next_attempt_at=DUE, alert_after=60))
    # When nothing is wrong any more, then health says so; where nothing was wrong, nothing is written
    write(table, read(table), lifecycle.clear_record_error(START))
    assert alike(read(table), before)
    assert write(table, read(table), lifecycle.clear_record_error(START)) is None
    # And what a failed renewal says is not taken back
    fail(table, leased(table, DUE), PASSING)
    write(table, read(table), lifecycle.clear_record_error(START))
    assert read(table).last_error == PASSING


def change(table: Table) -> None:
    # Given a failure that makes an event, and a renewal that met it when it had not yet
    published(table)
    held = leased(table, DUE)
    step = lifecycle.note_record_error(FAILURE, next_attempt_at=DUE, alert_after=0)
    written = write(table, held, step)
    assert written is not None
    assert (written.failing_since, len(alerts.waiting(written.unsent))) == (START, 1)
    # When it fails, too
    failed = write(table, held, lifecycle.fail(attempt_of(held), FAILURE, makes_event=True))
    # Then it has overwritten nothing, and that is no second event
    assert failed is not None
    assert (failed.failing_since, failed.unsent, failed.failures) == (START, written.unsent, 1)
    # When it is renewed, and what waits is sent, which was read before that
    renewed = give(table, leased(table, DUE + 60), "second", asked_at=DUE + 60)
    assert renewed is not None
    first, second = alerts.waiting(renewed.unsent)
    write(table, written, lambda current: alerts.sent(current, first))
    # Then only that is gone, and what is not kept does not begin to exist
    assert (read(table).failing_since, read(table).unsent, read(table).value) == (0, second, "second")
    assert write(table, replace(written, account="other"), lambda current: replace(current, unsent="")) is None
    assert table.credentials.get("other", ACCESS_TOKEN) is None


def put_entry(table: Table) -> None:
    # Given an entry without a version, as of an account whose record was never usable
    table.accounts.put_entry(Entry("main", "", Kind.TOKEN, (ACCESS_TOKEN,), None))
    # When it is written again with all that there is to know
    table.accounts.put_entry(ENTRY)
    # Then only that is there
    assert table.accounts.entry("main") == ENTRY
    table.accounts.put_entry(replace(ENTRY, version=None))
    assert table.accounts.entry("main") == replace(ENTRY, version=None)


def drop(table: Table) -> None:
    # Given a token under a lease
    enrolled(table)
    held = leased(table)
    # When it is dropped, twice, then the first time returns it as it was
    assert table.credentials.drop("main", ACCESS_TOKEN) == held
    assert table.credentials.drop("main", ACCESS_TOKEN) is None
    # Then it is gone, also for those that look for what is due, and no result of that lease brings it back
    assert give(table, held, "late") is None
    assert not fail(table, held, FAILURE, outcome_unknown=True)
    assert table.credentials.get("main", ACCESS_TOKEN) is None
    assert table.list_due(None) == ([], False)


def drop_entry(table: Table) -> None:
    table.accounts.put_entry(ENTRY)
    table.accounts.drop_entry("main")
    table.accounts.drop_entry("main")
    assert table.accounts.entry("main") is None


def add_consumer(table: Table) -> Consumer:
    """A consumer as the command line writes it."""
    key, item = new_consumer("shop", ["main", "mini-*"], may_report=True, now=START)
    table._items._dynamodb.put_item(TableName=table._items._name, Item=item)
    return Consumer("shop", digest(key), ("main", "mini-*"), may_report=True)


def claims_on(table: Table) -> None:
    # Given a corp with two apps
    corp = Account("app", "ww0", "secret", Kind.CORP_TOKEN)
    others = replace(corp, name="other", secret="other")
    table.accounts.acquire_claim(corp, now=START)
    table.accounts.acquire_claim(others, now=START)
    # Then both are found, and nothing of a corp that is not kept
    assert table.accounts.claims_on("ww0") == {corp.claim: "app", others.claim: "other"}
    assert table.accounts.claims_on("ww1") == {}


def consumer(table: Table) -> None:
    shop = add_consumer(table)
    assert table.consumer(shop.key_digest) == shop
    assert table.consumer("0" * 64) is None


def account_of_token(table: Table) -> None:
    # Given a token that has been renewed once, and a ticket
    published(table, "first")
    give(table, leased(table, DUE), "second", asked_at=DUE)
    table.credentials.enrol("main", "jsapi", Kind.TICKET, APP_ID, due_at=START)
    ticket = table.credentials.get("main", "jsapi")
    assert ticket is not None
    held = try_lease(table, ticket, START)
    assert held is not None
    give(table, held, "ticket")
    # Then each index finds its own value, and no ticket
    found = {
        (index, value): table.credentials.account_of_token(index, fingerprint(value))
        for index in ("fingerprint", "previous_fingerprint")
        for value in ("first", "second", "ticket")
    }
    assert {asked for asked, owner in found.items() if owner == "main"} == {
        ("fingerprint", "second"),
        ("previous_fingerprint", "first"),
    }


METHODS: dict[str, Callable[[Table], None]] = {
    exercise.__name__: exercise
    for exercise in (
        *(get, get_all, entry, entries, page, list_due),
        *(progress, put_progress, sync_pending_from, end_sync, in_force),
        *(consumer, account_of_token, claims_on),
        *(acquire_claim, release_claims, put_entry, finish_entry, drop_entry),
        *(enrol, change, drop),
    )
}
STEPS: dict[str, Callable[[Table], None]] = {
    "fail" if step is fail_a_renewal else step.__name__: step
    for step in (
        *(lease, force, publish, fail_a_renewal, begin_check, end_check, refuse),
        *(reschedule, change_kind, note_record_error, clear_record_error),
    )
}
"""One function for each step of a credential's life."""


@pytest.mark.parametrize("method", METHODS | STEPS)
def test_engine_and_policy_take_what_the_method_sends(dynamodb: Any, table: Table, method: str) -> None:
    asked = set()

    def watch(params: dict[str, Any], **_: Any) -> None:
        if "IndexName" not in (body := json.loads(params["body"])):
            asked.update(re.findall(r'"(?:pk|:pk)": {"S": "([^"]+)"', json.dumps(body)))

    # When the method is called, then DynamoDB takes it
    dynamodb.meta.events.register("before-call.dynamodb", watch)
    try:
        (METHODS | STEPS)[method](table)
    finally:
        dynamodb.meta.events.unregister("before-call.dynamodb", watch)
    # And it asks for the partition keys alone that RefreshFunction's policy names, but for the readers' own
    assert asked
    assert [key for key in asked if not any(fnmatchcase(key, item) for item in (*permitted_keys(), "consumers"))] == []


def permitted_keys() -> list[str]:
    """The partition keys that RefreshFunction's policy names."""
    policies = sam_template.translate()["Resources"]["RefreshFunctionRole"]["Properties"]["Policies"]
    statements = (item for policy in policies for item in policy["PolicyDocument"]["Statement"])
    of_table = next(item for item in statements if item["Resource"] == {"Fn::GetAtt": ["TokenTable", "Arn"]})
    keys: list[str] = of_table["Condition"]["ForAllValues:StringLike"]["dynamodb:LeadingKeys"]
    return keys


def test_every_method_is_exercised() -> None:
    public = {name for part in (Table, Accounts, Credentials) for name in vars(part) if not name.startswith("_")}
    assert METHODS.keys() == public
    steps = {name for name, step in vars(lifecycle).items() if getattr(step, "__module__", "") == lifecycle.__name__}
    assert STEPS.keys() == {name for name in steps if name.islower() and not name.startswith("_")}


def test_a_table_that_is_not_there_is_an_unavailable_store(dynamodb: Any) -> None:
    with pytest.raises(StoreUnavailableError, match="ResourceNotFoundException"):
        Table(dynamodb, "no-such-table").credentials.get("main", ACCESS_TOKEN)


def test_an_item_of_another_release_can_be_read(table: Table) -> None:
    # Given an item that lacks what is new here, and holds what is not known here
    published(table)
    key = {"pk": {"S": "credential#main"}, "sk": {"S": ACCESS_TOKEN}}
    table._items._dynamodb.update_item(
        TableName=table._items._name,
        Key=key,
        UpdateExpression="SET spent.newer = :n, age_unknown = :n, last_error = :error REMOVE failures, minted_at, revision",
        ExpressionAttributeValues={
            ":n": {"N": "1"},
            ":error": {
                "M": {name: {"S": "newer"} for name in ("failure_class", "errmsg", "remedy")} | {"at": {"N": "1"}}
            },
        },
    )
    # Then it can be read, checked and renewed
    read_back = read(table)
    assert (read_back.failures, read_back.minted_at, read_back.usage) == (0, 0, USAGE)
    assert read_back.last_error == Failure(FailureClass.UNKNOWN, None, "newer", "newer", 1)
    assert write(table, read_back, lifecycle.begin_check(read_back, START + 100))
    assert table.list_due(DUE) == ([DueCredential("main", ACCESS_TOKEN, Kind.TOKEN, DUE, 0)], False)
    assert give(table, leased(table, DUE), "second", asked_at=DUE) is not None


@pytest.mark.parametrize("is_of_release_before", [False, True])
def test_the_release_before_can_publish_after_an_event(table: Table, *, is_of_release_before: bool) -> None:
    # Given a live token that has never failed; the release before enrols one without a word of that
    before = published(table)
    key = {"pk": {"S": "credential#main"}, "sk": {"S": ACCESS_TOKEN}}
    name, dynamodb = table._items._name, table._items._dynamodb
    if is_of_release_before:
        dynamodb.update_item(TableName=name, Key=key, UpdateExpression="REMOVE failing_since")
    # When it has an event all the same
    refused = write(table, before, lifecycle.refuse(before, START + 100, foreign=True))
    # Then the write of the release before, which an operator may go back to, meets the state that it has read
    assert refused is not None
    dynamodb.update_item(
        TableName=name,
        Key=key,
        UpdateExpression="SET due_at = :due_at",
        ConditionExpression="attribute_not_exists(unsent) OR (failing_since = :failing_since AND unsent = :unsent)",
        ExpressionAttributeValues={
            ":due_at": {"N": str(DUE)},
            ":failing_since": {"N": "0"},
            ":unsent": {"S": refused.unsent},
        },
    )
    assert read(table).due_at == DUE
