"""The soak: its line knows how sure it is, its judge sees each loss, and a short one keeps every promise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Final, benchmark, every_promise_held

from bench.soak.history import GAUGES, ClientKind, Connection, Ending, History, Sample
from bench.soak.judge import End, broken_promises, memory, tallies
from bench.soak.report import picture, report
from bench.soak.slope import slope

HOUR = [second / 3600 for second in range(0, 3600, 5)]

# --- the line --------------------------------------------------------------------------------------------------------


@given(st.floats(-100, 100), st.floats(0, 1000))
def test_a_straight_line_is_found(gradient: float, start: float) -> None:
    found = slope(HOUR, [start + gradient * at for at in HOUR])
    assert found is not None
    assert found.value == pytest.approx(gradient, abs=1e-6)
    assert found.start == pytest.approx(start, abs=1e-6)
    assert found.low - 1e-6 <= found.value <= found.high + 1e-6


def _covered(noise: Callable[[np.random.Generator], np.ndarray]) -> float:
    """The share of intervals that hold the true slope, of 300 hours of 2 MB/h beneath the noise."""
    numbers = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        found = slope(HOUR, 2 * np.array(HOUR) + noise(numbers))
        assert found is not None
        held += found.low <= 2 <= found.high
    return held / 300


def test_the_interval_is_one_of_95_percent() -> None:
    assert 0.90 <= _covered(lambda numbers: numbers.normal(size=len(HOUR))) <= 0.99


def test_neighbours_that_go_together_make_it_wider() -> None:
    """Memory drifts for minutes: samples a few seconds apart say the same thing again. Where they go together for ten
    minutes an hour holds few independent ones, and no interval from it can be sure; it comes close."""

    def drifting(numbers: np.random.Generator, together: float) -> np.ndarray:
        drift = np.zeros(len(HOUR))
        for number in range(1, len(HOUR)):
            drift[number] = together * drift[number - 1] + numbers.normal()
        return drift

    assert _covered(lambda numbers: drifting(numbers, 0.9)) >= 0.88
    assert _covered(lambda numbers: drifting(numbers, 0.98)) >= 0.80


def test_too_few_samples_have_no_slope() -> None:
    assert slope(HOUR[:10], HOUR[:10]) is None
    assert slope([], []) is None


# --- the judge -------------------------------------------------------------------------------------------------------

GOOD = End(0, Counter({"whisperd_finals_total": 2}), (12, 4), (12, 4), 3600.0, 600.0, 1.0)


def final(session: str, number: int, source: str = "speech-0") -> Final:
    start = 10.0 * number
    return Final(source, f"text {number}", f"{session}-{number}", 2 * number, start, start + 3, published=start + 4)


def history() -> History:
    """Two sentences on one connection, each told by every way, and an hour of memory that does not grow."""
    made = History()
    both = [final("s", 1), final("s", 2)]
    connection = Connection(
        ClientKind.SPEECH, "speech-0", Ending.STOP, "s", [(9.0, 14.0), (19.0, 24.0)], [1, 2], list(both)
    )
    made.connections.append(connection)
    made.events, made.mqtt, made.visits = list(both), list(both), list(both)
    made.turns = made.answers = 1
    flat = [Sample(5.0 * n, 470 + n % 3, 390, 17, 4, 0.2, 5.0, dict.fromkeys(GAUGES, 0.0)) for n in range(720)]
    made.samples = flat
    return made


def test_a_good_hour_says_so(tmp_path: Path) -> None:
    assert broken_promises(history(), GOOD, known=True) == []
    text = report(history(), GOOD, "", known=True)
    assert text.rstrip().splitlines()[-1].startswith("**Every promise held: 2 finals in 60 minutes")
    picture(tmp_path / "soak.png", history(), GOOD)
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


def swap(notes: list[Final]) -> None:
    notes.reverse()


def renumber(finals: list[Final]) -> None:
    finals[1] = replace(finals[1], seq=finals[0].seq)


def grow(made: History) -> None:
    made.samples = [replace(each, rss=each.rss + each.at / 360) for each in made.samples]


SPOILT: list[tuple[Callable[[History], object], End, str]] = [
    (lambda made: made.events.pop(), GOOD, "sentences have no final"),
    (lambda made: made.connections[0].said.append((40.0, 45.0)), GOOD, "1 sentences have no final"),
    (lambda made: made.connections[0].begun.append(3), GOOD, "that a client was told the beginning of have no final"),
    (lambda made: made.connections[0].told.pop(), GOOD, "1 finals were not told to their own client"),
    (lambda made: setattr(made.connections[0], "broken", "cut"), GOOD, "speech-0: cut (1 times)"),
    (lambda made: made.mqtt.pop(), GOOD, "did not come so by MQTT"),
    (lambda made: made.mqtt.append(final("x", 3)), GOOD, "by one of /v1/events and MQTT alone"),
    (lambda made: made.mqtt.append(made.mqtt[0]), GOOD, "1 finals came twice by MQTT"),
    (lambda made: made.events.__setitem__(0, replace(made.events[0], text="?")), GOOD, "did not come so by /v1/events"),
    (lambda made: swap(made.mqtt), GOOD, "came by MQTT before one that was published before"),
    (lambda made: swap(made.events), GOOD, "came by /v1/events before one that was published before"),
    (lambda made: renumber(made.mqtt), GOOD, "came by MQTT out of the order of their source's numbers"),
    (lambda made: made.visits.pop(0), GOOD, "a subscriber that comes and goes was told 1 finals"),
    (lambda made: made.visits.append(made.visits[1]), GOOD, "a subscriber that comes and goes was told 3 finals"),
    (lambda made: made.errors.update(["internal"]), GOOD, "clients were told of 1 errors internal"),
    (lambda made: setattr(made, "answers", 0), GOOD, "the satellite had 0 answers to 1 turns"),
    (lambda made: made.broken.append("no reload"), GOOD, "no reload"),
    (grow, GOOD, "memory grows: RSS by +10.0"),
    (lambda made: None, replace(GOOD, exit_code=-9), "SIGTERM ended the service with -9"),
    (lambda made: None, replace(GOOD, left=(13, 4)), "13 descriptors were left of 12"),
    (lambda made: None, replace(GOOD, left=(12, 5)), "5 threads were left of 4"),
    (lambda made: None, replace(GOOD, counted=Counter({"whisperd_finals_total": 3})), "published 3 finals"),
    (
        lambda made: None,
        replace(GOOD, counted=GOOD.counted + Counter({"whisperd_job_failures_total": 1})),
        "counted 1 jobs that failed",
    ),
    (
        lambda made: None,
        replace(GOOD, counted=GOOD.counted + Counter({"whisperd_reloads_total{kept}": 2})),
        "2 reloads failed",
    ),
]


@pytest.mark.parametrize(("spoil", "end", "said"), SPOILT, ids=[said for *_, said in SPOILT])
def test_each_broken_promise_is_said(spoil: Callable[[History], object], end: End, said: str) -> None:
    made = history()
    spoil(made)
    assert any(said in each for each in broken_promises(made, end, known=True)), broken_promises(made, end, known=True)
    assert "promises were broken.**" in report(made, end, "", known=True)


def test_an_abort_may_take_what_was_not_heard_but_no_utterance_that_began() -> None:
    made = history()
    made.connections.append(Connection(ClientKind.VISITOR, "visitor-1", Ending.ABORT, "a", [(0.0, 5.0)], []))
    assert broken_promises(made, GOOD, known=True) == []
    made.connections[-1].begun.append(1)
    assert any("utterances" in each for each in broken_promises(made, GOOD, known=True))


def test_unknown_recordings_need_not_be_taken_for_speech() -> None:
    made = history()
    made.connections[0].said.append((40.0, 45.0))
    assert broken_promises(made, GOOD, known=False) == []
    assert tallies(made)[ClientKind.SPEECH].unnoticed == 1
    made.connections[0].begun.append(3)
    assert tallies(made)[ClientKind.SPEECH].unheard == 1
    assert broken_promises(made, GOOD, known=False) != []


def test_the_warm_up_may_grow() -> None:
    made = history()
    made.samples = [replace(each, rss=each.rss + min(each.at, 600.0)) for each in made.samples]
    assert broken_promises(made, GOOD, known=True) == []
    assert memory(made, 0.0).value > 100  # type: ignore[union-attr]  # there are enough samples


def test_a_short_run_is_not_judged_by_its_memory() -> None:
    made = history()
    grow(made)
    assert broken_promises(made, replace(GOOD, seconds=600.0), known=True) == []


# --- a short one -----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)  # some 30 s on a quiet machine; each of its parts waits by itself
def test_a_short_soak(tmp_path: Path) -> None:
    png = tmp_path / "soak.png"
    arguments = ["--minutes", "0.15", "--every", "0.3", "--scripted", "--picture", str(png)]
    printed = every_promise_held(benchmark("soak", *arguments))
    assert all(f"| {kind} |" in printed for kind in ClientKind)
    assert png.read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_recordings_is_named(tmp_path: Path) -> None:
    done = benchmark("soak", "--speech", str(tmp_path))
    assert done.returncode == 1
    assert "there are no recordings" in done.stderr
    assert str(tmp_path) in done.stderr
