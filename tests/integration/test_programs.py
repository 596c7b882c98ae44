"""The programs that print tables: they follow the code that they measure."""

from importlib import import_module

import pytest

from tests.reports import bill


@pytest.mark.parametrize(
    "program", ["bill", "benchmark.__main__", "scale.__main__", "day", "year", "outage", "pictures"]
)
def test_a_program_can_be_loaded(program: str) -> None:
    assert callable(import_module(f"tests.reports.{program}").main)


def test_the_bill_grows_with_the_accounts() -> None:
    # Given what a month of keeping 1 and 100 accounts takes
    item, hundred = bill.keeping(1), bill.keeping(100)
    # Then each account takes as many writes, and the guard's one query is for all of them
    assert hundred[bill.WRITES] == pytest.approx(100 * item[bill.WRITES], rel=0.01)
    assert hundred[bill.READS] < 100 * item[bill.READS]
