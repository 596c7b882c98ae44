"""`token-keeper doctor` against the local stack: what it finds, and what it says to do."""

import json
import re
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from threading import Thread
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import responses
from moto import mock_aws
from moto.backends import get_backend
from typer.testing import CliRunner, Result

from infra.cli import app
from infra.cli.doctor import CheckStatus, _address
from infra.local.http_server import three_free_ports
from infra.local.local_stack import LocalStack
from infra.local.simulated_wechat import Fault
from tests.support.world import World

ACCOUNT, REGION = "123456789012", "us-east-1"
KEY: Any = {"aws_access_key_id": "operator", "aws_secret_access_key": "operator"}
TOKEN = "/cgi-bin/token"
SECRET = "fedcba9876543210fedcba9876543210"

pytestmark = pytest.mark.xdist_group("local")


@pytest.fixture(scope="module")
def local() -> Iterator[LocalStack]:
    with LocalStack() as local:
        assert local.tried.wait(120)
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
        "schedule local-probe",
        "code",
        "parameter demo",
        "consumers",
        "demo access_token",
    ):
        assert f"ok      {subject}: " in result.output
    # And what one may want, but need not
    assert "note    address: calls to WeChat come from changing addresses" in result.output
    assert "note    alarm mail: no subscriber" in result.output


def test_all_problems_are_found_at_once_each_with_its_remedy(local: LocalStack, aws: boto3.Session) -> None:
    # Given
    ssm, sqs = aws.client("ssm"), aws.client("sqs")
    scheduler, sns = aws.client("scheduler"), aws.client("sns")
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
    ssm.put_parameter(Name=f"{path}/team/deep", Value=json.dumps(record), Type="SecureString")
    ssm.put_parameter(Name=f"{path}/naked", Value=json.dumps(record), Type="String")
    outputs = {
        item["OutputKey"]: item["OutputValue"]
        for item in aws.client("cloudformation").describe_stacks(StackName="local")["Stacks"][0]["Outputs"]
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
    key = {"pk": {"S": "consumers"}, "sk": {"S": "f" * 64}, "name": {"S": "ghost"}, "accounts": {"S": "*"}}
    aws.client("dynamodb").put_item(TableName=outputs["TokenTableName"], Item=key)
    until_it_failed(local, "shop")

    # When
    result = doctor("--json")

    # Then
    assert result.exit_code == 1
    findings: dict[str, dict[str, Any]] = {item["subject"]: item for item in json.loads(result.output)}
    wrong = {name: item["says"] for name, item in findings.items() if item["verdict"] in ("wrong", "unknown")}
    assert "ResourceNotFoundException" in wrong.pop("schedule local-tick")
    assert "40164: invalid ip 8.149.1.2" in wrong.pop("shop access_token")
    naked = wrong.pop("parameter naked")
    assert naked == "a String, not a SecureString"
    wrong.pop("naked access_token", None)  # perhaps it is tried already
    assert wrong == {
        "schedule local-guard": "disabled",
        "parameter Bad_Name": "not a valid account name",
        "parameter team/deep": "one level too deep to be an account",
        "consumer ghost": "an unknown key may read *",
        "address": "calls to WeChat come from changing addresses",
        "dead letters": "1 event(s) could not be handled",
        "alarm mail": "ops@example.com has not confirmed",
        "alarm local-api-5xx": "in ALARM state",
    }
    assert all(findings[name]["remedy"] for name in [*wrong, "shop access_token", "schedule local-tick"])
    for mode, price in (("managed", "36.50 USD"), ("instance", "7 USD")):
        assert f"EgressMode={mode}" in findings["address"]["remedy"]
        assert price in findings["address"]["remedy"]
    assert SECRET not in result.output
    # And what is well is still reported
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
    assert finding.verdict is CheckStatus.OK
    assert f"calls to WeChat come from {address}" in finding.says
    assert "USD a month" in finding.says


def until_it_failed(local: LocalStack, account: str) -> None:
    while "40164" not in CliRunner().invoke(app, ["--local", "status", account]).output:
        local.clock.sleep(0.1)


def test_a_record_that_is_not_in_force_is_found(local: LocalStack, aws: boto3.Session) -> None:
    # Given an account whose record was made invalid
    path = "/wechat-token-keeper/accounts"
    local.wechat.add_app("wx2", SECRET)
    record = {"appid": "wx2", "secret": SECRET}
    ssm = aws.client("ssm")
    ssm.put_parameter(Name=f"{path}/blog", Value=json.dumps(record), Type="SecureString")
    ssm.put_parameter(Name=f"{path}/blog", Value="{}", Type="SecureString", Overwrite=True)
    while "missing" not in CliRunner().invoke(app, ["--local", "status", "blog"]).output:
        local.clock.sleep(0.1)

    # When
    findings = {item["subject"]: item for item in json.loads(doctor("--json").output)}

    # Then the change and what is wrong with it are found
    assert findings["parameter blog"]["verdict"] == "wrong"
    assert findings["parameter blog"]["says"] == "changed, and the change is not in force"
    assert "the field appid is missing" in findings["blog access_token"]["says"]


def test_an_old_key_of_a_consumer_is_noted(aws: boto3.Session) -> None:
    for command in (["add", "billing", "--accounts", "demo"], ["rotate", "billing"]):
        assert CliRunner().invoke(app, ["--local", "consumers", *command]).exit_code == 0

    findings = {item["subject"]: item for item in json.loads(doctor("--json").output)}

    assert findings["consumer billing"]["verdict"] == "note"
    assert "consumers revoke billing --old" in findings["consumer billing"]["remedy"]


def test_without_the_stack_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_KEEPER_LOCAL_PORT", str(three_free_ports()))

    result = doctor()

    assert result.exit_code == 2
    assert "is `token-keeper local` running?" in result.output


# --- what only AWS has: Lambda's settings and the log


class Lambda:
    """Stands in for AWS Lambda: which code is deployed, and how many executions the AWS account has."""

    def __init__(self) -> None:
        self.version: str | None = version("wechat-token-keeper")
        self.executions = 1000

    def handle(self, path: str) -> dict[str, Any]:
        if "account-settings" in path:
            return {"AccountLimit": {"ConcurrentExecutions": self.executions}}
        variables = {} if self.version is None else {"VERSION": self.version}
        return {"Environment": {"Variables": variables}, "LoggingConfig": {"LogGroup": LOG}}


LOG, API, NAME = "/aws/lambda/tk-refresh", "https://api.example.com", "tk"


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lambda]:
    """A stack in AWS without accounts, whose guard and probe have run a moment ago."""
    functions = Lambda()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(functions.handle(self.path)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**KEY, "aws_default_region": REGION, "token_keeper_stack": NAME}.items():
        monkeypatch.setenv(name.upper(), value)
    with HTTPServer(("127.0.0.1", 0), Handler) as server, mock_aws(), responses.RequestsMock() as api:
        Thread(target=server.serve_forever, args=(0.01,)).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", f"http://127.0.0.1:{server.server_port}")
        api.get(f"{API}/v1/accounts", json={"accounts": []})
        make_stack()
        for wake in ("guard", "probe"):
            log(wake, seconds_ago=10)
            change_schedule(wake, seconds_ago=86400)
        yield functions
        server.shutdown()


