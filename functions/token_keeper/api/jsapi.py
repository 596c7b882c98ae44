"""The signature with which a web page configures WeChat's JS-SDK (`wx.config`, `wx.agentConfig`)."""

import hashlib
import re
from urllib.parse import unquote

from token_keeper.errors import InvalidRequestError

LONGEST_URL = 2048
"""Characters of a page's address: what the gateway lets through is longer, and no browser needs it."""

TYPES = ("jsapi", "agent_config")

_PAGE_ADDRESS = re.compile(r"https?://[!-~]+")
_ENCODE = "encode the page's address as a whole: encodeURIComponent(location.href.split('#')[0])"


def requested_page(raw_query: str) -> tuple[str, str]:
    """The page's address and the type of ticket that a query, as it was sent, asks a signature for.

    What is ambiguous is refused, since its signature might be one of another page. Raises `InvalidRequestError` that says what
    to do.
    """
    parameters: dict[str, str] = {}
    for name, _, value in (part.partition("=") for part in raw_query.split("&") if part):
        if name == "_":  # by which scripts bypass caches
            continue
        if name not in ("url", "type"):
            raise InvalidRequestError(
                f"the query has a parameter that is neither url nor type. If it is a part of url: {_ENCODE}"
            )
        if name in parameters:
            raise InvalidRequestError(f"{name} is there twice: send it once")
        parameters[name] = value
    ticket_type, url = unquote(parameters.get("type", TYPES[0])), parameters.get("url", "")
    if ticket_type not in TYPES:
        raise InvalidRequestError(f"type must be one of {', '.join(TYPES)}")
    if re.search("[?=+]", url):
        raise InvalidRequestError(f"url holds a ?, = or + that is not encoded: {_ENCODE}")
    page = unquote(url).partition("#")[0]
    if len(unquote(url)) > LONGEST_URL or not _PAGE_ADDRESS.fullmatch(page):
        raise InvalidRequestError(
            f"url must be the page's address as location.href gives it, of at most {LONGEST_URL} characters, encoded once"
        )
    if "&amp;" in page:
        raise InvalidRequestError(
            "url holds &amp;, which is & escaped for HTML: send location.href, not text from the page's source"
        )
    return page, ticket_type


def sign(ticket: str, nonce: str, timestamp: int, url: str) -> str:
    """Sign a page's address, without `#` and what follows (公众号 and 企业微信 documentation, JS-SDK, 签名算法).

    The values go in as they are, without URL escaping; the signature is SHA-1 in lower-case hex.
    """
    page = url.partition("#")[0]
    signed = f"jsapi_ticket={ticket}&noncestr={nonce}&timestamp={timestamp}&url={page}"
    return hashlib.sha1(signed.encode(), usedforsecurity=False).hexdigest()
