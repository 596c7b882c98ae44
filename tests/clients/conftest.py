"""A stub keeper for what no real one does on demand, and one local stack for the rest; nothing may say a value."""

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from secrets import token_urlsafe
from unittest.mock import patch

import pytest

from infra import sam_template
from infra.cli.consumer_keys import new_consumer
from infra.local.local_stack import LocalStack
from tests.clients.stub_keeper import APPID, KEY, FakeTime, StubKeeper
from tests.support.local_stack import first_tick
from wechat_token_keeper import Keeper

CORPID = "ww0123456789abcdef"

SAID: list[str] = []
"""Lines of the local stack: each renewal is one."""


@pytest.fixture
def stub() -> Iterator[StubKeeper]:
    with StubKeeper() as stub:
        yield stub


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def keeper(stub: StubKeeper, time: FakeTime) -> Keeper:
    return Keeper(stub.url, key=KEY, appid=APPID, wechat_url=stub.wechat_url, clock=time.clock)


@pytest.fixture(autouse=True)
def _silent_about_values(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test does: no log line of the client or of an HTTP library holds a token, a ticket or a key."""
    for logger in ("wechat_token_keeper", "httpx", "urllib3", "urllib3.connectionpool"):
        caplog.set_level(logging.DEBUG, logger)
    yield
    said = "\n".join(f"{record.getMessage()} {record.exc_text or ''}" for record in caplog.records)
    leaked = [secret for secret in (KEY, "token-1", "token-2", "ticket-1", "simulated_t", "wtk_") if secret in said]
    assert not leaked, said


@pytest.fixture(scope="session")
def local() -> Iterator[LocalStack]:
    """The whole system in this process, with the demo account. What it says goes to `SAID`.

    It has no probe: the probe's checks, every 300 real seconds, would be counted, and would serve reports, on a slow machine.
    """
    without_probe = [
        schedule for schedule in sam_template.schedules(sam_template.translate()) if schedule.event["wake"] != "probe"
    ]
    with ExitStack() as started:
        has_ticked = started.enter_context(first_tick())
        with patch.object(sam_template, "schedules", lambda _: without_probe):
            running = started.enter_context(LocalStack(emit=SAID.append))
        assert running.tried.wait(240)
        assert has_ticked.wait(240)
        yield running


def let_pass(running: LocalStack, seconds: float) -> None:
    """Let time pass in a local stack, without waiting for it."""
    running.clock._began_at += seconds


def add_corp_account(running: LocalStack, name: str, corpid: str) -> None:
    """Keep one app of a WeCom corp, with both of its tickets."""
    secret = token_urlsafe(16)
    running.wechat.add_corp_app(corpid, secret)
    session = running.aws_session()
    path = running.environment("RefreshFunction")["ACCOUNTS_PATH"]
    record = json.dumps({"corpid": corpid, "secret": secret, "tickets": ["jsapi", "agent_config"]})
    ssm = session.client("ssm", endpoint_url=running.aws_url)
    ssm.put_parameter(Name=f"{path}/{name}", Value=record, Type="SecureString")


def add_consumer(running: LocalStack, *accounts: str, may_report: bool = True) -> str:
    """A new consumer of these accounts; returns its key."""
    now = int(running.clock())
    key, item = new_consumer(token_urlsafe(6), accounts, may_report=may_report, now=now)
    session = running.aws_session()
    table = running.environment("ApiFunction")["TABLE_NAME"]
    session.client("dynamodb", endpoint_url=running.aws_url).put_item(TableName=table, Item=item)
    return key
