"""The WeChat-compatible API: what an SDK asks WeChat for, in WeChat's own words.

A consumer's key stands where WeChat wants the AppSecret. The consumer is read first, and nothing else for a key that is
none; the accounts of the appid and the token are two more round trips to the table. A warm reader remembers all of it for
`REMEMBERED_FOR` seconds, so that a revoked key stops working within that time.
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any
from urllib.parse import parse_qsl

from token_keeper.api.reader import (
    REMEMBERED_AT_MOST,
    REMEMBERED_FOR,
    NoValidValueError,
    Reader,
    Reading,
    TooManyReportsError,
    UnknownAccountError,
    UnknownCredentialError,
)
from token_keeper.errors import KeeperError, StoreUnavailableError
from token_keeper.model import (
    ACCESS_TOKEN,
    CONSUMER_KEY,
    CORP_TICKETS,
    PUBLIC_TICKETS,
    Consumer,
    Credential,
    Kind,
    digest,
    fingerprint,
)
from token_keeper.renewal import usable_until
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

_WRONG_METHOD = {
    "token": 43001,
    "stable_token": 43002,
    "gettoken": 43001,
    "ticket/getticket": 43001,
    "get_jsapi_ticket": 43001,
    "ticket/get": 43001,
}
"""What a call gets that is served here, but by another method than it came with."""

_NOTHING_USABLE = "no usable value right now"

_APP_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BOUNDARY = re.compile(r"--([0-9A-Za-z'()+_,./:=?-]{1,70})\r?\n")
"""With what a multipart form begins (RFC 2046)."""

type Parameters = Mapping[str, Any]
type Body = dict[str, Any]


class WeChatApiError(KeeperError):
    """What WeChat would refuse with this errcode. `hint` is added to WeChat's words."""

    errcode: int

    def __init__(self, errcode: int, hint: str = "") -> None:
        super().__init__(f"errcode {errcode}")
        self.errcode = errcode
        self.hint = hint


@dataclass(frozen=True)
class TokenOwner:
    """The account that an access token belongs to, and the appid or corpid it was minted for."""

    account: str
    app_id: str


@dataclass(frozen=True)
class Permit:
    """What a consumer may read of one appid or corpid: its accounts, by what they claim of it."""

    consumer: Consumer
    accounts: dict[str, str]


