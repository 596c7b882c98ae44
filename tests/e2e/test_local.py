"""`token-keeper local` as a newcomer starts it: a process of its own, driven over HTTP and by the command line."""

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import patch

import pytest
import requests
from typer.testing import CliRunner, Result

from infra.cli import app
from infra.local import access_keys
from infra.local.http_server import three_free_ports
from infra.local.local_stack import DEMO_RECORD

SPEED, HIGH_SPEED = 10, 120
"""At the high one a first ticket lives 2.5 seconds, and a lease half of one: too little for commands on a busy machine."""

PROGRAM = Path(sys.executable).with_name("token-keeper")
APPID, SECRET = "wx617a123bb8bc99cd", "00112233445566778899aabbccddeeff"

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {
    "AWS_PROFILE": "no-such-profile"
}
"""As a user's: what is started a dozen times may keep its bytecode, and the profile is of an AWS that is not asked."""

pytestmark = pytest.mark.xdist_group("program")


class Local:
    """A running `token-keeper local`, with more options where they are given."""

    def __init__(self, log: Path, *options: str, speed: int = SPEED) -> None:
        self._log = log
        self.process = subprocess.Popen(
            [PROGRAM, "local", "--port", "0", "--speed", str(speed), *options],
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT | {"PYTHONUNBUFFERED": "1"},
        )
        self.api, self.aws, self.wechat = (self._url(name) for name in ("ready", "AWS", "WeChat"))
        self._port = int(self.api.rpartition(":")[2])
        keys = access_keys.read(self._port)
        assert keys
        self.api_key = keys.api_key
        self._steering = {access_keys.API_KEY_HEADER: keys.api_key}

    def _url(self, name: str) -> str:
        return self.wait_for(rf"{name}: +(http://127\.0\.0\.1:\d+)")

    def wait_for(self, pattern: str, seconds: float = 400) -> str:
        """Wait for a line in what it prints; returns the pattern's group."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if match := re.search(pattern, self.printed):
                return match[1]
            assert self.process.poll() is None, self.printed
            time.sleep(0.1)
        raise AssertionError(f"{pattern} was not printed:\n{self.printed}")

    @property
    def printed(self) -> str:
        return self._log.read_text()

    def get(self, path: str) -> requests.Response:
        return requests.get(self.api + path, timeout=120)

    def accepts(self, value: str) -> bool:
        """Whether the simulated WeChat accepts the token or ticket right now."""
        url = f"{self.wechat}/_simulator/accepts"
        response = requests.get(url, params={"value": value}, headers=self._steering, timeout=120)
        return bool(response.json()["accepts"])

    def fail(self, **fault: Any) -> None:
        url = f"{self.wechat}/_simulator/faults"
        requests.post(url, json=fault, headers=self._steering, timeout=120).raise_for_status()

    def heal(self) -> None:
        """Let the simulated WeChat work again, as the page does."""
        url = f"{self.api}/console/press"
        headers = {**self._steering, "Origin": self.api}
        requests.post(url, json={"button": "heal"}, headers=headers, timeout=120).raise_for_status()

    def open_corp_app(self, corpid: str, secret: str) -> None:
        """Let the simulated WeCom know an app."""
        app = {"corpid": corpid, "secret": secret}
        url = f"{self.wechat}/_simulator/corp-apps"
        requests.post(url, json=app, headers=self._steering, timeout=120).raise_for_status()

    def operate(self, *arguments: str, stdin: str = "") -> Result:
        """Run `token-keeper --local …`, in this process: to load it takes longer than most commands."""
        environment = {**self.environment, "COLUMNS": "200"}
        return CliRunner(env=environment).invoke(app, ["--local", *arguments], input=stdin)

    @property
    def environment(self) -> dict[str, str]:
        """What tells the command line which local stack is meant."""
        return ENVIRONMENT | {"TOKEN_KEEPER_LOCAL_PORT": str(self._port)}

    def watch(self, pattern: str) -> tuple[str, int]:
        """Run `token-keeper --local status --watch` on a terminal until it shows the pattern, then press Ctrl-C.

        Returns what it drew and how it exited.
        """
        screen, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 160, 0, 0))
        environment = self.environment | {"TERM": "xterm-256color"}
        command = [str(PROGRAM), "--local", "status", "--watch"]
        watching = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
        os.close(terminal)
        drawn = ""
        while not re.search(pattern, drawn, re.DOTALL):
            drawn += os.read(screen, 65536).decode()
        watching.send_signal(signal.SIGINT)
        drain = Thread(target=lambda: [None for _ in iter(partial(_read, screen), b"")], daemon=True)
        drain.start()
        return drawn, watching.wait(timeout=120)

    def stop(self) -> int:
        """Press Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=120)


