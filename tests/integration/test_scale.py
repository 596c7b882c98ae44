"""The program that measures many accounts works, with a few: `tests.reports.scale`."""

import sys

import pytest

from tests.reports.scale.__main__ import TIMEOUT, Report, measure

ACCOUNTS = 5

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="it stops and measures processes as Linux does"),
    pytest.mark.xdist_group("scale"),
]


@pytest.fixture(scope="module")
def report() -> Report:
    return measure(ACCOUNTS, lambda _: None)


def test_every_account_gets_its_token_and_keeps_it(report: Report) -> None:
    assert report.problems == []
    assert report.usable == ACCOUNTS
    assert all(row.longest < TIMEOUT for row in report.rows)


def test_calls_are_counted_by_service(report: Report) -> None:
    rows = {row.name: row for row in report.rows}
    assert rows["every token probed"].calls["WeChat get_api_domain_ip"] == ACCOUNTS
    guard, all_due = rows["a guard, nothing due"], rows["all due in one minute"]
    assert guard.calls == {"DynamoDB Query": 1}
    assert all_due.calls["WeChat token"] == ACCOUNTS
    assert all_due.calls_to("SSM") == 1
