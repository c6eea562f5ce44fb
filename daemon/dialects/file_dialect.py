"""What a dialect of files is: recordings that come as the body of a POST, and are answered whole.

Owns the shape of such a dialect, and which paths of its service are refused in its own words. Knows no dialect, and
nothing of bodies, of files, or of how audio becomes finals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from daemon.common.errors import Fault
from daemon.dialects.codec import Handshake, Rejection


@dataclass(frozen=True, slots=True)
class FileDialect:
    """A protocol of requests with files.

    Attributes:
        name: in messages and logs.
        path: where the files are sent, without a slash at its end.
        tokens: returns the tokens that a request shows. Raises `Fault` if its address is wrong.
        reject: returns a refusal.
        absent: how the paths begin that its service has beside `path`, and this one has not.
    """

    name: str
    path: str
    tokens: Callable[[Handshake], Iterable[str]]
    reject: Callable[[Fault], Rejection]
    absent: tuple[str, ...] = ()

    def fault(self, path: str) -> Fault | None:
        """Return why a request is refused that is no file for this dialect.

        Args:
            path: that of the request, without a slash at its end.

        Returns:
            None for a path that is not of this dialect.
        """
        if path == self.path:
            return Fault("method_not_allowed", f"send files to {self.path} with POST")
        if any(path == each or path.startswith(f"{each}/") for each in self.absent):
            return Fault("not_found", f"this service has nothing there: send files to {self.path} with POST")
        return None
