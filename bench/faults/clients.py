"""What clients do to a service, and the network between them.

Owns the faults, each a function that does harm so many times and counts what was said, and what arrived as finals at a
subscriber who has nothing to do with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import time
from collections.abc import Callable

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from bench.faults.people import LAST, PCM, SECONDS, UTTERANCES, speak, stream, upgrade, witness
from bench.faults.service import Outcome, let_go
from bench.harness.clients import dial, tell
from bench.harness.daemon import PATIENCE, Daemon
from bench.harness.usage import usage


def _narrow(service: Daemon) -> socket.socket:
    """Connect with a small buffer, so that what is not read is soon noticed by the service."""
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    small.connect(service.address)
    return small


async def _send(ws: ClientConnection, pcm: bytes) -> None:
    for at in range(0, len(pcm), 3200):
        await ws.send(pcm[at : at + 3200])


async def vanish(service: Daemon, times: int) -> Outcome:
    """Break off in the middle of the last utterance, without a close."""

    async def one(number: int) -> None:
        async with stream(service, f"vanish{number}") as ws:
            await _send(ws, PCM[: int(LAST * 32000)])
            async with asyncio.timeout(PATIENCE):
                while json.loads(await ws.recv()).get("utterance") != UTTERANCES:
                    pass
            ws.transport.abort()

    async with witness(service) as listening:
        for number in range(times):
            await one(number)
        arrived = sum([await listening.arrived(f"vanish{number}", UTTERANCES) for number in range(times)])
    return Outcome(times, times * await speak(service, "after", PCM), times * UTTERANCES, arrived)


async def trickle(service: Daemon, times: int) -> Outcome:
    """Send one byte in each message: of a second of the first utterance, which are tens of thousands."""
    data = PCM[42000:74000]
    async with witness(service) as listening:
        served = sum([await speak(service, "trickle", data, 1) for _ in range(times)])
        return Outcome(times, served, times, await listening.arrived("trickle", times))


async def hurry(service: Daemon, times: int) -> Outcome:
    """Send the whole recording at once, many times the pace of speech, from everybody together."""
    async with witness(service) as listening:
        began = time.monotonic()
        served = await asyncio.gather(*(speak(service, "hurry", PCM, 64000) for _ in range(times)))
        pace = times * SECONDS / (time.monotonic() - began)
        arrived = await listening.arrived("hurry", UTTERANCES * times)
    return Outcome(times, sum(served), UTTERANCES * times, arrived, f"heard at {pace:.0f} times the pace, in all")


async def garbage(service: Daemon, times: int) -> Outcome:
    """Send bytes that are no HTTP, frames that are no websocket, and rubbish in the middle of speech."""
    dice = random.Random(0)

    async def one() -> None:
        _, writer = await asyncio.open_connection(*service.address)
        writer.write(dice.randbytes(dice.randint(1, 4000)))
        with contextlib.suppress(OSError):
            await asyncio.wait_for(writer.drain(), PATIENCE)
        writer.close()
        async with stream(service, "garbage") as ws:
            await ws.send(PCM[32000 : 2 * 32000])
            ws.transport.write(b"\xff\xff" + dice.randbytes(100))
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await ws.recv()

    async with witness(service) as listening:
        for _ in range(times):
            await one()
        served = await speak(service, "beside", PCM)
        arrived = await listening.arrived("garbage", times) + await listening.arrived("beside", UTTERANCES)
    return Outcome(times, times * served, times + UTTERANCES, arrived)


async def come_and_go(service: Daemon, times: int) -> Outcome:
    """Connect and leave, half of the times politely. Descriptors and memory are as before."""

    async def one(number: int) -> None:
        async with stream(service, "visitor") as ws:
            if number % 2:
                ws.transport.abort()

    async def many(count: int) -> None:
        for _ in range(0, count, 20):
            await asyncio.gather(*(one(number) for number in range(20)))
        await speak(service, "after", PCM)

    await many(200)  # what is made once is no growth
    before = usage(service.pid)
    await many(times)
    flat = await let_go(service, before.descriptors)
    after = usage(service.pid)
    flat = flat and after.rss - before.rss <= 8
    note = f"descriptors {before.descriptors} -> {after.descriptors}, memory {before.rss:.0f} -> {after.rss:.0f} MiB"
    return Outcome(times, times if flat else 0, 0, 0, note)


async def half_open(service: Daemon, times: int) -> Outcome:
    """Open connections that say nothing, or half of a handshake, and stay."""
    opened = []
    try:
        for number in range(times):
            sock = socket.create_connection(service.address)
            opened.append(sock)
            sock.sendall(b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgr"[: 40 * (number % 2)])
        async with witness(service) as listening:
            served = await speak(service, "beside", PCM)
            return Outcome(times, times * served, UTTERANCES, await listening.arrived("beside", UTTERANCES))
    finally:
        for sock in opened:
            sock.close()


async def deaf(service: Daemon, times: int) -> Outcome:
    """Subscribe and never read, beside ten subscribers that do."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(times):
            options = {"max_queue": 1, "ping_interval": None, "close_timeout": 0.1}
            ws = await stack.enter_async_context(dial(service, "/v1/events", sock=_narrow(service), **options))
            stack.callback(ws.transport.abort)
        listening = [await stack.enter_async_context(witness(service)) for _ in range(10)]
        served = await speak(service, "loud", PCM * 3)
        arrived = [await each.arrived("loud", 3 * UTTERANCES) for each in listening]
    return Outcome(times, times * served, 30 * UTTERANCES, sum(arrived))


