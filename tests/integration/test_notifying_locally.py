"""`token-keeper notifications` on the local stack: from the command line to a group robot, and from a failure to a message."""

import json
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from typer.testing import CliRunner, Result

from infra.cli import app, doctor
from infra.local.local_stack import DEMO_RECORD, LocalStack
from infra.local.simulated_robots import SIGNING_SECRET
from token_keeper.notify.robots import PATHS

pytestmark = pytest.mark.xdist_group("local")

DEADLINE = 60


class Local:
    """A local stack, what it prints, and its command line."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.stack = LocalStack(emit=self.lines.append)

    def run(self, *arguments: str, typed: str = "") -> Result:
        options = ["--local", "--local-port", str(self.stack.port)]
        return CliRunner().invoke(app, [*options, "notifications", *arguments], input=typed)

    def written(self) -> list[tuple[str, str]]:
        return self.stack.robots.messages


@pytest.fixture(scope="module")
def local() -> Iterator[Local]:
    made = Local()
    with made.stack:
        assert made.stack.tried.wait(DEADLINE)
        yield made


def wait_until(holds: Callable[[], object]) -> None:
    ends_at = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < ends_at, "it has not come"
        time.sleep(0.05)


def test_a_robot_is_added_tested_listed_and_removed(local: Local) -> None:
    # When
    address = f"{local.stack.wechat_url}/robot/send?access_token=s3cret-signed"
    added = local.run("add", "ops", "--accounts", "demo,shop-*", typed=f"{address}\n{SIGNING_SECRET}\n")
    # Then
    assert added.exit_code == 0, added.output
    assert "Added ops: 钉钉, for demo, shop-*." in added.output
    # When
    tested = local.run("test", "ops")
    # Then it has written, with a signature
    assert tested.exit_code == 0, tested.output
    assert [robot for robot, _ in local.written()] == ["s3cret-signed"]
    # And is listed without its address
    listed = local.run("list", "--json")
    (shown,) = json.loads(listed.output)["notifications"]
    assert shown == {"name": "ops", "platform": "dingtalk", "accounts": ["demo", "shop-*"], "signed": True}
    for result in (added, tested, listed, local.run("list")):
        assert "s3cret" not in result.output
        assert SIGNING_SECRET not in result.output
    # And there cannot be two of one name
    second = local.run("add", "ops", typed=address)
    assert (second.exit_code, "The robot ops exists: " in second.output) == (2, True)
    # When
    assert local.run("remove", "ops").exit_code == 0
    # Then
    again = local.run("remove", "ops")
    assert (again.exit_code, "There is no robot ops: " in again.output) == (2, True)
    gone = local.run("test", "ops")
    assert (gone.exit_code, "no robot of that name" in gone.output) == (1, True)


def test_other_hosts_are_refused_without_being_repeated(local: Local) -> None:
    refused = local.run("add", "ops", typed="https://example.com/robot/send?access_token=s3cret")
    assert refused.exit_code == 2
    assert "https://open.feishu.cn/open-apis/bot/v2/hook/" in refused.output
    assert "s3cret" not in refused.output


def test_a_failure_becomes_an_event_and_a_message(local: Local) -> None:
    # Given
    address = f"{local.stack.wechat_url}/open-apis/bot/v2/hook/team"
    assert local.run("add", "team", typed=address).exit_code == 0
    ssm = local.stack.aws_session().client("ssm", endpoint_url=local.stack.aws_url)
    parameter = "/wechat-token-keeper/accounts/demo"
    # When
    record = json.dumps(DEMO_RECORD | {"secret": "f" * 32})
    ssm.put_parameter(Name=parameter, Value=record, Type="SecureString", Overwrite=True)
    # Then
    wait_until(lambda: any("event Credential Failing: demo access_token" in line for line in local.lines))
    wait_until(lambda: any("WeChat credential failing" in text for _, text in local.written()))
    # When
    ssm.put_parameter(Name=parameter, Value=json.dumps(DEMO_RECORD), Type="SecureString", Overwrite=True)
    # Then
    wait_until(lambda: any("Recovered" in text for _, text in local.written()))


def test_doctor_shows_a_robot_that_cannot_be_used(local: Local) -> None:
    # Given
    ssm = local.stack.aws_session().client("ssm", endpoint_url=local.stack.aws_url)
    ssm.put_parameter(Name="/wechat-token-keeper/notifications/bad", Value="{", Type="SecureString")
    # When
    options = ["--local", "--local-port", str(local.stack.port)]
    result = CliRunner().invoke(app, [*options, "doctor"])
    # Then
    assert "wrong   robot bad: unusable" in result.output
    assert "token-keeper notifications remove bad" in result.output


def test_doctor_shows_a_robot_that_failed_lately() -> None:
    # Given the log of a deployed stack's NotifyFunction
    variables = {f"{name.upper()}_ROBOT_URL": "https://robots.example" for name in PATHS}
    records = [
        {"Name": f"/robots/{name}", "Value": json.dumps({"url": f"https://robots.example{path}1"})}
        for name, path in PATHS.items()
    ]
    line = json.dumps({"message": "robot failed", "robot": "feishu", "reason": "it refused the message"})
    listed = {"ssm": records, "logs": [{"message": line}, {"message": "no JSON"}]}
    aws = SimpleNamespace(
        local_port=None,
        ask=lambda *_, **__: {"Environment": {"Variables": variables}},
        ask_all=lambda service, *_, **__: listed[service],
    )
    stack = SimpleNamespace(
        name="production",
        is_local=False,
        aws=aws,
        outputs={"NotifyFunctionName": "notify"},
        notify_function="notify",
        notifications_path="/robots",
    )
    # When
    findings = list(doctor._notifications(cast(Any, stack)))
    # Then
    assert [(finding.subject, finding.verdict) for finding in findings] == [("robot feishu", "wrong")]
    assert "in the last 24 hours: it refused the message" in findings[0].says
    assert "notifications test feishu" in (findings[0].remedy or "")
