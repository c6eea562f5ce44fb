"""Who may do what: tokens, the sources that each may send and read, and which addresses are open to others.

Owns the comparison of tokens, the patterns of source names, and the sentence that refuses to open an unguarded port.
Knows nothing of sockets, requests or files: the edges show the tokens of their clients, and the settings list the valid
ones.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from daemon.common.client_input import quoted
from daemon.common.errors import Fault
from daemon.common.sources import check_name

EVERYTHING = ("*",)


class TokenGrant(Protocol):
    """A token with what it allows, as the settings have it."""

    @property
    def token(self) -> str: ...

    @property
    def send(self) -> tuple[str, ...]: ...

    @property
    def read(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class Rights:
    """What a client may do, as patterns of source names, in which `*` stands for any characters.

    Attributes:
        send: the sources that it may speak as.
        read: the sources that it may read.
    """

    send: tuple[str, ...] = EVERYTHING
    read: tuple[str, ...] = EVERYTHING

    def may_read(self, source: str) -> bool:
        return _matches(self.read, source)

    def check_send(self, source: str) -> str:
        """Return the name of `source` as it is known here, if the client may speak as it.

        Nothing may be done with the name before this check.

        Raises:
            Fault: `bad_source`, `forbidden`.
        """
        source = check_name(source)
        if not _matches(self.send, source):
            raise _forbidden(f"stream as {source!a}", self.send)
        return source

    def check_read(self, source: str | None) -> str | None:
        """Return the name of `source` as it is known here, if the client may read it.

        Args:
            source: None for all sources that it may read, of which there must be some.

        Raises:
            Fault: `bad_source`, `forbidden`.
        """
        if source is not None:
            source = check_name(source)
        if not (_matches(self.read, source) if source is not None else self.read):
            raise _forbidden(f"read {'anything' if source is None else f'{source!a}'}", self.read)
        return source


def rights_of(given: Iterable[str], tokens: Sequence[TokenGrant]) -> Rights | None:
    """Return the rights of a client that shows the tokens `given`, or None if none of them is valid.

    Where no tokens are configured, everybody may do everything. A token that is listed twice allows what either entry
    does.
    """
    if not tokens:
        return Rights()
    shown = [_digest(text) for text in given]
    valid = [(each, _digest(each.token)) for each in tokens]
    # All are compared, each for the same time: how long this takes tells nothing about any of them, nor its length.
    found = [each for each, digest in valid for mine in shown if hmac.compare_digest(mine, digest)]
    if not found:
        return None
    return Rights(tuple(p for each in found for p in each.send), tuple(p for each in found for p in each.read))


def _digest(text: str) -> bytes:
    # Bytes of a request that are no UTF-8 come as surrogates.
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _matches(patterns: Iterable[str], source: str) -> bool:
    return any(_fits(each, source) for each in patterns)


def _fits(pattern: str, source: str) -> bool:
    """Return whether `source` matches `pattern`.

    Each part between two `*` is taken where it comes first. If anything matches, this does, and no part is looked for
    twice.
    """
    first, *others = pattern.split("*")
    if not others:
        return source == pattern
    *middle, last = others
    at, end = len(first), len(source) - len(last)
    if at > end or not source.startswith(first) or not source.endswith(last):
        return False
    for part in middle:
        found = source.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def _forbidden(what: str, patterns: Sequence[str]) -> Fault:
    allowed = ", ".join(f"{quoted(each)}" for each in patterns[:8]) or "none"
    return Fault("forbidden", f"this token may not {what}: its sources are {allowed}", fatal=True)


# --- which addresses others can reach --------------------------------------------------------------------------------


def is_local(host: str) -> bool:
    """Return whether only programs of this machine can reach `host`.

    Names are not looked up, because a name server may answer anything.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
        # A socket for both families has IPv4 addresses inside those of IPv6.
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def exposed(hosts: Iterable[str], tokens: Sequence[TokenGrant], *, open_to_all: bool) -> str | None:
    """Return why a service on `hosts` with these tokens must not start, or None if it may."""
    wide = [host for host in hosts if not is_local(host)]
    if not wide or tokens or open_to_all:
        return None
    return (
        f"server.host: {wide[0] or 'every address'} can be reached from other machines and there is no token, so "
        "anybody there could listen: set server.tokens or server.tokens_file (or, under systemd, the "
        "credential server_tokens), or set server.open: true if that is intended or something else protects the port"
    )


def wyoming_remark(host: str) -> str | None:
    """Return a remark about a Wyoming port at `host`, or None if it needs none.

    The protocol has no place for a token.
    """
    if is_local(host):
        return None
    return "no passwords: anybody who reaches the port may use it; allow only Home Assistant in your firewall"
