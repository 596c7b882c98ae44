"""The ports of the local stack, met by those who merely reach them: web pages, other users of the machine, the network."""

import hashlib
import json
import re
import stat
from base64 import b64encode
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from threading import Event
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import pytest
import requests
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from typer.testing import CliRunner

from infra.cli import app
from infra.local import access_keys
from infra.local.access_keys import REGION, Key
from infra.local.local_stack import DEMO, DEMO_RECORD, LocalStack
from infra.local.simulated_wechat import Fault
from token_keeper.model import fingerprint

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

TOKEN_PATH = "/v1/accounts/demo/access-token"
INVOKE_PATH = "/2015-03-31/functions/local-RefreshFunction/invocations"
ROTATE = b'{"renew": {"account": "demo", "credential": "access_token", "rotate": true}}'
QUERY = {"grant_type": "client_credential", "appid": DEMO_RECORD["appid"], "secret": DEMO_RECORD["secret"]}

pytestmark = pytest.mark.xdist_group("local")


@pytest.fixture(scope="module")
def local() -> Iterator[LocalStack]:
    """One for all: what is refused changes nothing."""
    with LocalStack() as local:
        assert local.tried.wait(120)
        yield local


def url_of(local: LocalStack, port: str) -> str:
    return {
        "api": local.api_url + TOKEN_PATH,
        "page": local.api_url,
        "page's state": local.api_url + "/console/state",
        "page's buttons": local.api_url + "/console/press",
        "aws": local.aws_url,
        "wechat": local.wechat_url + "/cgi-bin/token",
    }[port]


