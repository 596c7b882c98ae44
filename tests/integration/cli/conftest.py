"""The command line as an operator meets it: what is shown, what stands in Parameter Store, how it exits.

CloudFormation and Parameter Store are moto's; the API and RefreshFunction are served over HTTP by the tests.
"""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import responses
from moto import mock_aws

from tests.support.command_line import REGION, STACK, Service, create_stack, empty_stack


@pytest.fixture(autouse=True)
def operator(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL", "TOKEN_KEEPER_STACK", "TOKEN_KEEPER_LOCAL_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "example")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)


@pytest.fixture(scope="module")
def deployed() -> Iterator[None]:
    """One stack for all tests of a module: to deploy one takes longer than a command."""
    with mock_aws():
        create_stack(STACK)
        yield


@pytest.fixture
def stack(deployed: None) -> Iterator[None]:
    """A stack without accounts and consumers."""
    yield
    empty_stack()


@pytest.fixture
def api(stack: None) -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            service.requests.append((self.path, self.rfile.read(int(self.headers["Content-Length"])).decode()))
            self.send_response_only(service.status)
            for header in {"Content-Length": str(len(service.response.encode())), **service.headers}.items():
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(service.response.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        service.url = f"http://127.0.0.1:{server.server_port}"
        yield service
        server.shutdown()


@pytest.fixture
def refresh_function(service: Service, stack: None, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", service.url)
    return service


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own for the keys of local stacks."""
    monkeypatch.setenv("HOME", str(tmp_path))
