"""The routes of the HTTP API: route key to one call, errors to problem documents. API Gateway has routed and authorised."""

import json
import logging
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from token_keeper import errors
from token_keeper.api.health import account_health
from token_keeper.api.jsapi import requested_page, sign
from token_keeper.api.reader import Reader, Reading
from token_keeper.api.wechat_compatible import CompatibleApi
from token_keeper.clock import Now
from token_keeper.model import ACCESS_TOKEN, ACCOUNT_NAME, fingerprint, rfc3339
from token_keeper.renewal import CACHE_FOR
from token_keeper.table import Table
from token_keeper.table.items import Entry
from token_keeper.untrusted import body_text, json_object

logger = logging.getLogger("api")
logger.setLevel(logging.INFO)

MAX_PAGE_SIZE = 50
"""Accounts on a page of health, and the most that `limit` may ask for."""

TICKET_TYPES = ("jsapi", "wx_card", "agent_config")

WECHATS_CONTENT_TYPE = "application/json; encoding=utf-8"
"""As WeChat sends it; SDKs look for its beginning."""

type Response = dict[str, Any]


class Api:
    """The HTTP API (infra/openapi.yaml)."""

    def __init__(self, table: Table, reader: Reader, now: Now) -> None:
        self._table = table
        self._reader = reader
        self._now = now
        self._compatible = CompatibleApi(table, reader, now)
        self._routes: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "GET /v1/accounts": self._accounts,
            "GET /v1/accounts/{account}": self._account,
            "GET /v1/accounts/{account}/access-token": self._access_token,
            "POST /v1/accounts/{account}/access-token/reports": self._report,
            "GET /v1/accounts/{account}/tickets/{type}": self._ticket,
            "GET /v1/accounts/{account}/jsapi-signature": self._signature,
        }

    def handle(self, event: Mapping[str, Any]) -> Response:
        """Handle an API Gateway request (payload format 2.0)."""
        if event["routeKey"].partition(" ")[2].startswith("/cgi-bin/"):
            return _response(200, self._compatible.handle(event), {"Content-Type": WECHATS_CONTENT_TYPE})
        try:
            return _response(200, self._routes[event["routeKey"]](event))
        except errors.KeeperError as error:
            return _problem(error)

    def _accounts(self, event: Mapping[str, Any]) -> dict[str, Any]:
        query = event.get("queryStringParameters") or {}
        limit, after = query.get("limit", str(MAX_PAGE_SIZE)), query.get("next")
        if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= MAX_PAGE_SIZE):
            raise errors.InvalidRequestError(f"limit must be a number from 1 to {MAX_PAGE_SIZE}")
        if after is not None and not ACCOUNT_NAME.fullmatch(after):
            raise errors.InvalidRequestError("next must be what the page before gave as next")
        entries, following = self._table.accounts.page(int(limit), after)
        page = {"accounts": self._health(entries)}
        return page | ({"next": following} if following else {})

    def _account(self, event: Mapping[str, Any]) -> dict[str, Any]:
        return self._health([self._reader.entry(_account_name(event))])[0]

    def _health(self, entries: list[Entry]) -> list[dict[str, Any]]:
        credentials = self._table.credentials.get_all(key for entry in entries for key in entry.keys)
        progress, now = self._table.progress(), self._now()
        return [account_health(entry, credentials, progress, now) for entry in entries]

    def _access_token(self, event: Mapping[str, Any]) -> dict[str, Any]:
        return self._hand_out(event, self._reader.read(_account_name(event), ACCESS_TOKEN), "access_token")

    def _report(self, event: Mapping[str, Any]) -> dict[str, Any]:
        account, reported = _account_name(event), _reported(event)
        outcome, reading = self._reader.report(account, reported)
        return self._hand_out(event, reading, "access_token") | {"outcome": str(outcome)}

    def _ticket(self, event: Mapping[str, Any]) -> dict[str, Any]:
        ticket_type = event["pathParameters"]["type"]
        if ticket_type not in TICKET_TYPES:
            raise errors.UnknownCredentialError(f"there are tickets of the types {', '.join(TICKET_TYPES)}")
        return self._hand_out(event, self._reader.read(_account_name(event), ticket_type), "ticket")

    def _signature(self, event: Mapping[str, Any]) -> dict[str, Any]:
        page, ticket_type = requested_page(event.get("rawQueryString", ""))
        reading = self._reader.read(_account_name(event), ticket_type)
        nonce, timestamp = secrets.token_hex(8), self._now()
        _log("signed", event, reading)
        return {
            "appId": reading.credential.app_id,
            "timestamp": timestamp,
            "nonceStr": nonce,
            "signature": sign(reading.value, nonce, timestamp, page),
        }

    def _hand_out(self, event: Mapping[str, Any], reading: Reading, value_field: str) -> dict[str, Any]:
        _log("handed out", event, reading)
        return {
            "account": reading.credential.account,
            "credential": reading.credential.name,
            value_field: reading.value,
            "expires_in": reading.expires_in,
            "expires_at": rfc3339(reading.expires_at),
            "cache_for": min(CACHE_FOR, reading.expires_in),
        } | reading.log_fields


def _account_name(event: Mapping[str, Any]) -> str:
    account: str = event["pathParameters"]["account"]
    if not ACCOUNT_NAME.fullmatch(account):
        raise errors.UnknownAccountError("an account's name is 1 to 64 lower-case letters, digits and -")
    return account


def _reported(event: Mapping[str, Any]) -> str:
    """The fingerprint of the token that a report's body is about."""
    try:
        report = json_object(body_text(event))
    except ValueError as error:
        raise errors.InvalidRequestError(f"the body is unreadable: {error}") from None
    match report:
        case {"access_token": str(token)} if token and token.isascii():
            return fingerprint(token)
        case {"fingerprint": str(reported)} if re.fullmatch("[0-9a-f]{16}", reported):
            return reported
    raise errors.InvalidRequestError(
        "a report is a JSON object with the access_token, or its fingerprint (16 hex digits)"
    )


def _log(message: str, event: Mapping[str, Any], reading: Reading) -> None:
    caller = event.get("requestContext", {}).get("authorizer", {}).get("iam", {}).get("userArn")
    logger.info(message, extra={"caller": caller, **reading.log_fields})


def _problem(error: errors.KeeperError) -> Response:
    problem = {"title": error.code.replace("_", " "), "status": error.status, "code": error.code, "detail": str(error)}
    headers = {"Content-Type": "application/problem+json"}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, errors.NoValidValueError):
        problem["cause"] = error.cause and error.cause.shown
    return _response(error.status, problem, headers)


def _response(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return {
        "statusCode": status,
        "headers": {"Content-Type": "application/json", "Cache-Control": "no-store", **(headers or {})},
        "body": json.dumps(body, ensure_ascii=False, separators=(",", ":")),
    }
