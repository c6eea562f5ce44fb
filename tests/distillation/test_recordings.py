"""A person's folder of recordings: what is found in it, and the sentence when something is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distillation.corpus import Corpus, gather, record
from distillation.recordings import LONGEST, Recording, RecordingsError, find_recordings
from distillation.voices import Voice, speak
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
        (_latin_manifest, r"manifest\.jsonl is not UTF-8"),
        (_too_long, r"lasts 31 s: with a transcript it may last 30"),
        (_latin, r"a\.txt is not UTF-8"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(spoil: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    folder, corpus = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    spoil(folder)
    with pytest.raises(RecordingsError, match=says):
        record(corpus, folder, "train", as_written=True)
    assert not corpus.exists()


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(RecordingsError, match="no folder or manifest"):
        find_recordings(tmp_path / "nowhere")


def test_a_long_recording_is_cut_where_nobody_speaks(tmp_path: Path) -> None:
    spoken = speak("turn on the light", Voice("flite", "slt"))
    pause = np.zeros(2 * SAMPLE_RATE, np.float32)
    long = np.concatenate([part for _ in range(10) for part in (spoken, pause)])
    assert long.size > LONGEST * SAMPLE_RATE
    pieces = list(utterances(long, SegmentSettings(longest=LONGEST)))
    assert len(pieces) == 10
    assert all(abs(piece.size - spoken.size) < SAMPLE_RATE for piece in pieces)
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "day.flac", long, SAMPLE_RATE)
    record(tmp_path / "out", tmp_path / "in", "train", as_written=True)
    gather(tmp_path / "out")
    clips = Corpus(tmp_path / "out").clips
    assert len(clips) == 10
    assert not any(clip.transcribed or clip.text for clip in clips)


def test_a_long_recording_without_speech_is_counted(tmp_path: Path) -> None:
    tone(tmp_path / "in" / "hum.wav", 1)
    soundfile.write(tmp_path / "in" / "night.wav", np.full(30 * SAMPLE_RATE, 0.001, np.float32), SAMPLE_RATE)
    record(tmp_path / "out", tmp_path / "in", "train", as_written=True)
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
    record(tmp_path / "out", tmp_path / "in", "train", as_written=True)
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


def test_transcripts_stay_as_they_were_written_when_asked(tmp_path: Path) -> None:
    tone(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "a.txt").write_text("Turn ON, please!")
    for name, text in (("as", "Turn ON, please!"), ("own", "turn on please")):
        record(tmp_path / name, tmp_path / "in", "train", as_written=name == "as")
        gather(tmp_path / name)
        assert [clip.text for clip in Corpus(tmp_path / name).clips] == [text]
