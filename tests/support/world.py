"""A whole system to test in one process: the real handlers over a clock that the test moves, a simulated WeChat,
and AWS by moto (or DynamoDB Local where a test races).

    with mock_aws():
        world = World()
        world.add_account("main")
        world.wake("guard")
        status, body = world.get("/v1/accounts/main/access-token")
"""

import io
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import boto3
from botocore.exceptions import ReadTimeoutError as BotocoreTimeoutError
from urllib3.connectionpool import HTTPSConnectionPool
from urllib3.exceptions import ProtocolError, ReadTimeoutError

import api
import refresh
from infra import sam_template
from infra.cli.consumer_keys import new_consumer
from infra.local.http_server import gateway_body
from infra.local.simulated_wechat import SimulatedWeChat
from token_keeper.model import digest
from token_keeper.refresh import wechat

ACCOUNTS_PATH = "/wechat-token-keeper/accounts"
REGION = "us-east-1"
START = 1_790_000_000
"""2026-09-21, 14:13:20 UTC."""

REQUEST_ID = "JKJaXmPLvHcESHA="
"""As API Gateway makes them."""

SOURCE_IP = "198.51.100.7"

APPID, SECRET = "wx0123456789abcdef", "0123456789abcdef0123456789abcdef"

ENVIRONMENT = {
    "STACK_NAME": "production",
    "TABLE_NAME": "tokens",
    "ACCOUNTS_PATH": ACCOUNTS_PATH,
    "REFRESH_FUNCTION_NAME": "refresh",
    "WECHAT_API_URL": "https://api.weixin.qq.com",
    "WECOM_API_URL": "https://qyapi.weixin.qq.com",
}


