"""The plain HTTP pages that share the port with the websockets.

Owns their paths and their texts. Knows whom to ask, and nothing of sockets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

_TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Page:
    status: HTTPStatus
    body: bytes
    content_type: str = _TEXT


class Pages:
    """unready: why the service is not ready, or None. metrics: the exposition, and its content type."""

    def __init__(self, unready: Callable[[], str | None], metrics: Callable[[], bytes], metrics_type: str) -> None:
        self._unready = unready
        self._metrics = metrics
        self._metrics_type = metrics_type

    def get(self, path: str) -> Page:
        match path:
            case "/healthz":
                return Page(HTTPStatus.OK, b"alive\n")
            case "/readyz":
                reason = self._unready()
                if reason is None:
                    return Page(HTTPStatus.OK, b"ready\n")
                return Page(HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: {reason}\n".encode())
            case "/metrics":
                return Page(HTTPStatus.OK, self._metrics(), self._metrics_type)
            case "/v1/stream" | "/v1/events":
                return Page(HTTPStatus.UPGRADE_REQUIRED, f"{path} is a websocket: connect with ws://\n".encode())
        return Page(
            HTTPStatus.NOT_FOUND,
            b"Nothing is here. Websockets: /v1/stream, /v1/events. Pages: /healthz, /readyz, /metrics.\n",
        )
