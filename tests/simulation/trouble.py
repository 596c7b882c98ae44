"""Rules: what goes wrong at WeChat, in AWS and in the functions' instances."""

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from infra.local.simulated_wechat import Fault
from tests.simulation.accounts import RECORDS, identity_of, text_of
from tests.simulation.bounds import CALM, FOUND_WITHIN, GUARD_EVERY, PROBE_EVERY, TICK_EVERY
from tests.simulation.choices import FAULTS, accounts, readers, wakes
from tests.simulation.people import People
from tests.simulation.watched import CHECK_PATH, PATHS, TICKET_PATHS, Mishap
from token_keeper import renewal
from token_keeper.budget import FORCED_APART
from token_keeper.model import ACCESS_TOKEN, Kind
from token_keeper.renewal import MARGIN


class Trouble(People):
    """Faults, outages, instances that die, and calls that come between."""

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
        self.wechat.fail(path, *[FAULTS[fault]() for fault in faults * times], account=identity_of(record))

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
        """WeChat has replaced a value that was not due, and no instance lives to store the new one; ten minutes pass."""
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
            self.wechat.fail(path, Fault.drop_after(), account=identity_of(self.records[name]))
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

    @rule(faults=st.lists(st.sampled_from(["late", "lost", "doubled"]), min_size=1, max_size=4))
    def schedules_go_wrong(self, faults: list[str]) -> None:
        """The next firings are late, lost or doubled."""
        self.schedule_faults += faults

    @rule(seconds=st.sampled_from([5, 90]))
    def reads_lag(self, seconds: int) -> None:
        """For some time the table's index, and reads that are not consistent, return what was before."""
        self.world.aws.lag(seconds)
        self._trouble(seconds)

    @rule(name=accounts, reader=readers)
    def a_renewal_is_read_late(self, name: str, reader: int) -> None:
        """Clients ask soon after the next regular renewal, while reads that are not consistent return what was before."""
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
            self.wechat.fail(path, Fault.error(-1), account=identity_of(self.records[name]))
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
        text = text_of(self._item(name, ACCESS_TOKEN))
        if text is not None:
            self._report(name, reader, text)

    @rule(name=accounts, seconds=st.sampled_from([100, 1000]), reader=readers)
    def a_dead_token_is_repeated(self, name: str, seconds: int, reader: int) -> None:
        """A token is killed, and yet handed out to all that ask for one."""
        name = self._kept(name)
        text = text_of(self._item(name, ACCESS_TOKEN))
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
