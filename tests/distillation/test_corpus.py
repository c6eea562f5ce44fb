"""The corpus is what was spoken, survives an interrupt, and says what is wrong with a recording."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_corpus

from distillation.corpus import Corpus, CorpusError, gather, record, trim
from distillation.recordings import RecordingsError
from streaming.job import SAMPLE_RATE


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
