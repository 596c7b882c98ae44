"""What must hold after each step: the invariants of infra/docs/DESIGN.md."""

from typing import Any

from hypothesis.stateful import invariant

from tests.simulation.accounts import text_of
from tests.simulation.bounds import CALM, CALM_FOR_TICKETS, CALM_WITH_TICK, FOUND_WITHIN
from tests.simulation.course import Course
from tests.simulation.inline import LOGGED
from tests.simulation.state import State
from token_keeper.model import ACCESS_TOKEN


class Invariants(Course):
    """Checked by hypothesis when a rule is done; the last one ends the step."""

    @invariant()
    def values_live_as_promised(self) -> None:
        """Invariants 1 and 2."""
        kept = []
        for promise in self.promises:
            value = promise.minted.value
            if value.dies_at < promise.until and self._excuse(promise) is None:
                self._violate(
                    "promise",
                    f"{promise.account}/{promise.credential}: promised at {promise.learned_at:.0f} that it works until "
                    f"{promise.until:.0f}, it was minted at {value.minted_at:.0f} and dies at {value.dies_at:.0f}",
                )
            if promise.until > self.clock.now - 600:
                kept.append(promise)
        self.promises = kept[-200:]

    @invariant()
    def everything_is_live_again(self) -> None:
        """Invariants 3, 7 and 9: an account that has had peace for so long has a usable value, whatever its neighbours do."""
        if self.violations:
            return  # reported at the end of this step
        for name, record in self.records.items():
            if not self._is_right(name):
                continue
            for credential in (ACCESS_TOKEN, *record.get("tickets", [])):
                text, calm = text_of(self._item(name, credential)), self.clock.now - self.troubled_at[name]
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
        text = text_of(item)
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
            text = text_of(item)
            if text is not None and self.wechat.accepts(text):
                self._violate("ttl", f"{item['pk']['S']}/{item['sk']['S']} was deleted with a value that works")

    @invariant()
    def no_value_is_told(self) -> None:
        """Invariant 8."""
        said, logged = self.world.said[self.said_read :], LOGGED[self.logged_read :]
        self.said_read, self.logged_read = len(self.world.said), len(LOGGED)
        self._keep_quiet("a summary, health or problem document", "\n".join(said))
        self._keep_quiet("a log line", "\n".join(logged))

    @invariant()
    def nothing_was_violated(self) -> None:
        """The end of each step."""
        State.steps += 1
        if self.violations:
            raise AssertionError("\n".join(self.violations))
