"""The service as it is shipped: its own models, nothing set, from a voice to text on every edge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from harness import DATA, ROOT, broker, client, listener, process, speech

SAID = "turn on the kitchen light"


def plain(text: str) -> str:
    return text.lower().strip(" .,!?")


async def test_a_sentence_on_every_edge(tmp_path: Path) -> None:
    with broker(tmp_path) as mosquitto:
        async with listener(mosquitto.port) as broker_says:
            sections = {"mqtt": {"host": "127.0.0.1", "port": mosquitto.port}}
            with process(tmp_path, sections) as daemon:
                async with (
                    client(daemon.url, "/v1/events?source=kitchen") as other,
                    client(daemon.url, "/v1/stream?source=kitchen") as mine,
                ):
                    await mine.say(type="start", words=True)
                    await mine.play(speech(), frame=640)
                    await mine.say(type="stop")
                    assert await mine.rest() == 1000
                    final = await other.until("final")
                    await broker_says.until("whisperd/kitchen/text")
                assert daemon.terminate() == 0
    assert (mine.events[0]["student"], mine.events[0]["teacher"]) == ("home-en", "home-en-teacher")
    assert plain(final["text"]) == SAID
    assert [plain(word["text"]) for word in final["words"]] == SAID.split()
    assert mine.of("final") == [final]
    assert [json.loads(payload) for payload in broker_says.payloads("whisperd/kitchen/final")] == [final]
    assert "Traceback" not in daemon.log


def test_files_through_the_same_path() -> None:
    files = [str(DATA / f"{name}.flac") for name in ("on", "stop", "turn_on_the_kitchen_light")]
    done = subprocess.run(
        [sys.executable, "-m", "daemon.cli", "transcribe", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [plain(line) for line in done.stdout.splitlines()] == ["on", "stop", SAID]
