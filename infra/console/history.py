"""What the page knows of a stack: its health, and what RefreshFunction has reported, put together to a lane per credential.

Nothing in it is a token, a ticket or a secret: health and reports hold fingerprints, times, states and remedies alone.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from threading import Lock
from typing import Any

from token_keeper.model import Kind
from token_keeper.renewal import RULES

type Json = dict[str, Any]

SHOWN_BEFORE = 9000
"""Seconds of the past that the page shows: a token's two hours, and half an hour."""

SHOWN_AFTER = 8100
"""Seconds of the future: the life of a token that is fetched now, and a quarter of an hour."""

MARKS_KEPT = 300
"""Of a lane. An account that fails once a minute has half of them within the past that is shown."""

REPAIRS = ("probe", "verify")
"""What wakes RefreshFunction to replace a token that it has found dead."""

_TIMES = ("next_attempt_at", "expires_at", "promised_until", "renews_at", "retry_after")
_SHOWN = {
    *("fingerprint", "class", "errcode", "errmsg", "remedy", "outcome", "woken_by", "alive", "dead", "unclear", "left"),
    *_TIMES,
}
_HEALTH = ("state", "fingerprint", "failures", "last_error", "calls_today", "foreign_rotations", "unclear_since")


@dataclass
class _Token:
    """A token or ticket as its reports show it; epoch seconds. `ended_at`: when another client invalidated it."""

    fingerprint: str
    fetched_at: float
    expires_at: float
    promised_until: float | None
    row: int
    superseded_at: float | None = None
    ended_at: float | None = None

    def span(self, overlap: int) -> Json:
        """From its fetch to its death, which it meets at the end of its life or of the overlap with the next one."""
        ends, reason = self.expires_at, "expiry"
        if self.superseded_at is not None and self.superseded_at + overlap < ends:
            ends, reason = self.superseded_at + overlap, "overlap"
        if self.ended_at is not None and self.ended_at < ends:
            ends, reason = self.ended_at, "killed"
        return {
            "fingerprint": self.fingerprint,
            "fetched_at": self.fetched_at,
            "promised_until": None if self.promised_until is None else min(self.promised_until, ends),
            "superseded_at": self.superseded_at,
            "ends_at": ends,
            "end": reason,
            "row": self.row,
        }


@dataclass
class _Lane:
    tokens: deque[_Token] = field(default_factory=lambda: deque(maxlen=50))
    marks: deque[Json] = field(default_factory=lambda: deque(maxlen=MARKS_KEPT))
    failing: bool = False


class History:
    """Collects what RefreshFunction reports, in its summaries or its log. Times are epoch seconds of the stack's clock."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._checks: deque[Json] = deque(maxlen=MARKS_KEPT)

    def add_summary(self, at: float, summary: Mapping[str, Any]) -> None:
        """Add all that one invocation reports."""
        for what in ("renewed", "failed", "verified"):
            for fields in summary.get(what, ()):
                self.add(at, what, {"woken_by": summary["woken_by"], **fields})
        if "probed" in summary:
            self.add(at, "probed", summary["probed"])

    def add(self, at: float, what: str, fields: Mapping[str, Any]) -> None:
        """Add one report: `what` is the log record's message, `fields` the rest of it. Others than those shown are left out."""
        mark: Json = {"at": at, "what": what, **{name: fields[name] for name in _SHOWN & fields.keys()}}
        with self._lock:
            if what == "probed":
                self._checks.append(mark)
                return
            lane = self._lanes.setdefault((str(fields["account"]), str(fields["credential"])), _Lane())
            if what == "renewed":
                mark["what"] = _renewed(lane, at, mark)
            lane.failing = what == "failed" or (lane.failing and what != "renewed")
            if mark["what"] == "repeated" and lane.marks and lane.marks[-1]["what"] == "repeated":
                lane.marks.pop()  # a ticket of unknown age is asked for every few minutes
            lane.marks.append({name: _epoch(value) if name in _TIMES else value for name, value in mark.items()})

    def killed(self, at: float, fingerprints: Collection[str]) -> None:
        """Add that another client has invalidated the tokens with these fingerprints."""
        with self._lock:
            for lane in self._lanes.values():
                killed = [token for token in lane.tokens if token.fingerprint in fingerprints]
                for token in killed:
                    token.ended_at = min(at, token.ended_at or at)
                if killed:
                    lane.marks.append({"at": at, "what": "killed", "fingerprint": killed[-1].fingerprint})

    def state(self, accounts: Iterable[Mapping[str, Any]], now: float) -> Json:
        """What the page draws at `now`, of the accounts as the API's health describes them."""
        since = now - SHOWN_BEFORE
        with self._lock:
            lanes = [self._lane(account, health, since) for account in accounts for health in account["credentials"]]
            return {
                "now": now,
                "shown": {"before": SHOWN_BEFORE, "after": SHOWN_AFTER},
                "checks": [mark for mark in self._checks if mark["at"] > since],
                "lanes": lanes,
            }

    def _lane(self, account: Mapping[str, Any], health: Mapping[str, Any], since: float) -> Json:
        known = self._lanes.setdefault((account["account"], health["credential"]), _Lane())
        if health["fingerprint"]:
            # Perhaps fetched before the known reports begin, or so shortly ago that its own is still to come.
            _published(known, health["fingerprint"], _epoch(health["fetched_at"]), _epoch(health["expires_at"]))
        overlap = RULES[_kind(account, health["credential"])].overlap
        spans = [token.span(overlap) for token in known.tokens]
        renews_at = health["renews_at"]
        return {
            "account": account["account"],
            "credential": health["credential"],
            **{name: health[name] for name in _HEALTH},
            "renews_at": renews_at and _epoch(renews_at),
            "tokens": [span for span in spans if span["ends_at"] > since],
            "marks": [mark for mark in known.marks if mark["at"] > since],
        }


def _published(lane: _Lane, fingerprint: str, at: float, expires_at: float) -> _Token:
    """The lane's token with that fingerprint; one that is not known yet takes the place of the last."""
    for token in lane.tokens:
        if token.fingerprint == fingerprint:
            return token
    row = 0
    if lane.tokens:
        lane.tokens[-1].superseded_at = at
        row = 1 - lane.tokens[-1].row  # neighbours lie in two rows, so that one sees where they overlap
    lane.tokens.append(_Token(fingerprint, at, expires_at, None, row))
    return lane.tokens[-1]


def _renewed(lane: _Lane, at: float, mark: Json) -> str:
    """Note what a report says of a renewal; returns what that was: the token `renewed`, `repeated` by WeChat, or `repaired`."""
    token = _published(lane, mark["fingerprint"], at, _epoch(mark["expires_at"]))
    is_known = token.promised_until is not None
    token.expires_at, token.promised_until = _epoch(mark["expires_at"]), _epoch(mark["promised_until"])
    if lane.failing:
        return "repaired"
    if is_known:
        return "repeated"
    before = next((other for other in lane.tokens if other.superseded_at == token.fetched_at), None)
    if before is None or (mark.get("woken_by") not in REPAIRS and before.ended_at is None):
        return "renewed"
    before.ended_at = min(token.fetched_at, before.ended_at or token.fetched_at)
    return "repaired"


def _kind(account: Mapping[str, Any], credential: str) -> Kind:
    is_corp = "corpid" in account
    if credential != "access_token":
        return Kind.CORP_TICKET if is_corp else Kind.TICKET
    return Kind.CORP_TOKEN if is_corp else Kind(account["endpoint"])


def _epoch(time: str | float) -> float:
    return datetime.fromisoformat(time).timestamp() if isinstance(time, str) else time
