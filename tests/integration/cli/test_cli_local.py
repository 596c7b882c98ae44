"""`--local`: the stack of this machine, and what is there in its place."""

import json
import socket
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from infra.local import access_keys
from infra.local.access_keys import Key
from tests.support.command_line import ACCOUNTS_PATH, APPID, SECRET, TEMPLATE, Service, run


def test_local_operates_the_stack_of_this_machine(home: None) -> None:
    # Given the embedded AWS of a local stack, on the port after its API's, and an environment that points elsewhere
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    endpoint: Any = {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1"}
    access_keys.write(port - 1, endpoint["endpoint_url"], {"operator": Key.of("operator")}, "api-key")
    boto3.client("cloudformation", **endpoint).create_stack(StackName="local", TemplateBody=json.dumps(TEMPLATE))
    with pytest.raises(ClientError):  # the server loads what its errors need with the environment of its first one
        boto3.client("ssm", **endpoint).get_parameter(Name="none")
    # When an account is added to it
    elsewhere = {"HTTP_PROXY": "http://127.0.0.1:9", "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_PROFILE": "no-such"}
    local_port = {"TOKEN_KEEPER_LOCAL_PORT": str(port - 1)}
    result = run(
        "--local", "accounts", "add", "main", "--appid", APPID, "--no-wait", stdin=SECRET, **elsewhere, **local_port
    )
    found = boto3.client("ssm", **endpoint).get_parameters_by_path(Path=ACCOUNTS_PATH)["Parameters"]
    server.stop()
    # Then it is there
    assert result.exit_code == 0, result.output
    assert [item["Name"] for item in found] == [f"{ACCOUNTS_PATH}/main"]


@pytest.mark.parametrize("response", ["<!DOCTYPE html><title>It works", "<html></html>", "", "{}"])
@pytest.mark.parametrize("status", [200, 400, 403, 404])
def test_another_program_on_the_local_port(service: Service, home: None, status: int, response: str) -> None:
    # Given the keys of a local stack that was killed, and a program that has taken its port
    service.status, service.response = status, response
    port = int(service.url.rpartition(":")[2])
    access_keys.write(port - 1, service.url, {"operator": Key.of("operator")}, "api-key")
    # When the local stack is asked
    result = run("--local", "status", TOKEN_KEEPER_LOCAL_PORT=str(port - 1))
    # Then one sentence says that this is no local stack
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert service.url in result.stderr


@pytest.mark.parametrize("content", ["", "[operator]\n", "[operator", "<html>", "[operator]\naws_access_key_id = é\n"])
def test_local_keys_that_cannot_be_read(content: str, home: None) -> None:
    # Given a file of keys that a full disk, or another version, has left
    access_keys.folder(3000).mkdir(parents=True)
    (access_keys.folder(3000) / "credentials").write_text(content)
    # When / Then
    result = run("--local", "status", AWS_PROFILE="no-such-profile")
    assert result.exit_code == 2
    assert "On port 3000 there is no local stack of yours" in result.stderr


def test_a_local_port_that_is_none() -> None:
    result = run("--local", "status", TOKEN_KEEPER_LOCAL_PORT="70000")
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert "TOKEN_KEEPER_LOCAL_PORT" in result.stderr


def test_a_local_stack_that_does_not_run() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    result = run("--local", "status", TOKEN_KEEPER_LOCAL_PORT=str(port - 1))
    assert result.exit_code == 2
    assert "is `token-keeper local` running?" in result.stderr
