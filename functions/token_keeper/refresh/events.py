"""Adapter: EventBridge. Sends what happened to credentials, when the renewals of a wake-up are done.

An event that is not sent stays in its credential's item and is sent with the next attempt, or by the next probe.
"""

import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import batched
from threading import Lock
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from token_keeper.errors import StoreUnavailableError
from token_keeper.model import Credential
from token_keeper.refresh import alerts
from token_keeper.table import Table

PUT_EVENTS_BATCH = 10
"""The most entries that PutEvents takes."""

RESEND_AFTER = 150
"""Seconds for which an event in the table is left to the instance that wrote it, which may run for 120."""

_logger = logging.getLogger("refresh.events")


class Events:
    """The events of one stack. `send` raises nothing; threads may `add` at the same time. `client`: boto3's for EventBridge."""

    def __init__(self, client: Any, table: Table, stack: str) -> None:
        self._client = client
        self._table = table
        self._stack = stack
        self._lock = Lock()
        self._waiting: dict[str, Credential] = {}
        self._renewed: list[str] = []

    def add(self, credential: Credential, *, is_renewed: bool = False) -> None:
        """Have sent what waits in the item, and that it was renewed. `credential`: as its last write left it."""
        with self._lock:
            if is_renewed:
                self._renewed.append(alerts.to_text(alerts.renewed(credential)))
            self._waiting |= dict.fromkeys(alerts.waiting(credential.unsent), credential)

    def add_left(self, credential: Credential, now: int) -> None:
        """Have sent what an earlier attempt could not send."""
        left = alerts.waiting(credential.unsent)
        if left and all(alerts.from_text(text).at <= now - RESEND_AFTER for text in left):
            self.add(credential)

    def send(self) -> None:
        """Send what was added. What waits in an item is removed from it when it is sent."""
        with self._lock:
            entries = [*self._waiting.items(), *((text, None) for text in self._renewed)]
            self._waiting, self._renewed = {}, []
        for batch in batched(entries, PUT_EVENTS_BATCH, strict=False):
            accepted = self._put([text for text, _ in batch])
            if accepted is None:
                return  # nor would it take the others, and this invocation has no time to wait
            for (text, credential), is_sent in zip(batch, accepted, strict=True):
                if credential is not None and is_sent:
                    self._remove(credential, text)

    def _put(self, texts: Sequence[str]) -> list[bool] | None:
        """Which of them EventBridge has taken; None where it does not respond."""
        try:
            reply = self._client.put_events(Entries=[self._entry(text) for text in texts])
            refused = [entry.get("ErrorCode") for entry in reply["Entries"]]
        except ClientError as error:
            refused = [error.response["Error"]["Code"]] * len(texts)
        except BotoCoreError as error:
            _logger.error("events not sent", extra={"events": len(texts), "reasons": [type(error).__name__]})
            return None
        if reasons := sorted({reason for reason in refused if reason}):
            # AWS may quote what was sent.
            _logger.error("events not sent", extra={"events": len(refused) - refused.count(None), "reasons": reasons})
        return [reason is None for reason in refused]

    def _entry(self, text: str) -> Any:
        event = alerts.from_text(text)
        return {
            "Source": f"wechat-token-keeper.{self._stack}",
            "DetailType": str(event.event_type),
            "Time": datetime.fromtimestamp(event.at, UTC),
            "Detail": json.dumps({"stack": self._stack, **event.detail}),
        }

    def _remove(self, credential: Credential, text: str) -> None:
        try:
            self._table.credentials.change(credential, lambda current: alerts.sent(current, text))
        except StoreUnavailableError as error:
            _logger.error("events may be sent twice", extra={"account": credential.account, "reason": str(error)})
