"""The page of a deployed stack: what the health API and RefreshFunction's log say, on a guarded port of this machine.

CloudFormation and CloudWatch Logs are moto's; the health API is served by the tests.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
import responses
from moto import mock_aws
from moto.server import ThreadedMotoServer

from infra.cli.console import LATE, LOOK_EVERY, DeployedPage
from infra.cli.deployed_stack import DeployedStack
from infra.console.web import PageServer
from infra.local.http_server import Server
from infra.sam_template import translate
from tests.support.browser import chromium, violations
from token_keeper.model import Credential, Failure, FailureClass, Kind, ReportOutcome, rfc3339
from token_keeper.refresh.outcome import Outcome, Probed, failed, renewed, verified

NAME = "wechat-token-keeper"
LOG = f"/aws/lambda/{NAME}-refresh"
API = "https://api.example.com"
START = int(time.time())
"""CloudWatch Logs takes no event of another day."""
OLD, NEW = "9f86d081884c7d65", "60303ae22b998861"

HEALTH: dict[str, Any] = {
    "account": "main",
    "appid": "wx617a123bb8bc99cd",
    "endpoint": "token",
    "record_version": "1",
    "credentials": [
        {
            "credential": "access_token",
            "state": "fresh",
            "fingerprint": NEW,
            "fetched_at": rfc3339(START),
            "expires_at": rfc3339(START + 7200),
            "renews_at": rfc3339(START + 6660),
            "failures": 0,
            "last_error": None,
            "calls_today": {"made": 3, "budget": 2000},
            "foreign_rotations": None,
            "unclear_since": None,
        }
    ],
}

pytestmark = pytest.mark.xdist_group("local")


class Deployed:
    """A stack in AWS, its log, and the page that shows it. Time stands still until it is moved."""

    def __init__(self, api: responses.RequestsMock) -> None:
        self.now = float(START + 60)
        self._api = api
        self.handle(200, {"accounts": [HEALTH]})
        outputs = {"ApiUrl": API, "AccountsPath": "/x", "RefreshFunctionName": "x", "TokenTableName": "x"}
        template = {
            "Resources": {"Queue": {"Type": "AWS::SQS::Queue"}},
            "Outputs": {name: {"Value": value} for name, value in outputs.items()},
        }
        boto3.client("cloudformation").create_stack(StackName=NAME, TemplateBody=json.dumps(template))
        self._logs = boto3.client("logs")
        self._logs.create_log_group(logGroupName=LOG)
        self._logs.create_log_stream(logGroupName=LOG, logStreamName="one")
        self.page = DeployedPage(DeployedStack(NAME), lambda: self.now)

    def handle(self, status: int, document: dict[str, Any]) -> None:
        """What the health API returns from now on."""
        self._api.upsert(
            "GET",
            f"{API}/v1/accounts",
            json=document,
            status=status,
            headers={"Date": formatdate(self.now, usegmt=True)},
        )

    def log(self, at: float, message: str, **fields: Any) -> None:
        """Write a record as RefreshFunction does, or as Lambda would write a line of its own."""
        self.write(at, json.dumps({"level": "INFO", "message": message, "service": "refresh", **fields}))

    def write(self, at: float, line: str) -> None:
        event = {"timestamp": int(at * 1000), "message": line}
        self._logs.put_log_events(logGroupName=LOG, logStreamName="one", logEvents=[event])

    def state(self, *, later: float = LOOK_EVERY) -> dict[str, Any]:
        """What the page draws so many seconds later."""
        self.now += later
        return self.page.state()


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployed]:
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "example")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws(), responses.RequestsMock(assert_all_requests_are_fired=False) as api:
        api.add_passthru("http://127.0.0.1")
        yield Deployed(api)


def report(deployed: Deployed, at: float, outcome: Outcome, woken_by: str = "guard") -> None:
    which = {"account": outcome.account, "credential": outcome.credential}
    deployed.log(at, outcome.what, woken_by=woken_by, **which, **outcome.details)


def credential(fingerprint: str, at: int) -> Credential:
    new = Credential("main", "access_token", Kind.TOKEN, "wx0", epoch=1, due_at=at + 6660, fetched_at=at, seen_at=at)
    return replace(new, value="value", fingerprint=fingerprint, expires_at=at + 7200)


def renewal(fingerprint: str, at: int) -> Outcome:
    return renewed(credential(fingerprint, at), at)


def verification(outcome: ReportOutcome) -> Outcome:
    return verified(credential(NEW, START), outcome)


def marks(state: dict[str, Any]) -> list[str]:
    return [mark["what"] for mark in state["lanes"][0]["marks"]]


def test_the_log_is_where_the_template_puts_it() -> None:
    log = translate()["Resources"]["RefreshFunctionLog"]["Properties"]["LogGroupName"]
    assert log == {"Fn::Sub": LOG.replace(NAME, "${AWS::StackName}")}


def test_health_and_log_make_one_picture(deployed: Deployed) -> None:
    # Given two hours of a stack, among them a failure, a check and a report, and lines of another kind
    failure = Failure(FailureClass.TRANSIENT, -1, "system error", "No action needed.", START - 60)
    report(deployed, START - 6700, renewal(OLD, START - 6700), "tick")
    report(deployed, START - 60, failed("main", "access_token", failure, START))
    deployed.log(START - 30, "probed", **vars(Probed(alive=1, dead=0, unclear=0, left=0)))
    deployed.log(START - 20, "woken", woken_by="guard")
    deployed.write(START - 10, "START RequestId: 1")
    deployed.log(START - 9, "renewed", account="of another release")
    report(deployed, START, renewal(NEW, START))
    report(deployed, START + 5, verification(ReportOutcome.SUPERSEDED), "verify")
    # When the page asks
    state = deployed.state()
    # Then both tokens are drawn, where they overlap, and what happened
    (lane,) = state["lanes"]
    assert [(span["fingerprint"], span["end"]) for span in lane["tokens"]] == [(OLD, "overlap"), (NEW, "expiry")]
    assert lane["tokens"][0]["ends_at"] == START + 300
    assert marks(state) == ["renewed", "failed", "repaired", "verified"]
    assert [check["alive"] for check in state["checks"]] == [1]
    assert (lane["state"], lane["calls_today"]) == ("fresh", {"made": 3, "budget": 2000})
    # And there is nothing to press
    assert state["buttons"] == ()


def test_a_late_record_is_shown_once(deployed: Deployed) -> None:
    report(deployed, START, renewal(NEW, START))
    assert marks(deployed.state()) == ["renewed"]
    # When a record appears that is older than the last look, and the page looks again and again
    report(deployed, START + 10, verification(ReportOutcome.STILL_VALID), "verify")
    for _ in range(LATE // LOOK_EVERY + 2):
        state = deployed.state()
    # Then each is there once
    assert marks(state) == ["renewed", "verified"]


def test_many_pages_cost_one_look(deployed: Deployed) -> None:
    deployed.state()
    report(deployed, START + 61, renewal(NEW, START + 61))
    assert marks(deployed.state(later=LOOK_EVERY - 1)) == []
    assert marks(deployed.state(later=1)) == ["renewed"]


def test_trouble_is_said_above_what_was_known(deployed: Deployed) -> None:
    deployed.state()
    # When the API refuses, or the log cannot be read
    deployed.handle(403, {"message": "Forbidden"})
    state = deployed.state()
    # Then
    assert "AWS does not let you read /v1/accounts" in state["trouble"]["detail"]
    assert [lane["state"] for lane in state["lanes"]] == ["fresh"]
    deployed.handle(200, {"accounts": [HEALTH]})
    boto3.client("logs").delete_log_group(logGroupName=LOG)
    assert LOG in deployed.state()["trouble"]["detail"]


def test_a_page_without_its_key_gets_nothing(deployed: Deployed) -> None:
    server = Server(PageServer(deployed.page.state, api_key="key"))
    server.start()
    state = f"{server.url}/console/state"
    try:
        assert requests.get(server.url, timeout=30).status_code == 200
        for headers in ({}, {"X-Api-Key": "guessed"}, {"X-Api-Key": "key", "Origin": "https://evil.example"}):
            assert requests.get(state, headers=headers, timeout=30).json() == {"message": "Forbidden"}
        assert requests.get(state, headers={"X-Api-Key": "key"}, timeout=30).json()["stack"] == NAME
        press = f"{server.url}/console/press"
        headers = {"X-Api-Key": "key", "Origin": server.url}
        assert requests.post(press, json={"button": "busy"}, headers=headers, timeout=30).status_code == 404
    finally:
        server.stop()


def test_a_browser_shows_a_deployed_stack_without_buttons(deployed: Deployed) -> None:
    report(deployed, START - 6700, renewal(OLD, START - 6700), "tick")
    report(deployed, START, renewal(NEW, START), "tick")
    server = Server(PageServer(deployed.page.state, api_key="key"))
    server.start()
    try:
        with chromium() as browser:
            page = browser.new_page()
            page.goto(f"{server.url}/#key=key")
            page.locator(".lane .overlap").wait_for()
            assert page.locator("article .bar").count() == 2
            assert page.locator("#steer").is_hidden()
            assert "All is well" in page.locator("#sum").text_content()
            assert violations(page) == []
    finally:
        server.stop()


def test_the_command_prints_the_link_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    # Given a stack in an AWS that is reached over HTTP
    aws = ThreadedMotoServer("127.0.0.1", 0)
    aws.start()
    try:
        host, port = aws.get_host_and_port()
        key = {"AWS_ACCESS_KEY_ID": "example", "AWS_SECRET_ACCESS_KEY": "example", "AWS_DEFAULT_REGION": "us-east-1"}
        environment = os.environ | key | {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "TOKEN_KEEPER_STACK": NAME}
        for name in ("AWS_PROFILE", "AWS_REGION"):
            environment.pop(name, None)
        cloudformation = boto3.client(
            "cloudformation",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            aws_access_key_id="example",
            aws_secret_access_key="example",
        )
        outputs = {
            "ApiUrl": f"http://{host}:{port}",
            "AccountsPath": "/x",
            "RefreshFunctionName": "x",
            "TokenTableName": "x",
        }
        template = {
            "Resources": {"Queue": {"Type": "AWS::SQS::Queue"}},
            "Outputs": {name: {"Value": value} for name, value in outputs.items()},
        }
        cloudformation.create_stack(StackName=NAME, TemplateBody=json.dumps(template))
        program = Path(sys.executable).with_name("token-keeper")
        # When the command is run
        running = subprocess.Popen([program, "console"], env=environment, stdout=subprocess.PIPE, text=True)
        assert running.stdout
        link = re.fullmatch(r"page: (http://127\.0\.0\.1:\d+)/#key=(\S+)\n", running.stdout.readline())
        assert link
        # Then its link works, with what is wrong said on it, and Ctrl-C ends it
        response = requests.get(f"{link[1]}/console/state", headers={"X-Api-Key": link[2]}, timeout=60)
        assert response.json()["trouble"]["code"] == "unavailable"
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 0
    finally:
        aws.stop()
