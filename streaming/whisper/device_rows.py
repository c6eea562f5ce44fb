"""The rows of `rows.py` as tensors at fixed addresses, and a whole step of decoding on them that waits for nothing.

Owns what a step does between two passes of a decoder, on the device: which tokens are checked, what is said, what
becomes of the draft, which rows are done; and how a cheaper model's rows follow and hand over their proposals. To the
token and to the pass it does what `Row` and `Draft` do in plain Python. Knows nothing of batches, graphs or jobs.

What counts is how many operations a step takes: each is a launch, which takes longer than the work on a few numbers.
`whisperd bench kernels` counts them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from streaming.whisper.cache_slots import SelectedSlots
from streaming.whisper.decode import NOTHING, Verdict, Window, verify
from streaming.whisper.model import Decoder
from streaming.whisper.rows import FARTHEST, REACH, Row
from streaming.whisper.rules import Context, LogitRules

_RANK = 1 << 20
"""Between the ranks of what `_found` finds: more than a draft has places."""


class Numbers(NamedTuple):
    """What is known of each row, `[rows]` each; places in a draft are columns of `Texts.lines`.

    Attributes:
        last: the position of the newest token.
        start: where the next offer of the draft begins; see `Draft`.
        place: see `Draft`.
        misses: see `Draft`.
        end: the last position that the text may reach; the row is done where that is `last`.
        gap: tokens before the newest whose keys and values are not in the cache.
        accepted: see `Row`.
        intact: 1 while the whole draft was right.
        past: behind the draft's last token.
        begin: tokens of the prompt.
        stamped: 0 or 1, whether the row has timestamps.
        vocabulary: the number of the row's vocabulary in the batch; 0 for none.
        told: see `Row`.
    """

    last: Tensor
    start: Tensor
    place: Tensor
    misses: Tensor
    end: Tensor
    gap: Tensor
    accepted: Tensor
    intact: Tensor
    past: Tensor
    begin: Tensor
    stamped: Tensor
    vocabulary: Tensor
    told: Tensor

    @property
    def wanting(self) -> Tensor:
        """Which rows go on, with a draft that has nothing to offer."""
        return (self.last < self.end) & (self.start >= self.past)


_OFTEN, _CHECKS = 5, 8
"""How many of the numbers each step changes, and how many a check of several tokens."""


class Count(NamedTuple):
    """The `Numbers` of one row, on the host."""

    last: int
    start: int
    place: int
    misses: int
    end: int
    gap: int
    accepted: int
    intact: int
    past: int
    begin: int
    stamped: int
    vocabulary: int
    told: int

    @property
    def done(self) -> bool:
        return self.last >= self.end

    @property
    def silent(self) -> bool:
        """Whether nothing is said yet."""
        return self.last < self.begin

    @property
    def offered(self) -> int:
        """Tokens that the next pass would check."""
        return max(0, min(self.end - self.last, self.past - self.start))

    def longest(self, unread: int) -> int:
        """Return how long the text may be after the next pass.

        Args:
            unread: passes that were asked for and that this count does not know of.
        """
        draft = self.offered if not unread else max(0, self.past - self.place)
        return min(self.end + 1, self.last + draft + unread + 2)


class Texts:
    """Prompt, text, draft and numbers of every slot, `[slots + 1, ...]`; the last slot is padding, and always done.

    Attributes:
        lines: prompt and text, and from column `drafts` on the draft, with `NOTHING` behind it.
        drafts: the column where drafts begin.
        no_draft: a column behind all drafts.
    """

    def __init__(self, slots: int, positions: int, widest: int, device: torch.device) -> None:
        """Allocate the texts.

        Args:
            slots: the number of slots, without the padding.
            positions: of the decoder.
            widest: the widest window that will be checked, which may reach beyond the end.
            device: where they are.
        """
        self.length = positions + widest + 1
        self.drafts = self.length
        self.no_draft = 2 * self.length
        self.lines = torch.zeros(slots + 1, self.no_draft + widest + FARTHEST + 2, dtype=torch.long, device=device)
        self.lines[:, self.drafts - 1 :] = NOTHING  # in front of a draft too
        self.log_probs = torch.zeros(slots + 1, self.length, device=device)
        self.no_speech = torch.zeros(slots + 1, device=device)
        self.numbers = torch.zeros(slots + 1, len(Numbers._fields), dtype=torch.long, device=device)
        for name in ("start", "place", "past"):
            self.numbers[:, Numbers._fields.index(name)] = self.no_draft
        self.numbers[:, Numbers._fields.index("begin")] = 1
        self.columns = torch.arange(self.lines.shape[1], device=device)
        # What `_found` looks at, one place in front included; how near each is; and what it gives, by its rank.
        self.around = self.columns[: FARTHEST + 1] - 1
        self.near = self.columns[:FARTHEST] - REACH
        self.after_match = self.columns[1 : FARTHEST + 1] - _RANK
        self.after_pair = self.columns[1 : FARTHEST + 1] - 2 * _RANK
        self.one = self.columns[1]

    def open(self, slots: Tensor, rows: Sequence[Row]) -> list[Count]:
        """Put rows, as they are before their first pass, into slots.

        It is no part of a step, since it copies from the host.
        """
        drafts = [row.draft.offer()[: self.length - 1] for row in rows]
        counts = [
            Count(
                last=len(row.prompt) - 1, start=self.drafts, place=self.drafts, misses=0,
                end=len(row.prompt) + row.limit - 1, gap=len(row.prompt) - 1, accepted=0, intact=1,
                past=self.drafts + len(draft), begin=len(row.prompt),
                stamped=int(row.timestamps), vocabulary=row.vocabulary, told=row.told,
            )
            for row, draft in zip(rows, drafts, strict=True)
        ]  # fmt: skip
        self.numbers.index_copy_(0, slots, sent(counts, slots.device))
        self.lines[:, self.drafts : self.no_draft].index_fill_(0, slots, NOTHING)
        for first, lists in ((0, [row.tokens for row in rows]), (self.drafts, drafts)):
            width = max(map(len, lists))
            padded = [[*each, *[NOTHING if first else 0] * (width - len(each))] for each in lists]
            if width:
                self.lines[:, first : first + width].index_copy_(0, slots, sent(padded, slots.device))
        return counts

    def close(self, slots: Tensor, rows: Sequence[Row]) -> None:
        """Take finished texts back into their rows; this waits for the device."""
        numbers, lines, log_probs, no_speech = (
            part.index_select(0, slots).tolist()
            for part in (self.numbers, self.lines[:, : self.length], self.log_probs, self.no_speech)
        )
        for row, values, said, how, silence in zip(rows, numbers, lines, log_probs, no_speech, strict=True):
            count = Count(*values)
            row.tokens = said[: count.last + 1]
            # What was no number before the first token has none: that it was none is to be seen.
            row.log_probs = [math.nan] if count.silent else how[count.begin : count.last + 1]
            row.cached, row.accepted = count.last - count.gap, count.accepted
            row.no_speech, row.done = silence, count.done


def sent(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Copy values to the device without the host waiting for it."""
    return torch.tensor(values, dtype=torch.long, pin_memory=device.type == "cuda").to(device, non_blocking=True)


