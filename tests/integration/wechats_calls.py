"""WeChat's calls, as SDKs make them against the WeChat-compatible API."""

import json
from typing import Any

import api
from tests.support.world import APPID, REQUEST_ID, World

CORPID = "ww0123456789abcdef"


def token_query(key: str, appid: str = APPID) -> dict[str, str]:
    return {"grant_type": "client_credential", "appid": appid, "secret": key}


def ask_token(world: World, key: str, appid: str = APPID, *, instance: api.Handler | None = None) -> dict[str, Any]:
    return world.ask("GET /cgi-bin/token", instance, **token_query(key, appid))


def ask_stable_token(
    world: World, key: str, appid: str = APPID, *, force: Any = False, instance: api.Handler | None = None
) -> dict[str, Any]:
    body = json.dumps({**token_query(key, appid), "force_refresh": force})
    return world.ask("POST /cgi-bin/stable_token", instance, body=body)


def ask_corp_token(
    world: World, key: str, corpid: str = CORPID, *, instance: api.Handler | None = None
) -> dict[str, Any]:
    return world.ask("GET /cgi-bin/gettoken", instance, corpid=corpid, corpsecret=key)


def ask_ticket(
    world: World, token: str, ticket: str = "jsapi", *, instance: api.Handler | None = None
) -> dict[str, Any]:
    return world.ask("GET /cgi-bin/ticket/getticket", instance, access_token=token, type=ticket)


def refused(errcode: int, errmsg: str) -> dict[str, Any]:
    return {"errcode": errcode, "errmsg": f"{errmsg} rid: {REQUEST_ID}"}
