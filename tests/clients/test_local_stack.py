"""The client, its adapters and its examples against the whole system, with SDKs as they are published."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any
from urllib.request import urlopen

import pytest
import wechatpy
import wechatpy.enterprise

from infra.local.http_server import Server
from infra.local.local_stack import DEMO_RECORD, LocalStack
from infra.local.simulated_wechat import Fault
from tests.clients.conftest import CORPID, SAID, add_consumer, add_corp_account, let_pass
from wechat_token_keeper import AccessDeniedError, Keeper
from wechat_token_keeper.adapters.wechatpy import wechatpy_client
from wechat_token_keeper.adapters.werobot import WeRoBotClient

APPID = str(DEMO_RECORD["appid"])
EXAMPLES = Path(__file__).parents[2] / "clients/python/examples"
UV = os.environ.get("UV", "uv")
"""`uv run` names itself here."""

USERS, CALLS_EACH = 20, 30

pytestmark = pytest.mark.xdist_group("clients")


@pytest.fixture(scope="module")
def key(local: LocalStack) -> str:
    """The key of a consumer of the demo account and of a WeCom app."""
    add_corp_account(local, "crm", CORPID)
    return add_consumer(local, "demo", "crm")


@pytest.fixture
def keeper(local: LocalStack, key: str) -> Keeper:
    return _keeper(local, key)


def _keeper(local: LocalStack, key: str, wechat_url: str | None = None) -> Keeper:
    from wechat_token_keeper._clock import Clock

    clock = Clock(local.clock, local.clock)
    return Keeper(local.api_url, key=key, appid=APPID, wechat_url=wechat_url or local.wechat_url, clock=clock)


def _kill_current(local: LocalStack, keeper: Keeper) -> str:
    """Let another client end the current token, when it is old enough for a report to be accepted; returns it."""
    let_pass(local, 70)
    token = keeper.token()
    local.wechat.kill(token)
    return token


def test_token_ticket_and_signature(local: LocalStack, keeper: Keeper) -> None:
    token, ticket = keeper.token(), keeper.ticket("jsapi")
    assert local.wechat.accepts(token)
    assert local.wechat.accepts(ticket)
    assert keeper.jsapi_signature("https://a.example/")["appId"] == APPID
    with pytest.raises(AccessDeniedError):
        _keeper(local, "wtk_" + "x" * 43).token()


def test_the_same_with_iam(local: LocalStack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    keeper = Keeper.iam(local.api_url, "demo")
    assert local.wechat.accepts(keeper.token())
    assert local.wechat.accepts(keeper.ticket("jsapi"))
    assert keeper.jsapi_signature("https://a.example/?a=1")["appId"] == APPID
    assert keeper.report("a-token-of-long-ago") == keeper.token()


class _CountedWeChat:
    """WeChat's API for a test's users, who name themselves: how often each was refused."""

    def __init__(self, local: LocalStack) -> None:
        self._wechat = local.wechat
        self.refusals: Counter[str] = Counter()

    def __call__(self, environ: Any, start_response: Any) -> Any:
        reply = b"".join(self._wechat(environ, start_response))
        if b'"errcode": 40001' in reply:
            self.refusals[environ["HTTP_X_USER"]] += 1
        return [reply]


def test_another_client_kills_the_token_of_20_busy_users(local: LocalStack, key: str) -> None:
    # Given 20 users of one client who call WeChat all the time
    wechat = _CountedWeChat(local)
    server = Server(wechat)
    server.start()
    keeper = _keeper(local, key, server.url)
    let_pass(local, 70)
    dead = keeper.token()
    before, said_before = len(local.wechat.calls), len(SAID)
    at_work = Barrier(USERS + 1)

    def work(user: int) -> list[Any]:
        session = keeper.session()
        responses = []
        for call in range(CALLS_EACH):
            responses.append(
                session.get(f"{server.url}/cgi-bin/get_api_domain_ip", headers={"X-User": str(user)}).json()
            )
            if call == CALLS_EACH // 3:
                at_work.wait()
        return responses

    with ThreadPoolExecutor(USERS) as threads:
        users = [threads.submit(work, user) for user in range(USERS)]
        # When another client ends the token, which is older than a minute
        at_work.wait()
        local.wechat.kill(dead)
        responses = [reply for user in users for reply in user.result()]
    server.stop()
    # Then no user saw an error, and none had more than one call refused
    assert all(reply["ip_list"] for reply in responses)
    assert len(responses) == USERS * CALLS_EACH
    assert wechat.refusals
    assert max(wechat.refusals.values()) == 1
    # And the keeper checked the token once and replaced it once
    made = Counter(call.path for call in local.wechat.calls[before:])
    calls_of_users = USERS * CALLS_EACH + sum(wechat.refusals.values())
    assert made["/cgi-bin/get_api_domain_ip"] - calls_of_users == 1
    assert sum("renewed demo access_token" in line for line in SAID[said_before:]) == 1


def test_wechatpy(local: LocalStack, keeper: Keeper) -> None:
    class Client(wechatpy.WeChatClient):  # type: ignore[misc]
        API_BASE_URL = f"{local.wechat_url}/cgi-bin/"

    # Given wechatpy's client, which without the adapter would call until RecursionError where its token stays refused
    client = wechatpy_client(Client, keeper)
    assert client.get("get_api_domain_ip")["ip_list"]
    # When its token dies, then it heals
    dead = _kill_current(local, keeper)
    assert client.get("get_api_domain_ip")["ip_list"]
    assert client.access_token != dead
    # And where WeChat refuses whatever is sent, the caller sees that after two calls, without the token
    let_pass(local, 61)  # a younger token is not checked
    local.wechat.fail("/cgi-bin/get_api_domain_ip", *[Fault.error(40001)] * 10)
    before = len(local.wechat.calls)
    with pytest.raises(wechatpy.WeChatClientException) as refused:
        client.get("get_api_domain_ip")
    local.wechat.heal("/cgi-bin/get_api_domain_ip")
    assert refused.value.errcode == 40001
    assert client.access_token not in f"{refused.value!r} {refused.value.request.url} {refused.value.response.url}"
    made = Counter(call.path for call in local.wechat.calls[before:])
    assert made["/cgi-bin/get_api_domain_ip"] == 3  # the client's two, and the keeper's check


def test_wechatpy_enterprise(local: LocalStack, key: str) -> None:
    class Client(wechatpy.enterprise.WeChatClient):  # type: ignore[misc]
        API_BASE_URL = f"{local.wechat_url}/cgi-bin/"

    keeper = _corp_keeper(local, key)
    client = wechatpy_client(Client, keeper)
    assert client.get("get_api_domain_ip")["ip_list"]
    assert client.corp_id == CORPID


def test_wechatpy_enterprise_asks_here_for_both_tickets(local: LocalStack, key: str) -> None:
    # Given the SDK without the adapter, with its own calls sent here
    class Client(wechatpy.enterprise.WeChatClient):  # type: ignore[misc]
        API_BASE_URL = f"{local.api_url}/cgi-bin/"

        def fetch_access_token(self) -> Any:
            parameters = {"corpid": self.corp_id, "corpsecret": self.secret}
            return self._fetch_access_token(f"{local.api_url}/cgi-bin/gettoken", parameters)

    client = Client(CORPID, key)
    # When it asks for its tickets
    jsapi, agent = client.jsapi.get_jsapi_ticket(), client.jsapi.get_agent_jsapi_ticket()
    # Then these are those that WeCom knows
    assert jsapi != agent
    assert local.wechat.accepts(jsapi)
    assert local.wechat.accepts(agent)


@pytest.mark.parametrize("request_target", ["get_jsapi_ticket?", "ticket/get?&type=agent_config&"])
def test_wxjavas_requests_for_tickets(local: LocalStack, key: str, request_target: str) -> None:
    # Given the literal requests of WxJava cp, one of which has an empty first parameter (WxCpApiPathConsts)
    token = _corp_keeper(local, key).token()
    # When
    with urlopen(f"{local.api_url}/cgi-bin/{request_target}access_token={token}") as response:
        reply = json.load(response)
    # Then
    assert reply["errcode"] == 0, reply
    assert local.wechat.accepts(reply["ticket"])


def test_wechatpy_2_work(local: LocalStack, key: str, tmp_path: Path) -> None:
    _corp_keeper(local, key)
    program = f"""
