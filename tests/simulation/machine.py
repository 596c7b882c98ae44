"""Everything that can go wrong, in any order: a stateful simulation of the real handlers.

    uv run python -m tests.simulation.machine --steps 200000 [--seed N]

Hypothesis chooses what happens: time passes (and the schedules fire as it passes, also while a call is under way), clients
read and report, people change records, WeChat, DynamoDB and Parameter Store fail, instances die. After every step the
invariants of the design must hold. Several instances with different clocks take turns; they meet inside each other's calls.
"""

import argparse
import contextlib
import heapq
import json
import logging
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import hypothesis
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

import api
import refresh
from infra.simulated_wechat import BEIJING, DAY, LIFE, OVERLAP, Answer, Fault, SimulatedWeChat
from tests.simulation.memory_aws import Item, MemoryAws
from tests.world import ACCOUNTS_PATH, Clock, World
from token_keeper import keeper, renewal, wechat
from token_keeper.budget import FORCED_A_DAY, FORCED_APART
from token_keeper.model import ACCESS_TOKEN, CORP_TICKETS, PUBLIC_TICKETS, FailureClass, Kind, fingerprint
from token_keeper.renewal import OLD_TICKET_LIFE

GUARD_EVERY, TICK_EVERY = 60, 110 * 60
"""Seconds."""

RUN_TIME = 120
"""Seconds RefreshFunction has."""

DEEPEST = 4
"""How many invocations may be under way inside each other."""

SKEWS = (0, -2, 3)
"""Seconds an instance's clock is off: no two by more than the margin."""

CALM = renewal.LEASE + GUARD_EVERY + renewal.SLOW_RETRY + 60
"""Seconds without trouble after which each account has a usable token; the last minute is for slow neighbours, because the
instances take turns here and their renewals one after the other."""

CALM_FOR_TICKETS = CALM + 120
"""Seconds; a ticket can be fetched only after its token."""

CALM_WITH_TICK = TICK_EVERY + CALM_FOR_TICKETS
"""Seconds, where only the main tick can find what there is to do: an event was lost, or an item."""

LONG_WAITS = {45009: renewal.QUOTA_RETRY, 48006: renewal.QUOTA_RETRY, **renewal.CONFIRMATION_WAITS}
"""Seconds the keeper waits after these errcodes because calling sooner would be wrong."""

RECORDS: dict[str, dict[str, Any]] = {
    "shop": {"appid": "wx_shop_000000001", "secret": "secret_of_shop_00000000000000001", "tickets": ["jsapi"]},
    "mini": {
        **{"appid": "wx_mini_000000001", "secret": "secret_of_mini_00000000000000001"},
        **{"endpoint": "stable_token", "tickets": ["wx_card"]},
    },
    "corp": {
        **{"corpid": "ww_corp_000000001", "secret": "secret_of_corp_00000000000000001"},
        "tickets": ["jsapi", "agent_config"],
    },
    "twin": {
        **{"appid": "wx_shop_000000001", "secret": "secret_of_shop_00000000000000001"},
        "endpoint": "stable_token",
    },
}
"""What people want kept, by account: both endpoints, a WeCom app, and one appid with a second endpoint."""

OTHER_APPID = "wx_other_00000001"

PATHS = {"token": "/cgi-bin/token", "stable_token": "/cgi-bin/stable_token", "corp": "/cgi-bin/gettoken"}
TICKET_PATHS = ("/cgi-bin/ticket/getticket", "/cgi-bin/get_jsapi_ticket", "/cgi-bin/ticket/get")
CHECK_PATH = "/cgi-bin/get_api_domain_ip"

FAULTS: dict[str, Callable[[], Fault]] = {
    **{
        f"errcode {code}": lambda code=code: Fault.error(code)  # type: ignore[misc]
        for code in (-1, 40001, 40125, 40164, 45009, 48001, 89503, 89507, 99999)
    },
    "an errmsg that repeats what was sent": lambda: Fault.error(40125, "wrong: {sent}"),
    "bad gateway": Fault.http,
    "bad gateway after the fact": lambda: Fault.http(carried_out=True),
    "redirect": Fault.redirect,
    "null": Fault.malformed,
    "no token": lambda: Fault.malformed(b'{"access_token":null,"expires_in":7200}'),
    "no life": lambda: Fault.malformed(b'{"access_token":"simulated_token_x","expires_in":-1}'),
    "html": lambda: Fault.malformed(b"<html>simulated_token_in_a_page</html>"),
    "truncated": Fault.truncated,
    "oversized": lambda: Fault.oversized(100_000),
    "lost after": Fault.drop_after,
    "lost before": Fault.drop_before,
    "slow": lambda: Fault.slow(3),
    "too slow": lambda: Fault.slow(30),
}


class InstanceKilled(BaseException):
    """The instance dies here and now; no handler of exceptions sees it."""


class InvocationError(Exception):
    """What Lambda makes of an instance that died."""


@dataclass(frozen=True)
class Minted:
    """A value that WeChat has minted: which one in the order of all, for what path, and whether for somebody else."""

    value: Any
    order: int
    path: str
    foreign: bool


@dataclass(frozen=True)
class Promise:
    """What a reader was told at `told_at`: that the value works until `until`."""

    account: str
    credential: str
    minted: Minted
    told_at: float
    until: float


@dataclass
class Frame:
    """One invocation of RefreshFunction: what it got from WeChat and what it published.

    `disturbed`: died, met a failing service or was held up; `mute`: one of the first two, so it may tell nobody of what it got.
    """

    event: Mapping[str, Any]
    began_at: float
    fetched: int = 0
    published: int = 0
    disturbed: bool = False
    mute: bool = False
    minted: list[str] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)


