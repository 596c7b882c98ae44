"""Serves the page and what it asks for. The page is one file; its Content-Security-Policy names its script and its style."""

import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from werkzeug.wrappers import Request, Response

from infra.local.http_server import has_api_key

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def _hash_of(tag: str) -> str:
    """The source expression of the page's inline element (W3C CSP 3, "hash-source")."""
    (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        f"default-src 'none'; connect-src 'self'; img-src data:; script-src {_hash_of('script')}; "
        f"style-src {_hash_of('style')}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class PageServer:
    """WSGI: the page at `/`, and what it asks for below `/console/`.

    `state` makes the JSON that the page draws. `press` does what a button of that name stands for, and raises KeyError for
    one that there is not; without it nothing can be changed. `api_key`: what both take in the header X-Api-Key, if it is
    given; the page has it from the fragment of its address. Behind a `http_server.Server` no page of another origin reaches it.
    """

    def __init__(
        self,
        state: Callable[[], dict[str, Any]],
        *,
        press: Callable[[str], None] | None = None,
        api_key: str | None = None,
    ) -> None:
        self._state, self._press, self._api_key = state, press, api_key

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Handle one request."""
        return self._respond(Request(environ))(environ, start_response)

    def _respond(self, request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method  # werkzeug leaves the body out
        if (method, request.path) == ("GET", "/"):
            return Response(PAGE, headers=HEADERS, mimetype="text/html")
        if self._api_key and not has_api_key(request.environ, self._api_key):
            return _json(403, {"message": "Forbidden"})
        match method, request.path:
            case "GET", "/console/state":
                return _json(200, self._state())
            case "POST", "/console/press" if self._press:
                return self._pressed(request, self._press)
        return _json(404, {"message": "Not Found"})

    def _pressed(self, request: Request, press: Callable[[str], None]) -> Response:
        # A browser names the origin of each POST; this server's own is the only one that comes this far.
        if "Origin" not in request.headers:
            return _json(403, {"message": "Forbidden"})
        try:
            press(json.loads(request.get_data())["button"])
        except (KeyError, TypeError, ValueError):
            return _json(400, {"message": "There is no such button"})
        return _json(200, {})


def in_front_of(application: "WSGIApplication", page: PageServer) -> "WSGIApplication":
    """The application, with the page at the addresses that are the page's."""

    def respond(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        path = environ["REQUEST_URI"].partition("?")[0]
        is_pages = path == "/" or path.startswith("/console/")
        return (page if is_pages else application)(environ, start_response)

    return respond


def _json(status: int, value: object) -> Response:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Response(text, status, headers=HEADERS, mimetype="application/json")
