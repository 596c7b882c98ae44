"""The readers' own AWS client: what it signs is checked against botocore's signer and AWS's examples, the rest over HTTP."""

import json
import ssl
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from hypothesis import given
from hypothesis import strategies as st

from tests.support.certificates import self_signed
from token_keeper.api.aws import clients
from token_keeper.api.aws.sigv4 import Credentials, sign
from token_keeper.aws_errors import AwsError, AwsUnavailableError, code_of, raised

NOW = 1_790_000_000
ITEM = {"Item": {"pk": {"S": "a"}}}
EXAMPLE = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", None)
EXAMPLE_TOKEN = (
    "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwth"
    "Ax7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAki"
    "Y9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA=="
)


# --- the signature


@pytest.mark.parametrize(
    ("token", "signature"),
    [
        (None, "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        (EXAMPLE_TOKEN, "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead"),
    ],
    ids=["post-vanilla", "post-sts-header-before"],
)
def test_the_examples_of_awss_test_suite(token: str | None, signature: str) -> None:
    credentials = Credentials(EXAMPLE.access_key, EXAMPLE.secret_key, token)
    signed = sign({"Host": "example.amazonaws.com"}, "/", b"", credentials, "us-east-1/service", at=1440938160)
    assert signed["X-Amz-Date"] == "20150830T123600Z"
    assert signed["Authorization"].endswith(f"Signature={signature}")


PRINTABLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=60)
SEGMENTS = PRINTABLE.filter(lambda name: name not in (".", ".."))
"""Of a path, as they are sent: these two stand for other paths, and AWS has no function of such a name."""


@given(
    body=st.binary(max_size=200),
    name=SEGMENTS,
    target=PRINTABLE,
    key=PRINTABLE,
    secret=PRINTABLE,
    token=st.none() | PRINTABLE,
    region=st.sampled_from(["us-east-1", "cn-north-1"]),
    service=st.sampled_from(["dynamodb", "lambda"]),
    at=st.integers(1_400_000_000, 4_000_000_000),
)
def test_a_request_is_signed_as_botocore_signs_it(
    body: bytes, name: str, target: str, key: str, secret: str, token: str | None, region: str, service: str, at: int
) -> None:
    host, path = f"{service}.{region}.amazonaws.com", f"/2015-03-31/functions/{quote(name, safe='')}/invocations"
    headers = {"Host": host, "Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": target}
    credentials = Credentials(key, secret, token)
    # When both sign the same request
    ours = sign(headers, path, body, credentials, f"{region}/{service}", at)
    request = AWSRequest("POST", f"https://{host}{path}", {**headers}, body)
    signer = SigV4Auth(BotocoreCredentials(key, secret, token), service, region)
    with patch("botocore.auth.get_current_datetime", lambda: _utc(at)):
        signer.add_auth(request)
    # Then the headers are the same
    assert {name.lower(): value for name, value in ours.items()} == {
        name.lower(): value for name, value in request.headers.items()
    }


def _utc(at: int) -> datetime:
    return datetime.fromtimestamp(at, UTC)


# --- the conversation


@dataclass
class Service:
    """A service on this machine that responds as the test wants: a status with a body, or nothing before it hangs up."""

    responses: list[tuple[int, bytes] | None] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)
    headers: dict[str, str] = field(default_factory=dict)
    hangs_up: bool = False
    url: str = ""
    server: Any = None


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            service.connections.add(self.client_address)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            service.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            reply = service.responses.pop(0) if service.responses else (200, json.dumps(ITEM).encode())
            if reply is None:
                self.close_connection = True
                return
            self.send_response(reply[0])
            for name, value in service.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply[1])))
            self.end_headers()
            self.wfile.write(reply[1])
            self.close_connection = service.hangs_up  # without a word of it before

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        service.server = server
        service.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield service
        server.shutdown()
        thread.join()


def environment(service: Service, **more: str) -> dict[str, str]:
    return {
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key-id",
        "AWS_SECRET_ACCESS_KEY": "secret-key",
        "AWS_SESSION_TOKEN": "session-token",
        "AWS_ENDPOINT_URL": service.url,
    } | more


