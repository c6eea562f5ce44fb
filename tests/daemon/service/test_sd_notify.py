"""sd_notify, over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import client, scripted, service, speech, wait_until

from daemon.service.sd_notify import Notifier
from daemon.settings.environment import ServiceEnvironment


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """Where a service manager listens."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@whisperd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address.replace("@", "\0"))
        sock.settimeout(30)
        yield address, sock


def test_what_is_said(manager: tuple[str, socket.socket]) -> None:
    address, sock = manager
    notifier = Notifier(address)
    notifier.loading("loading tiny-en", 60)
    notifier.ready("ready")
    notifier.alive()
    notifier.status("2 streams")
    notifier.stopping("bye")
    assert [sock.recv(1000).decode() for _ in range(5)] == [
        "EXTEND_TIMEOUT_USEC=60000000\nSTATUS=loading tiny-en",
        "READY=1\nSTATUS=ready",
        "WATCHDOG=1",
        "STATUS=2 streams",
        "STOPPING=1\nSTATUS=bye",
    ]


def test_a_reload_says_when_it_began(manager: tuple[str, socket.socket]) -> None:
    address, sock = manager
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    Notifier(address).reloading("reloading the settings")
    first, second, third = sock.recv(1000).decode().splitlines()
    assert (first, third) == ("RELOADING=1", "STATUS=reloading the settings")
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_without_a_manager_nothing_happens(tmp_path: Path) -> None:
    for address in (None, "", str(tmp_path / "nobody")):
        Notifier(address).ready("ready")


async def test_a_service_tells_its_life(manager: tuple[str, socket.socket], tokenizer_file: Path) -> None:
    address, sock = manager
    environment = ServiceEnvironment(notify_socket=address, watchdog=0.05)
    async with service(scripted(tokenizer_file), environment=environment) as daemon, client(daemon.server.url) as mine:
        await mine.play(speech())
        await mine.until("final")
        told = [await asyncio.to_thread(sock.recv, 1000) for _ in range(3)]
    assert told[0].startswith(b"EXTEND_TIMEOUT_USEC=")
    assert told[1].startswith(b"READY=1\nSTATUS=ready: student scripted")
    assert b"WATCHDOG=1" in told
    while (last := await asyncio.to_thread(sock.recv, 1000)).startswith((b"WATCHDOG=1", b"STATUS=")):
        pass
    assert last.startswith(b"STOPPING=1")


def waiting(sock: socket.socket) -> list[bytes]:
    messages = []
    with contextlib.suppress(BlockingIOError):
        while True:
            messages.append(sock.recv(1000))
    return messages


async def test_the_watchdog_goes_hungry_when_nothing_is_decoded(
    manager: tuple[str, socket.socket], tokenizer_file: Path
) -> None:
    address, sock = manager
    decoded = False

    def fail(_: object) -> None:
        nonlocal decoded
        if decoded:
            raise RuntimeError("no GPU any more")
        decoded = True

    environment = ServiceEnvironment(notify_socket=address, watchdog=0.02)
    sections = {"health": {"canary": 0.02, "stall": 1.0}}
    async with service(scripted(tokenizer_file, before=fail), sections, environment) as daemon:
        await wait_until(lambda: not daemon.health.getting_on)
        sock.setblocking(False)
        waiting(sock)
        await asyncio.sleep(0.1)  # several of the watchdog's periods, in which no sign of life may come
        assert not any(message.startswith(b"WATCHDOG") for message in waiting(sock))
