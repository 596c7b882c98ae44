"""What must hold of each call to WeChat, each invocation, and each write to the table."""

from collections.abc import Mapping
from typing import Any

from infra.local.simulated_wechat import BEIJING, DAY, LIFE
from tests.simulation.accounts import text_of
from tests.simulation.expressions import Item
from tests.simulation.state import State
from tests.simulation.watched import CHECK_PATH, PATHS, SKEWS, Frame, Minted
from token_keeper import renewal
from token_keeper.budget import CHECKS_A_DAY, FORCED_A_DAY, FORCED_APART, REPORT_BURST, REPORT_INTERVAL
from token_keeper.model import ACCESS_TOKEN, FailureClass, Kind, fingerprint
from token_keeper.renewal import MARGIN


class WriteChecks(State):
    """Looks at what RefreshFunction does, as it does it."""

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
        elif path in PATHS.values() and text is not None and self._is_for_a_renewal(text):
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
        forced_at = self.world.frames[-1].forced_at  # its call may come late
        apart = abs(forced_at - self.forced_at.get(identity, 0))
        if apart < FORCED_APART - MARGIN:
            self._violate("budget", f"forced {identity} twice within {apart:.0f} s")
        self.forced_at[identity] = forced_at

    def _is_for_a_renewal(self, text: str) -> bool:
        """Whether the fetched token is to be published. The check of a changed secret fetches one without a lease; and what
        WeChat has refused it may repeat."""
        app, epochs = self.wechat.minted[text].value.owner, self.world.frames[-1].epochs
        taken = [name for name in self.apps if app in self.apps[name] and (name, ACCESS_TOKEN) in epochs]
        leased = [item for name in taken if (item := self._item(name, ACCESS_TOKEN)) and int(item["lease_until"]["N"])]
        return any(
            fingerprint(text) not in item.get("refused_fingerprints", {}).get("S", "").split() for item in leased
        )

    def _frame_ended(self, frame: Frame) -> None:
        for failed in frame.failed:
            if failed["class"] == FailureClass.DEFECT:
                self._violate("defect", f"{frame.event}: {failed['errmsg']}")
        # An instance that is held up for a lease may be superseded; the other instance's clock may be ahead.
        in_time = self.clock.now - frame.began_at < renewal.LEASE - MARGIN
        if not frame.disturbed and in_time and frame.fetched > frame.published:
            self._violate("one fetch", f"{frame.event} fetched {frame.fetched} and published {frame.published}")

    def _check_write(self, what: str, before: Item | None, after: Item | None) -> None:
        if before is None and after is None:
            return  # a deletion of what is not there
        partition, _, name = (before or after or {})["pk"]["S"].partition("#")
        if partition == "credential":
            self._credential_written(before, after)
        elif partition == "claim" and before is not None and (after is None or "free_at" in after):
            self._claim_released(name, before)
        elif partition == "accounts":
            self._entry_written((before or after or {})["sk"]["S"])

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

    def _credential_written(self, before: Item | None, after: Item | None) -> None:
        if after is None or (before is not None and before["app_id"] != after["app_id"]):
            if before:
                self._forget_usage(before)
            return
        name, credential = after["pk"]["S"].partition("#")[2], after["sk"]["S"]
        old, new = text_of(before), text_of(after)
        if old is not None and new is None:
            self._violate("responses", f"{name}/{credential}: a write took the value away")
        if new is not None and new not in self.wechat.minted:
            self._violate("responses", f"{name}/{credential}: what is stored as a value is none")
            return
        if before is None:
            return
        if int(before["lease_until"]["N"]) and not int(after["lease_until"]["N"]) and "last_error" not in after:
            self._published(name, credential, before, after)
        if self.world.frames and _forced_at(before) != _forced_at(after):
            self.world.frames[-1].forced_at = self.clock.now
        if before["epoch"] != after["epoch"]:
            self._check_retry(name, credential, before)
            if self.world.frames:
                self.world.frames[-1].epochs[name, credential] = after["epoch"]
        if old is not None and new is not None:
            # What an operator wanted, and failed, is tried again until it succeeds, however long that takes.
            is_repeated = int(before["failures"]["N"]) > 0
            if old != new and "refused_at" not in before and not is_repeated:
                self._check_need(name, credential, self.wechat.minted[old], self.wechat.minted[new])
            self._check_order(name, credential, self.wechat.minted[old], self.wechat.minted[new], "was stored")
            self._check_failure(name, credential, before, after)

    def _published(self, name: str, credential: str, before: Item, after: Item) -> None:
        if self.world.frames:
            self.world.frames[-1].published += 1
            if self.world.frames[-1].epochs.get((name, credential)) != after["epoch"]:
                self._violate("order", f"{name}/{credential}: published though a later lease was taken")
        text = str(text_of(after))
        # What comes back after its end as we count it: after a lost response a ticket's life is counted too short.
        came_back = text == text_of(before) and after["expires_at"] != before["expires_at"]
        is_ticket = credential != ACCESS_TOKEN
        if is_ticket and text_of(before) in self.wechat.spoiled and text != text_of(before):
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
        text = str(text_of(before))
        if self.wechat.minted[text].value.dies_at <= self.clock.now:
            # A forced refresh that was begun ends it too, but perhaps never came to WeChat, which may then repeat it.
            is_refused = fingerprint(text) in after.get("refused_fingerprints", {}).get("S", "").split()
            if is_refused and "refused_at" in after and text == text_of(after):
                self.refused.setdefault(text, self.clock.now)
            return
        failed = int(after["failures"]["N"]) > int(before["failures"]["N"])
        if failed and any(before.get(kept) != after.get(kept) for kept in ("value", "fingerprint", "expires_at")):
            self._violate("responses", f"{name}/{credential}: a failure changed the live value or its expiry")
        # A call that was held up minted it late, so that to the keeper it is older than WeChat's delay.
        minted_at = self.wechat.minted[text].value.minted_at
        is_late = minted_at - int(before["fetched_at"]["N"]) > renewal.MIN_AGE_TO_CHECK / 2
        is_excused = is_late and self.clock.now - minted_at < self.wechat.accepted_after
        if "refused_at" in after and "refused_at" not in before and not self._is_ended(text) and not is_excused:
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


def _forced_at(item: Item) -> int:
    return int(item["spent"]["M"]["forced_at"]["N"]) if "spent" in item else 0
