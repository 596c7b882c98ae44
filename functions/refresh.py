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

from token_keeper.model import Failed, Outcome, Probed, Renewed
from token_keeper.refresh.events import Events
from token_keeper.refresh.keeper import WORKERS, Keeper
from token_keeper.refresh.parameter_store import ParameterStore
from token_keeper.refresh.wechat import WeChat
from token_keeper.summary import outcome_fields
from token_keeper.table import Table

logger = Logger(service="refresh")

# At DEBUG these write whole requests and responses (AppSecrets in URLs, decrypted parameters), at INFO noise.
for chatty in ("botocore", "boto3"):
    logging.getLogger(chatty).setLevel(logging.WARNING)
# This one names the URL, with the AppSecret, even in a warning: of headers that it cannot parse.
logging.getLogger("urllib3").setLevel(logging.CRITICAL)

READERS_ALIAS = "readers"
"""The alias by which ApiFunction invokes this function; it may invoke no other."""

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
    config = Config(
        connect_timeout=2, read_timeout=5, max_pool_connections=WORKERS, retries={"mode": "standard", "max_attempts": 3}
    )
    accounts = ParameterStore(client("ssm", config=config), environment["ACCOUNTS_PATH"])
    table = Table(client("dynamodb", config=config), environment["TABLE_NAME"])
    wechat = WeChat(environment["WECHAT_API_URL"], environment["WECOM_API_URL"], lambda: int(clock()))
    # The events are sent when all else is done, so they may not take long; what is not sent is sent the next time.
    quickly = Config(connect_timeout=1, read_timeout=2, retries={"total_max_attempts": 1})
    events = Events(client("events", config=quickly), table, environment["STACK_NAME"])
    keeper = Keeper(table, accounts, wechat, events, clock, sleep)
    return partial(_handle, keeper, accounts, events)


def _handle(
    keeper: Keeper, accounts: ParameterStore, events: Events, event: Mapping[str, Any], context: Any
) -> dict[str, Any]:
    def time_left() -> float:
        return context.get_remaining_time_in_millis() / 1000 if context else float("inf")

    _check_caller(event, context)
    try:
        woken_by, found = _wake(keeper, accounts, event, time_left)
        return _summarize(woken_by, found)
    finally:
        events.send()


def _summarize(woken_by: str, found: Iterable[Outcome | Probed]) -> dict[str, Any]:
    """Log each outcome as it comes; returns the summary."""
    summary: dict[str, Any] = {"woken_by": woken_by, "renewed": [], "skipped": [], "failed": []}
    for outcome in found:
        if isinstance(outcome, Probed):
            summary["probed"] = asdict(outcome)
            logger.info("probed", extra=asdict(outcome))
            continue
        what, fields = outcome_fields(outcome)
        # What the dashboard shows of the day's calls.
        budget = {"budget_used": outcome.budget_used} if isinstance(outcome, (Renewed, Failed)) else {}
        write = logger.error if what == "failed" else logger.info
        write(what, extra={"woken_by": woken_by, **fields, **budget})
        summary.setdefault(what, []).append(fields)
    logger.info("woken", extra={"woken_by": woken_by})  # `token-keeper doctor` looks for the last guard and probe
    return summary


READERS_EVENTS = [{"renew": {"account", "credential"}}, {"verify": {"account", "fingerprint"}}]
"""The fields of what ApiFunction may send: have a credential renewed that is due, or a token checked."""


def _check_caller(event: Mapping[str, Any], context: Any) -> None:
    if context is None or not context.invoked_function_arn.endswith(f":{READERS_ALIAS}"):
        return
    if {
        name: set(fields) if isinstance(fields, dict) else None for name, fields in event.items()
    } not in READERS_EVENTS:
        raise UnknownEventError("this is no event that ApiFunction may send")


def _wake(
    keeper: Keeper, accounts: ParameterStore, event: Mapping[str, Any], time_left: Callable[[], float]
) -> tuple[str, Iterable[Outcome | Probed]]:
    match event:
        case {"wake": "tick"} | {"detail-type": "Scheduled Event"}:
            return "tick", keeper.tick(time_left)
        case {"wake": "guard"}:
            return "guard", keeper.guard(time_left)
        case {"wake": "probe"}:
            return "probe", keeper.probe(time_left)
        case {"source": "aws.ssm", "detail": {"name": str(parameter), "operation": operation}}:
            account, exists = accounts.name_of(parameter), operation != "Delete"
            return "parameter", keeper.account_changed(account, time_left, exists=exists) if account else []
        case {"renew": {"account": str(account), "credential": str(credential), **options}}:
            return "renew", keeper.renew(account, credential, time_left, rotate=options.get("rotate") is True)
        case {"verify": {"account": str(account), "fingerprint": str(fingerprint)}}:
            return "verify", keeper.verify(account, fingerprint, time_left)
        case _:
            raise UnknownEventError(f"no event of RefreshFunction has the fields {sorted(map(str, event))[:10]}")


_handler = cache(lambda: create_handler(os.environ))


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """AWS Lambda's entry. Takes the events that `_wake` names; raises `UnknownEventError` for any other."""
    return _handler()(event, context)
