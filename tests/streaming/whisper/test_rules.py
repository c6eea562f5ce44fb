"""The grammar against transformers' own logits processors, over every position of random texts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)

from streaming.whisper.checkpoint import Grammar
from streaming.whisper.rules import Context, LogitRules

# A vocabulary in miniature: 8 words, end and start, two languages, two tasks, no timestamps, then 12 timestamps.
WORDS, EOT, SOT, NO_TIMESTAMPS, SIZE = 8, 8, 9, 14, 27
GRAMMAR = Grammar(
    sot=SOT,
    eot=EOT,
    languages={"en": 10, "de": 11},
    tasks={"transcribe": 12, "translate": 13},
    no_timestamps=NO_TIMESTAMPS,
    no_speech=None,
    suppress=(3, 12, 13),
    begin_suppress=(0, EOT),
    max_initial_timestamp=4,
    max_length=448,
)
RULES = LogitRules(GRAMMAR, SIZE, torch.device("cpu"))
PREVIOUS = 13  # the grammar has no such token of its own: there is no room for it
PROMPTS = {True: (SOT, 10, 12), False: (SOT, 10, 12, NO_TIMESTAMPS)}


def reference(scores: torch.Tensor, prefix: list[int], begin: int, timestamps: bool) -> torch.Tensor:
    """What transformers makes of the scores [vocabulary] of the token that follows `prefix`."""
    config = GenerationConfig(eos_token_id=EOT, no_timestamps_token_id=NO_TIMESTAMPS, max_initial_timestamp_index=4)
    processors = [
        SuppressTokensAtBeginLogitsProcessor(GRAMMAR.begin_suppress, begin),
        SuppressTokensLogitsProcessor(GRAMMAR.suppress),
    ]
    if timestamps:
        processors.append(WhisperTimeStampLogitsProcessor(config, begin))
    ids, scores = torch.tensor([prefix]), scores[None]
    for processor in processors:
        scores = processor(ids, scores)
    return scores[0]


def ruled(
    logits: torch.Tensor, tokens: torch.Tensor, places: torch.Tensor, begins: torch.Tensor, stamped: torch.Tensor
) -> torch.Tensor:
    opens = places == begins[:, None] - 1
    return RULES.text(logits, opens, Context(tokens, places, begins, stamped, None))


texts = st.lists(
    st.one_of(st.integers(0, WORDS - 1), st.integers(NO_TIMESTAMPS + 1, SIZE - 1), st.integers(0, SIZE - 1)),
    max_size=8,
)
rows = st.lists(st.tuples(texts, st.booleans()), min_size=1, max_size=4)


@given(rows, st.integers(0, 2**31), st.floats(0.1, 8.0))
@example([([15, 1, 17, 17, 2, 19], True), ([1, 2], False)], 0, 1.0)
@settings(max_examples=200)
def test_every_position_of_a_window_is_ruled_as_transformers_rules_it(
    batch: list[tuple[list[int], bool]], seed: int, spread: float
) -> None:
    sequences = [[*PROMPTS[timestamps], *text] for text, timestamps in batch]
    begins = torch.tensor([len(PROMPTS[timestamps]) for _, timestamps in batch])
    longest = max(map(len, sequences))
    tokens = torch.tensor([sequence + [0] * (longest - len(sequence)) for sequence in sequences])
    logits = torch.randn(len(batch), longest, SIZE, generator=torch.Generator().manual_seed(seed)) * spread
    places = torch.arange(longest).expand(len(batch), -1)
    stamped = torch.tensor([timestamps for _, timestamps in batch])
    scores = ruled(logits, tokens, places, begins, stamped)
    for row, (sequence, (_, timestamps)) in enumerate(zip(sequences, batch, strict=True)):
        begin = len(PROMPTS[timestamps])
        for place in range(begin - 1, len(sequence)):
            expected = reference(logits[row, place], sequence[: place + 1], begin, timestamps)
            assert torch.equal(scores[row, place], expected)


def test_a_window_needs_only_the_tokens_before_it() -> None:
    """A pass in the middle of a text is ruled as the same positions of a pass over all of it."""
    tokens = torch.tensor([[*PROMPTS[True], 15, 1, 2, 17, 17, 3, 1, 19]])
    begins, stamped = torch.tensor([3]), torch.tensor([True])
    logits = torch.randn(1, tokens.shape[1], SIZE)
    whole = ruled(logits, tokens, torch.arange(tokens.shape[1])[None], begins, stamped)
    part = ruled(logits[:, 5:8], tokens, torch.arange(5, 8)[None], begins, stamped)
    assert torch.equal(part, whole[:, 5:8])


def test_prompts() -> None:
    assert RULES.prompt("de", "translate", timestamps=False) == (SOT, 11, 13, NO_TIMESTAMPS)
    assert RULES.prompt("en", "transcribe", timestamps=True) == (SOT, 10, 12)
    english = LogitRules(english_only(), SIZE, torch.device("cpu"))
    assert english.prompt(None, "transcribe", timestamps=False) == (SOT, NO_TIMESTAMPS)
    assert english.prompt("en", "transcribe", timestamps=True) == (SOT,)


def english_only(no_timestamps: int | None = NO_TIMESTAMPS) -> Grammar:
    return Grammar(SOT, EOT, {}, {}, no_timestamps, None, (), (), None, 448)


def test_what_a_checkpoint_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="language 'fr' is not one of en, de"):
        RULES.prompt("fr", "transcribe", timestamps=False)
    with pytest.raises(ValueError, match="task 'sing' is not one of transcribe, translate"):
        RULES.prompt("en", "sing", timestamps=False)
    english = LogitRules(english_only(), SIZE, torch.device("cpu"))
    with pytest.raises(ValueError, match="English-only"):
        english.prompt("de", "transcribe", timestamps=False)
    with pytest.raises(ValueError, match="English-only"):
        english.prompt(None, "translate", timestamps=False)
    bare = LogitRules(english_only(None), SIZE, torch.device("cpu"))
    assert bare.prompt(None, "transcribe", timestamps=False) == (SOT,)
    with pytest.raises(ValueError, match="no timestamps"):
        bare.prompt(None, "transcribe", timestamps=True)


def test_the_text_before_stands_in_front() -> None:
    told = LogitRules(replace(RULES.grammar, previous=PREVIOUS), SIZE, torch.device("cpu"))
    assert told.prompt("de", "transcribe", False, (1, 2)) == (PREVIOUS, 1, 2, *told.prompt("de", "transcribe", False))
    assert told.prompt("de", "transcribe", True, (NO_TIMESTAMPS + 1,))[:2] == (PREVIOUS, NO_TIMESTAMPS + 1)
    for token in (EOT, SOT, NO_TIMESTAMPS, SIZE, -1):
        with pytest.raises(ValueError, match="neither text nor timestamps"):
            told.prompt("de", "transcribe", False, (1, token))
    with pytest.raises(ValueError, match="cannot be told the text before"):
        RULES.prompt("de", "transcribe", False, (1, 2))


def test_the_limit_is_the_smallest_of_three() -> None:
    prompt = PROMPTS[False]
    assert RULES.limit(prompt, 448, None) == 444
    assert RULES.limit(prompt, 448, 500) == 444
    assert RULES.limit(prompt, 448, 7) == 7
    short = LogitRules(Grammar(SOT, EOT, {}, {}, None, None, (), (), None, 20), SIZE, torch.device("cpu"))
    assert short.limit(prompt, 448, 30) == 20
