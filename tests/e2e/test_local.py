"""`token-keeper local` as a newcomer starts it: a process of its own, driven over HTTP and by the command line."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import requests

from tests.ports import three_free_ports

SPEED = 120
PROGRAM = Path(sys.executable).with_name("token-keeper")
APPID, SECRET = "wx617a123bb8bc99cd", "00112233445566778899aabbccddeeff"

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""As a user's: what is started a dozen times may keep its bytecode."""

pytestmark = pytest.mark.xdist_group("local")


class Local:
    """A running `token-keeper local`."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._port = three_free_ports()
        self.process = subprocess.Popen(
            [PROGRAM, "local", "--port", str(self._port), "--speed", str(SPEED)],
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT | {"PYTHONUNBUFFERED": "1"},
        )
        self.api, self.aws, self.wechat = (self._url(name) for name in ("ready", "AWS", "WeChat"))

    def _url(self, name: str) -> str:
        return self.wait_for(rf"{name}: +(http://127\.0\.0\.1:\d+)")

    def wait_for(self, pattern: str, seconds: float = 110) -> str:
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
        return requests.get(self.api + path, timeout=30)

    def accepts(self, value: str) -> bool:
        """Whether the simulated WeChat accepts the token or ticket right now."""
        answer = requests.get(f"{self.wechat}/_simulator/accepts", params={"value": value}, timeout=30)
        return bool(answer.json()["accepts"])

    def fail(self, **fault: Any) -> None:
        requests.post(f"{self.wechat}/_simulator/faults", json=fault, timeout=30).raise_for_status()

    def open_corp_app(self, corpid: str, secret: str) -> None:
        """Let the simulated WeCom know an app."""
        app = {"corpid": corpid, "secret": secret}
        requests.post(f"{self.wechat}/_simulator/corp-apps", json=app, timeout=30).raise_for_status()

    def operate(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run `token-keeper --local …`."""
        environment = ENVIRONMENT | {"TOKEN_KEEPER_LOCAL_PORT": str(self._port), "COLUMNS": "200"}
        command: list[str | Path] = [PROGRAM, "--local", *arguments]
        return subprocess.run(command, input=stdin, env=environment, capture_output=True, text=True, check=False)

    def watch(self, pattern: str) -> tuple[str, int]:
        """Run `token-keeper --local status --watch` on a terminal until it shows the pattern, then press Ctrl-C.

        Returns what it drew and how it exited.
        """
        screen, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 160, 0, 0))
        environment = ENVIRONMENT | {"TOKEN_KEEPER_LOCAL_PORT": str(self._port), "TERM": "xterm-256color"}
        command = [PROGRAM, "--local", "status", "--watch"]
        watching = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
        os.close(terminal)
        drawn = ""
        while not re.search(pattern, drawn, re.DOTALL):
            drawn += os.read(screen, 65536).decode()
        watching.send_signal(signal.SIGINT)
        drain = Thread(target=lambda: [None for _ in iter(partial(_read, screen), b"")], daemon=True)
        drain.start()
        return drawn, watching.wait(timeout=30)

    def stop(self) -> int:
        """Press Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=30)


def _read(screen: int) -> bytes:
    try:
        return os.read(screen, 65536)
    except OSError:  # nobody has the terminal any more
        return b""


def test_the_printed_curl_line_gives_a_token_that_wechat_accepts(local: Local) -> None:
    # Given the line that it printed
    curl = local.wait_for(r"(curl http://\S+)").split()
    # When it is run
    answer = subprocess.run([*curl, "--silent"], capture_output=True, text=True, check=True).stdout
    # Then it shows a token that WeChat accepts
    token = re.search(r'"access_token":"([^"]+)"', answer)
    assert token, answer
    assert local.accepts(token[1])


def test_the_demo_account_has_a_ticket(local: Local) -> None:
    answer = local.get("/v1/accounts/demo/tickets/jsapi")
    assert answer.status_code == 200
    assert local.accepts(answer.json()["ticket"])


def test_what_api_gateway_does_not_route_is_not_found(local: Local) -> None:
    assert local.get("/v1/elsewhere").status_code == 404
    assert local.get("/v1/accounts/demo/access-token/").status_code == 404


def test_it_tells_why_a_renewal_failed_and_what_to_do(local: Local) -> None:
    # Given a WeChat that does not let this address in, some times
    local.fail(path="/cgi-bin/token", errcode=40164, times=6)
    # When the operator has the token replaced
    refresh = local.operate("refresh", "demo")
    # Then operator, status and the running system say what is wrong and what to do
    assert refresh.returncode == 1
    assert "40164" in refresh.stdout
    assert "IP whitelist" in refresh.stdout
    status = local.operate("status")
    assert status.returncode == 1
    assert "IP whitelist" in status.stdout
    local.wait_for(r"(failed demo access_token \(configuration 40164\))")
    # And the live token is still handed out, and all is well when WeChat lets this address in again
    assert local.accepts(local.get("/v1/accounts/demo/access-token").json()["access_token"])
    while local.operate("refresh", "demo").returncode != 0:
        pass
    assert local.operate("status").returncode == 0


def test_the_token_is_printed_alone(local: Local) -> None:
    printed = local.operate("token", "demo").stdout
    assert printed.endswith("\n")
    assert local.accepts(printed.removesuffix("\n"))


def test_a_consumer_asks_in_wechats_format_until_its_key_is_revoked(local: Local) -> None:
    # Given a consumer's key, as an operator gets it
    added = local.operate("consumers", "add", "shop", "--accounts", "demo")
    assert added.returncode == 0, added.stderr
    key = added.stdout.strip()
    call = {"grant_type": "client_credential", "appid": "wx0123456789abcdef", "secret": key}
    # When it is used as an AppSecret, in a form, which API Gateway hands on in base64, and in JSON
    for answer in (
        requests.post(f"{local.api}/cgi-bin/token", data=call, timeout=30),
        requests.post(f"{local.api}/cgi-bin/stable_token", json=call, timeout=30),
    ):
        # Then it gets a token that WeChat accepts
        assert local.accepts(answer.json()["access_token"])
    assert key not in local.printed
    # And 15 seconds after it was revoked it gets none
    assert local.operate("consumers", "revoke", "shop").returncode == 0
    time.sleep(16 / SPEED)
    answer = requests.get(f"{local.api}/cgi-bin/token", params=call, timeout=30)
    assert (answer.status_code, answer.json()["errcode"]) == (200, 40125)


def test_an_account_is_added_and_removed_while_it_runs(local: Local) -> None:
    # When an account is added that WeChat does not know
    added = local.operate("accounts", "add", "shop", "--appid", APPID, stdin=SECRET)
    # Then the command says that WeChat refuses it, and so does its health
    assert added.returncode == 1, added.stderr
    assert "configuration 40013" in added.stdout
    local.wait_for(r"(failed shop access_token \(configuration 40013\))")
    answer = local.get("/v1/accounts/shop/access-token")
    assert answer.status_code == 503
    assert answer.json()["cause"]["errcode"] == 40013
    assert SECRET not in answer.text + added.stdout + added.stderr + local.printed
    # And who watches sees it, with what to do under the table, until Ctrl-C
    drawn, exit_code = local.watch(r"every 2 s.*every 2 s")
    assert re.search(r"shop\s.*never_fetched.*40013.*→ WeChat does not know this appid", drawn, re.DOTALL)
    assert exit_code == 0
    assert "Traceback" not in drawn
    # And when it is removed, it is not served any more
    assert local.operate("accounts", "remove", "shop", "--yes").returncode == 0
    ends = time.monotonic() + 30
    while local.get("/v1/accounts/shop").status_code != 404:
        assert time.monotonic() < ends
        time.sleep(0.1)


def test_every_read_through_a_renewal_gets_an_accepted_token(local: Local) -> None:
    # Given a token
    first = local.get("/v1/accounts/demo/access-token").json()["access_token"]
    # When it is read again and again until the main schedule has renewed it
    reads, refused = 0, 0
    ends = time.monotonic() + 2 * 6600 / SPEED
    while time.monotonic() < ends:
        token = local.get("/v1/accounts/demo/access-token").json()["access_token"]
        reads, refused = reads + 1, refused + (not local.accepts(token))
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
def test_without_proper_credentials_of_a_real_account_it_does_not_start(
    environment: dict[str, str], message: str
) -> None:
    # When it is started with credentials that cannot be right
    ended = subprocess.run(
        [PROGRAM, "local"], env=ENVIRONMENT | environment, capture_output=True, text=True, check=False
    )
    # Then it says which and why, without their values, and ends
    assert ended.returncode == 2
    assert message in ended.stderr
    assert SECRET not in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr


def test_ctrl_c_ends_it_cleanly(local: Local) -> None:
    # When Ctrl-C is pressed
    exit_code = local.stop()
    # Then it says so and leaves no traceback
    assert exit_code == 0
    assert local.printed.endswith("stopped\n")
    assert "Traceback" not in local.printed
