"""What a reader has before them while people speak: how its word errors and delays are counted."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.live import DELAYS, Curve, Shown, Spoken, Viewer, delays, errors_of_beginnings, looks, main, spoken
from bench.player import DEMO, said_in

WORDS = st.lists(st.sampled_from("abc"), max_size=6)


@given(WORDS, WORDS)
def test_a_beginning_is_compared_with_the_beginning_that_fits_best(reference: list[str], text: list[str]) -> None:
    def errors(said: list[str], heard: list[str]) -> int:
        if not said:
            return len(heard)
        output = jiwer.process_words(" ".join(said), " ".join(heard))
        return output.substitutions + output.deletions + output.insertions

    expected = [
        min(errors(reference[:said], text[:heard]) for heard in range(len(text) + 1))
        for said in range(len(reference) + 1)
    ]
    assert errors_of_beginnings(reference, text).tolist() == expected


def heard(*words: tuple[str, float]) -> list[Spoken]:
    return [Spoken(text, end) for text, end in words]


def test_words_of_the_transcript_end_where_those_heard_for_them_do() -> None:
    timed = heard(("turn", 1.2), ("of", 1.4), ("the", 1.5), ("very", 1.8), ("lamp", 2.2))
    assert spoken("Turn off the old, old lamp", timed)[:3] == heard(("turn", 1.2), ("off", 1.4), ("the", 1.5))
    assert spoken("turn on the lamp", timed)[-1] == Spoken("lamp", 2.2)
    missing = spoken("turn of the very old lamp", timed)
    assert [word.end for word in missing] == [1.2, 1.4, 1.5, 1.8, 1.8, 2.2]
    assert spoken("nobody heard it", []) == []


def viewer(*shown: Shown) -> Viewer:
    return Viewer(shown=list(shown))


def test_the_delay_until_a_word_is_stable() -> None:
    reference = heard(("turn", 1.0), ("on", 1.2), ("the", 1.4), ("lamp", 2.0))
    seen = viewer(
        Shown(1.5, "", "turn"), Shown(2.0, "turn on", "turn on the"), Shown(3.0, "turn on the lamp", "turn on the lamp")
    )
    assert delays(seen, reference) == pytest.approx([1000, 800, 1600, 1000])


def test_a_word_that_is_never_shown_waits_until_the_last_text() -> None:
    reference = heard(("turn", 1.0), ("on", 1.2), ("please", 1.4))
    seen = viewer(Shown(1.5, "turn", "turn"), Shown(2.0, "turn on", "turn on"))
    assert delays(seen, reference) == pytest.approx([500, 800, 600])


def test_errors_fall_with_the_delay() -> None:
    """Each word is shown in the tail half a second after its end, and stable a second later."""
    reference = heard(("turn", 1.0), ("on", 2.0), ("lamp", 3.0))
    seen = viewer(
        Shown(1.5, "", "turn"), Shown(2.5, "turn", "turn on"), Shown(3.5, "turn on", "turn on lamp"),
        Shown(4.5, "turn on lamp", "turn on lamp"),
    )  # fmt: skip
    curve = Curve()
    for now, shown in looks(seen, 3.0):
        curve.look(reference, now, shown)
    wrong = dict(zip(DELAYS, zip(curve.stable.tolist(), curve.whole.tolist(), strict=True), strict=True))
    assert wrong[0.0] == (9, 3)
    assert wrong[0.5] == (6, 0)
    assert wrong[1.5] == (0, 0)
    assert curve.words.tolist() == sorted(curve.words.tolist(), reverse=True)


def test_of_a_real_service(tmp_path: Path) -> None:
    shutil.copy(DEMO, tmp_path / "one.flac")
    (tmp_path / "one.txt").write_text(" ".join(said_in(DEMO)))
    command = [sys.executable, "-m", "bench.live", "--recordings", str(tmp_path), "--streams", "2"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 utterances, 2 at once." in done.stdout
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in done.stdout.splitlines() if "%" in line}
    assert rows.keys() == {"live", "whole", *(f"{delay:g} s" for delay in DELAYS)}
    for name in ("live", "whole", "3 s"):
        assert float(rows[name][0].strip().rstrip("%")) < 50, done.stdout


def test_recordings_without_texts_are_refused(tmp_path: Path) -> None:
    shutil.copy(DEMO, tmp_path / "one.flac")
    with pytest.raises(Exception, match="nobody wrote down what is said in"):
        main(["--recordings", str(tmp_path)])
