"""The group robots of 企业微信, 飞书 and 钉钉 on this machine, as their documentation of custom robots describes them.

Any key is a robot's. One that ends in `-signed` wants its requests signed with `SIGNING_SECRET`, one that begins with `broken`
refuses all as a deleted robot does, and `busy` says, until a test changes that, that it gets too many messages; as the real ones
do, with HTTP 200 and a code in the body.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from werkzeug.wrappers import Request, Response

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

SIGNING_SECRET = "SECsimulated"

PATHS = ("/cgi-bin/webhook/send", "/open-apis/bot/v2/hook/", "/robot/send")


class SimulatedRobots:
    """A WSGI application. `clock` gives epoch seconds; `emit` is given each message with the robot that wrote it."""

    def __init__(self, clock: Callable[[], float], emit: Callable[[str, str], None] = lambda robot, text: None) -> None:
        self.messages: list[tuple[str, str]] = []
        self.refused: list[str] = []
        self.busy = True
        self._clock, self._emit = clock, emit

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Handle a request."""
        request = Request(environ)
        response = Response(json.dumps(self._handle(request)), mimetype="application/json")
        return response(environ, start_response)

    def _handle(self, request: Request) -> dict[str, Any]:
        body = request.get_json(silent=True) or {}
        if request.path.startswith("/open-apis/"):
            key, text = request.path.rpartition("/")[2], body.get("content", {}).get("text", "")
            if key.endswith("-signed") and not self._is_signed_for_feishu(body):
                return {"code": 19021, "msg": "sign match fail or timestamp is not within one hour from current time"}
            refused: dict[str, Any] = {"code": 19001, "msg": "param invalid: incoming webhook access token invalid"}
            accepted: dict[str, Any] = {"code": 0, "data": {}, "msg": "success"}
            busy: dict[str, Any] = {"code": 11232, "msg": "frequency limited"}
        else:
            is_dingtalk = request.path == "/robot/send"
            key = request.args.get("access_token" if is_dingtalk else "key", "")
            text = body.get("text", {}).get("content", "")
            if is_dingtalk and key.endswith("-signed") and not self._is_signed_for_dingtalk(request):
                return {"errcode": 310000, "errmsg": "sign not match"}
            if not is_dingtalk and len(text.encode()) > 2048:
                return {"errcode": 40058, "errmsg": "text.content exceed max length 2048"}
            refused = {"errcode": 300005, "errmsg": "token is not exist"} if is_dingtalk else {"errcode": 93000}
            accepted = {"errcode": 0, "errmsg": "ok"}
            busy = {"errcode": 130101, "errmsg": "send too fast"} if is_dingtalk else {"errcode": 45009}
        if not key or key.startswith("broken") or not text:
            self.refused.append(key)
            return refused
        if key == "busy" and self.busy:
            return busy
        self.messages.append((key, text))
        self._emit(key, text)
        return accepted

    def _is_signed_for_feishu(self, body: dict[str, Any]) -> bool:
        timestamp = body.get("timestamp", "0")
        digest = hmac.new(f"{timestamp}\n{SIGNING_SECRET}".encode(), b"", hashlib.sha256).digest()
        is_recent = isinstance(timestamp, str) and abs(int(timestamp) - self._clock()) < 3600
        return is_recent and body.get("sign") == base64.b64encode(digest).decode()

    def _is_signed_for_dingtalk(self, request: Request) -> bool:
        timestamp = request.args.get("timestamp", "0")
        message = f"{timestamp}\n{SIGNING_SECRET}".encode()
        digest = hmac.new(SIGNING_SECRET.encode(), message, hashlib.sha256).digest()
        is_recent = abs(int(timestamp) / 1000 - self._clock()) < 3600
        return is_recent and request.args.get("sign") == base64.b64encode(digest).decode()
