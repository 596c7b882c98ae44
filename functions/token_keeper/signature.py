"""The signature with which a web page configures WeChat's JS-SDK (`wx.config`)."""

import hashlib


def sign(ticket: str, nonce: str, timestamp: int, url: str) -> str:
    """Sign a page's address, without `#` and what follows (公众号 and 企业微信 documentation, JS-SDK, 签名算法).

    The values go in as they are, without URL escaping; the signature is SHA-1 in lower-case hex.
    """
    page = url.partition("#")[0]
    signed = f"jsapi_ticket={ticket}&noncestr={nonce}&timestamp={timestamp}&url={page}"
    return hashlib.sha1(signed.encode(), usedforsecurity=False).hexdigest()
