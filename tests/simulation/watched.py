"""What the simulation watches: a WeChat that records all it mints, a clock that lets the schedules fire, and the world of
instances whose clocks differ."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import api
import refresh
from infra.local.simulated_wechat import OVERLAP, Fault, Reply, SimulatedWeChat, _RefusedError
from tests.simulation.memory_aws import MemoryAws
from tests.support.world import Clock, World
from token_keeper.refresh import wechat

RUN_TIME = 120
"""Seconds RefreshFunction has."""

PATHS = {"token": "/cgi-bin/token", "stable_token": "/cgi-bin/stable_token", "corp": "/cgi-bin/gettoken"}
TICKET_PATHS = ("/cgi-bin/ticket/getticket", "/cgi-bin/get_jsapi_ticket", "/cgi-bin/ticket/get")
CHECK_PATH = "/cgi-bin/get_api_domain_ip"

SKEWS = (0, -2, 3)
"""Seconds an instance's clock is off: no two by more than the margin."""


class InstanceKilled(BaseException):
    """The instance dies here and now; no handler of exceptions sees it."""


class InvocationError(Exception):
    """What Lambda makes of an instance that died."""


@dataclass(frozen=True)
class Minted:
    """A value that WeChat has minted: which one in the order of all, and for what path."""

    value: Any
    order: int
    path: str

    def is_of_the_same_series(self, other: "Minted") -> bool:
        """Whether the newer of the two succeeded the older at WeChat."""
        return self.path == other.path and self.value.owner is other.value.owner


@dataclass(frozen=True)
class Promise:
    """What a reader learned at `learned_at`: that the value works until `until`."""

    account: str
    credential: str
    minted: Minted
    learned_at: float
    until: float


@dataclass
class Frame:
    """One invocation of RefreshFunction: how many values it got for renewals, and how many it published.

    `disturbed`: it died, met a failing service or was held up. `epochs`: of the leases that it took. `forced_at`: when it recorded
    a forced refresh.
    """

    event: Mapping[str, Any]
    began_at: float
    fetched: int = 0
    published: int = 0
    disturbed: bool = False
    forced_at: float = 0
    failed: list[dict[str, Any]] = field(default_factory=list)
    epochs: dict[tuple[str, str], Any] = field(default_factory=dict)


class PassingClock(Clock):
    """Epoch seconds; while an instance waits, the schedules fire."""

    def __init__(self) -> None:
        super().__init__()
        self.next_at: Callable[[], float] = lambda: float("inf")
        self.fire: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        ends = self.now + seconds
        while (at := self.next_at()) <= ends:
            self.now = max(self.now, at)
            self.fire()
        self.now = max(self.now, ends)