class CompatibleApi:
    """Handles WeChat's calls. `routes`: the keys of the routes it handles."""

    def __init__(self, table: Table, reader: Reader, clock: Callable[[], float]) -> None:
        self._table = table
        self._reader = reader
        self._permits: _Memory[tuple[str, str, bool], Permit] = _Memory(clock)
        self._owners: _Memory[str, TokenOwner] = _Memory(clock)
        self._clock = clock
        self.routes: dict[str, Callable[[Parameters], Body]] = {
            "GET /cgi-bin/token": self._token,
            "POST /cgi-bin/token": self._token,
            "POST /cgi-bin/stable_token": self._stable_token,
            "GET /cgi-bin/gettoken": self._corp_token,
            "GET /cgi-bin/ticket/getticket": self._ticket,
            "POST /cgi-bin/ticket/getticket": self._ticket,
            "GET /cgi-bin/get_jsapi_ticket": self._corp_ticket,
            "GET /cgi-bin/ticket/get": self._agent_ticket,
        }

    def handle(self, event: Mapping[str, Any]) -> Body:
        """Handle an API Gateway request (payload format 2.0) with a body for HTTP 200, whatever happens."""
        route = event["routeKey"]
        if route not in self.routes:
            path = (event.get("pathParameters") or {}).get("proxy", "")
            errcode = _WRONG_METHOD.get(path, 40066)
            return _error(event, errcode, _ELSEWHERE if errcode == 40066 else "")
        try:
            return self.routes[route](_parameters(event))
        except WeChatApiError as error:
            errcode, hint = error.errcode, error.hint
            # So that a caller who tries out keys is seen. What was tried may be a real AppSecret, sent here by mistake.
            source_ip = event.get("requestContext", {}).get("http", {}).get("sourceIp")
            logger.warning("refused", extra={"route": route, "errcode": errcode, "source_ip": source_ip})
        except (NoValidValueError, StoreUnavailableError) as error:
            logger.warning("no value", extra={"route": route, "error": str(error)})
            errcode, hint = -1, _NOTHING_USABLE
        except Exception as error:  # noqa: BLE001 - a client of WeChat knows no other response than WeChat's
            logger.error("failed", extra={"route": route, "error": type(error).__name__})
            errcode, hint = -1, ""
        return _error(event, errcode, hint)

    # --- the calls

    def _token(self, parameters: Parameters) -> Body:
        return self._public_token(parameters, Kind.TOKEN, Kind.STABLE_TOKEN)

    def _stable_token(self, parameters: Parameters) -> Body:
        return self._public_token(parameters, Kind.STABLE_TOKEN, Kind.TOKEN, force=_wants_force(parameters))

    def _corp_token(self, parameters: Parameters) -> Body:
        corpid, key_digest = _credentials(parameters, "corpid", "corpsecret")
        permit = self._permit(key_digest, corpid, corp=True)
        accounts = set(permit.accounts.values())
        if len(accounts) > 1:
            raise WeChatApiError(40013, "this key may read several apps of this corp: make one consumer for each app")
        return {"errcode": 0, "errmsg": "ok", **self._hand_out(permit.consumer, accounts.pop(), corpid)}

    def _ticket(self, parameters: Parameters) -> Body:
        return self._hand_out_ticket(parameters, PUBLIC_TICKETS, _text(parameters, "type"))

    def _corp_ticket(self, parameters: Parameters) -> Body:
        return self._hand_out_ticket(parameters, CORP_TICKETS, CORP_TICKETS[0])

    def _agent_ticket(self, parameters: Parameters) -> Body:
        return self._hand_out_ticket(parameters, CORP_TICKETS[1:], _text(parameters, "type"))

    def _hand_out_ticket(self, parameters: Parameters, known: Iterable[str], ticket_type: str) -> Body:
        token = _text(parameters, "access_token")
        if not token:
            raise WeChatApiError(41001)
        if ticket_type not in known:
            raise WeChatApiError(40097)
        if not token.isascii():
            raise WeChatApiError(40001)
        try:
            owner = self._owner_of(token, ticket_type)
            reading = self._reader.read(owner.account, ticket_type)
        except UnknownAccountError:
            raise WeChatApiError(40001) from None
        except UnknownCredentialError:
            raise WeChatApiError(48001, f"no {ticket_type} ticket is kept for this account") from None
        if reading.credential.app_id != owner.app_id:  # the account has got another appid since one was looked up
            raise WeChatApiError(40001)
        _log(reading, by_token=fingerprint(token))
        return {"errcode": 0, "errmsg": "ok", "ticket": reading.value, "expires_in": reading.expires_in}

    def _public_token(self, parameters: Parameters, *preferred: Kind, force: bool = False) -> Body:
        """The token of an appid: of the account kept with the first of these endpoints, where the consumer may read two."""
        if _text(parameters, "grant_type") != "client_credential":
            raise WeChatApiError(40002)
        appid, key_digest = _credentials(parameters, "appid", "secret")
        permit = self._permit(key_digest, appid, corp=False)
        preferable = [permit.accounts[endpoint] for endpoint in preferred if endpoint in permit.accounts]
        account = next(iter([*preferable, *permit.accounts.values()]))
        return self._hand_out(permit.consumer, account, appid, force=force)

    def _hand_out(self, consumer: Consumer, account: str, app_id: str, *, force: bool = False) -> Body:
        try:
            reading = self._reader.read(account, ACCESS_TOKEN)
            if force and consumer.may_report:
                reading = self._reported(reading)
        except (UnknownAccountError, UnknownCredentialError):
            raise WeChatApiError(40013) from None
        if reading.credential.app_id != app_id:  # one of the two was looked up before the account got another appid
            raise NoValidValueError(None, retry_after=1)
        _log(reading, consumer=consumer.name)
        expires_in = min(reading.expires_in, consumer.cache_for or reading.expires_in)
        return {"access_token": reading.value, "expires_in": expires_in}

    def _reported(self, current: Reading) -> Reading:
        """What becomes of "the current token fails for me": it is replaced if it is dead, and stays otherwise."""
        account = current.credential.account
        try:
            _, reading = self._reader.report(account, current.credential.fingerprint or "")
        except (TooManyReportsError, NoValidValueError):
            # It could not be checked; or it is dead, then there is none to read either.
            return self._reader.read(account, ACCESS_TOKEN)
        return reading

    # --- who may read what

    def _permit(self, key_digest: str, app_id: str, *, corp: bool) -> Permit:
        asked_for = (key_digest, app_id, corp)
        permit = self._permits.get(asked_for)
        if permit is not None:
            return permit
        asked_at = self._clock()
        consumer = self._table.consumer(key_digest)
        if consumer is None or not compare_digest(consumer.key_digest, key_digest):
            raise WeChatApiError(40125)
        accounts = {
            claim: account
            for claim, account in self._table.accounts.claims_on(app_id).items()
            if _is_corps(claim) == corp and consumer.may_read(account)
        }
        if not accounts:
            raise WeChatApiError(40013)
        permit = Permit(consumer, accounts)
        self._permits.put(asked_for, permit, asked_at)
        return permit

    def _owner_of(self, token: str, ticket_type: str) -> TokenOwner:
        """Whose access token this is: the current one, or the one before for as long as WeChat accepts it."""
        token_digest = digest(token)
        owner = self._owners.get(token_digest) or self._cached_owner(token)
        if owner is not None:
            return owner
        asked_at = self._clock()
        for index in ("fingerprint", "previous_fingerprint"):
            account = self._table.credentials.account_of_token(index, fingerprint(token))
            owner = self._confirmed_owner(account, token, ticket_type) if account else None
            if owner is not None:
                self._owners.put(token_digest, owner, asked_at)
                return owner
        raise WeChatApiError(40001)

    def _cached_owner(self, token: str) -> TokenOwner | None:
        account = self._reader.account_of_token(token)
        if account is None:
            return None
        reading = self._reader.read(account, ACCESS_TOKEN)
        is_current = compare_digest(reading.value.encode(), token.encode())
        return TokenOwner(account, reading.credential.app_id) if is_current else None

    def _confirmed_owner(self, account: str, token: str, ticket_type: str) -> TokenOwner | None:
        """Whether the table itself, which does not lag, says so; the ticket is read along."""
        read_at = int(self._clock())
        current, ticket = self._table.credentials.token_and_ticket(account, ticket_type)
        if ticket is not None:
            self._reader.remember(ticket, read_at)
        return (
            TokenOwner(account, current.app_id) if current is not None and _is_alive(current, token, read_at) else None
        )