class Clock:
    """Epoch seconds that pass only by `sleep`."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class World:
    """The system at one moment. `client` makes AWS clients; with none, boto3's (inside moto's `mock_aws`).

    With a clock that threads may share, its methods may be called from several threads at once.

    `before_aws` is called with the name of each AWS call of both functions (`dynamodb.PutItem`, `lambda.Invoke`) and what
    it sends, as it begins; what it raises, the call raises. `during_call` is called once, when WeChat has done its part of the next call
    and its response is still under way. `unreachable`: no connection to WeChat comes about.
    `responded` is called with the route key and the response of each request.
    `said` is everything but values that the system has emitted: summaries, health, problem documents. `sent`: the events that
    EventBridge has taken.
    """

    def __init__(
        self, client: Callable[..., Any] | None = None, table_name: str = "tokens", clock: Clock | None = None
    ) -> None:
        self.clock = clock or Clock()
        self.wechat = SimulatedWeChat(self.clock)
        self._client: Callable[..., Any] = client or _clients_in_moto()
        self.environment = {**ENVIRONMENT, "TABLE_NAME": table_name}
        self.dynamodb = self._client("dynamodb")
        self.ssm = self._client("ssm")
        create_table(self.dynamodb, table_name)
        self.events: list[Mapping[str, Any]] = []
        self.said: list[str] = []
        self.sent: list[dict[str, Any]] = []
        self.secrets: set[str] = set()
        self.before_aws: Callable[[str, bytes], None] | None = None
        self.during_call: Callable[[], object] | None = None
        self.responded: Callable[[str, Mapping[str, Any]], object] = lambda _route, _handle: None
        self.unreachable = False
        self._online = 0
        self._internet: Any = None
        self._internet_lock = threading.Lock()
        self.restart()

    def restart(self) -> None:
        """Cold starts: new instances of both functions that remember nothing."""
        self._refresh = self.refresh_instance()
        self._api = self.api_instance()

    def refresh_instance(self) -> refresh.Handler:
        """One more instance of RefreshFunction."""
        return refresh.create_handler(self.environment, self.clock, self.clock.sleep, self._client_of_functions)

    def api_instance(self) -> api.Handler:
        """One more instance of ApiFunction."""
        return api.create_handler(self.environment, self.clock, self.clock.sleep, self._client_of_api)

    def _client_of_api(self, service: str, **options: Any) -> Any:
        return _Invoker(self) if service == "lambda" else self._client_of_functions(service, **options)

    def _client_of_functions(self, service: str, **options: Any) -> Any:
        client = self._client(service, **options)
        client.meta.events.register("before-call", self._aws_call, unique_id=id(self))
        return client

    def _aws_call(self, event_name: str, params: Mapping[str, Any], **_: Any) -> None:
        if self.before_aws:
            self.before_aws(event_name.removeprefix("before-call."), params["body"])
        if event_name == "before-call.eventbridge.PutEvents":
            self.said.append(params["body"].decode())
            entries = json.loads(params["body"])["Entries"]
            self.sent += [{**entry, "Detail": json.loads(entry["Detail"])} for entry in entries]

    @contextmanager
    def down(self, *services: str) -> Iterator[None]:
        """These services (or single calls, as `dynamodb.PutItem`) cannot be reached by the functions meanwhile."""

        def refuse(operation: str, _: bytes) -> None:
            if operation.startswith(services):
                raise BotocoreTimeoutError(endpoint_url=f"https://{operation}.invalid/")

        self.before_aws = refuse
        try:
            yield
        finally:
            self.before_aws = None

    # --- what people and schedules do

    def add_account(self, name: str = "main", **record: Any) -> dict[str, Any]:
        """Put an account's parameter (known to WeChat, too) and deliver its event; returns the summary."""
        record = {"appid": APPID, "secret": SECRET} | record
        self.secrets.add(record["secret"])
        if "corpid" in record:
            del record["appid"]
            self.wechat.add_corp_app(record["corpid"], record["secret"])
        else:
            self.wechat.add_app(record["appid"], record["secret"])
        return self.put_parameter(name, json.dumps(record))

    def put_parameter(self, name: str, value: str) -> dict[str, Any]:
        """Write an account's parameter as it is, and deliver its event; returns the summary."""
        self.ssm.put_parameter(Name=f"{ACCOUNTS_PATH}/{name}", Value=value, Type="SecureString", Overwrite=True)
        return self.parameter_event(name)

    def add_consumer(self, name: str, accounts: Iterable[str], *, may_report: bool = False) -> str:
        """Keep a consumer; returns its key."""
        key, item = new_consumer(name, accounts, may_report=may_report, now=int(self.clock()))
        self.secrets.add(key)
        self.dynamodb.put_item(TableName=self.environment["TABLE_NAME"], Item=item)
        return key

    def revoke(self, key: str) -> None:
        """Let a consumer's key be valid no longer."""
        self.dynamodb.delete_item(
            TableName=self.environment["TABLE_NAME"], Key={"pk": {"S": "consumers"}, "sk": {"S": digest(key)}}
        )

    def delete_parameter(self, name: str) -> dict[str, Any]:
        """Delete an account's parameter and deliver its event; returns the summary."""
        self.ssm.delete_parameter(Name=f"{ACCOUNTS_PATH}/{name}")
        return self.parameter_event(name, "Delete")

    def parameter_event(self, name: str, operation: str = "Update") -> dict[str, Any]:
        """Deliver a Parameter Store event; returns the summary."""
        detail = {"name": f"{ACCOUNTS_PATH}/{name}", "operation": operation, "type": "SecureString"}
        return self.invoke({"source": "aws.ssm", "detail-type": "Parameter Store Change", "detail": detail})

    def wake(self, schedule: str) -> dict[str, Any]:
        """Let the `tick` or the `guard` fire; returns the summary."""
        return self.invoke({"wake": schedule})

    def invoke(
        self,
        event: Mapping[str, Any],
        instance: refresh.Handler | None = None,
        seconds: float | None = None,
        alias: str = "",
    ) -> dict[str, Any]:
        """Invoke RefreshFunction, or its `alias`, with so many `seconds` to run; returns the summary."""
        self.events.append(event)
        ends_at = float("inf") if seconds is None else self.clock() + seconds
        context = _Context(self.clock, ends_at, f":{alias}" if alias else "")
        with self.internet():
            summary = json.dumps((instance or self._refresh)(event, context))
        self.said.append(summary)
        return json.loads(summary)  # type: ignore[no-any-return]

    def get(self, path: str, instance: api.Handler | None = None) -> tuple[int, dict[str, Any]]:
        """GET a path of the API; returns status and body."""
        status, body, _ = self.request(path, instance)
        return status, body

    def report(
        self, name: str = "main", instance: api.Handler | None = None, **body: Any
    ) -> tuple[int, dict[str, Any]]:
        """POST a report that the account's access token was refused; returns status and body."""
        path = f"/v1/accounts/{name}/access-token/reports"
        status, response, _ = self.request(path, instance, json.dumps(body))
        return status, response

    def request(
        self, path: str, instance: api.Handler | None = None, body: str | None = None
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """GET a path of the API, or POST a body to it; returns status, body and headers."""
        event = gateway_event(path, body)
        with self.internet():
            response = (instance or self._api)(event, None)
        if response["statusCode"] != 200 or not path.endswith(_VALUE_PATHS):
            self.said.append(response["body"])
        self.responded(event["routeKey"], response)
        return response["statusCode"], json.loads(response["body"]), response["headers"]

    def ask(
        self,
        call: str,
        instance: api.Handler | None = None,
        /,
        *,
        body: str | bytes | None = None,
        content_type: str = "application/json",
        **query: str,
    ) -> dict[str, Any]:
        """Make a call of WeChat's (`GET /cgi-bin/token`) as an SDK does, and return what WeChat would have returned."""
        method, path = call.split()
        event = gateway_event(f"{path}?{urlencode(query)}", body, method=method, content_type=content_type)
        with self.internet():
            response = (instance or self._api)(event, None)
        assert response["statusCode"] == 200, response
        reply: dict[str, Any] = json.loads(response["body"])
        if reply.get("errcode"):
            self.said.append(response["body"])
        self.responded(event["routeKey"], response)
        return reply

    def token(self, name: str = "main") -> str:
        """The access token that the API hands out."""
        status, body = self.get(f"/v1/accounts/{name}/access-token")
        assert status == 200, body
        return str(body["access_token"])

    def health(self, name: str = "main", credential: str = "access_token") -> dict[str, Any]:
        """One credential's health."""
        _, body = self.get(f"/v1/accounts/{name}")
        return next(element for element in body["credentials"] if element["credential"] == credential)

    def calls(self, path: str = "/cgi-bin/token") -> int:
        """How often WeChat was called there."""
        return sum(call.path == path for call in self.wechat.calls)

    @contextmanager
    def internet(self) -> Iterator[None]:
        """What RefreshFunction sends reaches the simulated WeChat; a slow response lets the clock pass or times out.

        The transport is patched for all threads, from the first that enters to the last that leaves.
        """
        with self._internet_lock:
            self._online += 1
            if self._online == 1:
                self._internet = patch.object(wechat.Session, "exchange", self.exchange)
                self._internet.start()
        try:
            yield
        finally:
            with self._internet_lock:
                self._online -= 1
                if self._online == 0:
                    self._internet.stop()

    def exchange(self, method: str, address: str, body: bytes | None) -> tuple[int, bytes]:
        """As `wechat.Session` does it: what urllib3 raises holds the address, and so the secret."""
        url = urlsplit(address)
        assert address.startswith((self.environment["WECHAT_API_URL"], self.environment["WECOM_API_URL"]))
        if self.unreachable:
            raise wechat._NotConnectedError("NewConnectionError")
        response = self.wechat.handle(method, url.path, dict(parse_qsl(url.query)), body or b"")
        if self.during_call:
            during_call, self.during_call = self.during_call, None
            during_call()
        self.clock.sleep(min(response.delay, wechat.READ_TIMEOUT))
        if response.delay >= wechat.READ_TIMEOUT:
            raise ReadTimeoutError(_pool(url.hostname), address, f"Read timed out: {address}")
        if response.drop:
            raise ProtocolError(f"Connection aborted: {address}")
        return response.status, response.body


@cache
def _session() -> boto3.Session:
    # The services' descriptions take long to load, and stay loaded in a session.
    return boto3.Session("test", "test", region_name=REGION)


def _clients_in_moto() -> Callable[..., Any]:
    """Makes clients as boto3 does; but one for each service, as nothing is kept in them and a test may want many."""
    client_of = cache(_session().client)
    return lambda service, **options: client_of(service)


class _Invoker:
    """Lambda's Invoke, as far as ApiFunction uses it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def invoke(self, FunctionName: str, Payload: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        assert FunctionName == self._world.environment["REFRESH_FUNCTION_NAME"]
        if self._world.before_aws:
            self._world.before_aws("lambda.Invoke", Payload.encode())
        try:
            summary = self._world.invoke(json.loads(Payload), alias="readers")
        except Exception:  # noqa: BLE001 - as Lambda does
            return {"StatusCode": 200, "FunctionError": "Unhandled", "Payload": io.BytesIO(b"{}")}
        return {"StatusCode": 200, "Payload": io.BytesIO(json.dumps(summary).encode())}


class _Context:
    """Lambda's context, as far as RefreshFunction uses it."""

    def __init__(self, clock: Clock, ends_at: float, qualifier: str) -> None:
        self._clock = clock
        self._ends_at = ends_at
        self.invoked_function_arn = f"arn:aws:lambda:us-east-1:123456789012:function:refresh{qualifier}"

    def get_remaining_time_in_millis(self) -> float:
        return (self._ends_at - self._clock()) * 1000


def _pool(host: str | None) -> Any:
    return HTTPSConnectionPool(str(host))


_TEMPLATE = sam_template.translate()


def create_table(dynamodb: Any, name: str) -> None:
    """Create the table as template.yaml describes it."""
    described = _TEMPLATE["Resources"]["TokenTable"]["Properties"]
    wanted = ("KeySchema", "AttributeDefinitions", "GlobalSecondaryIndexes", "BillingMode")
    dynamodb.create_table(TableName=name, **{key: described[key] for key in wanted})


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path.replace("{proxy+}", "(?P<proxy>.+)")))


