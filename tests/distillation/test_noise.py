"""A folder of noises: what is read of it, and the sentence when there is nothing to read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distillation.noise import read_noises
from distillation.recordings import RecordingsError


def hiss(path: Path, samples: int = 1600) -> None:
    soundfile.write(path, np.random.default_rng(1).standard_normal(samples) * 0.05, 16000)


def test_every_kind_of_audio_is_read(tmp_path: Path) -> None:
    for number, suffix in enumerate((".flac", ".wav", ".ogg", ".WAV")):
        hiss(tmp_path / f"{number}{suffix}", 1600 * (number + 1))
    rows = [{"path": "0.flac", "contains_speech": True}, {"path": "1.wav", "contains_speech": False}]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    noises = read_noises(tmp_path)
    assert [wave.size for wave in noises.all] == [1600, 3200, 4800, 6400]
    assert [wave.size for wave in noises.speechless] == [3200, 4800, 6400]


def test_no_folder_was_asked_for() -> None:
    assert not read_noises(None).all


def test_a_folder_that_gives_no_noise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingsError, match=r"the folder of noises .*nowhere does not exist"):
        read_noises(tmp_path / "nowhere")
    (tmp_path / "README.md").write_text("rain")
    with pytest.raises(RecordingsError, match=r"no audio in .*looked for \.aif"):
        read_noises(tmp_path)
    hiss(tmp_path / "a.wav", 0)
    with pytest.raises(RecordingsError, match=r"a\.wav is empty"):
        read_noises(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"RIFF what")
    with pytest.raises(RecordingsError, match=r"a\.wav cannot be read"):
        read_noises(tmp_path)
    (tmp_path / "manifest.jsonl").write_text("rain.flac\n")
    with pytest.raises(RecordingsError, match=r"manifest\.jsonl, line 1, is not JSON"):
        read_noises(tmp_path)
