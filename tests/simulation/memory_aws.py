"""DynamoDB, Parameter Store and EventBridge in memory, as far as the functions use them: hundreds of times faster than moto.

It understands just the requests that `token_keeper.table.dynamodb` sends. What DynamoDB refuses it refuses, too; what it does not know
raises NotImplementedError. `test_memory_aws` compares it with DynamoDB Local and with moto.
"""

import datetime
import json
import re
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from tests.simulation.expressions import (
    COMPARISONS,
    PLACEHOLDERS,
    Condition,
    Item,
    Keys,
    check_key_condition,
    expressions_of,
    invalid,
    plain_values,
    refusal,
    value_of,
)

type AfterWrite = Callable[[str, Item | None, Item | None], None]

_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_WRITTEN_IF = frozenset({*PLACEHOLDERS, "TableName", "ConditionExpression", "ReturnValuesOnConditionCheckFailure"})
_DELETED_IF = _WRITTEN_IF | {"ReturnValues"}
_UPDATED_IF = _DELETED_IF | {"UpdateExpression"}
_READ = frozenset({"TableName", "ConsistentRead"})
_READ_TOGETHER = frozenset({"Keys", "ConsistentRead"})
_QUERIED = _READ | {*PLACEHOLDERS, "IndexName", "KeyConditionExpression", "Limit", "ExclusiveStartKey"}
_READ_BATCH, _PARAMETERS_BATCH, _EVENTS_BATCH = 100, 10, 10
"""The most that BatchGetItem, GetParameters and PutEvents take."""


