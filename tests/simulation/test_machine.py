"""The simulation finds no violation in the code as it is, and finds one in each broken variant of it."""

import pytest

from tests.simulation.machine import simulate
from tests.simulation.mutants import MUTANTS


@pytest.mark.parametrize("examples", [10, pytest.param(30, marks=pytest.mark.long)])
def test_nothing_is_violated_whatever_happens(examples: int) -> None:
    """A small part of the nightly run, always the same."""
    simulate(examples, 40)


def search() -> None:
    """A few small simulations, up to the first violation."""
    for seed in range(4):
        simulate(40, 40, shrink=False, seed=seed)


@pytest.mark.long
@pytest.mark.parametrize("broken", MUTANTS)
def test_the_simulation_catches_what_is_broken(broken: str) -> None:
    """Each invariant would be missed."""
    # Given the real code with one small thing broken
    mutant = MUTANTS[broken]
    with mutant.alive(), pytest.raises(AssertionError) as caught:
        # When everything happens to it that happens to the real code
        search()
    # Then an invariant fails, and the one that is meant
    violated = {line.partition(":")[0] for line in str(caught.value).splitlines()}
    assert violated & set(mutant.caught_as), caught.value