def ask(service: Service, **more: str) -> Any:
    return clients.Client("dynamodb", environment(service, **more), lambda: NOW).get_item(TableName="t", Key={})


def error(code: str, status: int = 400) -> tuple[int, bytes]:
    return status, json.dumps(
        {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "session-token"}
    ).encode()


def test_requests_share_a_connection(service: Service) -> None:
    client = clients.Client("dynamodb", environment(service), lambda: NOW)
    assert [client.get_item(TableName="t", Key={}) for _ in range(5)] == [ITEM] * 5
    assert len(service.connections) == 1


def test_a_connection_closed_meanwhile_is_replaced_silently(service: Service) -> None:
    # Given a server that hangs up after each response, as one does while a Lambda is frozen
    service.hangs_up = True
    client = clients.Client("dynamodb", environment(service), lambda: NOW)
    client.get_item(TableName="t", Key={})
    # When it is asked again, then there is a response, and each request arrived once
    assert client.get_item(TableName="t", Key={}) == ITEM
    assert (len(service.requests), len(service.connections)) == (2, 2)


def test_a_connection_that_was_unused_for_long_is_not_used_again(service: Service) -> None:
    now = [NOW]
    client = clients.Client("dynamodb", environment(service), lambda: now[0])
    client.get_item(TableName="t", Key={})
    now[0] += clients.IDLE
    client.get_item(TableName="t", Key={})
    assert len(service.connections) == 2


@pytest.mark.parametrize(
    "passing", [error("InternalServerError", 500), (503, b"<html>"), error("ThrottlingException"), None]
)
def test_what_may_pass_is_tried_once_more(service: Service, passing: tuple[int, bytes] | None) -> None:
    service.responses = [passing]
    assert ask(service) == ITEM
    assert len(service.requests) == 2


def test_what_does_not_pass_is_told_after_the_second_attempt(service: Service) -> None:
    service.responses = [(503, b"<html>")] * 3
    with pytest.raises(AwsError, match="HTTP 503"):
        ask(service)
    service.responses = [None] * 3
    with pytest.raises(AwsUnavailableError):
        ask(service)
    assert len(service.requests) == 4


def test_a_refusal_is_not_tried_again_and_carries_awss_code(service: Service) -> None:
    service.responses = [error("ResourceNotFoundException")]
    with pytest.raises(AwsError) as refused:
        ask(service)
    assert refused.value.response == {"Error": {"Code": "ResourceNotFoundException"}}
    assert len(service.requests) == 1


def test_a_function_is_asked_once_and_its_failure_is_told(service: Service) -> None:
    client = clients.Client("lambda", environment(service), lambda: NOW)
    service.responses = [(500, b"{}")]
    with pytest.raises(AwsError):
        client.invoke(FunctionName="arn:aws:lambda:us-east-1:1:function:f", Payload="{}")
    service.headers["X-Amz-Function-Error"] = "Unhandled"
    reply = client.invoke(FunctionName="f", Payload='{"a": 1}')
    assert reply["FunctionError"] == "Unhandled"
    paths = [path for path, *_ in service.requests]
    assert paths == [
        "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-east-1%3A1%3Afunction%3Af/invocations",
        "/2015-03-31/functions/f/invocations",
    ]
    assert service.requests[1][2] == b'{"a": 1}'


@pytest.mark.parametrize(
    "name", ["refresh", "refresh:readers", "arn:aws:lambda:us-east-1:123456789012:function:f:readers"]
)
def test_a_function_or_its_alias_is_addressed_as_boto3_does(service: Service, name: str) -> None:
    clients.Client("lambda", environment(service), lambda: NOW).invoke(FunctionName=name, Payload="{}")
    session = boto3.Session("key-id", "secret-key", region_name="us-east-1")
    session.client("lambda", endpoint_url=service.url).invoke(FunctionName=name, Payload="{}")
    (ours, _, _), (boto3s, _, _) = service.requests
    assert ours == boto3s


