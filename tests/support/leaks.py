"""All that leaves the functions beside their replies, and the search for values in it."""

import io
import json
import logging
import re
import sys
import traceback
import warnings
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from html import escape
from typing import Any
from urllib.parse import quote

QUIET = ("botocore", "boto3", "urllib3")
"""What these write at DEBUG holds whole requests; refresh.py keeps them from it, and `Said` leaves it at that."""


class Said:
    """What was said, by channel. It listens to everything that goes through `logging`, at DEBUG."""

    def __init__(self) -> None:
        self.by_channel: dict[str, list[str]] = {}

    def add(self, channel: str, text: str) -> None:
        self.by_channel.setdefault(channel, []).append(text)

    def raised(self, error: BaseException) -> None:
        """What Lambda would print of an unhandled exception, and more: the whole chain, each link's repr and notes."""
        self.add("exceptions", "".join(traceback.format_exception(error, chain=True)))
        link: BaseException | None = error
        seen: set[int] = set()
        while link is not None and id(link) not in seen:
            seen.add(id(link))
            self.add("exceptions", f"{link!r} {link} {link.args}")
            link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)

    def found(self, markers: Iterable[str]) -> list[str]:
        """Where a marker stands, in any of its forms: the channel, and the marker's first letters."""
        texts = {channel: "\n".join(said) for channel, said in self.by_channel.items()}
        return [
            f"{channel}: {marker[:14]}…"
            for marker in sorted(markers)
            for channel, text in texts.items()
            if any(form in text for form in forms(marker))
        ]


def spellings(marker: str) -> set[str]:
    """A text as it may be quoted: for an URL, for JSON (also twice), for HTML."""
    in_json = json.dumps(marker)[1:-1]
    quoted = {quote(marker), quote(marker, safe="")}
    found = {marker, in_json, json.dumps(in_json)[1:-1], escape(marker), *quoted}
    found |= {re.sub("%..", lambda byte: byte[0].lower(), item) for item in quoted}
    found |= {quote(item, safe="") for item in quoted}
    return found


def forms(marker: str) -> set[str]:
    """A text as it may stand in another: as `spellings` has it, in hex or in base64."""
    plain = marker.encode()
    found = {*spellings(marker), plain.hex()}
    for before in range(3):  # base64 looks different by where in a group of three the text begins
        for encode in (b64encode, urlsafe_b64encode):
            encoded = encode(b"\0" * before + plain).decode().rstrip("=")
            found.add(encoded[4 if before else 0 : len(encoded) - 1])
    return found


@contextmanager
def listening() -> Iterator[Said]:
    """Hear all that is said meanwhile: log records with all their fields, what handlers make of them, warnings, stdout, stderr."""
    said = Said()
    ours = [
        logging.getLogger(name)
        for name in (None, "refresh", "api", "api.compatible", "requests", "aws_lambda_powertools")
    ]
    levels = [logger.level for logger in ours]
    stdout, stderr = io.StringIO(), io.StringIO()
    listener = _Listener(said)
    own_streams = [handler for logger in ours for handler in logger.handlers if type(handler) is logging.StreamHandler]
    streams = [handler.setStream(stdout) for handler in own_streams]
    for logger in ours:
        logger.setLevel(logging.DEBUG)
        if logger.name == "root" or not logger.propagate:
            logger.addHandler(listener)
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield said
    finally:
        for logger, level in zip(ours, levels, strict=True):
            logger.setLevel(level)
            logger.removeHandler(listener)
        for handler, stream in zip(own_streams, streams, strict=True):
            handler.setStream(stream or sys.stdout)
        said.add("stdout", stdout.getvalue())
        said.add("stderr", stderr.getvalue())
        said.add("warnings", "\n".join(str(item.message) for item in warned))


class _Listener(logging.Handler):
    def __init__(self, said: Said) -> None:
        super().__init__(logging.DEBUG)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.add("log", f"{self.format(record)} {_fields(vars(record))}")
        if record.exc_info and record.exc_info[1]:
            self._said.raised(record.exc_info[1])


def _fields(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, default=repr)
