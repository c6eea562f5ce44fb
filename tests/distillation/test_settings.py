"""What a folder was begun with is what it goes on with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import small_corpus
import small_school

from distillation.settings import (
    DIGEST,
    SettingsError,
    digest_of_clips,
    digest_of_noises,
    digest_of_weights,
    require_same,
)
from streaming.whisper.checkpoint import open_checkpoint


@pytest.mark.parametrize(
    ("begun", "given", "says"),
    [
        (
            {"--kl-weight": 1.0},
            {"--kl-weight": 0.0},
            "--kl-weight 1.0, not 0.0: use the same again, or choose another --out",
        ),
        ({"--teacher": DIGEST + "a"}, {"--teacher": DIGEST + "b"}, "another --teacher: use the same again"),
        ({"--start": "none"}, {"--start": DIGEST + "b"}, "another --start: use the same again"),
        ({}, {"--rate": 1.0}, "another --rate"),
        ({"--rate": 1.0}, {}, "another --rate"),
    ],
)
def test_other_settings_are_refused_by_name(
    begun: dict[str, str | float], given: dict[str, str | float], says: str, tmp_path: Path
) -> None:
    require_same(tmp_path, begun, begun)
    with pytest.raises(SettingsError) as caught:
        require_same(tmp_path, begun, given)
    assert f"{tmp_path} was begun with {says}" in str(caught.value)


def test_weights_are_told_apart_by_what_they_are(tmp_path: Path) -> None:
    one, other = small_school.teacher(tmp_path / "one"), small_school.teacher(tmp_path / "other", seed=1)
    shutil.copytree(one.directory, tmp_path / "moved")
    moved = open_checkpoint(str(tmp_path / "moved"), "student")
    assert digest_of_weights(moved) == digest_of_weights(one) != digest_of_weights(other)


def test_noises_are_told_apart_by_names_and_sizes(tmp_path: Path) -> None:
    assert digest_of_noises(None) == digest_of_noises(tmp_path)
    seen = {digest_of_noises(None)}
    for name, content in (("a", "1"), ("b", "1"), ("b", "22")):
        (tmp_path / name).write_text(content)
        seen.add(digest_of_noises(tmp_path))
    assert len(seen) == 4


def test_clips_are_told_apart_by_what_is_said() -> None:
    clips = small_corpus.corpus().clips
    assert digest_of_clips(clips) == digest_of_clips(list(clips)) != digest_of_clips(clips[1:])
