"""Adapter: items of one DynamoDB table, as plain values: text, whole numbers, and maps of both."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from token_keeper import aws_errors
from token_keeper.errors import StoreUnavailableError

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

BATCH_GET_LIMIT = 100
BATCH_GET_ROUNDS = 4
"""DynamoDB leaves out what it is too busy for; so often in all that is asked for."""

type Key = dict[str, str]
"""An item's `pk` and `sk`."""

type Item = dict[str, Any]


class ConditionFailedError(Exception):
    """A write's condition did not hold. `item` is the item as it is; empty where there is none."""

    def __init__(self, item: Item) -> None:
        super().__init__("condition failed")
        self.item = item


class Items:
    """The items of the table `name`. Every method raises `StoreUnavailableError` where DynamoDB fails.

    A write with `only_if` is made only if the item has these attributes (None: has no such attribute) at that moment; it raises
    `ConditionFailedError` otherwise.
    """

    def __init__(self, dynamodb: "DynamoDBClient", name: str) -> None:
        self._dynamodb = dynamodb
        self._name = name

    def get(self, key: Key) -> Item | None:
        """One item, read consistently."""
        reply = self._call("get_item", TableName=self._name, Key=_wire(key), ConsistentRead=True)
        return _plain(reply["Item"]) if "Item" in reply else None

    def get_all(self, keys: Iterable[Key], *, consistent: bool = True) -> dict[tuple[str, str], Item]:
        """All of these items that there are, by `pk` and `sk`; not `consistent`: as they are, or were a moment ago."""
        left: list[Any] = [_wire(key) for key in keys]
        items, rounds = dict[tuple[str, str], Item](), len(left) // BATCH_GET_LIMIT + BATCH_GET_ROUNDS
        while left:
            if not rounds:
                raise StoreUnavailableError("DynamoDB: it does not get to all that was asked for")
            rounds -= 1
            asked = {self._name: {"Keys": left[:BATCH_GET_LIMIT], "ConsistentRead": consistent}}
            reply = self._call("batch_get_item", RequestItems=asked)
            left = reply["UnprocessedKeys"].get(self._name, {"Keys": []})["Keys"] + left[BATCH_GET_LIMIT:]
            found = map(_plain, reply["Responses"].get(self._name, []))
            items |= {(item["pk"], item["sk"]): item for item in found}
        return items

    def query(self, condition: str, values: Mapping[str, Any], **options: Any) -> Iterator[Item]:
        """The items whose key meets a condition: read consistently, or from an index, which may lag.

        `options`: those of DynamoDB's Query (`IndexName`, `Limit`).
        """
        return chain.from_iterable(page for page, _ in self.pages(condition, values, **options))

    def pages(
        self, condition: str, values: Mapping[str, Any], **options: Any
    ) -> Iterator[tuple[list[Item], Item | None]]:
        """The same page after page, each with the key to go on after (None: that was all)."""
        query: Any = {"TableName": self._name, "KeyConditionExpression": condition, **options}
        query |= {"ExpressionAttributeValues": _wire(values), "ConsistentRead": "IndexName" not in options}
        while True:
            reply = self._call("query", **query)
            last = reply.get("LastEvaluatedKey")
            yield [_plain(item) for item in reply["Items"]], _plain(last) if last else None
            if not last:
                return
            query["ExclusiveStartKey"] = last

    def put(self, item: Mapping[str, Any], *, only_if: Mapping[str, Any] | None = None) -> None:
        """Write a whole item."""
        self._call("put_item", TableName=self._name, Item=_wire(item), **_expressions(only_if or {}))

    def update(self, key: Key, changes: Mapping[str, Any], *, only_if: Mapping[str, Any]) -> Item:
        """Assign attributes of an item, and remove those that are to be None; returns it as it is then."""
        asked = {"TableName": self._name, "Key": _wire(key), "ReturnValues": "ALL_NEW"}
        return _plain(self._call("update_item", **asked, **_expressions(only_if, changes))["Attributes"])

    def delete(self, key: Key, *, only_if: Mapping[str, Any] | None = None) -> Item | None:
        """Delete an item; returns it as it was, or None where there was none."""
        asked = {"TableName": self._name, "Key": _wire(key), "ReturnValues": "ALL_OLD"}
        reply = self._call("delete_item", **asked, **_expressions(only_if or {}))
        return _plain(reply["Attributes"]) if "Attributes" in reply else None

    def _call(self, operation: str, **asked: Any) -> Any:
        try:
            return getattr(self._dynamodb, operation)(**asked)
        except aws_errors.raised() as error:
            code = aws_errors.code_of(error)
            if code == "ConditionalCheckFailedException":
                response: Any = error.response  # type: ignore[attr-defined]
                raise ConditionFailedError(_plain(response.get("Item", {}))) from None
            # AWS may quote what was sent, a value among it; a traceback that shows causes would show that.
            raise StoreUnavailableError(f"DynamoDB: {code}") from None


def _expressions(only_if: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Any:
    # An attribute stands as `#name`, because some names are words of DynamoDB's expressions.
    changes = changes or {}
    condition = [
        f"attribute_not_exists(#{name})" if seen is None else f"#{name} = :seen_{name}"
        for name, seen in only_if.items()
    ]
    assigned = ", ".join(f"#{name} = :{name}" for name, value in changes.items() if value is not None)
    removed = ", ".join(f"#{name}" for name, value in changes.items() if value is None)
    values = {f":{name}": value for name, value in changes.items()}
    values |= {f":seen_{name}": seen for name, seen in only_if.items()}
    expressions = {
        "UpdateExpression": f"{assigned and f'SET {assigned}'} {removed and f'REMOVE {removed}'}".strip(),
        "ConditionExpression": " AND ".join(condition),
        "ExpressionAttributeNames": {f"#{name}": name for name in (*only_if, *changes)},
        "ExpressionAttributeValues": _wire(values),
        "ReturnValuesOnConditionCheckFailure": condition and "ALL_OLD",
    }
    return {name: given for name, given in expressions.items() if given}


# boto3's own serializer costs the readers an import, and makes Decimals.


def _wire(values: Mapping[str, Any]) -> Any:
    return {name: _wire_value(value) for name, value in values.items() if value is not None}


def _wire_value(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"S": str(value)}
    return {"M": _wire(value)} if isinstance(value, dict) else {"N": str(value)}


def _plain(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain_value(value) for name, value in item.items()}


def _plain_value(value: Mapping[str, Any]) -> Any:
    if "N" in value:
        return int(value["N"])
    return _plain(value["M"]) if "M" in value else value["S"]
