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
from token_keeper.model import Account, Due, Failure, FailureClass, Grant, Kind, Spent
from token_keeper.table import Entry, Table

FAILURE = Failure(FailureClass.TRANSIENT, -1, "busy", "wait", 5)

operations = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "enrol",
                "lease",
                "rotate",
                "publish",
                "fail",
                "check",
                "release",
                "begin",
                "distrust",
                "claim",
                "release_claims",
                "seen",
                "make_due",
                "note",
                "drop",
                "drop_ticket",
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
            return table.publish(
                seen, Grant(f"value{now}", 9, now), Spent(calls=now), expires_at=now + 9, due_at=now, foreign=now == 3
            )
        case "fail" if seen:
            return table.record_failure(seen, FAILURE, Spent(), due_at=now, at_risk=now > 3, dead=now % 2 == 1)
        case "release" if seen:
            return table.release(seen, Spent(), checked_at=now if now % 2 else None)
        case "check":
            due = Due(account, "access_token", Kind.TOKEN, now, 0, seen.epoch if seen else None)
            return table.take_lease(due, now=now, until=now + 2, to_check=True)
        case "distrust" if seen:
            return table.distrust(seen, since=now - 1, now=now, ended=(f"print{now}", now) if now % 2 else None)
        case "begin" if seen:
            return table.begin_renewal(seen, now=now, until=now + 2)
        case "seen":
            return table.tickets_seen(account, "app0", ("jsapi", "wx_card"), now)
        case "drop_ticket":
            return table.drop_credential(account, "jsapi", "app0", gone_at=now)
        case "claim":
            return table.claim(Account(account, "app0", "secret", Kind.TOKEN))
        case "release_claims":
            return table.release_claims(account, "app0", but="token" if now > 4 else None)
        case "make_due" if seen:
            return table.make_due(seen, Kind.STABLE_TOKEN, now=now)
        case "note":
            return table.note(account, "access_token", FAILURE if now % 2 else None)
        case "drop":
            table.drop_entry(account)
            return table.drop_credential(account, "access_token", "app0", gone_at=now)
    return None


def _held(table: Table) -> Any:
    entries = list(table.entries())
    first_page, _ = table.page(
        1, None
    )  # where that was all, DynamoDB may still name a place to go on, and moto does not
    dues = [sorted(table.due(until), key=repr) for until in (None, 3)]
    return entries, first_page, table.page(5, "one"), table.credentials(entries), dues


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