def test_many_threads_share_a_client(service: Service) -> None:
    client = clients.Client("dynamodb", environment(service), lambda: NOW)
    responses: list[Any] = []
    threads = [
        threading.Thread(target=lambda: responses.extend(client.get_item(TableName="t", Key={}) for _ in range(10)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert responses == [ITEM] * 80


def test_only_a_server_that_proves_its_name_is_asked(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a server that speaks TLS, by a certificate for 127.0.0.1
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    service.server.socket = context.wrap_socket(service.server.socket, server_side=True)
    service.url = service.url.replace("http:", "https:")
    # When no authority vouches for it, then nothing is sent to it
    clients._tls.cache_clear()
    with pytest.raises(AwsUnavailableError):
        ask(service)
    assert service.requests == []
    # And when an authority does, it responds, over one connection
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    clients._tls.cache_clear()
    client = clients.Client("dynamodb", environment(service), lambda: NOW)
    assert [client.get_item(), client.get_item()] == [ITEM, ITEM]
    assert len(service.connections) == 1
    clients._tls.cache_clear()


# --- where to, and as whom


@pytest.mark.parametrize(
    ("region", "more", "url"),
    [
        ("us-east-1", {}, "https://dynamodb.us-east-1.amazonaws.com"),
        ("cn-north-1", {}, "https://dynamodb.cn-north-1.amazonaws.com.cn"),
        (
            "us-east-1",
            {"AWS_ENDPOINT_URL": "", "AWS_ENDPOINT_URL_DYNAMODB": ""},
            "https://dynamodb.us-east-1.amazonaws.com",
        ),
        ("us-east-1", {"AWS_ENDPOINT_URL": "http://a:1"}, "http://a:1"),
        ("us-east-1", {"AWS_ENDPOINT_URL": "http://a:1", "AWS_ENDPOINT_URL_DYNAMODB": "http://b:2"}, "http://b:2"),
        ("us-east-1", {"AWS_ENDPOINT_URL_LAMBDA": "http://b:2"}, "https://dynamodb.us-east-1.amazonaws.com"),
    ],
)
def test_where_requests_go(region: str, more: dict[str, str], url: str) -> None:
    assert clients._url("dynamodb", region, more) == url


@pytest.mark.parametrize(
    ("responses", "more"),
    [
        ([error("InvalidSignatureException", 403)], {}),
        ([(500, b"session-token"), (500, b"secret-key")], {}),
        ([None, None], {}),
        ([], {"AWS_SESSION_TOKEN": "session-token\nX-Injected: 1"}),
        ([], {"AWS_SECRET_ACCESS_KEY": "secret-key é"}),
        ([], {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}),
        ([], {"AWS_ACCESS_KEY_ID": ""}),
        ([], {"AWS_SECRET_ACCESS_KEY": ""}),
    ],
)
def test_no_error_tells_a_credential(
    service: Service, responses: list[tuple[int, bytes] | None], more: dict[str, str]
) -> None:
    service.responses = list(responses) * 2
    with pytest.raises((AwsError, AwsUnavailableError)) as caught:
        ask(service, **more)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__context__)
    for value in ("session-token", "secret-key", "key-id"):
        assert value not in shown


def test_credentials_do_not_show_themselves() -> None:
    assert "secret" not in repr(Credentials("key-id", "secret-key", "session-token"))
    assert "key-id" not in repr(Credentials("key-id", "secret-key", "session-token"))


NO_RESPONSE = {"endpoint_url": "https://dynamodb.invalid/"}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AwsError("AccessDenied"), "AccessDenied"),
        (ClientError({"Error": {"Code": "AccessDenied"}}, "Query"), "AccessDenied"),
        (AwsUnavailableError("TimeoutError"), "AwsUnavailableError"),
        (EndpointConnectionError(**NO_RESPONSE), "EndpointConnectionError"),
        (ReadTimeoutError(**NO_RESPONSE), "ReadTimeoutError"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_an_error_is_named_by_aws_or_by_its_class(error: Exception, code: str) -> None:
    assert isinstance(error, raised())
    assert code_of(error) == code