class PassingClock(Clock):
    """Epoch seconds; whoever waits lets the schedules fire meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.next_at: Callable[[], float] = lambda: float("inf")
        self.fire: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        ends = self.now + seconds
        while (at := self.next_at()) <= ends:
            self.now = max(self.now, at)
            self.fire()
        self.now = max(self.now, ends)


class WatchedWeChat(SimulatedWeChat):
    """The simulated WeChat, and a record of all that it mints and of why values die.

    `spoiled`: values that somebody else kills before their time, or that die because of it; `ended`: those that an operator
    ends. `orphans`: minted for us, but we never got to know them. `overtaken`: minted by a renewal that came so late that its
    lease was over; `ended_by`: the values that ended, by what was minted so late. `retried`: values that died early because
    an attempt followed one without an answer (DESIGN, invariant 4), or because of a late one. `succeeded_at`: when a value's
    own first successor was minted. `doubted`: published while a renewal was held up for its lease, which may have minted
    their successor: replaced to be sure.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.time = clock
        self.minted: dict[str, Minted] = {}
        self.spoiled: set[str] = set()
        self.ended: set[str] = set()
        self.published: set[str] = set()
        self.orphans: set[str] = set()
        self.retried: set[str] = set()
        self.succeeded_at: dict[str, float] = {}
        self.ended_by: dict[str, set[str]] = defaultdict(set)
        self.overtaken: set[str] = set()
        self.doubted: set[str] = set()
        self.foreign = False
        self.is_late: Callable[[], bool] = lambda: False
        self.at_point: Callable[[str], None] = lambda _: None
        self.met_fault: Callable[[str, str | None, Fault], None] = lambda *_: None
        self.answered: Callable[[str, Mapping[str, Any], list[str], bool], None] = lambda *_: None
        self._path = ""

    def answer(
        self, method: str, path: str, query: Mapping[str, str], body: bytes, remote_addr: str = "127.0.0.1"
    ) -> Answer:
        """As WeChat does."""
        if self.foreign:
            self._path = path
            return super().answer(method, path, query, body, remote_addr)
        if b'"force_refresh": true' not in body:
            # A forced one that is held up for longer than its caller waits is found out by the next guard, not before.
            self.at_point("wechat")
        self._path = path
        before = len(self.minted)
        answer = super().answer(method, path, query, body, remote_addr)
        minted = list(self.minted)[before:]
        whole = _is_whole(answer)
        if not whole:
            self.orphans.update(minted)
        self.answered(path, json.loads(body) if body else query, minted, whole)
        self.at_point("answered")
        return answer

    def _next_fault(self, path: str, account: str | None) -> Fault:
        if self.foreign:
            return Fault()
        fault = super()._next_fault(path, account)
        if fault != Fault():
            self.met_fault(path, account, fault)
        return fault

    def _refusal(self, ask: Any, refused: Any) -> dict[str, Any]:
        refused.errmsg = refused.errmsg.replace("{sent}", ask["secret"] or ask["corpsecret"] or ask["access_token"])
        return super()._refusal(ask, refused)

    def _mint(self, owner: Any, now: float, *, is_token: bool) -> Any:
        value = super()._mint(owner, now, is_token=is_token)
        self.minted[value.text] = Minted(value, len(self.minted), self._path, self.foreign)
        return value

    def _renew(self, app: Any, generations: Any, now: float, overlap: float) -> Any:
        before = [(value, value.dies_at) for value in generations]
        newest = super()._renew(app, generations, now, overlap)
        is_late = not self.foreign and self.is_late()
        if is_late:
            self.overtaken.add(newest.text)
        for value, dies_at in before:
            if value.dies_at < dies_at and (self.foreign or before[-1][0].text in self.spoiled):
                self.spoiled.add(value.text)  # also where it is ours that must follow one that somebody else has killed
            elif value is before[-1][0] and not is_late:
                self.succeeded_at[value.text] = now
            elif value.dies_at < dies_at and (
                is_late or (value is not before[-1][0] and self._is_unknown(before[-1][0], now))
            ):
                self.retried.add(value.text)
                if is_late:
                    self.succeeded_at.setdefault(value.text, now)
                    self.ended_by[newest.text].add(value.text)
        return newest

    def _is_unknown(self, value: Any, now: float) -> bool:
        lapsed = now - value.minted_at >= renewal.LEASE - renewal.MARGIN
        return value.text not in self.published and (value.text in self.orphans | self.overtaken or lapsed)


def _is_whole(answer: Answer) -> bool:
    if answer.drop or answer.status != 200 or answer.delay >= wechat.READ_TIMEOUT:
        return False
    try:
        told = json.loads(answer.body) if len(answer.body) <= wechat.ANSWER_LIMIT else None
    except ValueError:
        return False
    if not isinstance(told, dict):
        return False
    return "access_token" not in told or (bool(told["access_token"]) and told["expires_in"] > 0)


class WatchedWorld(World):
    """The system over AWS in memory, with instances whose clocks differ."""

    def __init__(self) -> None:
        self.ticking = PassingClock()
        self.aws = MemoryAws(self.ticking)
        super().__init__(self.aws.client, clock=self.ticking)
        self.watched = self.wechat = WatchedWeChat(self.ticking)
        self.secrets |= {record["secret"] for record in RECORDS.values()}
        self.frames: list[Frame] = []
        self.frame_ended: Callable[[Frame], None] = lambda _: None
        self.failed_with: Callable[[BaseException], None] = lambda _: None
        self.refreshers = [self._refresher(skew) for skew in SKEWS]
        self.readers = [self.reader(skew) for skew in SKEWS]
        self._turn = 0

    def internet(self) -> contextlib.AbstractContextManager[None]:
        """`wechat.Session` leads to the simulated WeChat."""
        return contextlib.nullcontext()

    def _refresher(self, skew: int) -> refresh.Handler:
        clock = self.ticking
        return refresh.connect(self.environment, lambda: clock() + skew, clock.sleep, self._client_of_functions)

    def reader(self, skew: int) -> api.Handler:
        """A new instance of ApiFunction, whose clock is off by so many seconds."""
        clock = self.ticking
        return api.connect(self.environment, lambda: clock() + skew, clock.sleep, self._client_of_api)

    def invoke(
        self, event: Mapping[str, Any], instance: refresh.Handler | None = None, seconds: float | None = None
    ) -> dict[str, Any]:
        """Invoke RefreshFunction, the instances in turns. Raises `InvocationError` where one dies."""
        self._turn += 1
        frame = Frame(event, self.clock())
        self.frames.append(frame)
        try:
            summary = super().invoke(event, self.refreshers[self._turn % len(self.refreshers)], RUN_TIME)
            frame.failed = summary["failed"]
            return summary
        except InstanceKilled:
            self.watched.orphans.update(set(frame.minted) - self.watched.published)
            raise InvocationError from None
        except Exception as error:
            self.failed_with(error)
            raise
        finally:
            if frame.mute:
                for text in set(frame.minted) - self.watched.published:
                    self.watched.spoiled |= self.watched.ended_by[text]
            self.frames.pop()
            self.frame_ended(frame)


@dataclass(eq=False)
class Mishap:
    """What happens when the given point is passed for the `skip`-th time from now."""

    point: str
    skip: int
    effect: str
    overlap: Mapping[str, Any] = field(default_factory=dict)
    seconds: int = 0


accounts = st.sampled_from(sorted(RECORDS))
readers = st.integers(0, len(SKEWS) - 1)
deliveries = st.sampled_from(["at once", "at once", "twice", "late", "lost"])
wakes = st.one_of(
    st.sampled_from([{"wake": "guard"}, {"wake": "guard"}, {"wake": "tick"}]),
    accounts.map(lambda name: {"renew": {"account": name, "credential": ACCESS_TOKEN}}),
    accounts.map(lambda name: {"verify": name}),
    accounts.map(lambda name: {"changed": name}),
    accounts.map(lambda name: {"read": name}),
)


