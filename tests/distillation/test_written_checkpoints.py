"""What `init`, `train`, `export` and `average` refuse, and what they leave where they cannot write."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import checkpoints
import pytest
import small_corpus

from distillation.cli import main
from distillation.label import Label, Manner

SHAPE = replace(checkpoints.SMALL, decoder_layers=3)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, another one of the same vocabulary, one of another, a student, and one that has learnt for a step."""
    work = tmp_path_factory.mktemp("work")
    checkpoints.build_checkpoint(work / "teacher", SHAPE)
    checkpoints.build_checkpoint(work / "other", SHAPE, seed=1)
    checkpoints.build_checkpoint(work / "foreign", replace(SHAPE, languages=("de", "en", "fr")), seed=2)
    corpus = small_corpus.corpus()
    keys = list(dict.fromkeys(corpus.key(clip) for clip in corpus.split("train")))[:4]
    rows = [
        asdict(Manner("a teacher", "corpus", None)) | {"labels": 1},
        *(asdict(Label(key, "Stop!", 0.0)) for key in keys),
    ]
    (work / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(init(work, work / "begun")) == 0
    assert main(train(work)) == 0
    return work


def init(work: Path, out: Path, layers: int = 2) -> list[str]:
    return ["init", "--teacher", str(work / "teacher"), "--decoder-layers", str(layers), "--out", str(out)]


def train(work: Path, *more: str) -> list[str]:
    return ["train", "--teacher", str(work / "teacher"), "--student", str(work / "begun"), "--corpus",
            str(small_corpus.folder()), "--labels", str(work / "labels.jsonl"), "--out", str(work / "trained"),
            "--steps", "1", *more]  # fmt: skip


def export(work: Path, out: Path, teacher: str = "teacher", student: str = "begun") -> list[str]:
    return ["export", "--teacher", str(work / teacher), "--student", str(work / student), "--trained",
            str(work / "trained"), "--out", str(out)]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 100 kB: the kernel's own refusal, as of a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_older_checkpoint(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(init(work, out)) == 0
    before = contents(out)
    with small_files():
        assert main(init(work, out, layers=1)) == 1
    assert "cannot be written to" in capsys.readouterr().err
    assert contents(out) == before
    assert list(tmp_path.iterdir()) == [out]


def test_what_is_no_checkpoint_is_not_written_to(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(init(work, tmp_path)) == 1
    assert "holds something else than a checkpoint" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_student_does_not_take_its_teachers_place(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(work / "teacher")
    assert main(init(work, work / "teacher")) == 1
    assert main(export(work, work / "teacher")) == 1
    assert capsys.readouterr().err.count("is the teacher, which would be lost: choose another --out") == 2
    assert contents(work / "teacher") == before


def test_an_export_says_of_which_step_it_is(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(export(work, tmp_path / "out")) == 0
    assert "the student after 1 steps" in capsys.readouterr().out


def test_an_export_is_of_the_teacher_and_the_student_that_were_trained(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(init(work, tmp_path / "deeper", layers=3)) == 0
    for arguments, says in (
        ({"teacher": "other"}, "encoder is not this teacher's"),
        ({"teacher": "foreign"}, "vocabularies of the student"),
        ({"student": str(tmp_path / "deeper")}, "of a model of another shape"),
    ):
        capsys.readouterr()
        assert main(export(work, tmp_path / "out", **arguments)) == 1
        assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--kl-weight", "0"], "--kl-weight 1.0, not 0.0"),
        (["--rate", "0.1"], "--rate 0.0008, not 0.1"),
        (["--augment", "0.5"], "--augment 0.4, not 0.5"),
        (["--weights", "home-en"], "--weights none, not home-en"),
        (["--student", "DEEPER"], "another --student"),
        (["--labels", "FEWER"], "another corpus or set of labels"),
    ],
)
def test_a_training_goes_on_as_it_was_begun(
    more: list[str], says: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if more[0] == "--student":
        more = [more[0], str(tmp_path / "deeper")]
        assert main(init(work, tmp_path / "deeper", layers=3)) == 0
    if more[0] == "--labels":
        more = [more[0], str(tmp_path / "labels.jsonl")]
        (tmp_path / "labels.jsonl").write_text("".join((work / "labels.jsonl").read_text().splitlines(True)[:3]))
    assert main(train(work, *more)) == 1
    said = capsys.readouterr().err
    assert says in said
    assert "or another --out" in said


def test_weights_that_are_cut_off_are_named(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken"
    assert main(init(work, broken)) == 0
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert main(train(work, "--student", str(broken))) == 1
    assert f"the weights in {broken} cannot be read" in capsys.readouterr().err


def test_only_one_vocabulary_is_averaged(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["average", str(work / "teacher"), str(work / "foreign"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "only checkpoints of one vocabulary can be averaged" in said
    assert "student" not in said


def test_a_checkpoint_may_become_the_mean(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["average", str(work / "teacher"), str(work / "other"), "--out", str(out)]) == 0
    before = contents(out)
    assert main(["average", str(out), str(work / "teacher"), "--out", str(out)]) == 0
    assert contents(out)["model.safetensors"] != before["model.safetensors"]
