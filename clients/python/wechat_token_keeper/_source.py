"""What the client needs of a keeper, however it is asked."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypedDict

MAX_CACHE_SECONDS = 60
"""A value is asked for again after that time at the latest, so that one that died early is replaced soon."""


class Received(NamedTuple):
    """A token or ticket as the keeper returned it.

    `expires_in`: seconds that it is promised to work; `cache_for`: seconds after which to ask again.
    """

    value: str
    expires_in: float
    cache_for: float

    def __repr__(self) -> str:
        return f"Received(…, expires_in={self.expires_in}, cache_for={self.cache_for})"


class JsapiSignature(TypedDict):
    """What `wx.config` or `wx.agentConfig` takes, by WeChat's own names."""

    appId: str
    timestamp: int
    nonceStr: str
    signature: str


class Source(Protocol):
    """A keeper's account. All methods block, and raise the errors of `wechat_token_keeper.errors`."""

    @property
    def app_id(self) -> str:
        """The appid or corpid; where it is not known, the name of the account."""

    def token(self) -> Received:
        """The current access token."""

    def report(self, refused: str) -> Received:
        """Report that WeChat refused this token; returns the current one, perhaps still the same."""

    def ticket(self, ticket_type: str, current_token: Callable[[], str]) -> Received:
        """The current ticket of that type. `current_token` gives the access token that may be cached."""

    def jsapi_signature(self, url: str, ticket_type: str, ticket: Callable[[], str]) -> JsapiSignature:
        """Sign the address of a page. `ticket` gives the ticket that may be cached."""
