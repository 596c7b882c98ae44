"""Everything that can go wrong, in any order: a stateful simulation of the real handlers.

    uv run python -m tests.simulation.machine --steps 200000 [--seed N]

Hypothesis chooses what happens: time passes (and the schedules fire as it passes, also while a call is under way), clients
read and report, people change records, WeChat, DynamoDB and Parameter Store fail, instances die. After every step the
invariants of infra/docs/DESIGN.md must hold. Several instances with different clocks take turns; they meet inside each other's calls.
"""

import argparse
import gc
import heapq
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

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

from infra.local.simulated_wechat import BEIJING, DAY, LIFE, OVERLAP, Fault
from tests.simulation.inline import LOGGED, InTurn, Session, inline
from tests.simulation.memory_aws import Item
from tests.simulation.watched import (
    RUN_TIME,
    SKEWS,
    Frame,
    InstanceKilled,
    Minted,
    Mishap,
    Promise,
    WatchedWorld,
)
from tests.support.world import ACCOUNTS_PATH
from token_keeper import renewal
from token_keeper.api.reader import REMEMBERED_FOR
from token_keeper.budget import CHECK_SERVES, CHECKS_A_DAY, FORCED_A_DAY, FORCED_APART, REPORT_BURST, REPORT_INTERVAL
from token_keeper.model import ACCESS_TOKEN, CORP_TICKETS, PUBLIC_TICKETS, FailureClass, Kind, fingerprint
from token_keeper.renewal import MARGIN, UNKNOWN_AGE_LIFE

GUARD_EVERY, PROBE_EVERY, TICK_EVERY = 60, 300, 110 * 60
"""Seconds."""

EVERY = {"guard": GUARD_EVERY, "probe": PROBE_EVERY, "tick": TICK_EVERY}

DEEPEST = 4
"""How many invocations may be under way inside each other."""

REFUSALS_TOLD = 5
"""Of the guards that find nothing but wrong records one in so many runs; all of them would take a third of the time."""

CALM = renewal.LEASE + GUARD_EVERY + renewal.SLOW_RETRY + 60
"""Seconds without trouble after which each account has a usable token; the last minute is for slow neighbours, because the
instances take turns here and their renewals one after the other."""

CALM_FOR_TICKETS = CALM + 120
"""Seconds; a ticket can be fetched only after its token."""

CALM_WITH_TICK = TICK_EVERY + CALM_FOR_TICKETS
"""Seconds, where only the main tick can find what there is to do: an event was lost, or an item."""

FOUND_WITHIN = PROBE_EVERY + GUARD_EVERY + MARGIN + 5
"""Seconds after which a token that died early is replaced, where nothing else is wrong; some are for the calls."""

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
    "crm": {
        **{"corpid": "ww_corp_000000001", "secret": "secret_of_crm_000000000000000001"},
        "tickets": ["jsapi"],
    },
    "twin": {
        **{"appid": "wx_shop_000000001", "secret": "secret_of_shop_00000000000000001"},
        "endpoint": "stable_token",
    },
}
"""What people want kept, by account: both endpoints, two WeCom apps of one corp, and one appid under two names."""

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


accounts = st.sampled_from(sorted(RECORDS))
readers = st.integers(0, len(SKEWS) - 1)
deliveries = st.sampled_from(["at once", "at once", "twice", "late", "lost"])
wakes = st.one_of(
    st.sampled_from([{"wake": "guard"}, {"wake": "guard"}, {"wake": "tick"}, {"wake": "probe"}, {"next": "account"}]),
    accounts.map(lambda name: {"renew": {"account": name, "credential": ACCESS_TOKEN}}),
    accounts.map(lambda name: {"verify": name}),
    accounts.map(lambda name: {"changed": name}),
    accounts.map(lambda name: {"read": name}),
    accounts.map(lambda name: {"rotate": name}),
)


