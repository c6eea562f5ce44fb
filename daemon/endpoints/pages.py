"""The plain HTTP pages that share the port with the websockets.

Owns their paths and their texts, and the browser's page: the files of `daemon/page/`, each under a name that is written
here, with what a browser may do with them. Knows whom to ask for contents, and nothing of sockets or of who may come
in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.resources import files
from urllib.parse import unquote

_TEXT = "text/plain; charset=utf-8"
_JSON = "application/json; charset=utf-8"
_HTML = "text/html; charset=utf-8"
_SCRIPT = "text/javascript; charset=utf-8"

MODELS = "/v1/models"
"""Which there are, for clients that ask before they speak."""

SOURCES = "/v1/sources"
METRICS = "/metrics"
"""How much is said, and when, is nobody's business either: it takes a token, whatever sources that is for."""

GUARDED = frozenset({MODELS, SOURCES, METRICS})
"""The pages that tell something of somebody: whoever asks must be let in like a websocket client. All others are the
same for everybody."""


def is_guarded(path: str) -> bool:
    """Return whether a client must be let in for the page under `path`."""
    return path in GUARDED or path.startswith(f"{MODELS}/")


MayRead = Callable[[str], bool]

_FILES = {
    "/": ("index.html", _HTML),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/page.js": ("page.js", _SCRIPT),
    "/captions.js": ("captions.js", _SCRIPT),
    "/formats.js": ("formats.js", _SCRIPT),
    "/view.js": ("view.js", _SCRIPT),
    "/link.js": ("link.js", _SCRIPT),
    "/stream.js": ("stream.js", _SCRIPT),
    "/capture.js": ("capture.js", _SCRIPT),
    "/capture-worklet.js": ("capture-worklet.js", _SCRIPT),
}

_FENCE = {
    # Nothing from elsewhere, nothing to elsewhere, nobody's frame around it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# Asked for again each time, and sent again only when it changed: a new release shows at once.
_KEEP = {"Cache-Control": "no-cache"}


@dataclass(frozen=True, slots=True)
class Page:
    """An answer in plain HTTP.

    Attributes:
        headers: those beside the headers that every answer has.
    """

    status: HTTPStatus
    body: bytes
    content_type: str = _TEXT
    headers: dict[str, str] = field(default_factory=dict)


NOTHING = Page(
    HTTPStatus.NOT_FOUND,
    b"Nothing is here. Websockets: /v1/stream, /v1/events. Pages: /, /v1/sources, /healthz, /readyz, /metrics.\n",
)


class Pages:
    """All pages, by their paths.

    Args:
        unready: returns why the service is not ready, or None.
        remark: returns what is to be said of a service that is ready ("asleep": the models are loaded again when
            somebody speaks), or None.
        metrics: returns the exposition of the metrics.
        metrics_type: the content type of the exposition.
        sources: returns the sources that one may read, as JSON.
        models: returns the models in JSON, as OpenAI's clients read it; None if there is no such page.
        model: returns the status and the JSON of the model with that name, likewise.
    """

    def __init__(
        self,
        unready: Callable[[], str | None],
        remark: Callable[[], str | None],
        metrics: Callable[[], bytes],
        metrics_type: str,
        sources: Callable[[MayRead], bytes],
        models: Callable[[], bytes] | None = None,
        model: Callable[[str], tuple[int, bytes]] | None = None,
    ) -> None:
        self._unready = unready
        self._remark = remark
        self._metrics = metrics
        self._metrics_type = metrics_type
        self._sources = sources
        self._models = models
        self._model = model
        self._files = {path: _read(*named) for path, named in _FILES.items()}

    def get(self, path: str, known: str = "", may_read: MayRead = lambda _: True) -> Page:
        """Return the page under a path.

        Args:
            path: without a slash at its end.
            known: the If-None-Match of the request.
            may_read: says which sources the client may know of.
        """
        if (page := self._files.get(path)) is not None:
            return _unchanged(page) if page.headers["ETag"] in known else page
        if path == SOURCES:
            return Page(HTTPStatus.OK, self._sources(may_read), _JSON)
        if path == MODELS and self._models is not None:
            return Page(HTTPStatus.OK, self._models(), _JSON)
        if path.startswith(f"{MODELS}/") and self._model is not None:
            status, body = self._model(unquote(path.removeprefix(f"{MODELS}/")))
            return Page(HTTPStatus(status), body, _JSON)
        match path:
            case "/healthz":
                return Page(HTTPStatus.OK, b"alive\n")
            case "/readyz":
                reason = self._unready()
                if reason is not None:
                    return Page(HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: {reason}\n".encode())
                remark = self._remark()
                return Page(HTTPStatus.OK, f"ready, {remark}\n".encode() if remark else b"ready\n")
            case "/metrics":
                return Page(HTTPStatus.OK, self._metrics(), self._metrics_type)
            case "/v1/stream" | "/v1/events":
                return Page(HTTPStatus.UPGRADE_REQUIRED, f"{path} is a websocket: connect with ws://\n".encode())
        return NOTHING


def refusal(status: HTTPStatus, error: str) -> Page:
    """Return the page that refuses a request, with the error event as JSON."""
    headers = {"WWW-Authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else {}
    return Page(status, error.encode(), _JSON, headers)


def _read(name: str, content_type: str) -> Page:
    body = files("daemon").joinpath("page", name).read_bytes()
    tag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
    return Page(HTTPStatus.OK, body, content_type, {"ETag": tag, **_KEEP, **_FENCE})


def _unchanged(page: Page) -> Page:
    return Page(HTTPStatus.NOT_MODIFIED, b"", page.content_type, page.headers)
