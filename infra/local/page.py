"""The local stack's side of its page: what the page draws, and the buttons that let the simulated AWS and WeChat fail."""

import json
from collections.abc import Callable, Mapping
from threading import Event, Thread
from typing import Any

from infra.console.history import History
from infra.local.embedded_aws import EmbeddedAws
from infra.local.simulated_wechat import Fault, SimulatedWeChat
from token_keeper.errors import KeeperError
from token_keeper.model import ACCESS_TOKEN, fingerprint

POLL_SECONDS = 1
"""Between two looks of the page."""

FAULTS = {"refuse": Fault.error(40164), "busy": Fault.error(-1), "lose": Fault.drop_after()}
"""How every call of WeChat fails while that button is pressed; the next renewal is begun at once, so that one sees it."""

BUTTONS = (*FAULTS, "dynamodb", "kill", "heal")

type Invoke = Callable[[dict[str, Any]], dict[str, Any]]


class LocalPage:
    """Makes the page's state, and presses its buttons; there is none where WeChat is `real`.

    `clock` gives the stack's epoch seconds, `api` and `refresh` invoke its functions.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        wechat: SimulatedWeChat,
        aws: EmbeddedAws,
        api: Invoke,
        refresh: Invoke,
        *,
        real: bool,
    ) -> None:
        self.history = History()
        self._clock, self._wechat, self._aws = clock, wechat, aws
        self._api, self._refresh, self._real = api, refresh, real
        self._accounts: list[dict[str, Any]] = []
        self._stopping = Event()

    def stop(self) -> None:
        """Begin no further renewal."""
        self._stopping.set()

    def state(self, speed: float) -> dict[str, Any]:
        """What the page draws; the stack's clock passes `speed` times as fast as the wall clock."""
        trouble = self._read_health()
        return {
            "stack": "local",
            "speed": speed,
            "poll": POLL_SECONDS,
            "simulated": not self._real,
            "buttons": () if self._real else BUTTONS,
            "pressed": () if self._real else self._pressed(),
            "trouble": trouble,
            **self.history.state(self._accounts, self._clock()),
        }

    def press(self, button: str) -> None:
        """Do what the button says; one that is pressed already is released. Raises KeyError for a button there is not."""
        if button not in BUTTONS or self._real:
            raise KeyError(button)
        is_pressed = button in self._pressed()
        if button == "kill":
            killed = self._wechat.kill_tokens()
            self.history.killed(self._clock(), [fingerprint(token) for token in killed])
        elif button == "dynamodb" and not is_pressed:
            self._aws.unavailable.add("dynamodb")
        else:
            self._aws.unavailable.discard("dynamodb")
            self._wechat.fault = Fault() if is_pressed else FAULTS.get(button, Fault())
        if button in FAULTS and not is_pressed:
            Thread(target=self._renew, args=[button], daemon=True).start()

    def _pressed(self) -> tuple[str, ...]:
        """The buttons that stand for what fails now; one that has no button, as `--fault` names it, stands for itself."""
        fault, down = self._wechat.fault, self._aws.unavailable
        named = [name for name, meant in FAULTS.items() if meant == fault] or ["other"] * (fault != Fault())
        return (*named, *(("dynamodb",) if "dynamodb" in down else ()))

    def _renew(self, button: str) -> None:
        """Have every token renewed as an operator may: not within half a minute after the last fetch, so wait for that."""
        waiting = [account["account"] for account in self._accounts]
        while waiting and button in self._pressed() and not self._stopping.is_set():
            summaries = {name: self._rotate(name) for name in waiting}
            waiting = [name for name, summary in summaries.items() if summary is None or summary["skipped"]]
            self._stopping.wait(0.5)

    def _rotate(self, account: str) -> Mapping[str, Any] | None:
        try:
            return self._refresh({"renew": {"account": account, "credential": ACCESS_TOKEN, "rotate": True}})
        except KeeperError:
            return None

    def _read_health(self) -> dict[str, Any] | None:
        """Read the accounts' health as the API shows it; where it cannot, keep the last and return its problem document."""
        accounts: list[dict[str, Any]] = []
        query: dict[str, str] = {}
        while True:
            response = self._api({"routeKey": "GET /v1/accounts", "queryStringParameters": query})
            document = json.loads(response["body"])
            if response["statusCode"] != 200:
                return {"code": document["code"], "detail": document["detail"]}
            accounts += document["accounts"]
            if "next" not in document:
                self._accounts = accounts
                return None
            query = {"next": document["next"]}
