"""The embedded AWS, met as its users meet it: over HTTP with boto3."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from queue import Queue
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from infra.local.access_keys import OPERATOR
from infra.local.embedded_aws import EmbeddedAws
from token_keeper.api.aws.clients import Client
from token_keeper.aws_errors import AwsError

DEADLINE = 120
"""Seconds after which an event that has not come is taken not to come."""

type Json = dict[str, Any]


class Refresher:
    """Stands where RefreshFunction would: keeps the events it gets, and responds or fails as the test wants."""

    def __init__(self) -> None:
        self.events: Queue[Json] = Queue()
        self.failure: Exception | None = None

    def __call__(self, event: Json) -> object:
        self.events.put(event)
        if self.failure:
            raise self.failure
        return {"renewed": [event]}

    def next_event(self) -> Json:
        return self.events.get(timeout=DEADLINE)


@pytest.fixture
def refresher() -> Refresher:
    return Refresher()


@pytest.fixture
def aws(refresher: Refresher) -> Iterator[EmbeddedAws]:
    with EmbeddedAws(api_url="http://127.0.0.1:3999").start({"RefreshFunction": refresher}) as aws:
        yield aws


def client(aws: EmbeddedAws, service: str, function: str | None = None) -> Any:
    """A client with the function's role; without one, an operator's."""
    session = aws.session(function or OPERATOR)
    return session.client(service, endpoint_url=aws.endpoint_url, config=Config(retries={"total_max_attempts": 1}))  # type: ignore[call-overload]


def key(name: str) -> Json:
    return {"pk": {"S": name}, "sk": {"S": "access_token"}}


def parameter(aws: EmbeddedAws, account: str) -> str:
    return f"{aws.outputs['AccountsPath']}/{account}"


def test_the_stack_says_where_its_things_are(aws: EmbeddedAws) -> None:
    # When
    (stack,) = client(aws, "cloudformation").describe_stacks(StackName="local")["Stacks"]

    # Then
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    assert outputs == aws.outputs
    assert outputs["ApiUrl"] == "http://127.0.0.1:3999"
    assert outputs["AccountsPath"] == "/wechat-token-keeper/accounts"


def test_a_functions_environment_leads_only_to_this_stack(aws: EmbeddedAws) -> None:
    assert aws.environment("ApiFunction") == {
        "TABLE_NAME": aws.outputs["TokenTableName"],
        "STACK_NAME": "local",
        "VERSION": version("wechat-token-keeper"),
        "REFRESH_FUNCTION_NAME": f"{aws.outputs['RefreshFunctionName']}:readers",
        "AWS_ENDPOINT_URL": aws.endpoint_url,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": aws.keys["ApiFunction"].access_key,
        "AWS_SECRET_ACCESS_KEY": aws.keys["ApiFunction"].secret_key,
    }


def test_the_processs_own_environment_stays_as_it_is() -> None:
    # Given
    before = dict(os.environ)

    # When
    with EmbeddedAws().start({}):
        during = dict(os.environ)

    # Then
    assert before == during == dict(os.environ)


def test_the_table_is_the_templates(aws: EmbeddedAws) -> None:
    # Given
    dynamodb, table = client(aws, "dynamodb"), aws.outputs["TokenTableName"]

    # When
    for name, due_at in (("late", "300"), ("early", "100"), ("never", "900")):
        item = key(name) | {"due": {"S": "due"}, "due_at": {"N": due_at}, "value": {"S": "secret"}}
        dynamodb.put_item(TableName=table, Item=item)

    # Then
    found = dynamodb.query(
        TableName=table,
        IndexName="due",
        KeyConditionExpression="due = :due AND due_at <= :now",
        ExpressionAttributeValues={":due": {"S": "due"}, ":now": {"N": "300"}},
    )["Items"]
    assert [item["pk"]["S"] for item in found] == ["early", "late"]
    assert all("value" not in item for item in found)
    ttl = dynamodb.describe_time_to_live(TableName=table)["TimeToLiveDescription"]
    assert ttl == {"TimeToLiveStatus": "ENABLED", "AttributeName": "ttl"}


def test_a_condition_holds_between_threads(aws: EmbeddedAws) -> None:
    # Given
    dynamodb, table, writers = client(aws, "dynamodb"), aws.outputs["TokenTableName"], 24

    def wins(item: Json) -> bool:
        try:
            dynamodb.put_item(TableName=table, Item=item, ConditionExpression="attribute_not_exists(pk)")
        except dynamodb.exceptions.ConditionalCheckFailedException:
            return False
        return True

    # When
    with ThreadPoolExecutor(writers) as threads:
        rounds = [sum(threads.map(wins, [key(f"round-{number}")] * writers)) for number in range(5)]

    # Then
    assert rounds == [1] * 5


def test_invoke_responds_what_the_function_returns(aws: EmbeddedAws) -> None:
    # Given
    name = aws.environment("ApiFunction")["REFRESH_FUNCTION_NAME"]
    event = {"renew": {"account": "main", "credential": "access_token"}}

    for function in (name, f"arn:aws:lambda:us-east-1:123456789012:function:{name}"):
        # When
        response = client(aws, "lambda", "ApiFunction").invoke(FunctionName=function, Payload=json.dumps(event))

        # Then
        assert response["StatusCode"] == 200
        assert "FunctionError" not in response
        assert json.load(response["Payload"]) == {"renewed": [event]}


def test_an_event_invocation_is_taken_at_once_and_run_later(aws: EmbeddedAws, refresher: Refresher) -> None:
    # When
    response = client(aws, "lambda").invoke(
        FunctionName=aws.outputs["RefreshFunctionName"], InvocationType="Event", Payload=b'{"wake": "guard"}'
    )

    # Then
    assert response["StatusCode"] == 202
    assert response["Payload"].read() == b""
    assert refresher.next_event() == {"wake": "guard"}


def test_a_function_error_repeats_nothing_of_the_exception(aws: EmbeddedAws, refresher: Refresher) -> None:
    # Given
    refresher.failure = ValueError("the AppSecret 5f4dcc3b5aa765d61d8327deb882cf99")

    # When
    response = client(aws, "lambda").invoke(FunctionName=aws.outputs["RefreshFunctionName"])

    # Then
    assert response["FunctionError"] == "Unhandled"
    payload = response["Payload"].read().decode()
    assert json.loads(payload)["errorType"] == "ValueError"
    assert "5f4dcc3b" not in payload


def test_the_reader_may_invoke_the_readers_alias_only(refresher: Refresher) -> None:
    # Given a function that is another for what comes through the alias
    functions: dict[str, Callable[[dict[str, Any]], object]] = {
        "RefreshFunction": refresher,
        "RefreshFunction:readers": lambda event: "a reader asks",
    }
    with EmbeddedAws().start(functions) as aws:
        name = aws.outputs["RefreshFunctionName"]
        reader, operator = client(aws, "lambda", "ApiFunction"), client(aws, "lambda")

        # When both use the alias, then both are readers
        for caller in (reader, operator):
            assert json.load(caller.invoke(FunctionName=f"{name}:readers")["Payload"]) == "a reader asks"

        # And only the operator may pass it by
        operator.invoke(FunctionName=name)
        for other in (
            name,
            f"{name}:$LATEST",
            f"{name}:writers",
            f"arn:aws:lambda:us-east-1:123456789012:function:{name}",
        ):
            with pytest.raises(ClientError, match="AccessDenied"):
                reader.invoke(FunctionName=other)
        with pytest.raises(ClientError, match="ResourceNotFoundException"):
            operator.invoke(FunctionName=f"{name}:writers")


def test_a_function_that_is_not_there_is_not_found(aws: EmbeddedAws) -> None:
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        client(aws, "lambda").invoke(FunctionName="unknown")


def test_a_changed_account_parameter_wakes_the_refresher(aws: EmbeddedAws, refresher: Refresher) -> None:
    # Given
    ssm, name = client(aws, "ssm"), parameter(aws, "main")

    # When
    ssm.put_parameter(Name=name, Value="{}", Type="SecureString")
    created = refresher.next_event()
    ssm.put_parameter(Name=name, Value="{ }", Type="SecureString", Description="the shop", Overwrite=True)
    updated = refresher.next_event()
    ssm.delete_parameter(Name=name)
    deleted = refresher.next_event()

    # Then
    assert (created["source"], created["detail-type"]) == ("aws.ssm", "Parameter Store Change")
    assert created["resources"] == [f"arn:aws:ssm:us-east-1:123456789012:parameter{name}"]
    detail = {"name": name, "type": "SecureString"}
    assert created["detail"] == {"operation": "Create", **detail}
    assert updated["detail"] == {"operation": "Update", **detail, "description": "the shop"}
    assert deleted["detail"] == {"operation": "Delete", **detail, "description": "the shop"}


def test_parameters_deleted_together_are_told_one_by_one(aws: EmbeddedAws, refresher: Refresher) -> None:
    # Given
    ssm, names = client(aws, "ssm"), {parameter(aws, "one"), parameter(aws, "two")}
    for name in names:
        ssm.put_parameter(Name=name, Value="{}", Type="SecureString")
        refresher.next_event()

    # When
    ssm.delete_parameters(Names=[*names, parameter(aws, "unknown")])

    # Then
    details = [refresher.next_event()["detail"] for _ in names]
    assert {(detail["operation"], detail["name"]) for detail in details} == {("Delete", name) for name in names}
    aws.stop()
    assert refresher.events.empty()


def test_what_is_no_accounts_change_wakes_nobody(aws: EmbeddedAws, refresher: Refresher) -> None:
    # Given
    ssm, name = client(aws, "ssm"), parameter(aws, "main")
    ssm.put_parameter(Name=name, Value="{}", Type="SecureString")
    refresher.next_event()

    # When
    ssm.put_parameter(Name="/another/stacks", Value="{}", Type="SecureString")
    ssm.get_parameter(Name=name, WithDecryption=True)
    with pytest.raises(ssm.exceptions.ParameterAlreadyExists):
        ssm.put_parameter(Name=name, Value="{}", Type="SecureString")

    # Then
    aws.stop()
    assert refresher.events.empty()


def test_the_refresher_may_read_the_accounts_and_write_the_table(aws: EmbeddedAws) -> None:
    # Given
    client(aws, "ssm").put_parameter(Name=parameter(aws, "main"), Value="{}", Type="SecureString")
    ssm, dynamodb = client(aws, "ssm", "RefreshFunction"), client(aws, "dynamodb", "RefreshFunction")

    # When
    page = ssm.get_parameters_by_path(Path=aws.outputs["AccountsPath"], WithDecryption=True)
    dynamodb.put_item(TableName=aws.outputs["TokenTableName"], Item=key("credential#main"))

    # Then
    assert [each["Value"] for each in page["Parameters"]] == ["{}"]
    with pytest.raises(ClientError, match="AccessDenied"):
        ssm.get_parameters(Names=["/another/stacks"], WithDecryption=True)
    with pytest.raises(ClientError, match="AccessDenied"):
        dynamodb.scan(TableName=aws.outputs["TokenTableName"])


def test_the_refresher_reaches_no_consumer(aws: EmbeddedAws) -> None:
    # Given
    dynamodb, table = client(aws, "dynamodb", "RefreshFunction"), aws.outputs["TokenTableName"]

    def calls(pk: str) -> Iterator[tuple[Any, Json]]:
        yield dynamodb.put_item, {"TableName": table, "Item": key(pk)}
        yield dynamodb.get_item, {"TableName": table, "Key": key(pk)}
        values = {":pk": {"S": pk}}
        update = {"UpdateExpression": "SET a = :pk", "ExpressionAttributeValues": values}
        yield dynamodb.update_item, {"TableName": table, "Key": key(pk), **update}
        yield dynamodb.delete_item, {"TableName": table, "Key": key(pk)}
        yield dynamodb.batch_get_item, {"RequestItems": {table: {"Keys": [key("claim#0"), key(pk)]}}}
        yield (
            dynamodb.query,
            {"TableName": table, "KeyConditionExpression": "pk = :pk", "ExpressionAttributeValues": values},
        )

    # Then
    for mine in ("credential#main", "claim#wx0", "accounts", "probe"):
        for allowed, request in calls(mine):
            allowed(**request)
    for other in ("consumers", "consumers#x", "account", ""):
        for refused, request in calls(other):
            with pytest.raises(ClientError, match="AccessDenied"):
                refused(**request)


def test_the_refresher_reads_no_parameter_of_a_deeper_path(aws: EmbeddedAws) -> None:
    # Given the account of another stack, whose path is within this one's
    ssm, path = client(aws, "ssm", "RefreshFunction"), aws.outputs["AccountsPath"]

    # Then
    ssm.get_parameters(Names=[f"{path}/main"], WithDecryption=True)
    ssm.get_parameters_by_path(Path=path, Recursive=False)
    with pytest.raises(ClientError, match="AccessDenied"):
        ssm.get_parameters(Names=[f"{path}/other/main"], WithDecryption=True)
    with pytest.raises(ClientError, match="AccessDenied"):
        ssm.get_parameters_by_path(Path=path, Recursive=True)


def test_the_reader_may_read_the_table_and_no_account(aws: EmbeddedAws) -> None:
    # Given
    client(aws, "ssm").put_parameter(Name=parameter(aws, "main"), Value="{}", Type="SecureString")
    table = aws.outputs["TokenTableName"]
    ssm, kms = client(aws, "ssm", "ApiFunction"), client(aws, "kms", "ApiFunction")
    dynamodb = client(aws, "dynamodb", "ApiFunction")

    # When
    dynamodb.get_item(TableName=table, Key=key("main"))
    dynamodb.batch_get_item(RequestItems={table: {"Keys": [key("main")]}})

    # Then
    for refused, request in (
        (ssm.get_parameter, {"Name": parameter(aws, "main"), "WithDecryption": True}),
        (ssm.get_parameters, {"Names": [parameter(aws, "main")], "WithDecryption": True}),
        (ssm.get_parameters_by_path, {"Path": aws.outputs["AccountsPath"], "WithDecryption": True}),
        (kms.decrypt, {"CiphertextBlob": b"anything"}),
        (dynamodb.put_item, {"TableName": table, "Item": key("main")}),
        (dynamodb.delete_item, {"TableName": table, "Key": key("main")}),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            refused(**request)


def test_the_readers_own_client_is_served_as_boto3s(aws: EmbeddedAws, refresher: Refresher) -> None:
    # Given some items, and both clients with the reader's role
    name = aws.outputs["TokenTableName"]
    for number in range(3):
        client(aws, "dynamodb").put_item(TableName=name, Item={**key(f"a{number}"), "due_at": {"N": "1"}})
    table, boto3_table = (
        Client("dynamodb", aws.environment("ApiFunction")),
        client(aws, "dynamodb", "ApiFunction"),
    )
    # When both ask the same, then the responses are the same
    asked: list[tuple[str, Json]] = [
        ("get_item", {"TableName": name, "Key": key("a1"), "ConsistentRead": True}),
        ("get_item", {"TableName": name, "Key": key("unknown")}),
        ("batch_get_item", {"RequestItems": {name: {"Keys": [key("a0"), key("a2")], "ConsistentRead": True}}}),
        (
            "query",
            {
                "TableName": name,
                "KeyConditionExpression": "pk = :pk",
                "ExpressionAttributeValues": {":pk": {"S": "a1"}},
                "Limit": 1,
            },
        ),
    ]
    for operation, question in asked:
        expected = getattr(boto3_table, operation)(**question)
        del expected["ResponseMetadata"]
        response = getattr(table, operation)(**question)
        assert {name: response.get(name) for name in expected} == expected
    # And so are refusals, and the functions it invokes
    with pytest.raises(AwsError, match="AccessDeniedException"):
        table.query(TableName="another", KeyConditionExpression="pk = :pk")
    invoked = Client("lambda", aws.environment("ApiFunction")).invoke(
        FunctionName="local-RefreshFunction:readers", Payload='{"wake": "guard"}'
    )
    assert json.load(invoked["Payload"]) == {"renewed": [{"wake": "guard"}]}
    refresher.failure = ValueError("no")
    failed = Client("lambda", aws.environment("ApiFunction")).invoke(
        FunctionName="local-RefreshFunction:readers", Payload="{}"
    )
    assert failed["FunctionError"] == "Unhandled"


def test_the_next_one_in_a_process_begins_empty() -> None:
    # Given
    with EmbeddedAws().start({}) as first:
        client(first, "ssm").put_parameter(Name="/left/behind", Value="x", Type="String")

    # When
    with EmbeddedAws().start({}) as second:
        parameters = client(second, "ssm").describe_parameters()["Parameters"]

    # Then
    assert parameters == []


def test_a_port_that_is_taken_is_an_error_of_the_caller() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match="in use"),
    ):
        EmbeddedAws(port=taken.getsockname()[1]).start({})
