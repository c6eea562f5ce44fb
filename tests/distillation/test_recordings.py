"""A person's folder of recordings: what is found in it, and the sentence when something is wrong with it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_corpus
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from distillation.corpus import Corpus, gather, record, trim
from distillation.recordings import (
    LONGEST,
    LONGEST_GAP,
    Recording,
    RecordingsError,
    find_recordings,
    neighbours_joined,
    read_mono,
    stamps,
)
from streaming.job import SAMPLE_RATE
from streaming.offline import utterances
from streaming.segment import SegmentSettings


def tone(path: Path, seconds: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.sin(np.arange(int(seconds * 16000)) / 9).astype(np.float32) * 0.3, 16000)


def test_a_folder_with_and_without_transcripts(tmp_path: Path) -> None:
    tone(tmp_path / "anna" / "a.flac")
    (tmp_path / "anna" / "a.txt").write_text("Turn on\n the light.")
    tone(tmp_path / "ben" / "b.WAV")
    assert find_recordings(tmp_path) == [
        Recording(tmp_path / "anna" / "a.flac", "Turn on the light.", "anna", tmp_path.name),
        Recording(tmp_path / "ben" / "b.WAV", None, "ben", tmp_path.name),
    ]


def test_a_manifest_names_its_clips(tmp_path: Path) -> None:
    tone(tmp_path / "a.flac")
    tone(tmp_path / "unlisted.flac")
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"path": "a.flac", "text": "hi", "speaker": 7, "set": "x"}))
    expected = [Recording(tmp_path / "a.flac", "hi", "7", "x")]
    assert find_recordings(tmp_path) == expected
    assert find_recordings(tmp_path / "manifest.jsonl") == expected


def _no_audio(folder: Path) -> None:
    (folder / "notes.txt").write_text("nothing here")


def _unreadable(folder: Path) -> None:
    tone(folder / "good.wav")
    (folder / "bad.wav").write_bytes(b"RIFF what")
    (folder / "worse.mp3").write_bytes(b"")


def _empty(folder: Path) -> None:
    soundfile.write(folder / "a.wav", np.zeros(0, np.float32), 16000)


def _orphan(folder: Path) -> None:
    tone(folder / "a.wav")
    (folder / "b.txt").write_text("where is my audio")


def _missing(folder: Path) -> None:
    (folder / "manifest.jsonl").write_text('{"path": "gone.wav", "text": "hello"}')


def _not_json(folder: Path) -> None:
    (folder / "manifest.jsonl").write_text('{"path": "a.wav"}\npath,text\n')


def _no_path(folder: Path) -> None:
    (folder / "manifest.jsonl").write_text('{"file": "a.wav"}\n')


def _no_text(folder: Path) -> None:
    tone(folder / "a.wav")
    (folder / "manifest.jsonl").write_text('{"path": "a.wav", "text": 5}\n')


def _backwards(folder: Path) -> None:
    tone(folder / "a.wav")
    (folder / "manifest.jsonl").write_text('{"path": "a.wav", "start": 0.5, "end": 0.4}\n')


def _behind_the_end(folder: Path) -> None:
    tone(folder / "a.wav", 2)
    (folder / "manifest.jsonl").write_text('{"path": "a.wav", "start": 2, "end": 3}\n')


def _too_long_a_part(folder: Path) -> None:
    tone(folder / "a.wav", 40)
    (folder / "manifest.jsonl").write_text('{"path": "a.wav", "start": 5, "end": 36, "text": "half a minute"}\n')


def _latin_manifest(folder: Path) -> None:
    (folder / "manifest.jsonl").write_bytes('{"path": "a.wav", "text": "café"}'.encode("latin-1"))


def _too_long(folder: Path) -> None:
    tone(folder / "a.wav", 31)
    (folder / "a.txt").write_text("a transcript of half a minute")


def _latin(folder: Path) -> None:
    tone(folder / "a.wav")
    (folder / "a.txt").write_bytes("café".encode("latin-1"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_no_audio, "no audio in .*looked for .aif"),
        (_unreadable, r"bad\.wav cannot be read.*worse\.mp3 cannot be read"),
        (_empty, r"a\.wav is empty"),
        (_orphan, r"b\.txt is a transcript without audio"),
        (_missing, r"gone\.wav is missing: a transcript without audio"),
        (_not_json, r"manifest\.jsonl, line 2, is not JSON"),
        (_no_path, r'line 1: expected {"path"'),
        (_no_text, r'line 1: "text" is 5, and must be text in quotes'),
        (_backwards, r'line 1: "start" and "end" must be seconds, with start before end'),
        (_behind_the_end, r"a\.wav lasts 2\.0 s: there is nothing at 2 s"),
        (_too_long_a_part, r"lasts 31 s: with a transcript it may last at most 30 s"),
        (_latin_manifest, r"manifest\.jsonl is not UTF-8"),
        (_too_long, r"lasts 31 s: with a transcript it may last at most 30 s"),
        (_latin, r"a\.txt is not UTF-8"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(spoil: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    folder, corpus = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    spoil(folder)
    with pytest.raises(RecordingsError, match=says):
        record(corpus, folder, "train")
    assert not corpus.exists()


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(RecordingsError, match="no folder or manifest"):
        find_recordings(tmp_path / "nowhere")


def test_a_long_recording_is_cut_where_nobody_speaks(tmp_path: Path) -> None:
    spoken = trim(small_corpus.recorded("turn_on_the_kitchen_light"))
    pause = np.zeros(2 * SAMPLE_RATE, np.float32)
    long = np.concatenate([part for _ in range(10) for part in (spoken, pause)])
    assert long.size > LONGEST * SAMPLE_RATE
    pieces = list(utterances(long, SegmentSettings(longest=LONGEST)))
    assert len(pieces) == 10
    assert all(abs(piece.size - spoken.size) < SAMPLE_RATE for piece in pieces)
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "day.flac", long, SAMPLE_RATE)
    record(tmp_path / "out", tmp_path / "in", "train")
    gather(tmp_path / "out")
    clips = Corpus(tmp_path / "out").clips
    assert len(clips) == 10
    assert not any(clip.transcribed or clip.text for clip in clips)


def test_a_long_recording_without_speech_is_counted(tmp_path: Path) -> None:
    tone(tmp_path / "in" / "hum.wav", 1)
    soundfile.write(tmp_path / "in" / "night.wav", np.full(30 * SAMPLE_RATE, 0.001, np.float32), SAMPLE_RATE)
    record(tmp_path / "out", tmp_path / "in", "train")
    gather(tmp_path / "out")
    corpus = Corpus(tmp_path / "out")
    assert len(corpus.clips) == 1
    assert corpus.speechless("train") == {"in": 1}
    assert corpus.speechless("dev") == {}


def test_an_empty_transcript_is_one(tmp_path: Path) -> None:
    """It says that nothing was said: the teacher's word does not stand against it."""
    tone(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "a.txt").write_text(" \n")
    tone(tmp_path / "listed" / "a.wav")
    rows: list[dict[str, str | None]] = [{"path": "a.wav", "text": text} for text in ("", None)]
    (tmp_path / "listed" / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [recording.text for recording in find_recordings(tmp_path / "listed")] == ["", None]
    record(tmp_path / "out", tmp_path / "in", "train")
    gather(tmp_path / "out")
    (clip,) = Corpus(tmp_path / "out").clips
    assert clip.transcribed
    assert clip.text == ""


def test_a_clip_may_fill_the_models_window(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    soundfile.write(folder / "a.flac", np.full(round(29.4 * SAMPLE_RATE), 0.1, np.float32), SAMPLE_RATE)
    (folder / "a.txt").write_text("go")
    assert [recording.text for recording in find_recordings(folder)] == ["go"]


def test_transcripts_stay_as_they_were_written(tmp_path: Path) -> None:
    tone(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "a.txt").write_text("Turn ON, please!")
    record(tmp_path / "out", tmp_path / "in", "train")
    gather(tmp_path / "out")
    assert [clip.text for clip in Corpus(tmp_path / "out").clips] == ["Turn ON, please!"]


# --- parts of files --------------------------------------------------------------------------------------------------


def test_a_clip_may_be_a_part_of_its_file(tmp_path: Path) -> None:
    tones = np.concatenate([np.full(8000, level, np.float32) for level in (0.1, 0.2, 0.3, 0.4)])
    folder = tmp_path / "in"
    folder.mkdir()
    soundfile.write(folder / "a.wav", tones, 8000, subtype="FLOAT")
    rows = [{"path": "a.wav", "start": 1, "end": 2.5, "text": "two"}, {"path": "a.wav", "start": 3, "text": "four"}]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, last = find_recordings(folder)
    assert (first.start, first.end, last.start, last.end) == (1, 2.5, 3, None)
    wave = read_mono(folder / "a.wav", first.start, first.end)
    assert wave.size == 1.5 * SAMPLE_RATE
    assert wave[SAMPLE_RATE // 2] == pytest.approx(0.2, abs=0.01)
    assert wave[SAMPLE_RATE * 5 // 4] == pytest.approx(0.3, abs=0.01)
    record(tmp_path / "out", folder, "train")
    gather(tmp_path / "out")
    clips = Corpus(tmp_path / "out").clips
    assert [(clip.text, clip.samples) for clip in clips] == [("two", 24000), ("four", 16000)]
    # The file is one of which the corpus remembers how it was.
    assert sorted(stamps(folder)) == ["a.wav", "manifest.jsonl"]


parts = st.lists(st.tuples(st.floats(0.2, 9), st.floats(0, 2), st.booleans(), st.booleans()), min_size=1, max_size=12)


@given(parts, st.floats(1, 5), st.integers(0, 9))
def test_parts_that_follow_one_another_become_one(
    lengths: list[tuple[float, float, bool, bool]], shortest: float, seed: int
) -> None:
    """Nothing is lost, doubled or taken across a long gap, another file or a transcript."""
    found, at = [], 0.0
    for length, gap, told, elsewhere in lengths:
        path = Path("b.wav" if elsewhere else "a.wav")
        found.append(Recording(path, "words" if told else None, "", "s", at, at + length))
        at += length + gap
    joined = neighbours_joined(found, (shortest, 14.0), seed)
    assert joined == neighbours_joined(found, (shortest, 14.0), seed)
    rest = list(found)
    for one in joined:
        held = [rest.pop(0)]
        while held[-1].end != one.end:
            held.append(rest.pop(0))
        assert (one.start, one.path, one.text) == (held[0].start, held[-1].path, held[0].text)
        if len(held) > 1:
            assert all((each.path, each.text) == (one.path, None) for each in held)
            assert all(later.start - (earlier.end or 0) <= LONGEST_GAP for earlier, later in itertools.pairwise(held))
            assert (one.end or 0) - one.start <= 14.0
    assert not rest


def test_people_say_more_than_a_line() -> None:
    found = [Recording(Path("a.wav"), None, "", "s", float(start), start + 0.9) for start in range(200)]
    lengths = {round((each.end or 0) - each.start) for each in neighbours_joined(found, (1.0, 14.0), 1)}
    assert min(lengths) <= 3
    assert max(lengths) >= 11
