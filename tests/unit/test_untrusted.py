"""What others send is bounded before it is decoded, and read in one way."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_keeper.api.wechat_compatible import _parameters
from token_keeper.errors import WeChatApiError
from token_keeper.untrusted import LONGEST_BODY, body_text, json_object


def test_a_body_is_text_or_base64_without_its_byte_order_mark() -> None:
    assert body_text({}) == ""
    assert body_text({"body": '\ufeff{"a":"令"}'}) == '{"a":"令"}'
    encoded = base64.b64encode('{"a":"令"}'.encode("utf-8-sig")).decode()
    assert body_text({"body": encoded, "isBase64Encoded": True}) == '{"a":"令"}'


def test_a_body_of_the_size_allowed_is_taken_in_either_form() -> None:
    body = "x" * LONGEST_BODY
    assert body_text({"body": body}) == body
    assert body_text({"body": base64.b64encode(body.encode()).decode(), "isBase64Encoded": True}) == body


@pytest.mark.parametrize("in_base64", [False, True])
def test_a_longer_body_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch, in_base64: bool) -> None:
    body = "x" * (LONGEST_BODY + 3)
    sent = base64.b64encode(body.encode()).decode() if in_base64 else body
    decoded: list[str] = []
    monkeypatch.setattr(base64, "b64decode", decoded.append)
    with pytest.raises(ValueError, match=f"more than {LONGEST_BODY}"):
        body_text({"body": sent, "isBase64Encoded": in_base64})
    assert decoded == []


@pytest.mark.parametrize("body", ["A", base64.b64encode(b"\xff\xfe").decode()])
def test_what_is_no_utf8_is_refused_and_not_repeated(body: str) -> None:
    with pytest.raises(ValueError, match="no UTF-8") as refused:
        body_text({"body": body, "isBase64Encoded": True})
    assert refused.value.__suppress_context__


@pytest.mark.parametrize("text", ["", "null", "[]", '"a"', "1", "{", '{"a":1}}', "[" * 8000, '{"a":' * 1600])
def test_what_is_no_json_object_is_none(text: str) -> None:
    assert json_object(text) is None


@pytest.mark.parametrize("text", ['{"a":1}', ' {"a":1}\r\n', '\ufeff{"a":1}', '\r\n\ufeff {"a":1}'])
def test_a_json_object_is_read_with_what_stands_around_it(text: str) -> None:
    assert json_object(text) == {"a": 1}


PIECES = [
    *("--b", "--b--", "\r\n", "\n", "\r\n\r\n", " ", ";", '"', "=", ":", "\t", "\x00", "\ufeff", "\ud800", "令"),
    *(
        "Content-Disposition: form-data",
        '; name="appid"',
        "; name*=utf-8''%ff",
        "; name*0=a; name*1=b",
        "Content-Type: ",
    ),
    *("multipart/mixed; boundary=b", "multipart/mixed", "message/rfc822", "text/plain; charset=none"),
    *("Content-Transfer-Encoding: base64", "=?utf-8?b?//8=?=", "a", "{", "&"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_whatever_looks_like_a_form_is_read_or_refused(text: str) -> None:
    try:
        parameters = _parameters({"body": f"--b\r\n{text}"})
    except WeChatApiError:
        return
    assert all(isinstance(name, str) for name in parameters)


@pytest.mark.parametrize(
    "field", ['form-data; name="appid"', 'form-data; NAME=appid; x="y"', 'Form-Data; filename="a"; name = "appid"']
)
def test_a_form_names_its_fields_in_several_ways(field: str) -> None:
    part = f"--b\r\nContent-Type: text/plain; name=other\r\nContent-Disposition: {field}\r\n\r\nwx--b1\r\n--b--\r\n"
    assert _parameters({"body": part}) == {"appid": "wx--b1"}
