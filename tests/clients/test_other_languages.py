"""The files for other languages, compiled by their own tools and run against the local stack.

Each driver calls WeChat once for each line on its standard input, and prints WeChat's errcode.
"""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.local.local_stack import DEMO_RECORD, LocalStack
from infra.local.simulated_wechat import Fault
from tests.clients.conftest import SAID, add_consumer, let_pass

APPID = str(DEMO_RECORD["appid"])
CLIENTS = Path(__file__).parents[2] / "clients"
DRIVERS = Path(__file__).parent / "drivers"
CHECK = "/cgi-bin/get_api_domain_ip"

pytestmark = pytest.mark.xdist_group("clients")


def test_node_co_wechat_api(local: LocalStack, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    # Given the SDK as npm has it
    npm, node = _tool("npm"), _tool("node")
    cache = pytestconfig.cache
    assert cache is not None
    modules = cache.mkdir("co-wechat-api-3.11.0")
    if not (modules / "node_modules/co-wechat-api").exists():
        options = ["--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(modules)]
        _run([npm, "install", *options, "co-wechat-api@3.11.0"], modules)
    shutil.copy(CLIENTS / "node/wechat-token-keeper.js", tmp_path)
    shutil.copy(DRIVERS / "node/driver.js", tmp_path)
    (tmp_path / "node_modules").symlink_to(modules / "node_modules")
    # Then
    _check(local, [node, "driver.js"], tmp_path)


def test_go(local: LocalStack, tmp_path: Path) -> None:
    go, gofmt = _tool("go"), _tool("gofmt")
    (tmp_path / "tokenkeeper").mkdir()
    shutil.copy(CLIENTS / "go/tokenkeeper.go", tmp_path / "tokenkeeper")
    shutil.copy(DRIVERS / "go/main.go", tmp_path)
    (tmp_path / "go.mod").write_text("module driver\n\ngo 1.19\n")
    assert _run([gofmt, "-l", "."], tmp_path) == ""
    _run([go, "vet", "./..."], tmp_path)
    _run([go, "build", "-o", "driver", "."], tmp_path)
    _check(local, ["./driver"], tmp_path)


def test_php(local: LocalStack, tmp_path: Path) -> None:
    php = _tool("php")
    file = str(CLIENTS / "php/TokenKeeper.php")
    _run([php, "-l", file], tmp_path)
    _check(local, [php, str(DRIVERS / "php/driver.php")], tmp_path, file)


def test_java(local: LocalStack, tmp_path: Path) -> None:
    javac, java = _tool("javac"), _tool("java")
    sources = [*CLIENTS.glob("java/**/*.java"), *DRIVERS.glob("java/**/*.java")]
    _run([javac, "-Xlint:all", "-Werror", "--release", "11", "-d", str(tmp_path), *map(str, sources)], tmp_path)
    _check(local, [java, "-XX:TieredStopAtLevel=1", "-cp", ".", "Driver"], tmp_path)


def _check(local: LocalStack, command: list[str], directory: Path, *more: str) -> None:
    """Run a driver with a key, through what each of these files has to do."""
    key = add_consumer(local, "demo")
    with _driver([*command, local.api_url, key, APPID, local.wechat_url, *more], directory) as call:
        # Given a first call
        assert call() == "0"
        # When another client ends the token, which is older than a minute, then the call is repeated with its successor
        let_pass(local, 70)
        _kill_all(local)
        before, said_before = len(local.wechat.calls), len(SAID)
        assert call() == "0"
        assert _made(local, before)[CHECK] == 3  # the client's two, and the keeper's check
        assert sum("renewed demo access_token" in line for line in SAID[said_before:]) == 1
        # And where WeChat refuses whatever is sent, the caller sees that after at most two calls
        let_pass(local, 70)
        local.wechat.fail(CHECK, *[Fault.error(40001)] * 10)
        before = len(local.wechat.calls)
        assert call() == "40001"
        assert _made(local, before)[CHECK] <= 4  # its two, and the keeper's check of each token: WxJava reports both
        local.wechat.heal(CHECK)
    # And a key that is not known is an error that says what to do
    with _driver([*command, local.api_url, key[:-3] + "AAA", APPID, local.wechat_url, *more], directory) as call:
        assert "token-keeper consumers list" in call()


@contextmanager
def _driver(command: list[str], directory: Path) -> Iterator["_Call"]:
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    with subprocess.Popen(
        command, cwd=directory, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield _Call(process)
        finally:
            process.kill()


class _Call:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def __call__(self) -> str:
        """Have the driver make a call; returns what it says of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


def _kill_all(local: LocalStack) -> None:
    for value in list(local.wechat._values):
        if local.wechat.accepts(value) and "_token_" in value:
            local.wechat.kill(value)


def _made(local: LocalStack, before: int) -> Counter[str]:
    return Counter(call.path for call in local.wechat.calls[before:])


def _run(command: list[str], directory: Path) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _tool(name: str) -> str:
    """The path of a language's tool. Where it is missing the test is left out; with `CI` set nothing may be."""
    found = shutil.which(name)
    if found is None:
        assert not os.environ.get("CI"), f"{name} is not installed"
        pytest.skip(f"needs {name}")
    return found
