"""`token-keeper local`: the deployed system on one machine, in one process.

The real template says what there is: table, functions' environment and policies, routes, schedules, event rule. AWS is
embedded, WeChat is simulated (or real), and one clock drives all of it, so that `speed` lets an hour pass in a minute.
"""

import json
import logging
import os
import re
import signal
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from secrets import token_urlsafe
from threading import Event, Thread
from time import monotonic, time
from time import sleep as wait
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote

import boto3
from rich.console import Console
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

import api
import refresh
from infra import stack
from infra.embedded_aws import REGION, EmbeddedAws
from infra.errors import OperatorError
from infra.loopback import LOOPBACK, Server, gateway_body
from infra.operations import LOCAL_STACK
from infra.simulated_wechat import SimulatedWeChat

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

DEMO = "demo"
DEMO_RECORD = {
    "appid": "wx0123456789abcdef",
    "secret": "0123456789abcdef0123456789abcdef",
    "tickets": ["jsapi"],
}
"""The account that is kept where no real one is given."""

REAL = "main"

FUNCTIONS = ("RefreshFunction", "ApiFunction")

FASTEST = 120
"""A call over loopback takes some 10 ms; at this speed that is a second of the keeper's time."""


class Clock:
    """Epoch seconds that pass `speed` times as fast as the wall clock's, and a sleep to match."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self._began_at, self._began = time(), monotonic()

    def __call__(self) -> float:
        """The time in epoch seconds (UTC)."""
        return self._began_at + (monotonic() - self._began) * self.speed

    def sleep(self, seconds: float) -> None:
        """Wait until so many seconds have passed on this clock."""
        wait(seconds / self.speed)


class _Context:
    """What Lambda tells a function of its invocation, as far as ours ask."""

    def __init__(self, clock: Clock, timeout: int) -> None:
        self._clock, self._ends_at = clock, clock() + timeout

    def get_remaining_time_in_millis(self) -> int:
        return int((self._ends_at - self._clock()) * 1000)


class LocalStack:
    """The system, running while the context lasts.

    `port`: the API's, with AWS on the next and WeChat on the one after; 0 takes free ones. `record`: of the account to
    keep, a real one where `real`. `tell` is given a line for whatever happens. Raises OSError where a port is taken.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        host: str = LOOPBACK,
        speed: float = 1,
        name: str = DEMO,
        record: Mapping[str, Any] = DEMO_RECORD,
        real: bool = False,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.clock = Clock(speed)
        self.wechat = SimulatedWeChat(self.clock)
        self._port, self._host = port, host
        self._name, self._record, self._real, self._tell = name, record, real, tell
        self._stopping = Event()
        self.tried = Event()
        """Set once a renewal has come to an end, well or not."""
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as started:
            self._start(started)
            self._resources = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._resources.close()

    def _start(self, started: ExitStack) -> None:
        template = stack.translate()
        self._timeouts = {name: template["Resources"][name]["Properties"]["Timeout"] for name in FUNCTIONS}
        # Every port is taken before anything runs, so that one in use is met at once.
        wechat, http = self._server(started, self.wechat, 2), self._server(started, gateway(template, self._api), 0)
        self.wechat_url, self.api_url = wechat.url, http.url
        self._aws = EmbeddedAws(LOCAL_STACK, self._port and self._port + 1, self.api_url, self._host)
        started.callback(self._aws.stop)
        functions: dict[str, Callable[[dict[str, Any]], object]] = {}
        self._aws.start(functions)
        self.aws_url = self._aws.endpoint_url
        client = partial(self._aws.session("RefreshFunction").client, endpoint_url=self.aws_url)
        time = self.clock, self.clock.sleep
        self._refresh_handler = refresh.connect(self.environment("RefreshFunction"), *time, client)
        self._api_handler = api.connect(self.environment("ApiFunction"), *time)
        functions |= {"RefreshFunction": self._refresh, "ApiFunction": self._api}
        wechat.start()
        http.start()
        self._add_account()
        for schedule in stack.schedules(template):
            thread = Thread(target=self._run_schedule, args=[schedule], daemon=True)
            started.callback(thread.join)
            thread.start()

    def _server(self, started: ExitStack, application: Any, offset: int) -> Server:
        server = Server(application, self._port and self._port + offset, self.clock, self._host)
        started.callback(server.stop)
        return server

    def environment(self, function: str) -> dict[str, str]:
        """The function's environment here: the template's, but for the embedded AWS and the simulated WeChat."""
        simulated = {"WECHAT_API_URL": self.wechat_url, "WECOM_API_URL": self.wechat_url}
        # No CloudWatch reads what the functions write here, so they tell no metrics.
        return self._aws.environment(function) | {"STACK_NAME": ""} | ({} if self._real else simulated)

    def _add_account(self) -> None:
        if not self._real:
            self.wechat.add_app(self._record["appid"], self._record["secret"])
        ssm = boto3.Session("local", "local", region_name=REGION).client("ssm", endpoint_url=self.aws_url)
        parameter = f"{self._aws.outputs['AccountsPath']}/{self._name}"
        ssm.put_parameter(Name=parameter, Value=json.dumps(self._record), Type="SecureString")

    # --- the functions

    def _refresh(self, event: Mapping[str, Any]) -> dict[str, Any]:
        summary = self._refresh_handler(event, _Context(self.clock, self._timeouts["RefreshFunction"]))
        for line in told(summary):
            self._tell(f"{datetime.fromtimestamp(self.clock(), UTC):%H:%M:%S} {line}")
        if summary["renewed"] or summary["failed"]:
            self.tried.set()
        return summary

    def _api(self, event: Mapping[str, Any]) -> dict[str, Any]:
        return self._api_handler(event, _Context(self.clock, self._timeouts["ApiFunction"]))

    def _run_schedule(self, schedule: stack.Schedule) -> None:
        while not self._stopping.is_set():
            self._aws.send(schedule.function, schedule.event)
            self._stopping.wait(schedule.rate / self.clock.speed)


