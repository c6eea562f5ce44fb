"""Brokers that freeze, die and come back, and daemons that do: every final arrives, and is told apart by its id.

A subscriber with a session that the broker keeps counts what arrives, so that nothing depends on who is back first.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from brokers import connected, counters, short_pauses
from harness import (
    PATIENCE,
    ROOT,
    Broker,
    Listener,
    broker,
    client,
    listener,
    publish,
    scripted,
    service,
    speech,
    wait_until,
)

from daemon.core import hub
from daemon.mqtt import spool
from daemon.settings.environment import ServiceEnvironment

__all__ = ["short_pauses"]  # a fixture


@pytest.fixture
def lasting(tmp_path: Path) -> Iterator[Broker]:
    """A broker, not started, that keeps sessions: through its own death, too."""
    folder = tmp_path / "broker"
    folder.mkdir()
    with broker(folder, started=False) as made:
        made.keep_sessions()
        yield made


def recorder(made: Broker) -> Any:
    return listener(made.port, ["whisperd/#"], "-i", "recorder", "-c")


def ids(says: Listener) -> list[str]:
    """Of all finals that arrived, in order."""
    return [json.loads(m.payload)["id"] for m in says.messages if m.topic.endswith("/final")]


def once(found: list[str]) -> list[str]:
    return list(dict.fromkeys(found))


async def say(url: str, source: str = "kitchen") -> list[str]:
    """A sentence; the ids of its finals."""
    async with client(url, f"/v1/stream?source={source}") as mine:
        await mine.say(type="start", partials=False)
        await mine.play(speech())
        await mine.say(type="stop")
        assert await mine.rest() == 1000
        return [event["id"] for event in mine.of("final")]


async def arrived(says: Listener, sent: list[str]) -> list[str]:
    """The ids of all finals that arrived, as soon as all of `sent` have."""
    while not set(sent) <= set(ids(says)):
        await says.next()
    return ids(says)


# --- brokers ---------------------------------------------------------------------------------------------------------


async def test_a_broker_that_freezes_for_longer_than_the_keepalive(tokenizer_file: Path, lasting: Broker) -> None:
    lasting.start()
    section = {"mqtt": {"host": "127.0.0.1", "port": lasting.port, "keepalive": 2}}
    async with recorder(lasting) as says, service(scripted(tokenizer_file), section) as daemon:
        await wait_until(lambda: connected(daemon))
        sent = await say(daemon.server.url)
        await arrived(says, sent)
        lasting.signal(signal.SIGSTOP)
        try:
            for source in "abc":
                sent += await say(daemon.server.url, source)
            await wait_until(lambda: not connected(daemon))
        finally:
            lasting.signal(signal.SIGCONT)
        sent += await say(daemon.server.url, "d")
        found = await arrived(says, sent)
        await wait_until(lambda: "whisperd_mqtt_waiting_finals 0.0" in counters(daemon))
    # One was under way when the broker froze: it may have come twice, and is told apart by its id.
    assert once(found) == sent
    assert len(found) <= len(sent) + 1


async def test_a_broker_that_freezes_while_nobody_speaks(tokenizer_file: Path, lasting: Broker) -> None:
    lasting.start()
    section = {"mqtt": {"host": "127.0.0.1", "port": lasting.port, "keepalive": 2}}
    async with recorder(lasting) as says, service(scripted(tokenizer_file), section) as daemon:
        await wait_until(lambda: connected(daemon))
        lasting.signal(signal.SIGSTOP)
        try:
            await wait_until(lambda: not connected(daemon))
        finally:
            lasting.signal(signal.SIGCONT)
        sent = await say(daemon.server.url)
        assert await arrived(says, sent) == sent


async def test_a_broker_that_is_killed_again_and_again(
    tokenizer_file: Path, lasting: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    lasting.start()
    section = {"mqtt": {"host": "127.0.0.1", "port": lasting.port}}
    sent: list[str] = []
    async with recorder(lasting) as says, service(scripted(tokenizer_file), section) as daemon:
        for turn in range(3):
            await wait_until(lambda: connected(daemon))
            sent += await say(daemon.server.url, f"up{turn}")
            await arrived(says, sent)
            lasting.stop()  # kill -9
            await wait_until(lambda: not connected(daemon))
            sent += await say(daemon.server.url, f"down{turn}")
            await asyncio.to_thread(lasting.start)
        found = await arrived(says, sent)
    # The broker itself may repeat what it had on its way when it was killed; nothing is lost or out of order.
    assert once(found) == sent
    assert "Exception in callback" not in caplog.text


async def test_a_final_whose_acknowledgement_is_lost_comes_again_with_its_id(
    tokenizer_file: Path, lasting: Broker
) -> None:
    """Between the daemon and the broker stands a relay that swallows the first acknowledgement."""
    lasting.start()
    async with (
        relay(lasting.port) as port,
        recorder(lasting) as says,
        service(scripted(tokenizer_file), {"mqtt": {"host": "127.0.0.1", "port": port, "discovery": False}}) as daemon,
    ):
        sent = await say(daemon.server.url)
        await arrived(says, sent)
        await wait_until(lambda: "whisperd_mqtt_waiting_finals 0.0" in counters(daemon))
        sent += await say(daemon.server.url, "end")
        found = await arrived(says, sent)
    assert found == [sent[0], *sent]


@asynccontextmanager
async def relay(port: int) -> AsyncIterator[int]:
    """Passes on all bytes, but closes the first connection instead of passing on what follows the first final."""
    cut = False
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal cut
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        final_sent = False

        async def forth() -> None:
            nonlocal final_sent
            while data := await reader.read(65536):
                final_sent = final_sent or b'"type":"final"' in data
                there_writer.write(data)

        async def back() -> None:
            nonlocal cut
            while data := await there_reader.read(65536):
                if final_sent and not cut:
                    cut = True
                    return
                writer.write(data)

        both = [asyncio.create_task(forth()), asyncio.create_task(back())]
        tasks.update(both)
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        writer.transport.abort()
        there_writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- daemons ---------------------------------------------------------------------------------------------------------

DAEMON = """
import sys
import harness
from pathlib import Path
from daemon.service import app
from daemon.commands import cli

