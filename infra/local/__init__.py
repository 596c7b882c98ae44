"""The local stack: an embedded AWS, a simulated WeChat, both functions and their schedules on loopback."""

from functools import cache
from typing import Any

from botocore.loaders import JSONFileLoader

_load_file = JSONFileLoader.load_file


@cache
def _load_once(path: str) -> Any:
    return _load_file(JSONFileLoader(), path)


# Each session of botocore parses the megabytes that describe a service, and moto opens many sessions, also while it is loaded.
JSONFileLoader.load_file = lambda _self, file_path: _load_once(file_path)  # type: ignore[assignment]
