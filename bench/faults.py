"""What clients and machines do to a service, tried on a real `whisperd run`, and what was lost: a table.

Owns the faults, each a function that does harm so many times and counts what was said and what arrived as finals at a
subscriber who has nothing to do with it (under SIGTERM, at the streams' own clients). The
engine is the scripted one (`streaming.fake`), which always hears the same in the same audio: what is tried is
everything around it. `tests/bench/test_faults.py` does the same, a little.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from bench.client import read_pcm
from bench.table import circumstances, table

PATIENCE = 300.0
RECORDING = str(Path(__file__).parent / "data" / "demo.flac")
UTTERANCES = 3  # in the recording


@dataclass(frozen=True, slots=True)
class Outcome:
    """tried: how often. survived: after how many of those somebody else was served as ever. said, arrived: utterances
    sent, and finals that came of them."""

    tried: int
    survived: int
    said: int
    arrived: int
    note: str = ""

    @property
    def lost(self) -> int:
        return self.said - self.arrived


# --- the service -----------------------------------------------------------------------------------------------------


@dataclass
class Service:
    """A process of its own. url: where it listens."""

    popen: subprocess.Popen[str]
    url: str
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("ws://").rpartition(":")
        return host, int(port)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.popen.pid}/fd"))

    def resident(self) -> int:
        """MiB."""
        pages = int(Path(f"/proc/{self.popen.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def serve(config: str) -> int:
    """`whisperd run` with an engine that needs no model."""
    from tokenizers import Tokenizer

    from daemon import app, cli
    from streaming.fake import ScriptedEngine

    file = Path(__file__).parent.parent / "streaming" / "pretrained" / "home-en" / "student" / "tokenizer.json"
    eot = Tokenizer.from_file(str(file)).get_vocab()["<|endoftext|>"]
    app.Service.__init__.__defaults__ = (lambda _: ScriptedEngine(file, eot),)  # its engine
    return cli.main(["run", "-c", config])


@contextmanager
def running(folder: Path, settings: dict[str, Any] | None = None) -> Iterator[Service]:
    """Raises:
    RuntimeError: it did not become ready; its log is in the message.
    """
    config, log = folder / "whisperd.yaml", folder / "log"
    server = {"host": "127.0.0.1", "port": 0, "max_streams": 200}
    config.write_text(yaml.safe_dump({**(settings or {}), "server": server}))
    with open(log, "w") as out:
        popen = subprocess.Popen(
            [sys.executable, "-m", "bench.faults", "--serve", str(config)], stderr=out, text=True,
            env={**os.environ, "STATE_DIRECTORY": str(folder / "state")},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + PATIENCE
        while "ready: " not in log.read_text():
            if popen.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"whisperd did not become ready:\n{log.read_text()}")
            time.sleep(0.05)  # a file has no event to wait for
        url = next(line for line in log.read_text().splitlines() if "listening on ws" in line)
        yield Service(popen, url.partition("listening on ")[2].strip(), log)
    finally:
        popen.kill()
        popen.wait()


# --- who listens, and who speaks -------------------------------------------------------------------------------------


class Witness:
    """A subscriber to all that is said. finals: of each source."""

    def __init__(self) -> None:
        self.finals: Counter[str] = Counter()
        self._news = asyncio.Event()

    async def read(self, ws: ClientConnection) -> None:
        async for message in ws:
            event = json.loads(message)
            if event["type"] == "final":
                self.finals[event["source"]] += 1
                self._news.set()

    async def arrived(self, source: str, wanted: int) -> int:
        """Finals of `source`: once they are `wanted`, or nothing comes any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while self.finals[source] < wanted:
                    self._news.clear()
                    await self._news.wait()
        return self.finals[source]


@asynccontextmanager
async def witness(service: Service) -> AsyncIterator[Witness]:
    async with connect(f"{service.url}/v1/events", compression=None, max_queue=None, ping_interval=None) as ws:
        made = Witness()
        reading = asyncio.create_task(made.read(ws))
        try:
            yield made
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


def stream(service: Service, source: str, **options: Any) -> connect:
    url = f"{service.url}/v1/stream?source={source}"
    return connect(url, compression=None, ping_interval=None, open_timeout=PATIENCE, **options)


