"""The property that holds the heart together: no draft, batch or proposer changes what is decoded."""

from __future__ import annotations

import pytest
import torch
from checkpoints import Pair
from hypothesis import given, settings
from speakers import BEFORE, LONGEST, RECORDINGS, Plan, Speaker, batches, common_prefix, speaker

from streaming.whisper.decode import NOTHING, DraftModel, Window, decode, language_logits, verify
from streaming.whisper.half_precision import halve
from streaming.whisper.model import KVCache


@torch.inference_mode()
def assert_unchanged(speaker: Speaker, batch: list[Plan], proposer: Speaker | None = None) -> None:
    rows = [plan.row(speaker) for plan in batch]
    recordings = torch.tensor([plan.recording for plan in batch])
    helper = None
    if proposer is not None:
        helper = DraftModel(proposer.decoder, proposer.memory.select(recordings), proposer.rules, 3)
    decode(speaker.decoder, speaker.memory.select(recordings), speaker.rules, rows, helper)
    for plan, row in zip(batch, rows, strict=True):
        alone = plan.said(speaker)
        count = min(plan.limit, len(alone.log_probs))
        assert row.tokens == alone.tokens[: len(row.prompt) + count]
        assert row.log_probs == pytest.approx(alone.log_probs[:count], abs=1e-3)
        assert row.accepted == common_prefix(plan.draft(speaker)[: plan.limit], alone.text)
        assert row.no_speech == pytest.approx(alone.no_speech, rel=1e-3)
        assert row.done


@given(batches)
@settings(max_examples=80)
def test_any_draft_in_any_batch_gives_what_no_draft_gives(teacher: Speaker, batch: list[Plan]) -> None:
    assert_unchanged(teacher, batch)


@given(batches)
@settings(max_examples=40)
def test_the_same_with_languages(linguist: Speaker, batch: list[Plan]) -> None:
    assert_unchanged(linguist, batch)


@given(batches)
@settings(max_examples=40)
def test_any_proposer_gives_what_the_model_alone_gives(teacher: Speaker, student: Speaker, batch: list[Plan]) -> None:
    assert_unchanged(teacher, batch, student)


@pytest.mark.parametrize("before", range(len(BEFORE)))
@torch.inference_mode()
def test_no_speech_is_read_behind_start_of_transcript(teacher: Speaker, before: int) -> None:
    """Wherever that stands: `alone` lets the cache hold what is in front of it, this reads all at once."""
    alone = teacher.alone(2, False, before=before)
    prompt = torch.tensor([alone.prompt])
    cache = KVCache(teacher.memory.select(torch.tensor([2])))
    cache.reserve(prompt.shape[1])
    logits = teacher.decoder(prompt, torch.arange(prompt.shape[1])[None], cache)
    found = logits[0, alone.told].softmax(-1)[teacher.rules.grammar.no_speech]
    assert alone.no_speech == pytest.approx(float(found), rel=1e-4)
    assert before == 0 or alone.no_speech != pytest.approx(teacher.alone(2, False).no_speech, rel=1e-2)


@pytest.fixture(scope="module")
def halved(english: Pair) -> Speaker:
    """The teacher, with its weights in half precision."""
    found = speaker(english.teacher)
    halve(found.decoder)
    return found


@given(batches)
@settings(max_examples=40)
def test_the_same_with_weights_in_half_precision(halved: Speaker, student: Speaker, batch: list[Plan]) -> None:
    assert_unchanged(halved, batch)
    assert_unchanged(halved, batch, student)


def test_weights_in_half_precision_say_what_float32_says(halved: Speaker, teacher: Speaker) -> None:
    for number in range(RECORDINGS):
        one, other = halved.alone(number, False), teacher.alone(number, False)
        assert one.tokens == other.tokens
        # Random weights make steep logits, in which what is rounded off shows more than in a trained model's.
        assert one.log_probs == pytest.approx(other.log_probs, abs=0.1)
    assert any(one.log_probs != teacher.alone(*asked).log_probs for asked, one in halved.said.items())


def test_the_recordings_are_worth_the_test(teacher: Speaker, student: Speaker) -> None:
    """Texts differ, with a vocabulary too; some end, timestamps occur, and the student is right only in part."""
    texts = [teacher.alone(number, False) for number in range(RECORDINGS)]
    assert len({tuple(row.tokens) for row in texts}) > RECORDINGS // 2
    assert any(row.tokens[-1] == row.eot for row in texts)
    assert sum(len(row.text) for row in texts) > 4 * RECORDINGS
    stamped = [teacher.alone(number, True).text for number in range(RECORDINGS)]
    assert all(any(token > 610 for token in text) and any(token < 600 for token in text) for text in stamped)
    biased = [teacher.alone(number, False, 1).text for number in range(RECORDINGS)]
    assert sum(row.text != text for row, text in zip(texts, biased, strict=True)) > RECORDINGS // 2
    shared = sum(common_prefix(student.alone(number, False).text, row.text) for number, row in enumerate(texts))
    assert 0 < shared < sum(len(row.text) for row in texts)


