"""Every method of the table once on DynamoDB's own engine: it knows the reserved words and refuses what moto lets pass."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from infra.operations import new_consumer
from tests.world import START
from token_keeper.errors import StoreUnavailableError
from token_keeper.model import (
    ACCESS_TOKEN,
    Account,
    Consumer,
    Credential,
    Due,
    Failure,
    FailureClass,
    Grant,
    Kind,
    Spent,
    digest,
    fingerprint,
)
from token_keeper.table import Entry, Table

pytestmark = pytest.mark.xdist_group("dynamodb-local")

APP_ID = "wx0"
FAILURE = Failure(FailureClass.CONFIGURATION, 40013, "invalid appid", "Correct it.", START)
PASSING = Failure(FailureClass.TRANSIENT, None, "the connection broke", "Nothing to do.", START)
ENTRY = Entry("main", APP_ID, Kind.TOKEN, (ACCESS_TOKEN, "jsapi"), "1@0.000")
SPENT = Spent(day=20717, epoch=1, calls=2, forced=3, forced_at=START, checks=4)
LEASE_END = START + 60
EXPIRES = START + 7200
DUE = EXPIRES - 540


def read(table: Table, account: str = "main") -> Credential:
    """The account's token as the table holds it."""
    credential = table.credential(account, ACCESS_TOKEN)
    assert credential is not None
    return credential


def enrolled(table: Table, account: str = "main") -> Credential:
    """An enrolled token without a value, due at `START`."""
    table.enrol(account, ACCESS_TOKEN, Kind.TOKEN, APP_ID, due_at=START)
    return read(table, account)


def try_lease(
    table: Table, now: int, seen_due_at: int, *, name: str = "main", epoch: int | None = None, to_check: bool = False
) -> Credential | None:
    """Try for a lease of a minute, as somebody who saw in the index when it is due, or in the table its epoch."""
    due = Due(name, ACCESS_TOKEN, Kind.TOKEN, seen_due_at, 0, epoch)
    return table.take_lease(due, now=now, until=now + 60, to_check=to_check)


def leased(table: Table, now: int = START, *, to_check: bool = False) -> Credential:
    """The token under a lease taken at `now`."""
    taken = try_lease(table, now, read(table).due_at, to_check=to_check)
    assert taken is not None
    return taken


def give(
    table: Table, held: Credential, value: str, *, asked_at: int = START, foreign: bool = False
) -> Credential | None:
    """Publish a value under the lease."""
    grant = Grant(value, 7200, asked_at)
    return table.publish(held, grant, SPENT, expires_at=asked_at + 7200, due_at=asked_at + 6660, foreign=foreign)


def fail(
    table: Table, held: Credential, failure: Failure, due_at: int, *, at_risk: bool = False, dead: bool = False
) -> bool:
    """Record a failure under the lease."""
    return table.record_failure(held, failure, SPENT, due_at=due_at, at_risk=at_risk, dead=dead)


def published(table: Table, value: str = "first") -> Credential:
    """An enrolled token with a value, fetched at `START`."""
    enrolled(table)
    credential = give(table, leased(table), value)
    assert credential is not None
    return credential


def account(name: str = "main", kind: Kind = Kind.TOKEN) -> Account:
    return Account(name, APP_ID, "secret", kind)


# --- one function for each method of Table, by the method's name


def credential(table: Table) -> None:
    # Given a credential with all that can be known of one
    known = published(table)
    fail(table, leased(table, DUE), FAILURE, DUE + 60, at_risk=True)
    # When it is read
    # Then all of it is there; and a credential that nobody keeps is not
    assert table.credential("main", ACCESS_TOKEN) == replace(
        known, epoch=known.epoch + 1, due_at=DUE + 60, at_risk_since=DUE, failures=1, last_error=FAILURE
    )
    assert table.credential("other", ACCESS_TOKEN) is None


def entry(table: Table) -> None:
    table.put_entry(ENTRY)
    assert table.entry("main") == ENTRY
    assert table.entry("other") is None


def entries(table: Table) -> None:
    # Given more entries than DynamoDB hands out at once: a page is a megabyte
    long = " ".join(["x" * 1000] * 250)
    wanted = [Entry(name, APP_ID, Kind.TOKEN, tuple(long.split()), None) for name in "abcdef"]
    for one in reversed(wanted):
        table.put_entry(one)
    # When they are read
    # Then all come, by name
    assert list(table.entries()) == wanted


