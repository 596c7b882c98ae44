"""The JS-SDK signature, by the worked examples of WeChat's documentation."""

from urllib.parse import quote, urlencode

import pytest

from token_keeper.api.jsapi import requested_page, sign
from token_keeper.errors import InvalidRequestError

TICKET = "sM4AOVdWfPE4DxkXGEs8VMCPGGVi4C3VM0P37wVUCFvkVAy_90u5h9nbSlYy3-Sl-HhTdfl2fzFy1AOcHKP7qg"


@pytest.mark.parametrize(
    ("url", "signature"),
    [
        ("http://mp.weixin.qq.com?params=value", "0f9de62fce790f9a083d5c99e95740ceb90c27ed"),
        ("http://mp.weixin.qq.com", "f4d90daf4b3bca3078ab155816175ba34c443a7b"),
    ],
)
def test_wechats_own_examples(url: str, signature: str) -> None:
    assert sign(TICKET, "Wm3WZYTPz0wzccnW", 1414587457, url) == signature
    # A page's fragment never reaches a server, so it is not signed.
    assert sign(TICKET, "Wm3WZYTPz0wzccnW", 1414587457, f"{url}#part?of=page#twice") == signature


# --- which page is meant

PAGES = [
    "https://example.com/",
    "http://example.com",
    "https://example.com/shop?item=1&lang=zh",
    "https://example.com/?next=https%3A%2F%2Fexample.com%2F%3Fa%3D1%26b%3D2",
    "https://example.com/%E5%BA%97?q=a+b%20c&x[]=1",
    "https://example.com/?a=1&a=2&url=x&type=y&_=1",
]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("encode", [lambda page: quote(page, safe=""), lambda page: quote(page, safe="!~*'()"), quote])
def test_a_page_that_is_encoded_as_a_whole_is_signed_as_it_is(page: str, encode: object) -> None:
    encoded = encode(page)  # type: ignore[operator]
    assert requested_page(f"url={encoded}") == (page, "jsapi")
    assert requested_page(f"_=1795373925&url={encoded}&type=agent_config") == (page, "agent_config")
    assert requested_page(urlencode({"url": f"{page}#part?x=1"})) == (page, "jsapi")


def test_what_needs_no_encoding_may_be_sent_as_it_is() -> None:
    assert requested_page("url=https://example.com/shop") == ("https://example.com/shop", "jsapi")


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", "location.href"),
        ("url=", "location.href"),
        ("url", "location.href"),
        ("url=example.com", "location.href"),
        ("url=javascript%3Aalert(1)", "location.href"),
        ("url=https%3A%2F%2F", "location.href"),
        ("url=https://example.com/a%20b", "location.href"),
        ("url=https://example.com/%E5%BA%97", "location.href"),
        ("url=https://example.com/%ff", "location.href"),
        ("url=https%253A%252F%252Fexample.com%252F", "encoded once"),
        (f"url=https://example.com/{'a' * 2048}", "2048"),
        ("url=https://example.com/?item=1", "encodeURIComponent"),
        ("url=https://example.com/?item", "encodeURIComponent"),
        ("url=https://example.com/a=b", "encodeURIComponent"),
        ("url=https://example.com/a+b", "encodeURIComponent"),
        ("url=https%3A%2F%2Fexample.com%2F%3Fa%3D1&b=2", "encodeURIComponent"),
        ("url=https%3A%2F%2Fexample.com%2F%3Fa%3D1&b", "encodeURIComponent"),
        ("url=https://a/&url=https://b/", "twice"),
        ("url=https://a/&url=https://a/", "twice"),
        ("url=https://a/&type=jsapi&type=agent_config", "twice"),
        ("url=https%3A%2F%2Fexample.com%2F%3Fa%3D1%26amp%3Bb%3D2", "&amp;"),
        ("url=https://a/&type=wx_card", "type must be"),
        ("URL=https://a/", "neither url nor type"),
    ],
)
def test_what_might_be_another_page_is_refused_with_what_to_do(query: str, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"url|type") as refused:
        requested_page(query)
    assert says in str(refused.value)