class MemoryAws:
    """The services. `client` makes clients as `boto3.client` does; `clock` gives epoch seconds.

    `items` holds the table by key, `parameters` the parameters by name; `key_types` has the type of each attribute that is a
    key of the table or of an index. `after_write` is called for each write to the table when it is done, with its update
    expression (or the operation's name), the item before, and the item after.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.items: dict[tuple[str, str], Item] = {}
        self.parameters: dict[str, dict[str, Any]] = {}
        self.after_write: AfterWrite = lambda _what, _before, _after: None
        self._clock = clock
        self._written = 0
        self._keys: dict[str | None, Keys] = {}
        self.key_types: dict[str, str] = {}
        self._lagging: dict[tuple[str, str], Item] = {}
        self._lags_until = 0.0
        self._clients = {
            "dynamodb": _MemoryDynamoDB(self),
            "ssm": _MemoryParameterStore(self),
            "events": _MemoryEventBridge(self),
        }

    def lag(self, seconds: float) -> None:
        """From now on and for so long, indexes and readings that are not consistent return what they return now."""
        self._lagging = {key: dict(item) for key, item in self.items.items()}
        self._lags_until = self._clock() + seconds

    @property
    def listed(self) -> dict[tuple[str, str], Item]:
        """The items as indexes and readings that are not consistent know them."""
        return self._lagging if self._clock() < self._lags_until else self.items

    def create(self, described: Mapping[str, Any]) -> None:
        """Create the one table; `described` as CreateTable takes it."""
        types = {each["AttributeName"]: each["AttributeType"] for each in described["AttributeDefinitions"]}

        def keys(of: Mapping[str, Any]) -> dict[str, str]:
            return {key["AttributeName"]: types[key["AttributeName"]] for key in of["KeySchema"]}

        table = keys(described)
        self._keys = {None: Keys(table)}
        self.key_types = types
        for index in described.get("GlobalSecondaryIndexes", ()):
            projected = {*table, *keys(index), *index["Projection"].get("NonKeyAttributes", ())}
            everything = index["Projection"]["ProjectionType"] == "ALL"
            self._keys[index["IndexName"]] = Keys(keys(index), None if everything else projected)

    def keys(self, index: str | None = None) -> Keys:
        """The keys of the table or of an index. Raises ClientError where there is none."""
        if not self._keys:
            raise refusal("ResourceNotFoundException", "Cannot do operations on a non-existent table")
        if index not in self._keys:
            raise invalid(f"The table does not have the specified index: {index}")
        return self._keys[index]

    def searched(self, index: str | None, consistent: bool, _values: Mapping[str, Any]) -> Iterable[Item]:
        """The items that a query looks through: all, where not something faster is made."""
        # A copy: other threads may write meanwhile.
        return list((self.items if index is None and consistent else self.listed).values())

    def expire(self) -> list[Item]:
        """Delete every item whose `ttl` has come, as DynamoDB does some time later; returns them."""
        now = self._clock()
        expired = [key for key, item in self.items.items() if "ttl" in item and int(item["ttl"]["N"]) <= now]
        return [self.items.pop(key) for key in expired]

    def client(self, service: str, **_: Any) -> Any:
        """The one client of the service."""
        return self._clients[service]

    def now(self) -> datetime.datetime:
        """A moment that no other write has: Parameter Store's times are finer than the clock's seconds."""
        self._written += 1
        return datetime.datetime.fromtimestamp(self._clock() + self._written / 1000, datetime.UTC)


class _Request(dict[str, bytes]):
    """A request's parameters as botocore's hooks get them; its `body` is written only for a hook that looks at it."""

    def __init__(self, sent: Any) -> None:
        super().__init__()
        self._sent = sent

    def __missing__(self, _name: str) -> bytes:
        return json.dumps(self._sent).encode() if self._sent else b""


class _Client:
    service = ""

    def __init__(self, aws: MemoryAws) -> None:
        self._aws = aws
        self._handlers: dict[int, Callable[..., None]] = {}
        self.meta = SimpleNamespace(events=SimpleNamespace(register=self._register))

    def _register(self, _event: str, handler: Callable[..., None], unique_id: int) -> None:
        self._handlers[unique_id] = handler

    def _begin(self, operation: str, sent: Any = None) -> None:
        for handler in self._handlers.values():
            handler(f"before-call.{self.service}.{operation}", _Request(sent))

    def get_paginator(self, operation: str) -> Any:
        """A paginator that has one page."""
        return SimpleNamespace(paginate=lambda **asked: iter([getattr(self, operation)(**asked)]))


class _MemoryDynamoDB(_Client):
    service = "dynamodb"

    def create_table(self, TableName: str, BillingMode: str, **described: Any) -> None:  # noqa: N803 - boto3's names
        self._aws.create(described)

    def get_item(self, Key: Any, **asked: Any) -> Any:  # noqa: N803
        self._begin("GetItem")
        _known(asked, _READ)
        item = self._read(consistent=asked.get("ConsistentRead", False)).get(self._key(Key))
        return {"Item": dict(item)} if item is not None else {}

    def batch_get_item(self, RequestItems: Any) -> Any:  # noqa: N803
        self._begin("BatchGetItem")
        ((table, asked),) = RequestItems.items()
        _known(asked, _READ_TOGETHER)
        keys = [self._key(key) for key in asked["Keys"]]
        if len(keys) > _READ_BATCH:
            raise invalid("Too many items requested for the BatchGetItem call")
        if not keys or len(set(keys)) < len(keys):
            raise invalid("Provided list of item keys contains duplicates" if keys else "there are no keys")
        items = self._read(consistent=asked.get("ConsistentRead", False))
        found = [items[key] for key in keys if key in items]
        return {"Responses": {table: [dict(item) for item in found]}, "UnprocessedKeys": {}}

    def query(self, **asked: Any) -> Any:
        self._begin("Query")
        _known(asked, _QUERIED)
        index, consistent = asked.get("IndexName"), asked.get("ConsistentRead", False)
        if index is not None and consistent:
            raise invalid("Consistent reads are not supported on global secondary indexes")
        keys = self._aws.keys(index)
        condition, values = expressions_of(asked)["KeyConditionExpression"], asked["ExpressionAttributeValues"]
        check_key_condition(condition, keys, values)
        plain = plain_values(values)
        # The first part of a key's condition is always an equality, and most items fail it.
        (first, _, at), *rest = condition
        found = [
            item
            for item in self._aws.searched(index, consistent, plain)
            if first in item
            and value_of(item[first]) == plain[at]
            and keys.types.keys() <= item.keys()
            and all(COMPARISONS[compare](value_of(item[name]), plain[value]) for name, compare, value in rest)
        ]
        if len(found) > 1:
            found.sort(key=lambda item: [value_of(item[name]) for name in keys.types])
        if "ExclusiveStartKey" in asked:
            if index is not None:
                raise NotImplementedError("pages of an index")
            after = self._key(asked["ExclusiveStartKey"])
            if after[0] != plain[condition[0][2]]:
                raise invalid("The provided starting key does not match the range key predicate")
            found = [item for item in found if _key(item) > after]
        limit = asked.get("Limit", len(found) + 1)
        projected = keys.projected
        page: dict[str, Any] = {
            "Items": [
                {name: value for name, value in item.items() if projected is None or name in projected}
                for item in found[:limit]
            ]
        }
        if len(found) >= limit:
            page["LastEvaluatedKey"] = {name: found[limit - 1][name] for name in ("pk", "sk")}
        return page

    def put_item(self, Item: Any, **asked: Any) -> dict[str, Any]:  # noqa: N803
        self._begin("PutItem")
        _known(asked, _WRITTEN_IF)
        _check_numbers(Item)
        key = self._key({name: Item[name] for name in ("pk", "sk") if name in Item})
        before = self._checked(key, asked, expressions_of(asked))
        self._write("PutItem", before, dict(Item))
        return {}

    def delete_item(self, Key: Any, **asked: Any) -> dict[str, Any]:  # noqa: N803
        self._begin("DeleteItem")
        _known(asked, _DELETED_IF)
        if asked.get("ReturnValues", "ALL_OLD") != "ALL_OLD":
            raise NotImplementedError(asked["ReturnValues"])
        before = self._checked(self._key(Key), asked, expressions_of(asked))
        self._write("DeleteItem", before, None)
        return {"Attributes": dict(before)} if before and asked.get("ReturnValues") else {}

    def update_item(self, Key: Any, **asked: Any) -> Any:  # noqa: N803
        values = asked.get("ExpressionAttributeValues", {})
        self._begin("UpdateItem", values)
        _known(asked, _UPDATED_IF)
        if asked.get("ReturnValues", "ALL_NEW") != "ALL_NEW":
            raise NotImplementedError(asked["ReturnValues"])
        parsed = expressions_of(asked)
        before = self._checked(self._key(Key), asked, parsed)
        after = dict(before or Key)
        for change in parsed["UpdateExpression"]:
            change(after, before or {}, values)
        self._write(asked["UpdateExpression"], before, after)
        return {"Attributes": dict(after)} if asked.get("ReturnValues") == "ALL_NEW" else {}

    def _read(self, *, consistent: bool) -> Mapping[tuple[str, str], Item]:
        return self._aws.items if consistent else self._aws.listed

    def _key(self, key: Mapping[str, Any]) -> tuple[str, str]:
        if key.keys() != self._aws.keys().types.keys():
            raise invalid("The provided key element does not match the schema")
        _check_keys(key, self._aws.keys().types)
        return _key(key)

    def _checked(self, key: tuple[str, str], asked: Mapping[str, Any], parsed: Mapping[str, Any]) -> "Item | None":
        before = self._aws.items.get(key)
        holds: Condition | None = parsed.get("ConditionExpression")
        values = asked.get("ExpressionAttributeValues", {})
        _check_numbers(values)
        if holds is None or holds(before or {}, plain_values(values)):
            return before
        error = refusal("ConditionalCheckFailedException", "The conditional request failed")
        if before is not None and asked.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD":
            error.response["Item"] = dict(before)  # type: ignore[typeddict-unknown-key]
        raise error

    def _write(self, what: str, before: "Item | None", after: "Item | None") -> None:
        if after is not None:
            _check_keys(after, self._aws.key_types)
            self._aws.items[_key(after)] = after
        elif before is not None:
            del self._aws.items[_key(before)]
        self._aws.after_write(what, before, after)


class _MemoryParameterStore(_Client):
    service = "ssm"

    def get_parameters_by_path(self, Path: str, **_: Any) -> Any:  # noqa: N803
        self._begin("GetParametersByPath")
        parameters = self._aws.parameters
        return {"Parameters": [parameters[name] for name in sorted(parameters) if name.startswith(f"{Path}/")]}

    def get_parameters(self, Names: list[str], **_: Any) -> Any:  # noqa: N803
        self._begin("GetParameters")
        if not 0 < len(set(Names)) == len(Names) <= _PARAMETERS_BATCH:
            raise invalid("1 to 10 names, each once")
        return {"Parameters": [self._aws.parameters[name] for name in Names if name in self._aws.parameters]}

    def put_parameter(self, Name: str, Value: str, **_: Any) -> None:  # noqa: N803
        version = self._aws.parameters.get(Name, {"Version": 0})["Version"] + 1
        modified = {"Version": version, "LastModifiedDate": self._aws.now()}
        self._aws.parameters[Name] = {"Name": Name, "Value": Value, **modified}

    def delete_parameter(self, Name: str) -> None:  # noqa: N803
        del self._aws.parameters[Name]


class _MemoryEventBridge(_Client):
    service = "eventbridge"  # as botocore names it in its hooks

    def put_events(self, Entries: list[Any]) -> Any:  # noqa: N803
        # botocore writes times as seconds.
        entries = [{**entry, "Time": entry["Time"].timestamp()} for entry in Entries]
        self._begin("PutEvents", {"Entries": entries})
        if not 0 < len(Entries) <= _EVENTS_BATCH:
            raise invalid("1 to 10 entries")
        return {"FailedEntryCount": 0, "Entries": [{"EventId": str(at)} for at in range(len(Entries))]}


def _known(asked: Mapping[str, Any], names: frozenset[str]) -> None:
    if not asked.keys() <= names:
        raise NotImplementedError(sorted(asked.keys() - names))


def _key(item: Mapping[str, Any]) -> tuple[str, str]:
    return item["pk"]["S"], item["sk"]["S"]


def _check_keys(item: Mapping[str, Any], types: Mapping[str, str]) -> None:
    for name, kind in types.items():
        if name in item and kind not in item[name]:
            raise invalid("One or more parameter values were invalid: Type mismatch for key")
        if name in item and item[name][kind] == "":
            raise invalid("One or more parameter values are not valid: a key cannot be empty")


def _check_numbers(values: Mapping[str, Any]) -> None:
    for typed in values.values():
        if "N" in typed:
            if typed["N"].isdecimal() and typed["N"].isascii():
                continue
            if not _NUMBER.fullmatch(typed["N"]):
                raise invalid("A value provided cannot be converted into a number")
            if "." in typed["N"]:
                raise NotImplementedError(typed["N"])
        elif "M" in typed:
            _check_numbers(typed["M"])
