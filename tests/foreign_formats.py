"""Writers of the formats that `whisperd models import` reads, from the formats' public definitions.

Owns turning a checkpoint of `checkpoints.py` into OpenAI's `.pt`, whisper.cpp's ggml file and CTranslate2's
`model.bin`. Knows nothing of this project's own readers.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import SMALL, Shape
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

# The first languages of OpenAI's order, for files that say only how many there are.
ENGLISH = replace(SMALL, languages=("en", "zh", "de"))
# An English-only vocabulary is told from one with languages by its size alone.
LANGUAGES = """
en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml cy sk
te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am yi lo uz fo
ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su
"""
MULTILINGUAL = Shape(text_tokens=50257, languages=tuple(LANGUAGES.split()), multilingual=True)


def weights_of(directory: Path) -> dict[str, Tensor]:
    return {name.removeprefix("model."): weight for name, weight in load_file(directory / "model.safetensors").items()}


def config_of(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return content


# --- OpenAI ----------------------------------------------------------------------------------------------------------

_OPENAI = (
    (".layers.", ".blocks."),
    (".fc1.", ".mlp.0."),
    (".fc2.", ".mlp.2."),
    (".final_layer_norm.", ".mlp_ln."),
    (".self_attn_layer_norm.", ".attn_ln."),
    (".encoder_attn_layer_norm.", ".cross_attn_ln."),
    (".self_attn.", ".attn."),
    (".encoder_attn.", ".cross_attn."),
    (".q_proj.", ".query."),
    (".k_proj.", ".key."),
    (".v_proj.", ".value."),
    (".out_proj.", ".out."),
    ("encoder.layer_norm.", "encoder.ln_post."),
    ("decoder.layer_norm.", "decoder.ln."),
    ("embed_positions.weight", "positional_embedding"),
    ("embed_tokens.", "token_embedding."),
)


def openai_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, weight in weights.items():
        for ours, theirs in _OPENAI:
            name = name.replace(ours, theirs)
        found[name] = weight
    return found


def dims(directory: Path) -> dict[str, int]:
    config = config_of(directory)
    return {
        "n_mels": config["num_mel_bins"],
        "n_vocab": config["vocab_size"],
        "n_audio_ctx": config["max_source_positions"],
        "n_audio_state": config["d_model"],
        "n_audio_head": config["encoder_attention_heads"],
        "n_audio_layer": config["encoder_layers"],
        "n_text_ctx": config["max_target_positions"],
        "n_text_state": config["d_model"],
        "n_text_head": config["decoder_attention_heads"],
        "n_text_layer": config["decoder_layers"],
    }


def write_openai(directory: Path, file: Path, **changed: Any) -> Path:
    """With its tokenizer beside it, as our own do not have one in the file."""
    content = {"dims": dims(directory), "model_state_dict": openai_names(weights_of(directory)), **changed}
    torch.save(content, file)
    shutil.copy(directory / "tokenizer.json", file.parent)
    return file


# --- whisper.cpp -----------------------------------------------------------------------------------------------------


def tokens_of(directory: Path) -> list[bytes]:
    """The text's, as bytes, in their order."""
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {chr(byte): byte for byte in seen}
    letters |= {chr(256 + n): byte for n, byte in enumerate(byte for byte in range(256) if byte not in seen)}
    ordered = sorted((number, text) for text, number in vocabulary.items() if text != "<|endoftext|>")
    return [bytes(letters[letter] for letter in text) for _, text in ordered]


def _halves(numbers: NDArray[np.float32]) -> bytes:
    return numbers.astype("<f2").tobytes()


def _symmetric(block: NDArray[np.float32], bits: int) -> tuple[bytes, NDArray[np.uint8]]:
    """The scale, and the numbers with their middle at half of what there is."""
    top = block[np.abs(block).argmax()]
    scale = top / -(1 << (bits - 1))
    numbers = np.floor(block / scale + (1 << (bits - 1)) + 0.5) if scale else np.full(32, 1 << (bits - 1))
    return _halves(np.array([scale])), np.clip(numbers, 0, (1 << bits) - 1).astype(np.uint8)


