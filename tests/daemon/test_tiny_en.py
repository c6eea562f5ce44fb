"""The service as it is shipped: its own models, from a person's voice to text on every edge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from harness import ROOT, SAID, TEACHER, broker, client, listener, plain, process, sentence

from bench.player import DEMO, said_in


async def test_a_sentence_on_every_edge(tmp_path: Path) -> None:
    with broker(tmp_path) as mosquitto:
        async with listener(mosquitto.port) as broker_says:
            sections = TEACHER | {"mqtt": {"host": "127.0.0.1", "port": mosquitto.port}}
            with process(tmp_path, sections) as daemon:
                async with (
                    client(daemon.url, "/v1/events?source=kitchen") as other,
                    client(daemon.url, "/v1/stream?source=kitchen") as mine,
                ):
                    await mine.say(type="start", words=True)
                    await mine.play(sentence(), frame=640)
                    await mine.say(type="stop")
                    assert await mine.rest() == 1000
                    final = await other.until("final")
                    await broker_says.until("whisperd/kitchen/text")
                assert daemon.terminate() == 0
    assert (mine.events[0]["student"], mine.events[0]["teacher"]) == ("tiny-en", "tiny-en-teacher")
    assert final["model"] == "teacher"
    assert final["text"] == "We never had so many of them in here before."  # as Whisper writes, on every edge
    assert [plain(word["text"]) for word in final["words"]] == SAID.split()
    assert mine.of("final") == [final]
    assert [json.loads(payload) for payload in broker_says.payloads("whisperd/kitchen/final")] == [final]
    assert broker_says.payloads("whisperd/kitchen/text") == [final["text"]]
    assert "Traceback" not in daemon.log


def test_files_through_the_same_path() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "daemon.commands.cli", "transcribe", str(DEMO)],
        cwd=ROOT,
        env={**os.environ, "WHISPERD_ESCALATE__WHEN": "always"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [plain(line) for line in done.stdout.splitlines()] == [plain(text) for text in said_in(DEMO)]