def page(table: Table) -> None:
    # Given three entries
    for name in "abc":
        table.put_entry(replace(ENTRY, account=name))
    # When they are read by twos
    first, following = table.page(2, None)
    rest, end = table.page(2, following)
    # Then two come, and then the last one
    assert [one.account for one in (*first, *rest)] == ["a", "b", "c"]
    assert (following, end) == ("b", None)


def credentials(table: Table) -> None:
    # Given more credentials than one call may ask for
    names = [f"a{number}" for number in range(101)]
    for name in names:
        enrolled(table, name)
    # When all are asked for, and one that nobody keeps
    asked = [replace(ENTRY, account=name, credentials=(ACCESS_TOKEN,)) for name in (*names, "other")]
    found = table.credentials(asked)
    # Then those that are kept come; nothing comes of nothing
    assert found == {(name, ACCESS_TOKEN): read(table, name) for name in names}
    assert table.credentials([]) == {}


def due(table: Table) -> None:
    # Given a token that is due, one that has failed and is due later, and an account's entry, which is no credential
    enrolled(table)
    fail(table, leased(table), PASSING, LEASE_END)
    enrolled(table, "early")
    table.put_entry(ENTRY)
    # When the index is asked
    # Then it lists what is due by then, or all, in the order in which they are due
    early, late = Due("early", ACCESS_TOKEN, Kind.TOKEN, START, 0), Due("main", ACCESS_TOKEN, Kind.TOKEN, LEASE_END, 1)
    assert table.due(START - 1) == []
    assert table.due(LEASE_END - 1) == [early]
    assert table.due(LEASE_END) == table.due(None) == [early, late]


def take_lease(table: Table) -> None:
    # Given a token that is due
    before = enrolled(table)
    # When a lease is taken, and at its end another one
    first, second = leased(table), leased(table, LEASE_END)
    # Then each raises the epoch and makes due again at its end; the risk counts from the first
    expected = replace(before, epoch=before.epoch + 1, due_at=LEASE_END, lease_until=LEASE_END, at_risk_since=START)
    assert first == expected
    assert second == replace(expected, epoch=before.epoch + 2, due_at=LEASE_END + 60, lease_until=LEASE_END + 60)
    # And nobody gets one before that end, or of what nobody keeps
    for name in ("main", "other"):
        for epoch in (None, second.epoch):
            assert try_lease(table, LEASE_END + 59, second.due_at, name=name, epoch=epoch) is None
    # And, once a value is published, only who saw it as it is; until it is due, then anybody
    live = give(table, second, "first")
    assert live is not None
    assert try_lease(table, DUE - 1, second.due_at) is None
    assert try_lease(table, DUE - 1, DUE, epoch=live.epoch - 1) is None
    for in_the_table in (False, True):
        held = try_lease(table, DUE - 1, DUE, epoch=live.epoch if in_the_table else None)
        assert held is not None
        live = give(table, held, "next")
        assert live is not None
    assert try_lease(table, DUE, second.due_at) is not None


def publish(table: Table) -> None:
    # Given a token of 2000 characters, and a renewal of it that failed
    long = "x" * 2000
    published(table, long)
    fail(table, leased(table, DUE), PASSING, DUE + 60, at_risk=True)
    # When a new one is published
    held = leased(table, DUE + 60)
    now = give(table, held, "second", asked_at=DUE + 60)
    # Then it is all that counts, and what it replaced is known by its fingerprint
    assert now == read(table)
    assert now == Credential(
        "main",
        ACCESS_TOKEN,
        Kind.TOKEN,
        APP_ID,
        held.epoch,
        due_at=DUE + 6720,
        value="second",
        fingerprint=fingerprint("second"),
        previous_fingerprint=fingerprint(long),
        previous_digest=digest(long),
        fetched_at=DUE + 60,
        expires_at=DUE + 7260,
        spent=SPENT,
    )
    # And the same value again leaves that fingerprint as it is
    again = give(table, leased(table, DUE + 6720), "second", asked_at=DUE + 6720, foreign=True)
    assert again is not None
    assert again.previous_fingerprint == fingerprint(long)
    # And it is counted that somebody else has rotated it
    assert (now.foreign_rotations, again.foreign_rotations, again.foreign_rotation_at) == (0, 1, DUE + 6720)
    # And nothing is published under an epoch that is over
    assert give(table, held, "old") is None


