"""Metrics for CloudWatch: a line of the log in its embedded metric format, which costs no call and no library.

What is watched, and by which alarm, stands in infra/cloudformation/monitoring.yaml. Nothing is told while all is well, as each name costs
money in every hour in which it is told. No metric ever holds a value, nor the name of an account.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from token_keeper.model import Failed, Outcome, Renewed

NAMESPACE = "WeChatTokenKeeper"

UNITS = {"SecondsLeft": "Seconds", "BudgetUsed": "Percent"}
"""Of the metrics that are no counts."""

BUDGET_WORTH_TELLING = 50
"""Percent of the day's calls; a usual day takes one percent."""


class Metrics:
    """Tells metrics of a stack; of none where `stack` is empty, as when no CloudWatch reads the log."""

    def __init__(self, stack: str | None, clock: Callable[[], float] = time.time) -> None:
        self._stack = stack
        self._clock = clock

    def tell(self, metrics: Mapping[str, float], **dimensions: str) -> None:
        """Write the metrics down, under the stack and the given dimensions."""
        if not self._stack or not metrics:
            return
        named: dict[str, Any] = {"Stack": self._stack, **dimensions}
        told = [{"Name": name, "Unit": UNITS.get(name, "Count")} for name in metrics]
        directive = {"Namespace": NAMESPACE, "Dimensions": [list(named)], "Metrics": told}
        about = {"Timestamp": int(self._clock() * 1000), "CloudWatchMetrics": [directive]}
        sys.stdout.write(json.dumps({"_aws": about, **named, **metrics}) + "\n")

    def tell_outcomes(self, outcomes: Iterable[Outcome]) -> None:
        """What became of the renewals of one wake-up: counts, and of times and budgets the worst."""
        outcomes = list(outcomes)
        renewed = [one for one in outcomes if isinstance(one, Renewed)]
        failed = [one for one in outcomes if isinstance(one, Failed)]
        told: dict[str, float] = {}
        if renewed:
            told["Renewals"] = len(renewed)
        if foreign := sum(one.foreign for one in renewed):
            told["ForeignRotations"] = foreign
        left = [one.usable_until - one.next_attempt_at for one in failed if one.usable_until is not None]
        if left:
            told["SecondsLeft"] = max(min(left), 0)
        used = max([one.budget_used for one in renewed] + [one.budget_used for one in failed], default=0)
        if used > BUDGET_WORTH_TELLING:
            told["BudgetUsed"] = used
        self.tell(told)
        for failure_class, failures in Counter(str(one.failure.failure_class) for one in failed).items():
            self.tell({"Failures": failures}, Class=failure_class)
