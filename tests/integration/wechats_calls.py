"""WeChat's calls, as SDKs make them against the WeChat-compatible API."""

import json
from typing import Any

from tests.support.world import APPID, REQUEST_ID, World

CORPID = "ww0123456789abcdef"


def token_query(key: str, appid: str = APPID) -> dict[str, str]:
    return {"grant_type": "client_credential", "appid": appid, "secret": key}


def ask_token(world: World, key: str, appid: str = APPID, **options: Any) -> dict[str, Any]:
    return world.ask("GET /cgi-bin/token", **token_query(key, appid), **options)


def ask_stable_token(
    world: World, key: str, appid: str = APPID, *, force: Any = False, **options: Any
) -> dict[str, Any]:
    body = json.dumps({**token_query(key, appid), "force_refresh": force})
    return world.ask("POST /cgi-bin/stable_token", body=body, **options)


def ask_corp_token(world: World, key: str, corpid: str = CORPID, **options: Any) -> dict[str, Any]:
    return world.ask("GET /cgi-bin/gettoken", corpid=corpid, corpsecret=key, **options)


def ask_ticket(world: World, token: str, ticket: str = "jsapi", **options: Any) -> dict[str, Any]:
    return world.ask("GET /cgi-bin/ticket/getticket", access_token=token, type=ticket, **options)


def refused(errcode: int, errmsg: str) -> dict[str, Any]:
    return {"errcode": errcode, "errmsg": f"{errmsg} rid: {REQUEST_ID}"}
