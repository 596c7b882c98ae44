"""HTTP on this machine, in a thread of this process."""

import errno
import socket
import time
from base64 import b64encode
from collections.abc import Callable, Iterable
from email.utils import formatdate
from hmac import compare_digest
from threading import Thread
from typing import TYPE_CHECKING, Any

from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Response

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - the name of an address, which only --host chooses

CONTAINERS_NAME = "host.docker.internal"
"""What containers call the machine that they run on."""

_PORT_REFUSED = {
    errno.EADDRINUSE: "port {port} is in use by another program",
    errno.EACCES: "port {port} is reserved for administrators",
}


class CannotListenError(OSError):
    """A port cannot be opened; the text says which, and why. `port` is None where the address is the reason."""

    def __init__(self, host: str, port: int, error: OSError) -> None:
        of_port = _PORT_REFUSED.get(error.errno or 0)
        super().__init__((of_port or "{host} is no IPv4 address of this machine").format(host=host, port=port))
        self.port = port if of_port else None


class Server:
    """Serves a WSGI application from `start` to `stop`; who comes before the start has to wait.

    Port 0 takes a free one; raises CannotListenError where the port is taken. `clock` (epoch seconds) dates the responses.
    `host` is the address it listens on, and lets containers in by their name for this machine; without one only this
    machine is let in. `url` is the one for this machine.

    What a web page makes a browser send is refused with 403, and no response allows a web page to read it.
    """

    def __init__(
        self,
        application: "WSGIApplication",
        port: int = 0,
        clock: Callable[[], float] = time.time,
        host: str | None = None,
    ) -> None:
        class Handler(_QuietHandler):
            def date_time_string(self, timestamp: float | None = None) -> str:
                return formatdate(clock(), usegmt=True)

        address = host or LOOPBACK
        try:
            listener = socket.create_server((address, port))
        except OSError as error:
            raise CannotListenError(address, port, error) from None
        # werkzeug ends the process where it cannot bind, so it is given a socket that is bound.
        with listener:
            self._server = make_server(
                address,
                port,
                _guarded(application, containers=host is not None),
                threaded=True,
                request_handler=Handler,
                fd=listener.fileno(),
            )
        self.url = f"http://{LOOPBACK if address == EVERYWHERE else address}:{self._server.port}"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def start(self) -> None:
        """Begin to respond."""
        self._thread.start()

    def stop(self) -> None:
        """Stop responding and give the port back."""
        if not self._thread.is_alive():
            self._server.server_close()
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _guarded(application: "WSGIApplication", *, containers: bool) -> "WSGIApplication":
    """The application for those who mean this server: not for web pages, whose browser can reach it too.

    A browser says where a request comes from, in `Origin` (WHATWG Fetch) or `Sec-Fetch-Site` (W3C Fetch Metadata). `Host`
    must be a name of this server: a page can point a name of its own at 127.0.0.1 (DNS rebinding), and is then no other
    origin.
    """

    def respond(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if not _is_meant(environ, containers=containers):
            return Response('{"message":"Forbidden"}', 403, mimetype="application/json")(environ, start_response)

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Callable[[bytes], object]:
            own = [(name, value) for name, value in headers if not name.lower().startswith("access-control-")]
            return start_response(status, own, *error)

        return application(environ, start)

    return respond


def _is_meant(environ: "WSGIEnvironment", *, containers: bool) -> bool:
    port, reached = environ["SERVER_PORT"], environ["werkzeug.socket"].getsockname()[0]
    names = {reached, "localhost"} | ({CONTAINERS_NAME} if containers else set())
    host = environ.get("HTTP_HOST", "").lower()
    return (
        host in {f"{name}:{port}" for name in names} | (names if port == "80" else set())
        and environ.get("HTTP_ORIGIN", f"http://{host}").lower() == f"http://{host}"
        and environ.get("HTTP_SEC_FETCH_SITE", "none") in ("none", "same-origin")
    )


def has_api_key(environ: "WSGIEnvironment", key: str) -> bool:
    """Whether the request holds that key in its header X-Api-Key."""
    return compare_digest(environ.get("HTTP_X_API_KEY", "").encode(), key.encode())


def three_free_ports() -> int:
    """The first of three ports in a row on which nothing listens."""
    while True:
        with socket.create_server((LOOPBACK, 0)) as probe:
            first = int(probe.getsockname()[1])
        try:
            for port in range(first, first + 3):
                socket.create_server((LOOPBACK, port)).close()
        except (OSError, OverflowError):
            continue
        return first


class _QuietHandler(WSGIRequestHandler):
    disable_nagle_algorithm = True
    """Head and body are sent apart: with Nagle's algorithm the body waits 40 ms for the head's acknowledgement."""

    def make_environ(self) -> "WSGIEnvironment":
        """As it is, but with slashes at the start of the path as they were sent: http.server makes one of several."""
        environ = super().make_environ()
        _, _, sent = self.requestline.partition(" ")
        if sent.startswith("//"):
            environ["REQUEST_URI"] = sent.partition(" ")[0]
        return environ

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Write no line for a request: its URL can hold a secret."""


def gateway_body(body: bytes, content_type: str) -> dict[str, Any]:
    """A request's body as API Gateway hands it on: text where its type says so, anything else (a form, too) in base64."""
    if not body:
        return {"isBase64Encoded": False}
    if content_type.startswith(("text/", "application/json")):
        return {"body": body.decode(errors="replace"), "isBase64Encoded": False}
    return {"body": b64encode(body).decode(), "isBase64Encoded": True}