def record_failure(table: Table) -> None:
    # Given a live token whose renewal is under way
    before = published(table)
    held = leased(table, DUE)
    # When WeChat refuses
    assert fail(table, held, FAILURE, DUE + 60)
    # Then it is due again, at no risk, and nobody holds a lease; the value is as it was
    refused = replace(before, epoch=held.epoch, due_at=DUE + 60, failures=1, last_error=FAILURE)
    assert read(table) == refused
    # And a failure without an answer leaves it at risk, one without an error code is told apart
    held = leased(table, DUE + 60)
    assert fail(table, held, PASSING, DUE + 120, at_risk=True)
    unanswered = replace(
        refused, epoch=held.epoch, due_at=DUE + 120, at_risk_since=DUE + 60, failures=2, last_error=PASSING
    )
    assert read(table) == unanswered
    # And a value that WeChat calls dead has expired, when WeChat says so
    held = leased(table, DUE + 120)
    assert fail(table, held, PASSING, DUE + 180, dead=True)
    assert read(table) == replace(
        unanswered, epoch=held.epoch, due_at=DUE + 180, at_risk_since=None, failures=3, expires_at=PASSING.at
    )
    # And nothing is recorded under an epoch that is over
    assert not fail(table, replace(held, epoch=held.epoch - 1), FAILURE, START)


def release(table: Table) -> None:
    # Given a live token under a lease, to check it: nothing else has changed
    before = published(table)
    held = leased(table, START + 10, to_check=True)
    assert held == replace(before, epoch=before.epoch + 1, check_until=START + 70)
    later = replace(SPENT, checks=5)
    # When it works, and the lease is given back
    table.release(held, later, checked_at=START + 10)
    # Then it is as before, but for what that cost and when it was checked
    checked = replace(before, epoch=held.epoch, checked_at=START + 10, spent=later)
    assert read(table) == checked
    # And where nobody knows whether it works, not even that
    held = leased(table, START + 20, to_check=True)
    table.release(held, later, checked_at=None)
    assert read(table) == replace(checked, epoch=held.epoch)
    # And nothing is given back under an epoch that is over
    table.release(replace(held, epoch=held.epoch - 1), SPENT, checked_at=START)
    assert read(table) == replace(checked, epoch=held.epoch)


def begin_renewal(table: Table) -> None:
    # Given a live token under a lease, to check it
    before = published(table)
    held = leased(table, START + 10, to_check=True)
    # When it is dead, and its renewal begins
    begun = table.begin_renewal(held, now=START + 20, until=START + 80)
    # Then it is under a lease like any other
    until = START + 80
    assert begun == replace(held, lease_until=until, due_at=until, at_risk_since=START + 20)
    assert held.epoch == before.epoch + 1
    assert give(table, begun, "next") is not None
    # And nothing begins under an epoch that is over
    leased(table, DUE)
    assert table.begin_renewal(held, now=DUE, until=DUE + 60) is None


def tickets_seen(table: Table) -> None:
    tickets = ("jsapi", "wx_card")
    # Given an appid that one account keeps
    table.claim(account())
    assert table.tickets_seen("main", APP_ID, tickets, START) == set()
    # When it drops a ticket, then that may come again, for a while
    table.drop_credential("main", "jsapi", APP_ID, gone_at=START + 100)
    assert table.tickets_seen("main", APP_ID, tickets, START + 99) == {"jsapi"}
    assert table.tickets_seen("main", APP_ID, tickets, START + 100) == set()
    # And another account may find all of them seen
    assert table.tickets_seen("other", APP_ID, tickets, START) == set(tickets)


def distrust(table: Table) -> None:
    # Given a published token, and a renewal that was overtaken by it
    enrolled(table)
    overtaken, overtaking = leased(table), leased(table, LEASE_END)
    live = give(table, overtaking, "second")
    assert live is not None
    # When that tells that it has minted something, too
    table.distrust(overtaken, since=LEASE_END + 10, now=LEASE_END + 20)
    # Then the published one is at risk since, and due
    at_risk = replace(live, epoch=live.epoch + 1, at_risk_since=LEASE_END + 10, due_at=LEASE_END + 20)
    assert read(table) == at_risk
    # And what is about to be published instead is not: it would take the risk away
    assert give(table, overtaking, "third") is None
    # When a forced refresh tells so that has brought the same, or after which that was fetched, then that lives on
    for value, ended_until in (("second", live.fetched_at), ("own", live.fetched_at - 1)):
        ended = (fingerprint(value), ended_until)
        table.distrust(overtaken, since=LEASE_END, now=LEASE_END + 30, ended=ended)
        held = read(table)
        assert held is not None
        assert (held.expires_at, held.due_at) == (live.expires_at, LEASE_END + 30)
    # But else it has ended
    ended = (fingerprint("own"), live.fetched_at)
    table.distrust(overtaken, since=LEASE_END, now=LEASE_END + 31, ended=ended)
    held = read(table)
    assert held is not None
    assert (held.expires_at, held.due_at) == (LEASE_END + 31, LEASE_END + 31)
    # And nothing of this touches the tokens of the account's other endpoint
    table.make_due(held, Kind.STABLE_TOKEN, now=LEASE_END + 40)
    table.distrust(overtaken, since=LEASE_END, now=LEASE_END + 50)
    held = read(table)
    assert held is not None
    assert held.due_at == LEASE_END + 40
    # And nothing is known of what nobody keeps
    table.distrust(replace(overtaken, account="other"), since=START, now=START, ended=ended)
    assert table.credential("other", ACCESS_TOKEN) is None


