"""Text as Whisper writes it, with capitals and punctuation, on every edge: as it is, or as that protocol's own models
write."""

from __future__ import annotations

from pathlib import Path

from foreign import deepgram, deepgram_play, deepgram_rest, deepgram_text, vosk
from harness import DATA, PATIENCE, client, scripted, service, speech
from openai import AsyncOpenAI
from wyoming.asr import Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient

SCRIPT = "Turn on the light, please. It's 20 °C!"
BARE = "turn on the light please it's 20 °c".split()


async def test_the_same_final_on_every_edge(tokenizer_file: Path) -> None:
    sections = {"dialects": {"vosk": 0}, "wyoming": {"host": "127.0.0.1", "port": 0}}
    async with service(scripted(tokenizer_file, script=SCRIPT, pace=0.2), sections) as daemon:
        url = daemon.server.url
        async with client(url) as mine:
            await mine.say(type="start", words=True)
            await mine.play(speech())
            await mine.say(type="stop")
            await mine.rest()
        (final,) = mine.of("final")
        written = SCRIPT.split()
        expected = final["text"].split()
        assert expected[: len(written)] == written
        assert [word["text"] for word in final["words"]] == expected
        bare = [BARE[number % len(BARE)] for number in range(len(expected))]

        async with deepgram(url) as theirs:
            await deepgram_play(theirs, speech())
            await theirs.send_close_stream()
            assert deepgram_text(await deepgram_rest(theirs)).split() == bare
        async with deepgram(url, punctuate="true") as theirs:
            await deepgram_play(theirs, speech())
            await theirs.send_close_stream()
            messages = await deepgram_rest(theirs)
        assert deepgram_text(messages).split() == expected
        (words,) = [each.channel.alternatives[0].words for each in messages if each.type == "Results"]
        assert [word.word for word in words] == bare
        assert [word.punctuated_word for word in words] == expected

        async with vosk(daemon.server.urls["vosk"]) as asked:
            await asked.play(speech())
            await asked.eof()
        assert asked.text.split() == bare
        (result,) = [each["result"] for each in asked.answers if each.get("result")]
        assert [word["word"] for word in result] == bare

        async with AsyncOpenAI(api_key="any", base_url=url.replace("ws", "http", 1) + "/v1") as stock:
            heard = await stock.audio.transcriptions.create(
                model="whisper-1", file=DATA / "turn_on_the_kitchen_light.flac", response_format="verbose_json",
                timestamp_granularities=["word"],
            )  # fmt: skip
        assert heard.text.split() == expected
        assert [word.word for word in heard.words or ()] == expected

        assert daemon.wyoming is not None
        assert await _satellite(*daemon.wyoming.address) == final["text"]


async def _satellite(host: str, port: int) -> str:
    async with AsyncTcpClient(host, port, read_timeout=PATIENCE) as mine:
        await mine.write_event(AudioStart(16000, 2, 1).event())
        await mine.write_event(AudioChunk(16000, 2, 1, audio=speech()).event())
        await mine.write_event(AudioStop().event())
        while (event := await mine.read_event()) is not None:
            if Transcript.is_type(event.type):
                return Transcript.from_event(event).text
    raise AssertionError("hung up without a transcript")
