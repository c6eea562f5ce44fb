"""`whisperd run` under a service manager: a process of its own, real signals, a notify socket, a port handed over.

The engine is scripted, and hangs while a file says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import PATIENCE, ROOT, client, free_port, speech, wait_until

PROGRAM = """
import sys, time
from pathlib import Path
import harness
from daemon.service import app
from daemon.commands import cli

tokenizer_file, folder = map(Path, sys.argv[1:])

def before(jobs):
    while (folder / "wedged").exists():
        time.sleep(0.01)

def load(settings):
    engine = harness.scripted(tokenizer_file, before=before)(settings)
    engine.contexts = (20.0,)
    return engine

app.Service.__init__.__defaults__ = (load,)
sys.exit(cli.main(["run", "-c", str(folder / "whisperd.yaml")]))
"""


class Manager:
    """The service manager's end of sd_notify."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self.told: list[str] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(self.address)
        self._sock.settimeout(PATIENCE)

    def next(self) -> str:
        message = self._sock.recv(4096).decode()
        self.told.append(message)
        return message

    async def until(self, *beginnings: str) -> str:
        """The next message that has a line that begins so."""
        while True:
            message = await asyncio.to_thread(self.next)
            if any(line.startswith(beginnings) for line in message.splitlines()):
                return message

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.close()


@dataclass
class Daemon:
    popen: subprocess.Popen[bytes]
    folder: Path

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def url(self) -> str:
        return next(line for line in self.log.splitlines() if "listening on " in line).partition("listening on ")[2]

    def configure(self, **sections: Any) -> None:
        configure(self.folder, **sections)
        self.popen.send_signal(signal.SIGHUP)

    async def ended(self) -> int:
        return await asyncio.to_thread(self.popen.wait, PATIENCE)


def configure(folder: Path, **sections: Any) -> None:
    sections["server"] = {"port": 0, **sections.get("server", {})}
    (folder / "whisperd.yaml").write_text(json.dumps(sections))  # JSON is YAML


