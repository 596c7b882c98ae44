"""A token keeper as far as the client sees it, whose every response a test decides, and WeChat's API beside it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

from werkzeug import Request, Response

from infra.local.http_server import Server
from wechat_token_keeper._clock import Clock

KEY = "wtk_" + "k" * 43
APPID, CORPID = "wx0123456789abcdef", "ww0123456789abcdef"


class FakeTime:
    """Both clocks of a machine: they pass only by `pass_by`."""

    def __init__(self) -> None:
        self.monotonic, self.wall = 1000.0, 1_790_000_000.0
        self.clock = Clock(lambda: self.monotonic, lambda: self.wall)

    def pass_by(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds


@dataclass
class Call:
    """A call that the keeper or WeChat got."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class StubKeeper:
    """`token`, `ticket`, `expires_in`: what it hands out. `successor`: what a report of the token makes current.

    `failure`: a response instead, as (status, document, headers). `before_response` is called with each call.
    WeChat's API beside it takes `token`, unless it is among `dead`, and responds with the body it got.
    """

    def __init__(self) -> None:
        self.token, self.ticket, self.expires_in = "token-1", "ticket-1", 6000
        self.successor: str | None = None
        self.dead: set[str] = set()
        self.failure: tuple[int, dict[str, Any], dict[str, str]] | None = None
        self.before_response: Callable[[Call], object] = lambda _call: None
        self.calls: list[Call] = []
        self.wechat_calls: list[Call] = []
        self._lock = Lock()
        self._server, self._wechat = Server(self._handle), Server(self._response_of_wechat)
        self.url, self.wechat_url = self._server.url, self._wechat.url

    def __enter__(self) -> "StubKeeper":
        self._server.start()
        self._wechat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._wechat.stop()

    def stop(self) -> None:
        """From now on nothing responds there."""
        self._server.stop()

    def paths(self) -> list[str]:
        """The calls so far, without what they carried."""
        return [call.path for call in self.calls]

    def reports(self) -> list[Call]:
        """The calls that reported a token."""
        return [call for call in self.calls if call.path.endswith("/reports") or b'"force_refresh": true' in call.body]

    def _handle(self, environ: Any, start_response: Any) -> Any:
        request = Request(environ)
        call = _call(request)
        with self._lock:
            self.calls.append(call)
        self.before_response(call)
        if self.failure is not None:
            status, document, headers = self.failure
            return _json(document, status, headers)(environ, start_response)
        if call in self.reports() and self.successor is not None:
            self.token, self.successor = self.successor, None
        return _json(self._document(call))(environ, start_response)

    def _document(self, call: Call) -> dict[str, Any]:
        ok = {"errcode": 0, "errmsg": "ok"}
        query = call.query | (dict(p.split("=") for p in call.body.decode().split("&")) if b"=" in call.body else {})
        match call.path.split("/")[1:]:
            case ["cgi-bin", "stable_token"]:
                return {"access_token": self.token, "expires_in": self.expires_in}
            case ["cgi-bin", "gettoken"]:
                return ok | {"access_token": self.token, "expires_in": self.expires_in}
            case ["cgi-bin", "ticket", _] | ["cgi-bin", "get_jsapi_ticket"]:
                if query["access_token"] != self.token:
                    return {"errcode": 40001, "errmsg": "invalid credential"}
                return ok | {"ticket": self.ticket, "expires_in": self.expires_in}
            case ["v1", "accounts", _, "jsapi-signature"]:
                return {"appId": APPID, "timestamp": 1, "nonceStr": "n", "signature": "s"}
            case ["v1", "accounts", _, "tickets", _]:
                return {"ticket": self.ticket, "expires_in": self.expires_in, "cache_for": min(60, self.expires_in)}
            case ["v1", "accounts", _, "access-token", *_]:
                return {
                    "access_token": self.token,
                    "expires_in": self.expires_in,
                    "cache_for": min(60, self.expires_in),
                }
        raise AssertionError(call.path)

    def _response_of_wechat(self, environ: Any, start_response: Any) -> Any:
        request = Request(environ)
        call = _call(request)
        with self._lock:
            self.wechat_calls.append(call)
        token = call.query.get("access_token")
        if token != self.token or token in self.dead:
            return _json({"errcode": 40001, "errmsg": "invalid credential"})(environ, start_response)
        if call.path == "/picture":
            return Response(b"\x89PNG errcode 40001", mimetype="image/png")(environ, start_response)
        if call.path == "/broken":
            return _json({}, 500)(environ, start_response)
        response = {"got": call.body.decode(), "query": {k: v for k, v in call.query.items() if k != "access_token"}}
        return _json(response)(environ, start_response)


def _call(request: Request) -> Call:
    headers = {name.lower(): value for name, value in request.headers.items()}
    return Call(request.method, request.path, request.args.to_dict(), request.get_data(), headers)


def _json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(document), status, headers, mimetype="application/json")