# --- a step, on the device -------------------------------------------------------------------------------------------


def step(
    decoder: Decoder,
    rules: LogitRules,
    texts: Texts,
    selected: SelectedSlots,
    width: int,
    *,
    stamped: bool = False,
    biased: bool = False,
    silence: bool = True,
) -> None:
    """Do one pass for the rows of `selected`, with all that comes of it.

    The shapes are fixed, and nothing in it waits for the device or reads a tensor from the host.

    Args:
        decoder: the model.
        rules: what may be said.
        texts: of all slots.
        selected: the slots that the pass is about.
        width: positions in the window. Of one position it takes the newest tokens of rows that have said something, and
            whose other tokens are in the cache; a row where some are not stays as far behind as it was.
        stamped: whether any of the rows has timestamps.
        biased: whether any of them has a vocabulary.
        silence: whether a check that begins a text also tells how likely it is that there is no speech.
    """
    rows = selected.rows
    numbers = texts.numbers.index_select(0, rows)
    now = Numbers(*numbers.unbind(1))
    single = width == 1
    window = _newest(texts, rows, numbers) if single else _checked(texts, rows, now, width)
    nexts = window.places + 1
    opens = None if single else nexts == now.begin[:, None]
    context = None
    if stamped or biased:
        tokens = texts.lines[:, : texts.length].index_select(0, rows) if single else _with_draft(texts, rows, now)
        context = Context(
            tokens, window.places, now.begin, now.stamped > 0 if stamped else None, now.vocabulary if biased else None
        )
    verdict = verify(decoder, selected, lambda logits: rules.text(logits, opens, context), window)
    # Beyond what is said it does not matter what is written, and what is given is written again.
    texts.lines.index_put_((rows[:, None], nexts), verdict.chosen)
    texts.log_probs.index_put_((rows[:, None], nexts), verdict.log_probs)
    if single:
        then = _after_one(texts, rows, now, window, verdict, nexts, rules.grammar.eot)
    else:
        then = _after(texts, rows, now, window, verdict, nexts, rules.grammar.eot)
        if silence and rules.grammar.no_speech is not None:
            _note_silence(texts, rows, now, verdict.logits, rules.grammar.no_speech)
    changed = _OFTEN if single else _CHECKS
    texts.numbers[:, :changed].index_copy_(0, rows, torch.stack(then[:changed], 1))