def _between(block: NDArray[np.float32], bits: int) -> tuple[bytes, NDArray[np.uint8]]:
    low, scale = block.min(), (block.max() - block.min()) / ((1 << bits) - 1)
    numbers = np.floor((block - low) / scale + 0.5) if scale else np.zeros(32)
    return _halves(np.array([scale, low])), np.clip(numbers, 0, (1 << bits) - 1).astype(np.uint8)


def _packed(numbers: NDArray[np.uint8], bits: int) -> bytes:
    packed = ((numbers[:16] & 15) | (numbers[16:] & 15) << 4).astype(np.uint8).tobytes()
    if bits == 4:
        return packed
    return struct.pack("<I", sum(int(number >> 4) << at for at, number in enumerate(numbers))) + packed


def _q8(block: NDArray[np.float32]) -> bytes:
    scale = np.abs(block).max() / 127
    return _halves(np.array([scale])) + np.round(block / (scale or 1)).astype(np.int8).tobytes()


def _blocks(split: Callable[[NDArray[np.float32], int], tuple[bytes, NDArray[np.uint8]]], bits: int) -> Any:
    def pack(block: NDArray[np.float32]) -> bytes:
        head, numbers = split(block, bits)
        return head + _packed(numbers, bits)

    return pack


GGML = {
    "f32": (0, None),
    "f16": (1, None),
    "q4_0": (2, _blocks(_symmetric, 4)),
    "q4_1": (3, _blocks(_between, 4)),
    "q5_0": (6, _blocks(_symmetric, 5)),
    "q5_1": (7, _blocks(_between, 5)),
    "q8_0": (8, _q8),
}
"""Numbers' kind to its number, and how a block of 32 is written."""


def ggml_file(
    directory: Path,
    kind: str = "f16",
    *,
    with_end: bool = False,
    generation: int = 2,
    tokens: Sequence[bytes] | None = None,
    more: Sequence[tuple[str, Tensor]] = (),
) -> bytes:
    """with_end: as converters of hub checkpoints write the vocabulary. tokens, more: other tokens, and more weights."""
    number, pack = GGML[kind]
    sizes = list(dims(directory).values())
    sizes = [*sizes[1:], sizes[0]]  # the mel bins are last
    parts = [struct.pack("<12i", 0x67676D6C, *sizes, number + 1000 * generation if number > 1 else number)]
    mels = sizes[-1]
    parts.append(struct.pack("<2i", mels, 201) + bytes(4 * mels * 201))
    tokens = [*(tokens_of(directory) if tokens is None else tokens), *([b"<|endoftext|>"] if with_end else [])]
    parts.append(struct.pack("<i", len(tokens)))
    parts += [struct.pack("<i", len(token)) + token for token in tokens]
    for name, weight in (*openai_names(weights_of(directory)).items(), *more):
        array = weight.float().numpy()
        small = array.ndim < 2 or "positional" in name
        shape = (*array.shape, 1) if re.fullmatch(r"encoder\.conv\d\.bias", name) else array.shape
        word = "f32" if small else "f16" if "conv" in name and number > 1 else kind
        parts.append(struct.pack("<3i", len(shape), len(name), GGML[word][0]))
        parts.append(struct.pack(f"<{len(shape)}i", *reversed(shape)) + name.encode())
        if word in ("f32", "f16"):
            parts.append(array.astype("<f4" if word == "f32" else "<f2").tobytes())
        else:
            parts += [pack(block) for block in array.reshape(-1, 32)]
    return b"".join(parts)


# --- CTranslate2 -----------------------------------------------------------------------------------------------------

_KINDS = {np.dtype("f4"): 0, np.dtype("i1"): 1, np.dtype("i2"): 2, np.dtype("i4"): 3, np.dtype("f2"): 4}
_FUSED = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
_NORMS = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
}


