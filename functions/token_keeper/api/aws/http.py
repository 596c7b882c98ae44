"""HTTP with one server of AWS, over connections that are kept."""

import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urlsplit

from token_keeper.aws_errors import AwsUnavailableError

CONNECT_TIMEOUT = 1
"""Seconds. A reader would rather say "stale" or 503 than keep its caller waiting."""

IDLE = 60
"""Seconds after which an unused connection is not trusted: a frozen Lambda does not notice that it was closed, and finds
out by waiting for a response. A new one costs a few milliseconds."""

_tls = cache(ssl.create_default_context)
"""One for all: to load the authorities takes as long as half of a reader's other init."""


class Endpoint:
    """HTTP with one server over connections that are kept."""

    def __init__(self, url: str, read_timeout: float, clock: Callable[[], float]) -> None:
        parts = urlsplit(url)
        self.host = parts.netloc
        self._read_timeout = read_timeout
        self._clock = clock
        self._new_connection: Callable[[], HTTPConnection] = partial(HTTPConnection, self.host, timeout=CONNECT_TIMEOUT)
        if parts.scheme == "https":
            self._new_connection = partial(HTTPSConnection, self.host, timeout=CONNECT_TIMEOUT, context=_tls())
        self._unused: list[tuple[HTTPConnection, float]] = []

    def post(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[HTTPResponse, bytes]:
        """Send a request; returns the response and its body. Raises `AwsUnavailableError`.

        A request that a kept connection breaks under is sent again over a new one: the server had closed it before.
        """
        while True:
            kept = self._kept()
            connection = kept or self._new_connection()
            try:
                if kept is None:
                    connection.connect()
                    connection.sock.settimeout(self._read_timeout)
                connection.request("POST", path, body, headers)
                response = connection.getresponse()
                reply = response.read()
                if not response.will_close:  # else http.client has closed it
                    self._unused.append((connection, self._clock()))
                return response, reply
            except (OSError, HTTPException) as error:
                connection.close()
                if kept is None or not isinstance(error, ConnectionError | ssl.SSLError):
                    raise AwsUnavailableError(type(error).__name__) from None

    def _kept(self) -> HTTPConnection | None:
        with suppress(IndexError):
            while True:
                connection, since = self._unused.pop()
                if 0 <= self._clock() - since < IDLE:
                    return connection
                connection.close()
        return None
