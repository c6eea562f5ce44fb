"""The rows of `rows.py` as tensors at fixed addresses, and a whole step of decoding on them that waits for nothing.

Owns what a step does between two passes of a decoder, on the device: which tokens are checked, what is said, what
becomes of the draft, which rows are done; and how a cheaper model's rows follow and hand over their proposals. To the
token and to the pass it does what `Row` and `Draft` do in plain Python. Knows nothing of batches, graphs or jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from streaming.whisper.cache_slots import SelectedSlots
from streaming.whisper.decode import Window, verify
from streaming.whisper.model import Decoder
from streaming.whisper.rows import REACH, Row
from streaming.whisper.rules import LogitRules


class Numbers(NamedTuple):
    """What is counted of each row, `[rows]` each.

    Attributes:
        begin: tokens of the prompt.
        limit: tokens at most, the prompt included.
        length: tokens so far.
        cached: how many of these have their keys and values in the cache.
        drafted: tokens of the draft.
        place: see `Draft`.
        start: see `Draft`.
        misses: see `Draft`.
        passes: see `Row`.
        accepted: see `Row`.
        intact: 1 while the whole draft was right.
        done: 0 or 1.
        stamped: 0 or 1, whether the row has timestamps.
        vocabulary: the number of the row's vocabulary in the batch; 0 for none.
    """

    begin: Tensor
    limit: Tensor
    length: Tensor
    cached: Tensor
    drafted: Tensor
    place: Tensor
    start: Tensor
    misses: Tensor
    passes: Tensor
    accepted: Tensor
    intact: Tensor
    done: Tensor
    stamped: Tensor
    vocabulary: Tensor


class Count(NamedTuple):
    """The `Numbers` of one row, on the host."""

    begin: int
    limit: int
    length: int
    cached: int
    drafted: int
    place: int
    start: int
    misses: int
    passes: int
    accepted: int
    intact: int
    done: int
    stamped: int
    vocabulary: int

    @property
    def offered(self) -> int:
        """Tokens that the next pass would check."""
        return max(0, min(self.limit - self.length, self.drafted - self.start))

    def longest(self, unread: int) -> int:
        """Return how long the text may be after the next pass.

        Args:
            unread: passes that were asked for and that this count does not know of.
        """
        draft = self.offered if not unread else max(0, self.drafted - self.place)
        return min(self.limit, self.length + draft + unread + 1)


class Texts:
    """Prompt, text, draft and counts of every slot, `[slots + 1, ...]`; the last slot is padding, and always done."""

    def __init__(self, slots: int, positions: int, widest: int, device: torch.device) -> None:
        """Allocate the texts.

        Args:
            slots: the number of slots, without the padding.
            positions: of the decoder.
            widest: the widest window that will be checked, which may reach beyond the end.
            device: where they are.
        """
        shape = (slots + 1, positions + widest + 1)
        self.tokens = torch.zeros(shape, dtype=torch.long, device=device)
        self.drafts = torch.zeros_like(self.tokens)
        self.log_probs = torch.zeros(shape, device=device)
        self.no_speech = torch.zeros(slots + 1, device=device)
        self.numbers = torch.zeros(slots + 1, len(Numbers._fields), dtype=torch.long, device=device)
        self.columns = Numbers._fields
        self.numbers[:, [self.columns.index(name) for name in ("length", "begin", "limit", "done")]] = 1

    def open(self, slots: Tensor, rows: Sequence[Row]) -> list[Count]:
        """Put rows, as they are before their first pass, into slots.

        It is no part of a step, since it copies from the host.
        """
        drafts = [row.draft.offer()[: self.drafts.shape[1]] for row in rows]
        counts = [
            Count(
                begin=len(row.prompt), limit=len(row.prompt) + row.limit, length=len(row.prompt), cached=0,
                drafted=len(draft), place=0, start=0, misses=0, passes=0, accepted=0, intact=1, done=0,
                stamped=int(row.timestamps), vocabulary=row.vocabulary,
            )
            for row, draft in zip(rows, drafts, strict=True)
        ]  # fmt: skip
        self.numbers.index_copy_(0, slots, sent(counts, slots.device))
        for target, lists in ((self.tokens, [row.tokens for row in rows]), (self.drafts, drafts)):
            width = max(map(len, lists))
            padded = [[*each, *[0] * (width - len(each))] for each in lists]
            if width:
                target[:, :width].index_copy_(0, slots, sent(padded, slots.device))
        return counts

    def close(self, slots: Tensor, rows: Sequence[Row]) -> None:
        """Take finished texts back into their rows; this waits for the device."""
        numbers, tokens, log_probs, no_speech = (
            part.index_select(0, slots).tolist() for part in (self.numbers, self.tokens, self.log_probs, self.no_speech)
        )
        for row, values, said, how, silence in zip(rows, numbers, tokens, log_probs, no_speech, strict=True):
            count = Count(*values)
            row.tokens, row.log_probs = said[: count.length], how[count.begin : count.length]
            row.cached, row.accepted, row.passes = count.cached, count.accepted, count.passes
            row.no_speech, row.done = silence, bool(count.done)


def sent(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Copy values to the device without the host waiting for it."""
    return torch.tensor(values, dtype=torch.long, pin_memory=device.type == "cuda").to(device, non_blocking=True)


