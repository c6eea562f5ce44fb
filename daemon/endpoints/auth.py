"""Who may come in at the listening ports, whatever they speak there.

Owns the judgement of a request: the page it comes from, the name it was sent to, and the tokens it shows; and what
browsers are told of that. Knows no socket and no dialect; a dialect says where in its requests tokens are.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

from daemon.common.errors import Fault
from daemon.common.fields import quoted
from daemon.common.permissions import Rights, rights_of
from daemon.dialects.codec import Handshake
from daemon.settings.schema import ServerSettings

_HEADERS = re.compile(r"[A-Za-z0-9, -]{1,1024}")
"""Names of headers: whichever a client's library sends (OpenAI's has a dozen of its own) do no harm here."""

_EXPOSED = "Retry-After, Whisperd-Warning"
"""Headers of answers that a page of others may read, beside those that any may."""

_PRIVATE_NAMES = (".localhost", ".local", ".lan", ".home", ".home.arpa", ".internal", ".localdomain")
"""What the public name service gives to nobody."""


class RequestGuard:
    """settings: those in force; they may change, and nobody who is here has to leave."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings

    def authorise(self, handshake: Handshake, shown: Iterable[str]) -> Rights:
        """What whoever sent this may do.

        Raises:
            Fault: `bad_origin`, `unauthorised`.
        """
        self._check_origin(handshake)
        rights = rights_of(shown, self.settings.tokens)
        if rights is None:
            raise Fault(
                "unauthorised", "a token is needed: send the header Authorization: Bearer TOKEN, or ?token=TOKEN"
            )
        return rights

    def check_name(self, handshake: Handshake) -> None:
        """Our own page has our own name, but so has a stranger's whose public name was made to point at this machine.

        So without a token, which a stranger would need, only names are ours that no stranger can own.

        Raises:
            Fault: `bad_origin`.
        """
        settings, host = self.settings, _host(handshake)
        if settings.tokens or _is_ours(split(f"//{host}").hostname or "."):
            return
        if "*" not in settings.origins and host not in (split(origin).netloc for origin in settings.origins):
            raise Fault(
                "bad_origin",
                f"{quoted(host)} is a public name that anybody might point here: add its https://... to "
                "server.origins, or set server.tokens",
            )

    def _check_origin(self, handshake: Handshake) -> None:
        """Browsers let any page connect to any address and say only whose page it is; programs say nothing."""
        for origin in handshake.headers.get("origin", ()):
            if self._is_listed(origin):
                continue
            if split(origin).netloc != _host(handshake):
                raise Fault("bad_origin", f"pages of {quoted(origin)} may not connect: add it to server.origins")
            self.check_name(handshake)

    def _is_listed(self, origin: str) -> bool:
        return origin in self.settings.origins or "*" in self.settings.origins

    # --- answers that pages of others may read (CORS) --------------------------------------------------------------

    def sharing(self, handshake: Handshake) -> dict[str, str]:
        """What the head of every answer says of it: without this a browser keeps the answer from the page that asked.
        A token it sends itself, in a header, so cookies and the like are not spoken of."""
        if not self.settings.origins:
            return {}
        origin = _only(handshake, "origin")
        if origin is None or not self._is_listed(origin):
            return {"Vary": "Origin"}
        return {"Vary": "Origin", "Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _EXPOSED}

    def preflight(self, handshake: Handshake) -> dict[str, str]:
        """What a browser wants to know before it sends what such a page asks for.

        Raises:
            Fault: `bad_origin`.
        """
        self._check_origin(handshake)
        wanted = _only(handshake, "access-control-request-headers") or ""
        headers = {
            "Access-Control-Allow-Methods": "GET, HEAD, POST",
            "Access-Control-Allow-Headers": wanted if _HEADERS.fullmatch(wanted) else "authorization, content-type",
            "Access-Control-Max-Age": "600",
        }
        if "access-control-request-private-network" in handshake.headers:
            headers["Access-Control-Allow-Private-Network"] = "true"
        return headers


def is_preflight(method: str, handshake: Handshake) -> bool:
    return method == "OPTIONS" and {"origin", "access-control-request-method"} <= handshake.headers.keys()


def handshake_of(url: str, headers: Iterable[tuple[str, str]]) -> Handshake:
    """A request, whichever library read it; subprotocols are for those to read that speak them."""
    by_name: dict[str, tuple[str, ...]] = {}
    for name, value in headers:
        by_name[name.lower()] = (*by_name.get(name.lower(), ()), value)
    return Handshake(path_of(url), split(url).query, by_name)


def path_of(url: str) -> str:
    """Its path, as pages and dialects are known by it: a slash at its end says nothing."""
    return split(url).path.rstrip("/") or "/"


def split(url: str) -> SplitResult:
    """Its parts; none of what is no URL at all."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def _host(handshake: Handshake) -> str:
    return next(iter(handshake.headers.get("host", ())), "")


def _only(handshake: Handshake, name: str) -> str | None:
    """A header that came once."""
    values = handshake.headers.get(name, ())
    return values[0] if len(values) == 1 else None


def _is_ours(name: str) -> bool:
    """Whether `name` is an address, or one that the public name service does not give away."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(_PRIVATE_NAMES)
    return True
