"""Rules: what operators and clients do, and how time passes."""

import json
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from infra.local.simulated_wechat import OVERLAP
from tests.simulation.accounts import OTHER_APPID, RECORDS, app_name_of, endpoint_of, identity_of, text_of
from tests.simulation.bounds import CALM
from tests.simulation.choices import accounts, deliveries, readers
from tests.simulation.invariants import Invariants
from tests.simulation.watched import SKEWS
from tests.support.world import ACCOUNTS_PATH
from token_keeper.budget import CHECK_SERVES
from token_keeper.model import ACCESS_TOKEN, CORP_TICKETS, PUBLIC_TICKETS
from token_keeper.renewal import MARGIN


class People(Invariants):
    """Accounts are added and changed, values are read, reported and replaced."""

    @initialize(names=st.sets(accounts, min_size=1, max_size=3))
    def begin(self, names: set[str]) -> None:
        """Some accounts are kept from the start."""
        for name in sorted(names):
            self.add(name, "at once")

    @rule(name=accounts, delivery=deliveries)
    def add(self, name: str, delivery: str) -> None:
        """An account is added (again), as it was in the beginning."""
        if name not in self.records:
            self._put(name, dict(RECORDS[name]), delivery)
            self._correct_secret(name, delivery)

    @precondition(lambda self: self.records)
    @rule(name=accounts, delivery=deliveries)
    def delete(self, name: str, delivery: str) -> None:
        """An account's parameter is deleted."""
        if name in self.records:
            self._act(name)
            del self.records[name]
            self.world.ssm.delete_parameter(Name=f"{ACCOUNTS_PATH}/{name}")
            self._changed(name, delivery)

    @rule(
        name=accounts,
        change=st.sampled_from(
            [
                *("wrong secret", "right secret", "reset secret", "reset secret and token", "another's secret"),
                *("endpoint", "tickets", "appid", "broken"),
            ]
        ),
        delivery=deliveries,
    )
    def record_changes(self, name: str, change: str, delivery: str) -> None:
        """An operator changes an account's parameter, or its secret at WeChat."""
        name = self._kept(name)
        record = self.records.get(name)
        if record is None:
            return
        record = dict(record)
        app = app_name_of(name, record)
        match change:
            case "wrong secret":
                record["secret"] = f"wrong_secret_of_{name}_000000000000001"
            case "right secret":
                self._correct_secret(name, delivery)
                return
            case "reset secret" | "reset secret and token":
                self._reset_secret(name, ends_token=change != "reset secret")
                return
            case "another's secret" if app in self.secret_of and "corpid" in record:
                record["secret"] = self.secret_of.get("ww_corp_000000001/corp", record["secret"])
            case "endpoint" if "appid" in record:
                self._act(name)
                record["endpoint"] = "stable_token" if endpoint_of(record) == "token" else "token"
            case "tickets":
                known = CORP_TICKETS if "corpid" in record else PUBLIC_TICKETS
                record["tickets"] = [ticket for ticket in known if ticket not in record.get("tickets", [])]
            case "appid" if "appid" in record:
                self._act(name)
                record["appid"] = OTHER_APPID if record["appid"] != OTHER_APPID else RECORDS[name]["appid"]
            case "broken":
                record["tickets"] = "simulated_token_in_the_wrong_place"
        self._put(name, record, delivery)

    def _put(self, name: str, record: dict[str, Any], delivery: str) -> None:
        self.records[name] = record
        self.world.secrets.add(record["secret"])
        app = app_name_of(name, record)
        if app not in self.secret_of:
            self.secret_of[app] = record["secret"]
            open_app = self.wechat.add_corp_app if "corpid" in record else self.wechat.add_app
            open_app(identity_of(record), record["secret"])
        if (opened := self.wechat.app_of(record)) is not None:
            self.apps[name].add(opened)
        self.world.ssm.put_parameter(Name=f"{ACCOUNTS_PATH}/{name}", Value=json.dumps(record))
        self._changed(name, delivery)

    def _correct_secret(self, name: str, delivery: str) -> None:
        record = self.records[name]
        right = self.secret_of[app_name_of(name, record)]
        if record["secret"] != right or isinstance(record.get("tickets"), str):
            self._put(name, {**record, "secret": right, "tickets": RECORDS[name].get("tickets", [])}, delivery)

    def _reset_secret(self, name: str, *, ends_token: bool) -> None:
        """WeChat takes a new secret only; whether that also ends the live tokens is not documented."""
        record = self.records[name]
        app, old = app_name_of(name, record), self.secret_of[app_name_of(name, record)]
        opened = self.wechat.app_of({**record, "secret": old})
        self.secret_of[app] = f"{RECORDS[name]['secret']}_{self.clock.now:.0f}_{len(self.world.secrets)}"
        self.wechat.change_secret(identity_of(record), old, self.secret_of[app])
        self.world.secrets.add(self.secret_of[app])
        for token in (*opened.tokens, *opened.stable_tokens) if ends_token else ():
            if token.dies_at > self.clock.now:
                self.wechat.kill(token.text)
                self.wechat.spoiled.add(token.text)
        self._trouble()

    @precondition(lambda self: self.records)
    @rule(name=accounts, reader=readers)
    def an_account_is_added_again(self, name: str, reader: int) -> None:
        """It is deleted, and added again at once."""
        name = self._kept(name)
        self.delete(name, "at once")
        self.add(name, "at once")
        for credential in (ACCESS_TOKEN, *RECORDS[name].get("tickets", [])):
            self._read(name, credential, reader)

    @rule(seconds=st.sampled_from([1, 5, 20, 60, 100, 300]))
    def moments_pass(self, seconds: int) -> None:
        """The schedules fire meanwhile."""
        self.clock.sleep(seconds)

    @rule(seconds=st.sampled_from([600, 1800, 6600, 6900, 7200, 14000]))
    def hours_pass(self, seconds: int) -> None:
        """Long enough for values to be renewed."""
        self.clock.sleep(seconds)

    @rule(
        name=accounts,
        credential=st.sampled_from([ACCESS_TOKEN, ACCESS_TOKEN, "jsapi", "wx_card", "agent_config"]),
        reader=readers,
    )
    def read(self, name: str, credential: str, reader: int) -> None:
        """A client asks for a value."""
        name = self._kept(name)
        self._read(name, credential, reader)

    @rule(name=accounts, reader=readers, which=st.integers(0, 2), times=st.sampled_from([1, 1, 2, 5]))
    def report(self, name: str, reader: int, which: int, times: int) -> None:
        """Clients report the current token, or one of those before it."""
        name = self._kept(name)
        seen = [
            promise.minted for promise in self.promises if (promise.account, promise.credential) == (name, ACCESS_TOKEN)
        ]
        reported = dict.fromkeys(minted.value.text for minted in reversed(seen))
        item = self._item(name, ACCESS_TOKEN)
        candidates = [*([item["value"]["S"]] if item and "value" in item else []), *reported]
        if which >= len(candidates):
            return
        for _ in range(times):
            self._report(name, reader, candidates[which])

    @rule(name=accounts, reader=readers)
    def clients_keep_reporting(self, name: str, reader: int) -> None:
        """For a quarter of an hour clients report the current token, whatever they are served."""
        name = self._kept(name)
        for _ in range(60):
            text = text_of(self._item(name, ACCESS_TOKEN))
            if text is not None:
                self._report(name, reader, text)
            self.clock.sleep(CHECK_SERVES + MARGIN + 1)  # no check serves two

    @rule(name=accounts, reader=readers, force=st.booleans())
    def an_sdk_asks(self, name: str, reader: int, force: bool) -> None:
        """As it asks WeChat; with `force` because the current token fails for it."""
        name = self._kept(name)
        self._ask(name, reader, force=force)

    @rule(reader=readers, name=accounts)
    def health(self, reader: int, name: str) -> None:
        """An operator looks at the health."""
        self.world.get("/v1/accounts", self.world.readers[reader])
        self.world.get(f"/v1/accounts/{name}", self.world.readers[reader])

    @rule(name=accounts, how_often=st.sampled_from([(1, 0), (1, 0), (3, 10), (25, 40)]))
    def operator_rotates(self, name: str, how_often: tuple[int, int]) -> None:
        """An operator wants a new value, now; so many times, with so many seconds in between."""
        times, pause = how_often
        name = self._kept(name)
        for _ in range(times):
            self._rotate(name)
            self.clock.sleep(pause)

    @rule(name=accounts, how=st.sampled_from(["kill", "fetch"]), ticket=st.booleans())
    def another_client(self, name: str, how: str, ticket: bool) -> None:
        """Another client fetches with this AppSecret, or the platform kills a value early."""
        name = self._kept(name)
        record = self.records.get(name)
        if record is None:
            return
        identity = identity_of(record)
        if how == "kill":
            credential = (record.get("tickets") or [ACCESS_TOKEN])[0] if ticket else ACCESS_TOKEN
            text = text_of(self._item(name, credential))
            if text is None or not self.wechat.accepts(text):
                return
            is_calm = credential == ACCESS_TOKEN and self.clock.now - self.troubled_at[name] > CALM
            self.wechat.kill(text)
            self.wechat.spoiled.add(text)
            self._trouble(0, identity)
            if is_calm:
                self.killed_at[name] = self.clock.now
        elif "appid" in record and identity in self.secret_of:
            self.wechat.fetch_as_another_client(identity, self.secret_of[identity])
            self._trouble(OVERLAP, identity)

    @rule(reader=readers)
    def cold_start(self, reader: int) -> None:
        """A reader's instance is replaced by a new one."""
        self.world.readers[reader] = self.world.reader(SKEWS[reader])
        self.last_promise = {key: until for key, until in self.last_promise.items() if key[0] != reader}
        self.served = {key: minted for key, minted in self.served.items() if key[0] != reader}
