"""Everything that can go wrong, in any order: a stateful simulation of the real handlers.

    uv run python -m tests.simulation.machine --steps 200000 [--seed N]

Hypothesis chooses what happens: time passes (and the schedules fire as it passes, also while a call is under way), clients
read and report, people change records, WeChat, DynamoDB and Parameter Store fail, instances die. After every step the
invariants of infra/docs/DESIGN.md must hold. Several instances with different clocks take turns; they meet inside each other's calls.
"""

import argparse
import sys
import time

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.stateful import run_state_machine_as_test
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from tests.simulation.inline import inline
from tests.simulation.trouble import Trouble


class Simulation(Trouble):
    """The rules are what happens (`people`, `trouble`), the invariants what must hold after each (`invariants`)."""


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
    parser.add_argument("--no-shrink", action="store_true", help="show each violation as it was found")
    asked = parser.parse_args()
    console = Console()
    began_at, seed, violations = time.monotonic(), asked.seed, 0
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        shown = progress.add_task("steps", total=asked.steps)
        while Simulation.steps < asked.steps:
            examples = max(1, min(40, (asked.steps - Simulation.steps) // 50))
            try:
                simulate(examples, 50, seed=seed, shrink=not asked.no_shrink)
            except AssertionError as violation:
                violations += 1
                lines = [*getattr(violation, "__notes__", []), str(violation)]
                console.print("\n".join(lines), markup=False, highlight=False)
                console.print(f"violation {violations} after {Simulation.steps} steps; seed {seed}")
            seed += 1
            progress.update(shown, completed=Simulation.steps)
    rate = Simulation.steps / (time.monotonic() - began_at)
    seeds = f"seeds {asked.seed} to {seed - 1}"
    console.print(f"{Simulation.steps} steps, {seeds}, {violations} violations, {rate:.0f} steps a second")
    return min(violations, 1)


if __name__ == "__main__":
    sys.exit(main())
