"""A FastAPI service: one page's signature for the JS-SDK, and a call of WeChat's API.

Environment: KEEPER_URL, KEEPER_KEY, KEEPER_APPID. Run it with `uvicorn fastapi_service:app`.
"""

import os

import httpx
from fastapi import FastAPI

from wechat_token_keeper import Keeper

WECHAT = os.environ.get("WECHAT_URL", "https://api.weixin.qq.com")
keeper = Keeper(
    os.environ["KEEPER_URL"], key=os.environ["KEEPER_KEY"], appid=os.environ["KEEPER_APPID"], wechat_url=WECHAT
)
wechat = httpx.AsyncClient(base_url=WECHAT, auth=keeper.auth())
app = FastAPI()


@app.get("/signature")
async def signature(url: str) -> dict[str, object]:
    return dict(await keeper.jsapi_signature_async(url))


@app.get("/addresses")
async def addresses() -> dict[str, object]:
    return dict((await wechat.get("/cgi-bin/get_api_domain_ip")).json())
