"""The signature with which a page configures WeChat's JS-SDK."""

import hashlib
import re
import secrets

from wechat_token_keeper._source import JsapiSignature
from wechat_token_keeper.errors import SetupError


def checked_page(url: str) -> str:
    """The page's address without `#` and what follows; raises SetupError where no browser would show it like that."""
    page = url.partition("#")[0]
    if not re.fullmatch(r"https?://[!-~]+", page) or "&amp;" in page:
        raise SetupError(
            "The page's address is not one as location.href gives it",
            "Pass location.href.split('#')[0] of the page itself, not escaped for HTML.",
        )
    return page


def sign(app_id: str, ticket: str, page: str, timestamp: int) -> JsapiSignature:
    """Sign a page's address (公众号 and 企业微信 documentation, JS-SDK, 签名算法). `timestamp`: epoch seconds."""
    nonce = secrets.token_hex(8)
    signed = f"jsapi_ticket={ticket}&noncestr={nonce}&timestamp={timestamp}&url={page}"
    signature = hashlib.sha1(signed.encode(), usedforsecurity=False).hexdigest()
    return {"appId": app_id, "timestamp": timestamp, "nonceStr": nonce, "signature": signature}
