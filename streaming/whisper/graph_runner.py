"""Batches of jobs at fixed addresses: every job takes a slot of each model, and passes are replayed on slots.

Owns a model's static buffers, the loop that asks for passes and reads what came of them, and `GraphRunner`, which hears
whole batches in this way. No pass has a shape of its own, so each can be a graph; the host decides only shapes, from
counts that it reads a step late. Knows nothing of who decides, of confidence or of results.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from streaming.job import Captured, Job
from streaming.whisper.biasing import Tables
from streaming.whisper.cache_slots import OVERHANG, SelectedSlots, Slots
from streaming.whisper.checkpoint import POSITIONS_PER_SECOND
from streaming.whisper.decode import first_token, unruled, verify
from streaming.whisper.device_rows import Count, Texts, follow, hand_over, sent, step
from streaming.whisper.graphs import Buckets, Function, Recorder, Shape, ends_of, shapes, up_to
from streaming.whisper.hearing import (
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
from streaming.whisper.model import join
from streaming.whisper.rows import Row

log = logging.getLogger(__name__)

WIDTHS = (1, 2, 5, 9, 17, 33)
"""Of windows: a step, a draft's first step, and checks of 4, 8, 16 and 32 tokens."""

REACHES = (64, 192)
"""Positions of text that a pass looks at, besides all of them: most texts are short."""

CATCH_UP = 17
"""Width of a student's first pass after a whole text was checked: it has not followed the corrections."""


class Ahead(NamedTuple):
    """How many passes are asked for before the first is read, which hides the host's work behind the device's.

    Attributes:
        steps: where each says a token.
        checks: where drafts are checked, of which the first may have ended everything.
    """

    steps: int
    checks: int = 0


class Kind(NamedTuple):
    """What the rows of a batch need besides the rules that all have.

    Attributes:
        stamped: whether any has timestamps.
        biased: whether any has a vocabulary.
    """

    stamped: bool
    biased: bool


@dataclass(frozen=True, slots=True)
class PendingCounts:
    """Numbers on their way from the device."""

    numbers: Tensor
    arrived: torch.cuda.Event | None

    def read(self) -> list[Count]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return [Count(*row) for row in self.numbers.tolist()]


