"""A Lambda function that sends a text message. Its role needs execute-api:Invoke on …/v1/accounts/main/access-token*.

Environment: KEEPER_URL (the stack's output ApiUrl), KEEPER_ACCOUNT (like `main`).
Package it with `pip install 'wechat-token-keeper-client[iam,requests]'`.
"""

import os
from typing import Any

from wechat_token_keeper import Keeper

# Made once for each instance of the function, so that its invocations share the cached token.
keeper = Keeper.iam(os.environ["KEEPER_URL"], os.environ["KEEPER_ACCOUNT"], wechat_url=os.environ.get("WECHAT_URL"))
session = keeper.session()
WECHAT = os.environ.get("WECHAT_URL", "https://api.weixin.qq.com")


def handler(event: dict[str, str], context: object) -> dict[str, Any]:
    """Send `text` to the follower with this `openid`."""
    message = {"touser": event["openid"], "msgtype": "text", "text": {"content": event["text"]}}
    response = session.post(f"{WECHAT}/cgi-bin/message/custom/send", json=message)
    response.raise_for_status()
    return dict(response.json())
