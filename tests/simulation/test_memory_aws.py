"""The AWS in memory that the simulation uses: the table behaves the same over it and over moto, and it refuses what AWS's own
DynamoDB Local refuses."""

from dataclasses import replace
from typing import Any
from uuid import uuid4

import boto3
import pytest
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto import mock_aws

from tests.simulation.memory_aws import MemoryAws
from tests.support.world import REGION, create_table
from token_keeper.model import Account, Failure, FailureClass, Grant, Kind, Progress, Usage
from token_keeper.refresh import lifecycle
from token_keeper.refresh.lifecycle import Attempt
from token_keeper.table import Table
from token_keeper.table.items import Entry

FAILURE = Failure(FailureClass.TRANSIENT, -1, "busy", "wait", 5)


def in_memory() -> Any:
    """A client of an empty table."""
    dynamodb = MemoryAws(lambda: 0.0).client("dynamodb")
    create_table(dynamodb, "tokens")
    return dynamodb


OPERATIONS = [
    *["enrol", "lease", "publish", "fail", "usage", "check", "checked", "refuse", "reschedule", "note"],
    *["acquire_claim", "release_claims", "progress", "drop"],
]
operations = st.lists(
    st.tuples(st.sampled_from(OPERATIONS), st.sampled_from(["one", "two"]), st.integers(0, 6)), max_size=25
)


@pytest.mark.long
@given(operations)
@settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_the_table_behaves_as_over_moto(steps: list[tuple[str, str, int]]) -> None:
    """Whatever is done, both return the same and both hold the same."""
    with mock_aws(), pytest.MonkeyPatch.context() as patched:
        # Given the same table over both, and epochs that can be compared
        patched.setattr("secrets.randbits", lambda _: 7)
        moto = boto3.client("dynamodb", region_name=REGION, aws_access_key_id="test", aws_secret_access_key="test")
        create_table(moto, "tokens")
        tables = [Table(moto, "tokens"), Table(in_memory(), "tokens")]

        # When the same is done to both, then both return the same
        for step in steps:
            returned = [_result(table, *step) for table in tables]
            assert returned[0] == returned[1], step
        assert _held(tables[0]) == _held(tables[1])


def _result(table: Table, what: str, account: str, now: int) -> Any:
    seen, write = table.credentials.get(account, "access_token"), table.credentials.change
    match what:
        case "enrol":
            table.accounts.put_entry(Entry(account, f"app{now % 2}", Kind.TOKEN, ("access_token",), str(now)))
            return table.credentials.enrol(account, "access_token", Kind.TOKEN, f"app{now % 2}", due_at=now)
        case "lease" if seen:
            return write(seen, lifecycle.lease(replace(seen, epoch=seen.epoch + now % 2), now * 60))
        case "publish" if seen:
            return write(seen, lifecycle.publish(Attempt(seen, seen, now), Grant(f"value{now}", 9, now), now))
        case "fail" if seen:
            attempt = Attempt(seen, seen, now, forced=now % 2 == 1, outcome_unknown=now > 3)
            return write(seen, lifecycle.fail(attempt, FAILURE, makes_event=now > 2))
        case "usage" if seen:
            return write(seen, lifecycle.force(seen, Usage(calls=now), now))
        case "check" if seen:
            return write(seen, lifecycle.begin_check(seen, now))
        case "checked" if seen:
            return write(seen, lifecycle.end_check(seen, accepted_at=now if now % 2 else None))
        case "refuse" if seen:
            return write(seen, lifecycle.refuse(seen, now, foreign=now % 2 == 1))
        case "reschedule" if seen:
            kind = lifecycle.change_kind(seen, Kind.STABLE_TOKEN, now)
            return write(seen, kind if now % 2 else lifecycle.reschedule(seen, now))
        case "note" if seen:
            noted = lifecycle.note_record_error(FAILURE, next_attempt_at=now, alert_after=now % 3)
            return write(replace(seen, revision=now), noted if now % 2 else lifecycle.clear_record_error(now))
        case "acquire_claim":
            owner = table.accounts.acquire_claim(Account(account, "app0", "secret", Kind.TOKEN), now=now)
            return (
                owner,
                table.accounts.in_force(Account(account, "app0", "secret", Kind.TOKEN), str(now)),
                table.accounts.claims_on("app0"),
            )
        case "release_claims":
            return table.accounts.release_claims(
                account, "app0", free_at=now + now % 3, but=None if now < 5 else "other"
            )
        case "progress":
            table.put_progress(Progress(account, {account: now}))
            return table.progress()
        case "drop":
            table.accounts.drop_entry(account)
            return table.credentials.drop(account, "access_token")
    return None