class WatchedWeChat(SimulatedWeChat):
    """The simulated WeChat, and a record of all that it mints and of why values die.

    `spoiled`: values that another client or the platform kills before their time, or that die because of it.
    `accepted_after`: seconds for which a new token is still refused. `repeats_until`: until when an app's dead token is
    handed out again. `responded` is given each response: the path, what was asked, the token in it, and whether it was whole.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.minted: dict[str, Minted] = {}
        self.spoiled: set[str] = set()
        self.accepted_after = 0
        self.repeats_until: dict[str, float] = {}
        self.foreign = False
        self.at_point: Callable[[str], None] = lambda _: None
        self.met_fault: Callable[[str | None, Fault], None] = lambda *_: None
        self.responded: Callable[[str, Mapping[str, Any], str | None], None] = lambda *_: None
        self._path = ""

    def app_of(self, record: Mapping[str, Any]) -> Any:
        """The app whose secret the record holds; None where it is wrong."""
        apps = self._corps if "corpid" in record else self._apps
        return apps.get(record.get("corpid") or record["appid"], {}).get(record["secret"])

    def handle(
        self, method: str, path: str, query: Mapping[str, str], body: bytes, remote_addr: str = "127.0.0.1"
    ) -> Reply:
        """As WeChat does."""
        if self.foreign:
            self._path = path
            return super().handle(method, path, query, body, remote_addr)
        self.at_point("wechat")
        self._path = path
        response = super().handle(method, path, query, body, remote_addr)
        self.responded(path, json.loads(body) if body else query, _token_in(response))
        self.at_point("responded")
        return response

    def fetch_as_another_client(self, appid: str, secret: str) -> None:
        """Another client that has the AppSecret fetches a token with it."""
        self.foreign = True
        self.handle("GET", "/cgi-bin/token", {"grant_type": "client_credential", "appid": appid, "secret": secret}, b"")
        self.foreign = False

    def _next_fault(self, path: str, account: str | None) -> Fault:
        if self.foreign:
            return Fault()
        fault = super()._next_fault(path, account)
        if fault != Fault():
            self.met_fault(account, fault)
        return fault

    def _refusal(self, ask: Any, refused: Any) -> dict[str, Any]:
        refused.errmsg = refused.errmsg.replace("{sent}", ask["secret"] or ask["corpsecret"] or ask["access_token"])
        return super()._refusal(ask, refused)

    def _mint(self, owner: Any, now: float, *, is_token: bool) -> Any:
        value = super()._mint(owner, now, is_token=is_token)
        self.minted[value.text] = Minted(value, len(self.minted), self._path)
        return value

    def _renew(self, app: Any, generations: Any, now: float, overlap: float) -> Any:
        before = [(value, value.dies_at) for value in generations]
        newest = super()._renew(app, generations, now, overlap)
        for value, dies_at in before:
            # Also where it is ours that must follow one that another client has killed.
            if value.dies_at < dies_at and (self.foreign or before[-1][0].text in self.spoiled):
                self.spoiled.add(value.text)
        return newest

    def _caller(self, ask: Any) -> Any:
        if ask.token is not None and ask.now - ask.token.minted_at < self.accepted_after:
            raise _RefusedError(40001)
        return super()._caller(ask)

    def _stable_token(self, ask: Any) -> dict[str, Any]:
        if ask.params.get("force_refresh") is not True:
            repeated = self._repeated(self._wechat_app(ask).stable_tokens, ask.now)
            if repeated:
                return repeated
        return super()._stable_token(ask)

    def _gettoken(self, ask: Any) -> dict[str, Any]:
        app = self._app(ask, self._corps, "corpid", "corpsecret")
        return self._repeated(app.tokens, ask.now) or super()._gettoken(ask)

    def _repeated(self, generations: Any, now: float) -> dict[str, Any] | None:
        token = generations[-1] if generations else None
        if token is None or token.dies_at > now or now >= self.repeats_until.get(token.owner.account, 0):
            return None
        left = int(token.remaining(now))
        return {"errcode": 0, "access_token": token.text, "expires_in": left} if left >= OVERLAP else None


def _token_in(response: Reply) -> str | None:
    """The token that the caller gets; None where it gets none, or no whole response."""
    if response.drop or response.status != 200 or response.delay >= wechat.READ_TIMEOUT:
        return None
    try:
        body: Any = json.loads(response.body) if len(response.body) <= wechat.RESPONSE_LIMIT else None
    except ValueError:
        return None
    is_usable = isinstance(body, dict) and body.get("access_token") and body["expires_in"] > 0
    return str(body["access_token"]) if is_usable else None


class WatchedWorld(World):
    """The system over AWS in memory, with instances whose clocks differ."""

    def __init__(self) -> None:
        self.ticking = PassingClock()
        self.aws = MemoryAws(self.ticking)
        super().__init__(self.aws.client, clock=self.ticking)
        self.watched = self.wechat = WatchedWeChat(self.ticking)
        self.aws_call: Callable[[str], None] = lambda _: None
        self.frames: list[Frame] = []
        self.frame_ended: Callable[[Frame], None] = lambda _: None
        self.failed_with: Callable[[BaseException], None] = lambda _: None
        self.refreshers = [self._refresher(skew) for skew in SKEWS]
        self.readers = [self.reader(skew) for skew in SKEWS]
        self._turn = 0

    @contextlib.contextmanager
    def internet(self) -> Iterator[None]:
        """`wechat.Session` leads to the simulated WeChat."""
        yield

    def _refresher(self, skew: int) -> refresh.Handler:
        clock = self.ticking
        return refresh.create_handler(self.environment, lambda: clock() + skew, clock.sleep, self._client_of_functions)

    def reader(self, skew: int) -> api.Handler:
        """A new instance of ApiFunction, whose clock is off by so many seconds."""
        clock = self.ticking
        return api.create_handler(self.environment, lambda: clock() + skew, clock.sleep, self._client_of_api)

    def _aws_call(self, event_name: str, params: Mapping[str, Any], **_: Any) -> None:
        self.aws_call(event_name.removeprefix("before-call."))
        if event_name.endswith(".PutEvents"):
            super()._aws_call(event_name, params)

    def skew_of(self, invocation: int) -> int:
        """How far the clock is off of the instance that takes that invocation; 1 is the next."""
        return SKEWS[(self._turn + invocation) % len(SKEWS)]

    def invoke(
        self,
        event: Mapping[str, Any],
        instance: refresh.Handler | None = None,
        seconds: float | None = None,
        alias: str = "",
    ) -> dict[str, Any]:
        """Invoke RefreshFunction, the instances in turns. Raises `InvocationError` where one dies."""
        self._turn += 1
        frame = Frame(event, self.clock())
        self.frames.append(frame)
        try:
            summary = super().invoke(event, self.refreshers[self._turn % len(self.refreshers)], RUN_TIME, alias)
            frame.failed = summary["failed"]
            return summary
        except InstanceKilled:
            raise InvocationError from None
        except Exception as error:
            self.failed_with(error)
            raise
        finally:
            self.frames.pop()
            self.frame_ended(frame)


@dataclass(eq=False)
class Mishap:
    """What happens when the given point is passed for the `skip`-th time from now."""

    point: str
    skip: int
    effect: str
    overlap: Mapping[str, Any] = field(default_factory=dict)
    seconds: int = 0