class Simulation(RuleBasedStateMachine):
    """The rules are what happens, the invariants what must hold after each."""

    steps = 0
    """Of all simulations since the process began."""

    def __init__(self) -> None:
        super().__init__()
        gc.collect()  # what the simulation before has left
        self.world = WatchedWorld()
        self.wechat = self.world.watched
        self.clock = self.world.ticking
        self.violations: list[str] = []
        self.records: dict[str, dict[str, Any]] = {}
        self.secret_of: dict[str, str] = {}
        self.apps: dict[str, set[Any]] = defaultdict(set)
        self.keys: dict[str, str] = {}
        self.absent: set[str] = set()
        self.applied: set[str] = set()
        self.ended: dict[str, float] = {}
        self.acts: dict[str, set[str]] = {}
        self.refused: dict[str, float] = {}
        self.killed_at: dict[str, float] = {}
        self.promises: list[Promise] = []
        self.served: dict[tuple[int, str, str, str], Minted] = {}
        self.last_promise: dict[tuple[int, str, str], float] = {}
        self.of_unknown_age: set[tuple[str, str, str]] = set()
        self.troubled_at: dict[str, float] = defaultdict(lambda: self.clock.now)
        self.outages: dict[str, float] = {}
        self.mishaps: list[Mishap] = []
        self.queue: list[tuple[float, int, dict[str, Any], int]] = []
        self.queued = 0
        self.next_schedule = {
            "guard": self.clock.now + GUARD_EVERY,
            "probe": self.clock.now + PROBE_EVERY / 2,
            "tick": self.clock.now,
        }
        self.schedule_faults: list[str] = []
        self.refused_again = 0
        self.calls_a_day: Counter[tuple[str, int]] = Counter()
        self.forced_a_day: Counter[tuple[str, int]] = Counter()
        self.forced_at: dict[str, float] = {}
        self.checks_a_day: Counter[tuple[Any, int]] = Counter()
        self.checked_at: dict[Any, list[float]] = defaultdict(list)
        self.said_read = 0
        self.logged_read = len(LOGGED)
        self._watch()
        self.world.secrets |= {record["secret"] for record in RECORDS.values()}
        Session.world = self.world
        for name in RECORDS:
            self.keys[name] = self.world.add_consumer(name, [name], may_report=True)

    def _watch(self) -> None:
        world, clock = self.world, self.clock
        world.aws_call = self._aws_call
        world.aws.after_write = self._after_write
        world.frame_ended = self._frame_ended
        world.failed_with = self._failed_with
        self.wechat.at_point = self._pass_point
        self.wechat.met_fault = self._met_fault
        self.wechat.responded = self._responded
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
        self.next_schedule[schedule] += EVERY[schedule]
        fault = self.schedule_faults.pop() if self.schedule_faults else None
        if fault:
            self._trouble({"guard": 0, "probe": PROBE_EVERY, "tick": TICK_EVERY}[schedule])
        if fault == "late":
            self._enqueue({"wake": schedule}, 45)
        elif fault == "doubled":
            twin = Mishap("write", 0, "overlap", {"wake": schedule})
            self.mishaps.append(twin)
            self._deliver({"wake": schedule})
            self.mishaps = [mishap for mishap in self.mishaps if mishap is not twin]
        elif fault != "lost" and not self._finds_nothing(schedule):
            self._deliver({"wake": schedule})

    def _finds_nothing(self, schedule: str) -> bool:
        """Whether it would ask and find all well: most of the time would go for such runs, so they are passed over."""
        if self.mishaps or self._is_down("dynamodb") or schedule == "tick":
            return False
        now = self.clock.now
        if schedule == "guard":
            due = [
                item
                for item in self.world.aws.listed.values()
                if "due" in item and int(item["due_at"]["N"]) <= now + max(SKEWS)
            ]
            self.refused_again = self.refused_again + 1 if due and all(map(self._is_refused_again, due)) else 0
            return not due or self.refused_again % REFUSALS_TOLD != 0
        tokens = [
            _text(item) for key, item in self.world.aws.listed.items() if key[1] == ACCESS_TOKEN and "value" in item
        ]
        return all(text in self.refused or self.wechat.accepts(str(text)) for text in tokens)

    def _is_refused_again(self, item: Item) -> bool:
        """Whether its account's record is wrong, and all that a guard could do is to say so once more."""
        name, error = item["pk"]["S"].partition("#")[2], item.get("last_error", {}).get("M", {})
        is_of_record = error.get("failure_class", {}).get("S") == FailureClass.CONFIGURATION and "errcode" not in error
        return is_of_record and name in self.records and not self._is_right(name)

    def _enqueue(self, event: dict[str, Any], seconds: float, attempts: int = 3) -> None:
        self.queued += 1
        heapq.heappush(self.queue, (self.clock.now + seconds, self.queued, event, attempts))

    def _deliver(self, event: dict[str, Any], attempts: int = 3) -> bool:
        """Wake RefreshFunction as AWS does: a failed invocation is repeated twice."""
        if event.get("detail", {}).get("operation") == "Update":
            # It may tell of a parameter that is gone again: then the keeper waits for that to become readable.
            self.absent.discard(event["detail"]["name"].rpartition("/")[2])
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
            self._act(name)
            del self.records[name]
            self.world.ssm.delete_parameter(Name=f"{ACCOUNTS_PATH}/{name}")
            self._changed(name, delivery)

    @rule(
        name=accounts,
        change=st.sampled_from(
            [
                *("wrong secret", "right secret", "reset secret", "reset secret and token", "another's secret"),
                *("endpoint", "tickets", "appid", "broken"),
            ]
        ),
        delivery=deliveries,
    )
    def record_changes(self, name: str, change: str, delivery: str) -> None:
        """An operator changes an account's parameter, or its secret at WeChat."""
        name = self._kept(name)
        record = self.records.get(name)
        if record is None:
            return
        record = dict(record)
        app = _app_name(name, record)
        match change:
            case "wrong secret":
                record["secret"] = f"wrong_secret_of_{name}_000000000000001"
            case "right secret":
                self._correct_secret(name, delivery)
                return
            case "reset secret" | "reset secret and token":
                self._reset_secret(name, ends_token=change != "reset secret")
                return
            case "another's secret" if app in self.secret_of and "corpid" in record:
                record["secret"] = self.secret_of.get("ww_corp_000000001/corp", record["secret"])
            case "endpoint" if "appid" in record:
                self._act(name)
                record["endpoint"] = "stable_token" if _endpoint(record) == "token" else "token"
            case "tickets":
                known = CORP_TICKETS if "corpid" in record else PUBLIC_TICKETS
                record["tickets"] = [ticket for ticket in known if ticket not in record.get("tickets", [])]
            case "appid" if "appid" in record:
                self._act(name)
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
            self._report(name, reader, candidates[which])

    @rule(name=accounts, reader=readers)
    def clients_keep_reporting(self, name: str, reader: int) -> None:
        """For a quarter of an hour clients report the current token, whatever they are served."""
        name = self._kept(name)
        for _ in range(60):
            text = _text(self._item(name, ACCESS_TOKEN))
            if text is not None:
                self._report(name, reader, text)
            self.clock.sleep(CHECK_SERVES + MARGIN + 1)  # no check serves two

    @rule(name=accounts, reader=readers, force=st.booleans())
    def an_sdk_asks(self, name: str, reader: int, force: bool) -> None:
        """As it asks WeChat; with `force` because the current token fails for it."""
        name = self._kept(name)
        self._ask(name, reader, force=force)

    @rule(reader=readers, name=accounts)
    def health(self, reader: int, name: str) -> None:
        """An operator looks at the health."""
        self.world.get("/v1/accounts", self.world.readers[reader])
        self.world.get(f"/v1/accounts/{name}", self.world.readers[reader])

    @rule(
        name=accounts,
        faults=st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, max_size=3),
        what=st.sampled_from(["token", "token", "ticket", "check"]),
        times=st.sampled_from([1, 1, 2, 3]),
    )
    def wechat_fails(self, name: str, faults: list[str], what: str, times: int) -> None:
        """WeChat's next responses to an account are not what they should be."""
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
        point=st.sampled_from(["write", "written", "read", "ssm", "wechat", "responded"]),
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
        point=st.sampled_from(["write", "written", "wechat", "responded"]),
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
        self.mishaps.append(Mishap("responded", 0, "die"))
        self.operator_rotates(name, (1, 0))
        self.clock.sleep(CALM + GUARD_EVERY)

    @rule(name=accounts, reader=readers, seconds=st.sampled_from([20, 50, 80, 110]))
    def responses_get_lost(self, name: str, reader: int, seconds: int) -> None:
        """Nothing that WeChat returns to the next renewal arrives; clients ask before and after."""
        name = self._kept(name)
        item = self._item(name, ACCESS_TOKEN)
        if item is None or name not in self.records:
            return
        ahead = renewal.RULES[Kind(item["kind"]["S"])].look_ahead + MARGIN
        self.clock.sleep(max(0, int(item["due_at"]["N"]) - ahead - self.clock.now))
        self._read(name, ACCESS_TOKEN, reader)
        for path in {self._token_path(name), PATHS["stable_token"]}:
            self.wechat.fail(path, Fault.drop_after(), account=_identity(self.records[name]))
        self.clock.sleep(ahead + seconds)
        self._read(name, ACCESS_TOKEN, reader)

    @rule(name=accounts, point=st.sampled_from(["wechat", "responded"]), reader=readers)
    def a_response_comes_late(self, name: str, point: str, reader: int) -> None:
        """An account's next renewal reaches WeChat, or its response arrives, when its lease is over, and after another's."""
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

    @rule(seconds=st.sampled_from([5, 90]))
    def reads_lag(self, seconds: int) -> None:
        """For some time the table's index, and reads that are not consistent, tell what was before."""
        self.world.aws.lag(seconds)
        self._trouble(seconds)

    @rule(name=accounts, reader=readers)
    def a_renewal_is_read_late(self, name: str, reader: int) -> None:
        """Clients ask soon after the next regular renewal, while reads that are not consistent tell what was before."""
        name = self._kept(name)
        item = self._item(name, ACCESS_TOKEN)
        if item is None or "value" not in item:
            return
        ahead = renewal.RULES[Kind(item["kind"]["S"])].look_ahead + MARGIN
        self.clock.sleep(max(0, int(item["due_at"]["N"]) - ahead - self.clock.now))
        self.reads_lag(ahead + 3 * GUARD_EVERY)
        for _ in range(ahead // GUARD_EVERY + 3):
            self.clock.sleep(GUARD_EVERY)
            self._read(name, ACCESS_TOKEN, reader)

    @rule(name=accounts)
    def a_failure_meets_the_tick(self, name: str) -> None:
        """A main tick looks ahead to a renewal; before it begins, an operator's fails, to be repeated at that very moment."""
        name = self._kept(name)
        item = self._item(name, ACCESS_TOKEN)
        if item is None or name not in self.records or item["kind"]["S"] != Kind.TOKEN or "value" not in item:
            return
        due_at = int(item["due_at"]["N"])
        self.clock.sleep(max(0, due_at - GUARD_EVERY - self.world.skew_of(2) - self.clock.now))
        refuse = Mishap("write", 0, "overlap", {"rotate": name})
        self.mishaps.append(refuse)
        for path in (PATHS["token"], PATHS["stable_token"]):
            self.wechat.fail(path, Fault.error(-1), account=_identity(self.records[name]))
        self._trouble(TICK_EVERY)
        self._deliver({"wake": "tick"}, attempts=1)
        self.mishaps = [mishap for mishap in self.mishaps if mishap is not refuse]

    @rule(name=accounts, reader=readers, seconds=st.sampled_from([0, 10, 20]))
    def new_tokens_work_late(self, name: str, reader: int, seconds: int) -> None:
        """From now on WeChat refuses each new token for some seconds, and a client reports one."""
        self.wechat.accepted_after = seconds
        name = self._kept(name)
        self.clock.sleep(FORCED_APART + MARGIN)
        self._rotate(name)
        self.clock.sleep(MARGIN + 1)
        text = _text(self._item(name, ACCESS_TOKEN))
        if text is not None:
            self._report(name, reader, text)

    @rule(name=accounts, seconds=st.sampled_from([100, 1000]), reader=readers)
    def a_dead_token_is_repeated(self, name: str, seconds: int, reader: int) -> None:
        """A token is killed, and yet handed out to all that ask for one."""
        name = self._kept(name)
        text = _text(self._item(name, ACCESS_TOKEN))
        if text is None or not self.wechat.accepts(text):
            return
        self.another_client(name, "kill", ticket=False)
        identity = self.wechat.minted[text].value.owner.account
        # Then a token is minted at once, though that may end the one before the dead one while it is still promised.
        self.wechat.spoiled |= {
            other for other, minted in self.wechat.minted.items() if minted.value.owner.account == identity
        }
        self.wechat.repeats_until[identity] = self.clock.now + seconds
        self._trouble(seconds, identity)
        self.clock.sleep(PROBE_EVERY + GUARD_EVERY)
        self._read(name, ACCESS_TOKEN, reader)

    @rule(name=accounts, reader=readers)
    def a_token_dies_unseen(self, name: str, reader: int) -> None:
        """A token is killed, and no client reports it."""
        name = self._kept(name)
        self.clock.sleep(renewal.MIN_AGE_TO_CHECK)
        self.another_client(name, "kill", ticket=False)
        self.clock.sleep(FOUND_WITHIN)

    @rule(event=wakes)
    def unexpected_event(self, event: dict[str, Any]) -> None:
        """An event is delivered again, or for no reason."""
        self._happen(event)

    @rule(name=accounts, how=st.sampled_from(["kill", "fetch"]), ticket=st.booleans())
    def another_client(self, name: str, how: str, ticket: bool) -> None:
        """Another client fetches with this AppSecret, or the platform kills a value early."""
        name = self._kept(name)
        record = self.records.get(name)
        if record is None:
            return
        identity = _identity(record)
        if how == "kill":
            credential = (record.get("tickets") or [ACCESS_TOKEN])[0] if ticket else ACCESS_TOKEN
            text = _text(self._item(name, credential))
            if text is None or not self.wechat.accepts(text):
                return
            is_calm = credential == ACCESS_TOKEN and self.clock.now - self.troubled_at[name] > CALM
            self.wechat.kill(text)
            self.wechat.spoiled.add(text)
            self._trouble(0, identity)
            if is_calm:
                self.killed_at[name] = self.clock.now
        elif "appid" in record and identity in self.secret_of:
            self.wechat.fetch_as_another_client(identity, self.secret_of[identity])
            self._trouble(OVERLAP, identity)

    @rule(name=accounts, how_often=st.sampled_from([(1, 0), (1, 0), (3, 10), (25, 40)]))
    def operator_rotates(self, name: str, how_often: tuple[int, int]) -> None:
        """An operator wants a new value, now; so many times, with so many seconds in between."""
        times, pause = how_often
        name = self._kept(name)
        for _ in range(times):
            self._rotate(name)
            self.clock.sleep(pause)

    @rule(name=accounts, credential=st.sampled_from([ACCESS_TOKEN, "jsapi"]))
    def housekeeping(self, name: str, credential: str) -> None:
        """DynamoDB deletes an item that is not past its time at all."""
        item = self.world.aws.items.pop((f"credential#{name}", credential), None)
        if item:
            self._forget_usage(item)
            self.applied.discard(name)
            self._act(name)
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
        self.world.secrets.add(record["secret"])
        app = _app_name(name, record)
        if app not in self.secret_of:
            self.secret_of[app] = record["secret"]
            open_app = self.wechat.add_corp_app if "corpid" in record else self.wechat.add_app
            open_app(_identity(record), record["secret"])
        if (opened := self.wechat.app_of(record)) is not None:
            self.apps[name].add(opened)
        self.world.ssm.put_parameter(Name=f"{ACCOUNTS_PATH}/{name}", Value=json.dumps(record))
        self._changed(name, delivery)

    def _correct_secret(self, name: str, delivery: str) -> None:
        record = self.records[name]
        right = self.secret_of[_app_name(name, record)]
        if record["secret"] != right or isinstance(record.get("tickets"), str):
            self._put(name, {**record, "secret": right, "tickets": RECORDS[name].get("tickets", [])}, delivery)

    def _reset_secret(self, name: str, *, ends_token: bool) -> None:
        """WeChat takes a new secret only; whether that also ends the live tokens is not documented."""
        record = self.records[name]
        app, old = _app_name(name, record), self.secret_of[_app_name(name, record)]
        opened = self.wechat.app_of({**record, "secret": old})
        self.secret_of[app] = f"{RECORDS[name]['secret']}_{self.clock.now:.0f}_{len(self.world.secrets)}"
        self.wechat.change_secret(_identity(record), old, self.secret_of[app])
        self.world.secrets.add(self.secret_of[app])
        for token in (*opened.tokens, *opened.stable_tokens) if ends_token else ():
            if token.dies_at > self.clock.now:
                self.wechat.kill(token.text)
                self.wechat.spoiled.add(token.text)
        self._trouble()

    def _changed(self, name: str, delivery: str) -> None:
        self._trouble()
        self._disturb()
        self.absent.discard(name)
        self.applied.discard(name)
        event = _change_event(name, "Update" if name in self.records else "Delete")
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
                self._deliver(_change_event(name, "Update"))
            case {"read": name}:
                self._read(name, ACCESS_TOKEN, 0)
            case {"rotate": name}:
                self._rotate(name)
            case {"next": _}:
                InTurn.interleave()
            case _:
                self._deliver(dict(event), attempts=1)

    def _rotate(self, name: str) -> None:
        texts = self._texts(name)
        self.ended |= dict.fromkeys(texts, float("inf"))
        self._deliver({"renew": {"account": name, "credential": ACCESS_TOKEN, "rotate": True}}, attempts=1)
        self.ended |= dict.fromkeys(texts, self.clock.now + REMEMBERED_FOR + MARGIN)

    def _act(self, name: str) -> None:
        """An operator's act ends what the account has now; what is promised of it from the act's being applied on counts."""
        texts = self._texts(name)
        self.ended |= dict.fromkeys(texts, float("inf"))
        self.acts[name] = self.acts.get(name, set()) | texts

    def _act_is_applied(self, name: str) -> None:
        """From now on nothing is excused by what was changed about the account."""
        self.ended |= dict.fromkeys(self.acts.pop(name, ()), self.clock.now + REMEMBERED_FOR + MARGIN)

    def _texts(self, name: str) -> set[str]:
        return {text for text, minted in self.wechat.minted.items() if minted.value.owner in self.apps[name]}

    def _is_ended(self, text: str) -> bool:
        """Whether an operator has ended it, or has done so a while ago, and that may still be repaired."""
        return self.clock.now <= self.ended.get(text, 0) + CALM

    def _trouble(self, seconds: float = 0, identity: str | None = None) -> None:
        for name in RECORDS:
            if identity is None or _identity(self.records.get(name, RECORDS[name])) == identity:
                self.troubled_at[name] = max(self.troubled_at[name], self.clock.now + seconds)

    def _disturb(self) -> None:
        for frame in self.world.frames:
            frame.disturbed = True

    def _forget_usage(self, item: Item) -> None:
        """What an account has used is forgotten with it; WeChat then returns the old token to one forced refresh too many."""
        for counted in (self.forced_a_day, self.forced_at):
            for key in [key for key in counted if item["app_id"]["S"] in (key, key[0])]:
                del counted[key]  # type: ignore[arg-type]
        self.checked_at.clear()
        self.refused.pop(_text(item) or "", None)

    def _is_down(self, service: str) -> bool:
        return self.clock.now < self.outages.get(service, 0)

    def _item(self, name: str, credential: str) -> Item | None:
        return self.world.aws.items.get((f"credential#{name}", credential))

    # --- what comes between

    def _aws_call(self, operation: str) -> None:
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
                if mishap.seconds >= renewal.LEASE - MARGIN:
                    self._disturb_current()
                    self._trouble()
                self._happen(mishap.overlap)
            return
        self._trouble(TICK_EVERY if "wake" in self.world.frames[-1].event and not self._taken_over() else 0)
        self._disturb_current()
        if mishap.effect == "die":
            raise InstanceKilled
        if mishap.point == "written":
            raise ReadTimeoutError(endpoint_url="https://dynamodb.invalid/")
        if mishap.point in ("write", "read", "ssm"):
            raise ClientError({"Error": {"Code": "ThrottlingException", "Message": "Rate exceeded"}}, mishap.point)

    def _taken_over(self) -> bool:
        return all(self._is_taken_over(name) for name in self.records)

    def _disturb_current(self) -> None:
        if self.world.frames:
            self.world.frames[-1].disturbed = True

    def _met_fault(self, account: str | None, fault: Fault) -> None:
        self._trouble(fault.delay + LONG_WAITS.get(fault.errcode or 0, 0), account)

    def _failed_with(self, error: BaseException) -> None:
        at: BaseException | None = error
        while at is not None:
            self._keep_quiet("an exception", f"{at} {at.args!r}")
            at = at.__cause__ or at.__context__

    # --- what must hold: while it happens

    def _violate(self, invariant_name: str, text: str) -> None:
        self.violations.append(f"{invariant_name}: {text} (at {self.clock.now:.0f})")

    def _responded(self, path: str, asked: Mapping[str, Any], text: str | None) -> None:
        call = self.wechat.calls[-1]
        identity, day = str(call.account), int((self.clock.now + BEIJING) // DAY)
        forced = asked.get("force_refresh") is True
        if path == PATHS["token"]:
            self.calls_a_day[identity, day] += 1
            if self.calls_a_day[identity, day] > 2000:
                self._violate("budget", f"more than 2000 calls for {identity}")
        if path == CHECK_PATH:
            self._count_check(self.wechat.minted[asked["access_token"]].value.owner, day)
        if forced:
            self._count_forced(identity, day)
        elif path in PATHS.values() and text is not None and self._is_for_a_renewal(identity, text):
            self.world.frames[-1].fetched += 1

    def _count_check(self, app: Any, day: int) -> None:
        self.checks_a_day[app, day] += 1
        if self.checks_a_day[app, day] > CHECKS_A_DAY:
            self._violate("budget", f"more than {CHECKS_A_DAY} checks for {app.account}")
        if "verify" in self.world.frames[-1].event:
            lately = [at for at in self.checked_at[app] if at > self.clock.now - 3600]
            self.checked_at[app] = [*lately, self.clock.now]
            if len(lately) >= REPORT_BURST + 3600 // REPORT_INTERVAL + 1:
                self._violate("budget", f"{len(lately) + 1} checks for reports within an hour for {app.account}")

    def _count_forced(self, identity: str, day: int) -> None:
        self.forced_a_day[identity, day] += 1
        if self.forced_a_day[identity, day] > FORCED_A_DAY:
            self._violate("budget", f"more than {FORCED_A_DAY} forced refreshes of {identity}")
        apart = self.clock.now - self.forced_at.get(identity, 0)
        if apart < FORCED_APART - MARGIN:
            self._violate("budget", f"forced {identity} twice within {apart:.0f} s")
        self.forced_at[identity] = self.clock.now

    def _is_for_a_renewal(self, identity: str, text: str) -> bool:
        """Whether the fetched token is to be published. The check of a changed secret fetches one without a lease; and what
        WeChat has refused it may repeat."""
        app, now = self.wechat.minted[text].value.owner, self.clock.now
        tokens = [item for name in self.apps if app in self.apps[name] and (item := self._item(name, ACCESS_TOKEN))]
        leased = [
            item
            for item in tokens
            if item["app_id"]["S"] == identity and int(item["lease_until"]["N"]) > now + min(SKEWS)
        ]
        return any(
            fingerprint(text) not in item.get("refused_fingerprints", {}).get("S", "").split() for item in leased
        )

    def _frame_ended(self, frame: Frame) -> None:
        for failed in frame.failed:
            if failed["class"] == FailureClass.DEFECT:
                self._violate("defect", f"{frame.event}: {failed['errmsg']}")
        # Who is held up for a lease may be overtaken; the other instance's clock may be ahead.
        in_time = self.clock.now - frame.began_at < renewal.LEASE - MARGIN
        if not frame.disturbed and in_time and frame.fetched > frame.published:
            self._violate("one fetch", f"{frame.event} fetched {frame.fetched} and published {frame.published}")

    def _after_write(self, what: str, before: Item | None, after: Item | None) -> None:
        partition, _, name = (before or after or {})["pk"]["S"].partition("#")
        if partition == "credential":
            self._credential_written(what, before, after)
        elif partition == "claim" and after is None and before is not None:
            self._claim_released(name, before)
        elif partition == "accounts":
            self._entry_written((before or after or {})["sk"]["S"])
        self._pass_point("written")

    def _entry_written(self, name: str) -> None:
        is_applied = (
            self._is_taken_over(name) if name in self.records else ("accounts", name) not in self.world.aws.items
        )
        if is_applied:
            self._act_is_applied(name)
            if name not in self.applied:
                self.applied.add(name)
                self.troubled_at[name] = max(self.troubled_at[name], self.clock.now)

    def _claim_released(self, app_id: str, claim: Item) -> None:
        name = claim["account"]["S"]
        is_kept = any(
            key[0] == f"credential#{name}" and item["app_id"]["S"] == app_id and "value" in item
            for key, item in self.world.aws.items.items()
        )
        if is_kept and claim["sk"]["S"] == Kind.TOKEN:
            self._violate("claim", f"{name} gave {app_id} up while it still had a value of it")

    def _credential_written(self, what: str, before: Item | None, after: Item | None) -> None:
        if after is None or (before is not None and before["app_id"] != after["app_id"]):
            if before:
                self._forget_usage(before)
            return
        name, credential = after["pk"]["S"].partition("#")[2], after["sk"]["S"]
        old, new = _text(before), _text(after)
        if old is not None and new is None:
            self._violate("responses", f"{name}/{credential}: a write took the value away")
        if new is not None and new not in self.wechat.minted:
            self._violate("responses", f"{name}/{credential}: what is stored as a value is none")
            return
        if "expires_at = :expires_at, due_at" in what:
            self._published(name, credential, before, after)
        if before is None:
            return
        if what.startswith("SET lease_until"):
            self._check_retry(name, credential, before)
            if self.world.frames:
                self.world.frames[-1].epochs[name, credential] = after["epoch"]
        if old is not None and new is not None:
            if old != new and "refused_at" not in before:
                self._check_need(name, credential, self.wechat.minted[old], self.wechat.minted[new])
            self._check_order(name, credential, self.wechat.minted[old], self.wechat.minted[new], "was stored")
            self._check_failure(name, credential, before, after)

    def _published(self, name: str, credential: str, before: Item | None, after: Item) -> None:
        if self.world.frames:
            self.world.frames[-1].published += 1
            if self.world.frames[-1].epochs.get((name, credential)) != after["epoch"]:
                self._violate("order", f"{name}/{credential}: published though a later lease was taken")
        text = str(_text(after))
        # What comes back after its end as we count it: after a lost response a ticket's life is counted too short.
        came_back = before is not None and text == _text(before) and after["expires_at"] != before["expires_at"]
        is_ticket = credential != ACCESS_TOKEN
        if is_ticket and before is not None and _text(before) in self.wechat.spoiled and text != _text(before):
            # It may have followed at once, when no instance asked; no probe asks about tickets.
            self.wechat.spoiled.add(text)
        if is_ticket and ("previous_fingerprint" not in after or came_back):
            self.of_unknown_age.add((name, credential, text))
        owner = self.world.aws.items.get((f"claim#{after['app_id']['S']}", str(Kind.TOKEN)), {})
        if after["kind"]["S"] in (Kind.TOKEN, Kind.STABLE_TOKEN) and owner.get("account", {}).get("S") != name:
            self._violate("claim", f"{name} published a token of an appid that it does not own")

    def _check_retry(self, name: str, credential: str, before: Item) -> None:
        early = int(before["due_at"]["N"]) - self.clock.now
        is_wanted = any("rotate" in frame.event.get("renew", {}) for frame in self.world.frames)
        if int(before["failures"]["N"]) and early > max(SKEWS) - min(SKEWS) and not is_wanted:
            self._violate("retry", f"{name}/{credential}: tried again {early:.0f} s before a failure's next attempt")

    def _check_failure(self, name: str, credential: str, before: Item, after: Item) -> None:
        """What may not become of a value that works: that it is changed, or not served any more."""
        text = str(_text(before))
        if self.wechat.minted[text].value.dies_at <= self.clock.now:
            if "refused_at" in after and text == _text(after):
                self.refused.setdefault(text, self.clock.now)
            return
        failed = int(after["failures"]["N"]) > int(before["failures"]["N"])
        if failed and any(before.get(kept) != after.get(kept) for kept in ("value", "fingerprint", "expires_at")):
            self._violate("responses", f"{name}/{credential}: a failure changed the live value or its expiry")
        if "refused_at" in after and "refused_at" not in before and not self._is_ended(text):
            self._violate("responses", f"{name}/{credential}: a value that works was declared dead")

    def _check_need(self, name: str, credential: str, older: Minted, newer: Minted) -> None:
        apart, text = newer.value.minted_at - older.value.minted_at, older.value.text
        is_early = newer.is_of_the_same_series(older) and 0 <= apart < LIFE / 2
        is_early &= older.value.dies_at >= newer.value.minted_at
        if is_early and text not in self.wechat.spoiled and not self._is_ended(text):
            self._violate(
                "one fetch", f"{name}/{credential}: a value was replaced {apart:.0f} s after it had been minted"
            )

    def _check_order(self, name: str, credential: str, older: Minted, newer: Minted, how: str) -> None:
        text = older.value.text
        alive = older.value.dies_at > self.clock.now and text not in self.wechat.spoiled and not self._is_ended(text)
        if newer.order < older.order and alive and newer.is_of_the_same_series(older):
            self._violate("order", f"{name}/{credential}: an older value {how} after a newer one")

    # --- what must hold: for readers

    def _read(self, name: str, credential: str, reader: int) -> None:
        path = "access-token" if credential == ACCESS_TOKEN else f"tickets/{credential}"
        status, body = self.world.get(f"/v1/accounts/{name}/{path}", self.world.readers[reader])
        if status == 200:
            self._served_by_api(name, credential, reader, body)

    def _report(self, name: str, reader: int, text: str) -> None:
        asked_at = self.clock.now
        path, body = f"/v1/accounts/{name}/access-token/reports", json.dumps({"access_token": text})
        status, response, _ = self.world.request(path, self.world.readers[reader], body)
        if status == 200:
            self._served_by_api(name, ACCESS_TOKEN, reader, response)
            self._check_outcome(name, response, self.wechat.minted[text].value, asked_at)

    def _ask(self, name: str, reader: int, *, force: bool) -> None:
        record = self.records.get(name, RECORDS[name])
        sent = {"grant_type": "client_credential", "appid": _identity(record), "secret": self.keys[name]}
        instance = self.world.readers[reader]
        if "corpid" in record:
            query = {"corpid": _identity(record), "corpsecret": self.keys[name]}
            response = self.world.ask("GET /cgi-bin/gettoken", instance, **query)
        elif force or reader:
            body = json.dumps({**sent, "force_refresh": force})
            response = self.world.ask("POST /cgi-bin/stable_token", instance, body=body)
        else:
            response = self.world.ask("GET /cgi-bin/token", instance, **sent)
        if "access_token" in response:
            self._handed_out(name, ACCESS_TOKEN, reader, response["access_token"], response["expires_in"])

    def _served_by_api(self, name: str, credential: str, reader: int, body: Mapping[str, Any]) -> None:
        text = body["access_token"] if credential == ACCESS_TOKEN else body["ticket"]
        if body["fingerprint"] != fingerprint(text):
            self._violate("responses", f"{name}/{credential}: a value was handed out with another's fingerprint")
        if not 0 < body["cache_for"] <= min(60, body["expires_in"]):
            self._violate("promise", f"{name}/{credential}: to be kept for longer than is promised")
        until, of_reader = self.clock.now + body["expires_in"], (reader, credential, text)
        if body["stale"] and until > self.last_promise.get(of_reader, 0):
            self._violate("reader", f"{name}/{credential}: a stale response promises more than the one it is made of")
        self.last_promise[of_reader] = until
        self._handed_out(name, credential, reader, text, body["expires_in"], stale=body["stale"])

    def _handed_out(
        self, name: str, credential: str, reader: int, text: str, expires_in: int, *, stale: bool = False
    ) -> None:
        now, minted = self.clock.now, self.wechat.minted.get(text)
        if minted is None:
            self._violate("responses", f"{name}/{credential}: a reader got what is no value")
            return
        if credential == ACCESS_TOKEN and minted.value.owner not in self.apps[name]:
            self._violate("order", f"{name}/{credential}: a reader got another account's value")
        if expires_in < 1:
            self._violate("promise", f"{name}/{credential}: a promise without time")
        known_for = now - self.refused.get(text, now)
        if known_for > REMEMBERED_FOR + MARGIN and not stale and not self._is_down("dynamodb"):
            self._violate("dead", f"{name}/{credential}: handed out {known_for:.0f} s after WeChat had refused it")
        key = (reader, name, credential, f"{minted.path} {minted.value.owner.account}")
        if key in self.served:
            self._check_order(name, credential, self.served[key], minted, "was handed out")
        self.served[key] = minted
        self.last_promise[reader, credential, text] = now + expires_in
        self.promises.append(Promise(name, credential, minted, now, now + expires_in))

    def _check_outcome(self, name: str, response: Mapping[str, Any], reported: Any, asked_at: float) -> None:
        same, outcome = response["fingerprint"] == fingerprint(reported.text), response["outcome"]
        if same != (outcome in ("still_valid", "unverified")):
            self._violate("reader", f"a report was served {outcome} with {'the same' if same else 'another'} value")
        if outcome == "replaced" and reported.dies_at > self.clock.now:
            self._violate("reader", "a report replaced a token that works")
        item = self._item(name, ACCESS_TOKEN)
        is_young = item is not None and asked_at - int(item["fetched_at"]["N"]) < renewal.MIN_AGE_TO_CHECK + MARGIN
        if outcome == "still_valid" and asked_at - reported.dies_at > CHECK_SERVES + MARGIN and not is_young:
            self._violate("reader", "a report was served still_valid for a dead token")

    def _excuse(self, promise: Promise) -> str | None:
        """Why a value may have died before the end of its promise, in all the cases where it may."""
        value = promise.minted.value
        if value.text in self.wechat.spoiled:
            return "another client or the platform has ended it"
        if promise.learned_at <= self.ended.get(value.text, 0):
            return "an operator has ended it since"
        if promise.until - promise.learned_at <= 1 and promise.learned_at - value.dies_at < MARGIN:
            return "a clock that is behind: at least a second is promised while a value lives"
        key = (promise.account, promise.credential, value.text)
        if key in self.of_unknown_age and promise.until - value.dies_at <= UNKNOWN_AGE_LIFE:
            return "a ticket of unknown age is trusted for so long at a time"
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
                    f"{promise.account}/{promise.credential}: told at {promise.learned_at:.0f} that it works until "
                    f"{promise.until:.0f}, it was minted at {value.minted_at:.0f} and dies at {value.dies_at:.0f}",
                )
            if promise.until > self.clock.now - 600:
                kept.append(promise)
        self.promises = kept[-200:]

    @invariant()
    def everything_is_live_again(self) -> None:
        """Invariants 3, 7 and 9: an account that has had peace for so long has a usable value, whatever its neighbours do."""
        if self.violations:
            return  # told at the end of this step
        for name, record in self.records.items():
            if not self._is_right(name):
                continue
            for credential in (ACCESS_TOKEN, *record.get("tickets", [])):
                text, calm = _text(self._item(name, credential)), self.clock.now - self.troubled_at[name]
                is_usable = text is not None and (
                    self.wechat.accepts(text) or self._is_just_renewed(name, credential, text)
                )
                # No probe asks about tickets: who is refused one waits for its end.
                is_excused = credential != ACCESS_TOKEN and text in self.wechat.spoiled
                if calm > self._bound(name, credential) and not is_usable and not is_excused:
                    self._violate(
                        "liveness",
                        f"{name}/{credential} has had no usable value, {calm:.0f} s after the last trouble: "
                        f"{self._times(name, credential)}",
                    )

    def _times(self, name: str, credential: str) -> dict[str, Any]:
        item = self._item(name, credential) or {}
        known = {field: value["N"] for field, value in item.items() if "N" in value and field != "epoch"}
        text = _text(item)
        return known | ({"dies_at": self.wechat.minted[text].value.dies_at} if text else {})

    def _bound(self, name: str, credential: str) -> float:
        """Seconds without trouble after which the credential has a usable value."""
        items = self._item(name, credential), self._item(name, ACCESS_TOKEN)
        if None in items or not self._is_taken_over(name):
            return CALM_WITH_TICK
        if credential != ACCESS_TOKEN:
            return CALM_FOR_TICKETS
        return FOUND_WITHIN if self.killed_at.get(name) == self.troubled_at[name] else CALM

    @invariant()
    def nobody_is_served_a_deleted_account(self) -> None:
        """A deleted account is dropped."""
        if self._is_down("dynamodb"):
            return
        for name in self.absent:
            status, _ = self.world.get(f"/v1/accounts/{name}/access-token", self.world.reader(0))
            if status != 404:
                self._violate("deleted", f"{name} is deleted and got {status}")

    @invariant()
    def nothing_that_works_is_past_its_time(self) -> None:
        """Invariant 6: DynamoDB may delete what is past its `ttl`, and no reader misses it."""
        for item in self.world.aws.expire():
            text = _text(item)
            if text is not None and self.wechat.accepts(text):
                self._violate("ttl", f"{item['pk']['S']}/{item['sk']['S']} was deleted with a value that works")

    @invariant()
    def no_value_is_told(self) -> None:
        """Invariant 8."""
        said, logged = self.world.said[self.said_read :], LOGGED[self.logged_read :]
        self.said_read, self.logged_read = len(self.world.said), len(LOGGED)
        self._keep_quiet("a summary, health or problem document", "\n".join(said))
        self._keep_quiet("a log line", "\n".join(logged))

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
        """Whether the account is to be kept: of two with equal claims, the one that came first."""
        record = self.records[name]
        claim = _claim(record)
        rivals = [other for other, its in self.records.items() if other != name and _claim(its) == claim]
        is_valid = record["secret"] == self.secret_of[_app_name(name, record)] and not isinstance(
            record.get("tickets"), str
        )
        return is_valid and (not rivals or self._owns(name, _identity(record)))

    def _owns(self, name: str, app_id: str) -> bool:
        claims = [item for (pk, _), item in self.world.aws.items.items() if pk == f"claim#{app_id}"]
        return any(claim["account"]["S"] == name for claim in claims) and self._is_taken_over(name)

    def _is_just_renewed(self, name: str, credential: str, text: str) -> bool:
        """WeCom and tickets repeat the same value as long as it lives: its successor comes with the next guard, or reader."""
        repeats = "corpid" in self.records[name] or credential != ACCESS_TOKEN
        minted = self.wechat.minted[text]
        trusted = UNKNOWN_AGE_LIFE if (name, credential, text) in self.of_unknown_age else 0
        return repeats and self.clock.now - minted.value.dies_at <= trusted + GUARD_EVERY + MARGIN

    def _is_taken_over(self, name: str) -> bool:
        entry = self.world.aws.items.get(("accounts", name))
        parameter = self.world.aws.parameters[f"{ACCOUNTS_PATH}/{name}"]
        version = f"{parameter['Version']}@{parameter['LastModifiedDate'].timestamp():.3f}"
        return entry is not None and entry.get("version", {}).get("S") == version


def _identity(record: Mapping[str, Any]) -> str:
    return str(record.get("corpid") or record["appid"])


def _app_name(name: str, record: Mapping[str, Any]) -> str:
    """A corp's apps are told apart by the account that they are for; an appid may be wanted under two names."""
    return f"{record['corpid']}/{name}" if "corpid" in record else str(record["appid"])


def _claim(record: Mapping[str, Any]) -> tuple[str, str]:
    return _identity(record), record["secret"] if "corpid" in record else ""


def _endpoint(record: Mapping[str, Any]) -> str:
    return str(record.get("endpoint", "token"))


def _text(item: Item | None) -> str | None:
    return item["value"]["S"] if item and "value" in item else None


def _change_event(name: str, operation: str) -> dict[str, Any]:
    detail = {"name": f"{ACCOUNTS_PATH}/{name}", "operation": operation, "type": "SecureString"}
    return {"source": "aws.ssm", "detail-type": "Parameter Store Change", "detail": detail}


# --- running it


def simulate(examples: int, steps: int, *, seed: int = 0, shrink: bool = True) -> None:
    """Run so many simulations of so many steps each. Raises AssertionError with hypothesis' minimal example."""

    @hypothesis.seed(seed)
    class Seeded(Simulation):
        pass

    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    with inline():
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
    parser.add_argument("--no-shrink", action="store_true", help="show the first violation as it was found")
    asked = parser.parse_args()
    console = Console()
    began_at, seed = time.monotonic(), asked.seed
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console) as progress:
            shown = progress.add_task("steps", total=asked.steps)
            while Simulation.steps < asked.steps:
                simulate(
                    max(1, min(40, (asked.steps - Simulation.steps) // 50)), 50, seed=seed, shrink=not asked.no_shrink
                )
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
