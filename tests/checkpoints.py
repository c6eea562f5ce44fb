"""Checkpoints with random weights and a real tokenizer, in the Hugging Face Whisper layout, for any test.

Owns the special-token layout of the three Whisper vocabularies at any size, and the scaling that makes random
weights behave: texts that differ between recordings, end by themselves at times, and whose best tokens are no near
ties. Knows nothing of this project's own model code.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer

# One thread: the models here are too small for more, and results must not depend on how work is split.
torch.set_num_threads(1)

TIMESTAMPS = 1501
"""Timestamp tokens of every Whisper vocabulary: 0.00 to 30.00 s in steps of 20 ms."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a checkpoint. The defaults are the smallest that still have several layers and heads."""

    d_model: int = 32
    heads: int = 2
    encoder_layers: int = 2
    decoder_layers: int = 2
    mels: int = 80
    text_tokens: int = 600
    languages: tuple[str, ...] = ("en", "de", "fr")
    multilingual: bool = False


@dataclass(frozen=True)
class Pair:
    """The directories of two checkpoints of one vocabulary."""

    student: Path
    teacher: Path


SMALL = Shape()
SMALL_MULTILINGUAL = replace(SMALL, multilingual=True)

# The real configurations: widths, heads, mel bins and vocabularies of the public checkpoints.
_CODES = tuple(f"l{number:02d}" for number in range(98))
TINY_EN = Shape(384, 6, 4, 4, 80, 50256, ("en", *_CODES), multilingual=False)
TINY = Shape(384, 6, 4, 4, 80, 50257, ("en", *_CODES), multilingual=True)
LARGE_V3_FEW_LAYERS = Shape(1280, 20, 1, 1, 128, 50257, ("en", *_CODES, "yue"), multilingual=True)


def build_checkpoint(
    directory: Path,
    shape: Shape = SMALL,
    *,
    seed: int = 0,
    contexts: Sequence[float] | None = None,
    alignment_heads: Sequence[tuple[int, int]] | None = None,
    dtype: torch.dtype = torch.float32,
    ends: float = 2.5,
    max_length: int = 448,
) -> Path:
    """A checkpoint in `directory`, which is made.

    contexts: goes to `whisperd.json`; no such file where None. ends: how much the end of text stands out; at 0 no text
    ends before its limit.
    """
    torch.manual_seed(seed)
    tokens = special_tokens(shape)
    tokenizer = build_tokenizer(shape)
    model = WhisperForConditionalGeneration(_model_config(shape, tokens))
    _scale(model, tokens, ends)
    model.generation_config = _generation_config(shape, tokens, alignment_heads, max_length)
    torch.nn.Module.to(model, dtype)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    if contexts is not None:
        (directory / "whisperd.json").write_text(json.dumps({"contexts": list(contexts)}))
    return directory


def build_student(teacher: Path, directory: Path, layers: Sequence[int] = (0,), *, noise: float = 0.0) -> Path:
    """A student of the checkpoint in `teacher`: its encoder, some of its decoder layers, everything else copied.

    noise: relative change of the copied decoder weights, so that the student errs more often.
    """
    model = WhisperForConditionalGeneration.from_pretrained(teacher)
    decoder = model.model.decoder
    decoder.layers = torch.nn.ModuleList([decoder.layers[index] for index in layers])
    model.config.decoder_layers = len(layers)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in decoder.layers.parameters():
            parameter += noise * parameter.abs().mean() * torch.randn_like(parameter)
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "whisperd.json"):
        if (teacher / name).exists():
            shutil.copy(teacher / name, directory / name)
    return directory


def special_tokens(shape: Shape) -> dict[str, int]:
    """The ids of the special tokens: after the text's, in the order of the public checkpoints."""
    names = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in shape.languages)]
    names += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>"]
    names += ["<|nospeech|>" if shape.multilingual else "<|nocaptions|>", "<|notimestamps|>"]
    return {name: shape.text_tokens + index for index, name in enumerate(names)}


