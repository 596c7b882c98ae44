"""What `sam build` makes, in the real Lambda runtime, with the credentials of the template's roles: it keeps and hands out
tokens, and whenever its process is killed in the midst of a renewal, the next wake-up after the lease puts it right.

The table is DynamoDB Local, Parameter Store is moto's, WeChat is simulated. The functions read this machine's clock, which
a test cannot move. Time passes all the same: every time in the table becomes earlier, and WeChat's clock goes ahead.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from werkzeug.wrappers import Request, Response

from infra.local.access_keys import OPERATOR
from infra.local.embedded_aws import EmbeddedAws
from infra.local.http_server import Server
from infra.local.simulated_wechat import SimulatedWeChat
from tests.support.lambda_runtime import LambdaRuntime
from tests.support.world import create_table, gateway_event
from token_keeper import renewal
from token_keeper.model import Kind

GUARD_INTERVAL = 60
TIMES = ("due_at", "lease_until", "fetched_at", "expires_at", "at_risk_since", "checked_at")

pytestmark = pytest.mark.xdist_group("dynamodb-local")


class Aws(EmbeddedAws):
    """The embedded AWS, but with DynamoDB Local for its table. `on` is called as each of the functions' writes arrives
    ("UpdateItem 1 arrives"; where it returns False the write gets lost) and when it is done ("UpdateItem 1 is done")."""

    def __init__(self, dynamodb_url: str) -> None:
        super().__init__()
        self._dynamodb_url = dynamodb_url
        self.updates = 0
        self.on: Callable[[str], object] = lambda moment: None

    def _pass_on(self, request: Request, service: str) -> Response:
        if service != "dynamodb":
            return super()._pass_on(request, service)
        target = request.headers["X-Amz-Target"]
        if not target.endswith("UpdateItem"):
            return self._forward(request)
        self.updates += 1
        number = self.updates
        if self.on(f"UpdateItem {number} arrives") is False:
            return Response(status=500)
        response = self._forward(request)
        self.on(f"UpdateItem {number} is done")
        return response

    def _forward(self, request: Request) -> Response:
        # DynamoDB Local checks no signature, and has a table for each access key.
        headers = {name: request.headers[name] for name in ("X-Amz-Target", "Content-Type")} | {"Authorization": _LOCAL}
        response = requests.post(self._dynamodb_url, request.get_data(), headers=headers, timeout=60)
        return Response(response.content, response.status_code, content_type=response.headers["Content-Type"])


_LOCAL = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/dynamodb/aws4_request, SignedHeaders=host, Signature=0"


class Deployed:
    """The built stack."""

    def __init__(self, built: Path, dynamodb_url: str, directory: Path, started: ExitStack) -> None:
        self._offset = 0
        self.wechat = SimulatedWeChat(lambda: time.time() + self._offset)
        self.during_call: Callable[[], object] | None = None
        self.after_call: Callable[[], object] | None = None
        wechat = Server(self._response_as_wechat)
        wechat.start()
        started.callback(wechat.stop)
        self.aws = started.enter_context(Aws(dynamodb_url)).start({"RefreshFunction": self._invoked})
        self._table = self.aws.outputs["TokenTableName"]
        self._dynamodb = boto3.Session("test", "test", region_name="us-east-1").client(
            "dynamodb", endpoint_url=dynamodb_url
        )
        create_table(self._dynamodb, self._table)
        endpoints = {"WECHAT_API_URL": wechat.url, "WECOM_API_URL": wechat.url, "NO_PROXY": "127.0.0.1"}
        self._environment = {
            name: self.aws.environment(name) | endpoints for name in ("RefreshFunction", "ApiFunction")
        }
        self.built, self._directory = built, directory
        self.refresh = started.enter_context(self._instance("RefreshFunction", "refresh.handler"))
        self.printed_by_reader = ""
        self._ssm = self.aws.session(OPERATOR).client("ssm", endpoint_url=self.aws.endpoint_url)

    def _instance(self, function: str, handler: str) -> LambdaRuntime:
        log = self._directory / f"{function}.log"
        return LambdaRuntime(self.built / function, handler, self._environment[function], log)

    def _invoked(self, event: dict[str, Any]) -> Any:
        # Events of Parameter Store get lost here: the tick has to find the account by itself.
        return None if "source" in event else self.refresh.invoke(event)

    def _response_as_wechat(self, environ: Any, start_response: Any) -> Any:
        if self.during_call:
            self.during_call()
        response = self.wechat(environ, start_response)
        if self.after_call:
            self.after_call()
        return response

    def add_account(self, name: str) -> None:
        appid, secret = f"wx{name}", f"secret-of-{name}"
        self.wechat.add_app(appid, secret)
        record = json.dumps({"appid": appid, "secret": secret})
        parameter = f"{self.aws.outputs['AccountsPath']}/{name}"
        self._ssm.put_parameter(Name=parameter, Value=record, Type="SecureString")

    def empty(self) -> None:
        for item in self._dynamodb.scan(TableName=self._table)["Items"]:
            self._dynamodb.delete_item(TableName=self._table, Key={name: item[name] for name in ("pk", "sk")})
        for parameter in self._ssm.get_parameters_by_path(Path=self.aws.outputs["AccountsPath"])["Parameters"]:
            self._ssm.delete_parameter(Name=parameter["Name"])

    def wake(self, schedule: str) -> Any:
        return self.refresh.invoke({"wake": schedule})

    def read(self, name: str) -> dict[str, Any]:
        """What a new instance of ApiFunction, which remembers nothing, hands out."""
        with self._instance("ApiFunction", "api.handler") as api:
            response = api.invoke(gateway_event(f"/v1/accounts/{name}/access-token"))
            self.printed_by_reader = api.printed
        assert response.get("statusCode") == 200, response
        body: dict[str, Any] = json.loads(response["body"])
        return body

    def let_pass(self, seconds: int) -> None:
        self._offset += seconds
        for item in self._dynamodb.scan(TableName=self._table)["Items"]:
            moved: dict[str, Any] = {name: {"N": str(int(item[name]["N"]) - seconds)} for name in TIMES if name in item}
            self._dynamodb.put_item(TableName=self._table, Item=item | moved)


@pytest.fixture(scope="module")
def stack(built_download: Path, dynamodb_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with ExitStack() as started:
        yield Deployed(built_download, dynamodb_url, tmp_path_factory.mktemp("built"), started)


@pytest.fixture
def deployed(stack: Deployed) -> Deployed:
    """The stack without any account."""
    stack.empty()
    return stack


def test_a_token_is_fetched_by_the_main_schedule_and_handed_out(deployed: Deployed) -> None:
    # Given an account whose event got lost
    deployed.add_account("main")
    # When the main schedule fires
    summary = deployed.wake("tick")
    # Then its token is handed out, and WeChat accepts it
    assert [each["account"] for each in summary["renewed"]] == ["main"], summary
    handed_out = deployed.read("main")
    assert deployed.wechat.accepts(handed_out["access_token"])
    assert 6600 < handed_out["expires_in"] < 7200
    # And neither function has said it
    for printed in (deployed.refresh.printed, deployed.printed_by_reader):
        assert handed_out["fingerprint"] in printed
        assert handed_out["access_token"] not in printed
        assert "secret-of-main" not in printed


@pytest.mark.parametrize("function", ["RefreshFunction", "ApiFunction"])
def test_nothing_is_deployed_that_lambda_has_or_no_code_needs(stack: Deployed, function: str) -> None:
    deployed = {path.name.partition("-")[0].partition(".")[0] for path in (stack.built / function).iterdir()}
    assert {"token_keeper", "api", "refresh"} <= deployed
    assert not deployed & {"boto3", "botocore", "s3transfer", "awslambdaric", "tests", "infra", "pytest", "moto"}
    assert ({"urllib3", "aws_lambda_powertools"} <= deployed) == (function == "RefreshFunction")


def test_a_reader_that_finds_nothing_has_it_fetched(deployed: Deployed) -> None:
    deployed.add_account("asked")
    deployed.wake("tick")
    deployed.let_pass(7200)
    assert deployed.wechat.accepts(deployed.read("asked")["access_token"])


@pytest.mark.parametrize(
    "moment",
    [
        "UpdateItem 1 arrives",  # before the lease
        "UpdateItem 1 is done",  # leased, nothing asked
        "WeChat is asked",
        "WeChat has responded",  # a token is minted, and no instance knows it
        "UpdateItem 2 arrives",  # the response is there, the write is not
        "UpdateItem 2 is done",
    ],
)
def test_a_renewal_that_is_killed_is_made_up_for_after_the_lease(deployed: Deployed, moment: str) -> None:
    # Given an account whose token is due
    deployed.add_account("main")
    deployed.wake("tick")
    old = deployed.read("main")
    deployed.let_pass(7200 - renewal.RULES[Kind.TOKEN].due_before)
    # When the process is killed at that moment of the renewal
    reached = []

    def kill(now: str) -> bool:
        if now == moment:
            reached.append(now)
            deployed.refresh.kill()
        return now != moment

    deployed.aws.updates, deployed.aws.on = 0, kill
    deployed.during_call = lambda: kill("WeChat is asked")
    deployed.after_call = lambda: kill("WeChat has responded")
    died = deployed.wake("guard")
    deployed.aws.on, deployed.during_call, deployed.after_call = lambda now: None, None, None
    assert reached == [moment]
    assert "renewed" not in died, "it was to die"
    # Then meanwhile a reader is given a token that works
    assert deployed.wechat.accepts(deployed.read("main")["access_token"])
    # And at the latest one guard interval after the lease has ended it is renewed
    deployed.let_pass(renewal.LEASE + GUARD_INTERVAL)
    deployed.wake("guard")
    new = deployed.read("main")
    assert new["fingerprint"] != old["fingerprint"]
    assert deployed.wechat.accepts(new["access_token"])
    assert new["expires_in"] > 6000
