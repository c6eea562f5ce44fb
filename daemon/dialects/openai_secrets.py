"""OpenAI's secrets for browsers (`POST /v1/realtime/client_secrets`): the question and the answer, without I/O.

Owns the fields of the question and the form of the answer. Knows nothing of HTTP, or of what a secret allows. A secret
says who may connect, and nothing else: the session is set by whoever connects, with `session.update`, so settings of a
session are refused here.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from daemon.common.client_input import quoted, read_json, shown
from daemon.dialects.openai_session import Refused

PATH = "/v1/realtime/client_secrets"

LARGEST = 16 * 1024
"""Bytes of a question."""

_LONGEST_NAME = 40
_SHORTEST, _USUAL, _LONGEST = 10, 60, 600
"""Seconds for which a secret is valid. The hosted service gives ten minutes unless asked, and up to two hours."""


def wanted(body: bytes) -> int:
    """Return for how many seconds a secret is asked for.

    Raises:
        Refused: `invalid_json`, `invalid_value`, `unsupported_parameter`.
    """
    try:
        asked = read_json(body) if body.strip() else {}
    except ValueError as error:
        raise Refused("invalid_json", f"the body must be one JSON object: {error}") from None
    if not isinstance(asked, dict):
        raise Refused("invalid_json", f"the body must be one JSON object, got {shown(asked)}")
    _only(asked, ("expires_after", "session"), "")
    _check_session(asked.get("session"))
    return _seconds(asked.get("expires_after"))


def answer(secret: str, ends: int) -> str:
    """Return the answer; `ends` is in seconds since 1970."""
    session = {
        "id": f"sess_{uuid.uuid4().hex[:20]}",
        "object": "realtime.transcription_session",
        "type": "transcription",
    }
    return json.dumps({"value": secret, "expires_at": ends, "session": session})


def _check_session(session: object) -> None:
    if session is None:
        return
    if not isinstance(session, dict) or session.get("type") != "transcription":
        raise Refused(
            "unsupported_parameter", 'session: there are only sessions of {"type": "transcription"}', "session"
        )
    _only(session, ("type",), "session.")


def _seconds(expires_after: object) -> int:
    if expires_after is None:
        return _USUAL
    if not isinstance(expires_after, dict):
        raise Refused("invalid_value", f"expires_after: must be an object, got {shown(expires_after)}", "expires_after")
    _only(expires_after, ("anchor", "seconds"), "expires_after.")
    if (anchor := expires_after.get("anchor", "created_at")) != "created_at":
        at = "expires_after.anchor"
        raise Refused("invalid_value", f"{at}: must be created_at, got {shown(anchor)}", at)
    seconds = expires_after.get("seconds", _USUAL)
    if type(seconds) is not int or not _SHORTEST <= seconds <= _LONGEST:
        at = "expires_after.seconds"
        raise Refused("invalid_value", f"{at}: must be {_SHORTEST}..{_LONGEST}, got {shown(seconds)}", at)
    return seconds


def _only(given: dict[str, Any], known: tuple[str, ...], at: str) -> None:
    for name in given:
        if name not in known:
            advice = "send it in session.update when connected" if at == "session." else "leave it out"
            where = at + (name if name.isidentifier() and len(name) <= _LONGEST_NAME else quoted(name))
            raise Refused("unsupported_parameter", f"{where}: this is not supported here: {advice}", where)
