"""What others send: read within bounds, and in one way, whatever is said of it."""

import base64
import json
from collections.abc import Mapping
from typing import Any

LONGEST_BODY = 8192
"""Characters: a token of some thousand, and what may stand around it."""

_LONGEST_IN_BASE64 = -(-LONGEST_BODY // 3) * 4
_BYTE_ORDER_MARK = "\ufeff"


def body_text(event: Mapping[str, Any]) -> str:
    """The body of an API Gateway request, without a byte order mark; empty where there is none.

    Raises ValueError, which says what is wrong, before anything is decoded, where it is longer than `LONGEST_BODY`, and where it is not UTF-8.
    """
    body: str = event.get("body") or ""
    in_base64 = event.get("isBase64Encoded", False)
    if len(body) > (_LONGEST_IN_BASE64 if in_base64 else LONGEST_BODY):
        raise ValueError(f"more than {LONGEST_BODY} bytes")
    try:
        text = base64.b64decode(body).decode() if in_base64 else body
    except ValueError:
        raise ValueError("no UTF-8") from None  # the parser's own words could repeat what was sent
    return text.removeprefix(_BYTE_ORDER_MARK)


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text holds, after a byte order mark perhaps; None where it holds something else.

    Nothing is raised: an exception of the parser would carry the text along.
    """
    try:
        found = json.loads(text.strip().removeprefix(_BYTE_ORDER_MARK))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
