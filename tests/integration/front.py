"""The API behind the local gateway, for tests that send it hostile or generated requests."""

from functools import cache
from typing import Any

from werkzeug.test import Client

from infra import sam_template
from infra.local.local_stack import gateway
from tests.simulation.memory_aws import MemoryAws
from tests.support.world import APPID, Clock, World


class Front:
    """The API behind the local gateway, with an account `main` and one that the consumer of `key` may not read."""

    def __init__(self) -> None:
        clock = Clock()
        self.world = World(MemoryAws(clock).client, clock=clock)
        self.world.add_account("main", tickets=["jsapi"])
        self.world.add_account("other", appid="wx000000000000other", secret="another-secret")
        self.key = self.world.add_consumer("shop", ["main"])
        self.instance = self.world.api_instance()
        self.app = gateway(sam_template.translate(), self._handle)
        self.client = Client(self.app)

    def _handle(self, event: dict[str, Any]) -> dict[str, Any]:
        with self.world.internet():
            return self.instance(event, None)

    def query(self, **changed: str) -> dict[str, str]:
        """The parameters of a right call for a token, except those given."""
        return {"grant_type": "client_credential", "appid": APPID, "secret": self.key} | changed


@cache
def front() -> Front:
    """One for all: nothing that is sent here changes anything."""
    return Front()
