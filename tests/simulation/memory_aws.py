"""DynamoDB and Parameter Store in memory, as far as the functions use them: hundreds of times faster than moto.

It understands just the expressions that `token_keeper.table` writes, and refuses all others. `test_memory_aws` shows that
the table behaves the same over this and over moto.
"""

import datetime
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

from botocore.exceptions import ClientError

type Item = dict[str, Any]
type Condition = Callable[[Item, Mapping[str, Any]], bool]
type AfterWrite = Callable[[str, Item | None, Item | None], None]

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda left, right: left == right,
    "<>": lambda left, right: left != right,
    "<=": lambda left, right: left is not None and left <= right,
}
_TOKEN = re.compile(r"\s*(<=|<>|=|\(|\)|,|[:#]?\w+)")


class MemoryAws:
    """Both services. `client` makes clients as `boto3.client` does; `clock` gives epoch seconds.

    `items` holds the table by key, `parameters` the parameters by name. `after_write` is told each write to the table
    when it is done: its update expression (or the operation's name), the item before, and the item after.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.items: dict[tuple[str, str], Item] = {}
        self.parameters: dict[str, dict[str, Any]] = {}
        self.after_write: AfterWrite = lambda _what, _before, _after: None
        self._clock = clock
        self._written = 0
        self._listed: dict[tuple[str, str], Item] = {}
        self._lags_until = 0.0
        self._clients = {"dynamodb": _MemoryDynamoDB(self), "ssm": _MemoryParameterStore(self)}

    def lag(self, seconds: float) -> None:
        """From now on and for so long, the index and reads that are not consistent tell what they tell now."""
        self._listed = {key: dict(item) for key, item in self.items.items()}
        self._lags_until = self._clock() + seconds

    @property
    def listed(self) -> dict[tuple[str, str], Item]:
        """The items as the index knows them, and reads that are not consistent."""
        return self._listed if self._clock() < self._lags_until else self.items

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
            handler(f"before-call.{self.service}.{operation}", {"body": json.dumps(sent).encode() if sent else b""})

    def get_paginator(self, operation: str) -> Any:
        """A paginator that has one page."""
        return SimpleNamespace(paginate=lambda **asked: iter([getattr(self, operation)(**asked)]))


class _MemoryDynamoDB(_Client):
    service = "dynamodb"

    def create_table(self, **_: Any) -> None:
        """The one table is there already."""

    def _seen(self, *, consistent: bool) -> Mapping[tuple[str, str], Item]:
        return self._aws.items if consistent else self._aws.listed

    def get_item(self, Key: Any, ConsistentRead: bool = False, **_: Any) -> Any:  # noqa: N803 - boto3's names
        self._begin("GetItem")
        item = self._seen(consistent=ConsistentRead).get(_key(Key))
        return {"Item": dict(item)} if item is not None else {}

    def batch_get_item(self, RequestItems: Any) -> Any:  # noqa: N803
        self._begin("BatchGetItem")
        ((table, asked),) = RequestItems.items()
        if len(asked["Keys"]) > 100:
            raise ClientError({"Error": {"Code": "ValidationException", "Message": "Too many items"}}, "BatchGetItem")
        seen = self._seen(consistent=asked.get("ConsistentRead", False))
        found = [seen.get(_key(key)) for key in asked["Keys"]]
        return {"Responses": {table: [dict(item) for item in found if item is not None]}, "UnprocessedKeys": {}}

    def query(self, **asked: Any) -> Any:
        self._begin("Query")
        holds = _condition(asked["KeyConditionExpression"])
        values = _plain(asked["ExpressionAttributeValues"])
        _refuse_unused(asked)
        items = self._seen(consistent=asked.get("ConsistentRead", False))
        found = [item for item in items.values() if holds(item, values)]
        found.sort(key=lambda item: _value(item["due_at" if "IndexName" in asked else "sk"]))
        if "ExclusiveStartKey" in asked:
            after = _key(asked["ExclusiveStartKey"])
            found = [item for item in found if _key(item) > after]
        limit = asked.get("Limit", len(found) + 1)
        page: dict[str, Any] = {"Items": [dict(item) for item in found[:limit]]}
        if len(found) >= limit:
            page["LastEvaluatedKey"] = {name: found[limit - 1][name] for name in ("pk", "sk")}
        return page

    def put_item(self, Item: Any, **asked: Any) -> None:  # noqa: N803
        self._begin("PutItem")
        before = self._checked(_key(Item), asked)
        self._write("PutItem", before, dict(Item))

    def delete_item(self, Key: Any, **asked: Any) -> None:  # noqa: N803
        self._begin("DeleteItem")
        before = self._checked(_key(Key), asked)
        self._write("DeleteItem", before, None)

    def update_item(self, Key: Any, UpdateExpression: str, **asked: Any) -> Any:  # noqa: N803
        self._begin("UpdateItem", asked["ExpressionAttributeValues"])
        before = self._checked(_key(Key), {**asked, "UpdateExpression": UpdateExpression})
        after = dict(before or Key)
        for change in _update(UpdateExpression):
            change(after, before or {}, asked["ExpressionAttributeValues"])
        self._write(UpdateExpression, before, after)
        return {"Attributes": dict(after)}

    def _checked(self, key: tuple[str, str], asked: Mapping[str, Any]) -> "Item | None":
        before = self._aws.items.get(key)
        _refuse_unused(asked)
        condition = asked.get("ConditionExpression")
        values = _plain(asked.get("ExpressionAttributeValues", {}))
        if condition is None or _condition(condition)(before or {}, values):
            return before
        error: Any = {"Error": {"Code": "ConditionalCheckFailedException", "Message": "The conditional request failed"}}
        if before is not None and "ReturnValuesOnConditionCheckFailure" in asked:
            error["Item"] = dict(before)
        raise ClientError(error, "conditional write")

    def _write(self, what: str, before: "Item | None", after: "Item | None") -> None:
        if after is not None:
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
        return {"Parameters": [self._aws.parameters[name] for name in Names if name in self._aws.parameters]}

    def put_parameter(self, Name: str, Value: str, **_: Any) -> None:  # noqa: N803
        version = self._aws.parameters.get(Name, {"Version": 0})["Version"] + 1
        modified = {"Version": version, "LastModifiedDate": self._aws.now()}
        self._aws.parameters[Name] = {"Name": Name, "Value": Value, **modified}

    def delete_parameter(self, Name: str) -> None:  # noqa: N803
        del self._aws.parameters[Name]


def _key(item: Mapping[str, Any]) -> tuple[str, str]:
    return item["pk"]["S"], item["sk"]["S"]


def _value(typed: Mapping[str, Any] | None) -> Any:
    if typed is None:
        return None
    return int(typed["N"]) if "N" in typed else typed.get("S", typed)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(value) for name, value in values.items()}


def _refuse_unused(asked: Mapping[str, Any]) -> None:
    """As DynamoDB refuses names and values that no expression uses."""
    used = {token for name in asked if name.endswith("Expression") for token in _tokens_used(asked[name])}
    given = {*asked.get("ExpressionAttributeValues", {}), *asked.get("ExpressionAttributeNames", {})}
    if unused := given - used:
        error: Any = {"Error": {"Code": "ValidationException", "Message": f"unused in expressions: {sorted(unused)}"}}
        raise ClientError(error, "request")


@cache
def _tokens_used(expression: str) -> frozenset[str]:
    return frozenset(_tokens(expression))


def _tokens(expression: str) -> list[str]:
    found = _TOKEN.findall(expression)
    if "".join(found) != re.sub(r"\s", "", expression):
        raise NotImplementedError(expression)
    return found[::-1]  # a stack: the next token stands last


@cache
def _condition(expression: str) -> Condition:
    tokens = _tokens(expression)
    condition = _any_of(tokens)
    if tokens:
        raise NotImplementedError(expression)
    return condition


def _any_of(tokens: list[str]) -> Condition:
    parts = list(_separated(tokens, "OR", lambda: _all_of(tokens)))
    if len(parts) == 1:
        return parts[0]
    return lambda item, values: any(part(item, values) for part in parts)


def _all_of(tokens: list[str]) -> Condition:
    parts = list(_separated(tokens, "AND", lambda: _comparison(tokens)))
    if len(parts) == 1:
        return parts[0]
    return lambda item, values: all(part(item, values) for part in parts)


def _separated[Part](tokens: list[str], separator: str, parse: Callable[[], Part]) -> Iterator[Part]:
    yield parse()
    while tokens and tokens[-1] == separator:
        tokens.pop()
        yield parse()


def _comparison(tokens: list[str]) -> Condition:
    first = tokens.pop()
    if first == "(":
        inner = _any_of(tokens)
        tokens.pop()
        return inner
    if first in ("attribute_exists", "attribute_not_exists"):
        name, wanted = [tokens.pop() for _ in range(3)][1].lstrip("#"), first == "attribute_exists"
        return lambda item, _values: (name in item) == wanted
    compare, operand = _OPERATORS[tokens.pop()], tokens.pop()
    return lambda item, values: compare(_value(item.get(first)), values[operand])


type _Change = Callable[[Item, Item, Mapping[str, Any]], None]


@cache
def _update(expression: str) -> list[_Change]:
    tokens, changes = _tokens(expression), list[_Change]()
    while tokens:
        clause = {"SET": _set, "ADD": _add, "REMOVE": _remove}[tokens.pop()]
        changes += _separated(tokens, ",", lambda clause=clause: clause(tokens))  # type: ignore[misc]
    return changes


def _set(tokens: list[str]) -> _Change:
    name, _equals, source = tokens.pop().lstrip("#"), tokens.pop(), tokens.pop()
    kept = None
    if source == "if_not_exists":
        _opening, kept, _comma, source, _closing = (tokens.pop() for _ in range(5))

    def change(after: Item, before: Item, values: Mapping[str, Any]) -> None:
        after[name] = before[kept] if kept in before else values[source]

    return change


def _add(tokens: list[str]) -> _Change:
    name, source = tokens.pop(), tokens.pop()

    def change(after: Item, before: Item, values: Mapping[str, Any]) -> None:
        after[name] = {"N": str((_value(before.get(name)) or 0) + _value(values[source]))}

    return change


def _remove(tokens: list[str]) -> _Change:
    name = tokens.pop()
    return lambda after, _before, _values: after.pop(name, None) and None