import wechatpy, wechatpy.work
from wechat_token_keeper import Keeper
from wechat_token_keeper.adapters.wechatpy import wechatpy_client

def client(base, keeper):
    return wechatpy_client(type("Client", (base,), {{"API_BASE_URL": {local.wechat_url + "/cgi-bin/"!r}}}), keeper)

address = {{"key": {key!r}, "wechat_url": {local.wechat_url!r}}}
corp = client(wechatpy.work.WeChatClient, Keeper.corp({local.api_url!r}, corpid={CORPID!r}, **address))
public = client(wechatpy.WeChatClient, Keeper({local.api_url!r}, appid={APPID!r}, **address))
assert corp.get("get_api_domain_ip")["ip_list"] and public.get("get_api_domain_ip")["ip_list"]

class Own(wechatpy.work.WeChatClient):
    API_BASE_URL = {local.api_url + "/cgi-bin/"!r}

    def fetch_access_token(self):
        parameters = {{"corpid": self.corp_id, "corpsecret": self.secret}}
        return self._fetch_access_token(self.API_BASE_URL + "gettoken", parameters)

own = Own({CORPID!r}, {key!r})
print(corp.access_token, public.access_token, own.jsapi.get_jsapi_ticket(), own.jsapi.get_agent_jsapi_ticket())
"""
    packages = ["--with", "wechatpy==2.0.0a26", "--with", "requests==2.34.2", "--with", str(EXAMPLES.parent)]
    command = [
        "uv",
        "run",
        "--isolated",
        "--no-project",
        "--python",
        sys.executable,
        *packages,
        "python",
        "-c",
        program,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    handed_out = done.stdout.split()
    assert len(set(handed_out)) == 4
    assert all(local.wechat.accepts(value) for value in handed_out)


def test_werobot(local: LocalStack, keeper: Keeper) -> None:
    client = WeRoBotClient(keeper)
    url = f"{local.wechat_url}/cgi-bin/get_api_domain_ip"
    assert client.get(url)["ip_list"]
    dead = _kill_current(local, keeper)
    assert client.get(url)["ip_list"]
    assert client.token != dead


def test_example_cron_job(local: LocalStack, key: str) -> None:
    # Given
    environment = _environment(local, key)
    # When
    done = _run(EXAMPLES / "cron_job.py", environment)
    # Then
    assert re.fullmatch(r"A token of \d{3} characters, good for ten minutes\n", done.stdout), done.stderr
    # And with a wrong key it says what to do
    failed = _run(EXAMPLES / "cron_job.py", environment | {"KEEPER_KEY": key[:-3] + "AAA"})
    assert failed.returncode == 1
    assert "`consumers add` makes a new one" in failed.stderr


def test_example_lambda(local: LocalStack) -> None:
    # Given the handler as Lambda loads it
    program = (
        "import json, lambda_handler; print(json.dumps(lambda_handler.handler({'openid': 'o', 'text': 't'}, None)))"
    )
    # When WeChat, which is simulated without this call, is asked
    done = _run("-c", _environment(local, ""), program)
    # Then the request went there with a token: 404 is the simulator's response to a path it does not know
    assert f"404 Client Error: NOT FOUND for url: {local.wechat_url}/cgi-bin/message/custom/send" in done.stderr
    assert "simulated_token" not in done.stderr


def test_example_fastapi(local: LocalStack, key: str) -> None:
    program = """
