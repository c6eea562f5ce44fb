"""What every websocket dialect is: a codec over the one conversation, without I/O.

Owns the shape of a codec and of a dialect, and the few readings of a request that several dialects share. Knows no
dialect. A dialect is one file: it says which words of its protocol are which messages of ours, and which events of ours
are which words of its own. It holds no model, no queue and no policy: who may come in, how much, how fast, and what
happens to clients that do not read is decided for all of them in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qsl

from daemon.common.client_input import quoted
from daemon.common.errors import Fault
from streaming.events import Event, Inbound, Resume

Frame = str | bytes
"""One websocket message: text, or binary."""

CLOSE_DONE = 1000
CLOSE_SHUTTING_DOWN = 1001
CLOSE_TRY_LATER = 1013

_LONGEST_REASON = 123
"""Bytes: a control frame of websockets has room for 125, and two are the code."""

_CLOSE_BAD_DATA = 1007
_CLOSE_CODES = {
    "subscribe_only": 1003,
    "unauthorised": 1008,
    "forbidden": 1008,
    "bad_origin": 1008,
    "message_too_big": 1009,
    "internal": 1011,
    "full": CLOSE_TRY_LATER,
    "too_many_connections": CLOSE_TRY_LATER,
    "busy": CLOSE_TRY_LATER,
    "shutting_down": CLOSE_SHUTTING_DOWN,
    "taken_over": 4000,
}


def close_code(code: str) -> int:
    """Return the websocket close code that follows the fatal fault `code`, where a dialect has none of its own."""
    return _CLOSE_CODES.get(code, _CLOSE_BAD_DATA)


@dataclass(frozen=True, slots=True)
class Reply:
    """A frame for the client that no event of its stream brings: the dialect's own small talk."""

    frame: Frame


Message = Inbound | Resume | Reply


@dataclass(frozen=True, slots=True)
class Handshake:
    """What a client said before its first frame.

    Attributes:
        path: without a slash at its end.
        query: as in the address.
        headers: by their names in lower case.
        subprotocols: those that it offers.
    """

    path: str
    query: str = ""
    headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    subprotocols: tuple[str, ...] = ()


class Codec(Protocol):
    """One client's side of one conversation.

    What comes in becomes messages, in order. Each is taken in before the next is asked for: a generator that gives
    audio and then a reply makes the reply when the audio has been heard. A `Start` opens the stream, and one that comes
    after audio finishes the stream before it, with its finals and its `Stopped`. A `Stop` ends the conversation. A
    `Resume` in place of the first `Start` goes on with a stream that another connection began.

    Attributes:
        grace: seconds that the client has for its first frame, before `assume`; None for as long as it likes.
    """

    grace: float | None = None

    def greet(self) -> Iterable[Message]:
        """Return the messages to take in before any frame. A dialect whose address says all begins its stream here."""
        return ()

    def assume(self) -> Iterable[Message]:
        """Return the messages to take in when no frame came within the grace."""
        return ()

    def decode(self, frame: Frame) -> Iterable[Message]:
        """Turn a client's frame into messages.

        Raises:
            Fault: the frame is wrong. A fatal fault ends the conversation; after any other it goes on.
        """
        ...

    def encode(self, event: Event) -> Iterable[Frame]:
        """Return the frames that tell the client of an event of its stream: often none, sometimes several."""
        ...

    def blame(self, fault: Fault) -> Iterable[Frame]:
        """Return the frames that tell the client of its own fault. If it is fatal, a close follows."""
        return self.encode(fault.event())

    def part(self, code: int) -> Iterable[Frame]:
        """Return the last frames, behind the last final: a close with `code` follows."""
        return ()


def no_reason(fault: Fault) -> str:
    """Return no reason for a close, where what the client is told of a fault says enough."""
    return ""


def close_reason(fault: Fault) -> str:
    """Return the message of a fault, as far as a close has room for it."""
    return fault.message.encode()[:_LONGEST_REASON].decode(errors="ignore")


