"""Adapter: the accounts' records in Parameter Store, one SecureString `<path>/<account>` each. The only reader of secrets."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import batched
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from token_keeper.errors import InvalidRecordError, KeeperError, ParametersUnavailableError
from token_keeper.model import ACCOUNT_NAME, CORP_TICKETS, PUBLIC_TICKETS, Account, Kind
from token_keeper.untrusted import json_object

if TYPE_CHECKING:
    from mypy_boto3_ssm import SSMClient

GET_PARAMETERS_BATCH = 10
"""The most names that Parameter Store's GetParameters takes, and the most that GetParametersByPath returns."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SECRET = re.compile(r"[!-~]{1,256}")

_CORP = ("corpid", {"corpid", "secret", "tickets"}, (Kind.CORP_TOKEN,), CORP_TICKETS)
_PUBLIC = ("appid", {"appid", "secret", "endpoint", "tickets"}, (Kind.TOKEN, Kind.STABLE_TOKEN), PUBLIC_TICKETS)
"""What names an account, all fields of its record, and what may stand in `endpoint` (by default the first) and `tickets`."""

_THROTTLED = {"ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException"}
"""Codes of Parameter Store and KMS that a second call would only meet again."""


def parse_record(name: str, value: str) -> Account:
    """Make an account of its parameter's value (JSON with `appid` or `corpid`, `secret`, `endpoint`, `tickets`).

    A byte order mark and line ends around the JSON, as editors leave them, are harmless.
    Raises `InvalidRecordError` that says what is wrong and never repeats anything but field names.
    """
    record = json_object(value)
    if record is None:
        raise InvalidRecordError("the value is not a JSON object")
    identity, allowed, endpoints, known_tickets = _CORP if "corpid" in record else _PUBLIC
    if missing := [field for field in (identity, "secret") if field not in record]:
        raise InvalidRecordError(f"the field {missing[0]} is missing")
    if unknown := record.keys() - allowed:
        # A field name can be a secret that was pasted in the wrong place, so it is counted and not shown.
        raise InvalidRecordError(f"{len(unknown)} unknown field(s); known are {', '.join(sorted(allowed))}")
    if not _matches(_ID, record[identity]):
        raise InvalidRecordError(f"{identity} must be 1 to 64 letters, digits, - or _")
    if not _matches(_SECRET, record["secret"]):
        raise InvalidRecordError("secret must be 1 to 256 printable characters without blanks")
    endpoint = record.get("endpoint", endpoints[0])
    if endpoint not in endpoints:
        raise InvalidRecordError(f"endpoint must be one of {', '.join(endpoints)}")
    tickets = record.get("tickets", [])
    if not isinstance(tickets, list) or any(ticket not in known_tickets for ticket in tickets):
        raise InvalidRecordError(f"tickets must be a list of {', '.join(known_tickets)}")
    return Account(name, record[identity], record["secret"], Kind(endpoint), tuple(dict.fromkeys(tickets)))


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


@dataclass(frozen=True)
class AccountRecord:
    """An account's record as it was found: `content` is None where there is no parameter of that name."""

    version: str | None
    content: Account | KeeperError | None


class ParameterStore:
    """The records below `path`."""

    def __init__(self, ssm: "SSMClient", path: str) -> None:
        self._ssm = ssm
        self._path = path.rstrip("/")

    def name_of(self, parameter: str) -> str | None:
        """The account whose parameter has this name; None where it is no account's."""
        prefix, _, name = parameter.rpartition("/")
        return name if prefix == self._path and ACCOUNT_NAME.fullmatch(name) else None

    def versions(self) -> dict[str, str]:
        """Every account's name with a version that changes whenever its record does. Decrypts nothing.

        Raises `ParametersUnavailableError`.
        """
        with _translated_errors():
            pages = self._ssm.get_paginator("get_parameters_by_path").paginate(Path=self._path, WithDecryption=False)
            found = [parameter for page in pages for parameter in page["Parameters"]]
        return {name: record_version(parameter) for parameter in found if (name := self.name_of(parameter["Name"]))}

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, AccountRecord]]:
        """Yield each name with its record, ten at a time as Parameter Store hands them out; raises nothing."""
        for batch in batched(names, GET_PARAMETERS_BATCH, strict=False):
            try:
                yield from self._get(batch).items()
            except ParametersUnavailableError as error:
                yield from self._get_each(batch, error)

    def read_one(self, name: str) -> AccountRecord:
        """The account's record. Raises `ParametersUnavailableError`."""
        return self._get([name])[name]

    def _get(self, names: Sequence[str]) -> dict[str, AccountRecord]:
        parameters = [f"{self._path}/{name}" for name in names if ACCOUNT_NAME.fullmatch(name)]
        with _translated_errors():
            found = self._ssm.get_parameters(Names=parameters, WithDecryption=True)["Parameters"] if parameters else []
        return dict.fromkeys(names, AccountRecord(None, None)) | dict(map(_named_record, found))

    def _get_each(self, names: Sequence[str], error: ParametersUnavailableError) -> Iterator[tuple[str, AccountRecord]]:
        """One parameter that cannot be decrypted has all ten refused: so each is read by itself, until Parameter Store is down.

        `error`: what the last call met, at first the one for all of them.
        """
        for name in names:
            try:
                record = self.read_one(name) if error.refused else AccountRecord(None, error)
            except ParametersUnavailableError as own_error:
                error, record = own_error, AccountRecord(None, own_error)
            yield name, record


def _named_record(parameter: Any) -> tuple[str, AccountRecord]:
    name, version = parameter["Name"].rpartition("/")[2], record_version(parameter)
    try:
        return name, AccountRecord(version, parse_record(name, parameter["Value"]))
    except InvalidRecordError as error:
        return name, AccountRecord(version, error)


def record_version(parameter: Any) -> str:
    """What names the state of a parameter, as Parameter Store returns it: another after each change."""
    # The version number alone starts at 1 again when a parameter is deleted and created.
    return f"{parameter['Version']}@{parameter['LastModifiedDate'].timestamp():.3f}"


def written_at(version: str | None) -> float:
    """When that version of a record was written, in epoch seconds; 0 where there is none."""
    return float(version.partition("@")[2]) if version else 0


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
        refused = status < 500 and code not in _THROTTLED
        # AWS may quote what was sent; a traceback that shows causes would show that.
        raise ParametersUnavailableError(f"Parameter Store: {code}", refused=refused) from None
    except BotoCoreError as error:
        raise ParametersUnavailableError(f"Parameter Store: {type(error).__name__}") from None