class GraphDecoder:
    """One model's slots and texts, and its functions on them."""

    def __init__(
        self,
        model: LoadedModel,
        buckets: Buckets,
        contexts: Sequence[float],
        device: torch.device,
        ahead: Ahead,
        phrases: Tables,
    ) -> None:
        self.model = model
        self.rules = model.rules.with_phrases(phrases)
        self.buckets = buckets
        self.device = device
        self.heard = tuple(round(seconds * POSITIONS_PER_SECOND) for seconds in contexts)
        self.slots = Slots(model.decoder, buckets.batches[-1], self.heard[-1])
        self.texts = Texts(self.slots.count, model.decoder.positions, buckets.widths[-1], device)
        self.rows = torch.full((self.slots.count,), self.slots.padding_slot, device=device)
        self._language_logits = torch.zeros(self.slots.count + 1, len(model.rules.languages), device=device)
        self._ahead = ahead
        self._batch_slots = self.rows[:0]  # the slots of the batch at hand
        self._cleared = 0
        self._selected: list[int] = []
        vocabulary = model.decoder.output_weight.shape[0]
        held = partial(_logits, vocabulary)
        self.check = Function(
            f"{model.role}: check",
            self._check,
            shapes(buckets.batches, self.heard, buckets.widths, buckets.reaches),
            held,
        )
        # Rarer, so in fewer shapes: one that looks at all of the text serves every reach.
        self.check_biased = Function(
            f"{model.role}: check with a vocabulary",
            lambda shape: self.step(shape, biased=True),
            shapes(buckets.batches, self.heard, buckets.widths, buckets.reaches[-1:]),
            held,
        )
        self.check_stamped = Function(
            f"{model.role}: check with timestamps",
            lambda shape: self.step(shape, stamped=True, biased=True),
            shapes(buckets.batches, self.heard, ends_of(buckets.widths), buckets.reaches[-1:]),
            held,
        )
        self.language = Function(
            f"{model.role}: language",
            self._language,
            shapes(buckets.batches, self.heard, (1,), buckets.reaches[:1]) if model.rules.grammar.languages else (),
        )

    @property
    def functions(self) -> list[Function]:
        """All that may be captured."""
        return [self.check, self.check_biased, self.check_stamped, self.language]

    def selected(self, shape: Shape) -> SelectedSlots:
        return SelectedSlots(self.slots, self.rows[: shape.batch], shape.heard, shape.reach)

    def select(self, slots: Sequence[int], batch: int) -> None:
        """Let the next passes be about these slots; the padding slot fills the batch."""
        filled = [*slots, *[self.slots.padding_slot] * (batch - len(slots))]
        if filled != self._selected[:batch]:
            self.rows[:batch].copy_(sent(filled, self.device))
            self._selected[:batch] = filled

    def _take(self, slots: Sequence[int]) -> None:
        """A batch begins, in these slots."""
        self._batch_slots, self._cleared = sent(slots, self.device), 0

    def make_room(self, reach: int) -> None:
        """Let the passes of this batch look so far: what lies there must not be of an earlier one."""
        if reach > self._cleared:
            self.slots.clear(self._batch_slots, self._cleared, reach)
            self._cleared = reach

    # --- functions: only what is on the device already, in shapes that are told ---------------------------------------

    def _check(self, shape: Shape) -> None:
        self.step(shape)

    def step(self, shape: Shape, *, stamped: bool = False, biased: bool = False, silence: bool = True) -> None:
        step(
            self.model.decoder, self.rules, self.texts, self.selected(shape), shape.width,
            stamped=stamped, biased=biased, silence=silence,
        )  # fmt: skip

    def _language(self, shape: Shape) -> None:
        """How likely each language is for every row, by the tokens after start of transcript."""
        window = first_token(self.model.rules, shape.batch, self.device)
        verdict = verify(self.model.decoder, self.selected(shape), unruled, window)
        found = verdict.logits[:, 0].index_select(-1, self.model.rules.languages)
        self._language_logits.index_copy_(0, self.rows[: shape.batch], found)

    # --- what the host does -------------------------------------------------------------------------------------------

    def languages(self, slots: Sequence[int], heard: int) -> list[list[float]]:
        """Return how likely each of the grammar's languages is, in its order, for every slot."""
        wanted = Shape(self.buckets.fit(len(slots), heard, 1, 1).batch, heard, 1, self.buckets.reaches[0])
        shape, graph = self.language.graph(wanted)
        self._take(slots)
        self.select(slots, shape.batch)
        self.make_room(shape.reach)
        graph.replay()
        return self._language_logits.index_select(0, self.rows[: len(slots)]).tolist()

    def say(self, slots: Sequence[int], rows: Sequence[Row], heard: int, draft_model: GraphDraft | None = None) -> None:
        """Bring every row to its end.

        Args:
            slots: of the rows, with their audio there already.
            rows: the texts.
            heard: encoder positions of their context.
            draft_model: a cheaper model that writes drafts where a row has none left.
        """
        self._take(slots)
        counts = dict(zip(slots, self.texts.open(self._batch_slots, rows), strict=True))
        by_slot = dict(zip(slots, rows, strict=True))
        kind = Kind(any(row.timestamps for row in rows), any(row.vocabulary for row in rows))
        posted: deque[tuple[list[int], PendingCounts]] = deque()
        waiting, first = list(slots), True
        while waiting or posted:
            if waiting:
                checked = self._pass(waiting, counts, heard, len(posted), kind, None if first else draft_model)
                posted.append((waiting, self._post(len(waiting))))
                first = False
            ahead = (self._ahead.checks if checked or draft_model else self._ahead.steps) if waiting else 0
            while len(posted) > ahead:
                asked, verdict_copy = posted.popleft()
                for slot, count in zip(asked, verdict_copy.read(), strict=True):
                    by_slot[slot].passes += not counts[slot].done
                    counts[slot] = count
            waiting = [slot for slot in slots if not counts[slot].done]
        self.texts.close(self._batch_slots, rows)

    def _pass(
        self,
        waiting: Sequence[int],
        counts: dict[int, Count],
        heard: int,
        unread: int,
        kind: Kind,
        draft_model: GraphDraft | None,
    ) -> bool:
        """Ask for a pass over the rows that were not done when they were last read; whether it checks drafts.

        Each of the `unread` passes that were asked for since then may have said one more token.
        """
        known = [counts[slot] for slot in waiting]
        wanting = [count.offered == 0 for count in known]
        longest = max(count.longest(unread) for count in known)
        width = max(count.gap + 1 + count.offered for count in known)
        if any(count.silent for count in known):
            width = max(width, 2)  # a step of one token does without what belongs to a text's beginning
        if draft_model is not None and any(wanting):
            longest = max(longest, max(min(count.end, count.last + unread + draft_model.count) + 1 for count in known))
            draft_model.propose(waiting, longest, kind)
            width = max(width, draft_model.count + 1)
        function = self.check_stamped if kind.stamped else self.check_biased if kind.biased else self.check
        shape, graph = function.graph(self.buckets.fit(len(waiting), heard, width, longest))
        self.select(waiting, shape.batch)
        self.make_room(shape.reach)
        graph.replay()
        return width > 1

    def _post(self, count: int) -> PendingCounts:
        """What has become of the first `count` rows of the pass."""
        numbers = self.texts.numbers.index_select(0, self.rows[:count])
        if self.device.type != "cuda":
            return PendingCounts(numbers, None)
        pinned = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        pinned.copy_(numbers, non_blocking=True)
        arrived = torch.cuda.Event(blocking=True)
        # Where the copy was asked for: the thread's current device may be another.
        arrived.record(torch.cuda.current_stream(self.device))
        return PendingCounts(pinned, arrived)


