"""DynamoDB, Parameter Store and EventBridge in memory, as far as the functions use them: hundreds of times faster than moto.

It understands just the requests that `token_keeper.table.dynamodb` sends. What DynamoDB refuses it refuses, too; what it does not know
raises NotImplementedError. `test_memory_aws` compares it with DynamoDB Local and with moto.
"""

import datetime
import json
import operator
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

from botocore.exceptions import ClientError
from moto.dynamodb.parsing.reserved_keywords import ReservedKeywords

type Item = dict[str, Any]
type Condition = Callable[[Item, Mapping[str, Any]], bool]
type Change = Callable[[Item, Item, Mapping[str, Any]], None]
type AfterWrite = Callable[[str, Item | None, Item | None], None]

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TOKEN = re.compile(r"\s*(<=|<>|>=|=|<|>|\(|\)|,|[:#]?\w+)")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_RESERVED = frozenset(ReservedKeywords.get_reserved_keywords())
_EXPRESSIONS = ("KeyConditionExpression", "ConditionExpression", "UpdateExpression")
_PLACEHOLDERS = ("ExpressionAttributeNames", "ExpressionAttributeValues")
_WRITTEN_IF = frozenset({*_PLACEHOLDERS, "TableName", "ConditionExpression", "ReturnValuesOnConditionCheckFailure"})
_DELETED_IF = _WRITTEN_IF | {"ReturnValues"}
_UPDATED_IF = _DELETED_IF | {"UpdateExpression"}
_READ = frozenset({"TableName", "ConsistentRead"})
_READ_TOGETHER = frozenset({"Keys", "ConsistentRead"})
_QUERIED = _READ | {*_PLACEHOLDERS, "IndexName", "KeyConditionExpression", "Limit", "ExclusiveStartKey"}
_READ_BATCH, _PARAMETERS_BATCH, _EVENTS_BATCH = 100, 10, 10
"""The most that BatchGetItem, GetParameters and PutEvents take."""


@dataclass(frozen=True)
class Keys:
    """The key attributes of the table or of an index, with their types; `projected`: what an index holds besides."""

    types: Mapping[str, str]
    projected: Collection[str] | None = None


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
            raise _refusal("ResourceNotFoundException", "Cannot do operations on a non-existent table")
        if index not in self._keys:
            raise _invalid(f"The table does not have the specified index: {index}")
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
            raise _invalid("Too many items requested for the BatchGetItem call")
        if not keys or len(set(keys)) < len(keys):
            raise _invalid("Provided list of item keys contains duplicates" if keys else "there are no keys")
        items = self._read(consistent=asked.get("ConsistentRead", False))
        found = [items[key] for key in keys if key in items]
        return {"Responses": {table: [dict(item) for item in found]}, "UnprocessedKeys": {}}

    def query(self, **asked: Any) -> Any:
        self._begin("Query")
        _known(asked, _QUERIED)
        index, consistent = asked.get("IndexName"), asked.get("ConsistentRead", False)
        if index is not None and consistent:
            raise _invalid("Consistent reads are not supported on global secondary indexes")
        keys = self._aws.keys(index)
        condition, values = _parsed(asked)["KeyConditionExpression"], asked["ExpressionAttributeValues"]
        _check_key_condition(condition, keys, values)
        plain = _plain(values)
        # The first part of a key's condition is always an equality, and most items fail it.
        (first, _, at), *rest = condition
        found = [
            item
            for item in self._aws.searched(index, consistent, plain)
            if first in item
            and _value(item[first]) == plain[at]
            and keys.types.keys() <= item.keys()
            and all(_COMPARISONS[compare](_value(item[name]), plain[value]) for name, compare, value in rest)
        ]
        if len(found) > 1:
            found.sort(key=lambda item: [_value(item[name]) for name in keys.types])
        if "ExclusiveStartKey" in asked:
            if index is not None:
                raise NotImplementedError("pages of an index")
            after = self._key(asked["ExclusiveStartKey"])
            if after[0] != plain[condition[0][2]]:
                raise _invalid("The provided starting key does not match the range key predicate")
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
        before = self._checked(key, asked, _parsed(asked))
        self._write("PutItem", before, dict(Item))
        return {}

    def delete_item(self, Key: Any, **asked: Any) -> dict[str, Any]:  # noqa: N803
        self._begin("DeleteItem")
        _known(asked, _DELETED_IF)
        if asked.get("ReturnValues", "ALL_OLD") != "ALL_OLD":
            raise NotImplementedError(asked["ReturnValues"])
        before = self._checked(self._key(Key), asked, _parsed(asked))
        self._write("DeleteItem", before, None)
        return {"Attributes": dict(before)} if before and asked.get("ReturnValues") else {}

    def update_item(self, Key: Any, **asked: Any) -> Any:  # noqa: N803
        values = asked.get("ExpressionAttributeValues", {})
        self._begin("UpdateItem", values)
        _known(asked, _UPDATED_IF)
        if asked.get("ReturnValues", "ALL_NEW") != "ALL_NEW":
            raise NotImplementedError(asked["ReturnValues"])
        parsed = _parsed(asked)
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
            raise _invalid("The provided key element does not match the schema")
        _check_keys(key, self._aws.keys().types)
        return _key(key)

    def _checked(self, key: tuple[str, str], asked: Mapping[str, Any], parsed: Mapping[str, Any]) -> "Item | None":
        before = self._aws.items.get(key)
        holds: Condition | None = parsed.get("ConditionExpression")
        values = asked.get("ExpressionAttributeValues", {})
        _check_numbers(values)
        if holds is None or holds(before or {}, _plain(values)):
            return before
        error = _refusal("ConditionalCheckFailedException", "The conditional request failed")
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
            raise _invalid("1 to 10 names, each once")
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
            raise _invalid("1 to 10 entries")
        return {"FailedEntryCount": 0, "Entries": [{"EventId": str(at)} for at in range(len(Entries))]}