class Simulation(RuleBasedStateMachine):
    """The rules are what happens, the invariants what must hold after each."""

    steps = 0
    """Of all simulations since the process began."""

    def __init__(self) -> None:
        super().__init__()
        self.world = WatchedWorld()
        self.wechat = self.world.watched
        self.clock = self.world.ticking
        self.violations: list[str] = []
        self.records: dict[str, dict[str, Any]] = {}
        self.secret_of: dict[str, str] = {}
        self.identities: dict[str, set[str]] = defaultdict(set)
        self.absent: set[str] = set()
        self.promises: list[Promise] = []
        self.served: dict[tuple[int, str, str, str], Minted] = {}
        self.last_promise: dict[tuple[int, str, str], float] = {}
        self.of_unknown_age: set[tuple[str, str, str]] = set()
        self.troubled_at: dict[str, float] = defaultdict(lambda: self.clock.now)
        self.outages: dict[str, float] = {}
        self.mishaps: list[Mishap] = []
        self.queue: list[tuple[float, int, dict[str, Any], int]] = []
        self.queued = 0
        self.next_schedule = {"guard": self.clock.now + GUARD_EVERY, "tick": self.clock.now}
        self.schedule_faults: list[str] = []
        self.calls_a_day: Counter[tuple[str, int]] = Counter()
        self.forced_a_day: Counter[tuple[str, int]] = Counter()
        self.forced_at: dict[str, float] = {}
        self.deaths = 0
        self.told_read = 0
        self.logged_read = len(LOGGED)
        self._watch()
        _Session.world = self.world

    def _watch(self) -> None:
        world, clock = self.world, self.clock
        world.before_aws = self._before_aws
        world.aws.after_write = self._after_write
        world.frame_ended = self._frame_ended
        world.failed_with = self._failed_with
        self.wechat.at_point = self._pass_point
        self.wechat.met_fault = self._met_fault
        self.wechat.answered = self._answered
        self.wechat.is_late = lambda: clock.now - world.frames[-1].began_at >= renewal.LEASE - renewal.MARGIN
        clock.next_at = self._next_at
        clock.fire = self._fire

    # --- what happens: the schedules, as time passes

    def _next_at(self) -> float:
        self.world.unreachable = self.clock.now < self.outages.get("wechat", 0)
        if len(self.world.frames) >= DEEPEST:
            return float("inf")
        return min(*self.next_schedule.values(), self.queue[0][0] if self.queue else float("inf"))

    def _fire(self) -> None:
        now = self.clock.now
        if self.queue and self.queue[0][0] <= now:
            _, _, event, attempts = heapq.heappop(self.queue)
            self._deliver(event, attempts)
            return
        schedule = min(self.next_schedule, key=self.next_schedule.__getitem__)
        self.next_schedule[schedule] += GUARD_EVERY if schedule == "guard" else TICK_EVERY
        fault = self.schedule_faults.pop() if self.schedule_faults else None
        if fault:
            self._trouble(TICK_EVERY if schedule == "tick" else 0)
        if fault == "late":
            self._enqueue({"wake": schedule}, 45)
        elif fault == "doubled":
            twin = Mishap("write", 0, "overlap", {"wake": schedule})
            self.mishaps.append(twin)
            self._deliver({"wake": schedule})
            self.mishaps = [mishap for mishap in self.mishaps if mishap is not twin]
        elif fault != "lost" and not (schedule == "guard" and self._finds_nothing()):
            self._deliver({"wake": schedule})

    def _finds_nothing(self) -> bool:
        """Whether a guard would make its one query and end: half of the run were such guards, so they are passed over."""
        if self.mishaps or self._is_down("dynamodb"):
            return False
        soon = self.clock.now + max(SKEWS)
        return all(int(item["due_at"]["N"]) > soon for item in self.world.aws.listed.values() if "due" in item)

    def _enqueue(self, event: dict[str, Any], seconds: float, attempts: int = 3) -> None:
        self.queued += 1
        heapq.heappush(self.queue, (self.clock.now + seconds, self.queued, event, attempts))

    def _deliver(self, event: dict[str, Any], attempts: int = 3) -> bool:
        """Wake RefreshFunction as AWS does: a failed invocation is repeated twice."""
        try:
            self.world.invoke(event)
        except Exception:  # noqa: BLE001 - as Lambda does; what it says is examined elsewhere
            self._trouble()
            if attempts > 1:
                self._enqueue(event, 60, attempts - 1)
            return False
        return True

    # --- what happens: rules

    @initialize(names=st.sets(accounts, min_size=1, max_size=3))
    def begin(self, names: set[str]) -> None:
        """Some accounts are kept from the start."""
        for name in sorted(names):
            self.add(name, "at once")

    @rule(name=accounts, delivery=deliveries)
    def add(self, name: str, delivery: str) -> None:
        """An account is added (again), as it was in the beginning."""
        if name not in self.records:
            self._put(name, dict(RECORDS[name]), delivery)
            self._correct_secret(name, delivery)

    @precondition(lambda self: self.records)
    @rule(name=accounts, delivery=deliveries)
    def delete(self, name: str, delivery: str) -> None:
        """An account's parameter is deleted."""
        if name in self.records:
            self._spoil(name)
            del self.records[name]
            self.world.ssm.delete_parameter(Name=f"{ACCOUNTS_PATH}/{name}")
            self._changed(name, delivery)

    @rule(
        name=accounts,
        change=st.sampled_from(
            ["wrong secret", "right secret", "reset secret", "endpoint", "tickets", "appid", "broken"]
        ),
        delivery=deliveries,
    )
    def record_changes(self, name: str, change: str, delivery: str) -> None:
        """Somebody changes an account's parameter, or its secret at WeChat."""
        name = self._kept(name)
        record = self.records.get(name)
        if record is None:
            return
        record = dict(record)
        identity = _identity(record)
        match change:
            case "wrong secret":
                record["secret"] = f"wrong_secret_of_{name}_000000000000001"
            case "right secret":
                self._correct_secret(name, delivery)
                return
            case "reset secret" if identity in self.secret_of:
                old = self.secret_of[identity]
                self.secret_of[identity] = f"{RECORDS[name]['secret']}_{self.clock.now:.0f}_{len(self.world.secrets)}"
                self.wechat.change_secret(identity, old, self.secret_of[identity])
                self.world.secrets.add(self.secret_of[identity])
                return
            case "endpoint" if "appid" in record:
                self._spoil(name)
                record["endpoint"] = "stable_token" if _endpoint(record) == "token" else "token"
            case "tickets":
                known = CORP_TICKETS if "corpid" in record else PUBLIC_TICKETS
                record["tickets"] = [ticket for ticket in known if ticket not in record.get("tickets", [])]
            case "appid" if "appid" in record:
                self._spoil(name)
                record["appid"] = OTHER_APPID if record["appid"] != OTHER_APPID else RECORDS[name]["appid"]
            case "broken":
                record["tickets"] = "simulated_token_in_the_wrong_place"
        self._put(name, record, delivery)

    @rule(seconds=st.sampled_from([1, 5, 20, 60, 100, 300]))
    def moments_pass(self, seconds: int) -> None:
        """The schedules fire meanwhile."""
        self.clock.sleep(seconds)

    @rule(seconds=st.sampled_from([600, 1800, 6600, 6900, 7200, 14000]))
    def hours_pass(self, seconds: int) -> None:
        """Long enough for values to be renewed."""
        self.clock.sleep(seconds)

    @rule(
        name=accounts,
        credential=st.sampled_from([ACCESS_TOKEN, ACCESS_TOKEN, "jsapi", "wx_card", "agent_config"]),
        reader=readers,
    )
    def read(self, name: str, credential: str, reader: int) -> None:
        """A client asks for a value."""
        name = self._kept(name)
        self._read(name, credential, reader)

    @rule(name=accounts, reader=readers, which=st.integers(0, 2), times=st.sampled_from([1, 1, 2, 5]))
    def report(self, name: str, reader: int, which: int, times: int) -> None:
        """Clients report the current token, or one of those before it."""
        name = self._kept(name)
        told = [
            promise.minted for promise in self.promises if (promise.account, promise.credential) == (name, ACCESS_TOKEN)
        ]
        reported = dict.fromkeys(minted.value.text for minted in reversed(told))
        item = self._item(name, ACCESS_TOKEN)
        candidates = [*([item["value"]["S"]] if item and "value" in item else []), *reported]
        if which >= len(candidates):
            return
        for _ in range(times):
            path = f"/v1/accounts/{name}/access-token/reports"
            body = json.dumps({"access_token": candidates[which]})
            status, answer, _ = self.world.request(path, self.world.readers[reader], body)
            if status == 200:
                self._handed_out(name, ACCESS_TOKEN, reader, answer)
                self._check_outcome(answer, self.wechat.minted[candidates[which]].value)

    @rule(reader=readers, name=accounts)
    def health(self, reader: int, name: str) -> None:
        """Somebody looks at the health."""
        self.world.get("/v1/accounts", self.world.readers[reader])
        self.world.get(f"/v1/accounts/{name}", self.world.readers[reader])

    @rule(
        name=accounts,
        faults=st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, max_size=3),
        what=st.sampled_from(["token", "token", "ticket", "check"]),
        times=st.sampled_from([1, 1, 2, 3]),
    )
    def wechat_fails(self, name: str, faults: list[str], what: str, times: int) -> None:
        """WeChat's next answers to an account are not what they should be."""
        if what == "check" and "errcode 40001" in faults:
            return  # a token that is called dead is dead: `somebody_else` kills it
        name = self._kept(name)
        record = self.records.get(name, RECORDS[name])
        path = CHECK_PATH
        if what == "token":
            path = self._token_path(name)
        elif what == "ticket":
            path = TICKET_PATHS[times % 2 + 1 if "corpid" in record else 0]
        self.wechat.fail(path, *[FAULTS[fault]() for fault in faults * times], account=_identity(record))

    @rule(what=st.sampled_from(["wechat", "dynamodb", "ssm"]), seconds=st.sampled_from([5, 70, 400, 2000]))
    def outage(self, what: str, seconds: int) -> None:
        """A whole service cannot be reached."""
        self.outages[what] = self.clock.now + seconds
        self.world.unreachable = self.clock.now < self.outages.get("wechat", 0)
        self._trouble(seconds)

    @rule(
        point=st.sampled_from(["write", "written", "read", "ssm", "wechat", "answered"]),
        skip=st.integers(0, 3),
        effect=st.sampled_from(["die", "fail", "overlap", "overlap"]),
        overlap=wakes,
        seconds=st.sampled_from([0, 0, 0, 5, 70]),
    )
    def something_comes_between(
        self, point: str, skip: int, effect: str, overlap: dict[str, Any], seconds: int
    ) -> None:
        """At some call that is to come an instance dies, a service fails once, or something else happens meanwhile."""
        self.mishaps.append(Mishap(point, skip, effect, overlap, seconds))

    @rule(
        point=st.sampled_from(["write", "written", "wechat", "answered"]),
        skip=st.integers(0, 1),
        effect=st.sampled_from(["die", "fail", "overlap"]),
        hours_later=st.booleans(),
        name=accounts,
    )
    def a_renewal_goes_wrong(self, point: str, skip: int, effect: str, hours_later: bool, name: str) -> None:
        """The next regular renewal, or one that an operator wants now, does not come to its end, or not before another."""
        self.mishaps.append(Mishap(point, skip, effect, {"wake": "guard"}, 70))
        if hours_later:
            self.clock.sleep(TICK_EVERY)
        else:
            self.operator_rotates(name, (1, 0))

    @rule(name=accounts)
    def an_operators_renewal_dies(self, name: str) -> None:
        """WeChat has replaced a value that was not due, and nobody lives to store the new one; ten minutes pass."""
        self.clock.sleep(FORCED_APART)
        self.mishaps.append(Mishap("answered", 0, "die"))
        self.operator_rotates(name, (1, 0))
        self.clock.sleep(CALM + GUARD_EVERY)

    @rule(name=accounts, reader=readers, seconds=st.sampled_from([20, 50, 80, 110]))
    def answers_get_lost(self, name: str, reader: int, seconds: int) -> None:
        """Nothing that WeChat answers to the next renewal and its repetitions arrives; soon after, a client asks."""
        name = self._kept(name)
        item = self._item(name, ACCESS_TOKEN)
        if item is None or name not in self.records:
            return
        self.wechat.fail(self._token_path(name), *[Fault.drop_after()] * 3, account=_identity(self.records[name]))
        self.clock.sleep(max(0, int(item["due_at"]["N"]) - self.clock.now) + seconds)
        self._read(name, ACCESS_TOKEN, reader)

    @rule(name=accounts, point=st.sampled_from(["wechat", "answered"]), reader=readers)
    def an_answer_comes_late(self, name: str, point: str, reader: int) -> None:
        """An account's next renewal reaches WeChat, or its answer arrives, when its lease is over, and after another's."""
        name = self._kept(name)
        item = self._item(name, ACCESS_TOKEN)
        if item is None:
            return
        ahead = renewal.RULES[Kind(item["kind"]["S"])].look_ahead + 1
        self.clock.sleep(max(0, int(item["due_at"]["N"]) - ahead - self.clock.now))
        self.mishaps.append(Mishap(point, 0, "overlap", {"wake": "guard"}, 70))
        self.clock.sleep(ahead + GUARD_EVERY)
        self._read(name, ACCESS_TOKEN, reader)

    @rule(name=accounts, reader=readers)
    def a_value_runs_out(self, name: str, reader: int) -> None:
        """WeChat cannot be reached from before an account's next renewal until its token is over, and a client asks."""
        name = self._kept(name)
        item = self._item(name, ACCESS_TOKEN)
        if item is None or "value" not in item:
            return
        self.clock.sleep(max(0, int(item["due_at"]["N"]) - 2 * GUARD_EVERY - self.clock.now - 1))
        left = max(0, int(item["expires_at"]["N"]) - self.clock.now)
        self.outage("wechat", int(left) + GUARD_EVERY)
        self.clock.sleep(left + GUARD_EVERY / 2)
        self._read(name, ACCESS_TOKEN, reader)

    @precondition(lambda self: self.records)
    @rule(name=accounts, reader=readers)
    def an_account_is_added_again(self, name: str, reader: int) -> None:
        """It is deleted, and added again at once."""
        name = self._kept(name)
        self.delete(name, "at once")
        self.add(name, "at once")
        for credential in (ACCESS_TOKEN, *RECORDS[name].get("tickets", [])):
            self._read(name, credential, reader)

    @rule(faults=st.lists(st.sampled_from(["late", "lost", "doubled"]), min_size=1, max_size=4))
    def schedules_go_wrong(self, faults: list[str]) -> None:
        """The next firings are late, lost or doubled."""
        self.schedule_faults += faults

    @rule()
    def index_lags(self) -> None:
        """For some seconds the table's index tells what was due before."""
        self.world.aws.lag(5)

    @rule(event=wakes)
    def unexpected_event(self, event: dict[str, Any]) -> None:
        """An event is delivered again, or for no reason."""
        self._happen(event)

    @rule(name=accounts, how=st.sampled_from(["kill", "fetch"]), ticket=st.booleans())
    def somebody_else(self, name: str, how: str, ticket: bool) -> None:
        """Somebody else fetches with this AppSecret, or the platform kills a value early."""
        name = self._kept(name)
        record = self.records.get(name)
        if record is None:
            return
        identity = _identity(record)
        if how == "kill":
            item = self._item(name, (record.get("tickets") or [ACCESS_TOKEN])[0] if ticket else ACCESS_TOKEN)
            value = item.get("value", {}).get("S") if item else None
            if value is None or not self.wechat.accepts(value):
                return
            self.wechat.kill(value)
            self.wechat.spoiled.add(value)
        elif "appid" in record and identity in self.secret_of:
            query = {"grant_type": "client_credential", "appid": identity, "secret": self.secret_of[identity]}
            self.wechat.foreign = True
            self.wechat.answer("GET", PATHS["token"], query, b"")
            self.wechat.foreign = False
        self._trouble(LIFE, identity)

    @rule(name=accounts, how_often=st.sampled_from([(1, 0), (1, 0), (3, 10), (25, 40)]))
    def operator_rotates(self, name: str, how_often: tuple[int, int]) -> None:
        """An operator wants a new value, now; so many times, with so many seconds in between."""
        times, pause = how_often
        name = self._kept(name)
        for _ in range(times):
            self._spoil(name)
            self._deliver({"renew": {"account": name, "credential": ACCESS_TOKEN, "rotate": True}}, attempts=1)
            self.clock.sleep(pause)

    @rule(name=accounts, credential=st.sampled_from([ACCESS_TOKEN, "jsapi"]))
    def housekeeping(self, name: str, credential: str) -> None:
        """DynamoDB deletes an item that is not past its time at all."""
        item = self.world.aws.items.pop((f"credential#{name}", credential), None)
        if item:
            self._forget_spent(item)
            self._spoil(name)
            self._trouble(0)
            self._disturb()

    @rule(reader=readers)
    def cold_start(self, reader: int) -> None:
        """A reader's instance is replaced by a new one."""
        self.world.readers[reader] = self.world.reader(SKEWS[reader])
        self.last_promise = {key: until for key, until in self.last_promise.items() if key[0] != reader}
        self.served = {key: minted for key, minted in self.served.items() if key[0] != reader}

    # --- how it happens

    def _kept(self, name: str) -> str:
        """An account that is kept, so that hardly a rule is without effect."""
        kept = sorted(self.records)
        return name if name in kept or not kept else kept[len(name + name[0]) % len(kept)]

    def _token_path(self, name: str) -> str:
        record = self.records.get(name, RECORDS[name])
        return PATHS["corp" if "corpid" in record else _endpoint(record)]

    def _put(self, name: str, record: dict[str, Any], delivery: str) -> None:
        self.records[name] = record
        identity = _identity(record)
        self.identities[name].add(identity)
        self.world.secrets.add(record["secret"])
        if identity not in self.secret_of:
            self.secret_of[identity] = record["secret"]
            open_app = self.wechat.add_corp_app if "corpid" in record else self.wechat.add_app
            open_app(identity, record["secret"])
        self.world.ssm.put_parameter(Name=f"{ACCOUNTS_PATH}/{name}", Value=json.dumps(record))
        self._changed(name, delivery)

    def _correct_secret(self, name: str, delivery: str) -> None:
        record = self.records[name]
        right = self.secret_of[_identity(record)]
        if record["secret"] != right or isinstance(record.get("tickets"), str):
            self._put(name, {**record, "secret": right, "tickets": RECORDS[name].get("tickets", [])}, delivery)

    def _changed(self, name: str, delivery: str) -> None:
        self._trouble()
        self._disturb()
        self.absent.discard(name)
        event = _change_event(name)
        if delivery == "late":
            self._enqueue(event, 100)
        elif delivery != "lost" and self._deliver(event) and name not in self.records and not self._is_down("dynamodb"):
            self.absent.add(name)
        if delivery == "twice":
            self._deliver(event)

    def _happen(self, event: Mapping[str, Any]) -> None:
        match event:
            case {"verify": name}:
                item = self._item(name, ACCESS_TOKEN)
                told = item["fingerprint"]["S"] if item and "fingerprint" in item else "0" * 16
                self._deliver({"verify": {"account": name, "fingerprint": told}}, attempts=1)
            case {"changed": name}:
                self._deliver(_change_event(name))
            case {"read": name}:
                self._read(name, ACCESS_TOKEN, 0)
            case _:
                self._deliver(dict(event), attempts=1)

    def _spoil(self, name: str) -> None:
        """An operator's act ends the promises of what the account has now."""
        record, path = self.records.get(name, RECORDS[name]), self._token_path(name)
        for text, minted in self.wechat.minted.items():
            if minted.path == path and minted.value.owner.account == _identity(record):
                self.wechat.ended.add(text)

    def _trouble(self, seconds: float = 0, identity: str | None = None) -> None:
        for name in RECORDS:
            if identity is None or _identity(self.records.get(name, RECORDS[name])) == identity:
                self.troubled_at[name] = max(self.troubled_at[name], self.clock.now + seconds)

    def _disturb(self) -> None:
        for frame in self.world.frames:
            frame.disturbed = True

    def _forget_spent(self, item: Item) -> None:
        """What an account has spent is forgotten with it; WeChat then answers one forced refresh too many with the old token."""
        for counted in (self.forced_a_day, self.forced_at):
            for key in [key for key in counted if item["app_id"]["S"] in (key, key[0])]:
                del counted[key]  # type: ignore[arg-type]

    def _is_down(self, service: str) -> bool:
        return self.clock.now < self.outages.get(service, 0)

    def _item(self, name: str, credential: str) -> Item | None:
        return self.world.aws.items.get((f"credential#{name}", credential))

    # --- what comes between

    def _before_aws(self, operation: str, _sent: bytes) -> None:
        service, _, call = operation.partition(".")
        if self._is_down(service):
            self._trouble()
            self._disturb_current()
            raise EndpointConnectionError(endpoint_url=f"https://{service}.invalid/")
        if service == "ssm":
            self._pass_point("ssm")
        elif service == "dynamodb":
            self._pass_point("write" if call in ("UpdateItem", "PutItem", "DeleteItem") else "read")

    def _pass_point(self, point: str) -> None:
        if not self.world.frames:
            return
        if self.clock.now - self.world.frames[-1].began_at > RUN_TIME:
            self._disturb_current()
            self._trouble(TICK_EVERY)
            self.deaths += 1
            raise InstanceKilled
        for mishap in [mishap for mishap in self.mishaps if mishap.point == point]:
            if mishap not in self.mishaps:
                continue  # it has struck meanwhile, inside the one before
            mishap.skip -= 1
            if mishap.skip < 0:
                self.mishaps.remove(mishap)
                self._strike(mishap)

    def _strike(self, mishap: Mishap) -> None:
        if mishap.effect == "overlap":
            if len(self.world.frames) < DEEPEST:
                self.clock.sleep(mishap.seconds)
                if mishap.seconds >= renewal.LEASE - renewal.MARGIN:
                    self._disturb_current(mute=False)
                    self._trouble()
                self._happen(mishap.overlap)
            return
        self._trouble(TICK_EVERY if "wake" in self.world.frames[-1].event and not self._taken_over() else 0)
        self._disturb_current()
        self.deaths += 1
        if mishap.effect == "die":
            raise InstanceKilled
        if mishap.point == "written":
            raise ReadTimeoutError(endpoint_url="https://dynamodb.invalid/")
        if mishap.point in ("write", "read", "ssm"):
            raise ClientError({"Error": {"Code": "ThrottlingException", "Message": "Rate exceeded"}}, mishap.point)

    def _taken_over(self) -> bool:
        return all(self._is_taken_over(name) for name in self.records)

    def _disturb_current(self, *, mute: bool = True) -> None:
        if self.world.frames:
            frame = self.world.frames[-1]
            frame.disturbed = True
            frame.mute |= mute
            self.wechat.orphans.update(set(frame.minted) - self.wechat.published)

    def _met_fault(self, _path: str, account: str | None, fault: Fault) -> None:
        self._trouble(fault.delay + LONG_WAITS.get(fault.errcode or 0, 0), account)

    def _failed_with(self, error: BaseException) -> None:
        at: BaseException | None = error
        while at is not None:
            self._keep_quiet("an exception", f"{at} {at.args!r}")
            at = at.__cause__ or at.__context__

    # --- what must hold: while it happens

    def _violate(self, invariant_name: str, text: str) -> None:
        self.violations.append(f"{invariant_name}: {text} (at {self.clock.now:.0f})")

    def _answered(self, path: str, asked: Mapping[str, Any], minted: list[str], whole: bool) -> None:
        frame = self.world.frames[-1]
        frame.minted += minted
        call = self.wechat.calls[-1]
        identity, day = str(call.account), int((self.clock.now + BEIJING) // DAY)
        if path == PATHS["token"]:
            self.calls_a_day[identity, day] += 1
            if self.calls_a_day[identity, day] > 2000:
                self._violate("budget", f"more than 2000 calls for {identity}")
        forced = asked.get("force_refresh") is True
        if forced:
            self.forced_a_day[identity, day] += 1
            if self.forced_a_day[identity, day] > FORCED_A_DAY + self.deaths:
                self._violate("budget", f"more than {FORCED_A_DAY} forced refreshes of {identity}")
            apart = self.clock.now - self.forced_at.get(identity, 0)
            if apart < FORCED_APART - renewal.MARGIN and not self.deaths:
                self._violate("budget", f"forced {identity} twice within {apart:.0f} s")
            self.forced_at[identity] = self.clock.now
        if (
            path in PATHS.values()
            and whole
            and call.errcode == 0
            and not forced
            and not self._checks_secret(path, frame)
        ):
            frame.fetched += 1

    def _checks_secret(self, path: str, frame: Frame) -> bool:
        """A call for a changed record: `stable_token` in its normal mode mints nothing anew."""
        return path == PATHS["stable_token"] and ("wake" not in frame.event or frame.event["wake"] == "tick")

    def _frame_ended(self, frame: Frame) -> None:
        for failed in frame.failed:
            if failed["class"] == FailureClass.DEFECT:
                self._violate("defect", f"{frame.event}: {failed['errmsg']}")
        # Who is held up for a lease may be overtaken; the other instance's clock may be ahead.
        in_time = self.clock.now - frame.began_at < renewal.LEASE - renewal.MARGIN
        if not frame.disturbed and in_time and frame.fetched > frame.published:
            self._violate("one fetch", f"{frame.event} fetched {frame.fetched} and published {frame.published}")

    def _after_write(self, what: str, before: Item | None, after: Item | None) -> None:
        if (before or after or {})["pk"]["S"].startswith("credential#"):
            self._credential_written(what, before, after)
        self._pass_point("written")

    def _credential_written(self, what: str, before: Item | None, after: Item | None) -> None:
        if after is None:
            if before:
                self._forget_spent(before)
            return
        name, credential = after["pk"]["S"].partition("#")[2], after["sk"]["S"]
        if before is not None and before["app_id"] != after["app_id"]:
            self._forget_spent(before)
            return
        old, new = _text(before), _text(after)
        if what.startswith("SET #value") and self.world.frames:
            self.world.frames[-1].published += 1
        if new is not None and new not in self.wechat.minted:
            self._violate("answers", f"{name}/{credential}: what is stored as a value is none")
            return
        if new is not None and what.startswith("SET #value"):
            self.wechat.published.add(new)
        # The other case of `OLD_TICKET_LIFE`: after a lost answer a ticket's life is counted too short, and it comes back.
        came_back = (
            new is not None
            and new == old
            and credential != ACCESS_TOKEN
            and before is not None
            and int(after["fetched_at"]["N"]) >= int(before["expires_at"]["N"])
        )
        if new is not None and ("age_unknown" in after or came_back):
            self.of_unknown_age.add((name, credential, new))
        if new is not None and self._is_in_doubt(what):
            self.wechat.doubted.add(new)
        if old is not None and new is None:
            self._violate("answers", f"{name}/{credential}: a write took the value away")
        if old is not None and new is not None and old != new:
            self._check_need(name, credential, self.wechat.minted[old], self.wechat.minted[new])
        if old is not None and new is not None and old in self.wechat.minted:
            self._check_order(name, credential, self.wechat.minted[old], self.wechat.minted[new], "was stored")
        failed = before is not None and int(after["failures"]["N"]) > int(before["failures"]["N"])
        is_wanted = old is not None and old not in self.wechat.ended  # an operator may have it end, answered or not
        if failed and old is not None and is_wanted and self.wechat.minted[old].value.dies_at > self.clock.now:
            assert before is not None
            if any(before.get(kept) != after.get(kept) for kept in ("value", "fingerprint", "expires_at")):
                self._violate("answers", f"{name}/{credential}: a failure changed the live value or its expiry")

    def _is_in_doubt(self, what: str) -> bool:
        """Whether a renewal that was overtaken says so, and was held up for a lease or disturbed: only then it can be."""
        if not what.startswith("SET at_risk_since") or not self.world.frames:
            return False
        frame = self.world.frames[-1]
        return frame.disturbed or self.clock.now - frame.began_at >= renewal.LEASE - renewal.MARGIN

    def _check_need(self, name: str, credential: str, older: Minted, newer: Minted) -> None:
        same = older.path == newer.path and older.value.owner is newer.value.owner
        apart = newer.value.minted_at - older.value.minted_at
        if (
            same
            and 0 <= apart < LIFE / 2
            and older.value.text
            not in self.wechat.spoiled | self.wechat.ended | self.wechat.retried | self.wechat.doubted
        ):
            self._violate(
                "one fetch", f"{name}/{credential}: a value was replaced {apart:.0f} s after it had been minted"
            )

    def _check_order(self, name: str, credential: str, older: Minted, newer: Minted, how: str) -> None:
        ended = self.wechat.spoiled | self.wechat.ended
        alive = older.value.dies_at > self.clock.now and older.value.text not in ended
        if newer.order < older.order and alive and newer.path == older.path and newer.value.owner is older.value.owner:
            self._violate("order", f"{name}/{credential}: an older value {how} after a newer one")

    # --- what must hold: for readers

    def _read(self, name: str, credential: str, reader: int) -> None:
        path = "access-token" if credential == ACCESS_TOKEN else f"tickets/{credential}"
        status, body = self.world.get(f"/v1/accounts/{name}/{path}", self.world.readers[reader])
        if status == 200:
            self._handed_out(name, credential, reader, body)

    def _handed_out(self, name: str, credential: str, reader: int, body: Mapping[str, Any]) -> None:
        text = body["access_token"] if credential == ACCESS_TOKEN else body["ticket"]
        now, minted = self.clock.now, self.wechat.minted.get(text)
        if minted is None or body["fingerprint"] != fingerprint(text):
            self._violate("answers", f"{name}/{credential}: a reader got what is no value")
            return
        if minted.value.owner.account not in self.identities[name]:
            self._violate("order", f"{name}/{credential}: a reader got another account's value")
        if body["expires_in"] < 1 or not 0 < body["cache_for"] <= min(60, body["expires_in"]):
            self._violate("promise", f"{name}/{credential}: a promise without time")
        until = now + body["expires_in"]
        of_reader = (reader, credential, text)
        if body["stale"] and until > self.last_promise.get(of_reader, 0):
            self._violate("reader", f"{name}/{credential}: a stale answer promises more than the one it is made of")
        self.last_promise[of_reader] = until
        key = (reader, name, credential, f"{minted.path} {minted.value.owner.account}")
        if key in self.served:
            self._check_order(name, credential, self.served[key], minted, "was handed out")
        self.served[key] = minted
        self.promises.append(Promise(name, credential, minted, now, until))

    def _check_outcome(self, answer: Mapping[str, Any], reported: Any) -> None:
        same = answer["fingerprint"] == fingerprint(reported.text)
        if same != (answer["outcome"] == "still_valid"):
            self._violate(
                "reader", f"a report was answered {answer['outcome']} with {'the same' if same else 'another'} value"
            )
        if answer["outcome"] == "replaced" and reported.dies_at > self.clock.now:
            self._violate("reader", "a report replaced a token that works")

    def _excuse(self, promise: Promise) -> str | None:
        """Why a value may have died before the end of its promise, in all the cases where it may."""
        value = promise.minted.value
        if value.text in self.wechat.spoiled | self.wechat.ended:
            return "somebody else or an operator has ended it"
        # DESIGN, invariant 4: the attempt before had no answer and had minted a successor, so this one was the second. From
        # the first on nobody is promised more than the overlap.
        succeeded_at = self.wechat.succeeded_at.get(value.text, promise.told_at)
        in_bounds = promise.told_at <= succeeded_at or promise.until <= succeeded_at + OVERLAP
        if value.text in self.wechat.retried and promise.minted.path == PATHS["token"] and in_bounds:
            return "a second attempt after one without an answer"
        if promise.until - promise.told_at <= 1 and promise.told_at - value.dies_at < renewal.MARGIN:
            return "a clock that is behind: at least a second is promised while a value lives"
        if (
            promise.account,
            promise.credential,
            value.text,
        ) in self.of_unknown_age and promise.until - value.dies_at <= OLD_TICKET_LIFE:
            return "a ticket that was forgotten and came back is trusted for so long at a time"
        return None

    @invariant()
    def values_live_as_promised(self) -> None:
        """Invariants 1 and 2."""
        kept = []
        for promise in self.promises:
            value = promise.minted.value
            if value.dies_at < promise.until and self._excuse(promise) is None:
                self._violate(
                    "promise",
                    f"{promise.account}/{promise.credential}: told at {promise.told_at:.0f} that it works until "
                    f"{promise.until:.0f}, it was minted at {value.minted_at:.0f} and dies at {value.dies_at:.0f}",
                )
            if promise.until > self.clock.now - 600:
                kept.append(promise)
        self.promises = kept[-200:]

    @invariant()
    def everything_is_live_again(self) -> None:
        """Invariants 3 and 7: an account that has had peace for so long has a usable value, whatever its neighbours do."""
        if self.violations:
            return  # told at the end of this step
        for name, record in self.records.items():
            if not self._is_right(name):
                continue
            calm = self.clock.now - self.troubled_at[name]
            for credential in (ACCESS_TOKEN, *record.get("tickets", [])):
                item = self._item(name, credential)
                bound = CALM if credential == ACCESS_TOKEN else CALM_FOR_TICKETS
                if item is None or self._item(name, ACCESS_TOKEN) is None or not self._is_taken_over(name):
                    bound = CALM_WITH_TICK
                text = _text(item)
                usable = text is not None and (
                    self.wechat.accepts(text) or self._is_just_renewed(name, credential, text)
                )
                if calm > bound and not usable and text not in self.wechat.spoiled:
                    self._violate(
                        "liveness", f"{name}/{credential} has had no usable value, {calm:.0f} s after the last trouble"
                    )

    @invariant()
    def nobody_is_served_a_deleted_account(self) -> None:
        """Invariant 8."""
        if self._is_down("dynamodb"):
            return
        for name in self.absent:
            status, _ = self.world.get(f"/v1/accounts/{name}/access-token", self.world.reader(0))
            if status != 404:
                self._violate("deleted", f"{name} is deleted and answered {status}")

    @invariant()
    def no_value_is_told(self) -> None:
        """Invariant 6."""
        told, logged = self.world.told[self.told_read :], LOGGED[self.logged_read :]
        self.told_read, self.logged_read = len(self.world.told), len(LOGGED)
        for text in told:
            self._keep_quiet("a summary, health or problem document", text)
        for text in logged:
            self._keep_quiet("a log line", text)

    def _keep_quiet(self, where: str, text: str) -> None:
        if "simulated_t" in text or any(secret in text for secret in self.world.secrets):
            self._violate("secret", f"{where} holds a value")

    @invariant()
    def nothing_was_violated(self) -> None:
        """The end of each step."""
        type(self).steps += 1
        Simulation.steps += type(self) is not Simulation
        if self.violations:
            raise AssertionError("\n".join(self.violations))

    def _is_right(self, name: str) -> bool:
        record = self.records[name]
        clash = any(
            (_identity(other), _endpoint(other)) == (_identity(record), _endpoint(record))
            for other_name, other in self.records.items()
            if other_name != name
        )
        return (
            record["secret"] == self.secret_of[_identity(record)]
            and not isinstance(record.get("tickets"), str)
            and not clash
        )

    def _is_just_renewed(self, name: str, credential: str, text: str) -> bool:
        """WeCom and tickets repeat the same value as long as it lives: its successor comes with the next guard, or reader."""
        repeats = "corpid" in self.records[name] or credential != ACCESS_TOKEN
        minted = self.wechat.minted[text]
        trusted = OLD_TICKET_LIFE if (name, credential, text) in self.of_unknown_age else 0
        return repeats and self.clock.now - minted.value.dies_at <= trusted + GUARD_EVERY + renewal.MARGIN

    def _is_taken_over(self, name: str) -> bool:
        entry = self.world.aws.items.get(("accounts", name))
        parameter = self.world.aws.parameters[f"{ACCOUNTS_PATH}/{name}"]
        version = f"{parameter['Version']}@{parameter['LastModifiedDate'].timestamp():.3f}"
        return entry is not None and entry.get("version", {}).get("S") == version


def _identity(record: Mapping[str, Any]) -> str:
    return str(record.get("corpid") or record["appid"])


def _endpoint(record: Mapping[str, Any]) -> str:
    return str(record.get("endpoint", "token"))


def _text(item: Item | None) -> str | None:
    return item["value"]["S"] if item and "value" in item else None


def _change_event(name: str) -> dict[str, Any]:
    detail = {"name": f"{ACCOUNTS_PATH}/{name}", "operation": "Update", "type": "SecureString"}
    return {"source": "aws.ssm", "detail-type": "Parameter Store Change", "detail": detail}


# --- running it

LOGGED: list[str] = []
"""What the functions have logged, each line with its extra fields."""


class _Log(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        LOGGED.append(f"{self.format(record)} {record.__dict__}")


class _InTurn(contextlib.AbstractContextManager["_InTurn"]):
    """A thread pool without threads: what is submitted is done at once, so that every run can be repeated."""

    def __init__(self, _workers: int) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args))
        except Exception as error:  # noqa: BLE001 - it is raised again where the result is asked for
            future.set_exception(error)
        return future


