"""The listening port: pages, TLS, slow readers, dead peers."""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import SECOND, client, free_port, scripted, service, speech, wait_until
from harness import certificate as make_certificate

from daemon.common.errors import ServiceError
from daemon.core.stream import Stream
from daemon.endpoints import websocket
from daemon.engines.life import Engine
from daemon.service.app import Service
from daemon.settings.environment import ServiceEnvironment
from daemon.settings.schema import Settings
from streaming.events import Audio, Inbound
from streaming.job import Job


def fetch(url: str, path: str, method: str = "GET") -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection(url.removeprefix("ws://"), timeout=30)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode(), dict(response.getheaders())
    finally:
        connection.close()


async def test_the_pages(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url) as mine:
        await mine.play(speech())
        await mine.say(type="stop")
        await mine.rest()

        def page(path: str, method: str = "GET") -> Any:
            return asyncio.to_thread(fetch, daemon.server.url, path, method)

        assert (await page("/healthz"))[:2] == (200, "alive\n")
        assert (await page("/readyz"))[:2] == (200, "ready\n")
        status, text, headers = await page("/metrics?anything")
        assert status == 200
        assert headers["Content-Type"].startswith("text/plain; version=")
        assert 'whisperd_finals_total{model="student"} 1.0' in text.splitlines()
        heard = next(line for line in text.splitlines() if line.startswith("whisperd_audio_seconds_total"))
        assert float(heard.split()[1]) == pytest.approx(len(speech()) / 32000)
        status, text, _ = await page("/nothing")
        assert (status, "/v1/stream" in text) == (404, True)
        assert (await page("/v1/stream"))[0] == 426
        status, _, headers = await page("/healthz", "POST")
        assert (status, headers["Allow"]) == (405, "GET, HEAD")


async def test_not_ready_before_it_is(tokenizer_file: Path) -> None:
    gate = threading.Event()
    load = scripted(tokenizer_file)

    def slowly(settings: Settings) -> Any:
        assert gate.wait(60)
        return load(settings)

    daemon = Service(Settings.model_validate({"server": {"port": 0}}), ServiceEnvironment(), slowly)
    task = asyncio.create_task(daemon.run())
    await daemon.server.listening.wait()
    assert (await asyncio.to_thread(fetch, daemon.server.url, "/healthz"))[0] == 200
    assert (await asyncio.to_thread(fetch, daemon.server.url, "/readyz"))[:2] == (503, "not ready: warming up\n")
    gate.set()
    await daemon.wait_ready()
    assert (await asyncio.to_thread(fetch, daemon.server.url, "/readyz"))[0] == 200
    daemon.stop()
    await task


async def test_a_service_that_is_stopped_while_it_loads_just_ends(tokenizer_file: Path) -> None:
    gate = threading.Event()

    def never(settings: Settings) -> Any:
        gate.wait(60)
        raise RuntimeError("nobody waits for this any more")

    daemon = Service(Settings.model_validate({"server": {"port": 0}}), ServiceEnvironment(), never)
    task = asyncio.create_task(daemon.run())
    await daemon.server.listening.wait()
    async with client(daemon.server.url) as mine:
        await mine.play(speech())
        daemon.stop()
        assert await mine.rest() == 1001
    await task
    assert mine.events == []
    gate.set()


async def test_a_model_that_cannot_be_loaded_ends_it_with_a_sentence() -> None:
    def fail(settings: Settings) -> Any:
        raise ServiceError("there is no directory 'x'")

    with pytest.raises(ServiceError, match="there is no directory 'x'"):
        async with service(fail):
            pass


async def test_segments_longer_than_the_models_can_hear_are_refused(tokenizer_file: Path) -> None:
    def load(settings: Settings) -> Any:
        engine = scripted(tokenizer_file)(settings)
        engine.contexts = (10.0,)  # type: ignore[misc] # a plain attribute of the fake
        return engine

    with pytest.raises(ServiceError, match=r"segment\.longest is 15 s, but the models hear at most 10 s"):
        async with service(load):
            pass