def _logits(vocabulary: int, shape: Shape) -> int:
    """How many logits a pass has: the largest thing that it makes."""
    return shape.batch * shape.width * vocabulary


class GraphDraft:
    """A cheaper model that writes the next tokens for rows of another that have no draft left."""

    def __init__(self, own: GraphDecoder, other: GraphDecoder, count: int) -> None:
        self.count = count
        self._own, self._other = own, other
        self._followed = 0
        self._heard = own.heard[0]
        widths = sorted({min(width, own.buckets.widths[-1]) for width in (2, CATCH_UP)})
        fixed = own.buckets.widths if len(own.buckets.widths) == 1 else tuple(widths)
        self._widths = fixed
        batches, reaches = own.buckets.batches, own.buckets.reaches
        self.draft = Function("student: draft", self._draft, shapes(batches, own.heard, fixed, reaches))
        self.draft_biased = Function(
            "student: draft with a vocabulary",
            lambda shape: self._draft(shape, Kind(False, True)),
            shapes(batches, own.heard, fixed, reaches[-1:]),
        )

    def begin(self, heard: int) -> None:
        """Begin a new batch, whose audio takes `heard` positions of the cheaper model's memory."""
        self._followed, self._heard = 0, heard

    def propose(self, slots: Sequence[int], longest: int, kind: Kind) -> None:
        own = self._own
        width = self._widths[0]
        if self._followed < longest:  # at worst it knows none of the text yet
            width = self._widths[-1]
            self._followed += width
        batch = own.buckets.fit(len(slots), self._heard, 1, 1).batch
        reach = own.buckets.fit(1, self._heard, 1, longest).reach
        wanted = Shape(batch, self._heard, width, reach)
        shape, graph = (self.draft_biased if kind.biased else self.draft).graph(wanted)
        own.select(slots, shape.batch)
        own.make_room(shape.reach)
        if kind.stamped:  # too rare for graphs of its own
            self._draft(shape, kind)
        else:
            graph.replay()

    def _draft(self, shape: Shape, kind: Kind = Kind(False, False)) -> None:  # noqa: B008 - it has no state
        """Follow, say `count` tokens, hand over.

        The first step takes up what the other said meanwhile. Of a draft that was right to its end that is the last
        token and the one behind it, so it is at least two tokens wide.
        """
        own, rows = self._own, self._own.rows[: shape.batch]
        follow(own.texts, self._other.texts, rows, self.count, shape.width)
        step_width = own.buckets.widths[0]
        for number in range(self.count):
            each = shape if number == 0 else shape._replace(width=step_width)
            own.step(each, stamped=kind.stamped, biased=kind.biased, silence=False)
        hand_over(own.texts, self._other.texts, rows, own.model.rules.grammar.eot)