class _Answer(contextlib.AbstractContextManager["_Answer"]):
    """`urllib3.HTTPResponse`, as far as the functions use it."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self._body = body

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, _size: int, **_: Any) -> bytes:
        """The whole: a simulated answer never drips."""
        return self._body


class _Session(contextlib.AbstractContextManager["_Session"]):
    """`wechat.Session`, as far as the functions use it, and without HTTP, which was another third."""

    world: World

    def __exit__(self, *_: object) -> None:
        pass

    def urlopen(self, method: str, url: str, *, body: bytes | None, **_: Any) -> _Answer:
        """What the simulated WeChat of the running simulation answers, or what urllib3 raises."""
        status, _headers, answer = self.world.wechats_answer(method, url, body or b"")
        return _Answer(status, answer)


@contextlib.contextmanager
def simulated() -> Iterator[None]:
    """Renewals one after the other, and every log line kept in `LOGGED`."""
    handler = _Log()
    loggers = [logging.getLogger(name) for name in ("refresh", "api")]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        with (
            patch.object(keeper, "ThreadPoolExecutor", _InTurn),
            patch.object(wechat, "Session", _Session),
        ):
            yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        LOGGED.clear()


def simulate(examples: int, steps: int, *, seed: int = 0, shrink: bool = True) -> None:
    """Run so many simulations of so many steps each. Raises AssertionError with hypothesis' minimal example."""

    @hypothesis.seed(seed)
    class Seeded(Simulation):
        pass

    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    with simulated():
        run_state_machine_as_test(
            Seeded,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                database=None,
                phases=phases,
                verbosity=Verbosity.normal,
                print_blob=False,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )


def main() -> int:
    """The nightly run; returns 1 where an invariant was violated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args()
    console = Console()
    began_at, seed = time.monotonic(), asked.seed
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console) as progress:
            shown = progress.add_task("steps", total=asked.steps)
            while Simulation.steps < asked.steps:
                simulate(max(1, min(40, (asked.steps - Simulation.steps) // 50)), 50, seed=seed)
                seed += 1
                progress.update(shown, completed=Simulation.steps)
    except AssertionError as violation:
        console.print("\n".join([*getattr(violation, "__notes__", []), str(violation)]), markup=False, highlight=False)
        console.print(f"1 violation after {Simulation.steps} steps; seed {seed}")
        return 1
    rate = Simulation.steps / (time.monotonic() - began_at)
    console.print(
        f"{Simulation.steps} steps, seeds {asked.seed} to {seed - 1}, 0 violations, {rate:.0f} steps a second"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
