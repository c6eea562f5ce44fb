"""The corpus is what was spoken, survives an interrupt, and says what is wrong with a recording."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import small_corpus

from distillation import corpus as corpus_module
from distillation.cli import main
from distillation.corpus import Corpus, CorpusError, Synthesis, gather, record, synthesise, trim
from distillation.neural_voices import NeuralVoiceError, styles_of
from distillation.recordings import RecordingsError
from distillation.voices import Voice, choose_voice
from streaming.job import SAMPLE_RATE, Waveform


@pytest.fixture
def corpus() -> Corpus:
    return small_corpus.corpus()


def test_recordings_are_in_it(corpus: Corpus) -> None:
    mine = [clip for clip in corpus.split("train") if clip.set == "mine"]
    assert [clip.text for clip in mine] == [*small_corpus.RECORDED.values(), ""]
    assert [clip.transcribed for clip in mine] == [True, True, True, False]
    assert {clip.speaker for clip in mine} == {"mine/me"}
    assert len(corpus.split("train")) == 4 + small_corpus.MURMURS
    assert len(corpus.split("dev")) == 9
    for clip in corpus.clips:
        wave = corpus.waveform(clip)
        assert wave.dtype == np.float32
        assert 0.1 < clip.seconds < 15
        assert np.abs(wave).max() > 0.05


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
    monkeypatch.setattr(corpus_module, "BLOCK_CLIPS", 4)
    monkeypatch.setattr(corpus_module, "choose_voice", lambda rng, styles: Murmuring(rng.randrange(9)))
    monkeypatch.setattr("distillation.neural_voices.unpack", lambda: None)


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


def test_an_unreadable_recording_is_named_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"not audio")
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps({"path": "a.wav", "text": "hello"}) + "\n")
    with pytest.raises(RecordingsError, match=r"a\.wav cannot be read"):
        record(tmp_path / "out", manifest, "train")
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_no_corpus_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="whisperd distill corpus"):
        Corpus(tmp_path)


def _short_audio(folder: Path) -> None:
    (folder / "audio.i16").write_bytes((folder / "audio.i16").read_bytes()[:-2])


def _no_audio(folder: Path) -> None:
    (folder / "audio.i16").write_bytes(b"")
    (folder / "index.jsonl").write_bytes(b"")


def _torn_index(folder: Path) -> None:
    (folder / "index.jsonl").write_bytes((folder / "index.jsonl").read_bytes()[:-9])


def _other_index(folder: Path) -> None:
    (folder / "index.jsonl").write_text('{"name": "something else"}\n')


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_short_audio, r"audio\.i16 is shorter than its index: run the command that made the corpus again"),
        (_no_audio, "contains no clips"),
        (_torn_index, r"index\.jsonl, line 25, is not a clip: remove the file"),
        (_other_index, r"index\.jsonl, line 1, is not a clip"),
    ],
)
def test_a_damaged_corpus_is_named_and_mended_as_it_says(
    spoil: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(small_corpus.folder(), folder)
    spoil(folder)
    with pytest.raises(CorpusError, match=says):
        Corpus(folder)
    (folder / "index.jsonl").unlink()
    gather(folder)
    assert Corpus(folder).clips == small_corpus.corpus().clips


def test_a_block_that_lost_audio_is_not_gathered(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(small_corpus.folder(), folder)
    audio = folder / "block-90116.i16"
    audio.write_bytes(audio.read_bytes()[:-2])
    with pytest.raises(CorpusError, match=r"block-90116\.jsonl does not fit its audio: remove it"):
        gather(folder)


def test_what_did_not_change_is_not_gathered_again(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(small_corpus.folder(), folder)
    gather(folder)
    before = (folder / "audio.i16").stat()
    gather(folder)
    assert (folder / "audio.i16").stat() == before
    record(folder, small_corpus.manifest(), "train", 2)
    gather(folder)
    assert len(Corpus(folder).split("train")) == len(small_corpus.corpus().split("train")) + 4
    assert len(Corpus(folder).clips) == len(small_corpus.corpus().clips) + 4


# --- which recordings ------------------------------------------------------------------------------------------------


def _recorded(tmp_path: Path) -> tuple[Path, Path]:
    source, folder = tmp_path / "talk", tmp_path / "corpus"
    shutil.copytree(small_corpus.manifest().parent, source)
    record(folder, source, "train")
    return source, folder


def _touched(source: Path) -> None:
    status = (source / "0.flac").stat()
    os.utime(source / "0.flac", ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def _more(source: Path) -> None:
    shutil.copy(source / "0.flac", source / "new.flac")
    manifest = source / "manifest.jsonl"
    manifest.write_text(manifest.read_text() + '{"path": "new.flac"}\n')


def _fewer(source: Path) -> None:
    (source / "1.flac").unlink()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_touched, r"made before a change in .*talk \(0\.flac\)"),
        (_more, r"made before a change in .*talk \(manifest\.jsonl and 1 more\)"),
        (_fewer, r"made before a change in .*talk \(1\.flac\)"),
    ],
)
def test_changed_recordings_are_not_taken_for_those_of_the_corpus(
    change: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    source, folder = _recorded(tmp_path)
    block = folder / "block-90116.jsonl"
    before = block.stat()
    record(folder, source, "train")
    change(source)
    with pytest.raises(CorpusError, match=says):
        record(folder, source, "train")
    assert block.stat() == before


def test_other_recordings_are_refused(tmp_path: Path) -> None:
    source, folder = _recorded(tmp_path)
    with pytest.raises(
        CorpusError, match=r"contains other recordings: it has those of .*talk\..*leave --recordings out"
    ):
        record(folder, small_corpus.manifest(), "train")
    record(folder, small_corpus.manifest(), "dev")
    with pytest.raises(CorpusError, match=r"it has those of .*leave --dev out"):
        record(folder, source, "dev")
    (folder / "block-90116.json").unlink()
    with pytest.raises(CorpusError, match="does not say which they are"):
        record(folder, source, "train")


def test_several_folders_of_recordings_are_told_apart(tmp_path: Path) -> None:
    source, folder = _recorded(tmp_path)
    record(folder, small_corpus.murmurs(), "train", 1)
    gather(folder)
    assert len(Corpus(folder).clips) == 4 + small_corpus.MURMURS
    record(folder, source, "train", 0)
    record(folder, small_corpus.murmurs(), "train", 1)
    with pytest.raises(CorpusError, match="contains other recordings"):
        record(folder, source, "train", 1)


def test_trimming_keeps_the_speech() -> None:
    tone = np.sin(np.arange(SAMPLE_RATE) / 10).astype(np.float32)
    quiet = np.zeros(SAMPLE_RATE, np.float32)
    trimmed = trim(np.concatenate([quiet, tone, quiet]))
    assert SAMPLE_RATE <= trimmed.size <= SAMPLE_RATE * 1.2
    assert trim(quiet).size == quiet.size
