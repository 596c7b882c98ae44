"""What the keeper talks about: accounts, credentials, and what became of a renewal. No I/O.

Times are UTC wall clock in whole epoch seconds, durations whole seconds, unless a name says otherwise.
"""

import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

ACCESS_TOKEN = "access_token"
"""The name of every account's token credential; a ticket credential has that of its ticket type."""

ACCOUNT_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")

CONSUMER_KEY = re.compile(r"wtk_[A-Za-z0-9_-]{43}")
"""`wtk_` and 32 random bytes in base64url without padding."""

PUBLIC_TICKETS = ("jsapi", "wx_card")
CORP_TICKETS = ("jsapi", "agent_config")


class Kind(StrEnum):
    """What a credential is at WeChat; it decides the rules of its renewal (see `renewal.RULES`)."""

    TOKEN = "token"
    STABLE_TOKEN = "stable_token"
    CORP_TOKEN = "corp_token"
    TICKET = "ticket"
    CORP_TICKET = "corp_ticket"


_FOREIGN_REMEDY = (
    "Another client fetches tokens with this AppSecret, which invalidates this one early. Find it and switch it to this "
    "server; until then, use `stable_token`, which is isolated."
)
_CORP_REMEDY = (
    "WeCom refused this token before its end. WeCom may end tokens early; where it happens often, another client of this app "
    "may be the cause."
)


def foreign_remedy(kind: Kind) -> str:
    """What to do about a token that ended early, and not because of us."""
    return _CORP_REMEDY if kind is Kind.CORP_TOKEN else _FOREIGN_REMEDY


class FailureClass(StrEnum):
    """What a failure calls for."""

    TRANSIENT = "transient"
    QUOTA = "quota"
    CREDENTIAL = "credential"
    CONFIGURATION = "configuration"
    CONFIRMATION = "confirmation"
    DEFECT = "defect"
    UNKNOWN = "unknown"

    @classmethod
    def _missing_(cls, value: object) -> "FailureClass":
        return cls.UNKNOWN  # of another release


def fingerprint(value: str) -> str:
    """Name a secret value without showing it: the first 16 hex digits of its SHA-256."""
    return digest(value)[:16]


def digest(value: str) -> str:
    """The SHA-256 of a secret value in lower-case hex: what is stored of a consumer's key."""
    return hashlib.sha256(value.encode()).hexdigest()


def rfc3339(epoch_seconds: int) -> str:
    """Write a time as the API does: RFC 3339, UTC, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch_seconds))


@dataclass(frozen=True)
class Account:
    """One account's record. `app_id` is the appid, or the corpid of a WeCom app."""

    name: str
    app_id: str
    secret: str = field(repr=False)
    kind: Kind
    tickets: tuple[str, ...] = ()

    @property
    def credentials(self) -> dict[str, Kind]:
        """The credentials to keep, by name."""
        ticket = Kind.CORP_TICKET if self.kind is Kind.CORP_TOKEN else Kind.TICKET
        return {ACCESS_TOKEN: self.kind, **dict.fromkeys(self.tickets, ticket)}

    @property
    def claim(self) -> str:
        """What must not be kept twice: an appid, whatever the endpoint; at WeCom an app, known by its secret."""
        return f"{self.kind}#{fingerprint(self.secret)}" if self.kind is Kind.CORP_TOKEN else str(Kind.TOKEN)


@dataclass(frozen=True)
class Consumer:
    """Who holds a key of the WeChat-compatible API: the accounts it may read (names, or patterns with `*`), and whether
    its reports of a token that does not work are acted upon. `cache_for`: the most seconds of `expires_in` it gets,
    for an SDK that never asks again before these are over; None: as many as are promised."""

    name: str
    key_digest: str
    accounts: tuple[str, ...]
    may_report: bool
    cache_for: int | None = None

    def may_read(self, account: str) -> bool:
        """Whether the account's token may be handed to this consumer."""
        return any(fnmatchcase(account, pattern) for pattern in self.accounts)