def _refusal(code: str, message: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "DynamoDB")


def _invalid(message: str) -> ClientError:
    return _refusal("ValidationException", message)


def _known(asked: Mapping[str, Any], names: frozenset[str]) -> None:
    if not asked.keys() <= names:
        raise NotImplementedError(sorted(asked.keys() - names))


def _key(item: Mapping[str, Any]) -> tuple[str, str]:
    return item["pk"]["S"], item["sk"]["S"]


def _check_keys(item: Mapping[str, Any], types: Mapping[str, str]) -> None:
    for name, kind in types.items():
        if name in item and kind not in item[name]:
            raise _invalid("One or more parameter values were invalid: Type mismatch for key")
        if name in item and item[name][kind] == "":
            raise _invalid("One or more parameter values are not valid: a key cannot be empty")


def _check_numbers(values: Mapping[str, Any]) -> None:
    for typed in values.values():
        if "N" in typed:
            if typed["N"].isdecimal() and typed["N"].isascii():
                continue
            if not _NUMBER.fullmatch(typed["N"]):
                raise _invalid("A value provided cannot be converted into a number")
            if "." in typed["N"]:
                raise NotImplementedError(typed["N"])
        elif "M" in typed:
            _check_numbers(typed["M"])


def _value(typed: Mapping[str, Any] | None) -> Any:
    if typed is None:
        return None
    if "S" in typed:
        return typed["S"]
    return int(typed["N"]) if "N" in typed else typed


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(value) for name, value in values.items()}


# --- expressions


def _parsed(asked: Mapping[str, Any]) -> dict[str, Any]:
    """A request's expressions: the condition to hold, the changes to make, the parts of the key's condition.

    Raises ClientError where DynamoDB would refuse them for what they say or what they leave unused.
    """
    names, values = asked.get("ExpressionAttributeNames"), asked.get("ExpressionAttributeValues")
    return _parse(
        tuple([(kind, asked[kind]) for kind in _EXPRESSIONS if kind in asked]),
        None if names is None else tuple(names.items()),
        None if values is None else tuple(values),
    )


@cache
def _parse(
    expressions: tuple[tuple[str, str], ...],
    names: tuple[tuple[str, str], ...] | None,
    values: tuple[str, ...] | None,
) -> dict[str, Any]:
    given = dict(zip(_PLACEHOLDERS, (names, values), strict=True))
    for what, placeholders in given.items():
        if placeholders == ():
            raise _invalid(f"{what} must not be empty")
        if placeholders and not expressions:
            raise _invalid(f"{what} can only be specified when using expressions")
    used: set[str] = set()
    parsed = {kind: _Parser(kind, text, dict(names or ()), values or (), used).parse() for kind, text in expressions}
    for what, keys in zip(_PLACEHOLDERS, ({name for name, _ in names or ()}, set(values or ())), strict=True):
        if unused := sorted(keys - used):
            raise _invalid(f"Value provided in {what} unused in expressions: keys: {{{', '.join(unused)}}}")
    return parsed


