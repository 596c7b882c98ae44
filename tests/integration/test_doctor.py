"""`token-keeper doctor` against the local stack: what it finds, and what it says to do."""

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from moto.backends import get_backend
from typer.testing import CliRunner, Result

from infra.cli import app
from infra.doctor import Verdict, _address
from infra.local import LocalStack
from infra.loopback import three_free_ports
from infra.simulated_wechat import Fault

ACCOUNT, REGION = "123456789012", "us-east-1"
TOKEN = "/cgi-bin/token"
SECRET = "fedcba9876543210fedcba9876543210"

pytestmark = pytest.mark.xdist_group("local")


@pytest.fixture(scope="module")
def local() -> Iterator[LocalStack]:
    with LocalStack() as local:
        assert local.tried.wait(30)
        yield local


@pytest.fixture
def aws(local: LocalStack, monkeypatch: pytest.MonkeyPatch) -> boto3.Session:
    monkeypatch.setenv("TOKEN_KEEPER_LOCAL_PORT", str(local.port))
    monkeypatch.setenv("AWS_ENDPOINT_URL", local.aws_url)
    return local.aws_session()


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["--local", "doctor", *arguments])


def test_a_stack_on_which_all_is_well(aws: boto3.Session) -> None:
    # When
    result = doctor()

    # Then
    assert result.exit_code == 0, result.output
    assert result.output.endswith("All is well.\n")
    for subject in (
        "stack local",
        "schedule local-tick",
        "schedule local-guard",
        "parameter demo",
        "demo access_token",
    ):
        assert f"ok      {subject}: " in result.output
    # And what one may want, but need not
    assert "note    address: calls to WeChat come from changing addresses" in result.output
    assert "note    alarm mail: nobody hears the alarms" in result.output


def test_all_that_can_be_wrong_is_found_at_once_and_each_with_what_to_do(local: LocalStack, aws: boto3.Session) -> None:
    # Given
    scheduler, ssm, sqs, sns = (aws.client(name) for name in ("scheduler", "ssm", "sqs", "sns"))
    guard = scheduler.get_schedule(Name="local-guard")
    wanted = ("Name", "ScheduleExpression", "FlexibleTimeWindow")
    scheduler.update_schedule(
        **{key: guard[key] for key in wanted}, Target={"Arn": "arn:x", "RoleArn": "arn:y"}, State="DISABLED"
    )
    scheduler.delete_schedule(Name="local-tick")
    path = "/wechat-token-keeper/accounts"
    local.wechat.fail(TOKEN, *[Fault.error(40164, "invalid ip 8.149.1.2, not in whitelist")] * 10, account="wx1")
    record = {"appid": "wx1", "secret": SECRET}
    ssm.put_parameter(Name=f"{path}/shop", Value=json.dumps(record), Type="SecureString")
    ssm.put_parameter(Name=f"{path}/Bad_Name", Value=json.dumps(record), Type="SecureString")
    ssm.put_parameter(Name=f"{path}/naked", Value=json.dumps(record), Type="String")
    outputs = {
        one["OutputKey"]: one["OutputValue"]
        for one in aws.client("cloudformation").describe_stacks(StackName="local")["Stacks"][0]["Outputs"]
    }
    sqs.send_message(QueueUrl=outputs["DeadLetterQueueUrl"], MessageBody="{}")
    sns.subscribe(TopicArn=outputs["AlarmTopicArn"], Protocol="email", Endpoint="ops@example.com")
    for subscription in get_backend("sns")[ACCOUNT][REGION].subscriptions.values():
        subscription.arn = "PendingConfirmation"
    aws.client("cloudwatch").put_metric_alarm(
        AlarmName="local-api-5xx",
        AlarmDescription="Consumers get errors. Do first: look.",
        **{"MetricName": "5xx", "Namespace": "AWS/ApiGateway", "Period": 60, "Statistic": "Sum"},
        **{"EvaluationPeriods": 1, "Threshold": 1, "ComparisonOperator": "GreaterThanThreshold"},
    )
    aws.client("cloudwatch").set_alarm_state(AlarmName="local-api-5xx", StateValue="ALARM", StateReason="test")
    until_it_failed(local, "shop")

    # When
    result = doctor("--json")

    # Then
    assert result.exit_code == 1
    findings: dict[str, dict[str, Any]] = {one["subject"]: one for one in json.loads(result.output)}
    wrong = {name: one["says"] for name, one in findings.items() if one["verdict"] in ("wrong", "unknown")}
    assert "ResourceNotFoundException" in wrong.pop("schedule local-tick")
    assert "40164: invalid ip 8.149.1.2" in wrong.pop("shop access_token")
    naked = wrong.pop("parameter naked")
    assert naked == "a String, not a SecureString"
    wrong.pop("naked access_token", None)  # perhaps it is tried already
    assert wrong == {
        "schedule local-guard": "disabled",
        "parameter Bad_Name": "its name makes it no account",
        "address": "calls to WeChat come from changing addresses",
        "dead letters": "1 event(s) could not be handled",
        "alarm mail": "ops@example.com has not confirmed",
        "alarm local-api-5xx": "it rings",
    }
    assert all(findings[name]["remedy"] for name in [*wrong, "shop access_token", "schedule local-tick"])
    for mode, price in (("managed", "36.50 USD"), ("instance", "7 USD")):
        assert f"EgressMode={mode}" in findings["address"]["remedy"]
        assert price in findings["address"]["remedy"]
    assert SECRET not in result.output
    # And what is well is still told
    assert findings["demo access_token"]["verdict"] == "ok"


@pytest.mark.parametrize(
    ("parameters", "outputs", "address"),
    [
        ({"EgressMode": "managed"}, {"EgressIp": "8.149.1.2"}, "8.149.1.2 (EgressMode=managed"),
        ({"EgressMode": "instance"}, {"EgressIp": "8.149.1.2"}, "8.149.1.2 (EgressMode=instance"),
        ({"EgressMode": "instance", "EgressAllocationId": "eipalloc-01"}, {}, "the Elastic IP address eipalloc-01 ("),
    ],
)
def test_a_fixed_address_is_shown_with_mode_and_price(
    parameters: dict[str, str], outputs: dict[str, str], address: str
) -> None:
    # Given a stack with an address of its own, which no simulated AWS deploys as a whole
    stack: Any = SimpleNamespace(parameters=parameters, outputs=outputs)
    # When it is looked at
    (finding,) = _address(stack)
    # Then
    assert finding.verdict is Verdict.OK
    assert f"calls to WeChat come from {address}" in finding.says
    assert "USD a month" in finding.says


def until_it_failed(local: LocalStack, account: str) -> None:
    while "40164" not in CliRunner().invoke(app, ["--local", "status", account]).output:
        local.clock.sleep(0.1)


def test_without_the_stack_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_KEEPER_LOCAL_PORT", str(three_free_ports()))

    result = doctor()

    assert result.exit_code == 2
    assert "is `token-keeper local` running?" in result.output
