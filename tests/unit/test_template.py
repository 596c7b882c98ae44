"""What template.yaml deploys, read from SAM's own translation of it, in both partitions."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.events.models import EventPattern
from samcli.lib.providers.api_provider import ApiProvider
from samcli.lib.providers.sam_stack_provider import SamLocalStackProvider
from samtranslator.yaml_helper import yaml_parse  # type: ignore[import-untyped]

from infra.stack import TEMPLATE, Route, Schedule, Template, nested, routes, schedules, translate

EVENTS = Path(__file__).parents[1] / "events"
FUNCTIONS = ("RefreshFunction", "ApiFunction")
KEY = "arn:aws:kms:us-east-1:123456789012:key/0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0"
PROJECT = tomllib.loads((TEMPLATE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOTHING = {"Ref": "AWS::NoValue"}
TEMPLATES = (TEMPLATE, *sorted((TEMPLATE.parent / "infra").glob("*.yaml")))
DEAD_LETTERS = {"Fn::GetAtt": ["DeadLetterQueue", "Arn"]}

READERS_CALLS = {
    ("logs:CreateLogStream", "ApiFunctionLog.Arn"),
    ("logs:PutLogEvents", "ApiFunctionLog.Arn"),
    ("dynamodb:GetItem", "TokenTable.Arn"),
    ("dynamodb:BatchGetItem", "TokenTable.Arn"),
    ("dynamodb:Query", "TokenTable.Arn"),
    ("dynamodb:Query", "${TokenTable.Arn}/index/fingerprint"),
    ("dynamodb:Query", "${TokenTable.Arn}/index/previous_fingerprint"),
    ("lambda:InvokeFunction", "RefreshFunction.Arn"),
}
ACCOUNTS_ARN = "arn:aws:ssm:us-east-1:${AWS::AccountId}:parameter/wechat-token-keeper/accounts"
REFRESHERS_CALLS = {
    ("logs:CreateLogStream", "RefreshFunctionLog.Arn"),
    ("logs:PutLogEvents", "RefreshFunctionLog.Arn"),
    ("dynamodb:GetItem", "TokenTable.Arn"),
    ("dynamodb:PutItem", "TokenTable.Arn"),
    ("dynamodb:UpdateItem", "TokenTable.Arn"),
    ("dynamodb:DeleteItem", "TokenTable.Arn"),
    ("dynamodb:Query", "TokenTable.Arn"),
    ("dynamodb:Query", "${TokenTable.Arn}/index/due"),
    ("ssm:GetParametersByPath", ACCOUNTS_ARN),
    ("ssm:GetParameters", f"{ACCOUNTS_ARN}/*"),
    ("sqs:SendMessage", "DeadLetterQueue.Arn"),
}


@pytest.fixture(scope="module")
def template() -> Template:
    return translate()


def properties(template: Template, logical_id: str) -> dict[str, Any]:
    found: dict[str, Any] = template["Resources"][logical_id]["Properties"]
    return found


def of_type(template: Template, kind: str) -> dict[str, dict[str, Any]]:
    return {name: one["Properties"] for name, one in template["Resources"].items() if one["Type"] == kind}


def calls(role: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each (action, resource) that a role's statements allow, resources in the template's words."""
    for policy in role["Policies"]:
        for statement in policy["PolicyDocument"]["Statement"]:
            assert statement["Effect"] == "Allow"
            for resource in listed(statement["Resource"]):
                if isinstance(resource, dict):
                    resource = ".".join(resource["Fn::GetAtt"]) if "Fn::GetAtt" in resource else resource["Fn::Sub"]
                yield from ((action, resource) for action in listed(statement["Action"]))


def listed(one_or_more: Any) -> list[Any]:
    return one_or_more if isinstance(one_or_more, list) else [one_or_more]


