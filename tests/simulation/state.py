"""What the simulation knows about the world: what people wanted, what was promised, and since when there is peace."""

import gc
from collections import Counter, defaultdict
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine

from tests.simulation.accounts import RECORDS, app_name_of, claim_of, endpoint_of, identity_of, text_of
from tests.simulation.bounds import CALM, GUARD_EVERY, PROBE_EVERY
from tests.simulation.expressions import Item
from tests.simulation.inline import LOGGED, Session
from tests.simulation.watched import PATHS, Minted, Mishap, Promise, WatchedWorld
from tests.support.world import ACCOUNTS_PATH
from token_keeper.api.reader import REMEMBERED_FOR
from token_keeper.model import ACCESS_TOKEN
from token_keeper.renewal import MARGIN, UNKNOWN_AGE_LIFE


class State(RuleBasedStateMachine):
    """What has happened so far, and what follows from it for what must hold."""

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
        self.world.secrets |= {record["secret"] for record in RECORDS.values()}
        Session.world = self.world
        for name in RECORDS:
            self.keys[name] = self.world.add_consumer(name, [name], may_report=True)

    # --- what people did

    def _kept(self, name: str) -> str:
        """An account that is kept, so that hardly a rule is without effect."""
        kept = sorted(self.records)
        return name if name in kept or not kept else kept[len(name + name[0]) % len(kept)]

    def _token_path(self, name: str) -> str:
        record = self.records.get(name, RECORDS[name])
        return PATHS["corp" if "corpid" in record else endpoint_of(record)]

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

    # --- what went wrong

    def _trouble(self, seconds: float = 0, identity: str | None = None) -> None:
        for name in RECORDS:
            if identity is None or identity_of(self.records.get(name, RECORDS[name])) == identity:
                self.troubled_at[name] = max(self.troubled_at[name], self.clock.now + seconds)

    def _disturb(self) -> None:
        for frame in self.world.frames:
            frame.disturbed = True

    def _disturb_current(self) -> None:
        if self.world.frames:
            self.world.frames[-1].disturbed = True

    def _is_down(self, service: str) -> bool:
        return self.clock.now < self.outages.get(service, 0)

    def _taken_over(self) -> bool:
        return all(self._is_taken_over(name) for name in self.records)

    def _forget_usage(self, item: Item) -> None:
        """What an account has used is forgotten with it; WeChat then returns the old token to one forced refresh too many."""
        for counted in (self.forced_a_day, self.forced_at):
            for key in [key for key in counted if item["app_id"]["S"] in (key, key[0])]:
                del counted[key]  # type: ignore[arg-type]
        self.checked_at.clear()
        self.refused.pop(text_of(item) or "", None)

    # --- what is stored

    def _item(self, name: str, credential: str) -> Item | None:
        return self.world.aws.items.get((f"credential#{name}", credential))

    def _is_right(self, name: str) -> bool:
        """Whether the account is to be kept: of two with equal claims, the one that came first."""
        record = self.records[name]
        claim = claim_of(record)
        rivals = [other for other, its in self.records.items() if other != name and claim_of(its) == claim]
        is_valid = record["secret"] == self.secret_of[app_name_of(name, record)] and not isinstance(
            record.get("tickets"), str
        )
        return is_valid and (not rivals or self._owns(name, identity_of(record)))

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

    # --- what was violated

    def _violate(self, invariant_name: str, text: str) -> None:
        self.violations.append(f"{invariant_name}: {text} (at {self.clock.now:.0f})")

    def _keep_quiet(self, where: str, text: str) -> None:
        if "simulated_t" in text or any(secret in text for secret in self.world.secrets):
            self._violate("secret", f"{where} holds a value")