class GraphEncoder:
    """One model's encoder, and the states of every slot: `[slots + 1, positions, d_model]`."""

    def __init__(self, decoder: GraphDecoder) -> None:
        model, sizes = decoder.model, decoder.model.checkpoint.dimensions
        self._decoder = decoder
        weight = model.decoder.embed_tokens.weight
        self._states = weight.new_zeros(decoder.slots.count + 1, decoder.heard[-1], sizes.d_model)
        most = decoder.slots.count * sizes.mels * 2 * decoder.heard[-1]
        self._features = torch.zeros(most, dtype=model.encoder.conv1.weight.dtype, device=decoder.device)
        self.listen = Function(
            f"{model.role}: listen",
            self._listen,
            shapes(decoder.buckets.batches, decoder.heard),
            lambda shape: shape.batch * shape.heard * sizes.encoder_ffn,
        )

    def hear(self, slots: Sequence[int], jobs: Sequence[Job], seconds: float) -> int:
        """Put into each job's slot what its decoder has to know of its audio.

        Returns:
            The encoder positions that it takes.
        """
        heard = round(seconds * POSITIONS_PER_SECOND)
        shape, graph = self.listen.graph(self._decoder.buckets.fit(len(jobs), heard, 1, 1)._replace(width=1, reach=1))
        features = self._buffer(shape)
        # In one shape the features too: each job's by itself.
        together = len(jobs) if len(self._decoder.buckets.batches) > 1 else 1
        for start in range(0, len(jobs), together):
            part = jobs[start : start + together]
            features[start : start + len(part)].copy_(self._decoder.model.features(part, seconds))
        features[len(jobs) :].zero_()  # whatever an earlier batch left there may not be finite
        self._decoder.select(slots, shape.batch)
        graph.replay()
        return heard

    def remember(self, decoder: GraphDecoder, shape: Shape) -> None:
        """Give another decoder what it has to know of the audio that this encoder has heard, in the same slots."""
        rows = decoder.rows[: shape.batch]
        states = self._states[:, : shape.heard].index_select(0, rows)
        decoder.slots.remember(decoder.model.decoder, states, rows)

    def _listen(self, shape: Shape) -> None:
        decoder = self._decoder
        rows = decoder.rows[: shape.batch]
        states = decoder.model.encoder(self._buffer(shape)).to(self._states.dtype)
        self._states[:, : shape.heard].index_copy_(0, rows, states)
        decoder.slots.remember(decoder.model.decoder, states, rows)

    def _buffer(self, shape: Shape) -> Tensor:
        sides = (shape.batch, self._decoder.model.checkpoint.dimensions.mels, 2 * shape.heard)
        return self._features[: sides[0] * sides[1] * sides[2]].view(sides)


