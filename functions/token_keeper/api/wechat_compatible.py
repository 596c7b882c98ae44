"""The WeChat-compatible API: what an SDK asks WeChat for, in WeChat's own words.

A consumer's key stands where WeChat wants the AppSecret. The consumer is read first, and nothing else for a key that is
none; the accounts of the appid and the token are two more round trips to the table. A warm reader remembers all of it for
`REMEMBERED_FOR` seconds, so that a revoked key stops working within that time.
"""

import logging
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from hmac import compare_digest
from typing import Any
from urllib.parse import parse_qsl

from token_keeper import errors
from token_keeper.api.reader import Memory, Reader
from token_keeper.clock import Now
from token_keeper.errors import WeChatApiError
from token_keeper.model import ACCESS_TOKEN, CONSUMER_KEY, PUBLIC_TICKETS, Consumer, Kind, digest, fingerprint
from token_keeper.table import Table
from token_keeper.untrusted import body_text, json_object

logger = logging.getLogger("api.compatible")

ERRMSG = {
    -1: "system error",
    40001: "invalid credential, access_token is invalid or not latest",
    40002: "invalid grant_type",
    40013: "invalid appid",
    40066: "invalid url",
    40097: "invalid args",
    40125: "invalid appsecret",
    41001: "access_token missing",
    41002: "appid missing",
    41004: "appsecret missing",
    43001: "require GET method",
    43002: "require POST method",
    47001: "data format error",
    48001: "api unauthorized",
}
"""WeChat's words for its codes (公众号 and 企业微信 documentation, global return codes; responses quoted in SDKs' issues)."""

_CORP_ERRMSG = {40013: "invalid corpid", 41002: "corpid missing", 41004: "corpsecret missing"}

_ELSEWHERE = "only credentials are served here; send all other calls to WeChat itself, with the access_token from here"

_BOUNDARY = re.compile(r"--([0-9A-Za-z'()+_,./:=?-]{1,70})\r?\n")
"""With what a multipart form begins (RFC 2046)."""
_FIELD_NAME = re.compile(r'form-data;[^\n]*?\bname\s*=\s*"?([^";\s]+)', re.IGNORECASE)

type Parameters = Mapping[str, str]
type Body = dict[str, Any]