def make_stack() -> None:
    table, queue, topic = (
        {
            "Type": "AWS::DynamoDB::Table",
            "Properties": {
                "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
                "KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
                "BillingMode": "PAY_PER_REQUEST",
            },
        },
        {"Type": "AWS::SQS::Queue"},
        {"Type": "AWS::SNS::Topic"},
    )
    outputs = {
        **{"ApiUrl": API, "AccountsPath": "/elsewhere", "RefreshFunctionName": "tk-refresh"},
        **{
            "TokenTableName": {"Ref": "Table"},
            "DeadLetterQueueUrl": {"Ref": "Queue"},
            "AlarmTopicArn": {"Ref": "Topic"},
        },
    }
    template = {
        "Resources": {"Table": table, "Queue": queue, "Topic": topic},
        "Outputs": {name: {"Value": value} for name, value in outputs.items()},
    }
    boto3.client("cloudformation").create_stack(StackName=NAME, TemplateBody=json.dumps(template))
    for schedule in ("tick", "guard", "probe"):
        boto3.client("scheduler").create_schedule(
            Name=f"{NAME}-{schedule}",
            ScheduleExpression="rate(1 minute)",
            FlexibleTimeWindow={"Mode": "OFF"},
            Target={"Arn": "arn:aws:lambda:us-east-1:123456789012:function:x", "RoleArn": "arn:aws:iam::1:role/y"},
        )
    logs = boto3.client("logs")
    logs.create_log_group(logGroupName=LOG)
    logs.create_log_stream(logGroupName=LOG, logStreamName="one")