class GraphRunner:
    """Student and perhaps teacher, each at fixed addresses; a job has the same slot in both."""

    def __init__(
        self,
        student: LoadedModel,
        teacher: LoadedModel | None,
        device: torch.device,
        *,
        largest: int,
        deterministic: bool,
        capture: bool,
        ahead: Ahead | None = None,
    ) -> None:
        """Allocate the buffers of both models.

        Args:
            student: the model that hears all jobs.
            teacher: the model that decides where the student is not sure.
            device: where they are.
            largest: jobs in a batch.
            deterministic: whether every pass has one and the same shape.
            capture: whether graphs are captured, on a device that has them.
            ahead: how far the host is ahead of the device; None for what suits the device.
        """
        self._device, self._deterministic, self._capture = device, deterministic, capture
        self.largest = largest
        ahead = ahead or Ahead(1 if device.type == "cuda" else 0)
        self._phrases = student.vocabularies.fixed()
        for model in (student, teacher):
            if model is not None:
                join(model.encoder)
                join(model.decoder)
        self._student = self._decoder(student, ahead)
        self._encoder = GraphEncoder(self._student)
        self._teacher: GraphDecoder | None = None
        self._helper: GraphDraft | None = None
        self._own_encoder: GraphEncoder | None = None
        if teacher is not None:
            self._teacher = self._decoder(teacher, ahead)
            if not one_encoder(student, teacher):
                self._own_encoder = GraphEncoder(self._teacher)
            if proposes(student, teacher):
                self._helper = GraphDraft(self._student, self._teacher, LOOKAHEAD)

    def _decoder(self, model: LoadedModel, ahead: Ahead) -> GraphDecoder:
        capacity = model.decoder.positions + OVERHANG
        if self._deterministic:
            buckets = Buckets((self.largest,), (LOOKAHEAD + 1,), (capacity,))
        else:
            buckets = Buckets(up_to(self.largest), WIDTHS, (*(each for each in REACHES if each < capacity), capacity))
        made = GraphDecoder(model, buckets, model.checkpoint.contexts, self._device, ahead, self._phrases.tables)
        made.slots.splits = 1 if self._deterministic else None
        return made

    @cached_property
    def _recall(self) -> Function | None:
        """The teacher's memory of what the one encoder has heard: run only when it is asked."""
        if self._teacher is None or self._own_encoder is not None:
            return None
        teacher, encoder = self._teacher, self._encoder
        wanted = shapes(teacher.buckets.batches, teacher.heard)
        return Function("teacher: remember", lambda shape: encoder.remember(teacher, shape), wanted)

    @property
    def decoders(self) -> dict[str, GraphDecoder]:
        """The decoders by their role: for measuring them."""
        return {decoder.model.role: decoder for decoder in (self._student, self._teacher) if decoder is not None}

    @property
    def functions(self) -> list[Function]:
        """All that may be captured."""
        found = [function for decoder in self.decoders.values() for function in decoder.functions]
        found += [encoder.listen for encoder in (self._encoder, self._own_encoder) if encoder is not None]
        if self._helper is not None:
            found += [self._helper.draft, self._helper.draft_biased]
        return found if self._recall is None else [*found, self._recall]

    @torch.inference_mode()
    def prepare(self) -> Captured:
        prepare_for(self._device, (decoder.model for decoder in self.decoders.values()))
        for decoder in self.decoders.values() if self._device.type == "cuda" else ():
            how = "in place" if decoder.slots.look_in_pages() else "from a copy, layer by layer"
            log.info("the %s's slots are read %s", decoder.model.role, how)
        with pinned_attention(self._device):
            return Recorder(self._device).capture(self.functions) if self._capture else Captured()

    def student(self, jobs: Sequence[Job]) -> Hearing:
        with pinned_attention(self._device):
            return self._student_hears(jobs)

    def teacher(self, heard: Hearing, jobs: Sequence[Job], indices: Sequence[int]) -> Hearing:
        with pinned_attention(self._device):
            return self._teacher_hears(heard, jobs, indices)

    def _student_hears(self, jobs: Sequence[Job]) -> Hearing:
        slots = list(range(len(jobs)))
        heard = self._encoder.hear(slots, jobs, self._student.model.context(jobs[0]))
        drafts, vocabularies = [job.draft for job in jobs], self._phrases.load(jobs)
        return self._hear(self._student, jobs, slots, heard, drafts, vocabularies, None)

    def _teacher_hears(self, heard: Hearing, jobs: Sequence[Job], indices: Sequence[int]) -> Hearing:
        assert self._teacher is not None, "there is none"
        asked = [jobs[index] for index in indices]
        if self._own_encoder is not None:
            positions = self._own_encoder.hear(indices, asked, self._teacher.model.context(asked[0]))
        else:
            positions = self._recalled(indices, self._student.model.context(asked[0]))
        if self._helper is not None:
            self._helper.begin(round(self._student.model.context(asked[0]) * POSITIONS_PER_SECOND))
        drafts = [heard.rows[index].text for index in indices]
        vocabularies = [heard.rows[index].vocabulary for index in indices]
        return self._hear(self._teacher, asked, indices, positions, drafts, vocabularies, self._helper)

    def _recalled(self, slots: Sequence[int], seconds: float) -> int:
        assert self._teacher is not None, "there is none"
        assert self._recall is not None, "it has an encoder of its own"
        heard = round(seconds * POSITIONS_PER_SECOND)
        wanted = self._teacher.buckets.fit(len(slots), heard, 1, 1)._replace(width=1, reach=1)
        shape, graph = self._recall.graph(wanted)
        self._teacher.select(slots, shape.batch)
        graph.replay()
        return heard

    @staticmethod
    def _hear(
        decoder: GraphDecoder,
        jobs: Sequence[Job],
        slots: Sequence[int],
        heard: int,
        drafts: Sequence[Sequence[int]],
        vocabularies: Sequence[int],
        draft_model: GraphDraft | None,
    ) -> Hearing:
        languages = languages_of(decoder.model, jobs, lambda: decoder.languages(slots, heard))
        rows = rows_of(decoder.model, jobs, languages, drafts, vocabularies)
        decoder.say(slots, rows, heard, draft_model)
        count_detections(decoder.model, jobs, rows)
        row_slots = list(slots)
        return Hearing(
            decoder.model,
            rows,
            languages,
            lambda chosen: decoder.slots.memory(
                torch.tensor([row_slots[row] for row in chosen], device=decoder.device), heard
            ),
            lambda row: decoder.slots.row(row_slots[row], heard),
        )
