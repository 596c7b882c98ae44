"""What template.yaml deploys, read from SAM's own translation of it, in both partitions."""

import importlib
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.events.models import EventPattern
from werkzeug.test import Client

from infra.local.local_stack import gateway
from infra.sam_template import TEMPLATE, Route, Schedule, Template, nested, parse, routes, schedules, translate
from tests.reports.bill import READ_SECONDS
from tests.support.tools import needed
from token_keeper.refresh.keeper import SYNC_TIME

EVENTS = Path(__file__).parents[1] / "events"
FUNCTIONS = ("RefreshFunction", "ApiFunction", "NotifyFunction")
KEY = "arn:aws:kms:us-east-1:123456789012:key/0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0"
PROJECT = tomllib.loads((TEMPLATE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOTHING = {"Ref": "AWS::NoValue"}
TEMPLATES = (TEMPLATE, *sorted((TEMPLATE.parent / "infra").rglob("*.yaml")))
DEAD_LETTERS = {"Fn::GetAtt": ["DeadLetterQueue", "Arn"]}

READERS_CALLS = {
    ("logs:CreateLogStream", "ApiFunctionLog.Arn"),
    ("logs:PutLogEvents", "ApiFunctionLog.Arn"),
    ("dynamodb:GetItem", "TokenTable.Arn"),
    ("dynamodb:BatchGetItem", "TokenTable.Arn"),
    ("dynamodb:Query", "TokenTable.Arn"),
    ("dynamodb:Query", "${TokenTable.Arn}/index/fingerprint"),
    ("dynamodb:Query", "${TokenTable.Arn}/index/previous_fingerprint"),
    ("lambda:InvokeFunction", "${RefreshFunction.Arn}:readers"),
}
ACCOUNTS_ARN = "arn:aws:ssm:us-east-1:${AWS::AccountId}:parameter/wechat-token-keeper/accounts"
REFRESHERS_CALLS = {
    ("logs:CreateLogStream", "RefreshFunctionLog.Arn"),
    ("logs:PutLogEvents", "RefreshFunctionLog.Arn"),
    ("dynamodb:GetItem", "TokenTable.Arn"),
    ("dynamodb:BatchGetItem", "TokenTable.Arn"),
    ("dynamodb:PutItem", "TokenTable.Arn"),
    ("dynamodb:UpdateItem", "TokenTable.Arn"),
    ("dynamodb:DeleteItem", "TokenTable.Arn"),
    ("dynamodb:Query", "TokenTable.Arn"),
    ("dynamodb:Query", "${TokenTable.Arn}/index/due"),
    ("ssm:GetParametersByPath", ACCOUNTS_ARN),
    ("ssm:GetParameters", f"{ACCOUNTS_ARN}/*"),
    ("sqs:SendMessage", "DeadLetterQueue.Arn"),
    ("events:PutEvents", "arn:aws:events:us-east-1:${AWS::AccountId}:event-bus/default"),
}
ROBOTS_ARN = "arn:aws:ssm:us-east-1:${AWS::AccountId}:parameter/wechat-token-keeper/notifications"
NOTIFIERS_CALLS = {
    ("logs:CreateLogStream", "NotifyFunctionLog.Arn"),
    ("logs:PutLogEvents", "NotifyFunctionLog.Arn"),
    ("sqs:ReceiveMessage", "NotifyQueue.Arn"),
    ("sqs:DeleteMessage", "NotifyQueue.Arn"),
    ("sqs:GetQueueAttributes", "NotifyQueue.Arn"),
    ("sns:Publish", "Monitoring.Outputs.TopicArn"),
    ("ssm:GetParametersByPath", ROBOTS_ARN),
}
INTERFACE_CALLS = {
    ("ec2:AssignPrivateIpAddresses", "*"),
    ("ec2:CreateNetworkInterface", "*"),
    ("ec2:DeleteNetworkInterface", "*"),
    ("ec2:DescribeNetworkInterfaces", "*"),
    ("ec2:DescribeSubnets", "*"),
    ("ec2:UnassignPrivateIpAddresses", "*"),
}
"""What Lambda does with RefreshFunction's role: it makes and removes network interfaces."""


@pytest.fixture(scope="module")
def template() -> Template:
    return translate()


def properties(template: Template, logical_id: str) -> dict[str, Any]:
    found: dict[str, Any] = template["Resources"][logical_id]["Properties"]
    return found


def of_type(template: Template, kind: str) -> dict[str, dict[str, Any]]:
    return {name: item["Properties"] for name, item in template["Resources"].items() if item["Type"] == kind}


def statements(role: dict[str, Any], effect: str) -> Iterator[dict[str, Any]]:
    for policy in role["Policies"]:
        yield from (item for item in policy["PolicyDocument"]["Statement"] if item["Effect"] == effect)


def calls(role: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each (action, resource) that a role's statements allow, resources in the template's words."""
    for statement in statements(role, "Allow"):
        for resource in listed(statement["Resource"]):
            if isinstance(resource, dict):
                resource = ".".join(resource["Fn::GetAtt"]) if "Fn::GetAtt" in resource else resource["Fn::Sub"]
            yield from ((action, resource) for action in listed(statement["Action"]))


def listed(one_or_more: Any) -> list[Any]:
    return one_or_more if isinstance(one_or_more, list) else [one_or_more]


def event(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((EVENTS / f"{name}.json").read_text())
    return loaded


def test_no_version_is_published_and_the_gateway_calls_latest(template: Template) -> None:
    # A published version would keep the architecture, the network and the code that it was published with.
    assert not of_type(template, "AWS::Lambda::Version")
    (api,) = of_type(template, "AWS::ApiGatewayV2::Api").values()
    called = {
        operation["x-amazon-apigateway-integration"]["uri"]["Fn::Sub"].partition("/functions/")[2]
        for path in api["Body"]["paths"].values()
        for operation in path.values()
    }
    assert called == {"${ApiFunction.Arn}/invocations"}
    permitted = [
        permission["FunctionName"]
        for permission in of_type(template, "AWS::Lambda::Permission").values()
        if permission["Principal"] == "apigateway.amazonaws.com"
    ]
    assert permitted
    assert all(function == {"Ref": "ApiFunction"} for function in permitted)


def test_the_contracts_names_are_there(template: Template) -> None:
    kinds = {name: resource["Type"] for name, resource in template["Resources"].items()}

    assert kinds["RefreshFunction"] == kinds["ApiFunction"] == "AWS::Lambda::Function"
    assert kinds["HttpApi"] == "AWS::ApiGatewayV2::Api"
    assert kinds["TokenTable"] == "AWS::DynamoDB::Table"
    assert set(template["Outputs"]) >= {"ApiUrl", "TokenTableName", "RefreshFunctionName", "AccountsPath"}
    defaults = {name: parameter["Default"] for name, parameter in template["Parameters"].items()}
    assert defaults["AccountsPath"] == "/wechat-token-keeper/accounts"
    assert defaults["RefreshRate"] == "rate(110 minutes)"
    assert defaults["GuardRate"] == "rate(1 minute)"
    assert set(defaults) >= {"EgressMode", "SubnetIds", "SecurityGroupIds", "KmsKeyArn", "AlarmEmail"}
    assert defaults["EgressZone"] == defaults["EgressAllocationId"] == ""
    assert template["Parameters"]["EgressMode"]["AllowedValues"] == ["none", "existing", "managed", "instance"]
    assert "EgressIp" in template["Outputs"]


def test_a_deployment_needs_no_parameter_and_asks_for_no_secret(template: Template) -> None:
    assert all("Default" in parameter for parameter in template["Parameters"].values())
    assert not [name for name in template["Parameters"] if "secret" in name.lower()]
    settings = tomllib.loads((TEMPLATE.parent / "samconfig.toml").read_text())["default"]
    assert settings["global"]["parameters"]["stack_name"]
    # The first for the roles, the second for the nested stacks.
    assert settings["deploy"]["parameters"]["capabilities"] == ["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"]


@pytest.mark.parametrize(
    ("region", "partition", "suffix"),
    [("us-east-1", "aws", "amazonaws.com"), ("cn-north-1", "aws-cn", "amazonaws.com.cn")],
)
def test_every_name_belongs_to_the_partition_it_is_deployed_in(region: str, partition: str, suffix: str) -> None:
    template = translate(region=region)

    everything = [template, *(nested(template, name, region=region) for name in ("Egress", "Monitoring"))]
    arns = re.findall(r"arn:([a-z-]+|\$\{[^}]+\}):", json.dumps([item["Resources"] for item in everything]))
    assert set(arns) == {partition}
    url = {"Fn::Sub": f"https://${{HttpApi}}.execute-api.{region}.{suffix}"}
    assert template["Outputs"]["ApiUrl"]["Value"] == url


def test_the_template_itself_names_no_partition() -> None:
    for template in TEMPLATES:
        assert "arn:aws" not in template.read_text(encoding="utf-8")


def test_nothing_needs_what_aws_china_lacks() -> None:
    # "Feature Availability and Implementation Differences" of Lambda in Getting Started with AWS in China.
    lacking = (
        "Tracing",
        "SnapStart",
        "FunctionUrl",
        "AsyncEventsReceived",
        "AsyncEventAge",
        "AsyncEventsDropped",
        "X-Ray",
        "xray",
    )

    template = translate(region="cn-north-1")
    deployed = json.dumps(
        [template, *(nested(template, name, region="cn-north-1") for name in ("Egress", "Monitoring"))]
    )

    assert not [feature for feature in lacking if feature in deployed]


@pytest.mark.parametrize("architecture", ["arm64", "x86_64"])
def test_both_functions_run_on_the_chosen_architecture(architecture: str) -> None:
    template = translate({"Architecture": architecture})

    for function in FUNCTIONS:
        assert properties(template, function)["Runtime"] == "python3.13"
        assert properties(template, function)["Architectures"] == [architecture]


V1_ROUTES = {
    Route("GET", "/v1/accounts", "ApiFunction"),
    Route("GET", "/v1/accounts/{account}", "ApiFunction"),
    Route("GET", "/v1/accounts/{account}/access-token", "ApiFunction"),
    Route("GET", "/v1/accounts/{account}/jsapi-signature", "ApiFunction"),
    Route("GET", "/v1/accounts/{account}/tickets/{type}", "ApiFunction"),
    Route("POST", "/v1/accounts/{account}/access-token/reports", "ApiFunction"),
}
COMPATIBLE_ROUTES = {
    Route("GET", "/cgi-bin/token", "ApiFunction"),
    Route("POST", "/cgi-bin/token", "ApiFunction"),
    Route("POST", "/cgi-bin/stable_token", "ApiFunction"),
    Route("GET", "/cgi-bin/gettoken", "ApiFunction"),
    Route("GET", "/cgi-bin/ticket/getticket", "ApiFunction"),
    Route("POST", "/cgi-bin/ticket/getticket", "ApiFunction"),
    Route("GET", "/cgi-bin/get_jsapi_ticket", "ApiFunction"),
    Route("GET", "/cgi-bin/ticket/get", "ApiFunction"),
    Route("ANY", "/cgi-bin/{proxy+}", "ApiFunction"),
}


def test_every_route_has_no_prefix_and_those_of_v1_need_iam(template: Template) -> None:
    body = properties(template, "HttpApi")["Body"]

    assert set(routes(template)) == V1_ROUTES | COMPATIBLE_ROUTES
    assert {path for path in body["paths"] if path.startswith("/v1/")} == {route.path for route in V1_ROUTES}
    v1 = [operation for path in body["paths"] if path.startswith("/v1/") for operation in body["paths"][path].values()]
    assert all(operation["security"] == [{"AWS_IAM": []}] for operation in v1)
    assert body["components"]["securitySchemes"]["AWS_IAM"]["x-amazon-apigateway-authtype"] == "awsSigv4"
    (stage,) = of_type(template, "AWS::ApiGatewayV2::Stage").values()
    assert stage["StageName"] == "$default"


@pytest.mark.parametrize(("switch", "authorizer"), [("enabled", "NONE"), ("disabled", "AWS_IAM")])
@pytest.mark.parametrize("region", ["us-east-1", "cn-north-1"])
def test_routes_in_wechats_format_need_iam_if_disabled(region: str, switch: str, authorizer: str) -> None:
    # When
    template = translate({"WeChatCompatibleApi": switch}, region=region)

    # Then
    assert template["Conditions"]["HasCompatibleApi"] == {"Fn::Equals": [switch, "enabled"]}
    body = properties(template, "HttpApi")["Body"]
    operations = [
        operation for path in {route.path for route in COMPATIBLE_ROUTES} for operation in body["paths"][path].values()
    ]
    assert len(operations) == len(COMPATIBLE_ROUTES)
    for operation in operations:
        condition, enabled, disabled = operation["security"]["Fn::If"]
        assert condition == "HasCompatibleApi"
        assert (enabled if switch == "enabled" else disabled) == [{authorizer: []}]
        assert operation["x-amazon-apigateway-integration"]["payloadFormatVersion"] == "2.0"
    assert set(body["components"]["securitySchemes"]) == {"AWS_IAM"}  # an authorizer that does not exist is none


def test_the_gateway_may_call_the_function_for_wechats_format(template: Template) -> None:
    permission = template["Resources"]["CompatibleApiPermission"]

    assert permission["Properties"]["FunctionName"] == {"Ref": "ApiFunction"}
    assert permission["Properties"]["SourceArn"]["Fn::Sub"].endswith("${HttpApi}/*/*/cgi-bin/*")


def test_open_routes_have_limits_that_leave_room_for_the_rest(template: Template) -> None:
    # Given
    (stage,) = of_type(template, "AWS::ApiGatewayV2::Stage").values()
    rates = {route: limit["ThrottlingRateLimit"] for route, limit in stage["RouteSettings"].items()}

    # Then each route that needs no signature has limits of its own, and the catch-all the lowest
    assert set(rates) == {f"{route.method} {route.path}" for route in COMPATIBLE_ROUTES}
    assert sum(rates.values()) == 285
    others = [rate for route, rate in rates.items() if route != "ANY /cgi-bin/{proxy+}"]
    assert rates["ANY /cgi-bin/{proxy+}"] < min(others)
    for limit in stage["RouteSettings"].values():
        assert limit["ThrottlingBurstLimit"] == 2 * limit["ThrottlingRateLimit"]
    # And all of them together take less than half of the 10 executions of a new AWS account
    assert sum(rates.values()) * READ_SECONDS < 5


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("GET", "/cgi-bin/ticket/get", "GET /cgi-bin/ticket/get"),
        ("POST", "/cgi-bin/ticket/getticket", "POST /cgi-bin/ticket/getticket"),
        ("POST", "/cgi-bin/gettoken", "ANY /cgi-bin/{proxy+}"),
        ("PUT", "/cgi-bin/user/info", "ANY /cgi-bin/{proxy+}"),
        ("GET", "/v1/accounts", "GET /v1/accounts"),
        ("POST", "/v1/accounts", None),
    ],
)
def test_the_local_gateway_chooses_the_most_specific_route(
    template: Template, method: str, path: str, route: str | None
) -> None:
    # Given the local gateway, and a function that returns the route
    serve = gateway(template, lambda event: {"body": event["routeKey"], "statusCode": 200, "headers": {}})

    # When
    response = Client(serve).open(path, method=method, environ_overrides={"REQUEST_URI": path})

    # Then
    assert (response.text if response.status_code == 200 else None) == route


@pytest.mark.parametrize("switch", ["enabled", "disabled"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SAM's own
def test_sam_local_start_api_finds_the_same_routes(switch: str) -> None:
    # When SAM's own command line reads the template
    providers = needed("samcli.lib.providers.sam_stack_provider"), needed("samcli.lib.providers.api_provider")
    stacks, _ = providers[0].SamLocalStackProvider.get_stacks(
        str(TEMPLATE), parameter_overrides={"WeChatCompatibleApi": switch}
    )
    found = providers[1].ApiProvider(stacks, cwd=str(TEMPLATE.parent)).api.routes

    # Then
    every_method = set(needed("samcli.local.apigw.route").Route.ANY_HTTP_METHODS)
    assert {
        Route(method, route.path, route.function_name)
        for route in found
        for method in (["ANY"] if set(route.methods) == every_method else route.methods)
    } == V1_ROUTES | COMPATIBLE_ROUTES


def test_the_schedules_wake_the_refresher_at_the_chosen_rates() -> None:
    # Given
    rates = {"RefreshRate": "rate(2 hours)", "GuardRate": "rate(2 minutes)"}

    # When
    by_default, chosen = schedules(translate()), schedules(translate(rates))

    # Then
    assert sorted(schedule.rate for schedule in by_default) == [60, 300, 6600]
    assert chosen == [
        Schedule("RefreshFunctionGuard", 120, {"wake": "guard"}, "RefreshFunction"),
        Schedule("RefreshFunctionProbe", 300, {"wake": "probe"}, "RefreshFunction"),
        Schedule("RefreshFunctionTick", 7200, {"wake": "tick"}, "RefreshFunction"),
    ]


@pytest.mark.parametrize(
    ("rate", "allowed"),
    [("rate(1 minute)", True), ("rate(2 minutes)", True), ("rate(3 minutes)", False), ("rate(1 hour)", False)],
)
def test_a_guard_that_would_come_too_late_is_refused(template: Template, rate: str, allowed: bool) -> None:
    guard_rate = template["Parameters"]["GuardRate"]

    assert bool(re.fullmatch(guard_rate["AllowedPattern"], rate)) is allowed


def test_a_schedule_is_the_stacks_own_punctual_and_soon_stale(template: Template) -> None:
    found = of_type(template, "AWS::Scheduler::Schedule")

    assert {schedule["Name"]["Fn::Sub"] for schedule in found.values()} == {
        "${AWS::StackName}-tick",
        "${AWS::StackName}-guard",
        "${AWS::StackName}-probe",
    }
    for schedule in found.values():
        assert schedule["FlexibleTimeWindow"] == {"Mode": "OFF"}
        assert schedule["Target"]["RetryPolicy"]["MaximumEventAgeInSeconds"] <= 300
        assert schedule["Target"]["DeadLetterConfig"]["Arn"] == DEAD_LETTERS


def test_nothing_is_made_under_a_name_that_is_too_long(template: Template) -> None:
    # Given the longest name that the nested stack lets pass
    longest = nested(template, "StackName")["Parameters"]["Name"]["MaxLength"]
    assert properties(template, "StackName")["Parameters"]["Name"] == {"Ref": "AWS::StackName"}

    # Then the names of the schedules are as long as Scheduler takes them at most
    for schedule in of_type(template, "AWS::Scheduler::Schedule").values():
        assert len(schedule["Name"]["Fn::Sub"].replace("${AWS::StackName}", "n" * longest)) <= 64
    # And nothing is made before it has passed
    checked = {"StackName"}
    while more := {
        name
        for name, resource in template["Resources"].items()
        if name not in checked and dependencies(resource) & checked
    }:
        checked |= more
    assert checked == set(template["Resources"])


def dependencies(resource: dict[str, Any]) -> set[str]:
    """What a resource depends on: named in so many words, or referred to."""
    references = re.findall(r'"Ref": "(\w+)"|"Fn::GetAtt": \["(\w+)"|\$\{(\w+)[.}]', json.dumps(resource))
    return {*listed(resource.get("DependsOn", [])), *(name for names in references for name in names)}


def test_a_late_guard_or_probe_is_not_delivered_again(template: Template) -> None:
    schedules = of_type(template, "AWS::Scheduler::Schedule")

    for name, longest in (("RefreshFunctionGuard", 60), ("RefreshFunctionProbe", 300)):
        retries = schedules[name]["Target"]["RetryPolicy"]
        assert retries == {"MaximumEventAgeInSeconds": longest, "MaximumRetryAttempts": 0}


def test_a_changed_account_parameter_reaches_the_refresher() -> None:
    # Given
    rule = properties(translate({"AccountsPath": "/elsewhere"}), "RefreshFunctionAccountChange")
    pattern = EventPattern.load(json.dumps(rule["EventPattern"]))

    def matches(name: str, operation: str) -> bool:
        change = event("parameter-created")
        change["detail"] |= {"name": name, "operation": operation}
        return pattern.matches_event(change)  # type: ignore[arg-type]

    # Then
    assert all(matches("/elsewhere/main", operation) for operation in ("Create", "Update", "Delete"))
    assert not matches("/elsewhere/main", "LabelParameterVersion")
    assert not matches("/elsewhere-not/main", "Create")
    (target,) = rule["Targets"]
    assert target["Arn"] == {"Fn::GetAtt": ["RefreshFunction", "Arn"]}
    assert target["DeadLetterConfig"]["Arn"] == DEAD_LETTERS


def test_final_failures_go_to_the_encrypted_dead_letter_queue(template: Template) -> None:
    (events,) = of_type(template, "AWS::Lambda::EventInvokeConfig").values()
    assert events["FunctionName"] == {"Ref": "RefreshFunction"}
    assert events["DestinationConfig"]["OnFailure"]["Destination"] == DEAD_LETTERS
    assert events["MaximumRetryAttempts"] <= 1
    assert properties(template, "DeadLetterQueue")["SqsManagedSseEnabled"] == {"Fn::If": ["HasKmsKey", NOTHING, True]}
    # A rule has no role: without the queue's own policy its dead letters are lost.
    (statement,) = properties(template, "DeadLetterQueuePolicy")["PolicyDocument"]["Statement"]
    assert statement["Principal"] == {"Service": "events.amazonaws.com"}
    assert statement["Condition"] == {
        "ArnEquals": {
            "aws:SourceArn": [
                {"Fn::GetAtt": ["RefreshFunctionAccountChange", "Arn"]},
                {"Fn::GetAtt": ["NotifyRule", "Arn"]},
            ]
        }
    }


def test_the_table(template: Template) -> None:
    table = properties(template, "TokenTable")

    assert table["BillingMode"] == "PAY_PER_REQUEST"
    assert key(table) == [("pk", "HASH", "S"), ("sk", "RANGE", "S")]
    assert table["TimeToLiveSpecification"] == {"AttributeName": "ttl", "Enabled": True}
    assert table["SSESpecification"]["SSEEnabled"] is True
    keys = {index["IndexName"]: key(table | index) for index in table["GlobalSecondaryIndexes"]}
    assert keys == {
        "due": [("due", "HASH", "S"), ("due_at", "RANGE", "N")],
        "fingerprint": [("fingerprint", "HASH", "S")],
        "previous_fingerprint": [("previous_fingerprint", "HASH", "S")],
    }
    # An index must never hold a value: whatever reads it has no need to.
    projections = [index["Projection"] for index in table["GlobalSecondaryIndexes"]]
    assert projections == [
        {"ProjectionType": "INCLUDE", "NonKeyAttributes": ["kind", "failures"]},
        {"ProjectionType": "KEYS_ONLY"},
        {"ProjectionType": "KEYS_ONLY"},
    ]


def test_the_table_outlives_its_stack_and_never_blocks_the_next(template: Template) -> None:
    resource, table = template["Resources"]["TokenTable"], properties(template, "TokenTable")

    assert resource["DeletionPolicy"] == resource["UpdateReplacePolicy"] == "Retain"
    assert table["DeletionProtectionEnabled"] is True
    assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert "TableName" not in table


def key(table: dict[str, Any]) -> list[tuple[str, str, str]]:
    types = {item["AttributeName"]: item["AttributeType"] for item in table["AttributeDefinitions"]}
    return [(item["AttributeName"], item["KeyType"], types[item["AttributeName"]]) for item in table["KeySchema"]]


def test_a_function_has_the_environment_it_needs_and_no_more(template: Template) -> None:
    environments = {function: properties(template, function)["Environment"]["Variables"] for function in FUNCTIONS}

    assert environments["RefreshFunction"] == {
        "TABLE_NAME": {"Ref": "TokenTable"},
        "ACCOUNTS_PATH": "/wechat-token-keeper/accounts",
        "WECHAT_API_URL": "https://api.weixin.qq.com",
        "WECOM_API_URL": "https://qyapi.weixin.qq.com",
        "AWS_ENDPOINT_URL": "",
        "STACK_NAME": {"Ref": "AWS::StackName"},
        "VERSION": PROJECT["version"],
    }
    assert environments["ApiFunction"] == {
        "TABLE_NAME": {"Ref": "TokenTable"},
        "REFRESH_FUNCTION_NAME": {"Fn::Sub": "${RefreshFunction}:readers"},
        "AWS_ENDPOINT_URL": "",
        "STACK_NAME": {"Ref": "AWS::StackName"},
        "VERSION": PROJECT["version"],
    }
    assert environments["NotifyFunction"] == {
        "TOPIC_ARN": {"Fn::GetAtt": ["Monitoring", "Outputs.TopicArn"]},
        "NOTIFICATIONS_PATH": "/wechat-token-keeper/notifications",
        "WECOM_ROBOT_URL": "https://qyapi.weixin.qq.com",
        "FEISHU_ROBOT_URL": "https://open.feishu.cn",
        "DINGTALK_ROBOT_URL": "https://oapi.dingtalk.com",
        "AWS_ENDPOINT_URL": "",
        "STACK_NAME": {"Ref": "AWS::StackName"},
        "VERSION": PROJECT["version"],
    }


def test_a_function_may_call_what_it_needs_and_no_more(template: Template) -> None:
    assert set(calls(properties(template, "RefreshFunctionRole"))) == REFRESHERS_CALLS | INTERFACE_CALLS
    assert set(calls(properties(template, "ApiFunctionRole"))) == READERS_CALLS
    assert set(calls(properties(template, "NotifyFunctionRole"))) == NOTIFIERS_CALLS
    for function in FUNCTIONS:
        assert properties(template, function)["Role"] == {"Fn::GetAtt": [f"{function}Role", "Arn"]}


def test_readers_invoke_an_alias_that_follows_the_latest_code(template: Template) -> None:
    (alias,) = of_type(template, "AWS::Lambda::Alias").values()

    assert alias == {"FunctionName": {"Ref": "RefreshFunction"}, "FunctionVersion": "$LATEST", "Name": "readers"}
    assert template["Resources"]["ApiFunction"]["DependsOn"] == "ReadersAlias"


def test_only_the_refresher_can_read_an_account_parameter() -> None:
    for parameters in ({}, {"KmsKeyArn": KEY}, {"EgressMode": "existing"}):
        template = translate(parameters)
        readers = {
            name
            for name, role in of_type(template, "AWS::IAM::Role").items()
            if any(action.startswith(("ssm:", "kms:")) for action, _ in calls(role))
        }
        assert readers == {"RefreshFunctionRole", "NotifyFunctionRole"}
        read = {resource for action, resource in calls(properties(template, "NotifyFunctionRole")) if "ssm:" in action}
        assert read == {ROBOTS_ARN}


@pytest.mark.parametrize(
    ("accounts", "notifications", "is_allowed"),
    [
        ("/a/accounts", "/a/notifications", True),
        ("/a", "/ab", True),
        ("/ab", "/a", True),
        ("/a", "/a", False),
        ("/a", "/a/b", False),
        ("/a/b", "/a", False),
        ("/a/b/c", "/a", False),
    ],
)
def test_neither_path_lies_within_the_other(accounts: str, notifications: str, is_allowed: bool) -> None:
    template = translate({"AccountsPath": accounts, "NotificationsPath": notifications})

    paths = properties(template, "StackName")["Parameters"]["Paths"]
    pattern = nested(template, "StackName")["Parameters"]["Paths"]["AllowedPattern"]

    assert bool(re.fullmatch(pattern, paths)) is is_allowed


def test_what_people_are_told_of_goes_through_a_queue(template: Template) -> None:
    rule, queue = properties(template, "NotifyRule"), properties(template, "NotifyQueue")
    mapping = properties(template, "NotifyFunctionQueue")

    assert rule["EventPattern"]["source"] == [{"Fn::Sub": "wechat-token-keeper.${AWS::StackName}"}]
    sent = {f"Credential {what}" for what in ("Failing", "Recovered", "Invalidated")}
    assert set(rule["EventPattern"]["detail-type"]) == sent
    assert [target["Arn"] for target in rule["Targets"]] == [{"Fn::GetAtt": ["NotifyQueue", "Arn"]}]
    assert mapping["MaximumBatchingWindowInSeconds"] <= 60
    assert mapping["BatchSize"] >= 100  # a storm is one message
    # AWS's advice: https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html
    window, timeout = mapping["MaximumBatchingWindowInSeconds"], properties(template, "NotifyFunction")["Timeout"]
    assert queue["VisibilityTimeout"] >= 6 * timeout + window
    assert queue["RedrivePolicy"]["maxReceiveCount"] >= 5
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert queue["RedrivePolicy"]["deadLetterTargetArn"] == DEAD_LETTERS
    assert queue["SqsManagedSseEnabled"] == {"Fn::If": ["HasKmsKey", NOTHING, True]}


def test_the_refresher_reaches_all_of_the_table_but_consumers(template: Template) -> None:
    role = properties(template, "RefreshFunctionRole")

    for statement in statements(role, "Allow"):
        if statement["Resource"] == {"Fn::GetAtt": ["TokenTable", "Arn"]}:
            keys = statement["Condition"]["ForAllValues:StringLike"]["dynamodb:LeadingKeys"]
            assert sorted(keys) == ["accounts", "claim#*", "credential#*", "probe", "sync#ALL"]


def test_a_run_holds_a_sync_as_long_as_it_may_take(template: Template) -> None:
    assert properties(template, "RefreshFunction")["Timeout"] == SYNC_TIME


def test_the_refresher_sends_events_in_its_stacks_name_only(template: Template) -> None:
    role = properties(template, "RefreshFunctionRole")

    (statement,) = (item for item in statements(role, "Allow") if item["Action"] == "events:PutEvents")
    named = {"Fn::Sub": "wechat-token-keeper.${AWS::StackName}"}
    assert statement["Condition"] == {"StringEquals": {"events:source": named}}


@pytest.mark.parametrize(("region", "partition"), [("us-east-1", "aws"), ("cn-north-1", "aws-cn")])
def test_a_stack_reads_no_secret_of_a_path_within_its_own(region: str, partition: str) -> None:
    template = translate({"AccountsPath": "/a"}, region=region)
    deeper, recursive, *_ = statements(properties(template, "RefreshFunctionRole"), "Deny")

    arn = f"arn:{partition}:ssm:{region}:${{AWS::AccountId}}:parameter/a"
    assert deeper == {"Effect": "Deny", "Action": "ssm:GetParameters", "Resource": {"Fn::Sub": f"{arn}/*/*"}}
    assert (recursive["Action"], recursive["Resource"]) == ("ssm:GetParametersByPath", {"Fn::Sub": arn})
    assert recursive["Condition"] == {"StringEquals": {"ssm:Recursive": "true"}}


@pytest.mark.parametrize("mode", ["none", "existing", "managed"])
@pytest.mark.parametrize("region", ["us-east-1", "cn-north-1"])
def test_interfaces_are_made_and_removed_by_lambda_alone(region: str, mode: str) -> None:
    # Given a function that is in a VPC, has left it, or never was in one
    role = properties(translate({"EgressMode": mode}, region=region), "RefreshFunctionRole")

    # Then its interfaces can be removed, without AWS's policy and its wildcard on logs
    assert "ManagedPolicyArns" not in role
    assert {call for call in calls(role) if call[0].startswith("ec2:")} == INTERFACE_CALLS
    # But not by the function's code, whose ARN Lambda puts into what it asks for
    (denied,) = (item for item in statements(role, "Deny") if item["Resource"] == "*")
    assert {(action, "*") for action in denied["Action"]} == INTERFACE_CALLS
    assert denied["Condition"] == {"Null": {"lambda:SourceFunctionArn": "false"}}


def test_no_role_may_do_everything_or_anything_to_everything(template: Template) -> None:
    for role in of_type(template, "AWS::IAM::Role").values():
        for action, resource in calls(role):
            assert "*" not in action
            assert resource != "*" or (action, resource) in INTERFACE_CALLS


def test_a_key_of_ones_own_is_used_through_parameter_store_only() -> None:
    # Given
    template = translate({"KmsKeyArn": KEY})

    # When
    policy = template["Resources"]["DecryptAccountsPolicy"]

    # Then
    assert policy["Condition"] == "HasKmsKey"
    assert policy["Properties"]["RoleName"] == {"Ref": "RefreshFunctionRole"}
    (statement,) = policy["Properties"]["PolicyDocument"]["Statement"]
    assert (statement["Action"], statement["Resource"]) == ("kms:Decrypt", KEY)
    assert set(statement["Condition"]["StringEquals"]["kms:ViaService"]) == {"ssm.us-east-1.amazonaws.com"}
    assert template["Conditions"]["HasKmsKey"] == {"Fn::Not": [{"Fn::Equals": [KEY, ""]}]}


def test_a_customer_key_encrypts_all_stored_data_else_aws_does(template: Template) -> None:
    # When
    chosen = translate({"KmsKeyArn": KEY})

    # Then
    table = properties(chosen, "TokenTable")["SSESpecification"]
    assert table == {"SSEEnabled": True, "SSEType": "KMS", "KMSMasterKeyId": only_with_key(KEY)}
    queues = of_type(chosen, "AWS::SQS::Queue")
    assert queues.keys() == {"DeadLetterQueue", "NotifyQueue"}
    for queue in queues.values():
        assert queue["KmsMasterKeyId"] == only_with_key(KEY)
        assert queue["SqsManagedSseEnabled"] == {"Fn::If": ["HasKmsKey", NOTHING, True]}
    logs = of_type(chosen, "AWS::Logs::LogGroup").values()
    assert [log["KmsKeyId"] for log in logs] == [only_with_key(KEY)] * 4
    assert properties(nested(chosen, "Monitoring"), "Topic")["KmsMasterKeyId"] == only_with_key(KEY)
    assert template["Conditions"]["HasKmsKey"] == {"Fn::Not": [{"Fn::Equals": ["", ""]}]}


def only_with_key(key: str) -> dict[str, Any]:
    return {"Fn::If": ["HasKmsKey", key, NOTHING]}


def test_the_notifier_decrypts_no_account_with_ones_own_key() -> None:
    policy = properties(translate({"KmsKeyArn": KEY}), "UseNotifyKeyPolicy")

    (statement,) = policy["PolicyDocument"]["Statement"]
    assert policy["RoleName"] == {"Ref": "NotifyFunctionRole"}
    denied = statement["Condition"]["StringNotLikeIfExists"]["kms:EncryptionContext:PARAMETER_ARN"]
    assert denied == {"Fn::Sub": f"{ACCOUNTS_ARN}/*"}


def test_the_reader_uses_ones_own_key_through_the_table_only() -> None:
    policies = [
        policy
        for policy in of_type(translate({"KmsKeyArn": KEY}), "AWS::IAM::RolePolicy").values()
        if policy["RoleName"] == {"Ref": "ApiFunctionRole"}
    ]

    (policy,) = policies
    (statement,) = policy["PolicyDocument"]["Statement"]
    assert (statement["Action"], statement["Resource"]) == ("kms:Decrypt", KEY)
    assert set(statement["Condition"]["StringEquals"]["kms:ViaService"]) == {"dynamodb.us-east-1.amazonaws.com"}


def test_only_schedules_of_this_aws_account_may_use_their_role(template: Template) -> None:
    role = properties(template, "SchedulesRole")

    (statement,) = role["AssumeRolePolicyDocument"]["Statement"]
    assert statement["Principal"] == {"Service": "scheduler.amazonaws.com"}
    group = "arn:aws:scheduler:us-east-1:${AWS::AccountId}:schedule-group/default"
    assert statement["Condition"] == {
        "StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}},
        "ArnEquals": {"aws:SourceArn": {"Fn::Sub": group}},
    }
    assert set(calls(role)) == {
        ("lambda:InvokeFunction", "RefreshFunction.Arn"),
        ("sqs:SendMessage", "DeadLetterQueue.Arn"),
    }
    for schedule in of_type(template, "AWS::Scheduler::Schedule").values():
        assert schedule["Target"]["RoleArn"] == {"Fn::GetAtt": ["SchedulesRole", "Arn"]}


def test_the_access_log_says_who_asked_for_what_and_holds_no_key(template: Template) -> None:
    # Given
    (stage,) = of_type(template, "AWS::ApiGatewayV2::Stage").values()

    # When
    logged = json.loads(stage["AccessLogSettings"]["Format"])

    # Then
    assert stage["AccessLogSettings"]["DestinationArn"] == {"Fn::GetAtt": ["HttpApiLog", "Arn"]}
    assert {"requestId", "routeKey", "status", "latency", "caller", "ip"} <= set(logged)
    # Path, query string, headers and bodies of WeChat's own calls hold keys and tokens.
    assert not re.search(r"path|query|header|body|protocol", " ".join(logged.values()).lower())


def test_a_runaway_client_is_throttled(template: Template) -> None:
    (stage,) = of_type(template, "AWS::ApiGatewayV2::Stage").values()

    assert 0 < stage["DefaultRouteSettings"]["ThrottlingRateLimit"] <= 1000


def holds(condition: Any, template: Template) -> bool:
    """Whether a condition of a filled-in template holds."""
    match condition:
        case str(name) | {"Condition": str(name)}:
            return holds(template["Conditions"][name], template)
        case {"Fn::Equals": [left, right]}:
            return bool(left == right)
        case {"Fn::Not": [item]}:
            return not holds(item, template)
        case {"Fn::And": several}:
            return all(holds(item, template) for item in several)
        case {"Fn::Or": several}:
            return any(holds(item, template) for item in several)
    raise AssertionError(condition)


def resolved(node: Any, template: Template) -> Any:
    """The node without what conditions leave out."""
    match node:
        case {"Fn::If": [name, then, otherwise]}:
            return resolved(then if holds(name, template) else otherwise, template)
        case dict():
            kept = {key: resolved(value, template) for key, value in node.items()}
            return {key: value for key, value in kept.items() if value != NOTHING}
        case list():
            return [resolved(item, template) for item in node]
    return node


def deployed(template: Template) -> Template:
    """The resources and outputs that conditions leave."""
    return {
        part: {
            name: resolved(item, template)
            for name, item in template[part].items()
            if "Condition" not in item or holds(item["Condition"], template)
        }
        for part in ("Resources", "Outputs")
    }


def vpc_of(template: Template) -> Any:
    """What the conditions of a template leave of RefreshFunction's network."""
    return properties(deployed(template), "RefreshFunction").get("VpcConfig")


def test_only_the_refresher_enters_existing_subnets_on_request() -> None:
    template = translate({"EgressMode": "existing", "SubnetIds": "subnet-1,subnet-2", "SecurityGroupIds": "sg-1"})

    assert vpc_of(template) == {
        "SubnetIds": {"Fn::Split": [",", "subnet-1,subnet-2"]},
        "SecurityGroupIds": {"Fn::Split": [",", "sg-1"]},
    }
    assert "VpcConfig" not in properties(template, "ApiFunction")


def test_without_an_own_address_there_is_no_network() -> None:
    for mode, makes in (("none", False), ("existing", False), ("managed", True), ("instance", True)):
        template = deployed(translate({"EgressMode": mode, "SubnetIds": "subnet-1", "SecurityGroupIds": "sg-1"}))
        assert ("Egress" in template["Resources"], "EgressIp" in template["Outputs"]) == (makes, makes)
        assert ("VpcConfig" in properties(template, "RefreshFunction")) is (mode != "none")


def egress_of(mode: str, **parameters: str) -> Template:
    """What is deployed for an address of its own."""
    return deployed(nested(translate({"EgressMode": mode, **parameters}), "Egress"))


@pytest.mark.parametrize(("mode", "way_out"), [("managed", "NatGateway"), ("instance", "InstanceInterface")])
def test_an_own_way_out_has_one_address_and_only_calls_out(mode: str, way_out: str) -> None:
    # Given
    template, egress = translate({"EgressMode": mode}), egress_of(mode)

    # Then the function goes there, and the address is an output
    assert vpc_of(template) == {
        "SubnetIds": {"Fn::Split": [",", {"Fn::GetAtt": ["Egress", "Outputs.SubnetIds"]}]},
        "SecurityGroupIds": [{"Fn::GetAtt": ["Egress", "Outputs.SecurityGroupId"]}],
    }
    assert template["Outputs"]["EgressIp"]["Value"] == {"Fn::GetAtt": ["Egress", "Outputs.Ip"]}
    (address,) = of_type(egress, "AWS::EC2::EIP")
    assert egress["Outputs"]["Ip"]["Value"] == {"Ref": address}
    # And nothing calls the function
    group = properties(egress, "SecurityGroup")
    assert "SecurityGroupIngress" not in group
    assert [(rule["FromPort"], rule["ToPort"]) for rule in group["SecurityGroupEgress"]] == [(443, 443)]
    # And both of its subnets have that way out alone
    private = {"FirstPrivateSubnet", "SecondPrivateSubnet"}
    routed = of_type(egress, "AWS::EC2::SubnetRouteTableAssociation").values()
    tables = {item["SubnetId"]["Ref"]: item["RouteTableId"]["Ref"] for item in routed}
    assert {tables[subnet] for subnet in private} == {"PrivateRoutes"}
    target = "NatGatewayId" if mode == "managed" else "NetworkInterfaceId"
    assert properties(egress, "PrivateRoute") == {
        "RouteTableId": {"Ref": "PrivateRoutes"},
        "DestinationCidrBlock": "0.0.0.0/0",
        target: {"Ref": way_out},
    }
    assert all(f"${{{subnet}}}" in egress["Outputs"]["SubnetIds"]["Value"]["Fn::Sub"] for subnet in private)
    (endpoint,) = of_type(egress, "AWS::EC2::VPCEndpoint").values()
    assert endpoint["VpcEndpointType"] == "Gateway"
    assert endpoint["ServiceName"] == "com.amazonaws.us-east-1.dynamodb"
    # And what the other mode costs is not there
    assert ("AWS::EC2::NatGateway" in {item["Type"] for item in egress["Resources"].values()}) is (mode == "managed")
    assert ("InstanceGroup" in egress["Resources"]) is (mode == "instance")


def test_the_interface_keeps_address_and_route_of_the_instance() -> None:
    egress = egress_of("instance")

    interface = properties(egress, "InstanceInterface")
    assert interface["SourceDestCheck"] is False
    assert interface["SubnetId"] == {"Ref": "PublicSubnet"}
    assert properties(egress, "InstanceAddressAssociation") == {
        "AllocationId": {"Fn::GetAtt": ["InstanceAddress", "AllocationId"]},
        "NetworkInterfaceId": {"Ref": "InstanceInterface"},
    }
    (group,) = (properties(egress, item["Ref"]) for item in interface["GroupSet"])
    (incoming,), (outgoing,) = group["SecurityGroupIngress"], group["SecurityGroupEgress"]
    assert incoming["SourceSecurityGroupId"] == {"Ref": "SecurityGroup"}
    assert {rule[end] for rule in (incoming, outgoing) for end in ("FromPort", "ToPort")} == {443}
    attached = properties(egress, "InstanceTemplate")["LaunchTemplateData"]["NetworkInterfaces"]
    assert attached == [
        {"DeviceIndex": 0, "NetworkInterfaceId": {"Ref": "InstanceInterface"}, "DeleteOnTermination": False}
    ]


def test_there_is_exactly_one_instance_for_30_days_at_most() -> None:
    egress = egress_of("instance", EgressZone="us-east-1c")

    resource, group = egress["Resources"]["InstanceGroup"], properties(egress, "InstanceGroup")
    assert group["MinSize"] == group["MaxSize"] == group["DesiredCapacity"] == "1"
    assert group["MaxInstanceLifetime"] == 30 * 86400
    # The interface decides on the subnet, so that only its zone may be given.
    assert group["AvailabilityZones"] == ["us-east-1c"] == [properties(egress, "PublicSubnet")["AvailabilityZone"]]
    assert "VPCZoneIdentifier" not in group
    # A second group, or a second instance beside the first, could not attach the interface.
    assert "AutoScalingGroupName" not in group
    assert "UpdatePolicy" not in resource
    # It boots from the network, so that must be there.
    assert set(resource["DependsOn"]) == {"InstanceAddressAssociation", "PublicRoute", "PublicSubnetRoutes"}


def test_the_instance_has_no_role_no_ingress_and_encrypted_disk() -> None:
    data = properties(egress_of("instance"), "InstanceTemplate")["LaunchTemplateData"]

    assert not {"IamInstanceProfile", "KeyName", "SecurityGroupIds"} & set(data)
    assert data["InstanceType"] == "t4g.nano"
    assert re.fullmatch(
        r"resolve:ssm:/aws/service/ami-amazon-linux-latest/al2023-ami-minimal-.*-arm64", data["ImageId"]
    )
    assert data["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
    (disk,) = data["BlockDeviceMappings"]
    assert disk["Ebs"]["Encrypted"] is True


def test_the_instances_user_data_is_valid_shell() -> None:
    script = properties(egress_of("instance"), "InstanceTemplate")["LaunchTemplateData"]["UserData"]["Fn::Base64"]

    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, timeout=30)
    assert (checked.returncode, checked.stderr) == (0, "")
    # With 512 MB of memory dnf is killed.
    assert script.index("swapon") < script.index("dnf -y install")


@pytest.mark.parametrize("mode", ["managed", "instance"])
def test_an_address_of_ones_own_is_used_and_none_is_made(mode: str) -> None:
    own = "eipalloc-0123456789abcdef0"

    egress = egress_of(mode, EgressAllocationId=own)

    user = properties(egress, "NatGateway" if mode == "managed" else "InstanceAddressAssociation")
    assert user["AllocationId"] == own
    assert not of_type(egress, "AWS::EC2::EIP")
    assert "Ip" not in egress["Outputs"]
    assert "EgressIp" not in deployed(translate({"EgressMode": mode, "EgressAllocationId": own}))["Outputs"]


@pytest.mark.parametrize("mode", ["managed", "instance"])
def test_the_zone_of_the_way_out_can_be_chosen(mode: str) -> None:
    first = {"Fn::Select": [0, {"Fn::GetAZs": ""}]}

    assert properties(egress_of(mode), "PublicSubnet")["AvailabilityZone"] == first
    chosen = egress_of(mode, EgressZone="us-east-1c")
    assert properties(chosen, "PublicSubnet")["AvailabilityZone"] == "us-east-1c"
    assert properties(chosen, "FirstPrivateSubnet")["AvailabilityZone"] == first


@pytest.mark.parametrize(
    ("parameter", "right", "wrong"),
    [
        ("EgressZone", ["", "us-east-1b", "cn-northwest-1c", "ap-southeast-2a"], ["b", "us-east-1", "use1-az2"]),
        ("EgressAllocationId", ["", "eipalloc-0123456789abcdef0"], ["8.149.1.2", "eipassoc-01"]),
    ],
)
def test_a_zone_and_an_address_are_told_by_their_names(
    template: Template, parameter: str, right: list[str], wrong: list[str]
) -> None:
    pattern = template["Parameters"][parameter]["AllowedPattern"]

    assert all(re.fullmatch(pattern, value) for value in right)
    assert not any(re.fullmatch(pattern, value) for value in wrong)


def test_the_price_of_an_address_is_said_where_it_is_chosen() -> None:
    parameters = parse(TEMPLATE)["Parameters"]

    described = parameters["EgressMode"]["Description"]
    assert "managed - a fixed address, about 36.50 USD a month" in described
    assert "instance - a fixed address, about 7 USD a month" in described
    assert "not yet run on real AWS" in described


@pytest.mark.parametrize("address", ["", "ops@example.com"])
def test_an_alarm_address_is_an_address_or_nothing(address: str) -> None:
    pattern = parse(TEMPLATE)["Parameters"]["AlarmEmail"]["AllowedPattern"]

    assert re.fullmatch(pattern, address)
    for wrong in ("ops", "ops@", "a b@example.com", "@example.com"):
        assert not re.fullmatch(pattern, wrong)


def test_logs_are_json_and_go_after_a_month(template: Template) -> None:
    for function in FUNCTIONS:
        logging = properties(template, function)["LoggingConfig"]
        assert (logging["LogFormat"], logging["LogGroup"]) == ("JSON", {"Ref": f"{function}Log"})
        assert properties(template, f"{function}Log")["RetentionInDays"] == 30


def test_the_sample_events_are_those_that_the_stack_sends(template: Template) -> None:
    assert event("tick") in [schedule.event for schedule in schedules(template)]
    assert event("guard") in [schedule.event for schedule in schedules(template)]
    assert event("probe") in [schedule.event for schedule in schedules(template)]
    request = event("api-get-token")
    assert request["routeKey"] in [f"{route.method} {route.path}" for route in routes(template)]
    pattern = EventPattern.load(json.dumps(properties(template, "RefreshFunctionAccountChange")["EventPattern"]))
    assert pattern.matches_event(event("parameter-created"))  # type: ignore[arg-type]


@pytest.mark.parametrize("function", ["RefreshFunction", "ApiFunction", "NotifyFunction"])
def test_the_handler_is_there_wherever_the_module_is_loaded(template: Template, function: str) -> None:
    module, name = properties(template, function)["Handler"].split(".")
    assert callable(getattr(importlib.import_module(module), name))
