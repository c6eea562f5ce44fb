"""The demo and the benchmarks run, and what they print was measured."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
import soxr
import torch
import torch.nn.functional as functional
from support import cells, run

from bench.cli import BENCHMARKS
from bench.compare import WINDOW, System, compare, window_of, window_of_many
from bench.demo import verdict
from bench.harness.daemon import ServiceError
from bench.kernels import counted
from bench.make_recordings import transcripts, with_pauses, write
from bench.player import DEMO, SENTENCES, TALK, RecordingError, said_in
from bench.random_models import SHAPES, dimensions
from bench.roofline import Cost, Device, checking, encoding, remembering
from bench.table import percentiles, table
from bench.vocabulary import OTHER_NAMES, require_unsaid
from bench.word_errors import comparable, words
from daemon.commands.cli import main as whisperd
from streaming.whisper.biasing import TOGETHER
from streaming.whisper.model import Decoder, Encoder

if TYPE_CHECKING:
    from checkpoints import Pair

ROOT = Path(__file__).parent.parent.parent


def test_the_demo_says_how_many_words_were_right() -> None:
    """The models' own words: a student that learns on may hear them otherwise."""
    printed = run("demo")
    assert " partial " in printed
    assert printed.count(" final ") == 3
    assert re.search(r"^(Every word was right|\d+ of 37 words were right)", printed, re.MULTILINE)


def test_the_demos_last_word() -> None:
    said = said_in(DEMO)
    assert verdict(said, ["Just smell the wild roses! They are always so spicy after a rain.", *said[1:]]) == (
        "Every word was right."
    )
    assert verdict(["turn it on", "yes"], ["Turn on.", "Yes."]) == (
        "3 of 4 words were right: it was said\n  turn it on\n  yes"
    )
    assert verdict(["yes"], ["Yes, yes."]).startswith("1 of 1 words were right, 1 more were heard: it was said\n")


def test_models_that_were_put_away_hear_too() -> None:
    asleep, awake = cells(run("waking", "--rounds", "1"))
    for name, (state, latency, memory) in (("asleep", asleep), ("awake", awake)):
        assert state == name
        assert re.fullmatch(r"[1-9]\d* \(\d+ to \d+\)", latency)
        assert re.fullmatch(r"[1-9]\d* \(\d+ to \d+\)", memory)


def test_live_streams(tmp_path: Path) -> None:
    picture = tmp_path / "lags.png"
    printed = run("streams", "--streams", "2", "--recording", str(DEMO), "--picture", str(picture))
    (row,) = cells(printed)
    streams, partials, _, finals, _, thinned, errors, wrong, *_ = row
    assert (streams, finals, thinned, errors) == ("2", "6", "0", "0")
    assert re.fullmatch(r"\d+\.\d%", wrong)
    assert int(partials) >= 1  # how many is of the machine
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_the_service_carries_beside_an_engine_in_a_process_of_its_own() -> None:
    printed = run("service", "--streams", "2", "--seconds", "8", "--backend", "process")
    ((streams, lags, _, _, thinned, failed, *_),) = cells(printed)
    assert (streams, thinned, failed) == ("2", "0", "0")
    assert all(float(each) > 0 for each in lags.split(" / "))


def test_long_files_are_heard_in_every_way() -> None:
    printed = run("long_form", "--recording", str(DEMO), "--who", "pair")
    rows = cells(printed)
    assert [row[:2] for row in rows] == [["pair", "vad"], ["pair", "timestamps"], ["pair", "conditioned"]]
    for _, _, wrong, errors, _, finals, jobs, asked, *_ in rows:
        assert float(wrong.rstrip("%")) < 25
        assert len(errors.split(", ")) == 3
        assert int(finals) > 0
        assert int(jobs) >= int(asked)
    cut, stamped, conditioned = (int(row[6]) for row in rows)
    assert stamped < cut  # a window holds many utterances
    assert conditioned >= stamped


def test_drafts_save_passes() -> None:
    printed = run("offline", "--rounds", "1", "--recording", str(DEMO))
    drafted, stiff, alone, finals = cells(printed)
    assert drafted[1:3] == stiff[1:3] == alone[1:3]  # the same jobs and the same tokens
    assert int(drafted[3]) <= int(stiff[3]) < int(alone[3])
    assert int(finals[1]) == 3