# What takes every path or method comes last.
_ROUTES = sorted(
    ((route, _pattern(route.path)) for route in sam_template.routes(_TEMPLATE)),
    key=lambda each: each[0].method == "ANY",
)
_VALUE_PATHS = ("/access-token", "/reports", "/jsapi", "/wx_card", "/agent_config")


def gateway_event(
    path: str, body: str | bytes | None = None, method: str | None = None, content_type: str = "application/json"
) -> dict[str, Any]:
    """A request (a GET, or a POST where there is a body) as API Gateway hands it to ApiFunction, routed by the template."""
    url = urlsplit(path)
    method = method or ("GET" if body is None else "POST")
    sent = body.encode() if isinstance(body, str) else body
    caller = {"authorizer": {"iam": {"userArn": "arn:aws:iam::123456789012:user/test"}}}
    for route, pattern in _ROUTES:
        if route.method in (method, "ANY") and (match := pattern.fullmatch(url.path)):
            query = dict(parse_qsl(url.query, keep_blank_values=True))
            return {
                "version": "2.0",
                "routeKey": f"{route.method} {route.path}",
                "rawQueryString": url.query,
                "pathParameters": {name: unquote(value) for name, value in match.groupdict().items()},
                **({"queryStringParameters": query} if query else {}),
                **({} if sent is None else gateway_body(sent, content_type)),
                "requestContext": {
                    "requestId": REQUEST_ID,
                    "http": {"sourceIp": SOURCE_IP},
                    **(caller if url.path.startswith("/v1/") else {}),
                },
            }
    raise AssertionError(f"the template has no route for {method} {path}")