app.Service.__init__.__defaults__ = (harness.scripted(Path(sys.argv[1])),)
sys.exit(cli.main(["run", "-c", sys.argv[2]]))
"""
"""`whisperd run` with a scripted engine."""


@asynccontextmanager
async def running(tokenizer_file: Path, folder: Path, port: int) -> AsyncIterator[tuple[Any, str]]:
    """The process and its url, once it is ready."""
    config = folder / "whisperd.yaml"
    section = {"host": "127.0.0.1", "port": port, "keepalive": 2}
    config.write_text(json.dumps({"server": {"port": 0}, "mqtt": section}))
    # Read through another opening: the process shares this one's place in the file, and moves it as it writes.
    path = folder / "log"
    with open(path, "a") as log:  # noqa: ASYNC230 - a small file, in a test
        begin = path.stat().st_size
        popen = await asyncio.create_subprocess_exec(
            sys.executable, "-c", DAEMON, str(tokenizer_file), str(config), cwd=ROOT, stderr=log,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'daemon'}",
                 "STATE_DIRECTORY": str(folder / "state")},
        )  # fmt: skip
        try:

            def told() -> str:
                return path.read_bytes()[begin:].decode()

            await wait_until(lambda: "ready: " in told())
            yield popen, told().partition("listening on ")[2].split()[0]
        finally:
            if popen.returncode is None:
                popen.kill()
            await popen.wait()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_finals_that_wait_outlive_the_daemon(
    tokenizer_file: Path, tmp_path: Path, lasting: Broker, end: signal.Signals
) -> None:
    sent: list[str] = []
    for turn in range(2):  # a spool that was read is written again
        async with running(tokenizer_file, tmp_path, lasting.port) as (popen, url):
            for source in "ab":
                sent += await say(url, f"{source}{turn}")
            popen.send_signal(end)  # what the client was told is on disk already
            async with asyncio.timeout(PATIENCE):
                assert await popen.wait() == (0 if end == signal.SIGTERM else -end)
    lasting.start()
    async with recorder(lasting) as says, running(tokenizer_file, tmp_path, lasting.port) as (_, url):
        sent += await say(url, "live")
        found = await arrived(says, sent)
        assert found == sent
        await says.until("whisperd/live/text")
        await saved(tmp_path, [])
    assert [json.loads(m.payload)["source"] for m in says.messages if m.topic.endswith("/final")] == [
        "a0", "b0", "a1", "b1", "live",
    ]  # fmt: skip
    texts = [m.topic for m in says.messages if m.topic.endswith("/text")]
    assert texts == [f"whisperd/{source}/text" for source in ("a0", "b0", "a1", "b1", "live")]


def in_file(folder: Path) -> list[str]:
    """The ids in the spool of a daemon that runs and has the file for itself: read from a copy."""
    (path,) = (folder / "state").glob("mqtt-*.sqlite")
    with tempfile.TemporaryDirectory() as copies:
        for each in (path, path.with_name(path.name + "-wal")):
            if each.exists():
                shutil.copy(each, copies)
        file = sqlite3.connect(Path(copies) / path.name)
        try:
            return [row[0] for row in file.execute("SELECT id FROM finals ORDER BY number")]
        except sqlite3.DatabaseError:
            return ["torn"]  # it was written while it was copied
        finally:
            file.close()


async def saved(folder: Path, finals: list[str]) -> None:
    await wait_until(lambda: in_file(folder) == finals)


async def test_what_a_client_was_told_is_on_disk_already(
    tokenizer_file: Path, tmp_path: Path, lasting: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a kill at that moment would leave somebody who knows what MQTT never hears."""
    happened: list[str] = []
    apply = spool._apply

    def slow_apply(file: sqlite3.Connection, changes: Sequence[spool.Change]) -> None:
        time.sleep(0.2)  # enough for a client that does not wait to be told first
        apply(file, changes)
        happened.extend(str(values[0]) for statement, values in changes if statement.startswith("INSERT OR IGNORE"))

    monkeypatch.setattr(spool, "_apply", slow_apply)
    monkeypatch.setattr(hub, "_KEEPING", PATIENCE)
    section = {"mqtt": {"host": "127.0.0.1", "port": lasting.port}, "wyoming": {"host": "127.0.0.1", "port": 0}}
    async with service(scripted(tokenizer_file), section, ServiceEnvironment(state=tmp_path / "state")) as daemon:
        async with client(daemon.server.url, "/v1/events") as other, client(daemon.server.url) as mine:
            await mine.say(type="start")
            await mine.play(speech())
            await mine.say(type="stop")
            final = await mine.until("final")
            assert happened == [final["id"]]
            assert (await other.until("final"))["id"] == final["id"]
        assert "whisperd_mqtt_waiting_finals 1.0" in counters(daemon)


