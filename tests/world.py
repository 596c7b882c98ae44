"""A whole system to test in one process: the real handlers over a clock that only moves when told, a simulated WeChat,
and AWS by moto (or DynamoDB Local where a test races).

    with mock_aws():
        world = World()
        world.add_account("main")
        world.wake("guard")
        status, body = world.get("/v1/accounts/main/access-token")
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import boto3
import requests
import responses

import api
import refresh
from infra import stack
from infra.simulated_wechat import SimulatedWeChat

ACCOUNTS_PATH = "/wechat-token-keeper/accounts"
REGION = "us-east-1"
START = 1_790_000_000
"""2026-09-21, 14:13:20 UTC."""

APPID, SECRET = "wx0123456789abcdef", "0123456789abcdef0123456789abcdef"

ENVIRONMENT = {
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
    """The system at one moment. `client` makes AWS clients; with none, boto3's (inside moto's `mock_aws`)."""

    def __init__(self, client: Callable[..., Any] | None = None, table_name: str = "tokens") -> None:
        self.clock = Clock()
        self.wechat = SimulatedWeChat(self.clock)
        self._client: Callable[..., Any] = client or boto3.Session("test", "test", region_name=REGION).client
        self.environment = {**ENVIRONMENT, "TABLE_NAME": table_name}
        self.dynamodb = self._client("dynamodb")
        self.ssm = self._client("ssm")
        create_table(self.dynamodb, table_name)
        self.events: list[Mapping[str, Any]] = []
        self.restart()

    def restart(self) -> None:
        """Cold starts: new instances of both functions that remember nothing."""
        self._refresh = self.refresh_instance()
        self._api = self.api_instance()

    def refresh_instance(self) -> refresh.Handler:
        """One more instance of RefreshFunction."""
        return refresh.connect(self.environment, self.clock, self.clock.sleep, self._client)

    def api_instance(self) -> api.Handler:
        """One more instance of ApiFunction."""
        return api.connect(self.environment, self.clock, self.clock.sleep, self._client_of_api)

    def _client_of_api(self, service: str, **options: Any) -> Any:
        return _Invoker(self) if service == "lambda" else self._client(service, **options)

    # --- what people and schedules do

    def add_account(self, name: str = "main", **record: Any) -> dict[str, Any]:
        """Put an account's parameter (known to WeChat, too) and deliver its event; returns the summary."""
        record = {"appid": APPID, "secret": SECRET} | record
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

    def invoke(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Invoke RefreshFunction; returns the summary."""
        self.events.append(event)
        with self.internet():
            return json.loads(json.dumps(self._refresh(event, None)))  # type: ignore[no-any-return]

    def get(self, path: str, instance: api.Handler | None = None) -> tuple[int, dict[str, Any]]:
        """GET a path of the API; returns status and body."""
        status, body, _ = self.request(path, instance)
        return status, body

    def request(self, path: str, instance: api.Handler | None = None) -> tuple[int, dict[str, Any], dict[str, str]]:
        """GET a path of the API; returns status, body and headers."""
        with self.internet():
            answer = (instance or self._api)(gateway_event(path), None)
        return answer["statusCode"], json.loads(answer["body"]), answer["headers"]

    def token(self, name: str = "main") -> str:
        """The access token that the API hands out."""
        status, body = self.get(f"/v1/accounts/{name}/access-token")
        assert status == 200, body
        return str(body["access_token"])

    def health(self, name: str = "main", credential: str = "access_token") -> dict[str, Any]:
        """One credential's health."""
        _, body = self.get(f"/v1/accounts/{name}")
        return next(one for one in body["credentials"] if one["credential"] == credential)

    def calls(self, path: str = "/cgi-bin/token") -> int:
        """How often WeChat was called there."""
        return sum(call.path == path for call in self.wechat.calls)

    @contextmanager
    def internet(self) -> Iterator[None]:
        """What `requests` sends reaches the simulated WeChat; a slow answer lets the clock pass or times out."""
        with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
            for host in ("WECHAT_API_URL", "WECOM_API_URL"):
                for method in ("GET", "POST"):
                    url = re.compile(f"{self.environment[host]}/.*")
                    mock.add_callback(method, url, self._answer)
            yield

    def _answer(self, request: Any) -> tuple[int, dict[str, str], bytes]:
        url = urlsplit(request.url)
        body = request.body or b""
        body = body.encode() if isinstance(body, str) else body
        answer = self.wechat.answer(request.method, url.path, dict(parse_qsl(url.query)), body)
        timeout = request.req_kwargs["timeout"][1]
        self.clock.sleep(min(answer.delay, timeout))
        if answer.delay >= timeout:
            raise requests.ReadTimeout(f"HTTPSConnectionPool: {request.url}")
        if answer.drop:
            raise requests.ConnectionError(f"Connection aborted: {request.url}")
        return answer.status, dict(answer.headers), answer.body


class _Invoker:
    """Lambda's Invoke, as far as ApiFunction uses it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def invoke(self, FunctionName: str, Payload: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        assert FunctionName == self._world.environment["REFRESH_FUNCTION_NAME"]
        self._world.invoke(json.loads(Payload))
        return {"StatusCode": 200}


def create_table(dynamodb: Any, name: str) -> None:
    """Create the table as template.yaml describes it."""
    described = stack.translate()["Resources"]["TokenTable"]["Properties"]
    wanted = ("KeySchema", "AttributeDefinitions", "GlobalSecondaryIndexes", "BillingMode")
    dynamodb.create_table(TableName=name, **{key: described[key] for key in wanted})


_ROUTES = [
    (route, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.path))) for route in stack.routes(stack.translate())
]


def gateway_event(path: str) -> dict[str, Any]:
    """A GET request as API Gateway hands it to ApiFunction, routed by the template's routes."""
    url = urlsplit(path)
    for route, pattern in _ROUTES:
        if route.method == "GET" and (match := pattern.fullmatch(url.path)):
            query = dict(parse_qsl(url.query))
            return {
                "version": "2.0",
                "routeKey": f"GET {route.path}",
                "pathParameters": match.groupdict(),
                **({"queryStringParameters": query} if query else {}),
                "requestContext": {"authorizer": {"iam": {"userArn": "arn:aws:iam::123456789012:user/test"}}},
            }
    raise AssertionError(f"the template has no route for GET {path}")
