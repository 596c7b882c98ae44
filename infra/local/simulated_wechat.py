"""WeChat and WeCom on this machine: their credential APIs with the rules that cost tokens and calls.

Where WeChat's documentation leaves a rule open, the reading that is harder on a token keeper is simulated.
No value it hands out works anywhere else.
"""

import hashlib
import json
import math
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from werkzeug import Request, Response

from infra.local.http_server import has_api_key

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

HOUR, DAY = 3600, 86400
LIFE = 7200  # seconds every token and ticket lives; WeChat calls it "a value within 7200"
OVERLAP = 300  # seconds the previous token keeps working after a renewal, and a stable token's renewable end
FORCED_REFRESH_SPACING = 30  # seconds between two forced refreshes of a stable token
WECOM_FAILURE_LIMIT = 2000  # failing calls of one address within an hour that block it for an hour
BEIJING = 8 * HOUR  # WeChat's quota days begin at midnight in Beijing
REMEMBERED = HOUR  # seconds after its expiry that a value is still distinguished from nonsense: 42001, not 40014

_TICKET_TYPES = {
    "/cgi-bin/ticket/getticket": ("jsapi", "wx_card"),
    "/cgi-bin/get_jsapi_ticket": ("jsapi",),
    "/cgi-bin/ticket/get": ("agent_config",),
}
_WECOM_PATHS = {"/cgi-bin/gettoken", "/cgi-bin/get_jsapi_ticket", "/cgi-bin/ticket/get"}
_ERRMSG = {
    -1: "system error",
    40001: "invalid credential, access_token is invalid or not latest",
    40002: "invalid grant_type",
    40013: "invalid appid",
    40014: "invalid access_token",
    40091: "invalid secret",
    40097: "invalid args",
    40125: "invalid appsecret, view more at http://t.cn/RAEkdVq",
    40164: "invalid ip {ip} ipv6 ::ffff:{ip}, not in whitelist",
    41001: "access_token missing",
    41002: "appid missing",
    41004: "appsecret missing",
    42001: "access_token expired",
    43001: "require GET method",
    43002: "require POST method",
    45009: "reach max api daily quota limit",
    45011: "api minute-quota reach limit, must slower, retry next minute",
    47001: "data format error",
}
_WECOM_ERRMSG = _ERRMSG | {
    40001: "invalid credential",
    40013: "invalid corpid",
    41002: "corpid missing",
    41004: "corpsecret missing",
    # also what a blocked caller gets, as users report from gettoken: the block has no code of its own
    45009: "api freq out of limit",
}


@dataclass(frozen=True)
class Call:
    """One call that reached the simulator.

    `at` is in the simulator's seconds, `account` an appid or corpid as far as the call shows it. `errcode` is 0 when
    all was well, and None when the caller got none of WeChat's JSON responses, or not a whole one.
    """

    at: float
    path: str
    account: str | None
    errcode: int | None


