"""What the log of a real process holds, and what it never does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from harness import PATIENCE, ROOT, broker, client, listener, speech, wait_until
from test_mqtt_outages import DAEMON
from test_server import fetch
from websockets.exceptions import ConnectionClosed

from daemon import logs

TOKEN, LATER = "a-token/that%nobody?guesses", "another-token-after-a-reload"
WRONG_PLACES = [
    "/v1/stream?{}",
    "/v1/stream?source={}",
    "/v1/stream?{}=x",
    "/v1/events?since={}&source=a",
    "/v1/stream?token=wrong&source=x",
    "/{}",
    "/metrics?token={}&token={}",
]


async def use(url: str, token: str) -> str:
    """All that may go wrong with a token, and a sentence that goes right; what was heard."""
    for place in WRONG_PLACES:
        path = place.replace("{}", quote(token, safe=""))
        with contextlib.suppress(Exception):  # some are no websocket at all
            async with client(url, path) as mine:
                await mine.rest()
        await asyncio.to_thread(fetch, url, path)
    for frame in (f'"{token}"', token, f'{{"type": "{token}"}}', f'{{"type": "start", "{token}": 1}}'):
        with contextlib.suppress(ConnectionClosed):
            async with client(url, "/v1/stream", additional_headers={"Authorization": f"Bearer {token}"}) as mine:
                await mine.ws.send(frame)
                await mine.rest()
    async with client(url, f"/v1/stream?source=kitchen&token={quote(token, safe='')}") as mine:
        await mine.play(speech())
        final = await mine.until("final")
        await mine.say(type="stop")
        await mine.rest()
    return str(final["text"])


@pytest.mark.parametrize("transcripts", [False, True])
async def test_a_log_of_everything_holds_no_token_and_text_only_on_request(
    transcripts: bool, tmp_path: Path, tokenizer_file: Path
) -> None:
    file, config = tmp_path / "log", tmp_path / "whisperd.yaml"

    def settings(token: str) -> str:
        mqtt = {"host": "127.0.0.1", "port": mosquitto.port, "username": "me", "password": "the-brokers-secret"}
        log = {"level": "debug", "transcripts": transcripts}
        return json.dumps({"server": {"port": 0, "tokens": [token]}, "log": log, "mqtt": mqtt})

    with broker(tmp_path) as mosquitto, open(file, "w") as log:  # noqa: ASYNC230 - a small file, in a test
        config.write_text(settings(TOKEN))
        popen = await asyncio.create_subprocess_exec(
            sys.executable, "-c", DAEMON, str(tokenizer_file), str(config), cwd=ROOT, stderr=log,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'daemon'}", "STATE_DIRECTORY": str(tmp_path)},
        )  # fmt: skip
        try:
            await wait_until(lambda: "ready: " in file.read_text())
            url = file.read_text().partition("listening on ")[2].split()[0]
            async with listener(mosquitto.port) as broker_says:
                heard = [await use(url, TOKEN)]
                await broker_says.until("whisperd/kitchen/final")
                config.write_text(settings(LATER))
                popen.send_signal(signal.SIGHUP)
                await wait_until(lambda: "reloaded: server.tokens" in file.read_text())
                heard.append(await use(url, LATER))
                await broker_says.until("whisperd/kitchen/final")
            popen.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(popen.wait(), PATIENCE) == 0
        finally:
            if popen.returncode is None:
                popen.kill()
                await popen.wait()
    told = file.read_text()
    assert "DEBUG" in told
    for secret in (TOKEN, quote(TOKEN, safe=""), LATER, "the-brokers-secret"):
        assert secret not in told
    for text in heard:
        assert len(text) > 3
        assert (f"kitchen: {text}" in told) is transcripts
        assert (text in told) is transcripts


def test_a_secret_is_struck_out_as_a_word() -> None:
    formatter = logs._Formatter("%(message)s")

    def line(text: str) -> str:
        return formatter.format(logging.makeLogRecord({"msg": text}))

    try:
        logs.hide(["t", "se cret", "ö" * 8, ""])
        assert line("that t, and ?token=t&x") == "that ***, and ?token=***&x"
        assert line("se cret se%20cret") == "*** ***"
        assert line(ascii("ö" * 8)) == "'***'"
        logs.hide([])
        assert line("t") == "t"
    finally:
        logs.hide([])
