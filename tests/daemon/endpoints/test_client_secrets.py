"""Secrets for browsers: asked for by OpenAI's stock client with a token, used by those who have none."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from harness import PATIENCE, client, scripted, service, speech
from test_uploads import file_of, http_url, stock

from daemon.common.errors import Fault
from daemon.common.logs import shortened
from daemon.common.permissions import Rights
from daemon.dialects import openai_secrets as dialect
from daemon.dialects.openai_session import Refused
from daemon.endpoints import client_secrets
from daemon.endpoints.client_secrets import ClientSecrets
from daemon.settings.schema import Token

TOKENS = {"server": {"tokens": ["right", {"token": "porch", "send": ["porch"], "read": []}]}}
MINE = (Token(token="right"),)


async def create(url: str, key: str, **asked: Any) -> Any:
    async with stock(url, api_key=key) as made:
        return await made.realtime.client_secrets.create(**asked)


async def post(url: str, **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=http_url(url), timeout=PATIENCE) as made:
        return await made.post(dialect.PATH, **options)


def browser(secret: str) -> Any:
    """What a page can send: no header, but subprotocols."""
    return {"subprotocols": ["realtime", f"openai-insecure-api-key.{secret}"]}


# --- over the wire ---------------------------------------------------------------------------------------------------


async def test_a_page_connects_with_a_secret_that_its_server_asked_for(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file), TOKENS) as daemon:
        url, before = daemon.server.url, time.time()
        made = await create(url, "right", session={"type": "transcription"})
        assert made.value.startswith("ek_")
        assert before + 59 <= made.expires_at <= time.time() + 60
        assert made.session.type == "transcription"
        async with client(url, "/v1/realtime", **browser(made.value)) as page:
            assert (await page.next())["type"] == "session.created"
        async with client(url, f"/v1/stream?token={made.value}") as page:  # it stands for the token everywhere
            await page.until("ready")
        async with stock(url, api_key=made.value) as page:
            said = await page.audio.transcriptions.create(model="any", file=("a.wav", file_of()))
            assert said.text.startswith("turn on")


async def test_a_secret_allows_what_its_token_does_and_no_more(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file), TOKENS) as daemon:
        url = daemon.server.url
        secret = (await create(url, "porch")).value
        async with client(url, f"/v1/stream?token={secret}&source=porch") as page:
            await page.until("ready")
        for path in (f"/v1/stream?token={secret}&source=hall", f"/v1/events?token={secret}"):
            async with client(url, path) as page:
                if "stream" in path:
                    await page.play(speech())
                assert (await page.until("error"))["code"] == "forbidden"


async def test_only_a_token_makes_secrets(tokenizer_file: Path) -> None:
    """Else one that was given away for a minute would be good for ever."""
    async with service(scripted(tokenizer_file), TOKENS) as daemon:
        url = daemon.server.url
        secret = (await create(url, "right")).value
        for key in (secret, "wrong", "ek_"):
            with pytest.raises(openai.AuthenticationError):
                await create(url, key)
        refused = await post(url, headers={"Authorization": "Bearer right", "Origin": "https://evil.example"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "bad_origin")


async def test_where_nobody_needs_a_token_nobody_needs_a_secret(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file)) as daemon:
        url = daemon.server.url
        secret = (await create(url, "any")).value
        for path in (f"/v1/stream?token={secret}", "/v1/stream"):
            async with client(url, path) as page:
                await page.until("ready")


async def test_a_secret_ends_and_with_the_tokens_too(tokenizer_file: Path) -> None:
    now = [0.0]
    async with service(scripted(tokenizer_file), TOKENS) as daemon:
        url, guard = daemon.server.url, daemon.server.guard
        guard.secrets = ClientSecrets(lambda: now[0])
        first = (await create(url, "right", expires_after={"anchor": "created_at", "seconds": 10})).value
        now[0] = 9.9
        async with client(url, f"/v1/stream?token={first}") as page:
            await page.until("ready")
            now[0] = 10.0
            async with client(url, f"/v1/stream?token={first}") as late:
                assert (await late.until("error"))["code"] == "unauthorised"
            await page.say(type="stop")  # whoever is here stays
            await page.until("stopped")
        second = (await create(url, "right")).value
        daemon.server.reload(guard.settings.model_copy(update={"tokens": (Token(token="another"),)}))
        async with client(url, f"/v1/stream?token={second}") as page:
            assert (await page.until("error"))["code"] == "unauthorised"


@pytest.mark.parametrize(
    ("asked", "code", "param"),
    [
        ({"session": {"type": "realtime", "model": "gpt-realtime"}}, "unsupported_parameter", "session"),
        (
            {"session": {"type": "transcription", "audio": {"input": {}}}},
            "unsupported_parameter",
            "session.audio",
        ),
        ({"expires_after": {"anchor": "created_at", "seconds": 7200}}, "invalid_value", "expires_after.seconds"),
    ],
)
async def test_what_cannot_be_had_is_said(asked: dict[str, Any], code: str, param: str, tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file), TOKENS) as daemon:
        with pytest.raises(openai.BadRequestError) as refused:
            await create(daemon.server.url, "right", **asked)
    assert (refused.value.code, refused.value.param) == (code, param)


async def test_bodies_that_are_too_long_or_no_json(tokenizer_file: Path) -> None:
    async def chunked() -> Any:
        for _ in range(20):
            yield b" " * 1024

    headers = {"Authorization": "Bearer right"}
    async with service(scripted(tokenizer_file), TOKENS) as daemon:
        url = daemon.server.url
        for content in (b" " * (dialect.LARGEST + 1), chunked()):
            refused = await post(url, content=content, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (413, "message_too_big")
        refused = await post(url, content=b"{", headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_json")
        made = await post(url, headers=headers)  # nothing at all is a question
        assert made.json()["value"].startswith("ek_")
        assert made.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("body", [b"zz\r\n", b"4\r\n{}{}zz"])
async def test_a_body_that_is_no_http_harms_nobody(body: bytes, tokenizer_file: Path) -> None:
    head = f"POST {dialect.PATH}?token=right HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    async with service(scripted(tokenizer_file), TOKENS) as daemon:
        host, _, port = daemon.server.url.removeprefix("ws://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head + body)
        async with asyncio.timeout(PATIENCE):
            assert (await reader.readline()).split()[1] == b"400"
        writer.close()
        assert daemon.pipeline.metrics.client_errors.labels("internal")._value.get() == 0
        assert (await create(daemon.server.url, "right")).value.startswith("ek_")


async def test_off_is_off(tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file), {"dialects": {"openai": False}}) as daemon:
        assert (await post(daemon.server.url)).status_code == 405


# --- the question, and the secrets themselves ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        [], 1, "x", {"x": 1}, {"session": []}, {"session": {}}, {"session": {"type": "transcription", "\ud800": 1}},
        {"expires_after": 60}, {"expires_after": {"seconds": 60, "x": 1}}, {"expires_after": {"anchor": "now"}},
        *({"expires_after": {"seconds": wrong}} for wrong in (9, 601, -1, 60.0, "60", True, None, 2**70)),
    ],
)  # fmt: skip
def test_a_question_that_is_none(asked: Any) -> None:
    with pytest.raises(Refused) as refused:
        dialect.wanted(json.dumps(asked).encode())
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(("asked", "seconds"), [({}, 60), ({"expires_after": {"seconds": 600}}, 600)])
def test_for_how_long(asked: Any, seconds: int) -> None:
    assert dialect.wanted(json.dumps(asked).encode()) == seconds


def test_there_are_only_so_many_and_an_end_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_secrets, "MOST", 3)
    now = [0.0]
    secrets = ClientSecrets(lambda: now[0])
    made = {secrets.issue(Rights(), seconds, MINE) for seconds in (10, 20, 20)}
    assert len(made) == 3
    with pytest.raises(Fault) as full:
        secrets.issue(Rights(), 10, MINE)
    assert full.value.code == "full"
    now[0] = 10.0
    secrets.issue(Rights(), 10, MINE)
    assert len(secrets.valid(MINE)) == 3


@pytest.mark.parametrize("kept", [None, 20])  # whole, or cut by whoever logs it
async def test_a_secret_in_the_wrong_place_is_in_no_log_and_no_error(kept: int | None, tokenizer_file: Path) -> None:
    async with service(scripted(tokenizer_file), TOKENS) as daemon:
        secret = (await create(daemon.server.url, "right")).value[:kept]
        async with client(daemon.server.url, f"/v1/stream?token=right&{secret}=1") as page:
            told = (await page.until("error"))["message"]
        assert secret not in told
        assert "***" in told
        assert shortened(f"asked for {secret}/", 100) == "asked for ***/"  # as every line of the log is written


def test_words_that_look_like_the_beginning_of_a_secret_are_words() -> None:
    assert shortened("a week_of_holidays, ek_1", 100) == "a week_of_holidays, ek_1"


def test_a_secret_is_in_no_representation() -> None:
    secrets = ClientSecrets()
    secret = secrets.issue(Rights(), 10, MINE)
    assert secret not in repr(secrets.valid(MINE))