async def stalled(service: Daemon, times: int) -> Outcome:
    """Stream, and never read what is told."""
    async with witness(service) as listening, contextlib.AsyncExitStack() as stack:
        for number in range(times):
            sock = _narrow(service)
            ws = await stack.enter_async_context(stream(service, f"stalled{number}", sock=sock, max_queue=1))
            stack.callback(ws.transport.abort)
            await _send(ws, PCM)
            await tell(ws, "flush")
        arrived = sum([await listening.arrived(f"stalled{number}", UTTERANCES) for number in range(times)])
        served = await speak(service, "beside", PCM)
    return Outcome(times, times * served, times * UTTERANCES, arrived)


async def slow_handshakes(service: Daemon, times: int) -> Outcome:
    """Shake hands byte by byte: all get in, and nobody waits for them."""
    request = upgrade("/v1/stream")

    async def one() -> bool:
        reader, writer = await asyncio.open_connection(*service.address)
        for at in range(len(request)):
            writer.write(request[at : at + 1])
            await asyncio.sleep(0.02)
        answer = await asyncio.wait_for(reader.readline(), PATIENCE)
        writer.close()
        return answer.startswith(b"HTTP/1.1 101 ")

    async with witness(service) as listening:
        handshakes = asyncio.gather(*(one() for _ in range(times)))
        served = await speak(service, "beside", PCM)
        before = not handshakes.done()
        let_in = sum(await handshakes)
        arrived = await listening.arrived("beside", UTTERANCES)
    note = "somebody else was served meanwhile" if before else ""
    return Outcome(times, let_in * served, UTTERANCES, arrived, note)


async def fallen_silent(service: Daemon, times: int) -> Outcome:
    """Leave a connection half-open: the service is not told; the client comes back, resumes, and says the rest."""
    return await _come_back(service, "silent", times, drop=lambda ws: None)


async def dropped(service: Daemon, times: int) -> Outcome:
    """Reset a connection in mid-word, again and again, and resume its stream."""
    return await _come_back(service, "dropped", times, drop=lambda ws: ws.transport.abort())


async def _come_back(service: Daemon, name: str, times: int, drop: Callable[[ClientConnection], object]) -> Outcome:
    dice = random.Random(2)

    async def one(number: int) -> bool:
        kind, message = "start", {"resume": 60}
        kinds: list[str] = []
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(4):  # the last one says the rest
                ws = await stack.enter_async_context(stream(service, f"{name}{number}"))
                stack.callback(ws.transport.abort)
                await tell(ws, kind, **message)
                ready = json.loads(await ws.recv())
                last = len(kinds) == 3
                at = 2 * ready["samples"]
                until = len(PCM) if last else min(len(PCM), at + dice.randrange(3, 80_000))
                await _send(ws, PCM[at:until])
                kinds.append(ready["type"])
                kind, message = "resume", {"token": ready["token"], "events": 0}
                if last:
                    await tell(ws, "stop")
                    with contextlib.suppress(ConnectionClosed):
                        while True:
                            kinds.append(json.loads(await ws.recv())["type"])
                else:
                    drop(ws)
        return kinds[-1] == "stopped" and kinds.count("final") == UTTERANCES

    async with witness(service) as listening:
        served = await asyncio.gather(*(one(number) for number in range(times)))
        arrived = sum([await listening.arrived(f"{name}{number}", UTTERANCES) for number in range(times)])
        doubled = len(listening.finals) - times * UTTERANCES
    return Outcome(times, sum(served), times * UTTERANCES, arrived, f"3 times each; doubled: {doubled}")
