"""Those who attack a service, in a process and from an address of their own.

What others feel of an attack is then the service's doing, and not that of limits on an address that they share, or of a
client that is busy with attacking.

`python -m bench.faults.attackers ATTACK HOST PORT SECONDS` says when it begins, and at the end how many connections it
made. Owns what each attack sends, to plain sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from bench.faults.attacks import STRANGER, TOKEN
from bench.faults.people import upgrade

_ADDRESS = "127.0.0.2"
"""This machine's too; honest clients come from 127.0.0.1."""

_FORM = (
    f"POST /v1/audio/transcriptions?source={STRANGER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    "Content-Type: multipart/form-data; boundary=x\r\n"
).encode()
_CHUNKED = _FORM + b"Transfer-Encoding: chunked\r\n\r\n"
_LINES = b"\n" * 65536
_EXTENSION = b";" + b"x" * 4000
_NAMES = ("-" * 2000, "-" * 64)  # longer than a name may be, and as long
_START = b"\x81\x90\0\0\0\0" + b'{"type":"start"}'  # as a frame


class Target:
    """The service that is attacked.

    Attributes:
        connections: made so far.
    """

    def __init__(self, host: str, port: int) -> None:
        self.connections = 0
        self._address = (host, port)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        self.connections += 1
        reader, writer = await asyncio.open_connection(*self._address, local_addr=(_ADDRESS, 0))
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


Attacker = Callable[[Target], Awaitable[None]]
"""What one does, once."""


def _saying(*said: bytes) -> Attacker:
    """Make an attacker that sends one of these, in turns, and stays until it is cut off: it reads and never answers."""
    turns = itertools.cycle(said)

    async def one(target: Target) -> None:
        async with target.connection() as (reader, writer):
            writer.write(next(turns))
            while await reader.read(65536):
                pass

    return one


def _flooding(*floods: tuple[bytes, bytes], answer: int) -> Attacker:
    """Make an attacker that sends a flood, another one each time, until it is answered or cut off.

    Args:
        floods: each what it begins with, and what it goes on with for ever.
        answer: bytes that are an answer; -1: none are, and it reads all of them.

    Returns:
        The attacker.
    """
    turns = itertools.cycle(floods)

    async def one(target: Target) -> None:
        begun, more = next(turns)
        async with target.connection() as (reader, writer):
            reading = asyncio.create_task(reader.read(answer))
            try:
                writer.write(begun)
                while not reading.done():
                    writer.write(more)
                    await writer.drain()
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    return one


def _endless_form() -> Attacker:
    """Make an attacker that sends lines, and never the first boundary of its form."""
    return _flooding((_CHUNKED, b"%x\r\n%b\r\n" % (len(_LINES), _LINES)), answer=1)


def _chunk_extensions() -> Attacker:
    """Make an attacker that sends framing without contents: extensions of chunks of a byte, and one without end."""
    return _flooding((_CHUNKED, b"1%b\r\n\n\r\n" % _EXTENSION * 16), (_CHUNKED + b"1;", b"x" * 65536), answer=1)


def _empty_frames() -> Attacker:
    """Make an attacker that sends pings, pongs, messages without a byte, and a message of such pieces."""
    begun = upgrade(f"/v1/stream?source={STRANGER}", f"Authorization: Bearer {TOKEN}")
    ping, pong, message, unfinished, piece = (bytes([head, 0x80, 0, 0, 0, 0]) for head in (0x89, 0x8A, 0x82, 0x02, 0))
    floods = [(begun, each * 10000) for each in (ping, pong, message)]
    return _flooding(*floods, (begun + unfinished, piece * 10000), answer=-1)


async def _names(target: Target) -> None:
    """Ask for names that nearly fit a pattern, to be read and to be spoken as."""
    for name, (path, said) in itertools.product(_NAMES, (("events", b""), ("stream", _START))):
        async with target.connection() as (reader, writer):
            writer.write(upgrade(f"/v1/{path}?source={name}", f"Authorization: Bearer {TOKEN}") + said)
            await reader.readuntil(b"\r\n\r\n")
            await reader.read(65536)  # why not


def _packed_form() -> bytes:
    """Pack a hundred megabytes of lines into a form of a hundred kilobytes."""
    body = gzip.compress(_LINES * 1600, 1)
    return _FORM + f"Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


ATTACKS: dict[str, tuple[Callable[[], Attacker], int]] = {
    "packed forms": (lambda: _saying(_packed_form()), 4),
    "endless forms": (_endless_form, 4),
    "chunk extensions": (_chunk_extensions, 4),
    "empty frames": (_empty_frames, 4),
    "silence": (lambda: _saying(b"", b"\x16\x03\x01"), 100),  # nothing, or the first bytes of TLS
    "refused": (lambda: _saying(upgrade("/v1/stream"), upgrade("/v1/events")), 100),  # without a token
    "half a line": (lambda: _saying(b"GET /v1/stre", b"POST /v1/aud"), 100),
    "names": (lambda: _names, 4),
}
"""Name -> the attacker, and how many of them there are at once, each again as soon as it is done or cut off."""


async def attack(name: str, target: Target, seconds: float) -> None:
    make, at_once = ATTACKS[name]
    one = make()

    async def again_and_again() -> None:
        while True:
            # Cut off, or not let in: that is what the service may do.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await one(target)
            await asyncio.sleep(0)

    print("begun", flush=True)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as attackers:
            for _ in range(at_once):
                attackers.create_task(again_and_again())


def main(arguments: Sequence[str]) -> int:
    name, host, port, seconds = arguments
    target = Target(host, int(port))
    asyncio.run(attack(name, target, float(seconds)))
    print(target.connections)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