class CompatibleApi:
    """Handles WeChat's calls."""

    def __init__(self, table: Table, reader: Reader, now: Now) -> None:
        self._table = table
        self._reader = reader
        self._now = now
        self._permits: Memory[tuple[str, str, bool], tuple[Consumer, dict[str, str]]] = Memory()
        self._routes: dict[str, Callable[[Parameters], Body]] = {
            "GET /cgi-bin/token": self._token,
            "POST /cgi-bin/token": self._token,
            "POST /cgi-bin/stable_token": partial(self._token, may_force=True),
            "GET /cgi-bin/gettoken": self._corp_token,
            "GET /cgi-bin/ticket/getticket": partial(self._ticket, PUBLIC_TICKETS),
            "POST /cgi-bin/ticket/getticket": partial(self._ticket, PUBLIC_TICKETS),
            "GET /cgi-bin/get_jsapi_ticket": lambda sent: self._ticket(["jsapi"], {**sent, "type": "jsapi"}),
            "GET /cgi-bin/ticket/get": partial(self._ticket, ["agent_config"]),
        }

    def handle(self, event: Mapping[str, Any]) -> Body:
        """Handle an API Gateway request (payload format 2.0) with a body for HTTP 200, whatever happens."""
        route = event["routeKey"]
        if route not in self._routes:
            return _error(event, *self._not_served(event))
        try:
            return self._routes[route](_parameters(event))
        except WeChatApiError as error:
            # So that a caller who tries out keys is seen. What was tried may be a real AppSecret, sent here by mistake.
            source_ip = event.get("requestContext", {}).get("http", {}).get("sourceIp")
            logger.warning("refused", extra={"route": route, "errcode": error.errcode, "source_ip": source_ip})
            return _error(event, error.errcode, error.hint)
        except (errors.NoValidValueError, errors.StoreUnavailableError) as error:
            logger.warning("no value", extra={"route": route, "error": str(error)})
            return _error(event, -1, "no usable value right now")
        except Exception as error:  # noqa: BLE001 - a client of WeChat knows no other response than WeChat's
            logger.error("failed", extra={"route": route, "error": type(error).__name__})
            return _error(event, -1, "")

    # --- the calls

    def _token(self, sent: Parameters, *, may_force: bool = False) -> Body:
        if sent.get("grant_type") != "client_credential":
            raise WeChatApiError(40002)
        appid, key_digest = _credentials(sent, "appid", "secret")
        consumer, accounts = self._permit(key_digest, appid, corp=False)
        # A release before this one let two accounts keep an appid. Its owner now is the one with this claim.
        account = accounts.get(Kind.TOKEN) or next(iter(accounts.values()))
        return self._hand_out(consumer, account, appid, force=may_force and sent.get("force_refresh") == "true")

    def _corp_token(self, sent: Parameters) -> Body:
        corpid, key_digest = _credentials(sent, "corpid", "corpsecret")
        consumer, by_claim = self._permit(key_digest, corpid, corp=True)
        accounts = set(by_claim.values())
        if len(accounts) > 1:
            raise WeChatApiError(40013, "this key may read several apps of this corp: make one consumer for each app")
        return {"errcode": 0, "errmsg": "ok", **self._hand_out(consumer, accounts.pop(), corpid)}

    def _ticket(self, known: Collection[str], sent: Parameters) -> Body:
        token, ticket_type = sent.get("access_token", ""), sent.get("type", "")
        if not token:
            raise WeChatApiError(41001)
        if ticket_type not in known:
            raise WeChatApiError(40097)
        if not token.isascii():
            raise WeChatApiError(40001)
        try:
            owner = self._reader.owner_of(token, ticket_type)
            reading = self._reader.read(owner.account, ticket_type)
        except errors.UnknownAccountError:
            raise WeChatApiError(40001) from None
        except errors.UnknownCredentialError:
            raise WeChatApiError(48001, f"no {ticket_type} ticket is kept for this account") from None
        if reading.credential.app_id != owner.app_id:  # the account has got another appid since one was looked up
            raise WeChatApiError(40001)
        logger.info("handed out", extra={"by_token": fingerprint(token), **reading.log_fields})
        return {"errcode": 0, "errmsg": "ok", "ticket": reading.value, "expires_in": reading.expires_in}

    def _hand_out(self, consumer: Consumer, account: str, app_id: str, *, force: bool = False) -> Body:
        """The account's token. `force` says that the current one fails: it is replaced if it is dead, and stays otherwise."""
        try:
            reading = self._reader.read(account, ACCESS_TOKEN)
            if force and consumer.may_report:
                # Where it could not be checked it is read again; and where it is dead there is none to read either.
                with suppress(errors.TooManyReportsError, errors.NoValidValueError):
                    self._reader.report(account, reading.credential.fingerprint or "")
                reading = self._reader.read(account, ACCESS_TOKEN)
        except (errors.UnknownAccountError, errors.UnknownCredentialError):
            raise WeChatApiError(40013) from None
        if reading.credential.app_id != app_id:  # one of the two was looked up before the account got another appid
            raise errors.NoValidValueError(None)
        logger.info("handed out", extra={"consumer": consumer.name, **reading.log_fields})
        expires_in = min(reading.expires_in, consumer.cache_for or reading.expires_in)
        return {"access_token": reading.value, "expires_in": expires_in}

    def _permit(self, key_digest: str, app_id: str, *, corp: bool) -> tuple[Consumer, dict[str, str]]:
        """The consumer, and the accounts of this appid or corpid that it may read, by what they claim of it."""
        asked_for, now = (key_digest, app_id, corp), self._now()
        if permit := self._permits.recent(asked_for, now):
            return permit
        consumer = self._table.consumer(key_digest)
        if consumer is None or not compare_digest(consumer.key_digest, key_digest):
            raise WeChatApiError(40125)
        accounts = {
            claim: account
            for claim, account in self._table.accounts.claims_on(app_id).items()
            if claim.startswith(Kind.CORP_TOKEN) == corp and consumer.may_read(account)
        }
        if not accounts:
            raise WeChatApiError(40013)
        self._permits[asked_for] = (consumer, accounts), now
        return consumer, accounts

    def _not_served(self, event: Mapping[str, Any]) -> tuple[int, str]:
        """The errcode and the hint for a call that is served by another method, or not at all."""
        path = (event.get("pathParameters") or {}).get("proxy", "")
        for method, errcode in (("GET", 43001), ("POST", 43002)):
            if f"{method} /cgi-bin/{path}" in self._routes:
                return errcode, ""
        return 40066, _ELSEWHERE


def _credentials(sent: Parameters, id_name: str, secret_name: str) -> tuple[str, str]:
    """The appid or corpid, and the digest of the consumer's key."""
    app_id, key = sent.get(id_name), sent.get(secret_name)
    if not app_id:
        raise WeChatApiError(41002)
    if not key:
        raise WeChatApiError(41004)
    if not CONSUMER_KEY.fullmatch(key):
        raise WeChatApiError(40125)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", app_id):
        raise WeChatApiError(40013)
    return app_id, digest(key)


def _parameters(event: Mapping[str, Any]) -> Parameters:
    """The parameters of the query, and of a body in JSON or as a form. SDKs differ in where they send them and in what
    `Content-Type` they claim, and WeChat does not mind: so the body's first characters say what it is. JSON's `true` is the
    text "true"; a parameter that is no text otherwise counts as missing."""
    try:
        text = body_text(event)
        if text.lstrip().startswith("{"):
            sent = json_object(text)
        elif boundary := _BOUNDARY.match(text):
            sent = _multipart_form(boundary[1], text)
        else:
            sent = dict(parse_qsl(text, max_num_fields=100))
    except ValueError as error:
        raise WeChatApiError(47001, str(error)) from None
    if sent is None:
        raise WeChatApiError(47001)
    merged = {**(event.get("queryStringParameters") or {}), **sent}
    texts = {name: "true" if value is True else value for name, value in merged.items()}
    return {name: value for name, value in texts.items() if isinstance(value, str)}


def _multipart_form(boundary: str, text: str) -> dict[str, Any]:
    parts = f"\n{text}".replace("\r\n", "\n").split(f"\n--{boundary}")
    return {name[1]: part.partition("\n\n")[2] for part in parts if (name := _FIELD_NAME.search(part))}


def _error(event: Mapping[str, Any], errcode: int, hint: str) -> Body:
    is_corps = event["routeKey"].endswith("/gettoken")
    words = (ERRMSG | _CORP_ERRMSG if is_corps else ERRMSG)[errcode]
    rid = event.get("requestContext", {}).get("requestId")
    return {"errcode": errcode, "errmsg": f"{words}, {hint} rid: {rid}" if hint else f"{words} rid: {rid}"}
