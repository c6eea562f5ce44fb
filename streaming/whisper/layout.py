"""Writing a checkpoint in the Hugging Face layout, as `transformers` and `checkpoint.py` read it.

Owns the files and what is in them. Knows nothing of where the weights are from, or of what happens on a full disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from streaming.whisper.checkpoint import POSITIONS_PER_SECOND, CheckpointError, Dimensions, Grammar

LAST = "config.json"
"""Without it a folder is no checkpoint."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a checkpoint that is to be written holds.

    Attributes:
        dimensions: its sizes.
        grammar: its special tokens and restrictions.
        alignment_heads: as in `Checkpoint`.
        contexts: as in `Checkpoint`.
        weights: by the layout's names without the leading "model."; of any type, on the CPU.
        tokenizer: the text of its `tokenizer.json`.
        source: what it was made from, for `whisperd.json`.
    """

    dimensions: Dimensions
    grammar: Grammar
    alignment_heads: Sequence[tuple[int, int]] | None
    contexts: Sequence[float]
    weights: Mapping[str, Tensor]
    tokenizer: str
    source: Mapping[str, Any] | None = None


def write(contents: Contents, folder: Path, dtype: torch.dtype) -> None:
    """Write all files of a checkpoint into a folder that is there.

    Args:
        contents: the checkpoint.
        folder: where its files go.
        dtype: of the weights.

    Raises:
        CheckpointError: weights are too large for `dtype`, or no numbers.
        OSError: the disk cannot be written.
        SafetensorError: the weights cannot be written.
    """
    _write_weights(contents, folder / "model.safetensors", dtype)
    (folder / "tokenizer.json").write_text(contents.tokenizer, encoding="utf-8")
    eot = "<|endoftext|>"
    names = {f"{role}_token": eot for role in ("bos", "eos", "pad", "unk")}
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "WhisperTokenizer", **names})
    _write(folder / "preprocessor_config.json", _preprocessor(contents.dimensions))
    _write(folder / "generation_config.json", _generation(contents))
    full = (contents.dimensions.source_positions / POSITIONS_PER_SECOND,)
    ours = {} if tuple(contents.contexts) == full else {"contexts": list(contents.contexts)}
    if contents.source is not None:
        ours["source"] = dict(contents.source)  # type: ignore[assignment]  # a file has values of all kinds
    if ours:
        _write(folder / "whisperd.json", ours)
    _write(folder / LAST, _config(contents, dtype))


def _write(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_weights(contents: Contents, file: Path, dtype: torch.dtype) -> None:
    weights = {}
    for name, weight in contents.weights.items():
        if name == "proj_out.weight" and contents.dimensions.tied_embedding:
            continue  # the same as the embedding: transformers leaves it out, too
        stored = weight.to(dtype, copy=True).contiguous()  # a copy: parts of one tensor may not be written as several
        if not bool(stored.isfinite().all()):
            raise CheckpointError(f"the weights {name} are not numbers, or are too large for {_name(dtype)}")
        weights[name if name == "proj_out.weight" else f"model.{name}"] = stored
    save_file(weights, file, metadata={"format": "pt"})


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _config(contents: Contents, dtype: torch.dtype) -> dict[str, Any]:
    sizes, grammar = contents.dimensions, contents.grammar
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "dtype": _name(dtype),
        "is_encoder_decoder": True,
        "activation_function": "gelu",
        "d_model": sizes.d_model,
        "encoder_layers": sizes.encoder_layers,
        "encoder_attention_heads": sizes.encoder_heads,
        "encoder_ffn_dim": sizes.encoder_ffn,
        "decoder_layers": sizes.decoder_layers,
        "decoder_attention_heads": sizes.decoder_heads,
        "decoder_ffn_dim": sizes.decoder_ffn,
        "num_hidden_layers": sizes.encoder_layers,
        "vocab_size": sizes.vocabulary,
        "num_mel_bins": sizes.mels,
        "max_source_positions": sizes.source_positions,
        "max_target_positions": sizes.target_positions,
        "median_filter_width": sizes.median_filter,
        "scale_embedding": sizes.scale_embedding,
        "tie_word_embeddings": sizes.tied_embedding,
        "decoder_start_token_id": grammar.sot,
        **{f"{role}_token_id": grammar.eot for role in ("bos", "eos", "pad")},
    }


def _generation(contents: Contents) -> dict[str, Any]:
    grammar = contents.grammar
    values: dict[str, Any] = {
        "decoder_start_token_id": grammar.sot,
        **{f"{role}_token_id": grammar.eot for role in ("bos", "eos", "pad")},
        "is_multilingual": bool(grammar.languages),
        "max_length": grammar.max_length,
        "return_timestamps": False,
        "suppress_tokens": list(grammar.suppress),
        "begin_suppress_tokens": list(grammar.begin_suppress),
    }
    if grammar.languages:
        values["lang_to_id"] = {f"<|{code}|>": number for code, number in grammar.languages.items()}
        values["task_to_id"] = dict(grammar.tasks)
    if grammar.no_timestamps is not None:
        values["no_timestamps_token_id"] = grammar.no_timestamps
    if grammar.previous is not None:
        values["prev_sot_token_id"] = grammar.previous
    if grammar.max_initial_timestamp is not None:
        values["max_initial_timestamp_index"] = grammar.max_initial_timestamp
    if contents.alignment_heads is not None:
        values["alignment_heads"] = [list(head) for head in contents.alignment_heads]
    return values


def _preprocessor(sizes: Dimensions) -> dict[str, Any]:
    """What the published models have: they all hear 30 s at 16 kHz, in frames of 10 ms."""
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": sizes.mels,
        "sampling_rate": 16000,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": 30,
        "n_samples": 480000,
        "nb_max_frames": 3000,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }
