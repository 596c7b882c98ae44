"""Adapter: the group robots of 企业微信 (WeCom), 飞书 (Feishu) and 钉钉 (DingTalk).

Each is one SecureString `<path>/<name>` with JSON: `url`, its webhook address, which is a secret; `secret`, which 飞书 and
钉钉 may want requests signed with; `accounts`, whose messages it gets (names, or patterns with `*`). All three refuse with
HTTP 200 and a code in the body.
"""

import base64
import hmac
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_plus

import urllib3
from botocore.exceptions import BotoCoreError, ClientError

from token_keeper import tls
from token_keeper.errors import KeeperError
from token_keeper.untrusted import json_object

PATHS = {"wecom": "/cgi-bin/webhook/send", "feishu": "/open-apis/bot/v2/hook/", "dingtalk": "/robot/send"}
"""Where each platform's robots are reached on its host (their documentation of custom robots)."""

MAX_BYTES = {"wecom": 2048, "feishu": 18_000, "dingtalk": 18_000}
"""Of a message's text. WeCom documents 2048, the two others 20,000 for the whole request."""


_GONE = "the address is no robot's any more; remove it here, and add it with its new address"
_STOPPED = "the robot is switched off, or not in its group any more; see the group's settings"
_SECURITY = "see its security settings: they must be the signature alone, with the secret that was given here"

REFUSALS = {
    "wecom": {93000: _GONE, 93004: _STOPPED, 93008: _STOPPED},
    "feishu": {19001: _GONE, 19021: _SECURITY, 19022: _SECURITY, 19024: _SECURITY},
    "dingtalk": {
        **{300005: _GONE, 310000: _SECURITY, 400013: "the group was dissolved", 400101: _GONE, 400102: _STOPPED},
        400106: _GONE,
    },
}
"""Each platform's codes that no other try changes (its documentation of custom robots), and what to do. All others, as those for
too many messages a minute, are retried."""


class RobotError(KeeperError):
    """A robot cannot be used, or has not taken a message. The text never holds its address."""


class RobotRefusedError(RobotError):
    """It refuses every message until an operator changes something: see `REFUSALS`."""


@dataclass(frozen=True)
class Robot:
    """A group robot. `platform`: as in `PATHS`."""

    name: str
    platform: str
    url: str = field(repr=False)
    secret: str | None = field(repr=False)
    accounts: tuple[str, ...] = ("*",)


def parse_robot(name: str, value: str, origins: Mapping[str, str]) -> Robot:
    """Make a robot of its parameter's value. `origins`: scheme and host of each platform; other hosts are refused.

    Raises `RobotError`, which repeats nothing of the value.
    """
    record = json_object(value)
    if record is None or not isinstance(record.get("url"), str):
        raise RobotError("the value is not a JSON object with a url")
    url, secret, accounts = record["url"], record.get("secret"), record.get("accounts", ["*"])
    platform = platform_of(url, origins)
    if platform is None:
        raise RobotError(f"the address is not a robot's: it begins with {', or '.join(addresses(origins))}")
    if secret is not None and (not isinstance(secret, str) or not secret or platform == "wecom"):
        raise RobotError("secret is what 飞书 or 钉钉 shows beside its signature setting; 企业微信 has none")
    if not isinstance(accounts, list) or not accounts or not all(isinstance(each, str) for each in accounts):
        raise RobotError("accounts must be a list of names, or patterns with *")
    return Robot(name, platform, url, secret, tuple(accounts))


def platform_of(url: str, origins: Mapping[str, str]) -> str | None:
    """The platform whose host and path the address has."""
    if not url.isascii() or not url.isprintable() or any(letter in url for letter in " \\#"):
        return None
    return next((name for name, path in PATHS.items() if url.startswith(f"{origins[name]}{path}")), None)


def addresses(origins: Mapping[str, str]) -> list[str]:
    """What robots' addresses begin with."""
    return [f"{origins[name]}{path}" for name, path in PATHS.items()]


class Robots:
    """The robots below `path`. `ssm`: boto3's client for Parameter Store; `clock` gives epoch seconds."""

    def __init__(self, ssm: Any, path: str, origins: Mapping[str, str], clock: Callable[[], float]) -> None:
        self._ssm = ssm
        self._path = path
        self._origins = origins
        self._clock = clock
        timeout = urllib3.Timeout(connect=3, read=5)
        self._http = urllib3.PoolManager(retries=False, ssl_context=tls.context(), timeout=timeout)

    def read(self) -> Iterator[tuple[str, Robot | RobotError]]:
        """Every robot, or what is wrong with it, by name. Raises `RobotError` where Parameter Store does not respond."""
        try:
            pages = self._ssm.get_paginator("get_parameters_by_path").paginate(Path=self._path, WithDecryption=True)
            found = {item["Name"].rpartition("/")[2]: item["Value"] for page in pages for item in page["Parameters"]}
        except (ClientError, BotoCoreError) as error:
            raise RobotError(f"Parameter Store: {type(error).__name__}") from None
        for name, value in found.items():
            try:
                yield name, parse_robot(name, value, self._origins)
            except RobotError as error:
                yield name, error

    def send(self, robot: Robot, text: str) -> None:
        """Have the robot write the text into its group. Raises `RobotRefusedError` where another try is of no use, `RobotError`."""
        # 飞书 reads `<at …>` in a text as a mention, which WeChat's message could hold.
        url, body = self._request(robot, _cut(text.replace("<", "＜"), MAX_BYTES[robot.platform]))
        try:
            response = self._http.request("POST", url, json=body, redirect=False)
        except urllib3.exceptions.HTTPError as error:
            raise RobotError(type(error).__name__) from None  # its text holds the address
        found = json_object(response.data.decode(errors="replace")) or {}
        code = found.get("errcode", found.get("code"))
        if response.status == 200 and code == 0:
            return
        shown = code if isinstance(code, int) else None
        refused = f"it refused the message: HTTP {response.status}, code {shown}"
        if shown in REFUSALS[robot.platform]:
            raise RobotRefusedError(f"{refused}: {REFUSALS[robot.platform][shown]}")
        raise RobotError(refused)

    def _request(self, robot: Robot, text: str) -> tuple[str, dict[str, Any]]:
        """The address and the body of a message, signed as the platform documents it."""
        now = self._clock()
        if robot.platform == "feishu":
            signed = {}
            if robot.secret is not None:
                timestamp = str(int(now))
                # The key is what others sign, and the message is empty.
                signed = {"timestamp": timestamp, "sign": _sign(f"{timestamp}\n{robot.secret}", "")}
            return robot.url, {**signed, "msg_type": "text", "content": {"text": text}}
        url = robot.url
        if robot.secret is not None:
            timestamp = str(int(now * 1000))
            sign = quote_plus(_sign(robot.secret, f"{timestamp}\n{robot.secret}"))
            url = f"{url}&timestamp={timestamp}&sign={sign}"
        return url, {"msgtype": "text", "text": {"content": text}}


def _sign(key: str, message: str) -> str:
    return base64.b64encode(hmac.digest(key.encode(), message.encode(), "sha256")).decode()


def _cut(text: str, most: int) -> str:
    whole = text.encode()
    return text if len(whole) <= most else whole[: most - 3].decode(errors="ignore") + "…"


def record_of(url: str, secret: str | None, accounts: list[str]) -> str:
    """The value of a robot's parameter."""
    return json.dumps({"url": url, **({"secret": secret} if secret else {}), "accounts": accounts})
