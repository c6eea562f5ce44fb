"""What random input has broken, once each."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from harness import client, scripted, service, wait_until

from daemon.common.errors import Fault
from daemon.dialects.codec import Frame, Handshake
from daemon.dialects.openai_realtime import Realtime
from streaming.events import Event


@pytest.mark.parametrize(
    "sent",
    [
        {"type": "session.update", "session": {"\ud800": False}},
        {"type": "x", "event_id": "\ud800"},
    ],
)
def test_half_a_surrogate_pair_can_be_sent_back(sent: dict[str, object]) -> None:
    codec = Realtime(Handshake("/v1/realtime"))
    with pytest.raises(Fault) as caught:
        list(codec.decode(json.dumps(sent)))
    for frame in codec.blame(caught.value):
        assert isinstance(frame, str)
        json.loads(frame.encode())
    assert caught.value.message.encode()  # for the log


async def test_a_stream_whose_writer_fails_is_counted_out_once(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Realtime, event: Event) -> Iterable[Frame]:
        raise ValueError("as a bug would")

    monkeypatch.setattr(Realtime, "encode", fails)
    audio = base64.b64encode(bytes(4800)).decode()
    turns = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
    async with service(scripted(tokenizer_file)) as daemon:
        async with client(daemon.server.url, "/v1/realtime?intent=transcription") as mine:
            await mine.say(type="input_audio_buffer.append", audio=audio)
            await mine.say(type="session.update", session=turns)
            await mine.say(type="input_audio_buffer.append", audio=audio)  # another stream, behind the end of the first
            assert await mine.rest() is not None
        opened = daemon.pipeline.metrics.streams_open
        await wait_until(lambda: daemon.pipeline.sources.open_streams <= 0 and opened._value.get() <= 0)
        assert daemon.pipeline.sources.open_streams == 0
        assert opened._value.get() == 0