class _Memory[Key, Value]:
    """What was looked up in the last `REMEMBERED_FOR` seconds, bounded."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kept: dict[Key, tuple[Value, float]] = {}

    def get(self, key: Key) -> Value | None:
        value, asked_at = self._kept.get(key, (None, 0))
        return value if 0 <= self._clock() - asked_at < REMEMBERED_FOR else None

    def put(self, key: Key, value: Value, asked_at: float) -> None:
        if len(self._kept) >= REMEMBERED_AT_MOST:
            self._kept.pop(next(iter(self._kept)), None)
        self._kept[key] = (value, asked_at)


def _is_corps(claim: str) -> bool:
    return claim.partition("#")[0] == Kind.CORP_TOKEN


def _is_alive(current: Credential, token: str, now: int) -> bool:
    if compare_digest((current.value or "").encode(), token.encode()):
        return now < usable_until(current)
    is_previous = compare_digest(current.previous_digest or "", digest(token))
    return is_previous and now < current.previous_until


def _credentials(parameters: Parameters, id_name: str, secret_name: str) -> tuple[str, str]:
    """The appid or corpid, and the digest of the consumer's key."""
    app_id, key = _text(parameters, id_name), _text(parameters, secret_name)
    if not app_id:
        raise WeChatApiError(41002)
    if not key:
        raise WeChatApiError(41004)
    if not CONSUMER_KEY.fullmatch(key):
        raise WeChatApiError(40125)
    if not _APP_ID.fullmatch(app_id):
        raise WeChatApiError(40013)
    return app_id, digest(key)


def _text(parameters: Parameters, name: str) -> str:
    value = parameters.get(name)
    return value if isinstance(value, str) else ""


def _wants_force(parameters: Parameters) -> bool:
    force = parameters.get("force_refresh")
    return force is True or force == "true"


def _parameters(event: Mapping[str, Any]) -> Parameters:
    """The parameters of the query, and of a body in JSON or as a form. SDKs differ in where they send them and in what
    `Content-Type` they claim, and WeChat does not mind: so the body's first characters say what it is."""
    try:
        text = body_text(event)
        if text.lstrip().startswith("{"):
            sent = json_object(text)
        elif boundary := _BOUNDARY.match(text):
            sent = _multipart_form(boundary[1], text)
        else:
            sent = dict(parse_qsl(text, max_num_fields=100))
    except RecursionError:
        sent = None
    except ValueError as error:
        raise WeChatApiError(47001, str(error)) from None
    if sent is None:
        raise WeChatApiError(47001)
    return {**(event.get("queryStringParameters") or {}), **sent}


def _multipart_form(boundary: str, text: str) -> dict[str, Any]:
    from email import message_from_string  # loaded with http.client already

    form = message_from_string(f'Content-Type: multipart/form-data; boundary="{boundary}"\n\n{text}')
    return {str(part.get_param("name", header="content-disposition")): part.get_payload() for part in form.walk()}


def _error(event: Mapping[str, Any], errcode: int, hint: str) -> Body:
    is_corps = event["routeKey"].endswith("/gettoken")
    words = (ERRMSG | _CORP_ERRMSG if is_corps else ERRMSG)[errcode]
    rid = event.get("requestContext", {}).get("requestId")
    return {"errcode": errcode, "errmsg": f"{words}, {hint} rid: {rid}" if hint else f"{words} rid: {rid}"}


def _log(reading: Reading, **who: str) -> None:
    extra = {
        "account": reading.credential.account,
        "credential": reading.credential.name,
        "fingerprint": reading.credential.fingerprint,
        "stale": reading.stale,
    }
    logger.info("handed out", extra={**who, **extra})
