"""Who may come in at the listening ports, whatever they speak there.

Owns the judgement of a request: the page that it comes from, the name that it was sent to, and the tokens that it
shows; and what browsers are told of that. Knows no socket and no dialect: a dialect says where its requests have
tokens.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

from daemon.common.client_input import quoted
from daemon.common.errors import Fault
from daemon.common.permissions import Rights, rights_of
from daemon.dialects.codec import Handshake
from daemon.endpoints.client_secrets import ClientSecrets
from daemon.settings.schema import ServerSettings

_HEADERS = re.compile(r"[A-Za-z0-9, -]{1,1024}")
"""Names of headers: whichever a client's library sends (OpenAI's has a dozen of its own) do no harm here."""

_EXPOSED = "Retry-After, Whisperd-Warning"
"""Headers of answers that a page of others may read, beside those that any may."""

_PRIVATE_NAMES = (".localhost", ".local", ".lan", ".home", ".home.arpa", ".internal", ".localdomain")
"""What the public name service gives to nobody."""


class RequestGuard:
    """Judges requests.

    Attributes:
        settings: those in force. They may change, and nobody who is here has to leave.
        secrets: what stands for a token for a while.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.secrets = ClientSecrets()

    def authorise(self, handshake: Handshake, shown: Iterable[str], *, by_token: bool = False) -> Rights:
        """Return the rights of the client that sent a request.

        Args:
            handshake: the request.
            shown: the tokens that it shows.
            by_token: whether a secret will not do.

        Raises:
            Fault: `bad_origin`, `unauthorised`.
        """
        self._check_origin(handshake)
        tokens = self.settings.tokens
        # Where there are no tokens, everybody comes in: a secret must not end that.
        secrets = () if by_token or not tokens else self.secrets.valid(tokens)
        rights = rights_of(shown, (*tokens, *secrets))
        if rights is None:
            raise Fault(
                "unauthorised", "a token is required: send the header Authorization: Bearer TOKEN, or ?token=TOKEN"
            )
        return rights

    def check_name(self, handshake: Handshake) -> None:
        """Check that a request was sent to a name that can only be ours.

        A page of ours has our name, but so has a stranger's page whose public name was made to point at this machine.
        So where there is no token, which a stranger would need, only names that no stranger can own count as ours.

        Raises:
            Fault: `bad_origin`.
        """
        settings, host = self.settings, _host(handshake)
        if settings.tokens or _is_ours(split(f"//{host}").hostname or "."):
            return
        if "*" not in settings.origins and host not in (split(origin).netloc for origin in settings.origins):
            raise Fault(
                "bad_origin",
                f"{quoted(host)} is a public name that anybody could point here: add its https://... to "
                "server.origins, or set server.tokens",
            )

    def _check_origin(self, handshake: Handshake) -> None:
        """Check the page that a request comes from.

        Browsers let any page connect to any address, and say only whose page it is. Programs say nothing.
        """
        for origin in handshake.headers.get("origin", ()):
            if self._is_listed(origin):
                continue
            if split(origin).netloc != _host(handshake):
                raise Fault("bad_origin", f"pages from {quoted(origin)} may not connect: add it to server.origins")
            self.check_name(handshake)

    def _is_listed(self, origin: str) -> bool:
        return origin in self.settings.origins or "*" in self.settings.origins

    # --- answers that pages of others may read (CORS) --------------------------------------------------------------

    def sharing(self, handshake: Handshake) -> dict[str, str]:
        """Return the headers that let the page which asked read the answer (CORS).

        Without them its browser keeps the answer from it. Such a page sends its token itself, in a header, so cookies
        and the like are not mentioned.
        """
        if not self.settings.origins:
            return {}
        origin = _only(handshake, "origin")
        if origin is None or not self._is_listed(origin):
            return {"Vary": "Origin"}
        return {"Vary": "Origin", "Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _EXPOSED}

    def preflight(self, handshake: Handshake) -> dict[str, str]:
        """Return the headers for a browser that asks before it sends the request of such a page.

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
    """Return a request that any library read, without subprotocols: those that speak them read them."""
    by_name: dict[str, tuple[str, ...]] = {}
    for name, value in headers:
        by_name[name.lower()] = (*by_name.get(name.lower(), ()), value)
    return Handshake(path_of(url), split(url).query, by_name)


def path_of(url: str) -> str:
    """Return the path of a URL as pages and dialects know it, without a slash at its end."""
    return split(url).path.rstrip("/") or "/"


def split(url: str) -> SplitResult:
    """Return the parts of a URL, which are empty if it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def _host(handshake: Handshake) -> str:
    return next(iter(handshake.headers.get("host", ())), "")


def _only(handshake: Handshake, name: str) -> str | None:
    """Return a header that came once."""
    values = handshake.headers.get(name, ())
    return values[0] if len(values) == 1 else None


def _is_ours(name: str) -> bool:
    """Return whether `name` is an address, or a name that the public name service does not give away."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(_PRIVATE_NAMES)
    return True
