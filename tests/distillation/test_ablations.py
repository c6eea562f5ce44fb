"""Students that differ in one thing."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_corpus
import torch

from distillation.ablations import Judge, Outcome, Spoilt, Variant, ablate, account, variants
from distillation.batches import IGNORED, Batches, Mixture
from distillation.errors import DistillError
from distillation.label import word_error_rate
from distillation.model import Whisper, encoding, make_teacher, own_layout
from distillation.noise import Noises
from distillation.settings import SettingsError
from distillation.states import States

LAYOUT = own_layout(small_corpus.tokenizer())


@pytest.fixture(scope="module")
def teacher() -> Whisper:
    torch.manual_seed(0)
    return make_teacher(LAYOUT.tokenizer, width=64, encoder_layers=1, decoder_layers=4, dropout=0.0)


@pytest.fixture(scope="module")
def states(teacher: Whisper, tmp_path_factory: pytest.TempPathFactory) -> States:
    corpus = small_corpus.corpus()
    batches = Batches(corpus, corpus.split("train"), Noises(), LAYOUT, Mixture({}, seconds=30, empty_share=0))
    store = States(tmp_path_factory.mktemp("states"), batches, 1, 0, {"--teacher": "tiny"})
    store.prepare(encoding(teacher, "cpu"))
    return store


def texts(labels: torch.Tensor) -> list[str]:
    return [
        LAYOUT.tokenizer.decode([token for token in row if 0 <= token < LAYOUT.end]).strip() for row in labels.tolist()
    ]


def test_the_questions_that_are_asked() -> None:
    asked = variants(4)
    assert {each.layers for each in asked if each.group == "decoder layers"} == {1, 2, 4}
    assert len({(each.group, each.name) for each in asked}) == len(asked)


def test_labels_are_spoilt_in_their_share_and_the_filter_sees_them(states: States) -> None:
    off = Variant("filter", "off", spoilt=0.5)
    strict = Variant("filter", "5 %", spoilt=0.5, filter=0.05)
    true, wrong, kept = [], [], []
    for step in range(states.count):
        true += texts(states[step].labels)
        wrong += texts(Spoilt(states, off, LAYOUT)[step].labels)
        filtered = Spoilt(states, strict, LAYOUT)[step].labels
        kept += [not bool((row == IGNORED).all()) for row in filtered]
    spoilt = [one != other for one, other in zip(true, wrong, strict=True)]
    assert 0.2 < sum(spoilt) / len(spoilt) < 0.8
    for one, other, stays in zip(true, wrong, kept, strict=True):
        assert stays == (word_error_rate(one, other) <= 0.05)


def test_labels_that_are_right_stay_as_they_are(states: States) -> None:
    assert torch.equal(Spoilt(states, Variant("losses", "x"), LAYOUT)[0].labels, states[0].labels)


def test_every_variant_is_trained_once(teacher: Whisper, states: States, tmp_path: Path) -> None:
    corpus = small_corpus.corpus()
    judge = Judge(teacher, corpus, corpus.split("held_out")[:2], LAYOUT, "cpu")
    outcomes = ablate(teacher, states, judge, LAYOUT, 1, 1, tmp_path, "cpu", {"--judged": 2})
    assert [each.variant for each in outcomes] == variants(4)

    def never(student: Whisper) -> float:
        raise AssertionError("what is written down is not trained again")

    again = ablate(teacher, states, never, LAYOUT, 1, 1, tmp_path, "cpu", {"--judged": 2})
    assert again == outcomes
    told = account(outcomes, 0.5, 1)
    assert told.count("**decoder layers**") == 1
    assert "| off |" in told


def test_outcomes_of_other_settings_are_refused(teacher: Whisper, states: States, tmp_path: Path) -> None:
    def judged(student: Whisper) -> float:
        return 0.5

    def run(steps: int, clips: int) -> list[Outcome]:
        return ablate(teacher, states, judged, LAYOUT, steps, 1, tmp_path, "cpu", {"--judged": clips})

    assert {each.wer for each in run(1, 2)} == {0.5}
    with pytest.raises(SettingsError, match="--steps 1, not 2"):
        run(2, 2)
    with pytest.raises(SettingsError, match="--judged 2, not 3"):
        run(1, 3)
    (tmp_path / "losses labels alone 0" / "outcome.json").write_text('{"wer"')
    with pytest.raises(DistillError, match=r"outcome\.json cannot be read: remove it"):
        run(1, 2)
