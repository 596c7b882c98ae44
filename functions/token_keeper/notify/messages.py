"""What people read: the events of a batch as one text, in Chinese and English. Pure functions."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatchcase
from typing import Any

SHOWN = 10
"""Accounts that a message names; of the others it has the count."""

BEIJING = timezone(timedelta(hours=8))
"""The zone of all times: the readers', and that of WeChat's days."""

_FAILING, _RECOVERED, _INVALIDATED = "Credential Failing", "Credential Recovered", "Credential Invalidated"
_REMOVED = "Credential Removed"
"""What a recovery is for people where the account or ticket is kept no longer."""

_TITLES = {
    _FAILING: "🔴 微信凭证续期失败 | WeChat credential failing",
    _INVALIDATED: "🟠 令牌被提前作废，正在自动更换 | Token invalidated early, being replaced",
    _RECOVERED: "🟢 已恢复 | Recovered",
    _REMOVED: "⚪ 已移除，不再维护 | Removed, kept no longer",
}
_OUTDATED = {
    _FAILING: "⚪ 曾续期失败，此后已恢复 | Failed earlier, has recovered since",
    _RECOVERED: "⚪ 曾恢复，此后又失败 | Recovered earlier, has failed again since",
    _REMOVED: "⚪ 曾移除，此后又加入 | Removed earlier, kept again since",
}

type Identity = tuple[str, str, str, str]


@dataclass(frozen=True)
class News:
    """One event, as far as people get to read it. `time`: when it happened, as EventBridge gives it (RFC 3339, UTC).

    `is_outdated`: a later event of the same credential is known already.
    """

    event_type: str
    time: str
    detail: Mapping[str, Any]
    is_outdated: bool = False

    @property
    def account(self) -> str:
        """The account that it is about."""
        return str(self.detail["account"])

    @property
    def credential(self) -> tuple[str, str]:
        """The account and the credential that it is about."""
        return self.account, str(self.detail["credential"])

    @property
    def identity(self) -> Identity:
        """What is the same in an event that was sent or delivered twice, and in no other."""
        return self.event_type, self.time, *self.credential

    @property
    def is_state(self) -> bool:
        """Whether it says how the credential is from then on."""
        return self.event_type != _INVALIDATED

    @property
    def kind(self) -> str:
        """What people read: the event's type, except that nothing recovers that is kept no longer."""
        return _REMOVED if self.detail.get("removed") else self.event_type


def news_of(body: str) -> News:
    """The news in the body of a message of the queue, which is EventBridge's event."""
    event = json.loads(body)
    return News(event["detail-type"], event["time"], event["detail"])


def concerning(news: Iterable[News], accounts: Iterable[str]) -> list[News]:
    """The news of these accounts (names, or patterns with `*`)."""
    patterns = list(accounts)
    return [each for each in news if any(fnmatchcase(each.account, pattern) for pattern in patterns)]


def subject(news: list[News]) -> str:
    """The message in one line of ASCII, for a mail's subject; fewer than 100 characters (SNS)."""
    accounts = sorted({each.account for each in news})
    kinds = {each.kind for each in news if not each.is_outdated}
    what = " and ".join(kind.removeprefix("Credential ").lower() for kind in _TITLES if kind in kinds)
    whose = accounts[0] if len(accounts) == 1 else f"{len(accounts)} accounts"
    return f"WeChat tokens {what or 'earlier'}: {whose}"[:99]


def text(news: list[News]) -> str:
    """The message: for each cause what WeChat said, what to do, and which accounts it is about; what is outdated comes last."""
    groups: dict[tuple[Any, ...], list[News]] = {}
    for each in sorted(news, key=lambda each: (each.is_outdated, list(_TITLES).index(each.kind), each.time)):
        cause = (each.kind, *(each.detail.get(name) for name in ("class", "errcode", "remedy")))
        groups.setdefault((each.is_outdated, *cause), []).append(each)
    parts = [_part(group) for group in list(groups.values())[:SHOWN]]
    if (left := len(groups) - SHOWN) > 0:
        parts.append(f"… 另有 {left} 种原因 | {left} more causes: token-keeper status")
    return "\n\n".join([*parts, f"stack: {news[0].detail['stack']}"])


def robots_text(problems: Iterable[str], stack: str) -> str:
    """The mail about robots that get no message: `problems` has the name and the reason of each."""
    lines = ["⚠ 群机器人收不到消息 | Group robots that get no message", *(f"• {problem}" for problem in problems)]
    return "\n".join(
        [*lines, "", "处理后测试 | Once it is fixed: token-keeper notifications test NAME", "", f"stack: {stack}"]
    )


def _part(group: list[News]) -> str:
    first = group[0]
    lines = [_OUTDATED[first.kind] if first.is_outdated else _TITLES[first.kind]]
    lines.append(f"时间 | Time: {_span(group[0].time, group[-1].time)}")
    if "remedy" in first.detail:
        code = "" if first.detail["errcode"] is None else f"{first.detail['errcode']} "
        lines.append(f"原因 | Cause: {code}{first.detail['errmsg']}")
        if not first.is_outdated:
            lines.append(f"处理 | Do: {first.detail['remedy']}")
    by_account: dict[str, list[News]] = {}
    for each in group:
        by_account.setdefault(each.account, []).append(each)
    lines += [f"• {account}: {_about(of_account)}" for account, of_account in list(by_account.items())[:SHOWN]]
    if len(by_account) > SHOWN:
        lines.append(f"… 共 {len(by_account)} 个帐号 | {len(by_account)} accounts in all")
    return "\n".join(lines)


def _about(of_account: list[News]) -> str:
    names = ", ".join(dict.fromkeys(str(each.detail["credential"]) for each in of_account))
    if of_account[0].is_outdated:
        return names
    match of_account[0].kind:
        case "Credential Failing":
            ends = [each.detail["usable_until"] for each in of_account]
            until = min((end for end in ends if end), default=None)
            works = (
                "无可用凭证 | nothing usable"
                if None in ends or until is None
                else f"可用至 | works until {_time(until)}"
            )
            return f"{names}; {works}"
        case "Credential Recovered":
            return f"{names}; 可用至 | works until {_time(of_account[-1].detail['expires_at'])}"
        case _:
            return names


def _span(first: str, last: str) -> str:
    return _time(first) if first == last else f"{_time(first)} – {_time(last)}"


def _time(rfc3339: str | None) -> str:
    if rfc3339 is None:
        return "?"
    return f"{datetime.fromisoformat(rfc3339).astimezone(BEIJING):%m-%d %H:%M:%S} (UTC+8)"
