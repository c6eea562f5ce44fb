"""What the log of a real process holds, and what it never does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness import broker, client, listener, process, speech, wait_until
from test_process import models
from test_server import fetch
from websockets.exceptions import ConnectionClosed

from daemon import logs

if TYPE_CHECKING:
    from checkpoints import Pair

TOKEN, LATER = "a token/that%nobody?guesses".replace(" ", "-"), "another-token-after-a-reload"
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
    from urllib.parse import quote

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
    transcripts: bool, tmp_path: Path, english: Pair
) -> None:
    with broker(tmp_path) as mosquitto:
        sections: dict[str, Any] = {
            **models(english),
            "server": {"tokens": [TOKEN]},
            "log": {"level": "debug", "transcripts": transcripts},
            "mqtt": {"host": "127.0.0.1", "port": mosquitto.port, "username": "me", "password": "the-brokers-secret"},
        }
        async with listener(mosquitto.port) as broker_says:
            with process(tmp_path, sections) as daemon:
                heard = [await use(daemon.url, TOKEN)]
                await broker_says.until("whisperd/kitchen/final")
                config = tmp_path / "whisperd.yaml"
                config.write_text(config.read_text().replace(TOKEN, LATER))
                daemon.popen.send_signal(signal.SIGHUP)
                await wait_until(lambda: "reloaded: server.tokens" in daemon.log)
                heard.append(await use(daemon.url, LATER))
                assert await asyncio.to_thread(daemon.terminate) == 0
    log = daemon.log
    assert "DEBUG" in log
    for secret in (TOKEN, LATER, "the-brokers-secret"):
        assert secret not in log
    for text in heard:
        assert len(text) > 3
        assert (f"kitchen: {text}" in log) is transcripts
        assert (text in log) is transcripts


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
