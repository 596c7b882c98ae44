"""Readers that ask ApiFunction, and what must hold of its responses."""

import json
from collections.abc import Mapping
from typing import Any

from tests.simulation.accounts import RECORDS, identity_of
from tests.simulation.watched import Promise
from tests.simulation.written import WriteChecks
from token_keeper import renewal
from token_keeper.api.reader import REMEMBERED_FOR
from token_keeper.budget import CHECK_SERVES
from token_keeper.model import ACCESS_TOKEN, fingerprint
from token_keeper.renewal import MARGIN, UNKNOWN_AGE_LIFE


class ReaderChecks(WriteChecks):
    """Reads, reports and asks, and keeps what was promised."""

    def _read(self, name: str, credential: str, reader: int) -> None:
        path = "access-token" if credential == ACCESS_TOKEN else f"tickets/{credential}"
        status, body = self.world.get(f"/v1/accounts/{name}/{path}", self.world.readers[reader])
        if status == 200:
            self._served_by_api(name, credential, reader, body)

    def _report(self, name: str, reader: int, text: str) -> None:
        asked_at = self.clock.now
        path, body = f"/v1/accounts/{name}/access-token/reports", json.dumps({"access_token": text})
        status, response, _ = self.world.request(path, self.world.readers[reader], body)
        if status == 200:
            self._served_by_api(name, ACCESS_TOKEN, reader, response)
            self._check_outcome(name, response, self.wechat.minted[text].value, asked_at)

    def _ask(self, name: str, reader: int, *, force: bool) -> None:
        record = self.records.get(name, RECORDS[name])
        sent = {"grant_type": "client_credential", "appid": identity_of(record), "secret": self.keys[name]}
        instance = self.world.readers[reader]
        if "corpid" in record:
            query = {"corpid": identity_of(record), "corpsecret": self.keys[name]}
            response = self.world.ask("GET /cgi-bin/gettoken", instance, **query)
        elif force or reader:
            body = json.dumps({**sent, "force_refresh": force})
            response = self.world.ask("POST /cgi-bin/stable_token", instance, body=body)
        else:
            response = self.world.ask("GET /cgi-bin/token", instance, **sent)
        if "access_token" in response:
            self._handed_out(name, ACCESS_TOKEN, reader, response["access_token"], response["expires_in"])

    def _served_by_api(self, name: str, credential: str, reader: int, body: Mapping[str, Any]) -> None:
        text = body["access_token"] if credential == ACCESS_TOKEN else body["ticket"]
        if body["fingerprint"] != fingerprint(text):
            self._violate("responses", f"{name}/{credential}: a value was handed out with another's fingerprint")
        if not 0 < body["cache_for"] <= min(60, body["expires_in"]):
            self._violate("promise", f"{name}/{credential}: to be kept for longer than is promised")
        until, of_reader = self.clock.now + body["expires_in"], (reader, credential, text)
        if body["stale"] and until > self.last_promise.get(of_reader, 0):
            self._violate("reader", f"{name}/{credential}: a stale response promises more than the one it is made of")
        self.last_promise[of_reader] = until
        self._handed_out(name, credential, reader, text, body["expires_in"], stale=body["stale"])

    def _handed_out(
        self, name: str, credential: str, reader: int, text: str, expires_in: int, *, stale: bool = False
    ) -> None:
        now, minted = self.clock.now, self.wechat.minted.get(text)
        if minted is None:
            self._violate("responses", f"{name}/{credential}: a reader got what is no value")
            return
        if credential == ACCESS_TOKEN and minted.value.owner not in self.apps[name]:
            self._violate("order", f"{name}/{credential}: a reader got another account's value")
        if expires_in < 1:
            self._violate("promise", f"{name}/{credential}: a promise without time")
        known_for = now - self.refused.get(text, now)
        if known_for > REMEMBERED_FOR + MARGIN and not stale and not self._is_down("dynamodb"):
            self._violate("dead", f"{name}/{credential}: handed out {known_for:.0f} s after WeChat had refused it")
        key = (reader, name, credential, f"{minted.path} {minted.value.owner.account}")
        if key in self.served:
            self._check_order(name, credential, self.served[key], minted, "was handed out")
        self.served[key] = minted
        self.last_promise[reader, credential, text] = now + expires_in
        self.promises.append(Promise(name, credential, minted, now, now + expires_in))

    def _check_outcome(self, name: str, response: Mapping[str, Any], reported: Any, asked_at: float) -> None:
        same, outcome = response["fingerprint"] == fingerprint(reported.text), response["outcome"]
        if same != (outcome in ("still_valid", "unverified")):
            self._violate("reader", f"a report was served {outcome} with {'the same' if same else 'another'} value")
        if outcome == "replaced" and reported.dies_at > self.clock.now:
            self._violate("reader", "a report replaced a token that works")
        item = self._item(name, ACCESS_TOKEN)
        is_young = item is not None and asked_at - int(item["fetched_at"]["N"]) < renewal.MIN_AGE_TO_CHECK + MARGIN
        if outcome == "still_valid" and asked_at - reported.dies_at > CHECK_SERVES + MARGIN and not is_young:
            self._violate("reader", "a report was served still_valid for a dead token")

    def _excuse(self, promise: Promise) -> str | None:
        """Why a value may have died before the end of its promise, in all the cases where it may."""
        value = promise.minted.value
        if value.text in self.wechat.spoiled:
            return "another client or the platform has ended it"
        if promise.learned_at <= self.ended.get(value.text, 0):
            return "an operator has ended it since"
        if value.text in self.ended and promise.learned_at <= self.outages.get("dynamodb", 0):
            return "an operator has ended it, and a reader that DynamoDB does not respond to serves what it remembers"
        if promise.until - promise.learned_at <= 1 and promise.learned_at - value.dies_at < MARGIN:
            return "a clock that is behind: at least a second is promised while a value lives"
        key = (promise.account, promise.credential, value.text)
        if key in self.of_unknown_age and promise.until - value.dies_at <= UNKNOWN_AGE_LIFE:
            return "a ticket of unknown age is trusted for so long at a time"
        return None