@contextmanager
def daemon(
    folder: Path,
    tokenizer_file: Path,
    manager: Manager,
    *,
    wrapper: tuple[str, ...] = (),
    limits: dict[str, str] | None = None,
) -> Iterator[Daemon]:
    if not (folder / "whisperd.yaml").exists():
        configure(folder)
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'daemon'}", "NOTIFY_SOCKET": manager.address}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **paths, **(limits or {})}
    with open(folder / "log", "wb") as log:
        status = os.fstat(log.fileno())
        popen = subprocess.Popen(
            [*wrapper, sys.executable, "-c", PROGRAM, str(tokenizer_file), str(folder)],
            stdout=log, stderr=log, cwd=ROOT,
            env={**environment, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"},
        )  # fmt: skip
    try:
        yield Daemon(popen, folder)
    finally:
        popen.kill()
        popen.wait()


# --- life ------------------------------------------------------------------------------------------------------------


async def test_ready_comes_after_a_first_decode(tmp_path: Path, tokenizer_file: Path, manager: Manager) -> None:
    (tmp_path / "wedged").touch()
    with daemon(tmp_path, tokenizer_file, manager) as service:
        assert "EXTEND_TIMEOUT_USEC=" in await manager.until("STATUS=loading tiny-en")
        (tmp_path / "wedged").unlink()
        ready = await manager.until("READY=1")
        assert "STATUS=ready: student scripted, teacher scripted-teacher, on cpu; 0 streams; no final yet" in ready
        service.popen.terminate()
        await manager.until("STOPPING=1")
        assert await service.ended() == 0


async def test_a_first_decode_that_hangs_is_no_start(tmp_path: Path, tokenizer_file: Path, manager: Manager) -> None:
    (tmp_path / "wedged").touch()
    limits = {"WHISPERD_HEALTH__STALL": "0.2"}
    with daemon(tmp_path, tokenizer_file, manager, limits=limits) as service:
        assert await service.ended() == 1
        assert "the first decode takes longer than 0.2 s (health.stall): the engine hangs" in service.log
    assert not any("READY=1" in message for message in manager.told)


async def test_the_status_says_what_goes_on(tmp_path: Path, tokenizer_file: Path, manager: Manager) -> None:
    with daemon(tmp_path, tokenizer_file, manager) as service:
        await manager.until("READY=1")
        async with client(service.url) as mine:
            await mine.play(speech())
            await mine.until("final")
            while "1 stream" not in (line := await manager.until("STATUS=ready: ")) or "just now" not in line:
                pass
        while "0 streams; last final" not in await manager.until("STATUS=ready: "):
            pass


async def test_a_wedged_engine_is_not_fed(tmp_path: Path, tokenizer_file: Path, manager: Manager) -> None:
    limits = {"WHISPERD_HEALTH__STALL": "1", "WHISPERD_HEALTH__CANARY": "0.1", "WATCHDOG_USEC": "200000"}
    with daemon(tmp_path, tokenizer_file, manager, limits=limits) as service:
        await manager.until("READY=1")
        await manager.until("WATCHDOG=1")
        (tmp_path / "wedged").touch()
        status = await manager.until("STATUS=not ready: nothing has been decoded for")
        assert "0 streams" in status
        # The loop turns and answers; but in many of the watchdog's periods no sign of life is given.
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            manager._sock.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                assert "WATCHDOG=1" not in await asyncio.to_thread(manager.next)
            except TimeoutError:
                break
        manager._sock.settimeout(PATIENCE)
        assert "<3>daemon.service.service_manager: the engine hangs: the watchdog is not fed" in service.log
        # What hung may come back before the manager loses its patience.
        (tmp_path / "wedged").unlink()
        await manager.until("WATCHDOG=1")


async def test_the_stop_is_within_the_drain_even_when_the_engine_hangs(
    tmp_path: Path, tokenizer_file: Path, manager: Manager
) -> None:
    limits = {"WHISPERD_SHUTDOWN__DRAIN": "0.5"}
    with daemon(tmp_path, tokenizer_file, manager, limits=limits) as service:
        await manager.until("READY=1")
        async with client(service.url) as mine:
            (tmp_path / "wedged").touch()
            await mine.play(speech())
            await mine.until("speech_stopped")
            service.popen.terminate()
            await manager.until("STOPPING=1")
            assert await service.ended() == 1
        assert "gave up after 0.5 s" in service.log


async def test_the_journal_gets_priorities(tmp_path: Path, tokenizer_file: Path, manager: Manager) -> None:
    with daemon(tmp_path, tokenizer_file, manager) as service:
        await manager.until("READY=1")
        service.popen.terminate()
        assert await service.ended() == 0
        assert all(line.startswith("<6>") for line in service.log.splitlines())
        assert "<6>daemon.service.app: ready: student scripted" in service.log
    # Not the journal: whoever sends its standard error elsewhere gets times.
    with daemon(tmp_path, tokenizer_file, manager, wrapper=("env", "JOURNAL_STREAM=1:1")) as service:
        await manager.until("READY=1")
        assert "<6>" not in service.log
        assert " INFO    daemon.service.app: ready: " in service.log


# --- reload ----------------------------------------------------------------------------------------------------------


async def reloaded(manager: Manager) -> str:
    """The status after a reload."""
    began = await manager.until("RELOADING=1")
    assert "MONOTONIC_USEC=" in began
    return await manager.until("READY=1")


async def test_a_reload_drops_nobody(tmp_path: Path, tokenizer_file: Path, manager: Manager) -> None:
    with daemon(tmp_path, tokenizer_file, manager) as service:
        await manager.until("READY=1")
        async with client(service.url) as before:
            await before.say(type="start")
            await before.until("ready")
            service.configure(server={"tokens": ["new"]}, escalate={"when": "always"})
            await reloaded(manager)
            assert "reloaded: server.tokens, escalate.when" in service.log
            await before.play(speech())
            # The old stream goes on, with the settings it began with; a new one has the new ones, and needs the token.
            assert (await before.until("final"))["model"] == "student"
            async with client(service.url) as stranger:
                assert (await stranger.until("error"))["code"] == "unauthorised"
            async with client(service.url, "/v1/stream?token=new") as after:
                await after.play(speech())
                assert (await after.until("final"))["model"] == "teacher"
        service.popen.terminate()
        assert await service.ended() == 0
        assert "Traceback" not in service.log


async def test_the_log_level_changes_at_once(tmp_path: Path, tokenizer_file: Path, manager: Manager) -> None:
    with daemon(tmp_path, tokenizer_file, manager) as service:
        await manager.until("READY=1")
        before = service.log
        service.configure(log={"level": "error"})
        await reloaded(manager)
        assert service.log == before
        service.configure(log={"level": "info"})
        await reloaded(manager)
        assert service.log.removeprefix(before) == "<6>daemon.service.reloader: reloaded: log.level\n"


async def test_what_cannot_change_is_named(tmp_path: Path, tokenizer_file: Path, manager: Manager) -> None:
    with daemon(tmp_path, tokenizer_file, manager) as service:
        await manager.until("READY=1")
        service.configure(server={"port": 1}, models={"student": "other"}, partials={"interval": 0.4})
        assert "restart for server.port, models.student" in await reloaded(manager)
        assert "reloaded: partials.interval" in service.log
        assert (
            "<4>daemon.service.reloader: reload: server.port, models.student cannot change while the service runs"
            in service.log
        )
        service.configure(partials={"interval": 0.4})
        assert "restart" not in await reloaded(manager)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("server: {prot: 1}", "server.prot: unknown key; did you mean server.port?"),
        ("server: [", "is not YAML"),
        ("segment: {longest: 21}", "segment.longest is 21 s, but the models hear at most 20 s"),
    ],
)
async def test_a_broken_file_changes_nothing(
    tmp_path: Path, tokenizer_file: Path, manager: Manager, text: str, sentence: str
) -> None:
    with daemon(tmp_path, tokenizer_file, manager) as service:
        await manager.until("READY=1")
        (tmp_path / "whisperd.yaml").write_text(text + "\n")
        service.popen.send_signal(signal.SIGHUP)
        assert "the last reload failed" in await reloaded(manager)
        assert sentence in service.log
        assert "<3>daemon.service.reloader: reload: the old settings stay in force" in service.log
        async with client(service.url) as mine:
            await mine.play(speech())
            await mine.until("final")
        service.configure(server={"max_streams": 3})
        assert "failed" not in await reloaded(manager)
        assert "reloaded: server.max_streams" in service.log


