"""Caches at fixed addresses: a slot for every row, `[slots + 1, ...]`, whichever rows a pass is about.

Owns the layout, and how a pass reads the slots that it is given: from a copy of them on any device, or as pages in
place, on a GPU whose kernel can. The last slot is padding: rows that only fill a batch write there. Knows nothing of
tokens, texts or graphs.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every PyTorch reader expects
from torch import Tensor

from streaming.whisper.model import AttentionView, Decoder, Memory, unseen_by

log = logging.getLogger(__name__)

PAGE = 256
"""Positions in a page: what the kernel for pages wants, and so what lengths of slots are multiples of."""

OVERHANG = 64
"""Positions behind a decoder's last: the widest window may stand with its padding there."""

_NEAR = 0.05
"""How far the two ways to look may differ, relative to the largest value, before the kernel is not believed."""


class Slots:
    """The keys and values of a decoder, for `count` rows and the padding.

    Attributes:
        text: `[layers, 2 (keys, values), slots + 1, capacity, heads, head_dim]`.
        audio: for each layer the same of the audio, `[2, slots + 1, positions, heads, head_dim]`. It is the largest
            thing there is, so each layer has its own tensor.
        count: the number of slots, without the padding.
        in_pages: whether slots are read in place.
        splits: parts in which the kernel for pages reads a row's audio; 1 where its sums must not depend on how many
            rows there are, None for its own choice, which keeps a device busy with few rows.
    """

    def __init__(self, decoder: Decoder, count: int, positions: int) -> None:
        """Allocate the slots.

        Args:
            decoder: whose keys and values they hold.
            count: the number of slots.
            positions: encoder positions of the longest context that will be heard.
        """
        weight = decoder.embed_tokens.weight
        heads = decoder.heads
        shape = (heads, weight.shape[1] // heads)
        capacity, heard = _whole_pages(decoder.positions + OVERHANG), _whole_pages(positions)
        # Zeros, not uninitialised memory: a masked position still meets its value, and 0 * NaN is NaN.
        self.text = weight.new_zeros(len(decoder.layers), 2, count + 1, capacity, *shape)
        self.audio = tuple(weight.new_zeros(2, count + 1, heard, *shape) for _ in decoder.layers)
        self.count = count
        self.in_pages = False
        self.splits: int | None = 1
        self._multiples: dict[tuple[int, int], Tensor] = {}
        self._repeated: dict[tuple[int, int], Tensor] = {}

    @cached_property
    def masks(self) -> Tensor:
        """What each position adds to its attention to the others, `[capacity, capacity]`: a mask is looked up."""
        everywhere = torch.arange(self.capacity, device=self.text.device)
        hidden = unseen_by(everywhere[None], self.capacity)[0, 0]
        return torch.zeros_like(hidden, dtype=self.text.dtype).masked_fill_(hidden, -torch.inf)

    @cached_property
    def text_pages(self) -> Tensor:
        """The pages of each slot's text, `[slots + 1, pages]`."""
        return _pages(self.text[0])

    @cached_property
    def audio_pages(self) -> Tensor:
        """The pages of each slot's audio, `[slots + 1, pages]`."""
        return _pages(self.audio[0])

    # Constants are made by the call before a capture, thus outside of any graph, and then only read.

    def multiples(self, count: int, step: int) -> Tensor:
        """Return 0, `step`, 2 `step`, ..., `[count]`."""
        if (count, step) not in self._multiples:
            self._multiples[count, step] = torch.arange(count, device=self.text.device, dtype=torch.int32) * step
        return self._multiples[count, step]

    def repeated(self, count: int, value: int) -> Tensor:
        """Return the same value `count` times, `[count]`."""
        if (count, value) not in self._repeated:
            self._repeated[count, value] = torch.full((count,), value, device=self.text.device, dtype=torch.int32)
        return self._repeated[count, value]

    @property
    def padding_slot(self) -> int:
        return self.count

    @property
    def capacity(self) -> int:
        return self.text.shape[3]

    def clear(self, rows: Tensor, first: int, last: int) -> None:
        """Forget the texts of `rows` from position `first` to before `last`.

        What a job left there may not be finite.
        """
        self.text[:, :, :, first:last].index_fill_(2, rows, 0.0)

    def remember(self, decoder: Decoder, states: Tensor, rows: Tensor) -> None:
        """Keep encoder states, `[rows, positions, d_model]`, as keys and values in the slots `rows`."""
        for layer, pool in zip(decoder.layers, self.audio, strict=True):
            pair: Tensor = layer.encoder_attn.keys_values_pair(states)  # type: ignore[union-attr, operator]  # ModuleList forgets its element type
            pool[:, :, : states.shape[1]].permute(1, 2, 0, 3, 4).index_copy_(0, rows, pair)

    def memory(self, rows: Tensor, positions: int) -> Memory:
        """Return a copy of the audio of some slots, in the form that a decoder without slots has."""
        pairs = [pool[:, :, :positions].index_select(1, rows).transpose(2, 3) for pool in self.audio]
        return Memory(tuple(keys for keys, _ in pairs), tuple(values for _, values in pairs))

    def row(self, number: int, positions: int) -> Memory:
        """Return the audio of one slot in the same form, as a view.

        It is valid until the slot hears something else.
        """
        pairs = [pool[:, number : number + 1, :positions].transpose(2, 3) for pool in self.audio]
        return Memory(tuple(keys for keys, _ in pairs), tuple(values for _, values in pairs))

    @torch.inference_mode()
    def look_in_pages(self) -> bool:
        """Try whether slots can be read in place, against reading a copy, and return whether they are from now on."""
        rows = torch.arange(min(2, self.count), device=self.text.device).flip(0)
        heads, size = self.text.shape[-2:]
        queries = torch.randn(len(rows), heads, 2, size, device=rows.device).to(self.text.dtype)
        pair = torch.randn(len(rows), 2, 2, heads, size, device=rows.device).to(self.text.dtype)
        # As far as a text and its audio may go: each page has its own place in the kernel's table.
        capacity, heard = self.capacity, self.audio[0].shape[2]
        positions = torch.stack([capacity - rows - 3, capacity - rows - 2], 1)
        self.audio[0].normal_()
        self.text[0].normal_()
        try:
            tried: list[Tensor] = []
            for look in (_Copying, _Paging):
                view = look(SelectedSlots(self, rows, heard, capacity), positions)
                tried += [view.text(0, queries, pair), view.audio(0, queries)]
            *expected, text, audio = (each.float() for each in tried)
            worst = max(float((a - b).abs().max()) for a, b in zip(expected, (text, audio), strict=True))
            self.in_pages = worst <= _NEAR * float(expected[0].abs().max())
        except (RuntimeError, NotImplementedError, TypeError, ImportError, ValueError) as error:
            log.debug("no attention in pages here: %s", error)
            self.in_pages = False
        self.text.zero_()
        self.audio[0].zero_()
        return self.in_pages


@dataclass(frozen=True, slots=True)
class SelectedSlots:
    """Some slots as the rows of a pass: a `KVStore`.

    Attributes:
        rows: numbers of slots, `[rows]`, at a fixed address.
        heard: encoder positions.
        reach: positions of text that any row may see.
    """

    slots: Slots
    rows: Tensor
    heard: int
    reach: int

    def at(self, positions: Tensor) -> AttentionView:
        return (_Paging if self.slots.in_pages else _Copying)(self, positions)


class _Copying:
    """The slots' rows are gathered for each layer: on any device, in any precision."""

    def __init__(self, selected: SelectedSlots, positions: Tensor) -> None:
        self._selected, self._positions = selected, positions
        found = selected.slots.masks[:, : selected.reach].index_select(0, positions.flatten())
        self._mask = found.view(len(positions), 1, -1, selected.reach)

    def text(self, layer: int, queries: Tensor, pair: Tensor) -> Tensor:
        _write(self._selected, layer, self._positions, pair)
        seen_keys, seen_values = self._gathered(self._selected.slots.text[layer], self._selected.reach)
        return F.scaled_dot_product_attention(queries, seen_keys, seen_values, attn_mask=self._mask)

    def audio(self, layer: int, queries: Tensor) -> Tensor:
        keys, values = self._gathered(self._selected.slots.audio[layer], self._selected.heard)
        return F.scaled_dot_product_attention(queries, keys, values)

    def _gathered(self, pool: Tensor, length: int) -> tuple[Tensor, Tensor]:
        keys, values = pool[:, :, :length].index_select(1, self._selected.rows).transpose(2, 3)
        return keys, values


class _Paging:
    """The kernel reads the slots in place, each row to its own length.

    A text is read in one part: a row's sum of products must not depend on how long its neighbours are. All rows of a
    pass have as much audio.
    """

    def __init__(self, selected: SelectedSlots, positions: Tensor) -> None:
        from torch.nn.attention.varlen import varlen_attn  # PyTorch 2.13 has pages; an older one raises

        self._attend = varlen_attn
        self._selected, self._positions = selected, positions
        slots = selected.slots
        rows, self._width = positions.shape
        # Once for all layers: what each row reads, how far, and where its queries are.
        self._text_pages = slots.text_pages.index_select(0, selected.rows)
        self._audio_pages = slots.audio_pages.index_select(0, selected.rows)
        self._firsts = slots.multiples(rows + 1, self._width)
        self._lengths = torch.add(positions[:, -1], 1, out=positions.new_empty(rows, dtype=torch.int32))
        self._heard = slots.repeated(rows, selected.heard)

    def text(self, layer: int, queries: Tensor, pair: Tensor) -> Tensor:
        _write(self._selected, layer, self._positions, pair)
        slots = self._selected.slots
        return self._paged(slots.text[layer], self._text_pages, queries, self._lengths, slots.capacity, (-1, 0), 1)

    def audio(self, layer: int, queries: Tensor) -> Tensor:
        slots, heard = self._selected.slots, self._selected.heard
        return self._paged(slots.audio[layer], self._audio_pages, queries, self._heard, heard, (-1, -1), slots.splits)

    def _paged(
        self, pool: Tensor, table: Tensor, queries: Tensor, lengths: Tensor, longest: int, window: tuple[int, int],
        splits: int | None,
    ) -> Tensor:  # fmt: skip
        keys, values = pool.flatten(1, 2).view(2, -1, PAGE, *pool.shape[3:])
        found = self._attend(
            queries.transpose(1, 2).flatten(0, 1), keys, values, self._firsts, None, self._width, longest,
            window_size=window, seqused_k=lengths, block_table=table, num_splits=splits,
        )  # fmt: skip
        assert isinstance(found, Tensor), "nothing besides was asked for"
        attended: Tensor = found.unflatten(0, (-1, self._width)).transpose(1, 2)
        return attended


def _write(selected: SelectedSlots, layer: int, positions: Tensor, pair: Tensor) -> None:
    """Keep the keys and values of a window in one operation."""
    own = selected.slots.text[layer].permute(1, 2, 0, 3, 4)  # [slots + 1, capacity, 2, heads, head_dim]
    own.index_put_((selected.rows[:, None], positions), pair)


def _pages(pool: Tensor) -> Tensor:
    """The numbers of each slot's pages in a pool, `[slots + 1, pages]`, as the kernel wants them."""
    slots, pages = pool.shape[1], pool.shape[2] // PAGE
    return torch.arange(slots * pages, device=pool.device, dtype=torch.int32).view(slots, pages)


def _whole_pages(length: int) -> int:
    return -(-length // PAGE) * PAGE