def claim(table: Table) -> None:
    # Given an account that claims its appid, twice
    assert table.claim(account()) == table.claim(account()) == "main"
    # When another account claims the same
    # Then it is told who holds it; with another endpoint it gets its own
    assert table.claim(account("other")) == "main"
    assert table.claim(account("other", Kind.STABLE_TOKEN)) == "other"


def holder(table: Table) -> None:
    assert table.holder(account()) is None
    table.claim(account())
    assert table.holder(account("other")) == "main"
    assert table.holder(account("other", Kind.STABLE_TOKEN)) is None


def release_claims(table: Table) -> None:
    # Given an account with claims on both endpoints of an appid
    table.claim(account())
    table.claim(account(kind=Kind.STABLE_TOKEN))
    # When it releases all but one, and another account releases what it never had
    table.release_claims("main", APP_ID, but=Kind.STABLE_TOKEN)
    table.release_claims("other", APP_ID)
    # Then that one is still held
    assert table.claim(account("other")) == "other"
    assert table.claim(account("other", Kind.STABLE_TOKEN)) == "main"
    # And in the end none is
    table.release_claims("main", APP_ID)
    assert table.claim(account("other", Kind.STABLE_TOKEN)) == "other"


def enrol(table: Table) -> None:
    # Given a credential that is kept
    before = published(table)
    # When it is enrolled again
    table.enrol("main", ACCESS_TOKEN, Kind.STABLE_TOKEN, APP_ID, due_at=DUE + 1)
    # Then it stays as it is
    assert read(table) == before
    # And for another appid, or for none where the record tells none, it begins anew
    for app_id in ("wx1", ""):
        table.enrol("main", ACCESS_TOKEN, Kind.STABLE_TOKEN, app_id, due_at=DUE + 1)
        now = read(table)
        assert now == Credential("main", ACCESS_TOKEN, Kind.STABLE_TOKEN, app_id, now.epoch, DUE + 1)
        assert now.epoch != before.epoch


def make_due(table: Table) -> None:
    # Given a live token
    before = published(table)
    # When it is made due, by whoever saw it and by somebody who saw it earlier
    table.make_due(before, Kind.STABLE_TOKEN, now=START + 1)
    table.make_due(before, Kind.TOKEN, now=START + 2)
    # Then only the first has done it, for all that look for what is due
    assert read(table) == replace(before, due_at=START + 1, kind=Kind.STABLE_TOKEN)
    assert table.due(START + 1) == [Due("main", ACCESS_TOKEN, Kind.STABLE_TOKEN, START + 1, 0)]
    # And what nobody keeps does not begin to exist
    table.make_due(replace(before, account="other"), Kind.TOKEN, now=START + 1)
    assert table.credential("other", ACCESS_TOKEN) is None


def note(table: Table) -> None:
    # Given a live token
    before = published(table)
    # When something is noted, and then nothing any more
    table.note("main", ACCESS_TOKEN, FAILURE)
    noted = read(table)
    table.note("main", ACCESS_TOKEN, None)
    # Then it is in its health for as long
    assert noted == replace(before, last_error=FAILURE)
    assert read(table) == before
    # And what a failed renewal says is not taken back
    fail(table, leased(table, DUE), PASSING, DUE + 60)
    table.note("main", ACCESS_TOKEN, None)
    assert read(table).last_error == PASSING
    # And what nobody keeps does not begin to exist
    for failure in (FAILURE, None):
        table.note("other", ACCESS_TOKEN, failure)
    assert table.credential("other", ACCESS_TOKEN) is None


