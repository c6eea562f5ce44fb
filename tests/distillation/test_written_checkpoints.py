"""What `init`, `train`, `export` and `average` write, what they refuse, and what they leave where they cannot write."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import checkpoints
import pytest
import small_corpus
import small_school
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from distillation.cli import main
from distillation.label import distributions_of
from distillation.model import encode, greedy, layout_of, load_model, logits, shared_weights
from distillation.train import trained
from streaming.job import Job
from streaming.whisper.checkpoint import CheckpointError, open_checkpoint
from streaming.whisper.engine import WhisperEngine
from streaming.whisper.quantized import quantize
from streaming.whisper.weights import own_names, read_weights

SHAPE = replace(small_school.SHAPE, d_model=128)
"""Wide enough for some of its weights to be rounded to 8 bits."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, another one of the same shape, what the first taught, and its students, one with an encoder of its own
    and one without: as they are begun, and after a step.
    """
    work = tmp_path_factory.mktemp("work")
    teacher = small_school.teacher(work / "teacher", SHAPE)
    small_school.teacher(work / "other", SHAPE, seed=1)
    small_school.teach(teacher, work / "labels.jsonl")
    for name in ("own", "shared"):
        assert main(init(work, work / name, "--encoder", name)) == 0
        assert main(train(work, "--student", str(work / name), out=f"trained-{name}")) == 0
    return work


def init(work: Path, out: Path, *more: str, layers: int = 2) -> list[str]:
    return ["init", "--teacher", str(work / "teacher"), "--decoder-layers", str(layers), "--out", str(out), *more]


def train(work: Path, *more: str, out: str = "trained-own") -> list[str]:
    return ["train", "--teacher", str(work / "teacher"), "--student", str(work / "own"), "--corpus",
            str(small_corpus.folder()), "--labels", str(work / "labels.jsonl"), "--out", str(work / out),
            "--rate", "0.001", "--steps", "1", *more]  # fmt: skip


def export(work: Path, out: Path, *more: str, teacher: str = "teacher", student: str = "own") -> list[str]:
    return ["export", "--teacher", str(work / teacher), "--student", str(work / student), "--trained",
            str(work / f"trained-{student}"), "--out", str(out), *more]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def learnt(folder: Path) -> dict[str, Tensor]:
    """What a training has, by the names of the weights' file."""
    return {name.removeprefix("model."): weight for name, weight in trained(folder).weights.items()}


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


