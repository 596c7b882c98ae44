"""What tests of the local stack wait for."""

from time import monotonic, sleep

import pytest


def wait_for_first_tick(caplog: pytest.LogCaptureFixture, seconds: float) -> None:
    """The tick that fires at the start may still be applying the first record, beside its event, when a test changes something."""
    ends = monotonic() + seconds
    while not any(
        (each.getMessage(), getattr(each, "woken_by", None)) == ("woken", "tick") for each in list(caplog.records)
    ):
        assert monotonic() < ends
        sleep(0.05)