class _Parser:
    """Parses one expression. `used` collects the placeholders that it names."""

    def __init__(self, kind: str, text: str, names: Mapping[str, str], values: Collection[str], used: set[str]) -> None:
        tokens = _TOKEN.findall(text)
        if "".join(tokens) != re.sub(r"\s", "", text):
            raise NotImplementedError(text)
        self._tokens = tokens[::-1]  # a stack: the next token stands last
        self._kind, self._text, self._names, self._values, self._used = kind, text, names, values, used

    def parse(self) -> Any:
        what = {"KeyConditionExpression": self._key_condition, "UpdateExpression": self._update}
        parsed = what.get(self._kind, self._any_of)()
        if self._tokens:
            raise self._wrong("Syntax error")
        return parsed

    def _wrong(self, what: str) -> ClientError:
        return _invalid(f"Invalid {self._kind}: {what}: {self._text}")

    def _next(self, *expected: str) -> str:
        if not self._tokens:
            raise self._wrong("Syntax error")
        token: str = self._tokens.pop()
        if expected and token not in expected:
            raise NotImplementedError(self._text)
        return token

    def _path(self) -> str:
        token = self._next()
        if token.startswith("#"):
            if token not in self._names:
                raise self._wrong(
                    f"An expression attribute name used in the document path is not defined; attribute name: {token}"
                )
            self._used.add(token)
            return self._names[token]
        if not token[0].isalpha():
            raise self._wrong("Operator or function requires a document path")
        if token.upper() in _RESERVED:
            raise self._wrong(f"Attribute name is a reserved keyword; reserved keyword: {token}")
        return token

    def _placeholder(self) -> str:
        token = self._next()
        if not token.startswith(":"):
            raise NotImplementedError(self._text)
        if token not in self._values:
            raise self._wrong(
                f"An expression attribute value used in expression is not defined; attribute value: {token}"
            )
        self._used.add(token)
        return token

    def _separated[Part](self, separator: str, parse: Callable[[], Part]) -> Iterator[Part]:
        yield parse()
        while self._tokens and self._tokens[-1] == separator:
            self._tokens.pop()
            yield parse()

    def _any_of(self) -> Condition:
        parts = list(self._separated("OR", self._all_of))
        return parts[0] if len(parts) == 1 else lambda item, values: any(part(item, values) for part in parts)

    def _all_of(self) -> Condition:
        parts = list(self._separated("AND", self._condition))
        return parts[0] if len(parts) == 1 else lambda item, values: all(part(item, values) for part in parts)

    def _condition(self) -> Condition:
        if self._tokens and self._tokens[-1] == "(":
            self._next("(")
            inner = self._any_of()
            self._next(")")
            return inner
        if self._tokens and self._tokens[-1] in ("attribute_exists", "attribute_not_exists"):
            wanted = self._next() == "attribute_exists"
            self._next("(")
            name = self._path()
            self._next(")")
            return lambda item, _values: (name in item) == wanted
        name, operation, at = self._path(), self._next(*_COMPARISONS), self._placeholder()
        compare = _COMPARISONS[operation]
        if operation in ("=", "<>"):
            return lambda item, values: compare(_value(item.get(name)), values[at])

        def holds(item: Item, values: Mapping[str, Any]) -> bool:
            left, right = _value(item.get(name)), values[at]
            return type(left) is type(right) and compare(left, right)

        return holds

    def _key_condition(self) -> list[tuple[str, str, str]]:
        """Each part's attribute, operator and value."""

        def part() -> tuple[str, str, str]:
            return self._path(), self._next(*_COMPARISONS), self._placeholder()

        parts = list(self._separated("AND", part))
        if self._tokens[-1:] == ["OR"] or any(compare == "<>" for _, compare, _ in parts):
            raise self._wrong("Invalid operator used in KeyConditionExpression")
        return parts

    def _update(self) -> list[Change]:
        clauses = {"SET": self._set, "ADD": self._add, "REMOVE": self._remove}
        changes: list[tuple[str, Change]] = []
        begun: set[str] = set()
        while self._tokens or not begun:
            clause = self._next(*clauses)
            if clause in begun:
                raise self._wrong(f'The "{clause}" section can only be used once in an update expression')
            begun.add(clause)
            changes += self._separated(",", clauses[clause])
        changed = [name for name, _ in changes]
        if len(set(changed)) < len(changed):
            raise self._wrong("Two document paths overlap with each other")
        if {"pk", "sk"} & set(changed):
            raise _invalid(
                "One or more parameter values were invalid: Cannot update an attribute that is part of the key"
            )
        return [change for _, change in changes]

    def _set(self) -> tuple[str, Change]:
        name, _equals = self._path(), self._next("=")
        kept = None
        if self._tokens and self._tokens[-1] == "if_not_exists":
            self._next()
            self._next("(")
            kept, _comma, at = self._path(), self._next(","), self._placeholder()
            self._next(")")
        else:
            at = self._placeholder()

        def change(after: Item, before: Item, values: Mapping[str, Any]) -> None:
            after[name] = before[kept] if kept in before else values[at]

        return name, change

    def _add(self) -> tuple[str, Change]:
        name, at = self._path(), self._placeholder()

        def change(after: Item, before: Item, values: Mapping[str, Any]) -> None:
            terms = (before.get(name, {"N": "0"}), values[at])
            if any("N" not in term for term in terms):
                raise _invalid("An operand in the update expression has an incorrect data type")
            after[name] = {"N": str(sum(map(_value, terms)))}

        return name, change

    def _remove(self) -> tuple[str, Change]:
        name = self._path()

        def change(after: Item, _before: Item, _values: Mapping[str, Any]) -> None:
            after.pop(name, None)

        return name, change


def _check_key_condition(parts: Iterable[tuple[str, str, str]], keys: Keys, values: Mapping[str, Any]) -> None:
    (name, compare, _), *others = parts
    first, *rest = keys.types
    if name != first or compare != "=" or [name for name, *_ in others] not in ([], rest):
        raise _invalid("Query condition missed key schema element")
    if any(keys.types[name] not in values[at] for name, _, at in parts):
        raise _invalid("One or more parameter values were invalid: Condition parameter type does not match schema type")