async def test_an_address_that_is_taken(tokenizer_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with service(scripted(tokenizer_file), {"server": {"port": port}}):
                pass


async def test_a_slow_subscriber_is_disconnected_with_a_code_and_the_others_go_on(tokenizer_file: Path) -> None:
    # Long texts, so that what the operating system buffers is soon full.
    load = scripted(tokenizer_file, script=" ".join(f"word{number}" for number in range(200)), pace=0.01)
    sections = {"subscribers": {"queue": 8, "replay": 4, "send_timeout": 0.2}}
    async with service(load, sections) as daemon:
        url = daemon.server.url
        small = socket.socket()
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        small.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        async with (
            client(url, "/v1/events", sock=small, max_queue=1, ping_interval=None) as slow,
            client(url, "/v1/events", max_queue=None) as quick,
            client(url, "/v1/stream?source=kitchen", max_queue=None) as mine,
        ):
            await mine.say(type="start", source="kitchen", partials=False, words=True)
            for connection in daemon.server._listeners[0].connections:
                # Or the operating system alone takes in megabytes before anybody notices.
                connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            finals = 0
            while "whisperd_subscribers_dropped_total 1.0" not in daemon.pipeline.metrics.text().decode():
                await mine.play(speech("on"))
                await mine.say(type="flush", id="x")
                await quick.until("final")
                await mine.until("flushed")
                finals += 1
            # Nobody else noticed.
            assert len(mine.of("final")) == len(quick.of("final")) == finals
            # It begins to read in time: so it learns why.
            assert await slow.rest() == 1013
            assert slow.ws.close_reason == "too slow: reconnect with ?since=SEQ"
            assert slow.of("final") == quick.of("final")[: len(slow.of("final"))]
            assert len(slow.of("final")) < finals
            await mine.play(speech())
            await quick.until("final")


async def test_dead_peers_are_noticed_by_the_kernel(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url) as mine:
        await mine.say(type="start")
        await mine.next()
        (listener,) = daemon.server._listeners
        (connection,) = listener.connections
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert 0 < sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < 60
        assert 0 < sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) < 60_000


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return make_certificate(tmp_path)[0]


async def test_tls(tokenizer_file: Path, certificate: Path) -> None:
    key = certificate.with_name("key.pem")
    sections = {"server": {"certificate": str(certificate), "key": str(key)}}
    async with service(scripted(tokenizer_file), sections) as daemon:
        assert daemon.server.url.startswith("wss://")
        trust = ssl.create_default_context(cafile=str(certificate))
        async with client(daemon.server.url, ssl=trust) as mine:
            await mine.play(speech())
            await mine.say(type="stop")
            assert await mine.rest() == 1000
            assert len(mine.of("final")) == 1


async def test_a_certificate_that_was_renewed(tokenizer_file: Path, certificate: Path) -> None:
    key = certificate.with_name("key.pem")
    sections = {"server": {"certificate": str(certificate), "key": str(key)}}
    async with service(scripted(tokenizer_file), sections) as daemon:
        host, port = daemon.server.url.removeprefix("wss://").split(":")

        async def is_shown() -> bool:
            shown = await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))
            return shown.split() == (await asyncio.to_thread(certificate.read_text)).split()

        assert await is_shown()
        await asyncio.to_thread(make_certificate, certificate.parent)
        assert not await is_shown()
        daemon.server.reload(daemon.settings.server)
        assert await is_shown()
        # A key that is not this certificate's: the old pair goes on.
        key.rename(key.with_name("other.pem"))
        with pytest.raises(OSError, match="cannot be used"):
            daemon.server.reload(daemon.settings.server)
        assert await is_shown()


async def test_a_certificate_that_cannot_be_read(tokenizer_file: Path, tmp_path: Path) -> None:
    sections = {"server": {"certificate": str(tmp_path / "none.pem"), "key": str(tmp_path / "none.key")}}
    with pytest.raises(ServiceError, match=r"the certificate .*none\.pem and key .* cannot be used: No such file"):
        async with service(scripted(tokenizer_file), sections):
            pass