def _read(screen: int) -> bytes:
    try:
        return os.read(screen, 65536)
    except OSError:  # no process has the terminal any more
        return b""


def run_the_printed(local: Local, command: str) -> str:
    """Run a line that it printed in a shell, as it was printed; returns what that printed."""
    line = local.wait_for(rf"(?m)^(?:try:)? +({command} .*|\S+=\S+ {command} .*)$")
    return subprocess.run(line, shell=True, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout


def assert_shows_a_token(local: Local, response: str) -> None:
    token = re.search(r'"access_token":"([^"]+)"', response)
    assert token, response
    assert local.accepts(token[1])


def test_the_printed_commands_work_as_printed(local: Local) -> None:
    # When the lines that it printed are run / Then a token that WeChat accepts is shown, and its health
    assert_shows_a_token(local, run_the_printed(local, "curl"))
    assert "fresh" in run_the_printed(local, "uv run token-keeper --local")
    # And that all is forgotten at the end was said
    assert "all of it is forgotten" in local.printed


def test_accounts_address_and_fault_are_those_of_the_options(tmp_path: Path) -> None:
    # Given accounts of all kinds, an API that is open to containers, and a WeChat that fails
    file, stable_secret, corp_secret = tmp_path / "accounts.json", SECRET[::-1], "a-secret-of-the-corp"
    stable = {"appid": APPID, "secret": stable_secret, "endpoint": "stable_token", "tickets": ["wx_card"]}
    crm = {"corpid": "ww0123456789abcdef", "secret": corp_secret, "tickets": ["jsapi", "agent_config"]}
    file.write_text(json.dumps({"shop": stable, "main": DEMO_RECORD, "crm": crm}), encoding="utf-8-sig")
    options = ["--host", "127.0.0.1", "--accounts", str(file), "--fault", "40164"]
    local = Local(tmp_path / "printed.txt", *options)
    try:
        # Then it says so of each while it starts, and so does the command line, with what to do
        for account in ("shop", "main", "crm"):
            local.wait_for(rf"(failed {account} access_token)")
        status = local.operate("status")
        assert status.exit_code == 1
        assert "IP whitelist" in status.stdout
        # And when WeChat works again, all accounts get their tokens
        local.heal()
        for account in ("shop", "main", "crm"):
            while local.operate("refresh", account).exit_code != 0:
                pass
            local.wait_for(rf"(renewed {account} access_token)")
        # And the curl line that it printed reads the key from a file, and shows a token of the first account
        assert_shows_a_token(local, run_the_printed(local, "curl"))
        # And no secret was printed, and the key in the fragment of the page's link alone, which no request carries
        assert local.printed.count(local.api_key) == local.printed.count(f"/#key={local.api_key}") == 1
        for secret in (stable_secret, DEMO_RECORD["secret"], corp_secret):
            assert secret not in local.printed
        assert local.get("/v1/accounts/shop/access-token").status_code == 403
    finally:
        assert local.stop() == 0


MISUSE = [
    (["--port", "65534"], "65533"),
    (["--port", "70000"], "65533"),
    (["--port", "-1"], "'--port'"),
    (["--port", "http"], "--port"),
    (["--speed", "0"], "--speed takes a number from 1 to 120"),
    (["--host", "203.0.113.1"], "203.0.113.1 is no IPv4 address of this machine; leave --host out"),
    (["--host", "no-such-host.invalid"], "no-such-host.invalid is no IPv4 address of this machine"),
    (["--fault", "nonsense"], "--fault takes an errcode of WeChat, or one of http, redirect"),
    (["--accounts", "no-such-file"], "no-such-file cannot be read (No such file or directory)"),
    (["--accounts", "{not-json}"], "is not JSON"),
    (["--accounts", "[]"], "must hold a JSON object"),
    (["--accounts", '{"Main": {}}'], "'Main' is no account's name"),
    (["--accounts", f'{{"main": {{"secret": "{SECRET}"}}}}'], "main: "),
]


@pytest.mark.parametrize(("arguments", "message"), MISUSE, ids=str)
def test_a_misuse_is_told_in_one_sentence(tmp_path: Path, arguments: list[str], message: str) -> None:
    # Given wrong options; of a file its content
    option, value = arguments
    if option == "--accounts" and value[0] in "{[":
        file = tmp_path / "accounts.json"
        file.write_text(value)
        value = str(file)
    # When it is started / Then it says what is wrong, and ends
    assert_refuses([option, value], message)


def assert_refuses(options: list[str], message: str, **environment: str) -> None:
    """It does not start with these options: exit code 2, the message in one sentence, no secret."""
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    with patch.dict(os.environ, ENVIRONMENT | environment):
        ended = CliRunner().invoke(app, ["local", *options])
    for kind, handler in before.items():
        signal.signal(kind, handler)
    assert ended.exit_code == 2, ended.output
    assert isinstance(ended.exception, SystemExit)
    assert message in re.sub(r"[\s│]+", " ", ended.stderr)
    assert SECRET not in ended.output


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_a_port_that_another_program_has_is_named(offset: int) -> None:
    port = three_free_ports()
    with socket.create_server(("127.0.0.1", port + offset)):
        assert_refuses(["--port", str(port)], f"port {port + offset} is in use by another program; choose three others")


def test_a_home_that_cannot_be_written_is_told() -> None:
    assert_refuses(["--port", "0"], "its keys cannot be written to /dev/null/", HOME="/dev/null")


def test_a_real_account_is_not_simulated_nor_open_to_the_network() -> None:
    real = {"WECHAT_APPID": APPID, "WECHAT_APPSECRET": SECRET}
    for options, message in (
        (["--host", "0.0.0.0"], "to this machine only"),
        (["--fault", "http"], "for the simulated WeChat"),
        (["--accounts", "any"], "for the simulated WeChat"),
        (["--speed", "2"], "real time"),
    ):
        assert_refuses(options, message, **real)


def test_the_demo_account_has_a_ticket(local: Local) -> None:
    response = local.get("/v1/accounts/demo/tickets/jsapi")
    assert response.status_code == 200
    assert local.accepts(response.json()["ticket"])


def test_it_tells_in_words_alone_what_it_does(local: Local) -> None:
    local.wait_for(r"(renewed demo jsapi)")
    assert not [line for line in local.printed.splitlines() if line.startswith("{")]


def test_what_api_gateway_does_not_route_is_not_found(local: Local) -> None:
    assert local.get("/v1/elsewhere").status_code == 404
    assert local.get("/v1/accounts/demo/access-token/").status_code == 404


def test_it_tells_why_a_renewal_failed_and_what_to_do(local: Local) -> None:
    # Given a WeChat that does not let this address in, some times
    local.fail(path="/cgi-bin/token", errcode=40164, times=6)
    # When the operator has the token replaced
    refresh = local.operate("refresh", "demo")
    # Then operator, status and the running system say what is wrong and what to do
    assert refresh.exit_code == 1
    assert "40164" in refresh.stdout
    assert "IP whitelist" in refresh.stdout
    status = local.operate("status")
    assert status.exit_code == 1
    assert "IP whitelist" in status.stdout
    local.wait_for(r"(failed demo access_token \(configuration 40164\))")
    # And the live token is still handed out, and all is well when WeChat lets this address in again
    assert local.accepts(local.get("/v1/accounts/demo/access-token").json()["access_token"])
    while local.operate("refresh", "demo").exit_code != 0:
        pass
    assert local.operate("status").exit_code == 0


def test_the_token_is_printed_alone(local: Local) -> None:
    command = [str(PROGRAM), "--local", "token", "demo"]
    printed = subprocess.run(command, env=local.environment, capture_output=True, text=True, check=True).stdout
    assert printed.endswith("\n")
    assert local.accepts(printed.removesuffix("\n"))


def test_a_consumer_uses_wechats_format_until_its_key_is_revoked(local: Local) -> None:
    # Given a consumer's key, as an operator gets it
    added = local.operate("consumers", "add", "shop", "--accounts", "demo")
    assert added.exit_code == 0, added.stderr
    key = added.stdout.strip()
    call = {"grant_type": "client_credential", "appid": "wx0123456789abcdef", "secret": key}
    # When it is used as an AppSecret, in a form, which API Gateway hands on in base64, and in JSON
    for response in (
        requests.post(f"{local.api}/cgi-bin/token", data=call, timeout=120),
        requests.post(f"{local.api}/cgi-bin/stable_token", json=call, timeout=120),
    ):
        # Then it gets a token that WeChat accepts
        assert local.accepts(response.json()["access_token"])
    assert key not in local.printed
    # And 15 seconds after it was revoked it gets none
    assert local.operate("consumers", "revoke", "shop").exit_code == 0
    time.sleep(16 / SPEED)
    response = requests.get(f"{local.api}/cgi-bin/token", params=call, timeout=120)
    assert (response.status_code, response.json()["errcode"]) == (200, 40125)


def test_an_account_is_added_and_removed_while_it_runs(local: Local) -> None:
    # When an account is added that WeChat does not know
    added = local.operate("accounts", "add", "shop", "--appid", APPID, stdin=SECRET)
    # Then the command says that WeChat refuses it, and so does its health
    assert added.exit_code == 1, added.stderr
    assert "configuration 40013" in added.stdout
    local.wait_for(r"(failed shop access_token \(configuration 40013\))")
    response = local.get("/v1/accounts/shop/access-token")
    assert response.status_code == 503
    assert response.json()["cause"]["errcode"] == 40013
    assert SECRET not in response.text + added.stdout + added.stderr + local.printed
    # And who watches sees it, with what to do under the table, until Ctrl-C
    drawn, exit_code = local.watch(r"every 2 s.*every 2 s")
    assert re.search(r"shop\s.*never_fetched.*40013.*→ WeChat does not know this appid", drawn, re.DOTALL)
    assert exit_code == 0
    assert "Traceback" not in drawn
    # And when it is removed, it is not served any more
    assert local.operate("accounts", "remove", "shop", "--yes").exit_code == 0
    ends = time.monotonic() + 120
    while local.get("/v1/accounts/shop").status_code != 404:
        assert time.monotonic() < ends
        time.sleep(0.1)


@pytest.mark.long  # test_local_stack.py has the renewal that a test brings about
def test_every_read_through_a_renewal_gets_an_accepted_token(fast: Local) -> None:
    # Given a token
    first = fast.get("/v1/accounts/demo/access-token").json()["access_token"]
    # When it is read again and again until the main schedule has renewed it
    reads, refused = 0, 0
    ends = time.monotonic() + 2 * 6600 / HIGH_SPEED
    while time.monotonic() < ends:
        asked_at = time.monotonic()
        response = fast.get("/v1/accounts/demo/access-token").json()
        if (
            "access_token" not in response
        ):  # a machine that stands still for 5 s is an outage of 10 minutes at this speed
            continue
        token, accepted = response["access_token"], fast.accepts(response["access_token"])
        within_promise = (time.monotonic() - asked_at) * HIGH_SPEED < response["expires_in"]
        reads, refused = reads + 1, refused + (within_promise and not accepted)
        if token != first:
            break
        time.sleep(0.4)
    # Then a new one came, and no read ever got one that WeChat refuses
    assert token != first
    assert refused == 0, f"{refused} of {reads}"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WECHAT_APPID": " ", "WECHAT_APPSECRET": SECRET}, "WECHAT_APPID is blank"),
        ({"WECHAT_APPID": APPID, "WECHAT_APPSECRET": ""}, "WECHAT_APPSECRET is blank"),
        ({"WECHAT_APPID": APPID}, "WECHAT_APPSECRET is blank"),
        ({"WECHAT_APPID": "gh_0123456789ab", "WECHAT_APPSECRET": SECRET}, "WECHAT_APPID is malformed"),
        ({"WECHAT_APPID": APPID, "WECHAT_APPSECRET": SECRET + "\n"}, "WECHAT_APPSECRET is malformed"),
    ],
)
def test_it_does_not_start_with_malformed_account_credentials(environment: dict[str, str], message: str) -> None:
    # When it is started with credentials that cannot be right / Then it says which and why, without their values
    assert_refuses([], message, **environment)


def test_ctrl_c_ends_it_cleanly(local: Local) -> None:
    # When Ctrl-C is pressed
    exit_code = local.stop()
    # Then it says so and leaves no traceback
    assert exit_code == 0
    assert local.printed.endswith("stopped\n")
    assert "Traceback" not in local.printed