async def test_a_disk_that_hangs_silences_nobody(
    tokenizer_file: Path, tmp_path: Path, lasting: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    section = {"mqtt": {"host": "127.0.0.1", "port": lasting.port}}
    async with service(scripted(tokenizer_file), section, ServiceEnvironment(state=tmp_path / "state")) as daemon:
        apply = spool._apply

        def hanging_apply(file: sqlite3.Connection, changes: Sequence[spool.Change]) -> None:
            answers.wait(PATIENCE)
            apply(file, changes)

        monkeypatch.setattr(spool, "_apply", hanging_apply)
        try:
            sent = await say(daemon.server.url, "a") + await say(daemon.server.url, "b")
            assert not answers.is_set()
        finally:
            answers.set()
        await saved(tmp_path, sent)


async def test_a_broker_that_is_frozen_when_the_daemon_ends(
    tokenizer_file: Path, tmp_path: Path, lasting: Broker
) -> None:
    lasting.start()
    async with recorder(lasting) as says:
        async with running(tokenizer_file, tmp_path, lasting.port) as (popen, url):
            await says.until("whisperd/status", "online")
            lasting.signal(signal.SIGSTOP)
            try:
                sent = await say(url, "a") + await say(url, "b")
                popen.terminate()
                async with asyncio.timeout(PATIENCE):
                    assert await popen.wait() == 0
                assert in_file(tmp_path) == sent
            finally:
                lasting.signal(signal.SIGCONT)
        async with running(tokenizer_file, tmp_path, lasting.port) as (_, url):
            sent += await say(url, "c")
            found = await arrived(says, sent)
    assert once(found) == sent
    assert len(found) <= len(sent) + 1  # the first was under way


async def test_a_broker_and_a_daemon_that_are_stopped_at_once(
    tokenizer_file: Path, tmp_path: Path, lasting: Broker
) -> None:
    for _ in range(3):
        lasting.start()
        async with recorder(lasting) as says, running(tokenizer_file, tmp_path, lasting.port) as (popen, url):
            await says.until("whisperd/status", "online")
            await arrived(says, await say(url))
            lasting.stop()
            popen.terminate()
            async with asyncio.timeout(PATIENCE):
                assert await popen.wait() == 0
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert "never retrieved" not in log


async def test_a_daemon_that_is_killed_while_the_broker_takes_what_waited(
    tokenizer_file: Path, tmp_path: Path, lasting: Broker
) -> None:
    sent: list[str] = []
    async with running(tokenizer_file, tmp_path, lasting.port) as (popen, url):
        for source in range(6):
            sent += await say(url, str(source))
        await saved(tmp_path, sent)
        lasting.start()
        async with recorder(lasting) as says:
            while not ids(says):
                await says.next()
            popen.kill()
            await popen.wait()
            async with running(tokenizer_file, tmp_path, lasting.port):
                found = await arrived(says, sent)
    assert once(found) == sent
    assert len(found) <= len(sent) + 1  # the one that was under way


async def test_a_switch_that_was_turned_off_stays_off_after_a_restart(
    tokenizer_file: Path, tmp_path: Path, lasting: Broker
) -> None:
    lasting.start()
    section = {"mqtt": {"host": "127.0.0.1", "port": lasting.port}}
    environment = ServiceEnvironment(state=tmp_path / "state")
    async with listener(lasting.port) as says:
        async with service(scripted(tokenizer_file), section, environment):
            await says.until("whisperd/status", "online")
            await publish(lasting.port, "whisperd/kitchen/set", "OFF")
            await says.until("whisperd/kitchen/switch", "OFF")
        await says.until("whisperd/status", "offline")
        async with service(scripted(tokenizer_file), section, environment) as daemon:
            await says.until("whisperd/kitchen/switch", "OFF")
            assert await say(daemon.server.url) == []
            await publish(lasting.port, "whisperd/kitchen/set", "ON")
            await says.until("whisperd/kitchen/switch", "ON")
            assert len(await say(daemon.server.url)) == 1


async def test_what_waits_is_said_at_the_end(
    tokenizer_file: Path, tmp_path: Path, lasting: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    section = {"mqtt": {"host": "127.0.0.1", "port": lasting.port}}
    caplog.set_level("INFO")
    async with service(scripted(tokenizer_file), section, ServiceEnvironment(state=tmp_path / "state")) as daemon:
        await say(daemon.server.url)
    assert "1 finals wait on disk for the next start" in caplog.text