async def speak(service: Service, source: str, pcm: bytes, frame: int = 3200) -> bool:
    """A stream from start to stop; whether it was served to its end."""
    async with asyncio.timeout(PATIENCE), stream(service, source, max_queue=None) as ws:
        for at in range(0, len(pcm), frame):
            await ws.send(pcm[at : at + frame])
        await ws.send('{"type":"stop"}')
        with contextlib.suppress(ConnectionClosed):
            while True:
                if json.loads(await ws.recv())["type"] == "stopped":
                    return True
    return False


# --- faults ----------------------------------------------------------------------------------------------------------

Fault = Callable[[Service, int], Awaitable[Outcome]]
PCM = read_pcm(RECORDING)[0]


async def vanish(service: Service, times: int) -> Outcome:
    """Gone in the middle of the third utterance, without a close."""

    async def one(number: int) -> None:
        async with stream(service, f"vanish{number}") as ws:
            for at in range(0, int(8.2 * 32000), 3200):
                await ws.send(PCM[at : at + 3200])
            while json.loads(await ws.recv()).get("utterance") != UTTERANCES:
                pass
            ws.transport.abort()

    async with witness(service) as listening:
        for number in range(times):
            await one(number)
        arrived = sum([await listening.arrived(f"vanish{number}", UTTERANCES) for number in range(times)])
    return Outcome(times, times * await speak(service, "after", PCM), times * UTTERANCES, arrived)


async def trickle(service: Service, times: int) -> Outcome:
    """One byte in each message: of a second of the first utterance, which are tens of thousands."""
    data = PCM[42000:74000]
    async with witness(service) as listening:
        served = sum([await speak(service, "trickle", data, 1) for _ in range(times)])
        return Outcome(times, served, times, await listening.arrived("trickle", times))


async def hurry(service: Service, times: int) -> Outcome:
    """The whole recording at once, many times the pace of speech, from everybody together."""
    async with witness(service) as listening:
        served = await asyncio.gather(*(speak(service, "hurry", PCM, 64000) for _ in range(times)))
        arrived = await listening.arrived("hurry", UTTERANCES * times)
        return Outcome(times, sum(served), UTTERANCES * times, arrived)


async def garbage(service: Service, times: int) -> Outcome:
    """Bytes that are no HTTP, frames that are no websocket, and rubbish in the middle of speech."""
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


async def come_and_go(service: Service, times: int) -> Outcome:
    """Connect and leave: half of them politely. Descriptors and memory are as before."""

    async def one(number: int) -> None:
        async with stream(service, "visitor") as ws:
            if number % 2:
                ws.transport.abort()

    async def many(count: int) -> None:
        for _ in range(0, count, 20):
            await asyncio.gather(*(one(number) for number in range(20)))
        await speak(service, "after", PCM)

    await many(200)  # what is made once is no growth
    descriptors, resident = service.descriptors(), service.resident()
    await many(times)
    deadline = time.monotonic() + PATIENCE
    while service.descriptors() > descriptors and time.monotonic() < deadline:  # noqa: ASYNC110 - another process's
        await asyncio.sleep(0.1)  # the last ones are being closed
    grown = service.resident() - resident
    flat = service.descriptors() <= descriptors and grown <= 8
    note = f"descriptors {descriptors} -> {service.descriptors()}, memory {resident} -> {resident + grown} MiB"
    return Outcome(times, times if flat else 0, 0, 0, note)


async def half_open(service: Service, times: int) -> Outcome:
    """Connections that say nothing, or half of a handshake, and stay."""
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