def put_entry(table: Table) -> None:
    # Given an entry without a version, as of an account whose record was never usable
    table.put_entry(Entry("main", "", Kind.TOKEN, (ACCESS_TOKEN,), None))
    # When it is written again with all that there is to know
    table.put_entry(ENTRY)
    # Then only that is there
    assert table.entry("main") == ENTRY
    table.put_entry(replace(ENTRY, version=None))
    assert table.entry("main") == replace(ENTRY, version=None)


def drop_credential(table: Table) -> None:
    # Given a token under a lease
    enrolled(table)
    held = leased(table)
    # When it is dropped, twice
    table.drop_credential("main", ACCESS_TOKEN, APP_ID, gone_at=DUE)
    table.drop_credential("main", ACCESS_TOKEN, APP_ID, gone_at=DUE)
    # Then it is gone, also for those that look for what is due, and no result of that lease brings it back
    assert give(table, held, "late") is None
    assert not fail(table, held, FAILURE, DUE, at_risk=True)
    assert table.credential("main", ACCESS_TOKEN) is None
    assert table.due(None) == []


def drop_entry(table: Table) -> None:
    table.put_entry(ENTRY)
    table.drop_entry("main")
    table.drop_entry("main")
    assert table.entry("main") is None


def add_consumer(table: Table) -> Consumer:
    """A consumer as the command line writes it."""
    key, item = new_consumer("shop", ["main", "mini-*"], may_report=True, now=START)
    table._dynamodb.put_item(TableName=table._name, Item=item)
    return Consumer("shop", digest(key), ("main", "mini-*"), may_report=True)


def claims(table: Table) -> None:
    # Given a corp with two apps
    corp = Account("app", "ww0", "secret", Kind.CORP_TOKEN)
    others = replace(corp, name="other", secret="other")
    table.claim(corp)
    table.claim(others)
    # Then both are found, and nothing of a corp that nobody keeps
    assert table.claims("ww0") == {corp.claim: "app", others.claim: "other"}
    assert table.claims("ww1") == {}


def consumer(table: Table) -> None:
    shop = add_consumer(table)
    assert table.consumer(shop.key_digest) == shop
    assert table.consumer("0" * 64) is None


def token_and_ticket(table: Table) -> None:
    token = published(table)
    assert table.token_and_ticket("main", "jsapi") == (token, None)
    table.enrol("main", "jsapi", Kind.TICKET, APP_ID, due_at=START)
    assert table.token_and_ticket("main", "jsapi") == (token, table.credential("main", "jsapi"))
    assert table.token_and_ticket("other", "jsapi") == (None, None)


def holder_of_token(table: Table) -> None:
    # Given a token that has been renewed once, and a ticket
    published(table, "first")
    give(table, leased(table, DUE), "second", asked_at=DUE)
    table.enrol("main", "jsapi", Kind.TICKET, APP_ID, due_at=START)
    due_ticket = Due("main", "jsapi", Kind.TICKET, START, 0)
    held = table.take_lease(due_ticket, now=START, until=LEASE_END)
    assert held is not None
    give(table, held, "ticket")
    # Then each index finds its own value, and no ticket
    found = {
        (index, value): table.holder_of_token(index, fingerprint(value))
        for index in ("fingerprint", "previous_fingerprint")
        for value in ("first", "second", "ticket")
    }
    assert {asked for asked, holder in found.items() if holder == "main"} == {
        ("fingerprint", "second"),
        ("previous_fingerprint", "first"),
    }


METHODS: dict[str, Callable[[Table], None]] = {
    exercise.__name__: exercise
    for exercise in (
        *(credential, entry, entries, page, credentials, due),
        *(take_lease, begin_renewal, publish, record_failure, release, distrust),
        *(consumer, token_and_ticket, holder_of_token, claims),
        *(claim, holder, release_claims, tickets_seen, enrol, make_due, note, put_entry, drop_credential, drop_entry),
    )
}


@pytest.mark.parametrize("method", METHODS)
def test_the_engine_takes_what_the_method_sends(table: Table, method: str) -> None:
    METHODS[method](table)


def test_every_method_is_exercised() -> None:
    assert METHODS.keys() == {name for name in vars(Table) if not name.startswith("_")}


def test_a_table_that_is_not_there_is_an_unavailable_store(dynamodb: Any) -> None:
    with pytest.raises(StoreUnavailableError, match="ResourceNotFoundException"):
        Table(dynamodb, "no-such-table").credential("main", ACCESS_TOKEN)