def _newest(texts: Texts, rows: Tensor, numbers: Tensor) -> Window:
    """The newest token of each row, and the first of its draft: `last` and `start` tell where they are."""
    newest, following = texts.lines[rows[:, None], numbers[:, :2]].split(1, 1)
    return Window(newest, numbers[:, :1], following, None)


def _checked(texts: Texts, rows: Tensor, now: Numbers, width: int) -> Window:
    """What is not in the cache, and what the draft offers behind it."""
    places = (now.last - now.gap)[:, None] + texts.columns[: width + 1]
    drafted = places > now.last[:, None]
    shift = now.start - now.last - 1  # from a position to its place in the draft
    cells = texts.lines[rows[:, None], torch.addcmul(places, drafted, shift[:, None])]
    return Window(cells[:, :-1].clamp(min=0), places[:, :-1], cells[:, 1:], ~drafted[:, 1:])


def _with_draft(texts: Texts, rows: Tensor, now: Numbers) -> Tensor:
    """Prompt and text, and behind them what the draft offers: [rows, length]."""
    columns = texts.columns[: texts.length]
    offered = (columns + (now.start - now.last - 1)[:, None]).clamp(0, texts.no_draft)
    return texts.lines[rows[:, None], torch.where(columns <= now.last[:, None], columns, offered)]


def _after_one(
    texts: Texts, rows: Tensor, now: Numbers, window: Window, verdict: Verdict, nexts: Tensor, eot: int
) -> Numbers:
    """The numbers after a pass over the newest tokens; the gap is what it was."""
    newest, hit = verdict.chosen[:, 0], verdict.agrees[:, 0]
    behind = now.start + hit
    place = torch.where(hit, behind, now.place)
    misses = (now.misses + 1).masked_fill_(hit, 0)
    found = _found(texts, rows, now.past, place, misses, newest, window.tokens[:, 0])
    last = nexts[:, 0].minimum(now.end)
    return now._replace(
        last=last, start=torch.where(hit, behind, found), place=place, misses=misses,
        end=_end(now, last, newest, verdict.log_probs[:, 0], eot),
    )  # fmt: skip


def _after(
    texts: Texts, rows: Tensor, now: Numbers, window: Window, verdict: Verdict, nexts: Tensor, eot: int
) -> Numbers:
    """The numbers after a check of several tokens: `Row.take` and `Draft.correct`, row by row."""
    width = nexts.shape[1]
    agreed = torch.where(verdict.agrees, texts.columns[width], texts.columns[:width]).amin(1)
    decided = agreed.clamp(max=width - 1)[:, None]  # the column whose choice is the last that counts
    reached, newest, previous, log_prob = (
        each.gather(1, decided)[:, 0] for each in (nexts, verdict.chosen, window.tokens, verdict.log_probs)
    )
    # A pass that is narrower than the prompt says nothing yet; the end may cut what is said.
    last = torch.clamp(reached, now.last, now.end)
    kept = (agreed - now.gap).minimum(now.end - now.last).clamp_(min=0)
    missed = agreed < width  # else the window ended before the draft went wrong
    behind = now.start + kept
    place = torch.where(kept > 0, behind, now.place)
    misses = torch.where(kept > 0, missed, now.misses + missed)
    found = _found(texts, rows, now.past, place, misses, newest, previous)
    return now._replace(
        last=last, start=torch.where(missed, found, behind), place=place, misses=misses,
        end=_end(now, last, newest, log_prob, eot), gap=(last - reached).clamp_(min=0),
        accepted=torch.addcmul(now.accepted, kept, now.intact), intact=now.intact.masked_fill(missed, 0),
    )  # fmt: skip