def build_tokenizer(shape: Shape) -> WhisperTokenizer:
    """A byte-level BPE: all bytes, then pairs of them with the commonest of English first, then the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    common = ["Ġ", *"etaoinshrdlucmfwypvbgkjqxz"]
    ordered = common + [symbol for symbol in alphabet if symbol not in common]
    pairs = ((left, right) for left in ordered for right in ordered if right != "Ġ")
    merges = list(islice(pairs, shape.text_tokens - len(ordered)))
    vocabulary = {text: index for index, text in enumerate(ordered + [left + right for left, right in merges])}
    vocabulary["<|endoftext|>"] = shape.text_tokens
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=merges)
    tokenizer.add_tokens([AddedToken(name, special=True) for name in special_tokens(shape)], special_tokens=True)
    tokenizer.add_tokens([AddedToken(f"<|{index * 0.02:.2f}|>", special=False) for index in range(TIMESTAMPS)])
    return tokenizer


def _model_config(shape: Shape, tokens: dict[str, int]) -> WhisperConfig:
    eot = tokens["<|endoftext|>"]
    return WhisperConfig(
        vocab_size=shape.text_tokens + len(tokens) + TIMESTAMPS,
        num_mel_bins=shape.mels,
        d_model=shape.d_model,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        encoder_attention_heads=shape.heads,
        decoder_attention_heads=shape.heads,
        encoder_ffn_dim=4 * shape.d_model,
        decoder_ffn_dim=4 * shape.d_model,
        decoder_start_token_id=tokens["<|startoftranscript|>"],
        eos_token_id=eot,
        bos_token_id=eot,
        pad_token_id=eot,
        begin_suppress_tokens=None,
    )


def _generation_config(
    shape: Shape, tokens: dict[str, int], alignment_heads: Sequence[tuple[int, int]] | None, max_length: int
) -> GenerationConfig:
    eot, sot = tokens["<|endoftext|>"], tokens["<|startoftranscript|>"]
    tasks = {"transcribe": tokens["<|transcribe|>"], "translate": tokens["<|translate|>"]}
    silent = ("<|startoftranscript|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|nocaptions|>")
    extra: dict[str, object] = {}
    if shape.multilingual:
        extra["lang_to_id"] = {f"<|{code}|>": tokens[f"<|{code}|>"] for code in shape.languages}
        extra["task_to_id"] = tasks
    if alignment_heads is not None:
        extra["alignment_heads"] = [list(head) for head in alignment_heads]
    return GenerationConfig(
        decoder_start_token_id=sot,
        eos_token_id=eot,
        bos_token_id=eot,
        pad_token_id=eot,
        max_length=max_length,
        begin_suppress_tokens=[0, eot],
        # A handful of the text's, as the public checkpoints do with symbols, and tokens that are not text.
        suppress_tokens=[1, 2, 7, 8, 9, 10, 14, 25, *tasks.values(), *(tokens[n] for n in silent if n in tokens)],
        no_timestamps_token_id=tokens["<|notimestamps|>"],
        max_initial_timestamp_index=50,
        is_multilingual=shape.multilingual,
        prev_sot_token_id=tokens["<|startofprev|>"],
        return_timestamps=False,
        **extra,
    )


@torch.no_grad()
def _scale(model: WhisperForConditionalGeneration, tokens: dict[str, int], ends: float) -> None:
    """Weights large enough that attention is peaked and the layers, not the tied embedding, decide the next token."""
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and "embed" not in name:
            fan_in = parameter[0].numel()
            gain = 3.0 if "q_proj" in name or "k_proj" in name else 1.5
            parameter.normal_(0.0, gain * fan_in**-0.5)
    decoder = model.model.decoder
    decoder.embed_positions.weight.normal_(0.0, 1.0)
    embedding = decoder.embed_tokens.weight
    # Small beside what the layers add: a tied embedding would otherwise say its own token again and again.
    embedding.normal_(0.0, 3.0 * embedding.shape[1] ** -0.5)
    embedding[tokens["<|endoftext|>"]] *= ends
    # There are more timestamps than words here: quieter ones leave the text its share under the timestamp rules.
    embedding[tokens["<|notimestamps|>"] + 1 :] *= 0.5