def _held(table: Table) -> Any:
    entries = list(table.accounts.entries())
    first_page, _ = table.accounts.page(
        1, None
    )  # where that was all, DynamoDB may still name a place to go on, and moto does not
    listed = [sorted(table.list_due(until)[0], key=repr) for until in (None, 3)]
    return (
        entries,
        first_page,
        table.accounts.page(5, "one"),
        table.credentials.get_all(key for entry in entries for key in entry.keys),
        listed,
    )


KEY: dict[str, Any] = {"pk": {"S": "p"}, "sk": {"S": "s"}}
ITEM = KEY | {"a": {"N": "1"}, "due": {"S": "due"}, "due_at": {"N": "5"}}
ONE, TEXT = {":v": {"N": "1"}}, {":v": {"S": "p"}}


def put(**asked: Any) -> tuple[str, dict[str, Any]]:
    return "put_item", {"Item": ITEM, **asked}


def delete(**asked: Any) -> tuple[str, dict[str, Any]]:
    return "delete_item", {"Key": KEY, **asked}


def update(expression: str, values: Any = None, **asked: Any) -> tuple[str, dict[str, Any]]:
    given = {} if values is None else {"ExpressionAttributeValues": values}
    return "update_item", {"Key": KEY, "UpdateExpression": expression, "ReturnValues": "ALL_NEW", **given, **asked}


def query(expression: str, values: Any = None, **asked: Any) -> tuple[str, dict[str, Any]]:
    given = {} if values is None else {"ExpressionAttributeValues": values}
    return "query", {"KeyConditionExpression": expression, **given, **asked}


def batch_get(*keys: Any, **asked: Any) -> tuple[str, dict[str, Any]]:
    return "batch_get_item", {"RequestItems": {"tokens": {"Keys": list(keys), **asked}}}


def if_(condition: str, values: Any = None) -> dict[str, Any]:
    return {"ConditionExpression": condition} | ({} if values is None else {"ExpressionAttributeValues": values})


REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "update with an unused value": update("SET a = :v", ONE | {":w": {"N": "1"}}),
    "update with an unused name": update("SET a = :v", ONE, ExpressionAttributeNames={"#b": "b"}),
    "update with an undefined value": update("SET a = :v, b = :w", ONE),
    "update with an undefined name": update("SET #b = :v", ONE),
    "update with a defined name": update("SET #b = :v", ONE, ExpressionAttributeNames={"#b": "ttl"}),
    "update with a value used in the condition": update(
        "SET a = :v", ONE | {":w": {"N": "1"}}, ConditionExpression="a = :w"
    ),
    "condition with an undefined value": update("SET a = :v", ONE, ConditionExpression="a = :x"),
    "condition with an undefined name": put(**if_("#a = :v", ONE)),
    "reserved word": update("SET ttl = :v", ONE),
    "reserved word in a condition": put(**if_("ttl = :v", ONE)),
    "no values": put(**if_("attribute_not_exists(pk)", {})),
    "no names": put(**if_("attribute_not_exists(pk)"), ExpressionAttributeNames={}),
    "values without an expression": put(ExpressionAttributeValues=ONE),
    "names without an expression": put(ExpressionAttributeNames={"#a": "a"}),
    "put with an unused value": put(**if_("attribute_exists(pk)", ONE)),
    "delete with an unused value": delete(**if_("attribute_exists(pk)", ONE)),
    "removal with an unused value": update("REMOVE b", ONE),
    "query with an unused value": query("pk = :v", TEXT | {":w": {"N": "1"}}),
    "query with an undefined value": query("pk = :w", TEXT),
    "query without values": query("pk = :v"),
    "consistent query of an index": query("due = :v", TEXT, IndexName="due", ConsistentRead=True),
    "query of no index": query("due = :v", TEXT, IndexName="none"),
    "query by no key": query("pk = :v AND a = :w", TEXT | {":w": {"N": "1"}}),
    "query by the second key alone": query("sk = :v", TEXT),
    "query by another operator": query("pk <> :v", TEXT),
    "query by alternatives": query("pk = :v OR sk = :v", TEXT),
    "query by a key of another type": query("pk = :v", ONE),
    "query by an index's key of another type": query("due = :v AND due_at <= :v", TEXT, IndexName="due"),
    "query": query("pk = :v", TEXT),
    "query of an index": query("due = :v AND due_at <= :w", {":v": {"S": "due"}, ":w": {"N": "5"}}, IndexName="due"),
    "query after a key of another partition": query(
        "pk = :v", TEXT, ExclusiveStartKey={"pk": {"S": "x"}, "sk": {"S": "y"}}
    ),
    "an attribute set twice": update("SET a = :v, a = :v", ONE),
    "an attribute set and added to": update("SET a = :v ADD a :v", ONE),
    "an attribute set and removed": update("SET a = :v REMOVE a", ONE),
    "a clause twice": update("SET a = :v SET b = :v", ONE),
    "a key set": update("SET pk = :v", TEXT),
    "a key removed": update("REMOVE sk"),
    "an empty update": update(""),
    "an unfinished update": update("SET a = :v,", ONE),
    "a number added to text": update("ADD due :v", ONE),
    "text added": update("ADD b :v", TEXT),
    "a number added to nothing": update("ADD b :v", ONE),
    "set from what there is": update("SET b = if_not_exists(a, :v)", {":v": {"N": "7"}}),
    "set from what there is not": update("SET b = if_not_exists(c, :v)", ONE),
    "an absent attribute removed": update("REMOVE b"),
    "an index's key set to another type": update("SET due_at = :v", TEXT),
    "an index's key set to nothing": update("SET due = :v", {":v": {"S": ""}}),
    "an index's key put as another type": put(Item=ITEM | {"due_at": {"S": "1"}}),
    "an index's key put as nothing": put(Item=ITEM | {"due": {"S": ""}}),
    "an index's key put as a map": put(Item=ITEM | {"fingerprint": {"M": {}}}),
    "an item without a key": put(Item={"pk": {"S": "p"}}),
    "an item with a key of another type": put(Item={"pk": {"S": "p"}, "sk": {"N": "1"}}),
    "an item with an empty key": put(Item={"pk": {"S": "p"}, "sk": {"S": ""}}),
    "get by too much": ("get_item", {"Key": ITEM}),
    "get by too little": ("get_item", {"Key": {"pk": {"S": "p"}}}),
    "get by nothing": ("get_item", {"Key": {"pk": {"S": ""}, "sk": {"S": "s"}}}),
    "delete by too much": delete(Key=ITEM),
    "update by too much": update("SET b = :v", ONE, Key=ITEM),
    "the same key twice": batch_get(KEY, KEY),
    "too many keys": batch_get(*[KEY | {"sk": {"S": str(number)}} for number in range(101)]),
    "too little of a key": batch_get({"pk": {"S": "p"}}),
    "consistent reading of many": batch_get(KEY, ConsistentRead=True),
    "no number": put(Item=ITEM | {"b": {"N": "x"}}),
    "no number in a map": put(Item=ITEM | {"b": {"M": {"c": {"N": ""}}}}),
    "no number in a value": update("SET b = :v", {":v": {"N": "x"}}),
    "a function of a value": put(**if_("attribute_exists(:v)", ONE)),
    "less than text": put(**if_("a <= :v", TEXT)),
    "less than nothing": put(**if_("b <= :v", ONE)),
    "other than nothing": put(**if_("b <> :v", ONE)),
    "the same as nothing": put(**if_("b = :v", ONE)),
    "other than text": put(**if_("a <> :v", {":v": {"S": "1"}})),
    "the same as text": put(**if_("a = :v", {":v": {"S": "1"}})),
}


