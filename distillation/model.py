"""Whisper models to train: made, copied down to a student, run over whole texts, and written in the hub layout.

Owns the shapes and the forward passes of training. The modules and the file layout are `transformers`' own; only its
encoder's insistence on exactly 30 s is stepped around, so that a clip costs what its length costs. Knows nothing of
corpora, losses or schedules.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from distillation.tokenizer import END_OF_TEXT, NO_SPEECH, NO_TIMESTAMPS, START, save_tokenizer, token_id

CONTEXTS = (2.0, 5.0, 10.0, 15.0, 30.0)

Whisper = Any  # WhisperForConditionalGeneration: transformers ships no types


class ModelError(ValueError):
    """The checkpoint cannot be trained from; the message says why."""


def make_teacher(tokenizer: Tokenizer, width: int, encoder_layers: int, decoder_layers: int, dropout: float) -> Whisper:
    """A Whisper with random weights; heads are 64 wide, as in every published size."""
    end = token_id(tokenizer, END_OF_TEXT)
    config = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=width,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=width // 64,
        decoder_attention_heads=width // 64,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_target_positions=448,
        num_mel_bins=80,
        dropout=dropout,
        decoder_start_token_id=token_id(tokenizer, START),
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        begin_suppress_tokens=None,
        suppress_tokens=None,
    )
    return WhisperForConditionalGeneration(config)


def student_layers(teacher_layers: int, layers: int) -> list[int]:
    """Which of the teacher's decoder layers a student begins with: evenly spaced, first and last always."""
    if not 1 <= layers <= teacher_layers:
        raise ModelError(f"a student of this teacher may have 1..{teacher_layers} decoder layers, not {layers}")
    return [0] if layers == 1 else torch.linspace(0, teacher_layers - 1, layers).round().int().tolist()


def make_student(teacher: Whisper, layers: int) -> Whisper:
    """The teacher's encoder and embeddings, and some of its decoder layers. The encoder is frozen."""
    config = WhisperConfig.from_dict(teacher.config.to_dict() | {"decoder_layers": layers})
    student = WhisperForConditionalGeneration(config)
    student.model.encoder.load_state_dict(teacher.model.encoder.state_dict())
    kept = student_layers(teacher.config.decoder_layers, layers)
    for own, copied in zip(student.model.decoder.layers, kept, strict=True):
        own.load_state_dict(teacher.model.decoder.layers[copied].state_dict())
    for name in ("embed_tokens", "embed_positions", "layer_norm"):
        getattr(student.model.decoder, name).load_state_dict(getattr(teacher.model.decoder, name).state_dict())
    student.model.encoder.requires_grad_(False)
    return student


def encode(model: Whisper, mel: Tensor) -> Tensor:
    """Log-mel features [rows, bins, frames] -> states [rows, frames // 2, width]; any number of frames up to 30 s."""
    encoder = model.model.encoder
    hidden = nn.functional.gelu(encoder.conv1(mel))
    hidden = nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    hidden = nn.functional.dropout(hidden, p=encoder.dropout, training=encoder.training)
    for layer in encoder.layers:
        hidden = layer(hidden, None)
    return encoder.layer_norm(hidden)  # type: ignore[no-any-return]  # transformers ships no types


def logits(model: Whisper, tokens: Tensor, states: Tensor) -> Tensor:
    """Teacher forcing: tokens [rows, length] -> the next token's logits [rows, length, vocabulary]."""
    hidden = model.model.decoder(input_ids=tokens, encoder_hidden_states=states, use_cache=False).last_hidden_state
    return model.proj_out(hidden)  # type: ignore[no-any-return]  # transformers ships no types


@torch.no_grad()
def greedy(model: Whisper, states: Tensor, prompt: Sequence[int], end: int, limit: int) -> list[list[int]]:
    """Plain greedy decoding for watching a training; the service has its own decoder."""
    rows = states.shape[0]
    tokens = torch.tensor(prompt).repeat(rows, 1).to(states.device)
    done = torch.zeros(rows, dtype=torch.bool, device=states.device)
    for _ in range(limit):
        following = logits(model, tokens, states)[:, -1].argmax(-1)
        following = torch.where(done, torch.full_like(following, end), following)
        tokens = torch.cat([tokens, following[:, None]], 1)
        done |= following == end
        if bool(done.all()):
            break
    return [[token for token in row if token != end] for row in tokens[:, len(prompt) :].tolist()]


def export(model: Whisper, tokenizer: Tokenizer, folder: Path, contexts: Sequence[float], name: str) -> None:
    """Writes the hub layout, weights in half precision: config, generation rules, tokenizer, feature extractor."""
    save_tokenizer(tokenizer, folder)
    ids = {token: token_id(tokenizer, token) for token in (START, END_OF_TEXT, NO_SPEECH, NO_TIMESTAMPS)}
    other_special = range(ids[START], ids[NO_TIMESTAMPS])
    model.generation_config = GenerationConfig(
        decoder_start_token_id=ids[START],
        bos_token_id=ids[END_OF_TEXT],
        eos_token_id=ids[END_OF_TEXT],
        pad_token_id=ids[END_OF_TEXT],
        no_timestamps_token_id=ids[NO_TIMESTAMPS],
        is_multilingual=False,
        max_length=448,
        max_initial_timestamp_index=50,
        suppress_tokens=list(other_special),
        begin_suppress_tokens=[],
    )
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = model.generation_config
    copy.half().save_pretrained(folder)
    about = {"name": name, "contexts": list(contexts), "timestamps": False}
    (folder / "whisperd.json").write_text(json.dumps(about, indent=2) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)  # weights are written for their owner alone, but a service runs as somebody else


def prompt_tokens(tokenizer: Tokenizer) -> list[int]:
    """What every text of an English-only checkpoint begins with."""
    return [token_id(tokenizer, START), token_id(tokenizer, NO_TIMESTAMPS)]


def text_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text alone; an empty text has none."""
    return list(tokenizer.encode(" " + text, add_special_tokens=False).ids) if text else []
