"""`token-keeper local`: the deployed system on one machine, in one process.

The real template says what there is: table, functions' environment and policies, routes, schedules, event rule. AWS is
embedded, WeChat is simulated (or real), and one clock drives all of it, so that `speed` lets an hour pass in a minute.
"""

import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from secrets import token_urlsafe
from threading import Event, Thread
from time import monotonic, time
from time import sleep as wait
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote

import boto3
from rich.console import Console
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

import api
import notify
import refresh
from infra import sam_template
from infra.console.web import PageServer, in_front_of
from infra.errors import OperatorError
from infra.local import access_keys, simulated_robots
from infra.local.access_keys import LOCAL_STACK, OPERATOR, REGION, KeysError
from infra.local.embedded_aws import EmbeddedAws
from infra.local.http_server import (
    LOOPBACK,
    CannotListenError,
    Server,
    gateway_body,
    has_api_key,
    three_free_ports,
)
from infra.local.page import LocalPage
from infra.local.simulated_robots import SimulatedRobots
from infra.local.simulated_wechat import Fault, SimulatedWeChat
from infra.signals import until_stopped
from token_keeper.errors import InvalidRecordError
from token_keeper.model import ACCOUNT_NAME
from token_keeper.refresh.parameter_store import parse_record

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

DEMO = "demo"
DEMO_RECORD: dict[str, Any] = {
    "appid": "wx0123456789abcdef",
    "secret": "0123456789abcdef0123456789abcdef",
    "tickets": ["jsapi"],
}
"""The account that is kept where no other is given."""

REAL = "main"

FUNCTIONS = ("RefreshFunction", "ApiFunction", "NotifyFunction")

FASTEST = 120
"""Upper limit of --speed: a call over loopback takes about 10 ms, which at this speed is more than a simulated second."""


