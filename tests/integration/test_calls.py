"""Calls grow with the work and not with time or the number of accounts: they are counted over an AWS in memory, with the
keeper and the reader that run in Lambda, and a WeChat that grants whatever it is asked for.
"""

import threading
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from tests.simulation.memory_aws import MemoryAws
from tests.support.world import ACCOUNTS_PATH, Clock, create_table
from token_keeper.api.reader import REMEMBERED_FOR, Reader
from token_keeper.api.refresh_client import Refresher
from token_keeper.model import ACCESS_TOKEN, Account, Grant, ReportOutcome
from token_keeper.refresh.events import Events
from token_keeper.refresh.keeper import SYNC_TIME, WORKERS, Keeper
from token_keeper.refresh.outcome import verified
from token_keeper.refresh.parameter_store import ParameterStore
from token_keeper.renewal import MIN_AGE_TO_CHECK
from token_keeper.table import Table
from token_keeper.table.items import Entry

LIFE = 7200

pytestmark = pytest.mark.xdist_group("calls")  # the accounts are set up once


class Granting:
    """WeChat for as many accounts as one likes: every call mints a token, as long as they get. `during_call` is run in each."""

    def __init__(self, clock: Clock, calls: list[str]) -> None:
        self._clock, self._calls, self.numbers = clock, calls, count()
        self.during_call: Callable[[], object] = lambda: None

    def fetch_token(self, account: Account, *, isolated: bool = False, force: bool = False) -> Grant:
        self._calls.append("wechat")
        self.during_call()
        return Grant(f"{account.name}-{next(self.numbers)}".ljust(512, "t"), LIFE, int(self._clock()))

    def accepts(self, *_: object) -> bool:
        self._calls.append("wechat")
        return True


class Kept:
    """So many accounts, enrolled by one tick."""

    def __init__(self, accounts: int) -> None:
        self.clock, self.calls = Clock(), list[str]()
        self.aws = MemoryAws(self.clock)
        create_table(self.aws.client("dynamodb"), "tokens")
        for service in ("dynamodb", "ssm"):
            self.aws.client(service).meta.events.register("before-call", self._count, unique_id=1)
        self.wechat = Granting(self.clock, self.calls)
        self.table = Table(self.aws.client("dynamodb"), "tokens")
        found = ParameterStore(self.aws.client("ssm"), ACCOUNTS_PATH)
        events = Events(self.aws.client("events"), self.table, "production")
        self.keeper = Keeper(self.table, found, self.wechat, events, self.clock, self.clock.sleep)  # type: ignore[arg-type]
        self.put_parameters(accounts)
        list(self.keeper.tick(self.has_time))
        self.calls.clear()

    def put_parameters(self, accounts: int) -> None:
        """Add the parameters of so many accounts; their events are lost."""
        for number in range(accounts):
            record = f'{{"appid": "wx{number}", "secret": "s"}}'
            self.aws.client("ssm").put_parameter(Name=f"{ACCOUNTS_PATH}/a{number}", Value=record)

    def _count(self, event: str, *_: Any) -> None:
        self.calls.append(event.removeprefix("before-call."))

    def has_time(self) -> bool:
        return True

    def enrolled(self) -> list[Entry]:
        """The accounts whose records are in force."""
        return [entry for entry in self.table.accounts.entries() if entry.version]

    def due_times(self) -> list[int]:
        """When each credential is due, in epoch seconds."""
        return sorted(int(item["due_at"]["N"]) for item in self.aws.items.values() if "due_at" in item)

    def counted(self) -> Counter[str]:
        counted = Counter(self.calls)
        self.calls.clear()
        return counted


@pytest.fixture(scope="module", params=[1, 100, 1000, pytest.param(10_000, marks=pytest.mark.long)])
def kept(request: pytest.FixtureRequest) -> Kept:
    return Kept(request.param)


def test_a_guard_with_nothing_due_is_one_query(kept: Kept) -> None:
    assert list(kept.keeper.guard(kept.has_time)) == []
    assert kept.counted() == {"dynamodb.Query": 1}


def test_a_reader_reads_once_and_then_from_memory(kept: Kept) -> None:
    refresher = Refresher(None, "refresh")  # type: ignore[arg-type]
    reader = Reader(kept.table, refresher, lambda: int(kept.clock()), kept.clock.sleep)
    for _ in range(REMEMBERED_FOR):
        reader.read("a0", ACCESS_TOKEN)
        kept.clock.sleep(1)
    assert kept.counted() == {"dynamodb.GetItem": 1}


