"""The expressions in DynamoDB's requests: parsed once, refused where DynamoDB would refuse them."""

import operator
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from botocore.exceptions import ClientError
from moto.dynamodb.parsing.reserved_keywords import ReservedKeywords

type Item = dict[str, Any]
type Condition = Callable[[Item, Mapping[str, Any]], bool]
type Change = Callable[[Item, Item, Mapping[str, Any]], None]

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TOKEN = re.compile(r"\s*(<=|<>|>=|=|<|>|\(|\)|,|[:#]?\w+)")
_RESERVED = frozenset(ReservedKeywords.get_reserved_keywords())
_EXPRESSIONS = ("KeyConditionExpression", "ConditionExpression", "UpdateExpression")
PLACEHOLDERS = ("ExpressionAttributeNames", "ExpressionAttributeValues")


@dataclass(frozen=True)
class Keys:
    """The key attributes of the table or of an index, with their types; `projected`: what an index holds besides."""

    types: Mapping[str, str]
    projected: Collection[str] | None = None


def refusal(code: str, message: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "DynamoDB")


def invalid(message: str) -> ClientError:
    return refusal("ValidationException", message)


def value_of(typed: Mapping[str, Any] | None) -> Any:
    if typed is None:
        return None
    if "S" in typed:
        return typed["S"]
    return int(typed["N"]) if "N" in typed else typed


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value_of(value) for name, value in values.items()}


def expressions_of(asked: Mapping[str, Any]) -> dict[str, Any]:
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
    given = dict(zip(PLACEHOLDERS, (names, values), strict=True))
    for what, placeholders in given.items():
        if placeholders == ():
            raise invalid(f"{what} must not be empty")
        if placeholders and not expressions:
            raise invalid(f"{what} can only be specified when using expressions")
    used: set[str] = set()
    parsed = {kind: _Parser(kind, text, dict(names or ()), values or (), used).parse() for kind, text in expressions}
    for what, keys in zip(PLACEHOLDERS, ({name for name, _ in names or ()}, set(values or ())), strict=True):
        if unused := sorted(keys - used):
            raise invalid(f"Value provided in {what} unused in expressions: keys: {{{', '.join(unused)}}}")
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
        return invalid(f"Invalid {self._kind}: {what}: {self._text}")

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
        name, operation, at = self._path(), self._next(*COMPARISONS), self._placeholder()
        compare = COMPARISONS[operation]
        if operation in ("=", "<>"):
            return lambda item, values: compare(value_of(item.get(name)), values[at])

        def holds(item: Item, values: Mapping[str, Any]) -> bool:
            left, right = value_of(item.get(name)), values[at]
            return type(left) is type(right) and compare(left, right)

        return holds

    def _key_condition(self) -> list[tuple[str, str, str]]:
        """Each part's attribute, operator and value."""

        def part() -> tuple[str, str, str]:
            return self._path(), self._next(*COMPARISONS), self._placeholder()

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
            raise invalid(
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
                raise invalid("An operand in the update expression has an incorrect data type")
            after[name] = {"N": str(sum(map(value_of, terms)))}

        return name, change

    def _remove(self) -> tuple[str, Change]:
        name = self._path()

        def change(after: Item, _before: Item, _values: Mapping[str, Any]) -> None:
            after.pop(name, None)

        return name, change


def check_key_condition(parts: Iterable[tuple[str, str, str]], keys: Keys, values: Mapping[str, Any]) -> None:
    (name, compare, _), *others = parts
    first, *rest = keys.types
    if name != first or compare != "=" or [name for name, *_ in others] not in ([], rest):
        raise invalid("Query condition missed key schema element")
    if any(keys.types[name] not in values[at] for name, _, at in parts):
        raise invalid("One or more parameter values were invalid: Condition parameter type does not match schema type")