# --- a student with its teacher --------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", ["own", "shared"])
def test_an_export_is_what_was_learnt_and_shares_the_rest(student: str, work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(export(work, out, "--name", "small", student=student)) == 0
    checkpoint = open_checkpoint(str(out), "student")
    assert checkpoint.name == "out"
    assert json.loads((out / "whisperd.json").read_text())["name"] == "small"
    weights, teachers = learnt(work / f"trained-{student}"), load_file(work / "teacher" / "model.safetensors")
    model = load_model(open_checkpoint(str(work / student), "student"))
    shared = {*shared_weights(model, own_encoder=student == "own"), "proj_out.weight"}
    assert own_names(out) == weights.keys() - shared
    found = read_weights(checkpoint, torch.float32)
    assert found.keys() == weights.keys() - {"proj_out.weight"}
    rounded = 0
    for name, weight in found.items():
        if name in shared:
            assert torch.equal(weight, teachers[f"model.{name}"]), name
            assert torch.equal(weight, weights[name]), name
        elif weight.dim() > 1 and weight.numel() >= 1 << 16:
            step = quantize(weights[name])[1].view(-1, *[1] * (weight.dim() - 1))
            assert bool(((weight - weights[name]).abs() <= 0.5001 * step).all()), name
            rounded += 1
        else:
            assert torch.equal(weight, weights[name].half().float()), name
    assert rounded >= 2


@pytest.mark.parametrize("student", ["own", "shared"])
def test_a_pair_shares_in_memory_what_it_shares_on_disk(student: str, work: Path, tmp_path: Path) -> None:
    assert main(export(work, tmp_path / "out", student=student)) == 0
    engine = WhisperEngine.load(str(tmp_path / "out"), str(work / "teacher"), "cpu", dtype="float32")
    first, second = engine.models
    assert first.decoder.embed_tokens is second.decoder.embed_tokens
    assert (first.encoder is second.encoder) == (student == "shared")
    # An encoder of its own hears short windows; the teacher's stays with those that it knows, here the same.
    assert first.checkpoint.contexts == ((2, 3, 5, 7, 8) if student == "own" else small_school.CONTEXTS)
    corpus = small_corpus.corpus()
    results = engine.run([Job(corpus.waveform(clip), max_tokens=4) for clip in corpus.clips[:3]])
    assert all(result.error is None and result.tokens for result in results)


def test_a_student_is_refused_when_its_teacher_is_another(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "teacher", tmp_path / "teacher")
    assert main(export(work, tmp_path / "student")) == 0
    read_weights(open_checkpoint(str(tmp_path / "student"), "student"), torch.float32)
    shutil.copyfile(work / "other" / "model.safetensors", tmp_path / "teacher" / "model.safetensors")
    with pytest.raises(CheckpointError, match="shares the weights of another teacher"):
        WhisperEngine.load(str(tmp_path / "student"), None, "cpu", dtype="float32")


def test_a_whole_student_is_what_transformers_loads(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(export(work, out, "--whole")) == 0
    checkpoint = open_checkpoint(str(out), "student")
    assert checkpoint.lender is None
    assert checkpoint.contexts == (2, 3, 5, 7, 8)
    loaded = WhisperForConditionalGeneration.from_pretrained(out, dtype="float32").eval()
    assert loaded.config.decoder_layers == 2
    ours = load_model(open_checkpoint(str(work / "own"), "student")).eval()
    ours.load_state_dict(trained(work / "trained-own").weights)
    layout, mel = layout_of(checkpoint, None), torch.randn(2, 80, 3000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        states = encode(ours, mel)
        said = greedy(ours, states, layout.prompt, layout.end, limit=6)
        assert all(said)
        shortest = min(map(len, said))
        tokens = torch.tensor([[*layout.prompt, *row[:shortest]] for row in said])
        # Not their texts: of two tokens that are all but equally likely, rounding chooses.
        theirs = loaded(input_features=mel, decoder_input_ids=tokens).logits
        difference = (theirs - logits(ours, tokens, states)).abs().max()
    assert difference < 0.2 * theirs.std()  # they are stored in 16 bits
    # Nor does it need its teacher here.
    engine = WhisperEngine.load(str(out), None, "cpu", dtype="float32")
    assert engine.run([Job(small_corpus.recorded("stop"), max_tokens=4)])[0].error is None


def test_a_student_may_begin_as_one_that_has_learnt(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier, out = tmp_path / "earlier", tmp_path / "out"
    assert main(export(work, earlier)) == 0
    assert main(init(work, out, "--start", str(earlier))) == 0
    assert f"what {earlier} has learnt" in capsys.readouterr().out
    before, after = (read_weights(open_checkpoint(str(each), "student"), torch.float32) for each in (earlier, out))
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=1e-5, atol=1e-6, msg=name)
    assert main(init(work, tmp_path / "deeper", "--start", str(earlier), layers=3)) == 1
    assert "decoder_layers 2, this one 3: leave --start out" in capsys.readouterr().err


# --- what is refused -------------------------------------------------------------------------------------------------


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
    assert "contains something other than a checkpoint" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_student_does_not_take_its_teachers_place(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(work / "teacher")
    assert main(init(work, work / "teacher")) == 1
    assert main(export(work, work / "teacher")) == 1
    assert capsys.readouterr().err.count("is the teacher, which would be overwritten: choose another --out") == 2
    assert contents(work / "teacher") == before


def test_a_student_cannot_lend_what_it_has_not(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--teacher", str(work / "own"), "--out", str(tmp_path / "out")]) == 1
    assert "shares the weights of its own teacher: export it with --whole first" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["31", "1.234"])
def test_a_window_that_no_whisper_hears_is_refused(
    seconds: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(init(work, tmp_path / "out", "--contexts", "2", seconds)) == 1
    assert f"--contexts {seconds}: a window lasts 30 s at most, in steps of 0.02 s" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_export_says_of_which_step_it_is(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(export(work, tmp_path / "out")) == 0
    assert "the student after 1 steps" in capsys.readouterr().out


def test_an_export_is_of_the_teacher_and_the_student_that_were_trained(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(init(work, tmp_path / "deeper", layers=3)) == 0
    for command, says in (
        (export(work, tmp_path / "out", teacher="other"), "own is not a student of other: make one with"),
        (export(work, tmp_path / "out", "--student", str(work / "teacher")), "teacher is not a student of teacher"),
        (export(work, tmp_path / "out", "--student", str(tmp_path / "deeper")), "of a model of another shape"),
    ):
        capsys.readouterr()
        assert main(command) == 1
        assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--kl-weight", "0"], "--kl-weight 1.0, not 0.0"),
        (["--rate", "0.1"], "--rate 0.001, not 0.1"),
        (["--augment", "0.5"], "--augment 0.4, not 0.5"),
        (["--student", "DEEPER"], "another --student"),
        (["--labels", "FEWER"], "another corpus or set of labels"),
        (["--teacher", "OTHER"], "own is not a student of other"),
    ],
)
def test_a_training_goes_on_as_it_was_begun(
    more: list[str], says: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if more[0] == "--teacher":
        more = [more[0], str(work / "other")]
    if more[0] == "--student":
        more = [more[0], str(tmp_path / "deeper")]
        assert main(init(work, tmp_path / "deeper", layers=3)) == 0
    if more[0] == "--labels":
        more = [more[0], str(tmp_path / "labels.jsonl")]
        (tmp_path / "labels.jsonl").write_text("".join((work / "labels.jsonl").read_text().splitlines(True)[:3]))
        shutil.copy(distributions_of(work / "labels.jsonl"), tmp_path)
    assert main(train(work, *more)) == 1
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


@pytest.mark.parametrize("command", ["train", "export"])
def test_weights_that_are_cut_off_are_named(
    command: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    assert main(init(work, broken)) == 0
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    commands = {"train": train(work), "export": export(work, tmp_path / "out")}
    assert main([*commands[command], "--student", str(broken)]) == 1
    assert f"the weights in {broken} cannot be read" in capsys.readouterr().err


# --- the mean --------------------------------------------------------------------------------------------------------


def test_students_of_one_teacher_are_averaged(work: Path, tmp_path: Path) -> None:
    begun, after, mean = work / "own", tmp_path / "after", tmp_path / "mean"
    assert main(export(work, after)) == 0
    assert main(["average", f"{begun}:3", str(after), "--out", str(mean), "--name", "mean"]) == 0
    first, second, third = (
        read_weights(open_checkpoint(str(each), "student"), torch.float32) for each in (begun, after, mean)
    )
    for name, weight in third.items():
        expected = 0.75 * first[name] + 0.25 * second[name]
        torch.testing.assert_close(weight, expected, rtol=2e-3, atol=float(expected.abs().max()) / 200, msg=name)
    assert any(not torch.equal(weight, second[name]) for name, weight in first.items())
    told = json.loads((mean / "whisperd.json").read_text())
    assert told == json.loads((after / "whisperd.json").read_text()) | {"name": "mean"}
    # It may take the place of one of its parts.
    before = contents(mean)
    assert main(["average", str(mean), str(after), "--out", str(mean)]) == 0
    assert contents(mean)["model.safetensors"] != before["model.safetensors"]


def test_only_students_of_one_kind_are_averaged(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(init(work, tmp_path / "deeper", layers=3)) == 0
    assert main(["init", "--teacher", str(work / "other"), "--out", str(tmp_path / "others")]) == 0
    own = str(work / "own")
    for parts, says in (
        ([own, str(tmp_path / "deeper")], "only students of one shape can be averaged"),
        ([own, str(tmp_path / "others")], "only students of one teacher can be averaged"),
        ([own, str(work / "shared")], "has an encoder of its own"),
        ([str(work / "teacher"), own], "teacher shares nothing with a teacher: only students of one"),
        ([f"{own}:none", own], "share after the colon must be above 0"),
        ([f"{own}:nan", own], "share after the colon must be above 0"),
        ([f"{own}:0", own], "share after the colon must be above 0"),
    ):
        capsys.readouterr()
        assert main(["average", *parts, "--out", str(tmp_path / "out")]) == 1
        assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_mean_has_the_alignment_heads_of_its_parts(tmp_path: Path) -> None:
    """Of the teacher's heads a student may have none: its mean has none either."""
    for heads, left in (([(1, 0)], None), ([(1, 0), (2, 1)], ((1, 1),))):
        folder = tmp_path / str(len(heads))
        checkpoints.build_checkpoint(folder / "teacher", small_school.SHAPE, alignment_heads=heads)
        assert main(["init", "--teacher", str(folder / "teacher"), "--out", str(folder / "student")]) == 0
        begun = str(folder / "student")
        assert main(["average", begun, begun, "--out", str(folder / "mean")]) == 0
        for each in (begun, str(folder / "mean")):
            assert open_checkpoint(each, "student").alignment_heads == left