async def deaf(service: Service, times: int) -> Outcome:
    """Subscribers that never read, beside ten that do."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(times):
            small = socket.socket()
            small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            small.connect(service.address)
            url = f"{service.url}/v1/events"
            ws = await stack.enter_async_context(
                connect(url, sock=small, max_queue=1, compression=None, ping_interval=None, close_timeout=0.1)
            )
            stack.callback(ws.transport.abort)
        listening = [await stack.enter_async_context(witness(service)) for _ in range(10)]
        served = await speak(service, "loud", PCM * 3)
        arrived = [await each.arrived("loud", 3 * UTTERANCES) for each in listening]
    return Outcome(times, times * served, 30 * UTTERANCES, sum(arrived))


async def exhausted(service: Service, times: int) -> Outcome:
    """No descriptor left to accept with: it is said once, and those who are in are served; then all are again."""
    before = resource.prlimit(service.popen.pid, resource.RLIMIT_NOFILE)
    recovered = 0
    async with witness(service) as listening, stream(service, "inside", max_queue=None) as inside:
        for _ in range(times):
            resource.prlimit(service.popen.pid, resource.RLIMIT_NOFILE, (service.descriptors() + 4, before[1]))
            waiting = [socket.create_connection(service.address) for _ in range(12)]
            while "a connection cannot be accepted" not in service.log.read_text():  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.05)
            for at in range(0, len(PCM), 32000):
                await inside.send(PCM[at : at + 32000])
            await inside.send('{"type":"flush"}')
            while json.loads(await inside.recv())["type"] != "flushed":
                pass
            for sock in waiting:
                sock.close()
            recovered += await speak(service, "after", PCM)
        arrived = await listening.arrived("inside", times * UTTERANCES)
        arrived += await listening.arrived("after", times * UTTERANCES)
    resource.prlimit(service.popen.pid, resource.RLIMIT_NOFILE, before)
    said = service.log.read_text().count("a connection cannot be accepted")
    return Outcome(times, recovered if said == 1 else 0, 2 * times * UTTERANCES, arrived, f"said {said} time(s)")


async def terminated(folder: Path, times: int, streams: int = 6) -> Outcome:
    """SIGTERM at any moment, while everybody speaks: what began to be said is told before the end."""
    dice = random.Random(1)
    survived = said = arrived = 0

    async def talk(service: Service, number: int, seen: Counter[str]) -> None:
        async with stream(service, f"s{number}", max_queue=None) as ws:
            sending = asyncio.create_task(send(ws))
            with contextlib.suppress(ConnectionClosed):
                async for message in ws:
                    seen[json.loads(message)["type"]] += 1
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def send(ws: ClientConnection) -> None:
        while True:
            for at in range(0, len(PCM), 3200):
                await ws.send(PCM[at : at + 3200])
                await asyncio.sleep(0.02)

    for _ in range(times):
        with running(folder) as service:
            seen: Counter[str] = Counter()
            talks = [asyncio.create_task(talk(service, number, seen)) for number in range(streams)]
            await asyncio.sleep(dice.uniform(0.5, 3.0))
            service.popen.send_signal(signal.SIGTERM)
            await asyncio.gather(*talks)
            survived += await asyncio.to_thread(service.popen.wait, PATIENCE) == 0
        said += seen["speech_started"]
        arrived += seen["final"]
    return Outcome(times, survived, said, arrived)


FAULTS: dict[str, tuple[Fault, int]] = {
    "gone in mid-word": (vanish, 50),
    "one byte in a message": (trickle, 1),
    "many times the pace of speech": (hurry, 16),
    "garbage": (garbage, 100),
    "connect and leave": (come_and_go, 5000),
    "half-open connections": (half_open, 100),
    "subscribers that never read": (deaf, 10),
    "no descriptors left": (exhausted, 2),
}
"""Name -> what does it, and how often by default."""


async def attempt(name: str, times: int) -> Outcome:
    """On a service of its own."""
    with tempfile.TemporaryDirectory() as folder:
        if name == "SIGTERM":
            return await terminated(Path(folder), times)
        with running(Path(folder)) as service:
            return await FAULTS[name][0](service, times)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="whisperd bench faults", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="how often, by the default (1)")
    parser.add_argument("--serve", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        raise SystemExit(serve(options.serve))
    rows = []
    for name, often in [*((name, often) for name, (_, often) in FAULTS.items()), ("SIGTERM", 10)]:
        outcome = asyncio.run(attempt(name, max(1, round(often * options.scale))))
        row = [name, outcome.tried, outcome.survived, outcome.said, outcome.arrived, outcome.lost, outcome.note]
        rows.append([str(cell) for cell in row])
        print(" ".join(rows[-1]), file=sys.stderr)
    print(circumstances() + "\n")
    print(table(["fault", "tried", "survived", "utterances said", "finals arrived", "lost", "note"], rows))


if __name__ == "__main__":
    main()
