"""Batches in tensors that are made anew for each: fit for any shape, and the faster way on a processor.

`graph_runner.py` gives the same results from fixed addresses. Owns nothing between batches but what the last one heard.
Knows nothing of who decides, of confidence or of results.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from streaming.job import Captured, Job, Vocabulary
from streaming.whisper.biasing import numbered
from streaming.whisper.decode import DraftModel, decode, language_logits
from streaming.whisper.hearing import (
    LARGEST_BATCH,
    LOOKAHEAD,
    Hearing,
    LoadedModel,
    count_detections,
    languages_of,
    one_encoder,
    pinned_attention,
    prepare_for,
    proposes,
    rows_of,
)
from streaming.whisper.rules import LogitRules


class EagerRunner:
    """A runner that makes every tensor for the batch at hand, in its own sizes."""

    largest = LARGEST_BATCH

    def __init__(self, student: LoadedModel, teacher: LoadedModel | None) -> None:
        self._student, self._teacher = student, teacher
        self._device = student.decoder.embed_tokens.weight.device
        self._states: Tensor | None = None
        self._together: tuple[Vocabulary, ...] = ()

    def prepare(self) -> Captured:
        prepare_for(self._device, (self._student, self._teacher))
        return Captured()

    def student(self, jobs: Sequence[Job]) -> Hearing:
        with pinned_attention(self._device):
            self._states = self._student.listen(jobs, self._student.context(jobs[0]))
            numbers, self._together = numbered(jobs)
            return self._hear(self._student, jobs, self._states, [job.draft for job in jobs], numbers, None)

    def teacher(self, heard: Hearing, jobs: Sequence[Job], indices: Sequence[int]) -> Hearing:
        teacher, student = self._teacher, self._student
        assert teacher is not None, "there is none"
        assert self._states is not None, "the student listens first"
        asked = [jobs[index] for index in indices]
        shared = one_encoder(student, teacher)
        with pinned_attention(self._device):
            states = self._states[list(indices)] if shared else teacher.listen(asked, teacher.context(asked[0]))
            drafts = [heard.rows[index].text for index in indices]
            proposer = None
            if proposes(student, teacher):
                proposer = DraftModel(student.decoder, heard.memory(indices), self._rules(student), LOOKAHEAD)
            return self._hear(
                teacher, asked, states, drafts, [heard.rows[index].vocabulary for index in indices], proposer
            )

    def _rules(self, model: LoadedModel) -> LogitRules:
        """A model's rules with the vocabularies of the batch."""
        together = self._together
        return model.rules.with_phrases(model.vocabularies.tables(together)) if together else model.rules

    def _hear(
        self,
        model: LoadedModel,
        jobs: Sequence[Job],
        states: Tensor,
        drafts: Sequence[Sequence[int]],
        vocabularies: Sequence[int],
        proposer: DraftModel | None,
    ) -> Hearing:
        memory = model.decoder.remember(states)
        languages = languages_of(model, jobs, lambda: language_logits(model.decoder, memory, model.rules))
        rows = rows_of(model, jobs, languages, drafts, vocabularies)
        decode(model.decoder, memory, self._rules(model), rows, proposer)
        count_detections(model, jobs, rows)
        return Hearing(
            model,
            rows,
            languages,
            lambda chosen: memory.select(torch.tensor(list(chosen), device=memory.device)),
            memory.row,
        )