def event(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((EVENTS / f"{name}.json").read_text())
    return loaded


def test_a_snapshot_is_taken_where_it_is_wanted_and_exists_and_the_api_calls_the_version_that_has_it() -> None:
    template = translate({"SnapStart": "enabled"})
    # It is taken of published versions, on a condition: wanted, and not in China
    taken = properties(template, "ApiFunction")["SnapStart"]
    assert taken == {"Fn::If": ["HasSnapStart", {"ApplyOn": "PublishedVersions"}, {"Ref": "AWS::NoValue"}]}
    wanted = [{"Fn::Equals": ["enabled", "enabled"]}, {"Fn::Not": [{"Fn::Equals": ["aws", "aws-cn"]}]}]
    assert template["Conditions"]["HasSnapStart"] == {"Fn::And": wanted}
    assert translate()["Conditions"]["HasSnapStart"]["Fn::And"][0] == {"Fn::Equals": ["disabled", "enabled"]}
    # And the gateway calls, and may call, the latest version
    (api,) = of_type(template, "AWS::ApiGatewayV2::Api").values()
    called = {
        operation["x-amazon-apigateway-integration"]["uri"]["Fn::Sub"].partition("/functions/")[2]
        for path in api["Body"]["paths"].values()
        for operation in (path["Fn::If"][1] if "Fn::If" in path else path).values()
    }
    assert called == {"${ApiFunctionAliaslive}/invocations", "${ApiFunction.Arn}:live/invocations"}
    permitted = [
        permission["FunctionName"]
        for permission in of_type(template, "AWS::Lambda::Permission").values()
        if permission["Principal"] == "apigateway.amazonaws.com"
    ]
    assert permitted
    assert all(function == {"Ref": "ApiFunctionAliaslive"} for function in permitted)


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
    assert template["Parameters"]["EgressMode"]["AllowedValues"] == ["none", "existing", "managed"]
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
    arns = re.findall(r"arn:([a-z-]+|\$\{[^}]+\}):", json.dumps([one["Resources"] for one in everything]))
    assert set(arns) == {partition}
    url = {"Fn::Sub": f"https://${{HttpApi}}.execute-api.{region}.{suffix}"}
    assert template["Outputs"]["ApiUrl"]["Value"] == url


def test_the_template_itself_names_no_partition() -> None:
    for template in TEMPLATES:
        assert "arn:aws" not in template.read_text(encoding="utf-8")


def test_nothing_needs_what_aws_china_lacks() -> None:
    # "Feature Availability and Implementation Differences" of Lambda in Getting Started with AWS in China.
    lacking = ("Tracing", "FunctionUrl", "AsyncEventsReceived", "AsyncEventAge", "AsyncEventsDropped", "X-Ray", "xray")

    template = translate(region="cn-north-1")
    deployed = json.dumps(
        [template, *(nested(template, name, region="cn-north-1") for name in ("Egress", "Monitoring"))]
    )

    assert not [feature for feature in lacking if feature in deployed]
    for function in FUNCTIONS:
        snap_start = properties(template, function).get("SnapStart")
        assert snap_start is None or "Fn::If" in snap_start


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


def test_switched_off_the_routes_in_wechats_format_do_not_exist(template: Template) -> None:
    # When
    switched_off = translate({"WeChatCompatibleApi": "disabled"})

    # Then
    assert set(routes(switched_off)) == V1_ROUTES
    assert switched_off["Conditions"]["HasCompatibleApi"] == {"Fn::Equals": ["disabled", "enabled"]}
    # And the gateway may then not call the function for them either
    permission = template["Resources"]["CompatibleApiPermission"]
    assert permission["Condition"] == "HasCompatibleApi"
    assert permission["Properties"]["SourceArn"]["Fn::Sub"].endswith("${HttpApi}/*/*/cgi-bin/*")


def test_the_routes_in_wechats_format_need_no_iam(template: Template) -> None:
    paths = properties(template, "HttpApi")["Body"]["paths"]

    for path in {route.path for route in COMPATIBLE_ROUTES}:
        condition, operations, otherwise = paths[path]["Fn::If"]
        assert (condition, otherwise) == ("HasCompatibleApi", {})
        for operation in operations.values():
            # Otherwise SAM would add the API's default authorizer.
            assert operation["security"] == [{"NONE": []}]
            assert operation["x-amazon-apigateway-integration"]["payloadFormatVersion"] == "2.0"


@pytest.mark.parametrize(("switch", "expected"), [("enabled", V1_ROUTES | COMPATIBLE_ROUTES), ("disabled", V1_ROUTES)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SAM's own
def test_sam_local_start_api_finds_the_same_routes(switch: str, expected: set[Route]) -> None:
    # When SAM's own command line reads the template
    stacks, _ = SamLocalStackProvider.get_stacks(str(TEMPLATE), parameter_overrides={"WeChatCompatibleApi": switch})
    found = ApiProvider(stacks, cwd=str(TEMPLATE.parent)).api.routes

    # Then
    assert {Route(method, route.path, route.function_name) for route in found for method in route.methods} == expected


def test_the_schedules_wake_the_refresher_at_the_chosen_rates() -> None:
    # Given
    rates = {"RefreshRate": "rate(2 hours)", "GuardRate": "rate(2 minutes)"}

    # When
    by_default, chosen = schedules(translate()), schedules(translate(rates))

    # Then
    assert sorted(schedule.rate for schedule in by_default) == [60, 6600]
    assert chosen == [
        Schedule("RefreshFunctionGuard", 120, {"wake": "guard"}, "RefreshFunction"),
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
    }
    for schedule in found.values():
        assert schedule["FlexibleTimeWindow"] == {"Mode": "OFF"}
        assert schedule["Target"]["RetryPolicy"]["MaximumEventAgeInSeconds"] <= 300
        assert schedule["Target"]["DeadLetterConfig"]["Arn"] == DEAD_LETTERS


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


def test_what_fails_for_good_ends_in_the_encrypted_dead_letter_queue(template: Template) -> None:
    (events,) = of_type(template, "AWS::Lambda::EventInvokeConfig").values()
    assert events["FunctionName"] == {"Ref": "RefreshFunction"}
    assert events["DestinationConfig"]["OnFailure"]["Destination"] == DEAD_LETTERS
    assert events["MaximumRetryAttempts"] <= 1
    assert properties(template, "DeadLetterQueue")["SqsManagedSseEnabled"] == {"Fn::If": ["HasKmsKey", NOTHING, True]}
    # A rule has no role: without the queue's own policy its dead letters are lost.
    (statement,) = properties(template, "DeadLetterQueuePolicy")["PolicyDocument"]["Statement"]
    assert statement["Principal"] == {"Service": "events.amazonaws.com"}
    assert statement["Condition"] == {
        "ArnEquals": {"aws:SourceArn": {"Fn::GetAtt": ["RefreshFunctionAccountChange", "Arn"]}}
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


def test_the_table_outlives_its_stack_and_mistakes_and_does_not_hinder_the_next(template: Template) -> None:
    resource, table = template["Resources"]["TokenTable"], properties(template, "TokenTable")

    assert resource["DeletionPolicy"] == resource["UpdateReplacePolicy"] == "Retain"
    assert table["DeletionProtectionEnabled"] is True
    assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert "TableName" not in table


def key(table: dict[str, Any]) -> list[tuple[str, str, str]]:
    types = {one["AttributeName"]: one["AttributeType"] for one in table["AttributeDefinitions"]}
    return [(one["AttributeName"], one["KeyType"], types[one["AttributeName"]]) for one in table["KeySchema"]]


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
        "REFRESH_FUNCTION_NAME": {"Ref": "RefreshFunction"},
        "AWS_ENDPOINT_URL": "",
        "STACK_NAME": {"Ref": "AWS::StackName"},
        "VERSION": PROJECT["version"],
    }


def test_a_function_may_call_what_it_needs_and_no_more(template: Template) -> None:
    assert set(calls(properties(template, "RefreshFunctionRole"))) == REFRESHERS_CALLS
    assert set(calls(properties(template, "ApiFunctionRole"))) == READERS_CALLS
    for function in FUNCTIONS:
        assert properties(template, function)["Role"] == {"Fn::GetAtt": [f"{function}Role", "Arn"]}


def test_only_the_refresher_can_read_an_account_parameter() -> None:
    for parameters in ({}, {"KmsKeyArn": KEY}, {"EgressMode": "existing"}):
        template = translate(parameters)
        readers = {
            name
            for name, role in of_type(template, "AWS::IAM::Role").items()
            if any(action.startswith(("ssm:", "kms:")) for action, _ in calls(role))
        }
        assert readers == {"RefreshFunctionRole"}
        assert "ManagedPolicyArns" not in properties(template, "ApiFunctionRole")


def test_no_role_may_do_everything_or_anything_to_everything(template: Template) -> None:
    for role in of_type(template, "AWS::IAM::Role").values():
        for action, resource in calls(role):
            assert "*" not in action
            assert resource != "*"


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


def test_a_key_of_ones_own_encrypts_all_that_is_kept_and_without_one_aws_does(template: Template) -> None:
    # When
    chosen = translate({"KmsKeyArn": KEY})

    # Then
    table = properties(chosen, "TokenTable")["SSESpecification"]
    assert table == {"SSEEnabled": True, "SSEType": "KMS", "KMSMasterKeyId": only_with_key(KEY)}
    queue = properties(chosen, "DeadLetterQueue")
    assert queue["KmsMasterKeyId"] == only_with_key(KEY)
    assert queue["SqsManagedSseEnabled"] == {"Fn::If": ["HasKmsKey", NOTHING, True]}
    logs = of_type(chosen, "AWS::Logs::LogGroup").values()
    assert [log["KmsKeyId"] for log in logs] == [only_with_key(KEY)] * 3
    assert properties(nested(chosen, "Monitoring"), "Topic")["KmsMasterKeyId"] == only_with_key(KEY)
    assert template["Conditions"]["HasKmsKey"] == {"Fn::Not": [{"Fn::Equals": ["", ""]}]}


def only_with_key(key: str) -> dict[str, Any]:
    return {"Fn::If": ["HasKmsKey", key, NOTHING]}


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


def test_only_schedules_of_this_aws_account_may_use_the_schedules_role(template: Template) -> None:
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


def vpc_of(template: Template) -> dict[str, Any]:
    """What the conditions of a template with a VPC make of RefreshFunction's network."""
    condition, inside, outside = properties(template, "RefreshFunction")["VpcConfig"]["Fn::If"]
    assert outside == NOTHING
    managed = template["Conditions"]["HasManagedEgress"]["Fn::Equals"]
    assert template["Conditions"][condition] == {"Fn::Not": [{"Fn::Equals": [managed[0], "none"]}]}
    return {name: value["Fn::If"][1 if managed[0] == managed[1] else 2] for name, value in inside.items()}


def test_only_the_refresher_goes_into_existing_subnets_and_only_if_told_to() -> None:
    template = translate({"EgressMode": "existing", "SubnetIds": "subnet-1,subnet-2", "SecurityGroupIds": "sg-1"})

    assert vpc_of(template) == {
        "SubnetIds": {"Fn::Split": [",", "subnet-1,subnet-2"]},
        "SecurityGroupIds": {"Fn::Split": [",", "sg-1"]},
    }
    assert "VpcConfig" not in properties(template, "ApiFunction")
    # The one wildcard: AWS's own policy for network interfaces.
    assert properties(template, "RefreshFunctionRole")["ManagedPolicyArns"]["Fn::If"] == [
        "HasVpc",
        ["arn:aws:iam::aws:policy/service-role/AWSLambdaVPCAccessExecutionRole"],
        NOTHING,
    ]


def test_managed_egress_gives_the_refresher_one_address_and_lets_it_only_call_out() -> None:
    # Given
    template = translate({"EgressMode": "managed"})

    # When
    egress = nested(template, "Egress")

    # Then
    assert vpc_of(template) == {
        "SubnetIds": {"Fn::Split": [",", {"Fn::GetAtt": ["Egress", "Outputs.SubnetIds"]}]},
        "SecurityGroupIds": [{"Fn::GetAtt": ["Egress", "Outputs.SecurityGroupId"]}],
    }
    for conditional in (template["Resources"]["Egress"], template["Outputs"]["EgressIp"]):
        assert conditional["Condition"] == "HasManagedEgress"
    assert template["Outputs"]["EgressIp"]["Value"] == {"Fn::GetAtt": ["Egress", "Outputs.Ip"]}
    assert len(of_type(egress, "AWS::EC2::EIP")) == len(of_type(egress, "AWS::EC2::NatGateway")) == 1
    (group,) = of_type(egress, "AWS::EC2::SecurityGroup").values()
    assert "SecurityGroupIngress" not in group
    assert [(rule["FromPort"], rule["ToPort"]) for rule in group["SecurityGroupEgress"]] == [(443, 443)]
    private = {"FirstPrivateSubnet", "SecondPrivateSubnet"}
    routed = of_type(egress, "AWS::EC2::SubnetRouteTableAssociation").values()
    tables = {one["SubnetId"]["Ref"]: one["RouteTableId"] for one in routed}
    ways_out = {
        one["RouteTableId"]["Ref"]: one.get("NatGatewayId") for one in of_type(egress, "AWS::EC2::Route").values()
    }
    assert {ways_out[tables[subnet]["Ref"]]["Ref"] for subnet in private} == {"NatGateway"}
    assert all(f"${{{subnet}}}" in egress["Outputs"]["SubnetIds"]["Value"]["Fn::Sub"] for subnet in private)
    (endpoint,) = of_type(egress, "AWS::EC2::VPCEndpoint").values()
    assert endpoint["VpcEndpointType"] == "Gateway"
    assert endpoint["ServiceName"] == "com.amazonaws.us-east-1.dynamodb"


def test_the_price_of_an_address_is_said_where_it_is_chosen() -> None:
    parameters = yaml_parse(TEMPLATE.read_text(encoding="utf-8"))["Parameters"]

    assert "36 USD a month" in parameters["EgressMode"]["Description"]


@pytest.mark.parametrize("address", ["", "ops@example.com"])
def test_an_alarm_address_is_an_address_or_nothing(address: str) -> None:
    pattern = yaml_parse(TEMPLATE.read_text(encoding="utf-8"))["Parameters"]["AlarmEmail"]["AllowedPattern"]

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
    request = event("api-get-token")
    assert request["routeKey"] in [f"{route.method} {route.path}" for route in routes(template)]
    pattern = EventPattern.load(json.dumps(properties(template, "RefreshFunctionAccountChange")["EventPattern"]))
    assert pattern.matches_event(event("parameter-created"))  # type: ignore[arg-type]
