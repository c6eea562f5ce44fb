"""WhisperLiveKit, by its own websocket protocol: lines that stay, and a buffer behind them."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from bench.peers.judge import Talk
from bench.peers.screen import Screen
from bench.peers.system import Peer, Served
from bench.tasks import background


class WhisperLiveKit(Peer):
    """As it comes: AlignAtt ("SimulStreaming"), the encoder in CTranslate2 and the decoder in PyTorch."""

    name = "WhisperLiveKit"
    says = "0.2.26, SimulStreaming (its default): encoder in faster-whisper, decoder in PyTorch, OMP threads as cores"
    environment = "whisperlivekit"
    installs = ("whisperlivekit==0.2.26 torch==2.13.0 safetensors",)

    def command(self, port: int) -> list[str]:
        # An empty warm-up file: it would fetch one.
        return [
            "-m", "whisperlivekit.basic_server", "--host", "127.0.0.1", "--port", str(port), "--lan", "en",
            "--pcm-input", "--warmup-file", "", "--model", "tiny.en", *self._models(),
        ]  # fmt: skip

    def _models(self) -> list[str]:
        return [
            "--encoder-model-path", str(self._weights.ctranslate), "--decoder-model-path", str(self._weights.hub),
            "--custom-alignment-heads", _heads(self._weights.hub),
        ]  # fmt: skip

    async def hear(self, served: Served, name: str, talk: Talk, screen: Screen) -> None:
        address = f"ws://127.0.0.1:{served.port}/asr"
        async with (
            connect(address, compression=None, max_size=None) as socket,
            background(_say(socket, talk, screen)),
        ):
            async for message in socket:
                event = json.loads(message)
                if event.get("type") == "ready_to_stop":
                    return
                if "lines" in event:
                    lines = [line["text"].strip() for line in event["lines"] if line["text"]]
                    screen.show(" ".join(lines), event["buffer_transcription"])


async def _say(socket: ClientConnection, talk: Talk, screen: Screen) -> None:
    await screen.speak(talk.pcm, socket.send)
    await socket.send(b"")  # the end of its protocol


def _heads(model: Path) -> str:
    """Return a checkpoint's alignment heads as it wants them: it knows those of models that it fetched by name."""
    config = json.loads((model / "config.json").read_text())
    told = json.loads((model / "generation_config.json").read_text())["alignment_heads"]
    mask = np.zeros((config["decoder_layers"], config["decoder_attention_heads"]), bool)
    mask[tuple(np.transpose(told))] = True
    return base64.b85encode(gzip.compress(mask.tobytes())).decode()


class LocalAgreement(WhisperLiveKit):
    """Its other policy: the buffer is heard again, and two hypotheses that agree stay."""

    name = "WhisperLiveKit-LocalAgreement"
    says = "0.2.26, LocalAgreement on faster-whisper in 8 bits, OMP threads as cores"

    def _models(self) -> list[str]:
        return [
            "--backend", "faster-whisper", "--backend-policy", "localagreement",
            "--model_dir", str(self._weights.ctranslate),
        ]  # fmt: skip
