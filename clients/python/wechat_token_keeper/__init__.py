"""The client of wechat-token-keeper: WeChat's access tokens and tickets, from the server that keeps them.

keeper = Keeper("https://….execute-api.….amazonaws.com", key="wtk_…", appid="wx…")
keeper.token()
"""

from wechat_token_keeper.errors import (
    AccessDeniedError,
    KeeperError,
    NotEnoughTimeError,
    SetupError,
    UnavailableError,
    UnknownCredentialError,
    UnreachableError,
)
from wechat_token_keeper.keeper import Keeper

__all__ = [
    "AccessDeniedError",
    "Keeper",
    "KeeperError",
    "NotEnoughTimeError",
    "SetupError",
    "UnavailableError",
    "UnknownCredentialError",
    "UnreachableError",
]