def exchange(url: str, method: str = "GET", body: bytes = b"", /, **headers: str) -> tuple[int, dict[str, str], str]:
    """Send exactly this request: status, headers in lower case, body."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=120)
    connection.putrequest(method, url[len(f"http://{parts.netloc}") :] or "/", skip_host=True)
    for name, value in ({"Host": parts.netloc, "Content-Length": str(len(body))} | headers).items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(body)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, text


def signed(local: LocalStack, key: Key, body: bytes = ROTATE, path: str = INVOKE_PATH, **scope: str) -> AWSRequest:
    """An invocation of RefreshFunction, or another request, signed with that key."""
    request = AWSRequest("POST", local.aws_url + path, {"X-Amz-Invocation-Type": "RequestResponse"}, body)
    signer = SigV4Auth(
        Credentials(key.access_key, key.secret_key), scope.get("service", "lambda"), scope.get("region", REGION)
    )
    signer.add_auth(request)
    return request


def send(request: AWSRequest, body: bytes | None = None, **changed: str) -> tuple[int, str]:
    headers = dict(request.headers.items()) | {name.replace("_", "-"): value for name, value in changed.items()}
    response = requests.post(str(request.url), request.data if body is None else body, headers=headers, timeout=120)
    return response.status_code, response.headers.get("x-amzn-ErrorType", "")


def operator(local: LocalStack) -> Key:
    keys = access_keys.read(local.port)
    assert keys
    return keys.operator


def fetches(local: LocalStack) -> int:
    return sum(call.path == "/cgi-bin/token" for call in local.wechat.calls)


# --- web pages


@pytest.mark.parametrize("port", ["api", "page", "page's state", "page's buttons", "aws", "wechat"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:8080"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Host": "evil.example"},
        {"Host": "evil.example:{port}"},
        {"Host": "127.0.0.1:1"},
        {"Host": "host.docker.internal:{port}"},
        {"Host": ""},
    ],
    ids=str,
)
def test_a_foreign_page_is_refused(local: LocalStack, port: str, headers: dict[str, str]) -> None:
    url = url_of(local, port)
    headers = {name: value.replace("{port}", str(urlsplit(url).port)) for name, value in headers.items()}
    preflight = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization"}
    # When a page of another origin asks, or asks beforehand whether it may
    for method, more in (("GET", {}), ("POST", {"Content_Type": "text/plain"}), ("OPTIONS", preflight)):
        status, responded, text = exchange(url, method, **headers, **more)
        # Then it is refused, and the browser shows it nothing
        assert (status, text) == (403, '{"message":"Forbidden"}')
        assert not [name for name in responded if name.startswith("access-control-")]


@pytest.mark.parametrize("path", [TOKEN_PATH, "/moto-api/data.json"])
def test_an_absolute_request_target_is_a_host_too(local: LocalStack, path: str) -> None:
    for url in (local.api_url, local.aws_url):
        parts = urlsplit(url)
        connection = HTTPConnection(parts.netloc, timeout=120)
        connection.request("GET", f"http://evil.example{path}", headers={"Host": parts.netloc})
        assert connection.getresponse().status == 403


def test_a_page_of_its_own_is_served_without_cors(local: LocalStack) -> None:
    # Given what curl, the address bar and this origin send
    own = {"Origin": local.api_url, "Sec_Fetch_Site": "same-origin"}
    by_name = {"Host": f"localhost:{local.port}", "Origin": f"http://localhost:{local.port}"}
    for headers in ({}, own, {"Sec_Fetch_Site": "none"}, by_name):
        # When / Then
        status, responded, _ = exchange(local.api_url + TOKEN_PATH, **headers)
        assert status == 200
        assert not [name for name in responded if name.startswith("access-control-")]
    # And moto's own headers, which allow every origin, go nowhere
    request = signed(local, operator(local), b'{"Name": "/x"}', "/", service="ssm")
    headers = dict(request.headers.items()) | {"X-Amz-Target": "AmazonSSM.GetParameter"}
    response = requests.post(str(request.url), request.data, headers=headers | {"Origin": local.aws_url}, timeout=120)
    assert not [name for name in response.headers if name.lower().startswith("access-control-")]


def test_a_text_plain_invocation_rotates_nothing(local: LocalStack) -> None:
    before = fetches(local)
    status, _, _ = exchange(
        local.aws_url + INVOKE_PATH, "POST", ROTATE, Content_Type="text/plain", Origin="https://evil.example"
    )
    assert status == 403
    assert fetches(local) == before


# --- the embedded AWS


def test_an_unsigned_call_is_refused(local: LocalStack) -> None:
    before = fetches(local)
    for path in (INVOKE_PATH, "/", "/moto-api/reset", "/moto-api/data.json", "/latest/meta-data/iam"):
        for method in ("GET", "POST"):
            status, responded, _ = exchange(local.aws_url + path, method, ROTATE)
            assert (status, responded["x-amzn-errortype"]) == (403, "MissingAuthenticationToken")
    assert fetches(local) == before
    assert requests.get(local.api_url + TOKEN_PATH, timeout=120).status_code == 200


def test_a_wrongly_signed_call_is_refused(local: LocalStack) -> None:
    key, before = operator(local), fetches(local)
    right = signed(local, key)
    for request, body, changed, code in (
        (signed(local, Key("operator", key.secret_key)), None, {}, "UnrecognizedClientException"),
        (signed(local, Key(key.access_key, "guessed")), None, {}, "InvalidSignatureException"),
        (right, b"{}", {}, "InvalidSignatureException"),
        (right, None, {"X_Amz_Invocation_Type": "Event"}, "InvalidSignatureException"),
        (right, None, {"X_Amz_Target": "AmazonSSM.GetParameter"}, "InvalidSignatureException"),  # not signed at all
        (right, None, {"X_Amz_Content_SHA256": "UNSIGNED-PAYLOAD"}, "InvalidSignatureException"),
        (right, None, {"X_Amz_Date": "20260101T000000Z"}, "InvalidSignatureException"),
        (right, None, {"Authorization": "Basic b3BlcmF0b3I6"}, "IncompleteSignature"),
        (signed(local, key, region="eu-west-1"), None, {}, "IncompleteSignature"),
    ):
        assert send(request, body, **changed) == (403, code)
    assert fetches(local) == before


def test_a_signed_call_that_is_sent_again_later_is_refused(local: LocalStack, monkeypatch: pytest.MonkeyPatch) -> None:
    request = signed(local, operator(local), b"{}", "/2015-03-31/functions/nothing/invocations")
    assert send(request) == (404, "ResourceNotFoundException")
    sent_at = local.clock()
    monkeypatch.setattr("infra.local.embedded_aws.time.time", lambda: sent_at + 301)
    assert send(request) == (403, "InvalidSignatureException")


@pytest.mark.parametrize(
    ("service", "operation", "arguments"),
    [
        ("batch", "describe_jobs", {"jobs": ["x"]}),
        ("s3", "list_buckets", {}),
        ("iam", "list_users", {}),
        ("sts", "get_caller_identity", {}),
        ("lambda", "invoke_async", {"FunctionName": "local-RefreshFunction", "InvokeArgs": b"{}"}),
        ("lambda", "invoke_with_response_stream", {"FunctionName": "local-RefreshFunction"}),
        ("lambda", "update_function_code", {"FunctionName": "local-RefreshFunction", "ZipFile": b""}),
        ("lambda", "delete_function", {"FunctionName": "local-RefreshFunction"}),
    ],
)
def test_what_the_stack_does_not_use_is_not_reachable(
    local: LocalStack, service: str, operation: str, arguments: dict[str, Any]
) -> None:
    client: Any = local.aws_session().client(service, endpoint_url=local.aws_url)  # type: ignore[call-overload]
    with pytest.raises(ClientError, match=r"AccessDenied|403|Forbidden"):
        getattr(client, operation)(**arguments)


@pytest.mark.parametrize("path", ["/moto-api/reset", "/moto-api/data.json", "/latest/meta-data/iam"])
def test_motos_own_paths_are_closed_to_the_operator_too(local: LocalStack, path: str) -> None:
    for service in ("dynamodb", "ssm", "cloudformation", "s3", "moto_api", "lambda"):
        request = signed(local, operator(local), b"", path, service=service)
        status, _ = send(request, X_Amz_Invocation_Type="RequestResponse")
        assert status in (400, 403, 404, 405)
    ssm = local.aws_session().client("ssm", endpoint_url=local.aws_url)
    assert ssm.get_parameters_by_path(Path="/wechat-token-keeper/accounts")["Parameters"]


def test_a_functions_key_does_what_its_role_may(local: LocalStack) -> None:
    # Given the keys that `sam local` gives to the functions
    session = boto3.Session(
        aws_access_key_id=local.environment("ApiFunction")["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=local.environment("ApiFunction")["AWS_SECRET_ACCESS_KEY"],
        region_name=REGION,
    )
    config = Config(retries={"total_max_attempts": 1})
    dynamodb = session.client("dynamodb", endpoint_url=local.aws_url, config=config)
    ssm = session.client("ssm", endpoint_url=local.aws_url, config=config)
    # Then the reader reads the table, and no secret
    key = {"pk": {"S": "accounts"}, "sk": {"S": "demo"}}
    dynamodb.get_item(TableName=local.environment("ApiFunction")["TABLE_NAME"], Key=key)
    with pytest.raises(ClientError, match="AccessDenied"):
        ssm.get_parameter(Name="/wechat-token-keeper/accounts/demo", WithDecryption=True)


DEMO_TOKEN = {"account": DEMO, "credential": "access_token"}


@pytest.fixture(scope="module")
def reader(local: LocalStack) -> Any:
    """Lambda, asked with ApiFunction's access key."""
    environment = local.environment("ApiFunction")
    key = Key(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
    return access_keys.session(key).client("lambda", endpoint_url=local.aws_url)


def state(local: LocalStack) -> tuple[int, Any]:
    """What an event could change: how many tokens were fetched, and the account's health."""
    return fetches(local), requests.get(f"{local.api_url}/v1/accounts/{DEMO}", timeout=120).json()


@pytest.mark.parametrize(
    "target",
    [
        {"FunctionName": "local-RefreshFunction"},
        {"FunctionName": "local-RefreshFunction", "InvocationType": "Event"},
        {"FunctionName": "local-RefreshFunction:$LATEST"},
        {"FunctionName": "arn:aws:lambda:us-east-1:123456789012:function:local-RefreshFunction"},
        {"FunctionName": "local-ApiFunction"},
    ],
    ids=str,
)
def test_apis_key_invokes_nothing_but_the_readers_alias(local: LocalStack, reader: Any, target: dict[str, str]) -> None:
    before = state(local)
    for event in ({"renew": DEMO_TOKEN}, {"renew": DEMO_TOKEN | {"rotate": True}}, {"wake": "tick"}):
        with pytest.raises(ClientError, match="AccessDenied"):
            reader.invoke(**target, Payload=json.dumps(event))
    assert state(local) == before


@pytest.mark.parametrize(
    "event",
    [
        {"wake": "tick"},
        {"wake": "guard"},
        {"wake": "probe"},
        {"detail-type": "Scheduled Event"},
        *(
            {"source": "aws.ssm", "detail": {"name": f"/wechat-token-keeper/accounts/{DEMO}", "operation": operation}}
            for operation in ("Create", "Update", "Delete")
        ),
        {"renew": DEMO_TOKEN | {"rotate": True}},
        {"renew": DEMO_TOKEN | {"rotate": False}},
        {"renew": DEMO_TOKEN, "wake": "tick"},
        {"renew": DEMO_TOKEN, "verify": {"account": DEMO, "fingerprint": "0" * 16}},
        {"verify": {"account": DEMO, "fingerprint": "0" * 16, "rotate": True}},
        {"verify": {"account": DEMO}},
        {"renew": [DEMO_TOKEN]},
        {},
        [{"wake": "tick"}],
    ],
    ids=json.dumps,
)
def test_apis_key_gets_no_other_event_through_the_alias(local: LocalStack, reader: Any, event: Any) -> None:
    before = state(local)
    # When it sends an event that ApiFunction has no use for
    response = reader.invoke(FunctionName="local-RefreshFunction:readers", Payload=json.dumps(event))
    # Then it is a function error, and nothing happened
    assert response["FunctionError"] == "Unhandled"
    assert state(local) == before


def test_apis_key_has_a_credential_renewed_or_checked(local: LocalStack, reader: Any) -> None:
    fetched, health = state(local)
    shown = health["credentials"][0]["fingerprint"]
    for event, done in (
        ({"renew": DEMO_TOKEN}, "skipped"),  # it is not due
        ({"verify": {"account": DEMO, "fingerprint": shown}}, "verified"),
    ):
        response = reader.invoke(FunctionName="local-RefreshFunction:readers", Payload=json.dumps(event))
        assert "FunctionError" not in response
        assert json.load(response["Payload"])[done]
    assert fetches(local) == fetched


def test_the_operator_may_look_at_a_function(local: LocalStack) -> None:
    functions = local.aws_session().client("lambda", endpoint_url=local.aws_url)
    assert functions.get_function_configuration(FunctionName="local-RefreshFunction")["Timeout"] == 120


# --- the simulated WeChat


def test_only_its_operator_steers_the_simulated_wechat(local: LocalStack) -> None:
    fault = json.dumps({"path": "/cgi-bin/token", "errcode": -1}).encode()
    before = len(local.wechat.calls)
    for key in ({}, {"X_Api_Key": "guessed"}):
        for path in ("faults", "corp-apps", "calls", "accepts"):
            for method in ("GET", "POST"):
                assert exchange(f"{local.wechat_url}/_simulator/{path}", method, fault, **key)[0] == 403
    assert (
        requests.get(f"{local.wechat_url}/cgi-bin/token", params=QUERY | {"secret": "x"}, timeout=120).json()["errcode"]
        == 40125
    ), "a fault was queued"
    # And the operator does
    _, _, text = exchange(f"{local.wechat_url}/_simulator/calls", X_Api_Key=local.api_key)
    assert sum(row["count"] for row in json.loads(text)["calls"]) == before + 1


# --- the API


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("HEAD", TOKEN_PATH),
        ("POST", TOKEN_PATH),
        ("OPTIONS", TOKEN_PATH),
        ("DELETE", TOKEN_PATH),
        ("GET", f"/{TOKEN_PATH}"),
        ("GET", TOKEN_PATH.replace("/v1/", "/v1//")),
        ("GET", f"{TOKEN_PATH}/"),
        ("GET", "/v1/accounts/"),
        ("GET", "/v1/accounts//access-token"),
        ("POST", "/"),
        ("GET", "/console/"),
        ("GET", "/console/press"),
        ("POST", "/console/state"),
        ("GET", "/cgi-bin/"),
    ],
)
def test_what_is_no_route_is_not_found(local: LocalStack, method: str, path: str) -> None:
    status, _, text = exchange(local.api_url + path, method)
    assert status == 404
    assert text == ("" if method == "HEAD" else '{"message":"Not Found"}')


