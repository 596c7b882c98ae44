"""The consumers' keys in the table. Of a key only its SHA-256 is kept."""

import secrets
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from botocore import exceptions as aws

from infra.cli.aws_connection import Json
from infra.cli.deployed_stack import DeployedStack
from infra.errors import OperatorError
from token_keeper.model import ACCOUNT_NAME, digest

CONSUMERS = "consumers"
"""The partition of the table with an item for each consumer key, named by its SHA-256."""

CONSUMER_NAMES = "consumer_names"
"""The partition with an item for each consumer's name, which lists the keys that the command line has made for it."""


@dataclass(frozen=True)
class ConsumerKey:
    """A consumer's key, known by its SHA-256, and what it permits.

    `cache_for`: the most seconds of a token's life that the consumer gets. `rotated_at`: since when there is a newer key
    (epoch seconds). `is_registered`: whether the command line has made it.
    """

    name: str
    key_digest: str
    accounts: tuple[str, ...]
    may_report: bool
    cache_for: int | None
    rotated_at: int | None
    is_registered: bool
    item: Json = field(repr=False)


def new_consumer(
    name: str, accounts: Iterable[str], *, may_report: bool, now: int, cache_for: int | None = None
) -> tuple[str, Json]:
    """A consumer's key, which is kept nowhere, and its item for the table.

    `accounts`: names, or patterns with `*`. `now`: epoch seconds. `cache_for`: the most seconds of a token's life that it
    gets.
    """
    key, item = _new_key(now)
    item |= {"name": {"S": name}, "accounts": {"S": " ".join(accounts)}, "may_report": {"N": str(int(may_report))}}
    return key, item | ({} if cache_for is None else {"cache_for": {"N": str(cache_for)}})


def _new_key(now: int) -> tuple[str, Json]:
    """A consumer's key, `wtk_` and 32 random bytes in base64url, and what an item says of the key alone."""
    key = "wtk_" + secrets.token_urlsafe(32)
    return key, {"pk": {"S": CONSUMERS}, "sk": {"S": digest(key)}, "created_at": {"N": str(now)}}


def list_keys(stack: DeployedStack) -> list[ConsumerKey]:
    """The consumers' keys, by name, the newest of each first."""
    registered = {(item["sk"]["S"], key) for item in stack.partition(CONSUMER_NAMES) for key in item["keys"]["SS"]}
    keys = [_consumer_key(item, registered) for item in stack.partition(CONSUMERS)]
    return sorted(keys, key=lambda key: (key.name, key.rotated_at is not None))


def add_consumer(
    stack: DeployedStack, name: str, accounts: Iterable[str], *, may_report: bool, cache_for: int | None = None
) -> str:
    """Let another consumer read these accounts; returns its key, which is kept nowhere."""
    key, item = new_consumer(name, accounts, may_report=may_report, now=int(time.time()), cache_for=cache_for)
    entry = {"pk": {"S": CONSUMER_NAMES}, "sk": {"S": name}, "keys": {"SS": [digest(key)]}}
    # Of two operators who add the same name at once, the condition lets one through.
    is_new = {"ConditionExpression": "attribute_not_exists(pk)"}
    exists = f"The consumer '{name}' exists: choose another name, rotate its key, or revoke it first."
    if any(consumer.name == name for consumer in list_keys(stack)):
        raise OperatorError(exists)
    _write(stack, [{"Put": {"Item": entry, **is_new}}, {"Put": {"Item": item}}], refused=exists)
    return key


def rotate_consumer(stack: DeployedStack, name: str) -> str:
    """Give the consumer a second key, which is returned; the first works until `revoke_consumer` with `old_only`."""
    current, *others = _keys_of(stack, name)
    if others:
        raise OperatorError(
            f"'{name}' has two keys already: revoke the old one first, with `consumers revoke {name} --old`."
        )
    key, item = _new_key(int(time.time()))
    item = {**current.item, **item}
    old = {"pk": {"S": CONSUMERS}, "sk": {"S": current.key_digest}}
    mark = {
        "Key": old,
        "UpdateExpression": "SET rotated_at = :now",
        "ConditionExpression": "attribute_exists(pk) AND attribute_not_exists(rotated_at)",
        "ExpressionAttributeValues": {":now": item["created_at"]},
    }
    register = {
        "Key": {"pk": {"S": CONSUMER_NAMES}, "sk": {"S": name}},
        "UpdateExpression": "ADD #keys :keys",
        "ExpressionAttributeNames": {"#keys": "keys"},
        "ExpressionAttributeValues": {":keys": {"SS": [digest(key), current.key_digest]}},
    }
    changed = f"The consumer '{name}' was changed by another operator just now: look again."
    _write(stack, [{"Update": mark}, {"Put": {"Item": item}}, {"Update": register}], refused=changed)
    return key


def revoke_consumer(stack: DeployedStack, name: str, *, old_only: bool = False) -> None:
    """Let the consumer's keys be valid no longer; with `old_only`, those that were replaced."""
    keys = _keys_of(stack, name)
    revoked = [key for key in keys if key.rotated_at is not None] if old_only else keys
    if not revoked:
        raise OperatorError(f"'{name}' has no old key: `consumers rotate {name}` makes a new one first.")
    deletions = [{"Delete": {"Key": {"pk": {"S": CONSUMERS}, "sk": {"S": key.key_digest}}}} for key in revoked]
    register: Json = {"Key": {"pk": {"S": CONSUMER_NAMES}, "sk": {"S": name}}}
    if len(revoked) < len(keys):
        register |= {
            "UpdateExpression": "DELETE #keys :keys",
            "ExpressionAttributeNames": {"#keys": "keys"},
            "ExpressionAttributeValues": {":keys": {"SS": [key.key_digest for key in revoked]}},
        }
    _write(stack, [*deletions, {"Update" if len(revoked) < len(keys) else "Delete": register}])


def _keys_of(stack: DeployedStack, name: str) -> list[ConsumerKey]:
    keys = [key for key in list_keys(stack) if key.name == name]
    if not keys:
        raise OperatorError(f"There is no consumer '{name}': `token-keeper consumers list` shows those there are.")
    return keys


def _write(stack: DeployedStack, writes: list[Json], *, refused: str = "") -> None:
    """Write all of it or nothing; `refused` says what it means where a condition does not hold."""
    named = [{kind: {"TableName": stack.table, **write} for kind, write in operation.items()} for operation in writes]
    with stack.aws.errors_in_words(stack.table):
        try:
            stack.aws.client("dynamodb").transact_write_items(TransactItems=named)
        except aws.ClientError as error:
            if refused and error.response["Error"]["Code"] == "TransactionCanceledException":
                raise OperatorError(refused) from None
            raise


def _consumer_key(item: Json, registered: Collection[tuple[str, str]]) -> ConsumerKey:
    """A consumer's key of its item, which another program may have written in any form."""
    values = {name: next(iter(value.values())) for name, value in item.items()}
    name, key_digest = str(values.get("name", "")), str(values["sk"])
    return ConsumerKey(
        name=name,
        key_digest=key_digest,
        accounts=tuple(str(values.get("accounts", "")).split()),
        may_report=str(values.get("may_report")) == "1",
        cache_for=_whole(values.get("cache_for")),
        rotated_at=_whole(values.get("rotated_at")),
        is_registered=ACCOUNT_NAME.fullmatch(name) is not None and (name, key_digest) in registered,
        item=item,
    )


def _whole(value: object) -> int | None:
    text = str(value)
    return int(text) if text.isdecimal() else None
