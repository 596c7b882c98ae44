"""What a terminal sends."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from infra.signals import until_stopped
wait = until_stopped()
print("ready", flush=True)
wait()
print("stopped", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("signals", [1, 500])
def test_any_number_of_signals_at_once_stops_a_program(signals: int) -> None:
    # Given a program that runs until it is stopped
    command, pipe = [sys.executable, "-c", PROGRAM], subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        # When signals come, each perhaps while the one before is handled
        for _ in range(signals):
            program.terminate()
        # Then it goes on to its end
        try:
            assert program.communicate(timeout=60)[0] == "stopped\n"
        finally:
            program.kill()
        assert program.returncode == 0
