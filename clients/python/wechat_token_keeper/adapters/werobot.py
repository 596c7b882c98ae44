"""WeRoBot 1.13: `client = WeRoBotClient(keeper)`, to be used where `robot.client` would be."""

import json
from typing import Any

import werobot.client

from wechat_token_keeper.keeper import Keeper


class WeRoBotClient(werobot.client.Client):  # type: ignore[misc]
    """WeRoBot's client. Its own HTTP calls cannot be given a session, so the one method that makes them is replaced."""

    def __init__(self, keeper: Keeper) -> None:
        super().__init__({"APP_ID": keeper.app_id})
        self._keeper, self._session = keeper, keeper.session()

    def get_access_token(self) -> str:
        """The current token."""
        return self._keeper.token()

    def request(self, method: str, url: str, **options: Any) -> Any:
        """Make a call; raises werobot's ClientException where WeChat returns an errcode."""
        if isinstance(options.get("data"), dict):
            options["data"] = json.dumps(options["data"], ensure_ascii=False).encode()
        response = self._session.request(method, url, **options)
        response.raise_for_status()
        return werobot.client.check_error(json.loads(response.content))