def ctranslate2_file(
    directory: Path,
    kind: str = "float16",
    specification: str = "WhisperSpec",
    *,
    changed: Mapping[str, NDArray[Any]] | None = None,
    more: Sequence[tuple[str, NDArray[Any]]] = (),
) -> bytes:
    """kind: float32, float16, int8 or int16. changed, more: variables in the place of its own, and further ones."""
    variables = [*{**ctranslate2_variables(directory, kind), **(changed or {})}.items(), *more]
    parts = [struct.pack("<I", 6), _text(specification), struct.pack("<II", 3, len(variables))]
    for name, array in variables:
        parts.append(_text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape))
        parts.append(struct.pack("<BI", _KINDS[array.dtype], array.nbytes) + array.tobytes())
    parts += [struct.pack("<I", 1), _text("decoder/projection/weight"), _text("decoder/embeddings/weight")]
    return b"".join(parts)


def _text(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def ctranslate2_variables(directory: Path, kind: str) -> dict[str, NDArray[Any]]:
    weights, config = weights_of(directory), config_of(directory)
    floats = "f4" if kind in ("float32", "int16") else "f2"
    found: dict[str, NDArray[Any]] = {}

    def put(name: str, weight: Tensor, *, rounded: bool = True) -> None:
        array = weight.float().numpy()
        if kind == "int8" and rounded:
            scale = 127 / np.abs(array).reshape(len(array), -1).max(1)
            found[f"{name}_scale"] = scale.astype("f4")
            found[name] = np.round(array * scale.reshape(-1, 1)).astype("i1")
        elif kind == "int16" and rounded:
            step = np.float32(1023 / np.abs(array).max())
            found[f"{name}_scale"] = np.array(step, "f4")
            found[name] = np.round(array * step).astype("i2")
        else:
            found[name] = array.astype(floats)

    def linear(there: str, here: list[str]) -> None:
        put(f"{there}/weight", torch.cat([weights[f"{name}.weight"] for name in here]))
        offsets = [weights.get(f"{name}.bias", torch.zeros(len(weights[f"{name}.weight"]))) for name in here]
        put(f"{there}/bias", torch.cat([offset.float() for offset in offsets]), rounded=False)

    def norm(there: str, here: str) -> None:
        put(f"{there}/gamma", weights[f"{here}.weight"], rounded=False)
        put(f"{there}/beta", weights[f"{here}.bias"], rounded=False)

    for half in ("encoder", "decoder"):
        put(f"{half}/position_encodings/encodings", weights[f"{half}.embed_positions.weight"], rounded=False)
        found[f"{half}/num_heads"] = np.array(config[f"{half}_attention_heads"], "i2")
        norm(f"{half}/layer_norm", f"{half}.layer_norm")
        for layer in range(config[f"{half}_layers"]):
            prefix = f"{half}.layers.{layer}."
            for there, parts in _FUSED.items():
                if f"{prefix}{parts[0]}.weight" in weights:
                    linear(f"{half}/layer_{layer}/{there}", [prefix + part for part in parts])
            for there, here in _NORMS.items():
                if f"{prefix}{here}.weight" in weights:
                    norm(f"{half}/layer_{layer}/{there}", prefix + here)
    for conv in ("conv1", "conv2"):
        put(f"encoder/{conv}/weight", weights[f"encoder.{conv}.weight"], rounded=False)
        put(f"encoder/{conv}/bias", weights[f"encoder.{conv}.bias"], rounded=False)
    put("decoder/embeddings/weight", weights["decoder.embed_tokens.weight"])
    return found


def write_ctranslate2(directory: Path, folder: Path, kind: str = "float16") -> Path:
    """A folder as converters write it."""
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(ctranslate2_file(directory, kind))
    shutil.copy(directory / "tokenizer.json", folder)
    generation = json.loads((directory / "generation_config.json").read_text())
    said = {"suppress_ids": generation["suppress_tokens"], "suppress_ids_begin": generation["begin_suppress_tokens"]}
    (folder / "config.json").write_text(json.dumps({**said, "alignment_heads": [[0, 1], [1, 0]], "lang_ids": []}))
    return folder
