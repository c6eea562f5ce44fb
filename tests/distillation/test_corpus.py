"""The corpus is what was spoken, survives an interrupt, and says what is wrong with a recording."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_corpus

from distillation import corpus as corpus_module
from distillation.corpus import Corpus, CorpusError, Synthesis, gather, record, synthesise, trim
from distillation.neural import NeuralVoiceError, styles_of
from distillation.recordings import RecordingsError
from distillation.voices import ESPEAK_VARIANTS, HELD_OUT_ESPEAK, Voice, choose_neural_voice, choose_voice, speak
from streaming.job import SAMPLE_RATE, Waveform


@pytest.fixture
def corpus() -> Corpus:
    return small_corpus.corpus()


def test_recordings_and_voices_are_in_it(corpus: Corpus) -> None:
    mine = [clip.text for clip in corpus.clips if clip.set == "mine"]
    assert mine == ["turn on the light", "stop", "what time is it"]  # normalised, without the one that has no text
    assert len(corpus.split("train")) == 16 + 3
    assert len(corpus.split("held_out")) == 8
    for clip in corpus.clips:
        wave = corpus.waveform(clip)
        assert wave.dtype == np.float32
        assert 0.1 < clip.seconds < 15
        assert np.abs(wave).max() > 0.05


def test_held_out_voices_speak_nothing_in_training(corpus: Corpus) -> None:
    assert {clip.speaker for clip in corpus.split("train")}.isdisjoint(
        clip.speaker for clip in corpus.split("held_out")
    )
    assert set(ESPEAK_VARIANTS) >= HELD_OUT_ESPEAK


def test_choosing_a_voice_never_crosses_the_line() -> None:
    import random

    rng = random.Random(1)
    assert all(choose_voice(rng, held_out=True).held_out for _ in range(200))
    assert not any(choose_voice(rng, held_out=False).held_out for _ in range(200))


@pytest.mark.parametrize(
    "voice",
    [
        Voice("espeak", "en-us", "f1"),
        Voice("flite", "rms"),
        Voice("festival", "kal_diphone"),
        Voice("piper", "joe", blend=0.6),
        Voice("festival", "kal_diphone", hertz=140, size=0.9),
        Voice("pico", "en-GB", pitch=90, size=1.2),
        Voice("kokoro", "jf_alpha", "jm_kumo", blend=0.3),
    ],
)
def test_each_program_speaks(voice: Voice) -> None:
    wave = speak("good night", voice)
    assert 0.4 < wave.size / SAMPLE_RATE < 3
    assert np.abs(wave).max() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("voice", [Voice("festival", "kal_diphone", hertz=110), Voice("pico", "en-US", pitch=100)])
def test_a_bigger_speaker_is_lower_at_the_same_pace(voice: Voice) -> None:
    small, big = (speak("all of the lights", replace(voice, size=size)) for size in (0.85, 1.15))
    assert small.size == pytest.approx(big.size, rel=0.08)

    def middle(wave: Waveform) -> float:
        spectrum = np.abs(np.fft.rfft(wave))
        return float((spectrum * np.arange(spectrum.size)).sum() / spectrum.sum() / spectrum.size)

    assert middle(big) < 0.9 * middle(small)


def test_more_speakers_of_kokoro_come_from_a_folder(tmp_path: Path) -> None:
    for name, speaker in styles_of().items():
        speaker.astype(np.float32).tofile(tmp_path / f"b{name[1:]}.bin")  # a Japanese one under an English name
    assert styles_of(tmp_path).keys() == {f"b{name[1:]}" for name in styles_of()}
    rng = random.Random(4)
    chosen = next(voice for voice in iter(lambda: choose_neural_voice(rng, tmp_path), None) if voice.set == "kokoro")
    assert chosen.name[0] == "b"
    assert 0.4 < speak("good night", chosen).size / SAMPLE_RATE < 3


def test_a_folder_without_speakers_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"123")
    (tmp_path / "b.bin").write_bytes(b"123")
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(NeuralVoiceError, match=re.escape(f"{folder} has no two styles of Kokoro")):
            styles_of(folder)


def test_an_interrupted_synthesis_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_module, "BLOCK_CLIPS", 4)
    monkeypatch.setattr(corpus_module, "HELD_OUT_BLOCKS", 0)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    synthesise(whole, Synthesis(8, diphone_clips=4, pico_clips=4), seed=1, workers=1)
    synthesise(broken, Synthesis(4), seed=1, workers=1)
    (broken / "block-00001.i16").write_bytes(b"torn")  # audio without its index: the block was being written
    synthesise(broken, Synthesis(8, diphone_clips=4, pico_clips=4), seed=1, workers=1)
    for folder in (whole, broken):
        gather(folder)
    assert (whole / "index.jsonl").read_text() == (broken / "index.jsonl").read_text()
    assert (whole / "audio.i16").read_bytes() == (broken / "audio.i16").read_bytes()
    assert [clip.set for clip in Corpus(whole).clips[-8:]] == ["diphone"] * 4 + ["pico"] * 4


def test_kokoro_is_unpacked_before_processes_could_do_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("KOKORO_JA_CACHE", str(cache))

    def pool(_workers: int) -> None:
        raise InterruptedError(f"begun with {[path.suffix for path in cache.glob('*')]}")

    monkeypatch.setattr("multiprocessing.Pool", pool)
    with pytest.raises(InterruptedError, match=re.escape("begun with ['.onnx']")):
        synthesise(tmp_path, Synthesis(0, neural_clips=8), seed=1, workers=2)


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
        (_short_audio, r"audio\.i16 is shorter than its index: give the command again"),
        (_no_audio, "holds no clips"),
        (_torn_index, r"index\.jsonl, line 27, is no clip: remove the file"),
        (_other_index, r"index\.jsonl, line 1, is no clip"),
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
    audio = folder / "block-00001.i16"
    audio.write_bytes(audio.read_bytes()[:-2])
    with pytest.raises(CorpusError, match=r"block-00001\.jsonl does not fit its audio: remove it"):
        gather(folder)


def test_what_did_not_change_is_not_gathered_again(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(small_corpus.folder(), folder)
    gather(folder)
    before = (folder / "audio.i16").stat()
    gather(folder)
    assert (folder / "audio.i16").stat() == before
    record(folder, small_corpus.manifest(), "dev")
    gather(folder)
    assert len(Corpus(folder).split("dev")) == 3
    assert len(Corpus(folder).clips) == len(small_corpus.corpus().clips) + 3


# --- which recordings ------------------------------------------------------------------------------------------------


def _recorded(tmp_path: Path) -> tuple[Path, Path]:
    source, folder = tmp_path / "talk", tmp_path / "corpus"
    shutil.copytree(small_corpus.manifest().parent, source)
    record(folder, source, "train", as_written=True)
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
    record(folder, source, "train", as_written=True)
    change(source)
    with pytest.raises(CorpusError, match=says):
        record(folder, source, "train", as_written=True)
    assert block.stat() == before


def test_other_recordings_and_other_styles_are_refused(tmp_path: Path) -> None:
    source, folder = _recorded(tmp_path)
    with pytest.raises(CorpusError, match=r"holds other recordings: it has those of .*talk\..*leave --recordings out"):
        record(folder, small_corpus.manifest(), "train", as_written=True)
    with pytest.raises(CorpusError, match=r"has their transcripts as written \(by `label`\)"):
        record(folder, source, "train")
    record(folder, small_corpus.manifest(), "dev")
    with pytest.raises(CorpusError, match=r"has their transcripts in the corpus's own style.*leave --dev out"):
        record(folder, small_corpus.manifest(), "dev", as_written=True)
    (folder / "block-90116.json").unlink()
    with pytest.raises(CorpusError, match="does not say which they are"):
        record(folder, source, "train", as_written=True)


def test_recordings_without_any_transcript_make_an_empty_block(tmp_path: Path) -> None:
    source = tmp_path / "talk"
    source.mkdir()
    shutil.copy(small_corpus.manifest().parent / "0.flac", source)
    record(tmp_path / "corpus", source, "train")
    gather(tmp_path / "corpus")
    with pytest.raises(CorpusError, match="holds no clips"):
        Corpus(tmp_path / "corpus")


def test_trimming_keeps_the_speech() -> None:
    tone = np.sin(np.arange(SAMPLE_RATE) / 10).astype(np.float32)
    quiet = np.zeros(SAMPLE_RATE, np.float32)
    trimmed = trim(np.concatenate([quiet, tone, quiet]))
    assert SAMPLE_RATE <= trimmed.size <= SAMPLE_RATE * 1.2
    assert trim(quiet).size == quiet.size
