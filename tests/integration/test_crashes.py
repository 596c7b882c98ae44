"""A process that dies at any call of AWS, in any flow: no dead token after lease and guard, and no broken promise."""

import itertools
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from infra.local.simulated_wechat import Fault
from tests.support.world import ACCOUNTS_PATH, SECRET, World
from token_keeper.model import fingerprint

TOKEN, STABLE_TOKEN = "/cgi-bin/token", "/cgi-bin/stable_token"
CALLS = 12
"""Calls of AWS at which a flow dies, one after the other; most make fewer."""

REPAIRED_AFTER = 320
"""Seconds after which a dead token is replaced: a probe's interval and a guard's, less than one retry that is slow."""


def reported(world: World, name: str, appid: str) -> dict[str, Any]:
    token = world.token(name)
    world.wechat.kill(token)
    return {"verify": {"account": name, "fingerprint": fingerprint(token)}}


def probed(world: World, name: str, appid: str) -> dict[str, Any]:
    world.wechat.kill(world.token(name))
    return {"wake": "probe"}


def changed(world: World, name: str, appid: str) -> dict[str, Any]:
    return put(world, name, appid, tickets=["jsapi"])


def changed_while_dead(world: World, name: str, appid: str) -> dict[str, Any]:
    world.wechat.kill(world.token(name))
    return put(world, name, appid, tickets=["jsapi"])


def changed_endpoint(world: World, name: str, appid: str) -> dict[str, Any]:
    return put(world, name, appid, endpoint="stable_token")


def planned(world: World, name: str, appid: str) -> dict[str, Any]:
    world.clock.sleep(6600 - 300)
    return {"wake": "tick"}


def repeated(world: World, name: str, appid: str) -> dict[str, Any]:
    token = world.token(name)
    world.wechat.kill(token)
    again = Fault.malformed(json.dumps({"access_token": token, "expires_in": 6000}).encode())
    world.wechat.fail(STABLE_TOKEN, again, account=appid)
    return {"wake": "probe"}


def lost(world: World, name: str, appid: str) -> dict[str, Any]:
    world.wechat.fail(TOKEN, Fault.drop_after(), account=appid)
    return planned(world, name, appid)


def lost_twice(world: World, name: str, appid: str) -> dict[str, Any]:
    world.wechat.fail(STABLE_TOKEN, Fault.drop_after(), account=appid)
    return lost(world, name, appid)


def put(world: World, name: str, appid: str, **changes: Any) -> dict[str, Any]:
    """Change a record; returns its event."""
    value, name = json.dumps({"appid": appid, "secret": SECRET} | changes), f"{ACCOUNTS_PATH}/{name}"
    world.ssm.put_parameter(Name=name, Value=value, Type="SecureString", Overwrite=True)
    detail = {"name": name, "operation": "Update", "type": "SecureString"}
    return {"source": "aws.ssm", "detail-type": "Parameter Store Change", "detail": detail}


FLOWS = [reported, probed, changed, changed_while_dead, changed_endpoint, planned, repeated, lost, lost_twice]


def dies_at(world: World, call: int, event: dict[str, Any]) -> bool:
    """Invoke RefreshFunction, which dies at that call of AWS, if it makes so many."""
    calls = itertools.count(1)

    def die(operation: str, _: bytes) -> None:
        if not operation.startswith("lambda") and next(calls) == call:
            raise SystemExit

    world.before_aws = die
    with suppress(SystemExit):
        world.invoke(event)
    world.before_aws = None
    world.restart()
    return next(calls) > call


@pytest.mark.parametrize("endpoint", ["token", "stable_token"])
@pytest.mark.parametrize("flow", FLOWS)
def test_a_crash_anywhere_is_repaired(world: World, flow: Callable[..., dict[str, Any]], endpoint: str) -> None:
    for call in range(1, CALLS + 1):
        # Given an account with a token that is promised, and a flow whose process dies at its next call of AWS
        name, appid = f"main-{call}", f"wx-{call}"
        world.add_account(name, appid=appid, endpoint=endpoint)
        world.clock.sleep(300)
        event = flow(world, name, appid)
        promised: dict[str, float] = {}
        died = dies_at(world, call, event)
        # When the guard and the probe go on
        for second in range(0, 480, 40):
            world.wake("guard")
            if second == 320:
                world.wake("probe")
            status, body = world.get(f"/v1/accounts/{name}/access-token", world.api_instance())
            if status == 200 and world.wechat.accepts(body["access_token"]):
                token = body["access_token"]
                promised[token] = max(promised.get(token, 0), world.clock() + body["expires_in"])
            # Then a token that works is served after that, and every promise of a living token is kept
            elif second >= REPAIRED_AFTER:
                pytest.fail(f"call {call}: {second} s later: {status}")
            for token, until in promised.items():
                assert world.clock() >= until or world.wechat.accepts(token), f"call {call}: {second} s later"
            world.clock.sleep(40)
        if not died:
            break
