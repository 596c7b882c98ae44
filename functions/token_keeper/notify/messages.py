"""What people read: the events of a batch as one text, in Chinese and English. Pure functions."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatchcase
from typing import Any

SHOWN = 10
"""Accounts that a message names; of the others it has the count."""

BEIJING = timezone(timedelta(hours=8))

_FAILING, _RECOVERED, _INVALIDATED = "Credential Failing", "Credential Recovered", "Credential Invalidated"
_TITLES = {
    _FAILING: "🔴 微信凭证续期失败 | WeChat credential failing",
    _INVALIDATED: "🟠 令牌被提前作废，正在自动更换 | Token invalidated early, being replaced",
    _RECOVERED: "🟢 已恢复 | Recovered",
}


@dataclass(frozen=True)
class News:
    """One event, as far as people get to read it."""

    event_type: str
    detail: Mapping[str, Any]

    @property
    def account(self) -> str:
        """The account that it is about."""
        return str(self.detail["account"])


def concerning(news: Iterable[News], accounts: Iterable[str]) -> list[News]:
    """The news of these accounts (names, or patterns with `*`)."""
    patterns = list(accounts)
    return [each for each in news if any(fnmatchcase(each.account, pattern) for pattern in patterns)]


def subject(news: list[News]) -> str:
    """The message in one line of ASCII, for a mail's subject; fewer than 100 characters (SNS)."""
    accounts = sorted({each.account for each in news})
    types = [kind for kind in _TITLES if any(each.event_type == kind for each in news)]
    what = " and ".join(kind.removeprefix("Credential ").lower() for kind in types)
    whose = accounts[0] if len(accounts) == 1 else f"{len(accounts)} accounts"
    return f"WeChat tokens {what}: {whose}"[:99]


def text(news: list[News]) -> str:
    """The message: for each cause what WeChat said, what to do, and which accounts it is about."""
    groups: dict[tuple[Any, ...], list[News]] = {}
    for each in sorted(news, key=lambda each: list(_TITLES).index(each.event_type)):
        cause = (each.event_type, each.detail.get("class"), each.detail.get("errcode"), each.detail.get("remedy"))
        groups.setdefault(cause, []).append(each)
    parts = [_part(group) for group in list(groups.values())[:SHOWN]]
    if (left := len(groups) - SHOWN) > 0:
        parts.append(f"… 另有 {left} 种原因 | {left} more causes: token-keeper status")
    return "\n\n".join([*parts, f"stack: {news[0].detail['stack']}"])


def _part(group: list[News]) -> str:
    first = group[0]
    lines = [_TITLES[first.event_type]]
    if "remedy" in first.detail:
        code = "" if first.detail["errcode"] is None else f"{first.detail['errcode']} "
        lines.append(f"原因 | Cause: {code}{first.detail['errmsg']}")
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
    match of_account[0].event_type:
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


def _time(rfc3339: str | None) -> str:
    if rfc3339 is None:
        return "?"
    return f"{datetime.fromisoformat(rfc3339).astimezone(BEIJING):%m-%d %H:%M:%S} (UTC+8)"
