"""Writing to a terminal or a pipe, in whatever encoding it has, without the control characters of foreign text."""

import codecs
import io
import json
import re
import sys
from typing import Any

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters (ESC begins a terminal's commands), line breaks, and what changes the direction of writing."""

_ASCII = str.maketrans({"–": "-", "→": "->", "…": "...", "“": '"', "”": '"', "’": "'", "、": ",", "：": ":"})


def plain(text: object) -> str:
    """Foreign text in one line that a terminal only shows: each control character becomes a space."""
    return _CONTROLS.sub(" ", str(text))


def to_json(document: Any) -> str:
    """The document as indented JSON that standard output can encode, and that no terminal takes for a command."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "")
    text = json.dumps(document, ensure_ascii=encoding != "utf8", indent=2)
    return "\n".join(_CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in text.split("\n"))


def say(text: str) -> None:
    """Write a line to standard output."""
    print(text)


def complain(text: str) -> None:
    """Write a line to standard error."""
    print(text, file=sys.stderr)


def accept_any_encoding() -> None:
    """Let both outputs replace what their encoding lacks (cp1252 has no →, ASCII no –), instead of raising."""
    codecs.register_error("token_keeper", _replacement)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="token_keeper")


def _replacement(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    ascii_only = error.object[error.start : error.end].translate(_ASCII)
    return ascii_only.encode("ascii", "replace").decode(), error.end