class Clock:
    """Epoch seconds that pass `speed` times as fast as the wall clock's, and a sleep to match."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self._began_at, self._began = time(), monotonic()

    def __call__(self) -> float:
        """The time in epoch seconds (UTC)."""
        return self._began_at + (monotonic() - self._began) * self.speed

    def sleep(self, seconds: float) -> None:
        """Wait until these seconds have passed on this clock."""
        wait(seconds / self.speed)


class _Context:
    """What a function learns from Lambda about its invocation, as far as ours ask. Its seconds are real ones, at any speed."""

    def __init__(self, timeout: int, function: str) -> None:
        self._ends_at = monotonic() + timeout
        self.invoked_function_arn = f"arn:aws:lambda:{REGION}:123456789012:function:{LOCAL_STACK}-{function}"

    def get_remaining_time_in_millis(self) -> int:
        return int((self._ends_at - monotonic()) * 1000)


class LocalStack:
    """The system, running while the context lasts.

    `port`: the API's, with AWS on the next and WeChat on the one after; 0 takes three free ones. `host`: the address to
    listen on, which lets containers in by their name for this machine; by default only this machine is let in. `accounts`:
    the records to keep, by name; they are a real WeChat's where `real`. `fault`: what goes wrong with each call of WeChat.
    `emit` is given a line for each event.

    The keys that its servers ask for are in `access_keys.folder(port)`: AWS always asks for one, as do the calls that steer
    the simulated WeChat, and the API where it is open to more than this machine, or has a real account's token.

    Raises CannotListenError where a port cannot be opened, KeysError where the keys cannot be written.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        host: str | None = None,
        speed: float = 1,
        accounts: Mapping[str, Mapping[str, Any]] = MappingProxyType({DEMO: DEMO_RECORD}),
        real: bool = False,
        fault: Fault = Fault(),  # noqa: B008 - it is frozen
        emit: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.clock = Clock(speed)
        self.port = port or three_free_ports()
        self.api_key = token_urlsafe(30)
        self.asks_for_key = real or host is not None
        """Whether the API's routes below /v1 take the key in `X-Api-Key`."""
        self.wechat = SimulatedWeChat(self.clock, fault=fault, api_key=self.api_key)
        self.robots = SimulatedRobots(self.clock, lambda robot, text: emit(f"robot {robot} writes:\n{text}"))
        self._host = host
        self._accounts, self._real, self._emit = accounts, real, emit
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
        template = sam_template.translate()
        self._timeouts = {name: template["Resources"][name]["Properties"]["Timeout"] for name in FUNCTIONS}
        # Every port is taken before anything runs, so that one in use is met at once.
        api_key = self.api_key if self.asks_for_key else None
        page = PageServer(
            lambda: self._page.state(self.clock.speed), press=lambda name: self._page.press(name), api_key=api_key
        )
        api_app = in_front_of(gateway(template, self._api, api_key), page)
        wechat, http = self._server(started, self._simulated, 2), self._server(started, api_app, 0)
        self.wechat_url, self.api_url = wechat.url, http.url
        self._aws = EmbeddedAws(LOCAL_STACK, self.port + 1, self.api_url, self._host)
        started.callback(self._aws.stop)
        self._page = LocalPage(self.clock, self.wechat, self._aws, self._api, self._refresh, real=self._real)
        started.callback(self._page.stop)
        functions: dict[str, Callable[[dict[str, Any]], object]] = {}
        self._aws.emit = self._emit_event
        self._aws.start(functions)
        self.aws_url = self._aws.endpoint_url
        started.callback(access_keys.remove, self.port)
        access_keys.write(self.port, self.aws_url, self._aws.keys, self.api_key)
        client = partial(self._aws.session("RefreshFunction").client, endpoint_url=self.aws_url)
        time = self.clock, self.clock.sleep
        self._refresh_handler = refresh.create_handler(self.environment("RefreshFunction"), *time, client)
        self._api_handler = api.create_handler(self.environment("ApiFunction"), *time)
        notify_client = partial(self._aws.session("NotifyFunction").client, endpoint_url=self.aws_url)
        self._notify_handler = notify.create_handler(self.environment("NotifyFunction"), self.clock, notify_client)
        functions |= {"RefreshFunction": self._refresh, "ApiFunction": self._api, "NotifyFunction": self._notify}
        functions["RefreshFunction:readers"] = partial(self._refresh, name="RefreshFunction:readers")
        wechat.start()
        http.start()
        self._add_accounts()
        for schedule in sam_template.schedules(template):
            thread = Thread(target=self._run_schedule, args=[schedule], daemon=True)
            started.callback(thread.join)
            thread.start()

    def _server(self, started: ExitStack, application: Any, offset: int) -> Server:
        server = Server(application, self.port + offset, self.clock, self._host)
        started.callback(server.stop)
        return server

    @property
    def page_url(self) -> str:
        """The address of the page; where the API asks for its key, with that in the fragment, which no request carries."""
        return f"{self.api_url}/" + (f"#key={self.api_key}" if self.asks_for_key else "")

    def environment(self, function: str) -> dict[str, str]:
        """The function's environment here: the template's, except for the embedded AWS and the simulated WeChat."""
        names = ("WECHAT_API_URL", "WECOM_API_URL", "WECOM_ROBOT_URL", "FEISHU_ROBOT_URL", "DINGTALK_ROBOT_URL")
        simulated = {name: self.wechat_url for name in names if name in self._aws.environment(function)}
        return self._aws.environment(function) | ({} if self._real else simulated)

    def aws_session(self) -> boto3.Session:
        """A session with the operator's key; its clients are to be given `aws_url`."""
        return self._aws.session(OPERATOR)

    def _add_accounts(self) -> None:
        ssm = self.aws_session().client("ssm", endpoint_url=self.aws_url)
        for name, record in self._accounts.items():
            if not self._real:
                add_to_wechat = self.wechat.add_corp_app if "corpid" in record else self.wechat.add_app
                add_to_wechat(record.get("corpid") or record["appid"], record["secret"])
            parameter = f"{self._aws.outputs['AccountsPath']}/{name}"
            ssm.put_parameter(Name=parameter, Value=json.dumps(record), Type="SecureString")

    def _emit_event(self, event: Mapping[str, Any]) -> None:
        detail = event["detail"]
        what = f"event {event['detail-type']}: {detail['account']} {detail['credential']}"
        self._emit(f"{datetime.fromtimestamp(self.clock(), UTC):%H:%M:%S} {what}")

    # --- the functions

    def _refresh(self, event: Mapping[str, Any], name: str = "RefreshFunction") -> dict[str, Any]:
        summary = self._refresh_handler(event, _Context(self._timeouts["RefreshFunction"], name))
        self._page.history.add_summary(self.clock(), summary)
        for line in summary_lines(summary):
            self._emit(f"{datetime.fromtimestamp(self.clock(), UTC):%H:%M:%S} {line}")
        if summary["renewed"] or summary["failed"]:
            self.tried.set()
        return summary

    def _api(self, event: Mapping[str, Any]) -> dict[str, Any]:
        return self._api_handler(event, _Context(self._timeouts["ApiFunction"], "ApiFunction"))

    def _notify(self, event: Mapping[str, Any]) -> dict[str, Any]:
        return self._notify_handler(event, _Context(self._timeouts["NotifyFunction"], "NotifyFunction"))

    def _simulated(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """WeChat, and the group robots, some of which have the same host."""
        is_robots = environ["PATH_INFO"].startswith(simulated_robots.PATHS)
        return (self.robots if is_robots else self.wechat)(environ, start_response)

    def _run_schedule(self, schedule: sam_template.Schedule) -> None:
        while not self._stopping.is_set():
            self._aws.send(schedule.function, schedule.event)
            self._stopping.wait(schedule.rate / self.clock.speed)


def gateway(
    template: sam_template.Template, api: Callable[[dict[str, Any]], dict[str, Any]], api_key: str | None = None
) -> "WSGIApplication":
    """HTTP as API Gateway does it, with a translated template's routes; but requests need not be signed here.

    With `api_key` the routes that API Gateway would want signed ask for it in the header X-Api-Key.

    A request is served where its method and its whole path are a route's ("Create routes for HTTP APIs", API Gateway
    Developer Guide), else with 404 and `Not Found`. So HEAD needs a route of its own, as does OPTIONS without CORS; `/path/`
    is another path than `/path` (storacha/w3infra#166 met that on AWS; aws-powertools/powertools-lambda-python#1552 says
    that both reach the function); and so is `//path`. What AWS does with slashes and HEAD was not run.
    """
    routes = Map([_rule(route) for route in sam_template.routes(template)], merge_slashes=False)

    def respond(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        request = Request(environ)
        # Routed as it was sent: an encoded slash is part of a name there, and no separator.
        path = environ["REQUEST_URI"].partition("?")[0]
        try:
            route_key, quoted = routes.bind_to_environ(environ).match(path)
        except HTTPException:
            route_key, quoted = "", {}
        route_path = route_key.partition(" ")[2]
        if not route_key or path.startswith("//"):  # werkzeug takes `//` for `/`
            response = _gateway_error(404, "Not Found")
        elif api_key and _is_signed(route_path) and not has_api_key(environ, api_key):
            response = _gateway_error(403, "Forbidden")
        else:
            path_parameters = {name: unquote(value) for name, value in quoted.items()}
            reply = api(_gateway_event(request, route_key, path_parameters))
            response = Response(reply["body"], reply["statusCode"], reply["headers"])
        return response(environ, start_response)

    return respond


def _gateway_error(status: int, message: str) -> Response:
    return Response(json.dumps({"message": message}, separators=(",", ":")), status, mimetype="application/json")


def _is_signed(path: str) -> bool:
    """Whether API Gateway wants requests to that route signed."""
    return path.startswith("/v1/")


def summary_lines(summary: Mapping[str, Any]) -> Iterable[str]:
    """What an invocation of RefreshFunction did, in plain lines; none for one that found nothing to do."""
    if summary["renewed"] or summary["failed"]:
        yield f"woken by {summary['woken_by']}"
    for item in summary["renewed"]:
        yield (
            f"  renewed {item['account']} {item['credential']}: fingerprint {item['fingerprint']}, "
            f"promised until {item['promised_until']}, expires {item['expires_at']}"
        )
    for item in summary["failed"]:
        errcode = "" if item["errcode"] is None else f" {item['errcode']}"
        yield f"  failed {item['account']} {item['credential']} ({item['class']}{errcode}): {item['errmsg']}"
        yield f"    {item['remedy']} Next attempt: {item['next_attempt_at']}"


def run(
    port: int,
    speed: float,
    host: str | None,
    record: Mapping[str, str] | None,
    accounts_file: Path | None,
    fault_name: str | None,
) -> None:
    """Run until Ctrl-C; with the record of a real account, keep that. Raises OperatorError where it cannot start."""
    if not 1 <= speed <= FASTEST:
        raise OperatorError(f"--speed takes a number from 1 to {FASTEST}.")
    if record and speed != 1:
        raise OperatorError("The real WeChat keeps real time: leave --speed out, or unset WECHAT_APPID.")
    if record and host not in (None, LOOPBACK):
        raise OperatorError("A real account's token is shown to this machine only: leave --host out.")
    if record and (accounts_file or fault_name):
        raise OperatorError(
            "--accounts and --fault are for the simulated WeChat: leave them out, or unset WECHAT_APPID."
        )
    try:
        fault = Fault.named(fault_name) if fault_name else Fault()
    except ValueError as names:
        raise OperatorError(f"--fault takes {names}.") from None
    accounts: Mapping[str, Mapping[str, Any]] = {REAL: record} if record else {DEMO: DEMO_RECORD}
    if accounts_file:
        accounts = read_accounts(accounts_file)
    os.environ["NO_PROXY"] = f"{host or LOOPBACK},{LOOPBACK},{os.environ.get('NO_PROXY', '')}"
    wait_for_stop = until_stopped()
    console = Console(highlight=False, markup=False, soft_wrap=True)
    level = refresh.logger.log_level
    refresh.logger.setLevel("CRITICAL")  # what it logs as JSON is printed in words
    options: dict[str, Any] = {"speed": speed, "accounts": accounts, "real": bool(record), "fault": fault}
    try:
        with LocalStack(port=port, host=host, emit=console.print, **options) as local:
            local.tried.wait(timeout=60)
            console.print(_greeting(local, next(iter(accounts)), "the real one" if record else None))
            wait_for_stop()
    except CannotListenError as error:
        remedy = "leave --host out" if error.port is None else "choose three others in a row with --port"
        raise OperatorError(f"The local stack cannot start: {error}; {remedy}.") from None
    except KeysError as error:
        raise OperatorError(f"The local stack cannot start: {error}.") from None
    finally:
        refresh.logger.setLevel(level)
    console.print("stopped")


def _greeting(local: LocalStack, account: str, real_wechat: str | None) -> str:
    key_file = access_keys.api_key_file(local.port)
    key = f"-H {shlex.quote(f'@{key_file}')} " if local.asks_for_key else ""
    where = "" if local.port == 3000 else f"TOKEN_KEEPER_LOCAL_PORT={local.port} "
    return f"""ready: {local.api_url}
page:  {local.page_url}
try:   curl {key}{local.api_url}/v1/accounts/{account}/access-token
       {where}uv run token-keeper --local status
AWS:   {local.aws_url} (embedded)
WeChat: {real_wechat or f"{local.wechat_url} (simulated)"}
keys:  {key_file.parent} (of this run, readable by you alone)
Press Ctrl-C to stop. Then all of it is forgotten: accounts, tokens, consumers, keys."""


def read_accounts(path: Path) -> dict[str, dict[str, Any]]:
    """The accounts of a file that holds a JSON object: each name with its record, as Parameter Store would hold it.

    Raises OperatorError that says what is wrong with it, without a secret.
    """
    try:
        accounts = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise OperatorError(f"{path} cannot be read ({error.strerror}).") from None
    except ValueError:
        raise OperatorError(f"{path} is not JSON in UTF-8.") from None
    if not isinstance(accounts, dict) or not accounts:
        raise OperatorError(f'{path} must hold a JSON object like {{"main": {{"appid": …, "secret": …}}}}.')
    for name, record in accounts.items():
        if not ACCOUNT_NAME.fullmatch(name):
            raise OperatorError(f"{path}: '{name}' is no account's name: use lower-case letters, digits and dashes.")
        try:
            parse_record(name, json.dumps(record))
        except InvalidRecordError as error:
            raise OperatorError(f"{path}: {name}: {error}.") from None
    return accounts


def _rule(route: sam_template.Route) -> Rule:
    path = re.sub(r"\{(\w+)\}", r"<\1>", route.path).replace("{proxy+}", "<path:proxy>")
    methods = None if route.method == "ANY" else [route.method]
    rule = Rule(path, methods=methods, endpoint=f"{route.method} {route.path}", strict_slashes=True)
    if rule.methods and route.method != "HEAD":
        rule.methods.discard("HEAD")  # werkzeug takes HEAD for GET
    return rule


def _gateway_event(request: Request, route_key: str, path_parameters: Mapping[str, str]) -> dict[str, Any]:
    """The request as API Gateway hands it on (HTTP API, payload format 2.0), as far as ApiFunction reads it."""
    query = {name: ",".join(request.args.getlist(name)) for name in request.args}
    caller = {"authorizer": {"iam": {"userArn": "arn:aws:iam::123456789012:user/local"}}}
    return {
        "version": "2.0",
        "routeKey": route_key,
        "rawPath": request.path,
        "rawQueryString": request.query_string.decode(errors="replace"),
        "pathParameters": dict(path_parameters),
        **({"queryStringParameters": query} if query else {}),
        **gateway_body(request.get_data(), request.mimetype),
        "requestContext": {
            "requestId": token_urlsafe(11),
            "http": {"sourceIp": request.remote_addr},
            **(caller if _is_signed(request.path) else {}),
        },
    }