@dataclass(frozen=True)
class Reply:
    """What the caller gets, after `delay` seconds. With `drop` the connection closes without a whole response."""

    status: int
    headers: dict[str, str]
    body: bytes
    delay: float = 0.0
    drop: bool = False


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one call. `carried_out`: whether WeChat does its part: a token IS minted."""

    carried_out: bool = True
    errcode: int | None = None
    errmsg: str = ""
    status: int = 200
    location: str | None = None
    body: bytes | None = None
    length: int | None = None
    delay: float = 0.0
    drop: bool = False

    @staticmethod
    def named(name: str) -> "Fault":
        """The fault of that name: an errcode of WeChat, or a constructor of this class (`http`, `slow` …).

        Raises ValueError that lists the names.
        """
        if name in _FAULT_KINDS:
            return _FAULT_KINDS[name]()
        try:
            return Fault.error(int(name))
        except ValueError:
            raise ValueError(f"an errcode of WeChat, or one of {', '.join(_FAULT_KINDS)}") from None

    @classmethod
    def error(cls, errcode: int, errmsg: str = "") -> Self:
        """WeChat refuses with this code, and with its own message for it where none is given."""
        return cls(carried_out=False, errcode=errcode, errmsg=errmsg)

    @classmethod
    def http(cls, status: int = 502, body: bytes = b"<h1>Bad Gateway</h1>", *, carried_out: bool = False) -> Self:
        """A gateway responds in HTML; with `carried_out` only after WeChat has done its part."""
        return cls(carried_out=carried_out, status=status, body=body)

    @classmethod
    def redirect(cls, location: str = "https://elsewhere.invalid/") -> Self:
        """HTTP 302 to another place, which must never see a secret."""
        return cls(carried_out=False, status=302, location=location, body=b"")

    @classmethod
    def malformed(cls, body: bytes = b"null") -> Self:
        """Carried out, and this comes instead of WeChat's response, with HTTP 200."""
        return cls(body=body)

    @classmethod
    def truncated(cls, length: int = 20) -> Self:
        """Carried out, and the response is cut to this many bytes."""
        return cls(length=length)

    @classmethod
    def oversized(cls, length: int = 10_000_000) -> Self:
        """Carried out, and blanks follow the response up to this many bytes: still JSON, but no client should read it all."""
        return cls(length=length)

    @classmethod
    def drop_after(cls) -> Self:
        """Carried out, and the response is lost."""
        return cls(drop=True)

    @classmethod
    def drop_before(cls) -> Self:
        """The connection closes before WeChat has done anything."""
        return cls(carried_out=False, drop=True)

    @classmethod
    def slow(cls, seconds: float = 30.0) -> Self:
        """Carried out at once, and correct after this many seconds."""
        return cls(delay=seconds)

    def applied_to(self, body: bytes) -> Reply:
        """The response that the caller gets where WeChat's own would have been `body`."""
        if self.drop:
            return Reply(self.status, {}, b"", self.delay, drop=True)
        headers = {"Content-Type": "application/json; encoding=utf-8" if self.status == 200 else "text/html"}
        if self.location is not None:
            headers["Location"] = self.location
        if self.body is not None:
            body = self.body
        if self.length is not None:
            body = body[: self.length].ljust(self.length)
        return Reply(self.status, headers, body, self.delay)


_NO_FAULT = Fault()
_FAULT_KINDS: dict[str, Callable[[], Fault]] = {
    "http": Fault.http,
    "redirect": Fault.redirect,
    "malformed": Fault.malformed,
    "truncated": Fault.truncated,
    "oversized": Fault.oversized,
    "drop_after": Fault.drop_after,
    "drop_before": Fault.drop_before,
    "slow": Fault.slow,
}


class _RefusedError(Exception):
    def __init__(self, errcode: int, errmsg: str = "") -> None:
        super().__init__(errcode, errmsg)
        self.errcode, self.errmsg = errcode, errmsg


