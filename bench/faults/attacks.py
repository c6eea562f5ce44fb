"""Attacks on a service, and what an honest client on the same machine feels of them.

Owns the faults, each of which lasts so many seconds, and the honest client: it comes in, says an utterance and reads
its final, again and again, before the attack and while it lasts; an answer takes as long as all of that. Its finals are
counted by a subscriber who was there before. What attackers do is in `attackers.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from websockets.exceptions import WebSocketException

from bench.broker import Broker
from bench.certificate import certificate
from bench.faults.people import PCM, speak, witness
from bench.faults.service import MQTT, Outcome, let_go, running
from bench.harness.daemon import PATIENCE, Daemon
from bench.harness.mqtt_subscriber import mqtt
from bench.harness.usage import Usage, usage
from bench.tasks import background

Attack = Callable[[Path, int], Awaitable[Outcome]]
"""In an empty folder, for so many seconds."""

_Attacking = AbstractAsyncContextManager["asyncio.Task[int]"]
"""Within, it goes on; the task ends with it, and says how often it was done."""

TOKEN, STRANGER = "a-strangers-token", "stranger"
"""Those who attack have a token too, and may speak as this source: some attacks begin behind the door."""

_PATTERN = "*-*-*-*-x"
_HONEST = "an-honest-token"
_SERVER: dict[str, Any] = {
    "tokens": [_HONEST, {"token": TOKEN, "send": [_PATTERN, STRANGER], "read": [_PATTERN]}],
    "max_handshakes": 64,
}
_WORDS = PCM[42000:74000]
"""A second out of an utterance."""
_BEFORE = 10
"""Answers before the attack: what is made once is no growth, and the others are compared with these."""
_MOST_GROWTH = 64
"""MiB by which a service may have grown afterwards: what an allocator does not give back."""
_LARGEST_PACKET = 320
"""Bytes that the broker takes: a final with the times of its words has more, without them it has less."""


@dataclass
class _Honest:
    """Somebody who uses the service.

    Attributes:
        service: the service.
        options: of each connection.
        said: utterances sent.
        seconds: how long each answer took that came.
    """

    service: Daemon
    options: dict[str, Any]
    said: int = 0
    seconds: list[float] = field(default_factory=list)

    async def ask(self) -> None:
        self.said += 1
        began = time.monotonic()
        # Whoever is not let in, or is cut off, has no answer.
        with contextlib.suppress(OSError, WebSocketException):
            if await speak(self.service, "honest", _WORDS, words=True, **self.options):
                self.seconds.append(time.monotonic() - began)

    @property
    def p95(self) -> str:
        return f"{np.percentile(self.seconds, 95):.2f} s" if self.seconds else "none"


@dataclass
class _Watched:
    """What a service uses, each time that it was looked at.

    Attributes:
        service: the service.
        seen: in order of time.
    """

    service: Daemon
    seen: list[Usage] = field(default_factory=list)

    def look(self) -> None:
        self.seen.append(usage(self.service.pid))

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            self.look()

    async def as_before(self) -> bool:
        """Return whether the service ends as it began."""
        flat = await let_go(self.service, self.seen[0].descriptors)
        self.look()
        return flat and self.seen[-1].rss - self.seen[0].rss <= _MOST_GROWTH

    def __str__(self) -> str:
        """Say what was used before, at most meanwhile, and at the end."""
        descriptors, resident = (
            f"{values[0]:.0f} -> {max(values):.0f} -> {values[-1]:.0f}"
            for values in ([each.descriptors for each in self.seen], [each.rss for each in self.seen])
        )
        return f"descriptors {descriptors}, memory {resident} MiB"


async def _felt(service: Daemon, attack: _Attacking, tls: ssl.SSLContext | None = None) -> Outcome:
    options = {"additional_headers": {"Authorization": f"Bearer {_HONEST}"}, "ssl": tls}
    before, meanwhile, watched = _Honest(service, options), _Honest(service, options), _Watched(service)
    async with witness(service, **options) as listening:
        for _ in range(_BEFORE):
            await before.ask()
        watched.look()
        async with attack as attacking:
            async with background(watched.watch()):
                while not attacking.done():
                    await meanwhile.ask()
            times = await attacking
        well = await watched.as_before() and len(meanwhile.seconds) == meanwhile.said
        said = before.said + meanwhile.said
        arrived = await listening.arrived("honest", said)
    note = f"{len(meanwhile.seconds)} answers, p95 {before.p95} -> {meanwhile.p95}; {watched}"
    return Outcome(times, times if well else 0, said, arrived, note)


# --- by strangers ----------------------------------------------------------------------------------------------------


def strangers(name: str, *, tls: bool = False) -> Attack:
    """Make a fault of one of `attackers.ATTACKS`.

    Args:
        name: of the attack.
        tls: whether the port that is attacked speaks TLS.

    Returns:
        The fault.
    """

    async def fault(folder: Path, seconds: int) -> Outcome:
        server, trusting = _SERVER, None
        if tls:
            path, key = certificate(folder)
            server = {**server, "certificate": str(path), "key": str(key)}
            trusting = ssl.create_default_context(cafile=path)
        with running(folder, {"server": server}) as service:
            return await _felt(service, _attacked(name, service, seconds), trusting)

    return fault


@asynccontextmanager
async def _attacked(name: str, service: Daemon, seconds: int) -> AsyncIterator[asyncio.Task[int]]:
    host, port = service.address
    popen = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.faults.attackers", name, host, str(port), str(seconds),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert popen.stdout is not None
    try:
        await asyncio.wait_for(popen.stdout.readline(), PATIENCE)  # it begins
        yield asyncio.create_task(_number(popen.stdout))
    finally:
        with contextlib.suppress(ProcessLookupError):
            popen.kill()
        await popen.wait()


async def _number(stream: asyncio.StreamReader) -> int:
    return int(await stream.read())


# --- by the broker ---------------------------------------------------------------------------------------------------


async def small_packets(folder: Path, seconds: int) -> Outcome:
    """Let the broker take no large packet: each final reaches it all the same, without the times of its words."""
    async with mqtt(folder, sessions=True) as home:
        with running(folder, {**home.settings(**MQTT), "server": _SERVER}) as service:
            outcome = await _felt(service, _narrowed(home.broker, seconds))
            arrived = len(await home.subscriber.ids_once(lambda ids: len(ids) >= outcome.said))
        told = service.log.count("is sent without its words")
    note = f"{outcome.note}; the operator was told {told} time(s)"
    survived = outcome.survived if told else 0
    return replace(outcome, survived=survived, arrived=min(outcome.arrived, arrived), note=note)


@asynccontextmanager
async def _narrowed(broker: Broker, seconds: int) -> AsyncIterator[asyncio.Task[int]]:
    """Start the broker again, with a limit on its packets.

    Yields:
        A task that ends when the attack does, and returns how many there were.
    """
    broker.stop()
    broker.options += f"max_packet_size {_LARGEST_PACKET}\n"
    broker.start()

    async def last() -> int:
        await asyncio.sleep(seconds)
        return 1

    yield asyncio.create_task(last())