import json
from fastapi.testclient import TestClient
import fastapi_service
with TestClient(fastapi_service.app) as client:
    signature = client.get("/signature", params={"url": "https://a.example/?a=1"}).json()
    print(json.dumps([signature, client.get("/addresses").json()]))
"""
    done = _run("-c", _environment(local, key), program)
    assert done.returncode == 0, done.stderr
    signature, addresses = json.loads(done.stdout)
    assert signature["appId"] == APPID
    assert addresses["ip_list"]


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short(example: Path) -> None:
    assert len(example.read_text().splitlines()) < 30


def test_the_wheel_in_a_fresh_environment(local: LocalStack, key: str, tmp_path: Path) -> None:
    # Given both archives, and an environment of its own with nothing but the wheel
    client = EXAMPLES.parent
    subprocess.run([UV, "build", "--quiet", "--out-dir", tmp_path, client], check=True, timeout=400)
    (wheel,), (source,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert wheel.name.startswith("wechat_token_keeper_client-")
    assert source.name.startswith("wechat_token_keeper_client-")
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], check=True, timeout=400)
    python = tmp_path / "venv/bin/python"
    arguments = ["--quiet", "--offline", "--python", str(python), str(wheel)]
    subprocess.run([UV, "pip", "install", *arguments], check=True, timeout=400)
    # When the README's lines are run there
    program = f"""
from wechat_token_keeper import Keeper
keeper = Keeper({local.api_url!r}, key={key!r}, appid={APPID!r})
print(keeper.token(), keeper.ticket("jsapi"), keeper.jsapi_signature("https://a.example/")["appId"])
"""
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False, timeout=400)
    # Then
    assert done.returncode == 0, done.stderr
    token, ticket, appid = done.stdout.split()
    assert local.wechat.accepts(token)
    assert local.wechat.accepts(ticket)
    assert appid == APPID


def _corp_keeper(local: LocalStack, key: str) -> Keeper:
    return Keeper.corp(local.api_url, key=key, corpid=CORPID, wechat_url=local.wechat_url)


def _environment(local: LocalStack, key: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(EXAMPLES),
        "KEEPER_URL": local.api_url,
        "KEEPER_KEY": key,
        "KEEPER_APPID": APPID,
        "KEEPER_ACCOUNT": "demo",
        "WECHAT_URL": local.wechat_url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def _run(program: str | Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, program, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=400)
