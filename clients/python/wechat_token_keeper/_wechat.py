"""WeChat's own API, as far as it concerns tokens: which hosts may get one, how a URL carries it, how it is refused."""

import json
import logging
import re
from urllib.parse import urlsplit, urlunsplit

API_HOSTS = {f"{name}.weixin.qq.com" for name in ("api", "api2", "sh.api", "sz.api", "hk.api", "qyapi")}
"""公众号 documentation, 接口域名说明, and WeCom's. To no other host is a token sent."""

REFUSED_TOKEN = {40001, 40014, 42001}
"""WeChat's errcodes for a token that is invalid, malformed or expired."""

MAX_ERROR_BYTES = 4096
"""WeChat's error responses have some 200; what is longer holds data."""

_IN_URL = re.compile(r"(access_token=)[^&\s\"'#]+")


class WeChatHosts:
    """The addresses of WeChat's API; with `extra_url` the one of a proxy or of the local stack, too."""

    def __init__(self, extra_url: str | None) -> None:
        self._extra = _origin(extra_url) if extra_url else None

    def __contains__(self, url: str) -> bool:
        origin = _origin(url)
        return origin == self._extra or (origin[0] == "https" and origin[1] in API_HOSTS and origin[2] in (None, 443))


def without_token(url: str) -> str:
    """The URL without an `access_token`; the rest of its query stays as it is."""
    parts = urlsplit(url)
    kept = [pair for pair in parts.query.split("&") if pair and pair.partition("=")[0] != "access_token"]
    return urlunsplit(parts._replace(query="&".join(kept)))


def with_token(url: str, token: str) -> str:
    """The URL with this `access_token`, and no other."""
    parts = urlsplit(without_token(url))
    return urlunsplit(parts._replace(query="&".join(filter(None, [parts.query, f"access_token={token}"]))))


def may_be_error(content_type: str) -> bool:
    """Whether a response of this type can be one of WeChat's errors, so that it is worth reading."""
    return content_type.startswith(("application/json", "text/"))


def refuses_token(body: bytes) -> bool:
    """Whether this response says that the access token is not valid."""
    if len(body) > MAX_ERROR_BYTES or b"errcode" not in body:
        return False
    try:
        response = json.loads(body)
    except ValueError:
        return False
    return isinstance(response, dict) and response.get("errcode") in REFUSED_TOKEN


def keep_out_of_log(logger_name: str) -> None:
    """Keep tokens out of what an HTTP library logs: httpx logs each URL at INFO, urllib3 at DEBUG and with each retry."""
    logger = logging.getLogger(logger_name)
    if not any(isinstance(known, _NoTokens) for known in logger.filters):
        logger.addFilter(_NoTokens())


class _NoTokens(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if "access_token=" in message:
            record.msg, record.args = redacted(message), ()
        return True


def redacted(text: str) -> str:
    """The text with the tokens in its URLs left out."""
    return _IN_URL.sub(r"\1***", text)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port
