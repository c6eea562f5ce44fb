"""Training: batches come again exactly, a stopped run goes on as if it had not been, and a student is a student."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import small_corpus
import torch
from tokenizers import Tokenizer
from transformers import WhisperForConditionalGeneration, WhisperTokenizer

from distillation.augment import features, warped_filters
from distillation.batches import IGNORED, Batches, Mixture
from distillation.corpus import Corpus
from distillation.model import (
    CONTEXTS,
    ModelError,
    Whisper,
    continue_student,
    deepen,
    encode,
    encoding,
    export,
    greedy,
    logits,
    make_student,
    make_teacher,
    own_layout,
    student_layers,
)
from distillation.noise import Noises
from distillation.settings import SettingsError
from distillation.states import States
from distillation.tokenizer import END_OF_TEXT, NO_SPEECH, TIMESTAMPS, token_id
from distillation.train import (
    HeadObjective,
    Progress,
    Schedule,
    StudentObjective,
    TeacherObjective,
    TrainingError,
    fit,
    save,
    trained,
)

MIXTURE = Mixture({}, seconds=12, clean_until=0, full_from=1, exact_from=3)


NOISES = Noises(*[[np.ones(8000, np.float32)]] * 3)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def corpus() -> Corpus:
    return small_corpus.corpus()


@pytest.fixture
def tokenizer() -> Tokenizer:
    return small_corpus.tokenizer()


@pytest.fixture
def batches(corpus: Corpus, tokenizer: Tokenizer) -> Batches:
    return Batches(corpus, corpus.split("train"), NOISES, own_layout(tokenizer), MIXTURE)


def _tiny(tokenizer: Tokenizer) -> Whisper:
    torch.manual_seed(0)
    return make_teacher(tokenizer, width=64, encoder_layers=1, decoder_layers=3, dropout=0.0)


def test_a_step_has_the_same_batch_whenever_it_is_asked_for(batches: Batches) -> None:
    once = [batches[step] for step in (0, 5, 2)]
    again = [batches[step] for step in (0, 5, 2)]
    for one, other in zip(once, again, strict=True):
        assert torch.equal(one.mel, other.mel)
        assert torch.equal(one.labels, other.labels)


def test_an_epoch_holds_every_clip(batches: Batches, corpus: Corpus) -> None:
    plan = batches._epoch_plan(0)
    single = {utterance[0] for batch in plan for utterance in batch if len(utterance) == 1}
    assert single == set(range(len(corpus.split("train"))))


def test_labels_are_the_inputs_one_later(batches: Batches, tokenizer: Tokenizer) -> None:
    batch = batches[1]
    end, nothing = token_id(tokenizer, END_OF_TEXT), token_id(tokenizer, NO_SPEECH)
    for inputs, labels in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True):
        true = [token for token in labels if token != IGNORED]
        assert inputs[0] == own_layout(tokenizer).prompt[0]
        assert true[-1] == end
        assert true[:-1] == inputs[1 : len(true)] or true[0] == nothing


def test_windows_are_the_checkpoints_contexts_in_the_end(batches: Batches) -> None:
    assert {batches[step].mel.shape[2] / 100 for step in range(3, 8)} <= set(CONTEXTS)


def test_features_are_whispers() -> None:
    from transformers import WhisperFeatureExtractor

    wave = np.random.default_rng(0).standard_normal(16000 * 30).astype(np.float32) * 0.1
    theirs = WhisperFeatureExtractor(feature_size=80)(wave, sampling_rate=16000, return_tensors="np").input_features[0]
    np.testing.assert_allclose(features([wave], 30.0, 80)[0].numpy(), theirs, atol=2e-4)
    assert not torch.equal(warped_filters(80, 0.9), warped_filters(80))


def test_a_stopped_training_goes_on_as_if_it_had_not_been(corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path) -> None:
    def train(folder: Path, *stops: int) -> dict[str, torch.Tensor]:
        for stop in stops:
            model = _tiny(tokenizer)
            objective = TeacherObjective(model, ctc_weight=1.0)
            batches = Batches(corpus, corpus.split("train"), Noises(), own_layout(tokenizer), MIXTURE)
            fit(objective, batches, Schedule(stop, 1e-3, warmup=1, cooldown=0, every=2), folder)
        return dict(model.state_dict())

    torch.manual_seed(0)
    through = train(tmp_path / "through", 4)
    stopped = train(tmp_path / "stopped", 2, 4)
    for name, weights in through.items():
        torch.testing.assert_close(weights, stopped[name], msg=name)
    curve = [json.loads(line) for line in (tmp_path / "stopped" / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == [2, 4]
    assert (tmp_path / "stopped" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_disk_that_is_full_leaves_the_older_checkpoint(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = _tiny(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters())
    save(tmp_path / "checkpoint.pt", model, optimizer, Progress(step=1), {})
    before = (tmp_path / "checkpoint.pt").read_bytes()
    # No file may grow beyond 100 kB from here on: the kernel's own refusal, as of a full disk.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"step 2 cannot be written .*: make room"):
            save(tmp_path / "checkpoint.pt", model, optimizer, Progress(step=2), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


def test_a_torn_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(TrainingError, match=r"checkpoint\.pt is no whole checkpoint"):
        trained(tmp_path)
    with pytest.raises(TrainingError, match="distill train"):
        trained(tmp_path / "nowhere")


def test_a_student_must_have_its_teachers_encoder(tokenizer: Tokenizer) -> None:
    teacher, other = _tiny(tokenizer), _tiny(tokenizer)
    with torch.no_grad():
        other.model.encoder.conv1.weight.add_(1)
    with pytest.raises(TrainingError, match="distill init"):
        StudentObjective(other, teacher, 0.8, 1.0, 2.0)


def test_a_teacher_learns(corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path) -> None:
    batches = Batches(
        corpus, corpus.split("train")[:3], Noises(), own_layout(tokenizer), Mixture({}, clean_until=99, empty_share=0)
    )
    fit(TeacherObjective(_tiny(tokenizer), 1.0), batches, Schedule(40, 3e-3, warmup=5, cooldown=0, every=10), tmp_path)
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert curve[-1]["cross_entropy"] < 0.6 * curve[0]["cross_entropy"]
    assert curve[-1]["ctc"] < curve[0]["ctc"]


def test_a_new_head_learns_alone_from_an_encoder_that_stays(
    corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    batches = Batches(
        corpus, corpus.split("train")[:3], Noises(), own_layout(tokenizer), Mixture({}, clean_until=99, empty_share=0)
    )
    teacher = TeacherObjective(_tiny(tokenizer), 1.0)
    before = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    fit(HeadObjective(teacher), batches, Schedule(40, 1e-2, warmup=5, cooldown=0, every=10), tmp_path)
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert curve[-1]["ctc"] < 0.8 * curve[0]["ctc"]
    assert all(torch.equal(value, before[name]) for name, value in teacher.model.state_dict().items())


@pytest.mark.parametrize(("layers", "kept_layers"), [(1, [0]), (2, [0, 3]), (3, [0, 2, 3]), (4, [0, 1, 2, 3])])
def test_a_student_keeps_evenly_spaced_layers(layers: int, kept_layers: list[int]) -> None:
    assert student_layers(4, layers) == kept_layers


def test_a_student_cannot_have_more_layers() -> None:
    with pytest.raises(ModelError, match=r"1\.\.4"):
        student_layers(4, 5)


def test_a_student_trains_its_decoder_alone(corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path) -> None:
    teacher = _tiny(tokenizer)
    student = make_student(teacher, 2)
    before = {name: weights.clone() for name, weights in student.state_dict().items()}
    states = _heard(corpus, tokenizer, teacher, tmp_path / "states")
    fit(StudentObjective(student, teacher, 0.8, 1.0, 2.0), states, Schedule(3, 1e-3, warmup=1, every=3), tmp_path)
    after = student.state_dict()
    for name in before:
        frozen = ".encoder." in name
        assert torch.equal(before[name], after[name]) == frozen or "embed_positions" in name, name


def test_a_student_of_all_layers_begins_as_its_teacher(tokenizer: Tokenizer) -> None:
    teacher = _tiny(tokenizer).eval()
    student = make_student(teacher, 3).eval()
    states = encode(teacher, torch.randn(1, 80, 100))
    tokens = torch.tensor([own_layout(tokenizer).prompt])
    torch.testing.assert_close(logits(student, tokens, states), logits(teacher, tokens, states))
    objective = StudentObjective(student, teacher, 0.0, 1.0, 2.0)
    assert objective.module is student


def test_a_student_goes_on_after_its_teacher_did(tokenizer: Tokenizer) -> None:
    earlier, teacher = make_student(_tiny(tokenizer), 2).eval(), _tiny(tokenizer).eval()
    student = make_student(teacher, 2).eval()
    continue_student(student, earlier)
    sound, tokens = torch.randn(1, 80, 100), torch.tensor([own_layout(tokenizer).prompt])
    assert torch.equal(encode(student, sound), encode(teacher, sound))
    states = encode(teacher, sound)
    assert torch.equal(logits(student, tokens, states), logits(earlier, tokens, states))
    with pytest.raises(ModelError, match="decoder_layers 2, this one 3"):
        continue_student(make_student(teacher, 3), earlier)


def test_a_deeper_teacher_begins_as_it_was(tokenizer: Tokenizer) -> None:
    teacher = _tiny(tokenizer).eval()
    deeper = deepen(teacher, 5).eval()
    assert deeper.config.decoder_layers == 5
    states = encode(teacher, torch.randn(2, 80, 100))
    tokens = torch.randint(0, 300, (2, 7))
    torch.testing.assert_close(logits(deeper, tokens, states), logits(teacher, tokens, states))
    # And what was added can learn.
    logits(deeper, tokens, states).square().mean().backward()
    assert all(layer.fc2.weight.grad.abs().sum() > 0 for layer in deeper.model.decoder.layers)
    with pytest.raises(ModelError, match="has 5 decoder layers"):
        deepen(deeper, 4)


def test_the_encoder_is_transformers_own(tokenizer: Tokenizer) -> None:
    teacher = _tiny(tokenizer).eval()
    mel = torch.randn(2, 80, 3000)
    expected = teacher.model.encoder(mel).last_hidden_state
    torch.testing.assert_close(encode(teacher, mel), expected, atol=1e-4, rtol=1e-4)


def test_a_teacher_goes_on_with_an_earlier_head(corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path) -> None:
    earlier = TeacherObjective(_tiny(tokenizer), ctc_weight=1.0)
    batches = Batches(corpus, corpus.split("train"), NOISES, own_layout(tokenizer), MIXTURE)
    fit(earlier, batches, Schedule(1, 1e-3, warmup=1, every=1), tmp_path)
    later = TeacherObjective(deepen(earlier.model, 4), ctc_weight=1.0)
    assert not torch.equal(later.head.weight, earlier.head.weight)
    later.take_head(trained(tmp_path).weights)
    assert torch.equal(later.head.weight, earlier.head.weight)


def test_an_exported_checkpoint_is_what_transformers_loads(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = _tiny(tokenizer).eval()
    export(model, tokenizer, tmp_path, CONTEXTS, "tiny")
    loaded = WhisperForConditionalGeneration.from_pretrained(tmp_path, dtype="float32").eval()
    mel = torch.randn(1, 80, 3000)
    layout = own_layout(tokenizer)
    prompt, end = layout.prompt, layout.end
    ours = greedy(loaded, encode(loaded, mel), prompt, end, limit=6)[0]
    theirs = loaded.generate(mel, max_new_tokens=6, return_timestamps=False)[0].tolist()
    assert [token for token in theirs if token not in (*prompt, end)][:6] == ours
    words = WhisperTokenizer.from_pretrained(tmp_path)
    assert words.decode(layout.tokens("stop")) == " stop"
    assert tokenizer.token_to_id(TIMESTAMPS[-1]) == tokenizer.get_vocab_size() - 1


# --- encoder states --------------------------------------------------------------------------------------------------


def _heard(corpus: Corpus, tokenizer: Tokenizer, teacher: Whisper, folder: Path, versions: int = 1) -> States:
    batches = Batches(corpus, corpus.split("train"), Noises(), own_layout(tokenizer), MIXTURE)
    states = States(folder, batches, versions, seed=1, settings={"--teacher": "tiny"})
    states.prepare(encoding(teacher, "cpu"))
    return states


def test_every_batch_is_heard_once_and_comes_once_an_epoch(
    corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    teacher = _tiny(tokenizer)
    states = _heard(corpus, tokenizer, teacher, tmp_path, versions=2)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")}
    assert len(files) == states.count > 2

    def heard_again(mel: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a batch was heard twice")

    states.prepare(heard_again)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")} == files
    for epoch in (0, 3):
        inputs = [states[epoch * states.count + place].inputs.tolist() for place in range(states.count)]
        assert sorted(map(str, inputs)) == sorted(str(states[place].inputs.tolist()) for place in range(states.count))


def test_states_are_the_encoders_of_the_batch(corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path) -> None:
    teacher = _tiny(tokenizer).eval()
    states = _heard(corpus, tokenizer, teacher, tmp_path)
    batches = Batches(corpus, corpus.split("train"), Noises(), own_layout(tokenizer), MIXTURE)
    stored = {str(states[place].labels.tolist()): states[place].states for place in range(states.count)}
    for number in range(states.count):
        batch = batches[number]
        with torch.no_grad():
            torch.testing.assert_close(
                stored[str(batch.labels.tolist())].float(), encode(teacher, batch.mel), atol=0.1, rtol=0.1
            )


def test_states_of_other_batches_are_refused(corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path) -> None:
    teacher = _tiny(tokenizer)
    _heard(corpus, tokenizer, teacher, tmp_path)
    with pytest.raises(SettingsError, match=r"--versions 1, not 2: .* another --out"):
        _heard(corpus, tokenizer, teacher, tmp_path, versions=2)


def test_a_batch_that_was_being_written_is_heard_again(corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path) -> None:
    teacher = _tiny(tokenizer)
    _heard(corpus, tokenizer, teacher, tmp_path)
    whole = torch.load(tmp_path / "000001.pt", weights_only=True)["states"]
    (tmp_path / "000001.pt").unlink()
    (tmp_path / "000001.part").write_bytes(b"torn")
    _heard(corpus, tokenizer, teacher, tmp_path)
    assert torch.equal(torch.load(tmp_path / "000001.pt", weights_only=True)["states"], whole)
    assert not (tmp_path / "000001.part").exists()