def test_a_renewal_is_two_writes_and_one_read(kept: Kept) -> None:
    # Given all accounts that come due in a minute
    kept.clock.now = kept.due_times()[0] + 60
    due = sum(at <= kept.clock() for at in kept.due_times())
    # When the guard renews them
    outcomes = list(kept.keeper.guard(kept.has_time))
    # Then each costs two writes and one read (is its record in force, and its appid its own?); parameters come by ten
    assert len(outcomes) == due
    assert {outcome.what for outcome in outcomes} == {"renewed"}
    assert kept.counted() == {
        "dynamodb.Query": 1,
        "dynamodb.BatchGetItem": due,
        "dynamodb.UpdateItem": 2 * due,
        "ssm.GetParameters": -(-due // 10),
        "wechat": due,
    }


def test_a_check_of_a_reported_token_is_two_writes_and_one_read(kept: Kept) -> None:
    # Given a live token
    token = kept.table.credentials.get("a0", ACCESS_TOKEN)
    assert token is not None
    assert token.fingerprint is not None
    kept.clock.now = max(kept.clock.now, token.fetched_at + MIN_AGE_TO_CHECK)
    kept.calls.clear()
    # When a client reports it, and WeChat accepts it
    outcomes = kept.keeper.verify("a0", token.fingerprint, kept.has_time)
    # Then the check is begun and ended
    assert outcomes == [verified(token, ReportOutcome.STILL_VALID)]
    assert kept.counted() == {"dynamodb.GetItem": 1, "dynamodb.UpdateItem": 2, "wechat": 1}


def test_many_due_accounts_are_renewed_side_by_side() -> None:
    # Given more accounts than can be renewed at a time, all due
    kept = Kept(WORKERS * 2)
    kept.clock.now = kept.due_times()[-1]
    # When each call to WeChat waits until as many others are under way
    meeting = threading.Barrier(WORKERS, timeout=120)
    kept.wechat.during_call = meeting.wait
    outcomes = list(kept.keeper.guard(kept.has_time))
    # Then all come together
    assert {outcome.what for outcome in outcomes} == {"renewed"}


def test_a_run_that_is_out_of_time_stops_and_the_next_continues() -> None:
    # Given 300 due accounts, and time for about a third of them
    kept = Kept(300)
    kept.clock.now = kept.due_times()[-1]

    def has_time() -> bool:
        return kept.calls.count("wechat") < 100

    # When the guard wakes up, then it stops before its time is over
    first = Counter(outcome.what for outcome in kept.keeper.guard(has_time))
    assert 100 <= first["renewed"] <= 105 + WORKERS
    assert first["skipped"] == 300 - first["renewed"]
    # And the next ones go on where it stopped
    kept.calls.clear()
    second = list(kept.keeper.guard(has_time))
    assert len(second) == first["skipped"]
    kept.calls.clear()
    list(kept.keeper.guard(has_time))
    assert list(kept.keeper.guard(has_time)) == []


def test_accounts_that_a_tick_cannot_enrol_are_the_guards() -> None:
    # Given 60 accounts that are not enrolled, and time for about a third of them
    kept = Kept(0)
    kept.put_parameters(60)

    def has_time() -> bool:
        return kept.calls.count("dynamodb.PutItem") < 60

    def die_in_the_sync() -> bool:
        if "ssm.GetParametersByPath" in kept.calls:
            raise SystemExit
        return kept.has_time()

    def go_on() -> int:
        kept.calls.clear()
        list(kept.keeper.guard(has_time))
        return len(kept.enrolled())

    # When the main tick fires, then it enrols what it can
    list(kept.keeper.tick(has_time))
    assert 10 <= len(kept.enrolled()) <= 20 + WORKERS
    # And guards go on with it; where one dies, another does so after two minutes
    first = go_on()
    assert 30 <= first < 60
    kept.calls.clear()
    with pytest.raises(SystemExit):
        list(kept.keeper.guard(die_in_the_sync))
    assert go_on() == first
    kept.clock.sleep(SYNC_TIME)
    assert go_on() > first
    while go_on() < 60:
        pass
    # Then each account has been asked for once, and a guard with nothing due is one query again
    go_on()
    assert next(kept.wechat.numbers) == 60
    kept.calls.clear()
    assert list(kept.keeper.guard(has_time)) == []
    assert kept.counted() == {"dynamodb.Query": 1}
