"""RefreshFunction: which event woke us, one call into the keeper, one log line for each outcome."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import cache, partial
from typing import Any

import boto3
from aws_lambda_powertools import Logger
from botocore.config import Config

from token_keeper.clock import whole_seconds
from token_keeper.refresh.checker import HasTime
from token_keeper.refresh.events import Events
from token_keeper.refresh.keeper import WORKERS, Keeper
from token_keeper.refresh.outcome import Outcome, Probed
from token_keeper.refresh.parameter_store import ParameterStore
from token_keeper.refresh.wechat import WeChat
from token_keeper.table import Table

logger = Logger(service="refresh")

# At DEBUG these write whole requests and responses (AppSecrets in URLs, decrypted parameters), at INFO noise.
for chatty in ("botocore", "boto3"):
    logging.getLogger(chatty).setLevel(logging.WARNING)
# This one names the URL, with the AppSecret, even in a warning: of headers that it cannot parse.
logging.getLogger("urllib3").setLevel(logging.CRITICAL)

READERS_ALIAS = "readers"
"""The alias by which ApiFunction invokes this function; it may invoke no other."""

MIN_TIME = 45
"""Seconds of run time that must be left to begin with a credential: three calls to WeChat of 11 s each, and what is read and
written around them. Or with a batch of the probe: WeChat may take half of them to respond to it."""

type Handler = Callable[[Mapping[str, Any], Any], dict[str, Any]]


class UnknownEventError(ValueError):
    """RefreshFunction was woken by something that is none of its events."""


def create_handler(
    environment: Mapping[str, str],
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
    client: Callable[..., Any] = boto3.client,
) -> Handler:
    """Make the handler for a stack's environment: `STACK_NAME`, `TABLE_NAME`, `ACCOUNTS_PATH`, `WECHAT_API_URL`,
    `WECOM_API_URL`.

    It returns what was renewed, skipped and failed: fingerprints and times, never a value. `client` makes AWS clients
    as `boto3.client` does.
    """
    now = whole_seconds(clock)
    config = Config(
        connect_timeout=2, read_timeout=5, max_pool_connections=WORKERS, retries={"mode": "standard", "max_attempts": 3}
    )
    accounts = ParameterStore(client("ssm", config=config), environment["ACCOUNTS_PATH"])
    table = Table(client("dynamodb", config=config), environment["TABLE_NAME"])
    wechat = WeChat(environment["WECHAT_API_URL"], environment["WECOM_API_URL"], now)
    # The events are sent when all else is done, so they may not take long; what is not sent is sent the next time.
    quickly = Config(connect_timeout=1, read_timeout=2, retries={"total_max_attempts": 1})
    events = Events(client("events", config=quickly), table, environment["STACK_NAME"])
    return partial(_handle, Keeper(table, accounts, wechat, events, now, sleep), events)


def _handle(keeper: Keeper, events: Events, event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    def has_time() -> bool:
        return context is None or context.get_remaining_time_in_millis() >= MIN_TIME * 1000

    _check_caller(event, context)
    try:
        woken_by, found = _wake(keeper, event, has_time)
        return _summarize(woken_by, found)
    finally:
        events.send()


def _summarize(woken_by: str, found: Iterable[Outcome | Probed]) -> dict[str, Any]:
    """Log each outcome as it comes; returns the summary."""
    summary: dict[str, Any] = {"woken_by": woken_by, "renewed": [], "skipped": [], "failed": []}
    for each in found:
        if isinstance(each, Probed):
            summary["probed"] = asdict(each)
            logger.info("probed", extra=asdict(each))
            continue
        fields = {"account": each.account, "credential": each.credential, **each.details}
        write = logger.error if each.what == "failed" else logger.info
        write(each.what, extra={"woken_by": woken_by, **fields})
        summary.setdefault(each.what, []).append(fields)
    logger.info("woken", extra={"woken_by": woken_by})  # `token-keeper doctor` looks for the last guard and probe
    return summary


READERS_EVENTS = [{"renew": {"account", "credential"}}, {"verify": {"account", "fingerprint"}}]
"""The fields of what ApiFunction may send: have a credential renewed that is due, or a token checked."""


def _check_caller(event: Mapping[str, Any], context: Any) -> None:
    if context is None or not context.invoked_function_arn.endswith(f":{READERS_ALIAS}"):
        return
    fields = {name: set(given) if isinstance(given, dict) else None for name, given in event.items()}
    if fields not in READERS_EVENTS:
        raise UnknownEventError("this is no event that ApiFunction may send")


def _wake(keeper: Keeper, event: Mapping[str, Any], has_time: HasTime) -> tuple[str, Iterable[Outcome | Probed]]:
    match event:
        case {"wake": "tick"} | {"detail-type": "Scheduled Event"}:
            return "tick", keeper.tick(has_time)
        case {"wake": "guard"}:
            return "guard", keeper.guard(has_time)
        case {"wake": "probe"}:
            return "probe", keeper.probe(has_time)
        case {"source": "aws.ssm", "detail": {"name": str(parameter), "operation": operation}}:
            return "parameter", keeper.parameter_changed(parameter, has_time, exists=operation != "Delete")
        case {"renew": {"account": str(account), "credential": str(credential), **options}}:
            return "renew", keeper.renew(account, credential, has_time, rotate=options.get("rotate") is True)
        case {"verify": {"account": str(account), "fingerprint": str(fingerprint)}}:
            return "verify", keeper.verify(account, fingerprint, has_time)
        case _:
            raise UnknownEventError(f"no event of RefreshFunction has the fields {sorted(map(str, event))[:10]}")


_handler = cache(lambda: create_handler(os.environ))


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """AWS Lambda's entry. Takes the events that `_wake` names; raises `UnknownEventError` for any other."""
    return _handler()(event, context)
