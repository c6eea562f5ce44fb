"""Two daemons behind a real HAProxy, with the configuration that is shipped: who gets where, and what a death costs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import PATIENCE, ROOT, Client, Process, client, free_port, process, speech, wait_until
from resuming import RefusedError, Speaker
from scrape import scrape
from test_websocket import fetch

CONFIGURATION = ROOT / "config" / "haproxy.cfg"
RATE = 16000
START = {"sample_rate": RATE, "resume": 30, "partials": False}
SPAN = tuple[float, float]
"""Where an utterance is in what was to be said, in seconds."""

SCRIPTED = """
import sys
from pathlib import Path
from tokenizers import Tokenizer
from daemon.service import app
from daemon.commands import cli
from streaming.fake import ScriptedEngine

file = Path(sys.argv[1])
eot = Tokenizer.from_file(str(file)).get_vocab()["<|endoftext|>"]
app.Service.__init__.__defaults__ = (lambda _: ScriptedEngine(file, eot),)
sys.exit(cli.main(sys.argv[2:]))
"""
"""`whisperd` with an engine that needs no model. The harness has one too, but takes seconds to import."""


@dataclass
class Balanced:
    """url: the balancer's."""

    url: str
    daemons: Sequence[Process]

    def streams(self) -> list[int]:
        """How many each daemon has."""
        return [int(scrape(each.url)("streams_open")) for each in self.daemons]

    def waiting(self) -> list[int]:
        """How many streams of each daemon wait for their client."""
        return [int(scrape(each.url)("streams_waiting")) for each in self.daemons]

    def with_source(self, source: str) -> Process:
        """The one daemon that has heard it."""
        (found,) = [each for each in self.daemons if each.popen.poll() is None and source in sources(each)]
        return found


def sources(daemon: Process) -> set[str]:
    return {each["source"] for each in json.loads(fetch(daemon.url, "/v1/sources")[1])["sources"]}