class _Quota:
    """At most `limit` calls in each period of the Beijing clock."""

    def __init__(self, limit: int, seconds: int) -> None:
        self._limit, self._seconds = limit, seconds
        self._period = self._used = 0

    def take(self, now: float) -> bool:
        period = int((now + BEIJING) // self._seconds)
        if period != self._period:
            self._period, self._used = period, 0
        if self._used >= self._limit:
            return False
        self._used += 1
        return True


@dataclass(slots=True)
class _Value:
    """A token or ticket that was handed out; it dies when its life is over, or earlier."""

    text: str
    owner: "_App"
    is_token: bool
    minted_at: float
    dies_at: float

    def dies_by(self, moment: float) -> None:
        self.dies_at = min(self.dies_at, moment)

    def remaining(self, now: float) -> float:
        return LIFE - (now - self.minted_at)


def _two_generations() -> deque[_Value]:
    """The newest token stands last, the one before it first; older ones are dead."""
    return deque(maxlen=2)


@dataclass(eq=False, slots=True)
class _App:
    """An Official Account or Mini Program, or one app of a WeCom corp."""

    account: str
    wecom: bool
    token_quota: _Quota
    ip_whitelist: Collection[str] | None = None
    tokens: deque[_Value] = field(default_factory=_two_generations)
    stable_tokens: deque[_Value] = field(default_factory=_two_generations)
    forced_refresh_quota: _Quota = field(default_factory=lambda: _Quota(20, DAY))
    forced_at: float = -math.inf
    wecom_ticket_quota: _Quota = field(default_factory=lambda: _Quota(100, HOUR))


@dataclass(slots=True)
class _Ask:
    now: float
    method: str
    path: str
    params: Mapping[str, object]
    remote_addr: str
    token: _Value | None = None
    wecom: bool = False

    def __getitem__(self, name: str) -> str:
        value = self.params.get(name)
        return value if isinstance(value, str) else ""

    @property
    def account(self) -> str | None:
        return self.token.owner.account if self.token else self["appid"] or self["corpid"] or None


class SimulatedWeChat:
    """WeChat and WeCom under any clock (seconds since 1970): in-process by `handle`, over HTTP as a WSGI app.

    `calls` holds every call so far. WeCom's `gettoken` repeats a token while it is valid, as the older documentation
    says; with `wecom_mints_anew` each call mints one and kills the one before: the newest promises neither. `fault`: what
    each call meets for which no other fault was asked. `api_key`: what the calls to `/_simulator/…` have to show, if it is
    given.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        *,
        wecom_mints_anew: bool = False,
        fault: Fault = _NO_FAULT,
        api_key: str | None = None,
    ) -> None:
        self.calls: list[Call] = []
        self.fault = fault
        """What each call meets for which no other fault was asked; `Fault()` is none."""
        self._api_key = api_key
        self._clock = clock
        self._wecom_mints_anew = wecom_mints_anew
        self._lock = threading.Lock()
        self._apps: dict[str, dict[str, _App]] = {}  # appid → its secret → the app
        self._corps: dict[str, dict[str, _App]] = {}  # corpid → each app's secret → the app
        self._values: OrderedDict[str, _Value] = OrderedDict()  # in the order they expire
        self._minted = 0
        self._tickets: dict[tuple[object, str], _Value] = {}
        self._faults: dict[tuple[str, str | None], deque[Fault]] = {}
        self._wecom_failures: dict[str, deque[float]] = {}
        self._wecom_blocked_until: dict[str, float] = {}
        self._endpoints: dict[str, tuple[str, Callable[[_Ask], dict[str, Any]]]] = {
            "/cgi-bin/token": ("GET", self._token),
            "/cgi-bin/stable_token": ("POST", self._stable_token),
            "/cgi-bin/gettoken": ("GET", self._gettoken),
            "/cgi-bin/get_api_domain_ip": ("GET", self._get_api_domain_ip),
            **dict.fromkeys(_TICKET_TYPES, ("GET", self._ticket)),
        }

    def add_app(
        self, appid: str, secret: str, *, daily_quota: int = 2000, ip_whitelist: Collection[str] | None = None
    ) -> None:
        """Open an Official Account or Mini Program; `daily_quota` is `/cgi-bin/token`'s, None lets any address call."""
        app = _App(appid, wecom=False, token_quota=_Quota(daily_quota, DAY), ip_whitelist=ip_whitelist)
        self._apps[appid] = {secret: app}

    def add_corp_app(self, corpid: str, secret: str) -> None:
        """Open one app of a WeCom corp. A corp's apps differ by their secrets."""
        self._corps.setdefault(corpid, {})[secret] = _App(corpid, wecom=True, token_quota=_Quota(0, DAY))

    def change_secret(self, appid_or_corpid: str, old: str, new: str) -> None:
        """Take only the new secret from now on; live tokens go on. KeyError for an unknown account or old secret."""
        with self._lock:
            secrets = self._apps.get(appid_or_corpid) or self._corps[appid_or_corpid]
            secrets[new] = secrets.pop(old)

    def kill(self, token: str) -> None:
        """Let this token or ticket die early; the next fetch mints another. KeyError for a value unknown or forgotten."""
        with self._lock:
            self._values[token].dies_by(self._clock())

    def accepts(self, token_or_ticket: str) -> bool:
        """Whether WeChat would take this value right now."""
        value = self._values.get(token_or_ticket)
        return value is not None and self._clock() < value.dies_at

    def fail(self, path: str, *faults: Fault, account: str | None = None) -> None:
        """Let each of the next calls to `path` (of that appid or corpid) meet one of the faults, in this order.

        Faults of one account come before those of all. ValueError for a path that is not simulated.
        """
        if path not in self._endpoints:
            raise ValueError(f"not simulated: {path}")
        with self._lock:
            self._faults.setdefault((path, account), deque()).extend(faults)

    def heal(self, path: str) -> None:
        """Let the calls to `path` meet none of the faults that are still to come."""
        with self._lock:
            for faults in [faults for (at, _), faults in self._faults.items() if at == path]:
                faults.clear()

    def kill_tokens(self) -> list[str]:
        """Let every live access token die early, as when another client fetches; returns them."""
        with self._lock:
            now = self._clock()
            killed = [value for value in self._values.values() if value.is_token and now < value.dies_at]
            for value in killed:
                value.dies_by(now)
            return [value.text for value in killed]

    def handle(
        self, method: str, path: str, query: Mapping[str, str], body: bytes, remote_addr: str = "127.0.0.1"
    ) -> Reply:
        """Take one call and say what the caller gets. It never sleeps: the response has the delay."""
        with self._lock:
            now = self._clock()
            if path not in self._endpoints:
                self.calls.append(Call(now, path, None, None))
                return Reply(404, {"Content-Type": "text/html"}, b"")
            params = _json_object(body) if path == "/cgi-bin/stable_token" else query
            ask = _Ask(now, method, path, params, remote_addr)
            ask.token = self._values.get(ask["access_token"])
            ask.wecom = path in _WECOM_PATHS or (ask.token is not None and ask.token.owner.wecom)
            fault = self._next_fault(path, ask.account)
            reply = self._reply(ask, fault)
            whole = json.dumps(reply).encode()
            result = fault.applied_to(whole)
            self.calls.append(Call(now, path, ask.account, reply.get("errcode", 0) if result.body == whole else None))
            return result

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """WSGI: as `handle`, with real delays and broken connections; and `/_simulator/…` to make things fail by hand.

        The latter take the header X-Api-Key. `POST /_simulator/faults` takes {"path", "account"?, "errcode" or "kind", "times"?}, a kind being the name of a
        `Fault` constructor; `POST /_simulator/corp-apps` takes {"corpid", "secret"}; `GET /_simulator/calls` counts calls; `GET /_simulator/accepts?value=…` asks `accepts`.
        """
        request = Request(environ)
        if request.path.startswith("/_simulator/"):
            allowed = self._api_key is None or has_api_key(environ, self._api_key)
            response = self._control(request) if allowed else _json_response(403, {"message": "Forbidden"})
            return response(environ, start_response)
        query, remote_addr = request.args.to_dict(), request.remote_addr or "127.0.0.1"
        result = self.handle(request.method, request.path, query, request.get_data(), remote_addr)
        if result.delay:
            time.sleep(result.delay)
        if result.drop:
            return _broken_response(start_response)
        return Response(result.body, result.status, result.headers)(environ, start_response)

    def _next_fault(self, path: str, account: str | None) -> Fault:
        queue = self._faults.get((path, account)) or self._faults.get((path, None))
        return queue.popleft() if queue else self.fault

    def _reply(self, ask: _Ask, fault: Fault) -> dict[str, Any]:
        required_method, endpoint = self._endpoints[ask.path]
        try:
            if fault.errcode is not None:
                raise _RefusedError(fault.errcode, fault.errmsg)
            if not fault.carried_out:
                return {}
            if ask.wecom and ask.now < self._wecom_blocked_until.get(ask.remote_addr, -math.inf):
                return self._refusal(ask, _RefusedError(45009))
            if ask.method != required_method:
                raise _RefusedError(43001 if required_method == "GET" else 43002)
            return endpoint(ask)
        except _RefusedError as refused:
            if ask.wecom:
                self._count_wecom_failure(ask)
            return self._refusal(ask, refused)

    def _refusal(self, ask: _Ask, refused: _RefusedError) -> dict[str, Any]:
        code, messages = refused.errcode, _WECOM_ERRMSG if ask.wecom else _ERRMSG
        errmsg = refused.errmsg or messages.get(code, "simulated error").replace("{ip}", ask.remote_addr)
        serial = f"{int(ask.now):08x}-{len(self.calls):08x}-{self._minted:08x}"
        if not ask.wecom:
            return {"errcode": code, "errmsg": f"{errmsg} rid: {serial}"}
        help_page = f"https://open.work.weixin.qq.com/devtool/query?e={code}"
        errmsg = f"{errmsg}, hint: [{serial}], from ip: {ask.remote_addr}, more info at {help_page}"
        ip_list: dict[str, Any] = {"ip_list": []} if ask.path == "/cgi-bin/get_api_domain_ip" else {}
        return {**ip_list, "errcode": code, "errmsg": errmsg}

    def _count_wecom_failure(self, ask: _Ask) -> None:
        times = self._wecom_failures.setdefault(ask.remote_addr, deque(maxlen=WECOM_FAILURE_LIMIT))
        times.append(ask.now)
        if len(times) == WECOM_FAILURE_LIMIT and ask.now - times[0] < HOUR:
            self._wecom_blocked_until[ask.remote_addr] = ask.now + HOUR

    def _mint(self, owner: _App, now: float, *, is_token: bool) -> _Value:
        self._minted += 1
        kind, digest = ("token", hashlib.sha512) if is_token else ("ticket", hashlib.sha256)
        # as long as WeChat's own: some 150 characters for a token, some 85 for a ticket
        text = f"simulated_{kind}_{self._minted}_{digest(str(self._minted).encode()).hexdigest()}"
        value = self._values[text] = _Value(text, owner, is_token, now, now + LIFE)
        while next(iter(self._values.values())).remaining(now) < -REMEMBERED:
            self._values.popitem(last=False)
        return value

    def _renew(self, app: _App, generations: deque[_Value], now: float, overlap: float) -> _Value:
        for age, token in enumerate(reversed(generations)):
            token.dies_by(now + overlap if age == 0 else now)
        generations.append(self._mint(app, now, is_token=True))
        return generations[-1]

    def _app(self, ask: _Ask, accounts: dict[str, dict[str, _App]], id_name: str, secret_name: str) -> _App:
        account, secret = ask[id_name], ask[secret_name]
        if not account:
            raise _RefusedError(41002)
        if not secret:
            raise _RefusedError(41004)
        if account not in accounts:
            raise _RefusedError(40013)
        app = accounts[account].get(secret)
        if app is not None:
            return app
        if not ask.wecom:
            raise _RefusedError(40125)
        raise _RefusedError(40091 if any(secret in secrets for secrets in accounts.values()) else 40001)

    def _wechat_app(self, ask: _Ask) -> _App:
        if ask["grant_type"] != "client_credential":
            raise _RefusedError(40002)
        app = self._app(ask, self._apps, "appid", "secret")
        if app.ip_whitelist is not None and ask.remote_addr not in app.ip_whitelist:
            raise _RefusedError(40164)
        return app

    def _token(self, ask: _Ask) -> dict[str, Any]:
        app = self._wechat_app(ask)
        if not app.token_quota.take(ask.now):
            raise _RefusedError(45009)
        token = self._renew(app, app.tokens, ask.now, OVERLAP)
        return {"access_token": token.text, "expires_in": LIFE}

    def _stable_token(self, ask: _Ask) -> dict[str, Any]:
        if not ask.params:
            raise _RefusedError(47001)
        app = self._wechat_app(ask)
        forced = (
            ask.params.get("force_refresh") is True
            and ask.now - app.forced_at >= FORCED_REFRESH_SPACING
            and app.forced_refresh_quota.take(ask.now)
        )
        if forced:
            app.forced_at = ask.now
        token = app.stable_tokens[-1] if app.stable_tokens else None
        if forced or token is None or ask.now >= token.dies_at or token.remaining(ask.now) < OVERLAP:
            token = self._renew(app, app.stable_tokens, ask.now, 0 if forced else OVERLAP)
        return {"access_token": token.text, "expires_in": int(token.remaining(ask.now))}

    def _gettoken(self, ask: _Ask) -> dict[str, Any]:
        app = self._app(ask, self._corps, "corpid", "corpsecret")
        token = app.tokens[-1] if app.tokens else None
        if self._wecom_mints_anew or token is None or ask.now >= token.dies_at:
            token = self._renew(app, app.tokens, ask.now, 0)
        remaining = int(token.remaining(ask.now))
        return {"errcode": 0, "errmsg": "ok", "access_token": token.text, "expires_in": remaining}

    def _caller(self, ask: _Ask) -> _App:
        token = ask.token
        if not ask["access_token"]:
            raise _RefusedError(41001)
        if token is None or not token.is_token:
            raise _RefusedError(40014)
        if ask.now >= token.dies_at:
            raise _RefusedError(42001 if token.dies_at == token.minted_at + LIFE else 40001)
        return token.owner

    def _get_api_domain_ip(self, ask: _Ask) -> dict[str, Any]:
        self._caller(ask)
        status: dict[str, Any] = {"errcode": 0, "errmsg": "ok"} if ask.wecom else {}
        return {"ip_list": ["192.0.2.1", "192.0.2.2"], **status}

    def _ticket(self, ask: _Ask) -> dict[str, Any]:
        app = self._caller(ask)
        if app.wecom != (ask.path in _WECOM_PATHS):
            raise _RefusedError(40014)
        if app.wecom and not app.wecom_ticket_quota.take(ask.now):
            raise _RefusedError(45009)
        kind = "jsapi" if ask.path == "/cgi-bin/get_jsapi_ticket" else ask["type"]
        if kind not in _TICKET_TYPES[ask.path]:
            raise _RefusedError(40097)
        key = (app if kind == "agent_config" else app.account, kind)  # a corp's apps share its jsapi ticket
        ticket = self._tickets.get(key)
        if ticket is None or ask.now >= ticket.dies_at:
            ticket = self._tickets[key] = self._mint(app, ask.now, is_token=False)
        # users report that expires_in stays 7200 however old the ticket is
        return {"errcode": 0, "errmsg": "ok", "ticket": ticket.text, "expires_in": LIFE}

    def _control(self, request: Request) -> Response:
        match request.method, request.path:
            case "POST", "/_simulator/faults":
                return self._queue_faults(_json_object(request.get_data()))
            case "POST", "/_simulator/corp-apps":
                app = _json_object(request.get_data())
                self.add_corp_app(str(app.get("corpid")), str(app.get("secret")))
                return _json_response(200, {})
            case "GET", "/_simulator/calls":
                counts = Counter((call.path, call.account) for call in tuple(self.calls))
                rows = [{"path": path, "account": account, "count": n} for (path, account), n in counts.items()]
                return _json_response(200, {"calls": rows})
            case "GET", "/_simulator/accepts":
                return _json_response(200, {"accepts": self.accepts(request.args.get("value", ""))})
        return _json_response(404, {"error": "no such control"})

    def _queue_faults(self, wanted: dict[str, Any]) -> Response:
        try:
            fault = Fault.named(str(wanted["errcode"] if "errcode" in wanted else wanted["kind"]))
            times = int(wanted.get("times", 1))
            self.fail(wanted["path"], *[fault] * times, account=wanted.get("account"))
        except (KeyError, TypeError, ValueError):
            kinds, paths = ", ".join(_FAULT_KINDS), ", ".join(self._endpoints)
            return _json_response(400, {"error": f"give errcode or kind ({kinds}), path ({paths}), account?, times?"})
        return _json_response(200, {"queued": times})


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _json_response(status: int, value: object) -> Response:
    return Response(json.dumps(value) + "\n", status, content_type="application/json")


def _broken_response(start_response: "StartResponse") -> Iterator[bytes]:
    """A response that promises a byte and never sends it: the server can only close the connection."""
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", "1")])
    yield b""
    raise ConnectionResetError("simulated")
