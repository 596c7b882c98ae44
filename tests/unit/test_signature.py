"""The JS-SDK signature, by the worked examples of WeChat's documentation."""

import pytest

from token_keeper.signature import sign

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