def _note_silence(texts: Texts, rows: Tensor, now: Numbers, logits: Tensor, token: int) -> None:
    """Keep the probability of no speech: as it is after start of transcript, before any rule, if that is checked."""
    behind = now.told - now.last + now.gap
    column = behind.clamp(0, logits.shape[1] - 1)
    begins = behind == column
    probability = logits[texts.columns[: len(column)], column].softmax(-1)[:, token]
    texts.no_speech.index_copy_(0, rows, torch.where(begins, probability, texts.no_speech.index_select(0, rows)))


def _end(now: Numbers, last: Tensor, newest: Tensor, log_prob: Tensor, eot: int) -> Tensor:
    """Where the text ends: here, after an end of text or what is no number (`Row.take`)."""
    return torch.where((newest != eot) & (log_prob > -math.inf), now.end, last)


def _found(
    texts: Texts, rows: Tensor, past: Tensor, place: Tensor, misses: Tensor, newest: Tensor, previous: Tensor
) -> Tensor:
    """Where in its draft each text comes back: `Draft._find`."""
    ahead = texts.lines[rows[:, None], place[:, None] + texts.around]
    matches = (ahead[:, 1:] == newest[:, None]) & (texts.near < misses[:, None])
    paired = ahead[:, :-1] == previous[:, None]
    lost = torch.where(misses == 1, texts.one, past - place)
    # The least number is that of the first pair, else of the first match, else of none.
    ranked = torch.where(matches, torch.where(paired, texts.after_pair, texts.after_match), lost[:, None])
    return place + ranked.amin(1).bitwise_and_(_RANK - 1)


# --- a cheaper model's proposals, on the device ----------------------------------------------------------------------


def follow(ours: Texts, theirs: Texts, rows: Tensor, count: int, width: int) -> None:
    """Let rows of the cheaper model, `ours`, continue those of `theirs` by `count` tokens where a draft is wanted.

    A row of which the cheaper model lacks more tokens than its next check takes, `width`, only catches up.
    """
    now, said = (Numbers(*texts.numbers.index_select(0, rows).unbind(1)) for texts in (ours, theirs))
    own, tokens = (texts.lines[:, : texts.length].index_select(0, rows) for texts in (ours, theirs))
    columns = ours.columns[: ours.length]
    known = columns < (now.last - now.gap).minimum(said.last)[:, None]
    same = torch.where((own == tokens) & known, ours.columns[ours.length], columns).amin(1)
    gap = said.last - same
    nothing, none = (ours.columns[value].expand_as(same) for value in (ours.no_draft, 0))
    numbers = said._replace(
        start=nothing, place=nothing, past=nothing, misses=none, gap=gap,
        end=torch.where(said.wanting & (gap < width), (said.last + count).minimum(said.end), said.last),
    )  # fmt: skip
    ours.lines[:, : ours.length].index_copy_(0, rows, tokens)
    ours.numbers.index_copy_(0, rows, torch.stack(numbers, 1))


def hand_over(ours: Texts, theirs: Texts, rows: Tensor, eot: int) -> None:
    """Give what the cheaper model said as drafts to the rows that want one."""
    now, said = (Numbers(*texts.numbers.index_select(0, rows).unbind(1)) for texts in (ours, theirs))
    columns, wanting = ours.columns[: ours.length], said.wanting
    # An end of text is the last thing said, and is no part of a draft.
    ended = ours.lines[rows, now.last] == eot
    count = (now.last - said.last - ended.long()).clamp_(min=0)
    places = (said.last[:, None] + 1 + columns).clamp_(max=ours.length - 1)
    moved = ours.lines[rows[:, None], places].masked_fill_(columns >= count[:, None], NOTHING)
    drafts = theirs.lines[:, theirs.drafts : theirs.no_draft]
    drafts.index_copy_(0, rows, torch.where(wanting[:, None], moved, drafts.index_select(0, rows)))
    numbers = said._replace(
        start=said.start.masked_fill(wanting, theirs.drafts),
        place=said.place.masked_fill(wanting, theirs.drafts),
        past=torch.where(wanting, count + theirs.drafts, said.past),
        misses=said.misses.masked_fill(wanting, 0),
        intact=said.intact.masked_fill(wanting, 0),  # what is accepted is of the first draft
    )
    theirs.numbers.index_copy_(0, rows, torch.stack(numbers, 1))