@dataclass(frozen=True)
class Failure:
    """Why a renewal failed, in a form that can be stored and shown: it never holds a value."""

    failure_class: FailureClass
    errcode: int | None
    errmsg: str
    remedy: str
    at: int

    @property
    def shown(self) -> dict[str, Any]:
        """The failure without its time, as health, events and problem documents show it."""
        return {"class": str(self.failure_class), "errcode": self.errcode, "errmsg": self.errmsg, "remedy": self.remedy}


@dataclass(frozen=True)
class Grant:
    """A value as WeChat gave it. `asked_at` is the moment before the request went out: life counts from there."""

    value: str = field(repr=False)
    expires_in: int
    asked_at: int


@dataclass(frozen=True)
class Usage:
    """Calls for a credential on one of WeChat's days (`day`: counted from 1970); `forced`: refreshes among them."""

    day: int = 0
    calls: int = 0
    forced: int = 0
    forced_at: int = 0


@dataclass(frozen=True)
class Credential:
    """One credential as the table holds it.

    `due_at`: earliest time of the next attempt: planned renewal, retry after a failure, or the end of a lease.
    `at_risk_since`: start of the oldest renewal whose outcome is unknown; since then the value may have a successor.
    `seen_at`: when WeChat last gave the value, new or once more.
    `minted_at`: the last time at which a call of `/cgi-bin/token` may have minted a token.
    `epoch`: raised by every lease; only the owner of the latest may publish.
    `revision`: raised by every write, so that none overwrites what it has not seen.
    `refused_at`: when WeChat refused the value, or a forced refresh was begun that ends it; from then on it is not served.
    `refused_fingerprints`: of the last values that were refused; none is published again, unless WeChat accepts it.
    `checked_at`: when a check began in which WeChat accepted the value; `check_until`: until when a check may be under way.
    `checks_booked_until`: how much of the day reports have booked (see `budget.report_wait`).
    `previous_until`: until when WeChat surely accepts the value before, known by `previous_digest`.
    `foreign_rotations`: how often another client invalidated the value; the last time at `foreign_rotation_at`.
    `failing_since`: since when it fails in a way that makes an event; 0 while that is not so. `unsent`: events that
    are still to be sent, one a line.
    """

    account: str
    name: str
    kind: Kind
    app_id: str
    epoch: int
    due_at: int
    revision: int = 0
    lease_until: int = 0
    value: str | None = field(default=None, repr=False)
    fingerprint: str | None = None
    previous_fingerprint: str | None = None
    previous_digest: str | None = None
    previous_until: int = 0
    fetched_at: int = 0
    seen_at: int = 0
    expires_at: int = 0
    at_risk_since: int | None = None
    minted_at: int = 0
    refused_at: int | None = None
    refused_fingerprints: str = ""
    failures: int = 0
    last_error: Failure | None = None
    checked_at: int = 0
    check_until: int = 0
    checks_booked_until: int = 0
    foreign_rotations: int = 0
    foreign_rotation_at: int = 0
    failing_since: int = 0
    unsent: str = ""
    usage: Usage = Usage()


@dataclass(frozen=True)
class DueCredential:
    """A credential to be renewed, as the index lists it, which may lag."""

    account: str
    name: str
    kind: Kind
    due_at: int
    failures: int


type Due = DueCredential | Credential
"""A credential to be renewed: as the index lists it, or as it was read."""


class ReportOutcome(StrEnum):
    """What became of a report that a token does not work."""

    SUPERSEDED = "superseded"
    STILL_VALID = "still_valid"
    REPLACED = "replaced"
    UNVERIFIED = "unverified"
    LIMITED = "limited"


@dataclass(frozen=True)
class Progress:
    """How far the probe has come, between its runs. `after`: the account to go on after, where a run was cut off.

    `unclear_since`: accounts whose token WeChat neither accepted nor refused, and since when.
    """

    after: str | None = None
    unclear_since: Mapping[str, int] = field(default_factory=dict)