class Real(LocalStack):
    """A local stack that takes the simulated WeChat for the real one."""

    def environment(self, function: str) -> dict[str, str]:
        self.wechat.add_app(DEMO_RECORD["appid"], DEMO_RECORD["secret"])
        return super().environment(function) | {"WECHAT_API_URL": self.wechat_url}


@pytest.mark.parametrize("kind", [LocalStack, Real])
def test_an_api_that_is_open_to_more_or_real_asks_for_its_key(kind: type[LocalStack]) -> None:
    # Given a stack with an address that was asked for, or with a real account's token
    options: dict[str, Any] = {"real": True} if kind is Real else {"host": "0.0.0.0"}
    with kind(accounts={DEMO: DEMO_RECORD}, **options) as local:
        assert local.tried.wait(120)
        # Then what API Gateway would want signed takes the key
        health = "/v1/accounts", "/v1/accounts/demo", "/console/state"
        for path in (TOKEN_PATH, *health, "/v1/accounts/demo/tickets/jsapi"):
            for key in ({}, {"X_Api_Key": "guessed"}, {"X_Api_Key": ""}):
                status, _, text = exchange(local.api_url + path, **key)
                assert (status, text) == (403, '{"message":"Forbidden"}')
            assert exchange(local.api_url + path, X_Api_Key=local.api_key)[0] == 200
        # And so do the command line, which finds it, and a consumer with a key of its own, as when deployed
        environment = {"TOKEN_KEEPER_LOCAL_PORT": str(local.port)}
        assert CliRunner().invoke(app, ["--local", "status"], env=environment).exit_code == 0
        added = CliRunner().invoke(app, ["--local", "consumers", "add", "a", "--accounts", "*"], env=environment)
        query = QUERY | {"secret": added.stdout.strip()}
        assert "access_token" in requests.get(f"{local.api_url}/cgi-bin/token", params=query, timeout=120).json()
        # And a container comes in by its name for this machine where an address was asked for
        host = f"host.docker.internal:{local.port}"
        status, _, _ = exchange(local.api_url + TOKEN_PATH, Host=host, X_Api_Key=local.api_key)
        assert status == (403 if kind is Real else 200)