async def test_a_hangup_while_loading_waits(tmp_path: Path, tokenizer_file: Path, manager: Manager) -> None:
    (tmp_path / "wedged").touch()
    with daemon(tmp_path, tokenizer_file, manager) as service:
        await manager.until("STATUS=loading")
        service.configure(server={"max_streams": 3})
        (tmp_path / "wedged").unlink()
        await manager.until("READY=1")
        await reloaded(manager)
        assert "reloaded: server.max_streams" in service.log


# --- a port that is handed over --------------------------------------------------------------------------------------


def socket_activate(*addresses: str, names: tuple[str, ...]) -> tuple[str, ...]:
    program = shutil.which("systemd-socket-activate")
    if program is None:
        pytest.skip("systemd-socket-activate is not installed: apt-get install systemd")
    listen = [word for address in addresses for word in ("-l", address)]
    return (program, *listen, *[word for name in names for word in ("-E", name)])


async def test_a_port_that_systemd_holds(tmp_path: Path, tokenizer_file: Path, manager: Manager) -> None:
    ports = [free_port(), free_port()]
    path = str(tmp_path / "whisperd.sock")
    wrapper = socket_activate(
        *[f"127.0.0.1:{port}" for port in ports], path,
        names=("PYTHONPATH", "NOTIFY_SOCKET", "JOURNAL_STREAM", "OMP_NUM_THREADS"),
    )  # fmt: skip
    with daemon(tmp_path, tokenizer_file, manager, wrapper=wrapper) as service:
        await wait_until(lambda: path in service.log)
        # The first connection starts the service, and is served; so is every other place.
        for port in ports:
            async with client(f"ws://127.0.0.1:{port}") as mine:
                await mine.say(type="start")
                await mine.until("ready")
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), PATIENCE)).endswith(b"alive\n")
        writer.close()
        assert "using the socket of the service manager" in service.log
        service.popen.terminate()
        assert await service.ended() == 0


async def test_a_descriptor_that_does_not_listen(tmp_path: Path, tokenizer_file: Path, manager: Manager) -> None:
    # As with Accept=yes: the connection is handed over, not the port. The shell gives its own number, which exec keeps.
    wrapper = ("sh", "-c", 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3</dev/null', "sh")
    with daemon(tmp_path, tokenizer_file, manager, wrapper=wrapper) as service:
        assert await service.ended() == 1
        assert "cannot listen on the socket that the service manager handed over" in service.log
        assert "Traceback" not in service.log