@pytest.mark.xdist_group("dynamodb-local")
def test_it_takes_and_refuses_what_dynamodb_does(dynamodb_url: str) -> None:
    # Given the same item in both
    local = boto3.Session("test", "test", region_name=REGION).client("dynamodb", endpoint_url=dynamodb_url)
    table = f"tokens-{uuid4()}"
    create_table(local, table)
    for what, request in REQUESTS.items():
        memory = in_memory()
        for dynamodb, name in ((local, table), (memory, "tokens")):
            dynamodb.put_item(TableName=name, Item=ITEM)
        # When the same is asked of both, then both return the same, and hold the same afterwards
        assert _handle(memory, "tokens", *request) == _handle(local, table, *request), what


def _handle(dynamodb: Any, table: str, operation: str, asked: dict[str, Any]) -> Any:
    if operation == "batch_get_item":
        asked = {"RequestItems": {table: asked["RequestItems"]["tokens"]}}
    else:
        asked = {"TableName": table, **asked}
    try:
        responded = getattr(dynamodb, operation)(**asked)
        reply = responded.get("Attributes") or responded.get("Items") or responded.get("Responses", {}).get(table)
    except ClientError as error:
        reply = error.response["Error"]["Code"]
    return reply, dynamodb.get_item(TableName=table, Key=KEY, ConsistentRead=True).get("Item")


def test_an_unknown_expression_is_refused() -> None:
    """The memory never guesses what an expression might mean."""
    dynamodb = in_memory()
    with pytest.raises(NotImplementedError):
        dynamodb.put_item(Item=KEY, ConditionExpression="begins_with(pk, :x) AND size(a) > :x")
    with pytest.raises(NotImplementedError):
        dynamodb.query(KeyConditionExpression="pk = :v", ExpressionAttributeValues=TEXT, FilterExpression="a = :v")


def test_a_reading_that_is_not_consistent_may_lag() -> None:
    # Given an item that changes while indexes lag
    aws = MemoryAws(lambda: 0.0)
    dynamodb = aws.client("dynamodb")
    create_table(dynamodb, "tokens")
    dynamodb.put_item(Item=ITEM)
    aws.lag(60)
    changed = ITEM | {"a": {"N": "2"}}
    dynamodb.put_item(Item=changed)
    by_key = {"KeyConditionExpression": "pk = :v", "ExpressionAttributeValues": TEXT}
    # When it is read, then only a consistent reading knows of that
    for consistent, seen in ((False, ITEM), (True, changed)):
        assert dynamodb.get_item(Key=KEY, ConsistentRead=consistent)["Item"] == seen
        assert dynamodb.query(**by_key, ConsistentRead=consistent)["Items"] == [seen]
        many = {"tokens": {"Keys": [KEY], "ConsistentRead": consistent}}
        assert dynamodb.batch_get_item(RequestItems=many)["Responses"]["tokens"] == [seen]


def test_a_refused_write_is_told_as_dynamodb_does() -> None:
    """With the item that stood in the way, where that is asked for."""
    dynamodb = in_memory()
    dynamodb.put_item(Item=ITEM)
    with pytest.raises(ClientError) as refused:
        dynamodb.put_item(
            Item=ITEM,
            ConditionExpression="attribute_not_exists(pk)",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )
    assert refused.value.response["Error"]["Code"] == "ConditionalCheckFailedException"
    assert dict(refused.value.response)["Item"] == ITEM
