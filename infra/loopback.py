"""HTTP on this machine, in a thread of this process."""

import socket
import time
from base64 import b64encode
from collections.abc import Callable
from email.utils import formatdate
from threading import Thread
from typing import TYPE_CHECKING, Any

from werkzeug.serving import WSGIRequestHandler, make_server

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

LOOPBACK = "127.0.0.1"


class Server:
    """Serves a WSGI application from `start` to `stop`; who comes before the start has to wait.

    Port 0 takes a free one; raises OSError where the port is taken. `clock` (epoch seconds) dates the answers. `host` is
    the address it listens on; `url` is the one for this machine.
    """

    def __init__(
        self,
        application: "WSGIApplication",
        port: int = 0,
        clock: Callable[[], float] = time.time,
        host: str = LOOPBACK,
    ) -> None:
        class Handler(_QuietHandler):
            def date_time_string(self, timestamp: float | None = None) -> str:
                return formatdate(clock(), usegmt=True)

        # werkzeug ends the process where it cannot bind, so it is given a socket that is bound.
        with socket.create_server((host, port)) as listener:
            self._server = make_server(
                host, port, application, threaded=True, request_handler=Handler, fd=listener.fileno()
            )
        self.url = f"http://{LOOPBACK}:{self._server.port}"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and give the port back."""
        if not self._thread.is_alive():
            self._server.server_close()
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _QuietHandler(WSGIRequestHandler):
    disable_nagle_algorithm = True
    """Head and body are sent apart: with Nagle's algorithm the body waits 40 ms for the head's acknowledgement."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Write no line for a request: its URL can hold a secret."""


def gateway_body(body: bytes, content_type: str) -> dict[str, Any]:
    """A request's body as API Gateway hands it on: text where its type says so, anything else (a form, too) in base64."""
    if not body:
        return {"isBase64Encoded": False}
    if content_type.startswith(("text/", "application/json")):
        return {"body": body.decode(errors="replace"), "isBase64Encoded": False}
    return {"body": b64encode(body).decode(), "isBase64Encoded": True}
