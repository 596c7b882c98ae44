"""wechatpy 1.8 (公众号, 小程序, `wechatpy.enterprise`) and 2.0 (`wechatpy.work`, too).

    client = wechatpy_client(wechatpy.WeChatClient, keeper)

wechatpy itself repeats a refused call without end, so its `auto_retry` is off: the session heals, once.
"""

from typing import Any, TypeVar

from wechat_token_keeper.keeper import Keeper

_Client = TypeVar("_Client")


def wechatpy_client(client_class: type[_Client], keeper: Keeper, **options: Any) -> _Client:
    """A client of this class of wechatpy's, or of a subclass. `options`: further arguments of its constructor."""

    class FromKeeper(client_class):  # type: ignore[valid-type, misc]
        def __init__(self) -> None:
            super().__init__(keeper.app_id, "", auto_retry=False, **options)
            self._http = keeper.session()

        @property
        def access_token(self) -> str:
            return keeper.token()

        def fetch_access_token(self) -> dict[str, str]:
            return {"access_token": keeper.token()}

    return FromKeeper()
