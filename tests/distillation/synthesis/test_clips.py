"""Neural voices speak, and clips of what they say survive an interrupt."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import small_corpus

from distillation.cli import main
from distillation.corpus import Corpus, gather
from distillation.synthesis import clips as clips_module
from distillation.synthesis.clips import Synthesis, synthesise
from distillation.synthesis.neural_voices import NeuralVoiceError, styles_of
from distillation.synthesis.voices import Voice, choose_voice
from streaming.job import SAMPLE_RATE, Waveform


@pytest.mark.parametrize("voice", [Voice("piper", "joe", blend=0.6), Voice("kokoro", "jf_alpha", "jm_kumo", blend=0.3)])
def test_each_program_speaks(voice: Voice) -> None:
    wave = voice.speak("good night")
    assert 0.4 < wave.size / SAMPLE_RATE < 3
    assert np.abs(wave).max() == pytest.approx(0.5, abs=0.01)


def test_more_speakers_of_kokoro_come_from_a_folder(tmp_path: Path) -> None:
    for name, speaker in styles_of().items():
        speaker.astype(np.float32).tofile(tmp_path / f"b{name[1:]}.bin")  # a Japanese one under an English name
    assert styles_of(tmp_path).keys() == {f"b{name[1:]}" for name in styles_of()}
    rng = random.Random(4)
    chosen = next(voice for voice in iter(lambda: choose_voice(rng, tmp_path), None) if voice.program == "kokoro")
    assert chosen.name[0] == "b"
    assert 0.4 < chosen.speak("good night").size / SAMPLE_RATE < 3


def test_a_folder_without_speakers_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"123")
    (tmp_path / "b.bin").write_bytes(b"123")
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(NeuralVoiceError, match=re.escape(f"{folder} does not have two styles of Kokoro")):
            styles_of(folder)


@dataclass(frozen=True)
class Murmuring:
    """A voice that costs nothing."""

    number: int
    program: str = "murmur"

    @property
    def speaker(self) -> str:
        return f"murmur/{self.number}"

    def speak(self, text: str) -> Waveform:
        return small_corpus.murmured(text, self.number)


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Voices that cost nothing, in small blocks. The workers are forked from here, so they have them too."""
    monkeypatch.setattr(clips_module, "BLOCK_CLIPS", 4)
    monkeypatch.setattr(clips_module, "choose_voice", lambda rng, styles: Murmuring(rng.randrange(9)))
    monkeypatch.setattr("distillation.synthesis.neural_voices.unpack", lambda: None)


@pytest.mark.usefixtures("cheap")
def test_an_interrupted_synthesis_goes_on(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    synthesise(whole, Synthesis(8), seed=1, workers=1)
    synthesise(broken, Synthesis(4), seed=1, workers=1)
    (broken / "block-00001.i16").write_bytes(b"torn")  # audio without its index: the block was being written
    synthesise(broken, Synthesis(8), seed=1, workers=1)
    for folder in (whole, broken):
        gather(folder)
    assert (whole / "index.jsonl").read_text() == (broken / "index.jsonl").read_text()
    assert (whole / "audio.i16").read_bytes() == (broken / "audio.i16").read_bytes()
    clips = Corpus(whole).clips
    assert len(clips) == 8
    assert {(clip.set, clip.split, clip.transcribed) for clip in clips} == {("murmur", "train", True)}


@pytest.mark.usefixtures("cheap")
def test_what_is_spoken_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("Guten Morgen.\n\n  Wie geht es dir? \n", encoding="utf-8")
    out = tmp_path / "corpus"
    assert main(["corpus", "--out", str(out), "--clips", "5", "--texts", str(tmp_path / "lines.txt")]) == 0
    clips = Corpus(out).clips
    assert len(clips) == 8
    assert {clip.text for clip in clips} == {"Guten Morgen.", "Wie geht es dir?"}


def test_kokoro_is_unpacked_before_processes_could_do_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("KOKORO_JA_CACHE", str(cache))

    def pool(_workers: int) -> None:
        raise InterruptedError(f"begun with {[path.suffix for path in cache.glob('*')]}")

    monkeypatch.setattr("multiprocessing.Pool", pool)
    with pytest.raises(InterruptedError, match=re.escape("begun with ['.onnx']")):
        synthesise(tmp_path, Synthesis(8), seed=1, workers=2)