def log(wake: str, *, seconds_ago: float) -> None:
    """Have RefreshFunction's log say that it was woken, in the words that the function itself writes."""
    line = json.dumps({"level": "INFO", "message": "woken", "woken_by": wake, "service": "refresh"})
    event = {"timestamp": int((time.time() - seconds_ago) * 1000), "message": line}
    boto3.client("logs").put_log_events(logGroupName=LOG, logStreamName="one", logEvents=[event])


def change_schedule(wake: str, *, seconds_ago: float) -> None:
    schedule = get_backend("scheduler")[ACCOUNT][REGION].get_schedule(group_name=None, name=f"{NAME}-{wake}")
    schedule.last_modified_date = time.time() - seconds_ago


def forget_the_log() -> None:
    logs = boto3.client("logs")
    logs.delete_log_stream(logGroupName=LOG, logStreamName="one")
    logs.create_log_stream(logGroupName=LOG, logStreamName="one")


def findings_of_aws() -> dict[str, tuple[str, str]]:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    return {item["subject"]: (item["verdict"], item["says"]) for item in json.loads(result.stdout)}


def test_a_deployed_stack_on_which_all_is_well(deployed: Lambda) -> None:
    findings = findings_of_aws()

    assert {verdict for verdict, _ in findings.values()} == {"ok", "note"}, findings
    for wake in ("guard", "probe"):
        assert re.fullmatch(r"1\d s ago", findings[f"last {wake}"][1])
    assert findings["lambda quota"] == ("ok", "1000 concurrent executions for all functions of the AWS account")


@pytest.mark.parametrize(
    ("wake", "minutes", "verdict", "says"),
    [
        ("guard", 3, "ok", "3 minutes ago"),
        ("guard", 8, "wrong", "8 minutes ago"),
        ("guard", None, "wrong", "has not run to its end in the last 60 minutes"),
        ("probe", 8, "ok", "8 minutes ago"),
        ("probe", 20, "wrong", "20 minutes ago"),
        ("probe", None, "wrong", "has not run to its end in the last 60 minutes"),
    ],
)
def test_the_last_guard_and_the_last_probe(
    deployed: Lambda, wake: str, minutes: int | None, verdict: str, says: str
) -> None:
    # Given a log in which one of them has not been for a while, while the function was woken by others
    forget_the_log()
    log("parameter", seconds_ago=1)
    if minutes is not None:
        log(wake, seconds_ago=minutes * 60 + 1)

    # Then
    assert findings_of_aws()[f"last {wake}"] == (verdict, says)


@pytest.mark.parametrize(("wake", "minutes"), [("guard", 4), ("probe", 14)])
@pytest.mark.parametrize("ran_before", [False, True])
def test_a_schedule_just_made_or_enabled_need_not_have_run(
    deployed: Lambda, wake: str, minutes: int, ran_before: bool
) -> None:
    # Given a stack just deployed, or a schedule that was disabled for a while and is enabled again
    forget_the_log()
    if ran_before:
        log(wake, seconds_ago=30 * 60)
    change_schedule(wake, seconds_ago=minutes * 60)

    # Then it is no fault that it has not run
    says = f"has not run since its schedule was made or changed, {minutes} minutes ago"
    assert findings_of_aws()[f"last {wake}"] == ("note", says)

    # But it is one when it had the time to
    change_schedule(wake, seconds_ago=(minutes + 2) * 60)
    assert findings_of_aws()[f"last {wake}"][0] == "wrong"


@pytest.mark.parametrize(
    ("deployed_version", "verdict"),
    [("0.0.9", "wrong"), (None, "wrong"), ("0.1.0", "ok"), ("0.10.0", "note"), ("1.0.0", "note")],
)
def test_code_that_is_older_than_the_command_line(
    deployed: Lambda, deployed_version: str | None, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.cli.doctor.version", lambda _: "0.1.0")
    deployed.version = deployed_version
    result = CliRunner().invoke(app, ["doctor"])
    assert f"{verdict:7} code: " in result.stdout
    if verdict == "wrong":  # `sam` is in the group
        assert "`uv run --group deploy sam build && uv run --group deploy sam deploy`" in result.stdout


def test_a_low_quota_of_lambda_is_noted(deployed: Lambda) -> None:
    deployed.executions = 10
    assert findings_of_aws()["lambda quota"] == (
        "note",
        "10 concurrent executions for all functions of the AWS account",
    )


def test_the_function_says_what_woke_it_when_it_is_done(world: World) -> None:
    # When the guard wakes RefreshFunction, with nothing to do
    world.wake("guard")

    # Then its log has the line that `doctor` looks for
    line, _ = world.said
    assert line.startswith("woken ")
    assert "'woken_by': 'guard'" in line