# --- a step, on the device -------------------------------------------------------------------------------------------


def step(
    decoder: Decoder, rules: LogitRules, texts: Texts, selected: SelectedSlots, width: int, *, stamped: bool
) -> None:
    """Do one pass for the rows of `selected`, with all that comes of it.

    The shapes are fixed, and nothing in it waits for the device or reads a tensor from the host.

    Args:
        decoder: the model.
        rules: what may be said.
        texts: of all slots.
        selected: the slots that the pass is about.
        width: positions in the window.
        stamped: whether any of the rows has timestamps.
    """
    rows = selected.rows
    now = Numbers(*texts.numbers.index_select(0, rows).unbind(1))
    tokens, drafts = texts.tokens.index_select(0, rows), texts.drafts.index_select(0, rows)
    live = now.done == 0
    # The last token again where there is nothing to do: the row is kept, and nothing is written.
    starts = torch.where(live, now.cached, now.length - 1)
    ends = now.length + (now.limit - now.length).minimum(now.drafted - now.start).clamp(min=0) * live
    window = Window(_with_draft(tokens, drafts, now), starts, ends, now.begin, now.length, width)
    scores = partial(rules.text, stamped=now.stamped > 0 if stamped else None, vocabularies=now.vocabulary)
    verdict = verify(decoder, selected, scores, window)

    columns = torch.arange(width, device=rows.device)
    decided = verdict.agreed.clamp(max=width - 1)  # the column whose choice is the last that counts
    places = starts[:, None] + columns + 1  # where each choice would stand
    is_said = (columns <= decided[:, None]) & (places >= now.length[:, None]) & (places < now.limit[:, None])
    is_said &= live[:, None]
    tokens = tokens.scatter(1, places, torch.where(is_said, verdict.chosen, tokens.gather(1, places)))
    log_probs = texts.log_probs.index_select(0, rows)
    log_probs = log_probs.scatter(1, places, torch.where(is_said, verdict.log_probs, log_probs.gather(1, places)))

    then = _advanced(now, live, starts, verdict.agreed, decided, width)
    then = _corrected(now, then, live, tokens, drafts, verdict.agreed >= width)
    broken = (is_said & ~verdict.log_probs.isfinite()).any(1)  # as in `Row.take`
    ended = broken | (then.length >= now.limit) | (_last(tokens, then.length) == rules.grammar.eot)
    then = then._replace(done=torch.where(live & (then.length > now.length), ended.long(), now.done))

    if rules.grammar.no_speech is not None:  # as it is after start of transcript, before any rule
        silence = verdict.logits[:, 0].softmax(-1)[:, rules.grammar.no_speech]
        first = live & (now.passes == 0)
        texts.no_speech.index_copy_(0, rows, torch.where(first, silence, texts.no_speech.index_select(0, rows)))
    texts.tokens.index_copy_(0, rows, tokens)
    texts.log_probs.index_copy_(0, rows, log_probs)
    texts.numbers.index_copy_(0, rows, torch.stack(then, 1))


def _with_draft(tokens: Tensor, drafts: Tensor, now: Numbers) -> Tensor:
    """Prompt and text, and behind them what the draft offers: [rows, length]."""
    behind = torch.arange(tokens.shape[1], device=tokens.device) - now.length[:, None]
    offered = drafts.gather(1, (now.start[:, None] + behind).clamp(0, drafts.shape[1] - 1))
    return torch.where(behind < 0, tokens, offered)


def _advanced(now: Numbers, live: Tensor, starts: Tensor, agreed: Tensor, decided: Tensor, width: int) -> Numbers:
    """Lengths and counts after a pass, but for the draft's."""
    length = torch.where(live, (starts + decided + 2).minimum(now.limit).maximum(now.length), now.length)
    # A pass that is narrower than the prompt says nothing yet; its last column was looked at all the same.
    cached = torch.where(live, starts + decided + 1, now.cached)
    return now._replace(length=length, cached=cached, passes=now.passes + live)


