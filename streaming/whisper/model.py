"""The Whisper encoder and decoder in plain PyTorch, and the decoder's cache with its own length for every row.

Owns the arithmetic and the cache's layout. Knows nothing of prompts, drafts, rules or jobs: the decoder is asked for
the logits of some tokens at some positions, and the caller keeps count of which positions are true.

Modules have the names of the Hugging Face layout, so that its weights load by name. Nothing in a forward pass waits for
the device or depends on the values in a tensor: only (rows, width, capacity) fix the shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every PyTorch reader expects
from torch import Tensor, nn

from streaming.whisper.checkpoint import CheckpointError, Dimensions, message_of

CAPACITY_STEP = 64
"""The cache grows in steps of this many positions, so that few shapes of the pass exist."""

Watch = Callable[[int, Tensor], None]
"""Called with a decoder layer's number and its cross-attention's queries, [rows, heads, length, head_dim]."""


class Attention(nn.Module):
    """Multi-head attention; Whisper's keys have no bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.together: nn.Module | None = None
        """Queries, keys and values of the same states as one product (`join`, `half_precision.py`)."""
        self.pair: nn.Module | None = None
        """Keys and values as one product (`join`)."""

    def split(self, states: Tensor) -> Tensor:
        """Reshape `[rows, length, width]` to `[rows, heads, length, head_dim]`."""
        rows, length, width = states.shape
        return states.view(rows, length, self.heads, width // self.heads).transpose(1, 2)

    def project(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries, keys and values of the same states."""
        if self.together is None:
            return self.queries(states), *self.keys_values(states)
        queries, keys, values = self.together(states).chunk(3, -1)
        return self.split(queries), self.split(keys), self.split(values)

    def project_pair(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the queries, and the keys and values together, as a cache takes them.

        The queries are `[rows, heads, length, head_dim]`, the others `[rows, length, 2, heads, head_dim]`.
        """
        if self.together is None:
            return self.queries(states), self.keys_values_pair(states)
        found = self.together(states).unflatten(-1, (3, self.heads, -1))
        return found[:, :, 0].transpose(1, 2), found[:, :, 1:]

    def queries(self, states: Tensor) -> Tensor:
        return self.split(self.q_proj(states))

    def keys_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, `[rows, heads, length, head_dim]` each."""
        if self.pair is None:
            return self.split(self.k_proj(states)), self.split(self.v_proj(states))
        keys, values = self.keys_values_pair(states).transpose(1, 3).unbind(2)
        return keys, values

    def keys_values_pair(self, states: Tensor) -> Tensor:
        """Return keys and values together, `[rows, length, 2, heads, head_dim]`."""
        if self.pair is None:
            pair = torch.stack([self.k_proj(states), self.v_proj(states)], 2)
        else:
            pair = self.pair(states).unflatten(-1, (2, -1))
        rows, length, _, width = pair.shape
        return pair.view(rows, length, 2, self.heads, width // self.heads)

    def merge(self, attended: Tensor) -> Tensor:
        """Project `[rows, heads, length, head_dim]` to `[rows, length, width]`."""
        merged: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return merged


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = Attention(width, heads)
        self.final_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn)
        self.fc2 = nn.Linear(ffn, width)

    def forward(self, states: Tensor) -> Tensor:
        normed = self.self_attn_layer_norm(states)
        attended = F.scaled_dot_product_attention(*self.self_attn.project(normed))
        states = states + self.self_attn.merge(attended)
        states = states + self.fc2(F.gelu(self.fc1(self.final_layer_norm(states))))
        if states.dtype == torch.float16:
            # The large checkpoints overflow here in half precision; transformers clamps at the same bound.
            bound = torch.finfo(torch.float16).max - 1000
            states = states.clamp(-bound, bound)
        return states


class Encoder(nn.Module):
    """Log-mel features to states, for any context up to the checkpoint's longest."""

    def __init__(self, sizes: Dimensions) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(sizes.mels, sizes.d_model, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(sizes.d_model, sizes.d_model, kernel_size=3, stride=2, padding=1)
        self.embed_positions = _embedding(sizes.source_positions, sizes.d_model)
        self.layers = nn.ModuleList(
            EncoderLayer(sizes.d_model, sizes.encoder_heads, sizes.encoder_ffn) for _ in range(sizes.encoder_layers)
        )
        self.layer_norm = nn.LayerNorm(sizes.d_model)

    def forward(self, mel: Tensor) -> Tensor:
        """Map `[rows, mels, frames]` to `[rows, frames / 2, d_model]`; positions count from the context's start."""
        states = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        states = states + self.embed_positions.weight[: states.shape[1]]
        for layer in self.layers:
            states = layer(states)
        normed: Tensor = self.layer_norm(states)
        return normed


@dataclass(frozen=True, slots=True)
class Memory:
    """What the decoder knows of the audio: cross-attention keys and values, computed once per job.

    Each layer has its own tensors: one of all layers would have to be put together by copying the largest thing that a
    pass has.

    Attributes:
        keys: for each layer, `[rows, heads, encoder positions, head_dim]`.
        values: for each layer, likewise.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def rows(self) -> int:
        return self.keys[0].shape[0]

    @property
    def device(self) -> torch.device:
        return self.keys[0].device

    def row(self, number: int) -> Memory:
        """Return one row as a view: of a large model it is hundreds of megabytes."""
        one = slice(number, number + 1)
        return Memory(tuple(keys[one] for keys in self.keys), tuple(values[one] for values in self.values))

    def select(self, rows: Tensor) -> Memory:
        """Return a copy of some rows, whose indices are `[count]`."""
        return Memory(tuple(keys[rows] for keys in self.keys), tuple(values[rows] for values in self.values))


class AttentionView(Protocol):
    """A pass over a window of each row: what its queries, `[rows, heads, width, head_dim]`, find in the caches.

    Both methods return what was attended to, in the queries' shape.
    """

    def text(self, layer: int, queries: Tensor, pair: Tensor) -> Tensor:
        """Keep the window's own keys and values, then attend to all of the row's text up to each position.

        They come as `Attention.project_pair` returns them.
        """
        ...

    def audio(self, layer: int, queries: Tensor) -> Tensor: ...


class KVStore(Protocol):
    """Where a decoder's keys and values are kept."""

    def at(self, positions: Tensor) -> AttentionView:
        """Return a view for a pass over a window at `positions`, `[rows, width]`."""
        ...


class KVCache:
    """Self-attention keys and values of every row, beside the row's memory of its audio.

    A row's first positions are its own. What lies behind them is stale; it is masked, because no true query looks past
    its own position, and is overwritten in time. The last position is never true: writes of padding that fall beyond
    the capacity land there.

    Attributes:
        memory: of the rows' audio.
        text: keys and values, `[layers, 2, rows, heads, capacity, head_dim]`.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        rows, heads, _, head_dim = memory.keys[0].shape
        # Zeros, not uninitialised memory: a masked position still meets its value, and 0 * NaN is NaN.
        self.text = memory.keys[0].new_zeros(len(memory.keys), 2, rows, heads, 0, head_dim)

    @property
    def capacity(self) -> int:
        return self.text.shape[4]

    def reserve(self, length: int) -> None:
        """Make room for `length` true positions in every row."""
        missing = length + 1 - self.capacity
        if missing > 0:
            grown = -(-missing // CAPACITY_STEP) * CAPACITY_STEP
            self.text = F.pad(self.text, (0, 0, 0, grown))

    def at(self, positions: Tensor) -> AttentionView:
        return _CacheView(self, positions)

    def select(self, rows: Tensor) -> KVCache:
        """Return a copy of some rows, whose indices are `[count]`."""
        chosen = KVCache(self.memory.select(rows))
        chosen.text = self.text[:, :, rows]
        return chosen


class _CacheView:
    def __init__(self, cache: KVCache, positions: Tensor) -> None:
        self._cache = cache
        self._rows = torch.arange(positions.shape[0], device=positions.device)[:, None]
        self._places = positions.clamp(max=cache.capacity - 1)
        # Once for all layers: of a mask of flags every layer would make such numbers anew.
        unseen = unseen_by(positions, cache.capacity)
        self._mask = torch.zeros_like(unseen, dtype=cache.text.dtype).masked_fill_(unseen, -torch.inf)

    def text(self, layer: int, queries: Tensor, pair: Tensor) -> Tensor:
        own = self._cache.text[layer]
        own[:, self._rows, :, self._places] = pair
        return F.scaled_dot_product_attention(queries, own[0], own[1], attn_mask=self._mask)

    def audio(self, layer: int, queries: Tensor) -> Tensor:
        # Every position of the context may be seen, padding included, as in training: no mask, the fast kernel.
        memory = self._cache.memory
        return F.scaled_dot_product_attention(queries, memory.keys[layer], memory.values[layer])


def unseen_by(positions: Tensor, length: int) -> Tensor:
    """Return which of `length` positions each of `positions` may not look at.

    Args:
        positions: `[rows, width]`.
        length: of the cache.

    Returns:
        bool, `[rows, 1, width, length]`.
    """
    return (torch.arange(length, device=positions.device) > positions[..., None])[:, None]


class DecoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = Attention(width, heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_attn = Attention(width, heads)
        self.final_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn)
        self.fc2 = nn.Linear(ffn, width)

    def forward(self, states: Tensor, view: AttentionView, layer: int, watch: Watch | None) -> Tensor:
        normed = self.self_attn_layer_norm(states)
        attended = view.text(layer, *self.self_attn.project_pair(normed))
        states = states + self.self_attn.merge(attended)
        queries = self.encoder_attn.queries(self.encoder_attn_layer_norm(states))
        if watch is not None:
            watch(layer, queries)
        states = states + self.encoder_attn.merge(view.audio(layer, queries))
        fed: Tensor = self.fc2(F.gelu(self.fc1(self.final_layer_norm(states))))
        return states + fed


class Decoder(nn.Module):
    """Tokens at positions to logits, given a cache that holds every earlier position."""

    def __init__(self, sizes: Dimensions) -> None:
        super().__init__()
        self.scale = sizes.d_model**0.5 if sizes.scale_embedding else 1.0
        self.positions = sizes.target_positions
        self.heads = sizes.decoder_heads
        self.embed_tokens = _embedding(sizes.vocabulary, sizes.d_model)
        self.embed_positions = _embedding(sizes.target_positions, sizes.d_model)
        self.layers = nn.ModuleList(
            DecoderLayer(sizes.d_model, sizes.decoder_heads, sizes.decoder_ffn) for _ in range(sizes.decoder_layers)
        )
        self.layer_norm = nn.LayerNorm(sizes.d_model)
        self.proj_out = None if sizes.tied_embedding else nn.Linear(sizes.d_model, sizes.vocabulary, bias=False)
        self.vocabulary: nn.Module | None = None
        """States to logits in another way than by the output weights as they are (`half_precision.py`)."""

    def remember(self, states: Tensor) -> Memory:
        """Return the memory of encoder states, `[rows, encoder positions, d_model]`."""
        pairs = [layer.encoder_attn.keys_values(states) for layer in self.layers]  # type: ignore[union-attr, operator]  # ModuleList forgets its element type
        return Memory(tuple(keys for keys, _ in pairs), tuple(values for _, values in pairs))

    def forward(self, tokens: Tensor, positions: Tensor, store: KVStore, watch: Watch | None = None) -> Tensor:
        """Do one pass.

        It writes the tokens into the store, which must have room for every true position (`KVCache.reserve`).

        Args:
            tokens: `[rows, width]`.
            positions: of the tokens, `[rows, width]`.
            store: the keys and values of all earlier positions.
            watch: called with each layer's cross-attention queries.

        Returns:
            Logits, `[rows, width, vocabulary]`.
        """
        states = self.states(tokens, positions, store, watch)
        logits: Tensor = F.linear(states, self.output_weight) if self.vocabulary is None else self.vocabulary(states)
        return logits

    def states(self, tokens: Tensor, positions: Tensor, store: KVStore, watch: Watch | None = None) -> Tensor:
        """Do a pass of which no logits are wanted, and return what they are made of, `[rows, width, d_model]`.

        The vocabulary is most of the work of a small decoder.
        """
        # A single position is a true one; behind a window's true ones there may be padding, beyond the last position.
        places = positions if positions.shape[1] == 1 else positions.clamp(max=self.positions - 1)
        states = self.embed_tokens(tokens)
        states = (states if self.scale == 1.0 else states * self.scale) + self.embed_positions(places)
        view = store.at(positions)
        for number, layer in enumerate(self.layers):
            states = layer(states, view, number, watch)
        normed: Tensor = self.layer_norm(states)
        return normed

    @property
    def output_weight(self) -> Tensor:
        """What makes logits of states, `[vocabulary, d_model]`."""
        return self.embed_tokens.weight if self.proj_out is None else self.proj_out.weight


def _embedding(count: int, width: int) -> nn.Embedding:
    """Without first values: where there is no memory for any, PyTorch takes seconds to learn how to draw them."""
    places: nn.Embedding = nn.Embedding.from_pretrained(torch.empty(count, width))
    return places


# --- products of the same states -------------------------------------------------------------------------------------


def join(part: Encoder | Decoder) -> None:
    """Make one product of those that see the same states, where they are still apart: fewer calls, the same sums."""
    for layer in part.layers:
        own: Attention = layer.self_attn  # type: ignore[assignment]  # ModuleList forgets its element type
        if own.together is None and isinstance(own.q_proj, nn.Linear):
            own.together = _joined([own.q_proj, own.k_proj, own.v_proj])
            del own.q_proj, own.k_proj, own.v_proj
        if isinstance(layer, DecoderLayer) and layer.encoder_attn.pair is None:
            cross = layer.encoder_attn
            cross.pair = _joined([cross.k_proj, cross.v_proj])
            del cross.k_proj, cross.v_proj


def joined_weights(parts: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias of some products as one's; a bias that is missing is zeros."""
    weight = torch.cat([part.weight for part in parts])
    return weight, torch.cat(
        [part.weight.new_zeros(len(part.weight)) if part.bias is None else part.bias for part in parts]
    )


def _joined(parts: Sequence[nn.Linear]) -> nn.Linear:
    weight, bias = joined_weights(parts)
    outputs, inputs = weight.shape
    joined = nn.Linear(inputs, outputs, device="meta")
    joined.load_state_dict({"weight": weight, "bias": bias}, assign=True)
    return joined.requires_grad_(False)


# --- from weights ----------------------------------------------------------------------------------------------------


Part = TypeVar("Part", Encoder, Decoder)


def build_encoder(sizes: Dimensions, weights: Mapping[str, Tensor]) -> Encoder:
    """Build the encoder from the tensors of `read_weights`, which it uses without copying.

    Raises:
        CheckpointError: they do not fit the sizes.
    """
    return _fill(Encoder, sizes, encoder_weights(weights))


def build_decoder(sizes: Dimensions, weights: Mapping[str, Tensor]) -> Decoder:
    """Build the decoder from the tensors of `read_weights`, which it uses without copying.

    Raises:
        CheckpointError: they do not fit the sizes.
    """
    own = {name.removeprefix("decoder."): value for name, value in weights.items() if name.startswith("decoder.")}
    if not sizes.tied_embedding:
        own |= {name: value for name, value in weights.items() if name.startswith("proj_out.")}
    return _fill(Decoder, sizes, own)


def encoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")}


def _fill(kind: type[Part], sizes: Dimensions, weights: Mapping[str, Tensor]) -> Part:
    with torch.device("meta"):  # no memory and no initialisation for weights that are replaced at once
        part = kind(sizes)
    try:
        part.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit config.json: {message_of(error)}") from error
    return part.eval().requires_grad_(False)