@contextmanager
def haproxy(folder: Path, daemons: Sequence[str]) -> Iterator[str]:
    """The shipped configuration with other addresses; where it listens."""
    program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None, "apt-get install haproxy"
    port = free_port()
    text = CONFIGURATION.read_text()
    places = {"bind :8765": f"bind 127.0.0.1:{port}", "127.0.0.1:10765": f"127.0.0.1:{free_port()}"}
    places |= {f"192.0.2.1{n}:8765": url.removeprefix("ws://") for n, url in enumerate(daemons, 1)}
    for written, here in places.items():
        assert text.count(written) == 1, written
        text = text.replace(written, here)
    config = folder / "haproxy.cfg"
    config.write_text(text)
    with open(folder / "haproxy.log", "w") as log:
        popen = subprocess.Popen([program, "-db", "-f", str(config)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert popen.poll() is None, (folder / "haproxy.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.01)  # a port has no event to wait for
        yield f"ws://127.0.0.1:{port}"
    finally:
        popen.kill()
        popen.wait()


@contextmanager
def two_daemons(folder: Path, tokenizer_file: Path) -> Iterator[Balanced]:
    def start(name: str) -> Process:
        (folder / name).mkdir()
        sections = {"engine": {"backend": "thread"}}
        return stack.enter_context(
            process(folder / name, sections, ("-c", SCRIPTED, str(tokenizer_file)), PYTHONPATH=str(ROOT))
        )

    with ExitStack() as stack, ThreadPoolExecutor() as threads:
        daemons = list(threads.map(start, "ab"))
        yield Balanced(stack.enter_context(haproxy(folder, [each.url for each in daemons])), daemons)


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Iterator[Balanced]:
    with two_daemons(tmp_path_factory.mktemp("balanced"), tokenizer_file) as made:
        yield made


@pytest.fixture
def mortal(tmp_path: Path, tokenizer_file: Path) -> Iterator[Balanced]:
    """For tests that end a daemon."""
    with two_daemons(tmp_path, tokenizer_file) as made:
        yield made


def path(source: str) -> str:
    return f"/v1/stream?source={source}"


def got(mine: Client) -> list[dict[str, Any]]:
    return [event for event in mine.events if event["type"] != "ready"]


# --- who gets where --------------------------------------------------------------------------------------------------


async def test_streams_are_spread_and_each_client_finds_its_daemon_again(balanced: Balanced) -> None:
    async with AsyncExitStack() as stack:
        streams: dict[str, Client] = {}
        for name in ("kitchen", "hall", "Wohnzimmer%20oben", "desk"):
            streams[name] = await stack.enter_async_context(client(balanced.url, path(name)))
            await streams[name].say(type="start", **START)
            await streams[name].until("ready")
        assert balanced.streams() == [2, 2]

        # All drop at once. In whatever order they come back, and however many the others have then.
        for each in streams.values():
            await each.play(speech()[:32000])
            each.ws.transport.abort()
        await wait_until(lambda: balanced.waiting() == [2, 2])
        for name, before in reversed(streams.items()):
            ready = before.events[0]
            async with client(balanced.url, path(name.replace("%20", "+"))) as mine:
                await mine.say(type="resume", token=ready["token"], events=len(got(before)))
                again = await mine.next()
                assert (again["type"], again["session"]) == ("ready", ready["session"])
                await mine.play(speech()[2 * again["samples"] :])
                await mine.say(type="stop")
                assert await mine.rest() == 1000
            (final,) = mine.of("final")
            # Who listens to a source is led to where it is heard, and its missed finals are there.
            async with client(balanced.url, f"/v1/events?source={name}&since=0") as other:
                assert await other.next() == final


async def test_without_a_source_in_the_address_one_client_stays_at_one_daemon(balanced: Balanced) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(client(balanced.url, "/v1/stream"))
        await first.say(type="start", source="kitchen", **START)
        await first.until("ready")
        for number in range(3):
            async with client(balanced.url, "/v1/stream") as mine:
                await mine.say(type="start", source=f"other{number}", **START)
                await mine.until("ready")
                await wait_until(lambda: sorted(balanced.streams()) == [0, 2])
                await mine.say(type="stop")
                assert await mine.rest() == 1000
        # Other protocols' clients have nothing to come back to: they go where there is room.
        async with client(balanced.url, "/v1/listen?encoding=linear16&sample_rate=16000"):
            await wait_until(lambda: balanced.streams() == [1, 1])


# --- what a death costs ----------------------------------------------------------------------------------------------


def utterances() -> tuple[bytes, float]:
    """Three of them with silence between; and a place in the middle of the second, in seconds."""
    one, rest = speech("on"), speech()
    return one + rest + one, (len(one) + len(rest) / 2) / 2 / RATE


def spans(finals: Sequence[dict[str, Any]], begin: float = 0.0) -> list[SPAN]:
    return [(begin + final["start"], begin + final["end"]) for final in finals]


def overlap(one: SPAN, other: SPAN) -> bool:
    return one[0] < other[1] and other[0] < one[1]


async def undisturbed(mortal: Balanced) -> list[SPAN]:
    audio, _ = utterances()
    speaker = Speaker(audio, {"source": "whole", **START})
    await speaker.talk(mortal.url + path("whole"))
    assert len(speaker.of("final")) == 3
    return spans(speaker.of("final"))


async def begin_to_speak(mine: Client, source: str, until: float) -> None:
    """The first utterance has its final, and the second one is open."""
    await mine.say(type="start", source=source, **START)
    await mine.play(utterances()[0][: round(until * RATE) * 2])
    while len(mine.of("speech_started")) < 2 or not mine.of("final"):
        await mine.next()


async def go_on(url: str, mine: Client, before: list[SPAN]) -> tuple[list[SPAN], list[dict[str, Any]]]:
    """As docs/many-daemons.md says: resume; where that is refused, start again behind the last final.

    Where the utterances are of which the client has a final, and the refusals.
    """
    audio, _ = utterances()
    speaker = Speaker(audio, START, ready=mine.of("ready"), events=got(mine))
    refusals: list[dict[str, Any]] = []
    begin, told = 0.0, before
    while True:
        try:
            await speaker.talk(url)
            return told + spans(speaker.of("final"), begin), refusals
        except RefusedError as refused:
            refusals.append(refused.event)
            begin = max(end for _, end in told)
            speaker = Speaker(audio[round(begin * RATE) * 2 :], START)


async def test_a_daemon_that_is_killed_costs_what_has_no_final_and_that_can_be_sent_again(mortal: Balanced) -> None:
    whole = await undisturbed(mortal)
    _, middle = utterances()
    url = mortal.url + path("kitchen")
    async with client(mortal.url, path("kitchen")) as mine:
        await begin_to_speak(mine, "kitchen", middle)
        first = mortal.with_source("kitchen")
        first.popen.kill()
        await mine.rest()
    finals, refusals = await go_on(url, mine, spans(mine.of("final")))
    second = mortal.with_source("kitchen")
    assert second is not first
    (refusal,) = refusals
    assert (refusal["code"], refusal["fatal"]) == ("cannot_resume", True)
    assert "from another daemon" in refusal["message"]
    assert "no final yet" in refusal["message"]
    # Each utterance has one final, and each final is of one utterance.
    assert [[overlap(one, other) for other in whole] for one in finals] == [
        [number == at for at in range(3)] for number in range(3)
    ]
    # The one that died had told its only subscriber just the first.
    async with client(second.url, "/v1/events?source=kitchen&since=0") as other:
        assert len([await other.until("final") for _ in range(2)]) == 2


async def test_a_daemon_that_is_stopped_costs_nothing(mortal: Balanced) -> None:
    _, middle = utterances()
    audio, _ = utterances()
    async with client(mortal.url, path("kitchen")) as mine:
        await begin_to_speak(mine, "kitchen", middle)
        mortal.with_source("kitchen").popen.send_signal(signal.SIGTERM)
        assert await mine.rest() == 1001
    heard = mine.of("stopped")[0]["audio_seconds"]
    assert heard == pytest.approx(middle, abs=1e-4)  # all that was sent
    speaker = Speaker(audio[round(heard * RATE) * 2 :], START)
    await speaker.talk(mortal.url + path("kitchen"))
    # The utterance that was open then is in two pieces, and no piece is missing.
    assert [each["utterance"] for each in mine.of("final")] == [1, 2]
    assert len(speaker.of("final")) == 2