@pytest.mark.timeout(600)  # four benchmarks, one after the other: a minute on a free machine
def test_the_script_for_a_gpu_runs_anywhere() -> None:
    done = subprocess.run(
        ["bench/gpu.sh", "--small"], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    targets, exactness, streams, service = done.stdout.split("\n## ")[1:]
    rows = {row[0]: row for row in cells(targets)}
    assert len(rows) == 17
    assert rows["graphs captured after ready"][1] == "0"
    assert all(float(row[3]) > 0 for row in rows.values() if row[3])
    right = [row for name, row in rows.items() if name.startswith("speculation")]
    assert len(right) == 4
    assert all("100% of the student's right" in row[0] and "not all identical" not in row[0] for row in right)
    assert [row[4] for row in cells(exactness) if row[0] == "deterministic"] == ["100.0%"] * 4
    for each in (streams, service):
        ((count, *_),) = cells(each)
        assert count == "2"


def test_percentiles_and_tables() -> None:
    assert percentiles([]) == "none"
    assert percentiles([10, 20, 30]) == "20 / 29 / 30"
    assert table(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |"


# --- the engine's parts ----------------------------------------------------------------------------------------------


def test_the_engines_parts_beside_the_roofline(english: Pair) -> None:
    pair = ("--student", str(english.student), "--teacher", str(english.teacher))
    printed = run("engine", *pair, "--batches", "2", "--contexts", "2", "--threads", "1")
    rows = cells(printed)
    measured = [row for row in rows if row[2] == "2"]
    assert [row[0] for row in measured][:2] == ["student: encoder", "student: memory of the audio"]
    assert all(float(row[4]) > 0 and float(row[5]) > 0 for row in measured)
    jobs = [
        row for row in rows if row[1] in ("none: the teacher alone", "student's own", "all right", "every 8th wrong")
    ]
    alone, _, right, spoilt = jobs[-4:]
    assert alone[5] == ""
    assert right[3:5] == ["100%", "1.0"]  # all of a right draft is kept, in one pass
    assert float(spoilt[4]) > 1


def test_operations_are_counted_and_not_too_many() -> None:
    rows = {row[0]: row[1:] for row in cells(run("kernels"))}
    aimed = {name: int(row[-1].removeprefix("<= ")) for name, row in rows.items() if row[-1]}
    assert len(aimed) == 3
    for name, most in aimed.items():
        assert 0 < int(rows[name][2]) < int(rows[name][0]) <= most
    student, teacher = (rows[f"{name}: a step"] for name in ("student of 2 layers", "teacher of 32 layers"))
    layer, rest = divmod(int(teacher[0]) - int(student[0]), 30)
    assert (rest, int(rows["bookkeeping of a step, at any depth"][0])) == (0, int(student[0]) - 2 * layer)


def test_what_launches_nothing_is_not_counted() -> None:
    values, bias = torch.ones(4, 6), torch.ones(4)
    found = counted(lambda: torch.empty(3).copy_(values.view(2, 12).t()[:3, 0]))
    assert dict(found.names) == {"copy_": 1}
    found = counted(lambda: functional.linear(values[None], values, bias).softmax(-1))
    assert dict(found.names) == {"addmm": 1, "_softmax": 1}
    assert found.products == 1


def test_random_weights_of_a_published_size() -> None:
    printed = run("engine", "--random", "tiny.en", "--batches", "1", "--contexts", "0.5", "--threads", "1")
    assert "random tiny.en of 2 decoder layers and random tiny.en in float32" in printed
    assert any(row[1] == "all right" and row[3] == "100%" for row in cells(printed))


@pytest.mark.parametrize("name", SHAPES)
def test_the_roofline_counts_every_weight(name: str) -> None:
    sizes = dimensions(SHAPES[name])
    with torch.device("meta"):
        encoder, decoder = Encoder(sizes), Decoder(sizes)

    # But for biases, norms and the positions' embeddings, which are a percent.
    def numbers(module: torch.nn.Module) -> int:
        return sum(value.numel() for name, value in module.named_parameters() if "embed_positions" not in name)

    assert encoding(sizes, 0, 0, 1).moved == pytest.approx(numbers(encoder), rel=0.02)
    counted = checking(sizes, 0, 1, 0, 0, 1).moved + remembering(sizes, 0, 0, 1).moved
    assert counted == pytest.approx(numbers(decoder), rel=0.02)


def test_operations_are_two_for_every_weight_and_token() -> None:
    sizes = dimensions(SHAPES["large-v3"])
    cost = checking(sizes, rows=4, tokens=3, positions=0, cached=-3, width=2)
    assert cost.operations == 2 * 12 * checking(sizes, 0, 1, 0, 0, 1).moved


def test_a_part_takes_at_least_the_longer_of_its_two_limits() -> None:
    device = Device("", bandwidth=10.0, arithmetic={torch.float32: 100.0})
    assert device.seconds(Cost(operations=200.0, moved=10.0), torch.float32) == 2.0
    assert device.seconds(Cost(operations=200.0, moved=30.0), torch.float32) == 3.0


def test_what_can_be_measured_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert whisperd(["bench"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in BENCHMARKS)
    assert whisperd(["bench", "nonsense"]) == 2
    assert "there is no 'nonsense'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["engine", "--student", "nothere"], "nothere"),
        (["offline", "--recording", "nofile.wav"], "nofile.wav cannot be read"),
        (["exactness", "--recording", "nofile.wav"], "nofile.wav cannot be read"),
        (["streams", "--recording", "nofile.wav"], "nofile.wav"),
        (["streams", "--recording", "notext.flac"], "no notext.txt: write into it"),
        (["compare", "--recording", "notext.flac"], "no notext.txt: write into it"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(DEMO, "notext.flac")
    assert whisperd(["bench", *arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("whisperd bench: ")
    assert says in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["engine", "--device", "cuda:99"],
        ["engine", "--dtype", "float99"],
        ["engine", "--batches", "0"],
        ["engine", "--contexts", "-2"],
        ["exactness", "--utterances", "0"],
        ["offline", "--rounds", "0"],
        ["compare", "--rounds", "-1"],
        ["streams", "--streams", "0"],
        ["targets", "--device", "gpu"],
    ],
)
def test_what_cannot_be_meant_is_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        whisperd(["bench", *arguments])
    assert ended.value.code == 2
    assert f"argument {arguments[1]}: " in capsys.readouterr().err


def test_an_interrupt_and_a_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> Callable[[Sequence[str]], None]:
        def measure(_: Sequence[str]) -> None:
            raise error

        return measure

    monkeypatch.setattr("bench.offline.main", fail(KeyboardInterrupt()))
    assert whisperd(["bench", "offline"]) == 130
    assert capsys.readouterr().err == "whisperd bench: interrupted\n"
    monkeypatch.setattr("bench.offline.main", fail(ServiceError("it did not start")))
    assert whisperd(["bench", "offline"]) == 1
    monkeypatch.setattr("bench.offline.main", fail(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):  # its traceback is what there is to know
        whisperd(["bench", "offline"])


def test_a_recording_of_another_rate_and_two_channels_is_heard(tmp_path: Path) -> None:
    samples, rate = soundfile.read(DEMO, dtype="float32")
    wide = soxr.resample(samples, rate, 44100)
    path = tmp_path / "wide.wav"
    soundfile.write(path, np.stack([wide, wide], axis=1), 44100)
    printed = run("offline", "--rounds", "1", "--recording", str(path))
    assert f"wide.wav, {len(samples) / rate:.1f} s" in printed
    assert int(cells(printed)[-1][1]) == 3  # the finals of its three sentences


def test_ours_are_compared_with_and_not_one_another() -> None:
    systems = [
        System("whisperd, student", lambda wave: "stop", rival=True),
        System("whisperd, student, 30 s heard", lambda wave: "stop"),
        System("another", lambda wave: "go"),
    ]
    own, padded, another = cells(compare(systems, [np.zeros(16000, np.float32)], ["stop"], rounds=2))
    assert len(own) == len(padded) == len(another)
    assert [row[2] for row in (own, padded, another)] == ["0.0%", "0.0%", "100.0%"]
    assert own[3] == ""
    assert "x (" in padded[3]
    assert "x (" in another[3]


def test_a_window_of_many_is_not_cut_in_a_word() -> None:
    ten = [np.full(10 * 16000, number, np.float32) for number in range(4)]
    together, fitting = window_of_many(ten)
    assert (together.size, fitting) == (WINDOW, 3)
    assert window_of_many(ten[:2])[1] == 2


def test_a_window_is_filled_up_and_never_cut() -> None:
    assert window_of(np.ones(5, np.float32)).tolist() == [1] * 5 + [0] * (WINDOW - 5)
    assert window_of(np.ones(WINDOW + 5, np.float32)).size == WINDOW + 5


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        whisperd(["bench", name, "--help"])
    assert ended.value.code == 0
    assert f"usage: whisperd bench {name}" in capsys.readouterr().out


@pytest.mark.parametrize("recording", [DEMO, SENTENCES, TALK], ids=lambda recording: recording.stem)
def test_each_recording_says_what_is_in_it(recording: Path) -> None:
    assert len(said_in(recording)) >= 3
    assert f"| {recording.name} |" in (recording.parent / "README.md").read_text()


def test_recordings_are_made_of_utterances(tmp_path: Path) -> None:
    (tmp_path / "1-2.trans.txt").write_text("1-2-0000 GOOD MORNING\n1-2-0001 IT'S TEN\n")
    assert transcripts(tmp_path) == {"1-2-0000": "good morning", "1-2-0001": "it's ten"}
    joined = with_pauses([np.ones(10, np.float32), np.ones(20, np.float32)], seconds=0.5)
    assert joined.size == 3 * 8000 + 30
    assert np.abs(joined[:8000]).max() < 0.01
    write(tmp_path / "x.ogg", np.zeros(16000, np.float32))
    assert soundfile.info(tmp_path / "x.ogg").samplerate == 16000
    assert soundfile.info(tmp_path / "x.ogg").frames == 16000


def test_a_vocabularys_cost_is_beside_what_a_step_costs_without_one() -> None:
    rows = cells(run("vocabulary", "--parts", "step", "--rounds", "1"))
    assert [row[:2] for row in rows] == [
        [texts, phrases] for texts in ("1", str(TOGETHER)) for phrases in ("0", "100", "1000")
    ]
    for _, phrases, milliseconds, ratio in rows:
        assert re.fullmatch(r"[\d.]+", milliseconds)
        assert re.fullmatch(r"" if phrases == "0" else r"[\d.]+ \([\d.]+ to [\d.]+\)", ratio)


def test_names_that_are_made_up_are_said_by_nobody() -> None:
    assert len({comparable()(name) for name in OTHER_NAMES}) == 100
    require_unsaid(["a yasmina", "nobody"], "here")
    with pytest.raises(RecordingError, match="here: somebody says wojciech, yasmin, so"):
        require_unsaid(["Yasmin's lamp, Yasmin", "ask Wojciech."], "here")


def test_words_are_compared_however_they_are_written() -> None:
    assert words(["set a timer for twenty minutes"], ["Set a timer for 20 minutes."]).errors == 0
    assert words(["it's your favourite colour"], ["It is your favorite color!"]).errors == 0
    assert words(["one", "two three"], ["One, two.", "Three?"]).errors == 0  # wherever it was cut
    assert words(["stop", "turn it on"], ["Stop.", "Turn on."]).errors == 1


def test_what_the_service_carries_beside_an_engine_of_a_stated_pace(tmp_path: Path) -> None:
    picture = tmp_path / "lags.png"
    printed = run("service", "--streams", "3", "--crowds", "2", "--seconds", "8", "--picture", str(picture))
    ((streams, lags, latencies, late, thinned, failed, daemon, _, clients, _),) = cells(printed)
    assert (streams, thinned, failed) == ("3", "0", "0")
    for figures in (lags, latencies):
        assert all(float(each) > 0 for each in figures.split(" / "))
    assert float(late) > 0
    assert float(daemon) > 0
    assert float(clients) > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