def gateway(template: stack.Template, api: Callable[[dict[str, Any]], dict[str, Any]]) -> "WSGIApplication":
    """HTTP as API Gateway does it, with a translated template's routes; but nobody has to sign here."""
    routes = Map([_rule(route) for route in stack.routes(template)])

    def answer_http(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        request = Request(environ)
        try:
            # Routed as it was sent: an encoded slash is part of a name there, and no separator.
            path = environ["REQUEST_URI"].partition("?")[0]
            route_key, quoted = routes.bind_to_environ(environ).match(path)
        except HTTPException:
            response = Response('{"message":"Not Found"}', 404, mimetype="application/json")
        else:
            path_parameters = {name: unquote(value) for name, value in quoted.items()}
            answer = api(_gateway_event(request, route_key, path_parameters))
            response = Response(answer["body"], answer["statusCode"], answer["headers"])
        return response(environ, start_response)

    return answer_http


def told(summary: Mapping[str, Any]) -> Iterable[str]:
    """What a wake-up of RefreshFunction did, in plain lines; none for a guard that found nothing to do."""
    if summary["woken_by"] != "guard" or summary["renewed"] or summary["failed"]:
        yield f"woken by {summary['woken_by']}"
    for one in summary["renewed"]:
        yield (
            f"  renewed {one['account']} {one['credential']}: fingerprint {one['fingerprint']}, "
            f"promised until {one['promised_until']}, expires {one['expires_at']}"
        )
    for one in summary["failed"]:
        errcode = "" if one["errcode"] is None else f" {one['errcode']}"
        yield f"  failed {one['account']} {one['credential']} ({one['class']}{errcode}): {one['errmsg']}"
        yield f"    {one['remedy']} Next attempt: {one['next_attempt_at']}"


def run(port: int, speed: float, host: str, record: Mapping[str, str] | None) -> None:
    """Run until Ctrl-C; with the record of a real account, keep that. Raises OperatorError where it cannot start."""
    if not 1 <= speed <= FASTEST:
        raise OperatorError(f"--speed takes a number from 1 to {FASTEST}.")
    if record and speed != 1:
        raise OperatorError("The real WeChat keeps real time: leave --speed out, or unset WECHAT_APPID.")
    if record and host != LOOPBACK:
        raise OperatorError("A real account's token is shown to this machine only: leave --host out.")
    refresh.logger.setLevel(logging.CRITICAL)  # its outcomes are told in plain lines
    os.environ["NO_PROXY"] = f"{LOOPBACK},{os.environ.get('NO_PROXY', '')}"
    stopped = Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    signal.signal(signal.SIGINT, lambda *_: stopped.set())
    console = Console(highlight=False, soft_wrap=True)
    name = REAL if record else DEMO
    try:
        with LocalStack(
            port=port,
            host=host,
            speed=speed,
            name=name,
            record=record or DEMO_RECORD,
            real=bool(record),
            tell=console.print,
        ) as local:
            local.tried.wait(timeout=60)
            console.print(f"ready: {local.api_url}")
            console.print(f"try:   curl {local.api_url}/v1/accounts/{name}/access-token")
            where = "" if port == 3000 else f"TOKEN_KEEPER_LOCAL_PORT={port} "
            console.print(f"       {where}uv run token-keeper --local status")
            console.print(f"AWS:   {local.aws_url} (embedded)")
            console.print(f"WeChat: {'the real one' if record else f'{local.wechat_url} (simulated)'}")
            console.print("Ctrl-C ends it.")
            stopped.wait()
    except OSError as error:
        raise OperatorError(f"A port cannot be opened ({error.strerror}): choose others with --port.") from None
    console.print("stopped")


def _rule(route: stack.Route) -> Rule:
    path = re.sub(r"\{(\w+)\}", r"<\1>", route.path)
    return Rule(path, methods=[route.method], endpoint=f"{route.method} {route.path}", strict_slashes=True)


def _gateway_event(request: Request, route_key: str, path_parameters: Mapping[str, str]) -> dict[str, Any]:
    """The request as API Gateway hands it on (HTTP API, payload format 2.0), as far as ApiFunction reads it."""
    query = {name: ",".join(request.args.getlist(name)) for name in request.args}
    caller = {"authorizer": {"iam": {"userArn": "arn:aws:iam::123456789012:user/local"}}}
    return {
        "version": "2.0",
        "routeKey": route_key,
        "rawPath": request.path,
        "pathParameters": dict(path_parameters),
        **({"queryStringParameters": query} if query else {}),
        **gateway_body(request.get_data(), request.mimetype),
        "requestContext": {
            "requestId": token_urlsafe(11),
            "http": {"sourceIp": request.remote_addr},
            **(caller if request.path.startswith("/v1/") else {}),
        },
    }
