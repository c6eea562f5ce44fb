"""Secrets that stand for a token for a minute: what a page may be given whose server keeps the token to itself.

Owns the secrets: how many there may be, how long each is valid, and what it allows. They are in memory alone, and end
with the service. Knows no request: `auth.py` asks which are valid, and `uploads.py` hands them out.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from daemon.common.errors import Fault
from daemon.common.logs import CLIENT_SECRET
from daemon.common.permissions import Rights, TokenGrant

MOST = 256
"""Secrets at once. Each is compared with what every client shows."""


@dataclass(frozen=True, slots=True)
class _Secret:
    """A token of the settings' form, with its end on the clock."""

    token: str = field(repr=False)
    send: tuple[str, ...]
    read: tuple[str, ...]
    ends: float


class ClientSecrets:
    """The secrets that are valid.

    They end when the tokens of the settings change: whoever takes a token away means its secrets too.

    Args:
        clock: seconds, which never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._secrets: list[_Secret] = []
        self._tokens: Sequence[TokenGrant] = ()

    def issue(self, rights: Rights, seconds: float, tokens: Sequence[TokenGrant]) -> str:
        """Return a new secret.

        Args:
            rights: what it allows.
            seconds: how long it is valid.
            tokens: those of the settings.

        Raises:
            Fault: `full`.
        """
        valid = self.valid(tokens)
        if len(valid) >= MOST:
            raise Fault("full", f"there are {MOST} secrets already: ask again when some have ended")
        text = CLIENT_SECRET + secrets.token_urlsafe(32)
        self._secrets.append(_Secret(text, rights.send, rights.read, self._clock() + seconds))
        return text

    def valid(self, tokens: Sequence[TokenGrant]) -> Sequence[TokenGrant]:
        """Return the secrets that are valid under `tokens`, those of the settings, and forget the others."""
        now = self._clock()
        kept = self._secrets if tokens == self._tokens else []
        self._tokens = tokens
        self._secrets = [each for each in kept if each.ends > now]
        return self._secrets
