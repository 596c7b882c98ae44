"""What template.yaml deploys, read from SAM's own translation of it, in both partitions."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.events.models import EventPattern

from infra.stack import TEMPLATE, Route, Schedule, Template, routes, schedules, translate

EVENTS = Path(__file__).parents[1] / "events"
FUNCTIONS = ("RefreshFunction", "ApiFunction")
KEY = "arn:aws:kms:us-east-1:123456789012:key/0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0"
DEAD_LETTERS = {"Fn::GetAtt": ["DeadLetterQueue", "Arn"]}

READERS_CALLS = {
    ("logs:CreateLogStream", "ApiFunctionLog.Arn"),
    ("logs:PutLogEvents", "ApiFunctionLog.Arn"),
    ("dynamodb:GetItem", "TokenTable.Arn"),
    ("dynamodb:BatchGetItem", "TokenTable.Arn"),
    ("dynamodb:Query", "TokenTable.Arn"),
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
            resource = statement["Resource"]
            if isinstance(resource, dict):
                resource = ".".join(resource["Fn::GetAtt"]) if "Fn::GetAtt" in resource else resource["Fn::Sub"]
            actions = statement["Action"]
            yield from ((action, resource) for action in ([actions] if isinstance(actions, str) else actions))


def event(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((EVENTS / f"{name}.json").read_text())
    return loaded


def test_a_snapshot_is_taken_where_it_is_wanted_and_exists_and_the_api_calls_the_version_that_has_it() -> None:
    template = translate({"SnapStart": "enabled"})
    # It is taken of published versions, on a condition: wanted, and not in China
    taken = properties(template, "ApiFunction")["SnapStart"]["ApplyOn"]
    assert taken == {"Fn::If": ["HasSnapStart", "PublishedVersions", "None"]}
    wanted = [{"Fn::Equals": ["enabled", "enabled"]}, {"Fn::Not": [{"Fn::Equals": ["aws", "aws-cn"]}]}]
    assert template["Conditions"]["HasSnapStart"] == {"Fn::And": wanted}
    assert translate()["Conditions"]["HasSnapStart"]["Fn::And"][0] == {"Fn::Equals": ["disabled", "enabled"]}
    # And the gateway calls, and may call, the latest version
    (api,) = of_type(template, "AWS::ApiGatewayV2::Api").values()
    called = {
        operation["x-amazon-apigateway-integration"]["uri"]["Fn::Sub"].partition("/functions/")[2]
        for operations in api["Body"]["paths"].values()
        for operation in operations.values()
    }
    assert called == {"${ApiFunctionAliaslive}/invocations"}
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
    assert set(defaults) >= {"EgressMode", "SubnetIds", "SecurityGroupIds", "KmsKeyArn"}


@pytest.mark.parametrize(
    ("region", "partition", "suffix"),
    [("us-east-1", "aws", "amazonaws.com"), ("cn-north-1", "aws-cn", "amazonaws.com.cn")],
)
def test_every_name_belongs_to_the_partition_it_is_deployed_in(region: str, partition: str, suffix: str) -> None:
    template = translate(region=region)

    arns = re.findall(r"arn:([a-z-]+|\$\{[^}]+\}):", json.dumps(template["Resources"]))
    assert set(arns) == {partition}
    url = {"Fn::Sub": f"https://${{HttpApi}}.execute-api.{region}.{suffix}"}
    assert template["Outputs"]["ApiUrl"]["Value"] == url


def test_the_template_itself_names_no_partition() -> None:
    assert "arn:aws" not in TEMPLATE.read_text(encoding="utf-8")


@pytest.mark.parametrize("architecture", ["arm64", "x86_64"])
def test_both_functions_run_on_the_chosen_architecture(architecture: str) -> None:
    template = translate({"Architecture": architecture})

    for function in FUNCTIONS:
        assert properties(template, function)["Runtime"] == "python3.13"
        assert properties(template, function)["Architectures"] == [architecture]


def test_every_route_needs_iam_and_has_no_prefix(template: Template) -> None:
    body = properties(template, "HttpApi")["Body"]

    assert set(routes(template)) == {
        Route("GET", "/v1/accounts", "ApiFunction"),
        Route("GET", "/v1/accounts/{account}", "ApiFunction"),
        Route("GET", "/v1/accounts/{account}/access-token", "ApiFunction"),
        Route("GET", "/v1/accounts/{account}/tickets/{type}", "ApiFunction"),
        Route("POST", "/v1/accounts/{account}/access-token/reports", "ApiFunction"),
    }
    operations = [operation for path in body["paths"].values() for operation in path.values()]
    assert all(operation["security"] == [{"AWS_IAM": []}] for operation in operations)
    assert body["components"]["securitySchemes"]["AWS_IAM"]["x-amazon-apigateway-authtype"] == "awsSigv4"
    (stage,) = of_type(template, "AWS::ApiGatewayV2::Stage").values()
    assert stage["StageName"] == "$default"


def test_the_schedules_wake_the_refresher_at_the_chosen_rates() -> None:
    # Given
    rates = {"RefreshRate": "rate(2 hours)", "GuardRate": "rate(5 minutes)"}

    # When
    by_default, chosen = schedules(translate()), schedules(translate(rates))

    # Then
    assert sorted(schedule.rate for schedule in by_default) == [60, 6600]
    assert chosen == [
        Schedule("RefreshFunctionGuard", 300, {"wake": "guard"}, "RefreshFunction"),
        Schedule("RefreshFunctionTick", 7200, {"wake": "tick"}, "RefreshFunction"),
    ]


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
    assert properties(template, "DeadLetterQueue")["SqsManagedSseEnabled"] is True
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
    assert table["SSESpecification"] == {"SSEEnabled": True}
    (index,) = table["GlobalSecondaryIndexes"]
    assert index["IndexName"] == "due"
    assert key(table | index) == [("due", "HASH", "S"), ("due_at", "RANGE", "N")]
    # The index must never hold a value: whatever reads it has no need to.
    assert index["Projection"] == {"ProjectionType": "INCLUDE", "NonKeyAttributes": ["kind", "failures"]}


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
    }
    assert environments["ApiFunction"] == {
        "TABLE_NAME": {"Ref": "TokenTable"},
        "REFRESH_FUNCTION_NAME": {"Ref": "RefreshFunction"},
        "AWS_ENDPOINT_URL": "",
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


def test_only_the_refresher_goes_into_existing_subnets_and_only_if_told_to() -> None:
    # Given
    template = translate({"EgressMode": "existing", "SubnetIds": "subnet-1,subnet-2", "SecurityGroupIds": "sg-1"})

    # When
    condition, inside, otherwise = properties(template, "RefreshFunction")["VpcConfig"]["Fn::If"]

    # Then
    assert template["Conditions"][condition] == {"Fn::Equals": ["existing", "existing"]}
    assert inside == {
        "SubnetIds": {"Fn::Split": [",", "subnet-1,subnet-2"]},
        "SecurityGroupIds": {"Fn::Split": [",", "sg-1"]},
    }
    assert otherwise == {"Ref": "AWS::NoValue"}
    assert "VpcConfig" not in properties(template, "ApiFunction")
    # The one wildcard: AWS's own policy for network interfaces.
    assert properties(template, "RefreshFunctionRole")["ManagedPolicyArns"]["Fn::If"] == [
        condition,
        ["arn:aws:iam::aws:policy/service-role/AWSLambdaVPCAccessExecutionRole"],
        {"Ref": "AWS::NoValue"},
    ]


def test_logs_are_json_and_go_after_a_month(template: Template) -> None:
    for function in FUNCTIONS:
        assert properties(template, function)["LoggingConfig"] == {
            "LogFormat": "JSON",
            "LogGroup": {"Ref": f"{function}Log"},
        }
        assert properties(template, f"{function}Log")["RetentionInDays"] == 30


def test_the_sample_events_are_those_that_the_stack_sends(template: Template) -> None:
    assert event("tick") in [schedule.event for schedule in schedules(template)]
    assert event("guard") in [schedule.event for schedule in schedules(template)]
    request = event("api-get-token")
    assert request["routeKey"] in [f"{route.method} {route.path}" for route in routes(template)]
    pattern = EventPattern.load(json.dumps(properties(template, "RefreshFunctionAccountChange")["EventPattern"]))
    assert pattern.matches_event(event("parameter-created"))  # type: ignore[arg-type]
