"""How things come about: the schedules as time passes, events, and what comes between the calls of an invocation."""

import heapq
from collections.abc import Mapping
from typing import Any

from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError

from infra.local.simulated_wechat import Fault
from tests.simulation.accounts import change_event, text_of
from tests.simulation.bounds import DEEPEST, EVERY, LONG_WAITS, PROBE_EVERY, REFUSALS_TOLD, TICK_EVERY
from tests.simulation.expressions import Item
from tests.simulation.inline import InTurn
from tests.simulation.served import ReaderChecks
from tests.simulation.watched import RUN_TIME, SKEWS, InstanceKilled, Mishap
from token_keeper import renewal
from token_keeper.api.reader import REMEMBERED_FOR
from token_keeper.model import ACCESS_TOKEN, FailureClass
from token_keeper.renewal import MARGIN


class Course(ReaderChecks):
    """Lets the world call back: as time passes, at each call of an instance, and when it is done."""

    def __init__(self) -> None:
        super().__init__()
        self._watch()

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

    # --- the schedules, as time passes

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
            text_of(item) for key, item in self.world.aws.listed.items() if key[1] == ACCESS_TOKEN and "value" in item
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
            # It may be about a parameter that is gone again: then the keeper waits for that to become readable.
            self.absent.discard(event["detail"]["name"].rpartition("/")[2])
        try:
            self.world.invoke(event)
        except Exception:  # noqa: BLE001 - as Lambda does; what it says is examined elsewhere
            self._trouble()
            if attempts > 1:
                self._enqueue(event, 60, attempts - 1)
            return False
        return True

    # --- events

    def _changed(self, name: str, delivery: str) -> None:
        self._trouble()
        self._disturb()
        self.absent.discard(name)
        self.applied.discard(name)
        event = change_event(name, "Update" if name in self.records else "Delete")
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
                reported = item["fingerprint"]["S"] if item and "fingerprint" in item else "0" * 16
                self._deliver({"verify": {"account": name, "fingerprint": reported}}, attempts=1)
            case {"changed": name}:
                self._deliver(change_event(name, "Update"))
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

    def _after_write(self, what: str, before: Item | None, after: Item | None) -> None:
        self._check_write(what, before, after)
        self._pass_point("written")

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

    def _met_fault(self, account: str | None, fault: Fault) -> None:
        self._trouble(fault.delay + LONG_WAITS.get(fault.errcode or 0, 0), account)

    def _failed_with(self, error: BaseException) -> None:
        at: BaseException | None = error
        while at is not None:
            self._keep_quiet("an exception", f"{at} {at.args!r}")
            at = at.__cause__ or at.__context__