def _corrected(now: Numbers, then: Numbers, live: Tensor, tokens: Tensor, drafts: Tensor, cut: Tensor) -> Numbers:
    """What comes of the draft: `Draft.correct`, row by row.

    The window ended before the draft went wrong where `cut` is true.
    """
    grown = then.cached + 1 - now.length  # before any limit cut it
    counts = live & (grown > 0)
    kept = torch.where(cut, grown, grown - 1).minimum(now.drafted - now.start).clamp(min=0)
    behind = now.start + kept
    place = torch.where(cut | (kept > 0), behind, now.place)
    misses = torch.where(kept > 0, 0, now.misses) + ~cut
    start = torch.where(cut, behind, _found(drafts, now.drafted, place, misses, tokens, then.length))
    intact = now.intact * cut
    return then._replace(
        place=torch.where(counts, place, now.place),
        start=torch.where(counts, start, now.start),
        misses=torch.where(counts, misses, now.misses),
        accepted=torch.where(counts, now.accepted + kept * now.intact, now.accepted),
        intact=torch.where(counts, intact, now.intact),
    )


def _found(drafts: Tensor, drafted: Tensor, place: Tensor, misses: Tensor, tokens: Tensor, length: Tensor) -> Tensor:
    """Where in its draft each text comes back: `Draft._find`."""
    index = torch.arange(drafts.shape[1], device=drafts.device)
    within = (index >= place[:, None]) & (index < (place + misses + REACH).minimum(drafted)[:, None])
    matches = within & (drafts == _last(tokens, length)[:, None])
    pairs = matches & (index > 0) & (drafts.roll(1, 1) == _last(tokens, length - 1)[:, None])
    none = drafts.shape[1]
    single, paired = (torch.where(which, index, none).amin(1) for which in (matches, pairs))
    lost = torch.where(misses == 1, place + 1, drafted)
    return torch.where(paired < none, paired + 1, torch.where(single < none, single + 1, lost))


def _last(tokens: Tensor, length: Tensor) -> Tensor:
    return tokens.gather(1, (length - 1).clamp(min=0)[:, None])[:, 0]


# --- a cheaper model's proposals, on the device ----------------------------------------------------------------------


def follow(ours: Texts, theirs: Texts, rows: Tensor, count: int) -> None:
    """Let rows of the cheaper model, `ours`, continue those of `theirs` by `count` tokens where a draft is wanted."""
    now, said = (Numbers(*texts.numbers.index_select(0, rows).unbind(1)) for texts in (ours, theirs))
    own, tokens = ours.tokens.index_select(0, rows), theirs.tokens.index_select(0, rows)
    index = torch.arange(own.shape[1], device=rows.device)
    same = ((own == tokens) & (index < now.cached.minimum(said.length - 1)[:, None])).long().cumprod(1).sum(1)
    wanting = _wanting(said)
    nothing = torch.zeros_like(same)
    numbers = said._replace(
        cached=same, limit=(said.length + count).minimum(said.limit), done=1 - wanting.long(),
        drafted=nothing, place=nothing, start=nothing, misses=nothing,
    )  # fmt: skip
    ours.tokens.index_copy_(0, rows, tokens)
    ours.numbers.index_copy_(0, rows, torch.stack(numbers, 1))


def hand_over(ours: Texts, theirs: Texts, rows: Tensor, eot: int) -> None:
    """Give what the cheaper model said as drafts to the rows that want one."""
    now, said = (Numbers(*texts.numbers.index_select(0, rows).unbind(1)) for texts in (ours, theirs))
    tokens, drafts = ours.tokens.index_select(0, rows), theirs.drafts.index_select(0, rows)
    wanting = _wanting(said)
    index = torch.arange(tokens.shape[1], device=rows.device)
    moved = tokens.gather(1, (index + said.length[:, None]).clamp(max=tokens.shape[1] - 1))
    # An end of text is the last thing said, and is no part of a draft.
    count = now.length - said.length - (_last(tokens, now.length) == eot).long()
    nothing = torch.zeros_like(count)
    numbers = said._replace(
        drafted=torch.where(wanting, count.clamp(min=0), said.drafted),
        place=torch.where(wanting, nothing, said.place),
        start=torch.where(wanting, nothing, said.start),
        misses=torch.where(wanting, nothing, said.misses),
        intact=torch.where(wanting, nothing, said.intact),  # what is accepted is of the first draft
    )
    theirs.drafts.index_copy_(0, rows, torch.where(wanting[:, None], moved, drafts))
    theirs.numbers.index_copy_(0, rows, torch.stack(numbers, 1))


def _wanting(said: Numbers) -> Tensor:
    return (said.done == 0) & ((said.drafted - said.start).minimum(said.limit - said.length) <= 0)
