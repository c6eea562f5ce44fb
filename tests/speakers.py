"""Models that speak of a few recordings, and drafts that depart from what they will say.

For the tests that decode the same in different ways.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from hypothesis import strategies as st
from waveforms import murmur

from streaming.whisper.biasing import START, Tables, compile_paths, filled_tables
from streaming.whisper.checkpoint import open_checkpoint
from streaming.whisper.decode import decode
from streaming.whisper.mel import LogMel
from streaming.whisper.model import Decoder, Memory, build_decoder, build_encoder
from streaming.whisper.rows import Draft, Row
from streaming.whisper.rules import LogitRules
from streaming.whisper.weights import read_weights

RECORDINGS = 6
LONGEST = 40
BEFORE = ((), (7, 8, 9), tuple(range(20, 120)))
"""Texts before a recording's own: none, one that is shorter than any window, and one that is longer."""


@dataclass
class Speaker:
    """A model, and what it remembers of each of the recordings."""

    decoder: Decoder
    memory: Memory
    rules: LogitRules
    said: dict[tuple[int, bool, int, int], Row] = field(default_factory=dict)

    def row(self, draft: list[int], limit: int, timestamps: bool, vocabulary: int = 0, before: int = 0) -> Row:
        grammar = self.rules.grammar
        language = next(iter(grammar.languages), None)
        text = draft[: draft.index(grammar.eot)] if grammar.eot in draft else draft
        prompt = self.rules.prompt(language, "transcribe", timestamps, BEFORE[before])
        return Row(prompt, limit, Draft(text), timestamps, grammar.eot, vocabulary, prompt.index(grammar.sot))

    def alone(self, recording: int, timestamps: bool, vocabulary: int = 0, before: int = 0) -> Row:
        """What it says of a recording with no draft and nobody beside it."""
        asked = recording, timestamps, vocabulary, before
        if asked not in self.said:
            row = self.row([], LONGEST, timestamps, vocabulary, before)
            decode(self.decoder, self.memory.select(torch.tensor([recording])), self.rules, [row])
            self.said[asked] = row
        return self.said[asked]


@cache
def phrases(size: int) -> Tables:
    """Two vocabularies of a hundred random phrases, of few tokens each, so that many begin alike."""
    parts = []
    for seed in (1, 2):
        rng = random.Random(seed)
        paths = [tuple(rng.choices(range(seed, 600, 20), k=rng.randint(1, 5))) for _ in range(100)]
        parts.append(compile_paths(dict.fromkeys([*paths, (START, 7, 8)], 4.0), size))
    return filled_tables(parts, torch.device("cpu"))


def speaker(directory: Path) -> Speaker:
    checkpoint = open_checkpoint(str(directory), "student")
    weights = read_weights(checkpoint, torch.float32)
    sizes, cpu = checkpoint.dimensions, torch.device("cpu")
    decoder = build_decoder(sizes, weights)
    features = LogMel(sizes.mels, cpu)([murmur(1.5, seed) for seed in range(RECORDINGS)], 2.0)
    with torch.inference_mode():
        memory = decoder.remember(build_encoder(sizes, weights)(features))
    rules = LogitRules(checkpoint.grammar, sizes.vocabulary, cpu).with_phrases(phrases(sizes.vocabulary))
    return Speaker(decoder, memory, rules)


@dataclass(frozen=True)
class Plan:
    """One row of a batch. edits: where and how its draft departs from what the model will say. before: see `BEFORE`."""

    recording: int
    timestamps: bool
    limit: int
    start: str
    edits: tuple[tuple[int, str, int], ...]
    vocabulary: int = 0
    before: int = 0

    def said(self, speaker: Speaker, recording: int | None = None) -> Row:
        """What the model says of this recording, or of another, with no draft and nobody beside it."""
        about = self.recording if recording is None else recording
        return speaker.alone(about, self.timestamps, self.vocabulary, self.before)

    def row(self, speaker: Speaker) -> Row:
        """As it is before its first pass."""
        return speaker.row(self.draft(speaker), self.limit, self.timestamps, self.vocabulary, self.before)

    def draft(self, speaker: Speaker) -> list[int]:
        truth = self.said(speaker, self.recording).text
        other = self.said(speaker, (self.recording + 1) % RECORDINGS).text
        draft = {"truth": truth, "other": other, "nothing": []}[self.start].copy()
        for place, kind, token in self.edits:
            place = min(place, len(draft))
            draft[place : place + (kind != "insert")] = [] if kind == "delete" else [token]
        return draft


TOKENS = 2112
plans = st.builds(
    Plan,
    recording=st.integers(0, RECORDINGS - 1),
    timestamps=st.booleans(),
    limit=st.integers(1, LONGEST),
    start=st.sampled_from(["truth", "truth", "other", "nothing"]),
    edits=st.lists(
        st.tuples(
            st.integers(0, LONGEST), st.sampled_from(["insert", "delete", "replace"]), st.integers(0, TOKENS - 1)
        ),
        max_size=4,
    ).map(tuple),
    vocabulary=st.integers(0, 2),
    before=st.integers(0, len(BEFORE) - 1),
)
batches = st.lists(plans, min_size=1, max_size=5)


def common_prefix(draft: list[int], text: list[int]) -> int:
    pairs = zip(draft, text, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(draft), len(text)))