async def test_ipv6(tokenizer_file: Path) -> None:
    try:
        socket.create_server(("::1", free_port()), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    sections = {"server": {"host": "::1"}}
    async with service(scripted(tokenizer_file), sections) as daemon, client(daemon.server.url) as mine:
        await mine.play(SECOND)
        await mine.say(type="stop")
        assert await mine.rest() == 1000


async def test_an_engine_that_hangs_is_noticed(tokenizer_file: Path) -> None:
    gate = threading.Event()

    def hang(jobs: Sequence[Job]) -> None:
        if any(job.audio.size > 16000 for job in jobs):
            assert gate.wait(60)

    sections = {"health": {"stall": 0.05, "canary": 1000.0}}
    async with service(scripted(tokenizer_file, before=hang), sections) as daemon, client(daemon.server.url) as mine:
        await mine.play(speech())
        await mine.until("speech_stopped")
        await wait_until(daemon.health.unready)
        assert (await asyncio.to_thread(fetch, daemon.server.url, "/readyz"))[0] == 503
        assert not daemon.health.getting_on
        gate.set()
        await mine.until("final")
        assert daemon.health.getting_on


async def test_an_engine_on_each_device_serves_all_streams(tokenizer_file: Path) -> None:
    gate, entered, first = threading.Event(), asyncio.Event(), threading.Lock()
    loop = asyncio.get_running_loop()
    asked: list[str] = []

    def hang(jobs: Sequence[Job]) -> None:
        """Whichever engine has the first utterance keeps it."""
        if any(job.audio.size > 16000 for job in jobs) and first.acquire(blocking=False):
            loop.call_soon_threadsafe(entered.set)
            assert gate.wait(60)

    def load(settings: Settings) -> Engine:
        asked.append(settings.models.device)
        return scripted(tokenizer_file, before=hang)(settings)

    sections = {"models": {"device": "cpu,cpu"}, "partials": {"first": 30.0}}
    async with service(load, sections) as daemon, client(daemon.server.url) as held:
        assert asked == ["cpu", "cpu"]
        await held.play(speech())
        await asyncio.wait_for(entered.wait(), 30)
        assert len(await _finals(daemon.server.url, 3)) == 3
        assert not held.of("final")
        gate.set()
        await held.until("final")
        await held.say(type="stop")
        assert await held.rest() == 1000


async def _finals(url: str, count: int) -> list[str]:
    texts = []
    for _ in range(count):
        async with client(url) as mine:
            await mine.play(speech())
            texts.append((await mine.until("final"))["text"])
            await mine.say(type="stop")
            await mine.rest()
    return texts


async def test_the_canary_sings_when_all_is_silent(tokenizer_file: Path) -> None:
    sung = asyncio.Event()
    loop = asyncio.get_running_loop()
    batches: list[int] = []

    def count(jobs: Sequence[Job]) -> None:
        batches.append(len(jobs))
        if len(batches) == 3:
            loop.call_soon_threadsafe(sung.set)

    async with service(scripted(tokenizer_file, before=count), {"health": {"canary": 0.02}}) as daemon:
        await asyncio.wait_for(sung.wait(), 30)
        assert daemon.health.unready() is None
        assert daemon.pipeline.scheduler.decoded_at is not None


async def test_a_first_decode_that_fails_is_no_start(tokenizer_file: Path) -> None:
    def fail(jobs: Sequence[Job]) -> None:
        raise RuntimeError("no such kernel")

    with pytest.raises(ServiceError, match="the first decode failed: RuntimeError: no such kernel"):
        async with service(scripted(tokenizer_file, before=fail)):
            pass


async def test_a_canary_that_dies_is_told(tokenizer_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    failing = False

    def fail(jobs: Sequence[Job]) -> None:
        if failing:
            raise RuntimeError("no GPU any more")

    sections = {"health": {"canary": 0.02, "stall": 1.0}}
    async with service(scripted(tokenizer_file, before=fail), sections) as daemon:
        failing = True
        await wait_until(lambda: not daemon.health.getting_on)
        assert "nothing has been decoded for" in str(daemon.health.unready())
    assert "the canary decode failed: RuntimeError: no GPU any more" in caplog.text


# --- many streams ----------------------------------------------------------------------------------------------------


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Inbound]:
    """What streams are told."""
    told: list[Inbound] = []
    receive = Stream.receive

    async def noting(self: Stream, message: Inbound) -> None:
        told.append(message)
        await receive(self, message)

    monkeypatch.setattr(Stream, "receive", noting)
    return told


async def test_among_many_streams_frames_that_are_here_at_once_are_one_piece(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch, heard: list[Inbound]
) -> None:
    monkeypatch.setattr(websocket, "_LULL", 1.0)  # as if there were many
    async with service(scripted(tokenizer_file)) as daemon, client(daemon.server.url) as mine:
        await mine.say(type="start")
        await mine.until("ready")
        await mine.play(speech(), frame=640)
        await mine.say(type="flush", id="a")
        await mine.play(SECOND, frame=640)
        await mine.say(type="stop")
        assert await mine.rest() == 1000
    kinds = [type(message).__name__ for message in heard]
    assert kinds.count("Flush") == 1
    flush = kinds.index("Flush")
    before, after = heard[:flush], heard[flush + 1 :]
    assert b"".join(each.data for each in before if isinstance(each, Audio)) == speech()
    assert b"".join(each.data for each in after if isinstance(each, Audio)) == SECOND
    assert kinds.count("Audio") < len(speech() + SECOND) // 640
    assert [event["type"] for event in mine.events if event["type"] in ("final", "flushed")] == ["final", "flushed"]


async def test_what_was_said_before_a_fault_is_heard(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch, heard: list[Inbound]
) -> None:
    monkeypatch.setattr(websocket, "_LULL", 1.0)
    sections = {"server": {"max_message": 65536}}
    async with service(scripted(tokenizer_file), sections) as daemon, client(daemon.server.url) as mine:
        await mine.say(type="start")
        await mine.until("ready")
        await mine.play(speech(), frame=640)
        await mine.ws.send(bytes(70_000))
        assert await mine.rest() == 1009
        assert len(mine.of("final")) == 1
    assert b"".join(each.data for each in heard if isinstance(each, Audio)) == speech()