@dataclass(frozen=True, slots=True)
class Rejection:
    """An answer in plain HTTP, in place of a handshake."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dialect:
    """One wire protocol.

    Attributes:
        name: in messages and logs.
        make: returns a codec for the client that made this handshake and was let in. Raises `Fault` if its address is
            wrong.
        tokens: returns the tokens that the handshake shows, wherever this protocol has them. Raises `Fault` likewise.
        refuse: returns what a client without a codec, or without room, is told before the close.
        refuse_by_name: the same with the client's first frame, for a protocol whose clients understand nothing before
            they have said who they are. None: no frame is waited for.
        close_code: returns the code of a close, for the code of a fault.
        close_reason: returns what the close says beside it.
        paths: those on the shared port. A dialect with a port of its own has none, and answers under any path.
        subprotocols: those that it accepts when they are offered.
        largest: the bytes of a frame, where its clients need more than `server.max_message`.
        reject: returns a refusal in place of the handshake, for clients that expect one. None: the handshake is made,
            and then `refuse` and a close tell more than a browser would ever see otherwise.
    """

    name: str
    make: Callable[[Handshake], Codec]
    tokens: Callable[[Handshake], Iterable[str]]
    refuse: Callable[[Fault], Iterable[Frame]]
    refuse_by_name: Callable[[Fault, Frame], Iterable[Frame]] | None = None
    close_code: Callable[[str], int] = close_code
    close_reason: Callable[[Fault], str] = no_reason
    paths: frozenset[str] = frozenset()
    subprotocols: tuple[str, ...] = ()
    largest: int = 0
    reject: Callable[[Fault], Rejection] | None = None


# --- what several read alike -----------------------------------------------------------------------------------------


def query_pairs(text: str, most: int = 16) -> list[tuple[str, str]]:
    """Return the parameters of an address, as often as they come.

    Raises:
        Fault: `bad_parameter`: there are more than `most`.
    """
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=most)
    except ValueError:
        raise Fault("bad_parameter", "too many parameters in the address") from None


def query_once(text: str, most: int = 16) -> dict[str, str]:
    """Return the parameters of an address, where each may come once.

    Raises:
        Fault: `bad_parameter`.
    """
    pairs = query_pairs(text, most)
    query = dict(pairs)
    if len(query) != len(pairs):
        raise Fault("bad_parameter", "each parameter in the address may appear only once")
    return query


def check_known(query: Mapping[str, str], *known: str) -> None:
    """Check that the query has no parameters but `known` and the token.

    Raises:
        Fault: `unknown_parameter`.
    """
    for name in query:
        if name not in (*known, "token"):
            raise Fault(
                "unknown_parameter", f"unknown parameter {quoted(name)} in the address: use {', '.join(known)} or token"
            )


def named_source(handshake: Handshake) -> str | None:
    """Return the source that the address names, where it can name nothing else; None if it names none.

    Raises:
        Fault: `bad_parameter`, `unknown_parameter`.
    """
    query = query_once(handshake.query)
    check_known(query, "source")
    return query.get("source")


def bearer_tokens(handshake: Handshake) -> list[str]:
    """Return the tokens that a client shows, in a protocol that has no place of its own for them.

    Raises:
        Fault: `bad_parameter`.
    """
    return shown_tokens(handshake, "bearer")


def shown_tokens(handshake: Handshake, *schemes: str) -> list[str]:
    """Return the tokens in `?token=`, and in the Authorization header under one of `schemes` (in lower case).

    Raises:
        Fault: `bad_parameter`.
    """
    given = [value for name, value in query_pairs(handshake.query, 256) if name == "token"]
    for header in handshake.headers.get("authorization", ()):
        scheme, _, token = header.partition(" ")
        given += [token.strip()] if scheme.lower() in schemes else []
    return given
