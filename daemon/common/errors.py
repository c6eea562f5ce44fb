"""What goes wrong, on its way from whoever found it to whoever tells: the client its fault, the operator the service's.

Owns the exceptions and nothing else. The codes are given where the faults are found.
"""

from __future__ import annotations

from streaming.events import Error


class Fault(Exception):  # noqa: N818 - the word of the trade for what a client did; `Error` is the event
    """Something that a client did wrong or cannot have. `fatal`: the stream cannot go on after it."""

    def __init__(self, code: str, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fatal = fatal

    def event(self, *, fatal: bool | None = None) -> Error:
        """What the client reads. `fatal` overrides, where the place in the stream decides."""
        return Error(self.code, self.message, self.fatal if fatal is None else fatal)


class ServiceError(Exception):
    """The service cannot start or go on; the message says why."""


class ConfigurationError(Exception):
    """One or more sentences, one a line, each beginning with the key's path."""
