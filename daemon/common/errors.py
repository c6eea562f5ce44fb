"""The exceptions: the faults of clients, and what stops the service.

Owns the classes and nothing else. The place where a fault is found decides its code.
"""

from __future__ import annotations

from streaming.events import Error


class Fault(Exception):  # noqa: N818 - the word of the trade for what a client did; `Error` is the event
    """A mistake of a client, or something that it cannot have.

    Attributes:
        code: the kind of the fault, such as `bad_source`.
        message: what the client is told.
        fatal: whether the stream must end.
    """

    def __init__(self, code: str, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fatal = fatal

    def event(self, *, fatal: bool | None = None) -> Error:
        """Return the error event that the client receives.

        Args:
            fatal: replaces the fault's own `fatal`, where the place in the stream decides; None keeps it.
        """
        return Error(self.code, self.message, self.fatal if fatal is None else fatal)


class ServiceError(Exception):
    """The service cannot start or continue; the message says why."""


class ConfigurationError(Exception):
    """The settings cannot be used.

    The message has one or more sentences, one a line. Each begins with the path of the key, or the file, that it is
    about.
    """
