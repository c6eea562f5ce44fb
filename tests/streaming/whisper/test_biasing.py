"""Phrases get the bonus that their definition says, wherever they begin, and nobody else gets one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, takewhile
from typing import Literal

import pytest
import small_corpus
import torch
from checkpoints import Pair
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from waveforms import murmur

from streaming.job import ALWAYS, Job, Phrase, Vocabulary
from streaming.whisper import biasing
from streaming.whisper.biasing import (
    FIRST,
    NEXT,
    START,
    TOGETHER,
    Sizes,
    Tables,
    TokenPath,
    add_bonuses,
    compile_paths,
    empty_tables,
    fill,
    filled_tables,
    numbered,
)
from streaming.whisper.engine import WhisperEngine
from streaming.whisper.locate import locate

SIZE = 12
PROMPT = [10, 11]
tokens = st.lists(st.integers(0, 4), min_size=1, max_size=5).map(tuple)
paths = st.dictionaries(
    st.one_of(tokens, tokens.map(lambda path: (START, *path))), st.sampled_from([0.5, 1.0, 2.0]), max_size=8
)


def defined(paths: Mapping[TokenPath, float], text: Sequence[int]) -> list[float]:
    """The bonuses of all tokens behind a text, by the definition: every end of the text is tried."""

    def step(beginning: TokenPath) -> float:
        first = len(beginning) == 1 + (beginning[0] == START)
        weights = [weight for path, weight in paths.items() if path[: len(beginning)] == beginning]
        return max(weights, default=0.0) * (FIRST if first else NEXT)

    def gathered(beginning: TokenPath) -> float:
        parts = [part for part in accumulate((token,) for token in beginning) if part != (START,)]
        return sum(step(part) for part in takewhile(lambda part: part not in paths, reversed(parts)))

    said = (START, *text)
    ends = [said[start:] for start in range(len(said) + 1)]
    bonuses = [0.0] * SIZE
    for token in range(SIZE):
        for end in ends:
            if own := step((*end, token)):
                bonuses[token] = max(bonuses[token], gathered(end) + own)
    return bonuses


def found(prompt: Sequence[int], text: Sequence[int], which: Sequence[int], tables: Tables) -> torch.Tensor:
    """The bonuses behind a prompt and each token of a text, with several vocabularies."""
    row = torch.tensor([[*prompt, *text]]).expand(len(which), -1)
    places = torch.arange(len(prompt) - 1, row.shape[1]).expand(len(which), -1)
    begins = torch.full((len(which),), len(prompt))
    scores = torch.zeros(len(which), places.shape[1], SIZE)
    add_bonuses(scores, row, places, begins, places == len(prompt) - 1, torch.tensor(which), tables)
    behind = torch.zeros_like(scores[:, 1:])  # where the text has begun, nobody needs to tell that it begins nowhere
    add_bonuses(behind, row, places[:, 1:], begins, None, torch.tensor(which), tables)
    assert torch.equal(behind, scores[:, 1:])
    return scores


@given(st.lists(paths, min_size=1, max_size=3), st.lists(st.integers(0, 4), max_size=9), st.data())
def test_each_position_has_the_bonuses_of_its_rows_vocabulary(
    vocabularies: list[dict[TokenPath, float]], text: list[int], data: st.DataObject
) -> None:
    parts = [compile_paths(each, SIZE) for each in vocabularies]
    tables = filled_tables(parts, torch.device("cpu"))
    if data.draw(st.booleans(), "fixed"):
        tables = empty_tables(4, Sizes(SIZE, 300, 300, SIZE), torch.device("cpu"))
        fill(tables, [compile_paths({(1, 2): 3.0, (0,): 2.0}, SIZE)] * 4)  # what was there before is gone
        fill(tables, parts)
    which = data.draw(st.lists(st.integers(0, len(parts)), min_size=1, max_size=4))
    prompt = PROMPT[: data.draw(st.integers(1, 2), "prompt")]
    for number, scores in zip(which, found(prompt, text, which, tables), strict=True):
        for said, bonuses in enumerate(scores.tolist()):
            assert bonuses == pytest.approx(defined(vocabularies[number - 1] if number else {}, text[:said]))


def test_what_was_there_before_is_gone() -> None:
    tables = empty_tables(1, Sizes(SIZE, 20, 20, SIZE), torch.device("cpu"))
    fill(tables, [compile_paths({(1, 2, 3): 1.0, (2,): 1.0}, SIZE)])
    fill(tables, [compile_paths({(4, 5): 1.0}, SIZE)])
    scores = found(PROMPT, [1], [1], tables)
    assert scores[0, 1].nonzero().tolist() == [[4]]


# --- from phrases to tokens ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    _, directory = locate("tiny-en", "teacher")
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def said(tokenizer: Tokenizer, *texts: str) -> set[str]:
    """The variants of phrases, with a bar where the text begins."""
    found = {path for text in texts for path in biasing._paths(text, tokenizer, 50256)}
    return {("|" if path[0] == START else "") + tokenizer.decode([t for t in path if t != START]) for path in found}


def test_a_phrase_has_variants(tokenizer: Tokenizer) -> None:
    assert said(tokenizer, "kitchen lamp") == {" kitchen lamp", " Kitchen lamp", "|kitchen lamp", "|Kitchen lamp"}
    assert said(tokenizer, "Thibault") == {" Thibault", "|Thibault"}
    assert said(tokenizer, "北京") == {" 北京", "北京"}  # there are no spaces between these words


@pytest.mark.parametrize("text", ["", "<|endoftext|>", "say <|startoftranscript|>"])
def test_what_is_no_text_is_named(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(ValueError, match="is no text for this model: leave it out"):
        said(tokenizer, text)


@pytest.mark.parametrize("limit", ["MOST_FIRST", "MOST_STATES", "ALL_PAIRS"])
def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(biasing, limit, 0)
    with pytest.raises(ValueError, match="fewer or shorter"):
        compile_paths({tuple(range(5)): 1.0}, SIZE)


# --- the engine ------------------------------------------------------------------------------------------------------


def vocabulary(*texts: str, weight: float = 1.0) -> Vocabulary:
    return Vocabulary(tuple(Phrase(text, weight) for text in texts))


@pytest.mark.parametrize("graphs", ["on", "off"])
def test_jobs_with_more_vocabularies_than_a_pass_takes(english: Pair, graphs: Literal["on", "off"]) -> None:
    """Each job is heard as it is alone, whoever is beside it; one that cannot be used fails alone."""
    engine = WhisperEngine.load(
        str(english.student), str(english.teacher), "cpu", dtype="float32", graphs=graphs, batch=16
    )
    jobs = [
        Job(murmur(0.9, number), vocabulary=vocabulary("ab" * (1 + number % 11), "cde", weight=4.0), max_tokens=9,
            ask_teacher_below=ALWAYS)
        for number in range(13)
    ]  # fmt: skip
    jobs += [Job(murmur(0.9, 1), max_tokens=9), Job(murmur(0.9, 1), max_tokens=9, vocabulary=vocabulary(""))]
    assert len(set(numbered(jobs)[1])) > TOGETHER
    *together, unbiased, wrong = engine.run(jobs)
    assert [result.tokens for result in together] == [engine.run([job])[0].tokens for job in jobs[:13]]
    assert unbiased.error is None
    assert "leave it out of the vocabulary" in str(wrong.error)


def test_a_phrase_is_heard_and_no_draft_changes_that() -> None:
    """By the shipped pair: the student alone mishears the verb; with the phrase it does not."""
    engine = WhisperEngine.load("tiny-en", "tiny-en", "cpu", dtype="float32")
    tokenizer = Tokenizer.from_file(str(engine.tokenizer_file))
    wave, phrases = small_corpus.recorded("turn_on_the_kitchen_light"), vocabulary("turn on")
    plain, biased = engine.run([Job(wave), Job(wave, vocabulary=phrases)])
    assert tokenizer.decode(plain.tokens) == " Turned on the kitchen light."
    assert tokenizer.decode(biased.tokens) == " Turn on the kitchen light."
    for below in (0.0, ALWAYS):
        for draft in (plain.tokens, biased.tokens, biased.tokens[::-1]):
            again = engine.run([Job(wave, draft, vocabulary=phrases, ask_teacher_below=below)])[0]
            assert again.tokens == biased.tokens
