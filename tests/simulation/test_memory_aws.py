"""The AWS in memory that the simulation uses: the table behaves the same over it and over moto."""

from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto import mock_aws

from tests.simulation.memory_aws import MemoryAws
from tests.world import REGION, create_table
from token_keeper.model import Account, Due, Failure, FailureClass, Grant, Kind, Progress, Usage
from token_keeper.table import Entry, Table

FAILURE = Failure(FailureClass.TRANSIENT, -1, "busy", "wait", 5)

operations = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("enrol", "lease", "rotate", "publish", "fail", "usage", "begin_check", "end_check", "mark_refused"),
                *("claim", "release_claims", "reschedule", "record_error", "progress", "drop"),
            ]
        ),
        st.sampled_from(["one", "two"]),
        st.integers(0, 6),
    ),
    max_size=25,
)


@pytest.mark.long
@given(operations)
@settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_the_table_behaves_as_over_moto(steps: list[tuple[str, str, int]]) -> None:
    """Whatever is done, both tell the same and both hold the same."""
    with mock_aws(), pytest.MonkeyPatch.context() as patched:
        # Given the same table over both, and epochs that can be compared
        patched.setattr("secrets.randbits", lambda _: 7)
        moto = boto3.client("dynamodb", region_name=REGION, aws_access_key_id="test", aws_secret_access_key="test")
        create_table(moto, "tokens")
        tables = [Table(moto, "tokens"), Table(MemoryAws(lambda: 0.0).client("dynamodb"), "tokens")]

        # When the same is done to both, then both tell the same
        for step in steps:
            told = [_told(table, *step) for table in tables]
            assert told[0] == told[1], step
        assert _held(tables[0]) == _held(tables[1])


def _told(table: Table, what: str, account: str, now: int) -> Any:
    seen = table.credential(account, "access_token")
    match what:
        case "enrol":
            table.put_entry(Entry(account, f"app{now % 2}", Kind.TOKEN, ("access_token",), str(now)))
            return table.enrol(account, "access_token", Kind.TOKEN, f"app{now % 2}", due_at=now)
        case "lease" | "rotate":
            epoch = seen.epoch if seen and what == "rotate" else None
            return table.take_lease(Due(account, "access_token", Kind.TOKEN, now, 0, epoch), now=now, until=now + 2)
        case "publish" if seen:
            grant = Grant(f"value{now}", 9, now)
            return table.publish(
                seen, grant, Usage(calls=now), expires_at=now + 9, due_at=now, minted_at=now, previous_until=now
            )
        case "fail" if seen:
            return table.record_failure(seen, FAILURE, Usage(), due_at=now, at_risk=now > 3, refused=now % 2 == 1)
        case "usage" if seen:
            return table.record_usage(seen, Usage(calls=now))
        case "begin_check" if seen:
            return table.begin_check(seen, until=now + 2, booked_until=now + 5)
        case "end_check" if seen and seen.value:
            return table.end_check(seen, accepted_at=now if now % 2 else None)
        case "mark_refused" if seen:
            return table.mark_refused(seen, now=now, foreign=now % 2 == 1)
        case "claim":
            return table.claim(Account(account, "app0", "secret", Kind.TOKEN))
        case "release_claims":
            return table.release_claims(account, "app0", but="token" if now > 4 else None)
        case "reschedule" if seen:
            return table.reschedule(seen, due_at=now, kind=Kind.STABLE_TOKEN if now % 2 else None, expires_at=now)
        case "record_error":
            return table.set_record_error(account, "access_token", FAILURE if now % 2 else None)
        case "progress":
            table.put_progress(Progress(account, {account: now}))
            return table.progress()
        case "drop":
            table.drop_entry(account)
            return table.drop_credential(account, "access_token")
    return None


def _held(table: Table) -> Any:
    entries = list(table.entries())
    first_page, _ = table.page(
        1, None
    )  # where that was all, DynamoDB may still name a place to go on, and moto does not
    dues = [sorted(table.due(until), key=repr) for until in (None, 3)]
    owners = [table.entry_and_owner(Account(name, "app0", "secret", Kind.TOKEN)) for name in ("one", "two")]
    return (
        entries,
        first_page,
        table.page(5, "one"),
        table.credentials(entries),
        table.tokens(["one", "two"]),
        dues,
        owners,
    )


def test_an_unknown_expression_is_refused() -> None:
    """The memory never guesses what an expression might mean."""
    dynamodb = MemoryAws(lambda: 0.0).client("dynamodb")
    key = {"pk": {"S": "p"}, "sk": {"S": "s"}}
    with pytest.raises(NotImplementedError):
        dynamodb.put_item(Item=key, ConditionExpression="begins_with(pk, :x) AND size(a) > :x")


def test_a_refused_write_is_told_as_dynamodb_does() -> None:
    """With the item that stood in the way, where that is asked for."""
    dynamodb = MemoryAws(lambda: 0.0).client("dynamodb")
    item = {"pk": {"S": "p"}, "sk": {"S": "s"}, "a": {"N": "1"}}
    dynamodb.put_item(Item=item)
    with pytest.raises(ClientError) as refused:
        dynamodb.put_item(
            Item=item,
            ConditionExpression="attribute_not_exists(pk)",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )
    assert refused.value.response["Error"]["Code"] == "ConditionalCheckFailedException"
    assert dict(refused.value.response)["Item"] == item


def test_a_value_that_no_expression_uses_is_refused() -> None:
    """As DynamoDB does."""
    dynamodb = MemoryAws(lambda: 0.0).client("dynamodb")
    key = {"pk": {"S": "p"}, "sk": {"S": "s"}}
    with pytest.raises(ClientError, match="unused"):
        dynamodb.update_item(
            Key=key,
            UpdateExpression="SET a = :a",
            ConditionExpression="attribute_not_exists(pk)",
            ExpressionAttributeValues={":a": {"N": "1"}, ":b": {"N": "2"}},
        )


@pytest.mark.parametrize(("consistent", "found"), [(True, "new"), (False, "old")])
def test_only_a_consistent_read_is_never_behind(*, consistent: bool, found: str) -> None:
    # Given an item that was changed while reads lag
    aws = MemoryAws(lambda: 0.0)
    dynamodb, key = aws.client("dynamodb"), {"pk": {"S": "p"}, "sk": {"S": "s"}}
    dynamodb.put_item(Item={**key, "a": {"S": "old"}})
    aws.lag(60)
    dynamodb.put_item(Item={**key, "a": {"S": "new"}})
    # When it is read, then only a consistent read tells the change
    assert dynamodb.get_item(Key=key, ConsistentRead=consistent)["Item"]["a"]["S"] == found


def test_an_item_is_deleted_after_its_ttl_and_not_before() -> None:
    # Given items that end now and later, and one that never ends
    aws = MemoryAws(lambda: 100.0)
    for name, ttl in (("now", 100), ("later", 101), ("never", None)):
        item = {"pk": {"S": "p"}, "sk": {"S": name}} | ({"ttl": {"N": str(ttl)}} if ttl else {})
        aws.client("dynamodb").put_item(Item=item)
    # When DynamoDB cleans up
    aws.expire()
    # Then only the first is gone
    assert [name for _, name in aws.items] == ["later", "never"]