@torch.inference_mode()
def test_without_its_wrong_rest_a_draft_saves_what_its_first_pass_keeps(teacher: Speaker) -> None:
    """So much is known of decoding without re-anchoring from a run with it: `whisperd bench offline` counts on it."""
    for recording in range(RECORDINGS):
        truth, other = (teacher.alone(number % RECORDINGS, False) for number in (recording, recording + 1))
        kept = truth.text[: 1 + len(truth.text) // 2]
        kept += other.text[: common_prefix(other.text, truth.text[len(kept) :])]
        row = teacher.row(kept, LONGEST, False)
        decode(teacher.decoder, teacher.memory.select(torch.tensor([recording])), teacher.rules, [row])
        assert row.passes == len(truth.log_probs) - row.accepted


@torch.inference_mode()
def test_a_right_draft_takes_one_pass(teacher: Speaker) -> None:
    for recording in range(RECORDINGS):
        truth = teacher.alone(recording, False)
        row = teacher.row(truth.text, LONGEST, False)
        decode(teacher.decoder, teacher.memory.select(torch.tensor([recording])), teacher.rules, [row])
        assert (row.passes, row.accepted) == (1, len(truth.text))


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["insert", "delete", "replace"])
def test_a_draft_with_one_error_takes_few_passes(teacher: Speaker, kind: str) -> None:
    """Without re-anchoring each token behind the error would take its own."""
    long = [number for number in range(RECORDINGS) if len(teacher.alone(number, False).text) >= 12]
    assert long
    for recording in long:
        truth = teacher.alone(recording, False)
        draft = Plan(recording, False, LONGEST, "truth", ((2, kind, 599),)).draft(teacher)
        row = teacher.row(draft, LONGEST, False)
        decode(teacher.decoder, teacher.memory.select(torch.tensor([recording])), teacher.rules, [row])
        assert row.text == truth.text
        assert row.passes <= 5


@torch.inference_mode()
def test_a_good_proposer_saves_passes(teacher: Speaker) -> None:
    """The model itself as its proposer is always right: four tokens a pass instead of one."""
    everyone = torch.arange(RECORDINGS)
    rows = [teacher.row([], LONGEST, False) for _ in everyone]
    proposer = DraftModel(teacher.decoder, teacher.memory, teacher.rules, 3)
    decode(teacher.decoder, teacher.memory, teacher.rules, rows, proposer)
    for number, row in enumerate(rows):
        alone = teacher.alone(number, False)
        assert row.tokens == alone.tokens
        assert row.passes <= 1 + -(-(len(alone.log_probs) - 1) // 4)


@torch.inference_mode()
def test_verify_by_hand(teacher: Speaker) -> None:
    """A window in the middle of a text: the count of right tokens, the correction, and their log-probabilities."""
    truth = teacher.alone(0, False)
    begin = len(truth.prompt)
    wrong = (truth.tokens[begin + 2] + 1) % 600
    cache = KVCache(teacher.memory.select(torch.tensor([0])))
    cache.reserve(len(truth.tokens))

    def look(tokens: list[int], start: int) -> tuple[int, list[int], list[float]]:
        places = torch.arange(start, len(tokens))[None]
        window = Window(
            torch.tensor([tokens[start:]]),
            places,
            torch.tensor([[*tokens[start + 1 :], NOTHING]]),
            places + 1 < max(begin, start + 1),
        )
        opens = places == begin - 1
        verdict = verify(teacher.decoder, cache, lambda logits: teacher.rules.text(logits, opens), window)
        agreed = (*verdict.agrees[0].tolist(), False).index(False)
        return agreed, verdict.chosen[0].tolist(), verdict.log_probs[0].tolist()

    agreed, chosen, log_probs = look([*truth.prompt, *truth.tokens[begin : begin + 2], wrong, 5, 6], 0)
    assert agreed == begin - 1 + 2  # the prompt's tokens are given; then two of the draft are right
    assert chosen[begin - 1 : agreed + 1] == truth.tokens[begin : begin + 3]
    assert log_probs[begin - 1 : agreed + 1] == pytest.approx(truth.log_probs[:3], abs=1e-3)
    # The wrong tokens' keys are still in the cache behind the correction; nobody sees them.
    agreed, chosen, log_probs = look(truth.tokens[: begin + 3], begin + 2)
    assert (agreed, chosen) == (0, [truth.tokens[begin + 3]])
    assert log_probs == pytest.approx(truth.log_probs[3:4], abs=1e-3)


@torch.inference_mode()
def test_each_language_of_the_checkpoint_has_its_logit(linguist: Speaker) -> None:
    found = language_logits(linguist.decoder, linguist.memory, linguist.rules)
    assert [len(row) for row in found] == [3] * RECORDINGS
    sot = torch.full((RECORDINGS, 1), linguist.rules.grammar.sot)
    cache = KVCache(linguist.memory)
    cache.reserve(1)
    logits = linguist.decoder(sot, torch.zeros_like(sot), cache)[:, 0]
    tokens = list(linguist.rules.grammar.languages.values())
    assert found == logits[:, tokens].tolist()