def test_every_read_through_a_renewal_gets_an_accepted_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalStack() as local:
        assert local.tried.wait(120)

        def read() -> str:
            token = str(requests.get(local.api_url + TOKEN_PATH, timeout=120).json()["access_token"])
            assert local.wechat.accepts(token)
            return token

        # Given a token that is due, and a WeChat that has minted the next one and takes its time to say so
        first, simulated, minted, responding = read(), local.wechat, Event(), Event()

        def slowly(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
            response = simulated(environ, start_response)
            if environ["PATH_INFO"] == "/cgi-bin/token":
                minted.set()
                assert responding.wait(120)
            return response

        local.clock._began_at += 6600
        with monkeypatch.context() as patched, ThreadPoolExecutor(1) as main_schedule:
            patched.setattr(local, "wechat", slowly)
            # When the main schedule renews it
            tick = main_schedule.submit(local._refresh, {"wake": "tick"})
            assert minted.wait(120)
            # Then each read meanwhile gets the first one, and WeChat accepts it
            patched.undo()
            assert [read() for _ in range(5)] == [first] * 5
            responding.set()
            assert "access_token" in [each["credential"] for each in tick.result(120)["renewed"]]
            # And so it does what is handed out from then on: at the latest a minute later the new one
            read()
            local.clock._began_at += 60
            assert read() != first


# --- the page


def test_the_page_needs_nothing_from_elsewhere(local: LocalStack) -> None:
    status, responded, text = exchange(local.api_url)
    assert (status, responded["content-type"]) == (200, "text/html; charset=utf-8")
    # Then the policy names the page's own script and style, and allows nothing else to run or to be asked
    policy = dict(part.split(" ", 1) for part in responded["content-security-policy"].split("; "))
    for tag in ("script", "style"):
        (inline,) = re.findall(f"<{tag}.*?>(.*?)</{tag}>", text, re.DOTALL)
        digest = b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert policy.pop(f"{tag}-src") == f"'sha256-{digest}'"
    nothing = dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'")
    assert policy == nothing | {"connect-src": "'self'", "img-src": "data:"}
    # And it names no other place, and holds neither an inline handler nor an inline style
    assert not re.findall(r"https?://|<[^>]+ on[a-z]+=|<[^>]+ style=", text)


@pytest.mark.parametrize("path", ["/", "/console/state"])
def test_head_of_the_page_is_get_without_a_body(local: LocalStack, path: str) -> None:
    got, headers_of_get, _ = exchange(local.api_url + path)
    status, headers, text = exchange(local.api_url + path, "HEAD")
    assert (status, text) == (got, "") == (200, "")
    # A state is of its moment, and another has another length
    for each in (headers, headers_of_get):
        del each["date"]
        if path != "/":
            assert int(each.pop("content-length")) > 0
    assert headers == headers_of_get


def test_the_page_gets_no_value(local: LocalStack) -> None:
    # Given tokens and tickets that were handed out, and a token that was killed
    press(local, "kill")
    _, _, text = exchange(f"{local.api_url}/console/state")
    # Then the page knows them by their fingerprints
    known = [span["fingerprint"] for lane in json.loads(text)["lanes"] for span in lane["tokens"]]
    values = list(local.wechat._values)
    assert {fingerprint(value) for value in values} & set(known)
    assert not [
        value for value in [*values, DEMO_RECORD["secret"], local.api_key, operator(local).secret_key] if value in text
    ]


def press(local: LocalStack, button: str, **headers: str) -> int:
    body = json.dumps({"button": button}).encode()
    headers = {"Origin": local.api_url} | headers
    status, _, _ = exchange(f"{local.api_url}/console/press", "POST", body, **headers)
    return status


def test_only_the_page_presses_its_buttons(local: LocalStack) -> None:
    # Given a request that no browser sends, or for something else
    for body in (b'{"button": "busy"}', b"{}", b"[]", b"busy"):
        assert exchange(f"{local.api_url}/console/press", "POST", body)[0] == 403
        if b"button" not in body:
            assert exchange(f"{local.api_url}/console/press", "POST", body, Origin=local.api_url)[0] == 400
    assert press(local, "other") == 400
    # Then nothing fails; and the page itself has it fail, and work again
    assert local.wechat.fault == Fault()
    assert press(local, "dynamodb") == 200
    assert exchange(f"{local.api_url}/v1/accounts")[0] == 503
    assert press(local, "dynamodb") == 200
    assert exchange(f"{local.api_url}/v1/accounts")[0] == 200


def test_a_real_wechat_has_no_buttons() -> None:
    with Real(accounts={DEMO: DEMO_RECORD}, real=True) as local:
        _, _, text = exchange(f"{local.api_url}/console/state", X_Api_Key=local.api_key)
        assert json.loads(text)["buttons"] == []
        for button in ("busy", "kill", "dynamodb", "heal"):
            assert press(local, button, X_Api_Key=local.api_key) == 400


# --- the keys


def test_the_keys_are_for_their_owner_and_this_run_alone() -> None:
    # Given two runs, one after the other
    found = []
    for _ in range(2):
        with LocalStack() as local:
            folder = access_keys.folder(local.port)
            # Then only their owner reads the keys
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {
                "credentials": 0o600,
                "api-key": 0o600,
            }
            # And a role each has its own
            text = (folder / "credentials").read_text()
            for role in ("operator", "RefreshFunction", "ApiFunction", "NotifyFunction"):
                assert f"[{role}]" in text
            found += [line for line in text.splitlines() if line.startswith("aws_secret_access_key")]
            found.append((folder / "api-key").read_text())
        # And when the run is over they are gone
        assert not folder.exists()
    assert len(set(found)) == len(found) == 10
