"""Whisper models to train: made, copied down to a student, run over whole texts, and written in the hub layout.

Owns the shapes and the forward passes of training. The modules and the file layout are `transformers`' own; only its
encoder's insistence on exactly 30 s is stepped around, so that a clip costs what its length costs. Knows nothing of
corpora, losses or schedules.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from distillation.errors import DistillError
from distillation.files import folder_written_whole, unfinished_folder
from distillation.precision import computing
from distillation.tokenizer import END_OF_TEXT, NO_SPEECH, NO_TIMESTAMPS, START, save_tokenizer, token_id
from streaming.whisper.checkpoint import Checkpoint, CheckpointError, require_same_vocabulary
from streaming.whisper.rules import Rules

CONTEXTS = (2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0)
MELS = 80

Whisper = Any  # WhisperForConditionalGeneration: transformers ships no types


class ModelError(DistillError):
    """The checkpoint cannot be trained from, or not be written; the message says why."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a checkpoint is spoken to.

    prompt: the tokens before every text. no_speech: what stands second where nothing was said, as Whisper has it.
    contexts: the windows, in seconds, that it is to hear. suppressed: tokens that are never said.
    """

    tokenizer: Tokenizer
    prompt: tuple[int, ...]
    end: int
    no_speech: int | None
    contexts: tuple[float, ...]
    mels: int
    suppressed: tuple[int, ...] = ()

    def tokens(self, text: str) -> list[int]:
        """Of a text alone, without prompt and end; an empty text has none."""
        return list(self.tokenizer.encode(" " + text, add_special_tokens=False).ids) if text else []


def own_layout(tokenizer: Tokenizer) -> Layout:
    """Of a teacher of our own making: English alone, hence no language in the prompt."""
    prompt = (token_id(tokenizer, START), token_id(tokenizer, NO_TIMESTAMPS))
    ends = token_id(tokenizer, END_OF_TEXT), token_id(tokenizer, NO_SPEECH)
    return Layout(tokenizer, prompt, *ends, CONTEXTS, MELS)


def layout_of(checkpoint: Checkpoint, language: str | None) -> Layout:
    """Of any checkpoint. language: a code that a multilingual one is asked for.

    Raises:
        ModelError: the checkpoint does not know the language.
    """
    grammar = checkpoint.grammar
    try:
        prompt = Rules(grammar, checkpoint.dimensions.vocabulary, torch.device("cpu")).prompt(
            language, "transcribe", timestamps=False
        )
    except ValueError as error:
        raise ModelError(str(error)) from error
    tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer_file))
    return Layout(
        tokenizer, prompt, grammar.eot, grammar.no_speech, checkpoint.contexts, checkpoint.dimensions.mels,
        grammar.suppress,
    )  # fmt: skip


def load_model(checkpoint: Checkpoint) -> Whisper:
    """Its weights, in single precision.

    Raises:
        ModelError: they cannot be read.
    """
    try:
        return WhisperForConditionalGeneration.from_pretrained(checkpoint.directory, dtype="float32")
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"the weights in {checkpoint.directory} cannot be read ({reason}): fetch or export them again"
        ) from error


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
        num_mel_bins=MELS,
        dropout=dropout,
        decoder_start_token_id=token_id(tokenizer, START),
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        begin_suppress_tokens=None,
        suppress_tokens=None,
    )
    return WhisperForConditionalGeneration(config)


def deepen(model: Whisper, layers: int) -> Whisper:
    """The same model with more decoder layers, spread over its depth, that change nothing until they are trained.

    Each is a copy of the one below it whose outputs are zero, so that training goes on from where it was.
    Source: function-preserving growth, Chen et al. 2016 (Net2Net).

    Raises:
        ModelError: it has more layers already.
    """
    own = model.config.decoder_layers
    if layers < own:
        raise ModelError(f"the teacher to begin with has {own} decoder layers: ask for at least as many")
    deeper = WhisperForConditionalGeneration(
        WhisperConfig.from_dict(model.config.to_dict() | {"decoder_layers": layers})
    )
    kept = model.state_dict()
    deeper.load_state_dict({name: kept.get(name, weights) for name, weights in deeper.state_dict().items()})
    origins = torch.linspace(0, own - 1, layers).round().int().tolist()
    for place, (origin, layer) in enumerate(zip(origins, deeper.model.decoder.layers, strict=True)):
        layer.load_state_dict(model.model.decoder.layers[origin].state_dict())
        if place and origins[place - 1] == origin:
            for output in (layer.self_attn.out_proj, layer.encoder_attn.out_proj, layer.fc2):
                nn.init.zeros_(output.weight)
                nn.init.zeros_(output.bias)
    return deeper


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


def continue_student(student: Whisper, earlier: Whisper) -> None:
    """Gives `student` the decoder of a student that the same teacher had before it learnt on.

    Raises:
        ModelError: it has other layers, or another width.
    """
    for size in ("d_model", "decoder_layers", "decoder_attention_heads", "decoder_ffn_dim"):
        own, other = getattr(student.config, size), getattr(earlier.config, size)
        if own != other:
            raise ModelError(f"the student to go on from has {size} {other}, this one {own}: begin without --start")
    student.model.decoder.load_state_dict(earlier.model.decoder.state_dict())


def encode(model: Whisper, mel: Tensor) -> Tensor:
    """Log-mel features [rows, bins, frames] -> states [rows, frames // 2, width]; any number of frames up to 30 s."""
    encoder = model.model.encoder
    hidden = nn.functional.gelu(_convolved(encoder.conv1, mel))
    hidden = nn.functional.gelu(_convolved(encoder.conv2, hidden.transpose(1, 2)))
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    hidden = nn.functional.dropout(hidden, p=encoder.dropout, training=encoder.training)
    for layer in encoder.layers:
        hidden = layer(hidden, None)
    return encoder.layer_norm(hidden)  # type: ignore[no-any-return]  # transformers ships no types


def _convolved(layer: nn.Conv1d, hidden: Tensor) -> Tensor:
    """[rows, channels, frames] -> [rows, frames / stride, channels]: one matrix product over the gathered windows.

    On a CPU the backward pass of the library's convolution takes a tenth of a training step, this one a hundredth.
    """
    size, stride = layer.kernel_size[0], layer.stride[0]
    around = int(layer.padding[0])
    windows = nn.functional.pad(hidden, (around, around)).unfold(2, size, stride).transpose(1, 2)
    return nn.functional.linear(windows.flatten(2), layer.weight.flatten(1), layer.bias)


def attend_fast(model: Whisper, device: str) -> None:
    """Chooses the attention that trains fastest: on a CPU the fused kernel's backward pass is the slowest of all."""
    model.set_attn_implementation("eager" if torch.device(device).type == "cpu" else "sdpa")


def encoding(model: Whisper, device: str) -> Callable[[Tensor], Tensor]:
    """A frozen encoder on `device`."""
    attend_fast(model, device)
    model.to(device).eval()

    @torch.no_grad()
    def run(mel: Tensor) -> Tensor:
        with computing(int(model.config.d_model), device):
            return encode(model, mel.to(device))

    return run


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
    """Writes a teacher of our own in the hub layout, weights in half precision: config, generation rules, tokenizer,
    feature extractor.

    Raises:
        ModelError: it cannot be written to the folder, which is as it was.
    """
    ids = {token: token_id(tokenizer, token) for token in (START, END_OF_TEXT, NO_SPEECH, NO_TIMESTAMPS)}
    other_special = range(ids[START], ids[NO_TIMESTAMPS])
    generation = GenerationConfig(
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
    with _checkpoint_in(folder) as part:
        save_tokenizer(tokenizer, part)
        _save(model, generation, part, torch.float16)
        _describe(part, {"name": name, "contexts": list(contexts), "timestamps": False})


def export_student(student: Whisper, teacher: Checkpoint, layers: Sequence[int], folder: Path, name: str) -> None:
    """Writes a student in the hub layout: the teacher's tokenizer and rules, the student's own sizes and weights.

    Weights are as precise as the teacher's: only then is its encoder the teacher's own, and one in memory.

    layers: which of the teacher's decoder layers it began with; the teacher's alignment heads in those are named anew.

    Raises:
        ModelError: it cannot be written to the folder, which is as it was.
    """
    generation = GenerationConfig.from_pretrained(teacher.directory)
    if teacher.alignment_heads:
        kept = [[layers.index(layer), head] for layer, head in teacher.alignment_heads if layer in layers]
        generation.update(alignment_heads=kept or None)
    own = teacher.directory / "whisperd.json"
    about = json.loads(own.read_text(encoding="utf-8")) if own.is_file() else {"contexts": list(teacher.contexts)}
    with _checkpoint_in(folder) as part:
        for file in _COPIED:
            if (teacher.directory / file).is_file():
                shutil.copyfile(teacher.directory / file, part / file)
        shutil.copyfile(teacher.tokenizer_file, part / "tokenizer.json")
        _save(student, generation, part, _stored_as(teacher))
        _describe(part, about | {"name": name})


def require_other_folder(folder: Path, teacher: Checkpoint) -> None:
    """
    Raises:
        ModelError: a student would take the place of its teacher.
    """
    if folder.resolve() == teacher.directory.resolve():
        raise ModelError(f"{folder} is the teacher, which would be lost: choose another --out")


def average(parts: Sequence[tuple[Checkpoint, float]], folder: Path, name: str) -> None:
    """Writes the weighted mean of checkpoints of one training's line: it often hears new voices better than any of them
    (model soups, Wortsman et al. 2022).

    parts: checkpoint and share, of one shape and vocabulary; the first gives tokenizer and rules.

    Raises:
        ModelError: they differ in shape or vocabulary.
    """
    first = parts[0][0]
    for checkpoint, _ in parts[1:]:
        both = f"{first.directory} and {checkpoint.directory}"
        if checkpoint.dimensions != first.dimensions:
            raise ModelError(f"only checkpoints of one shape can be averaged: {both} differ")
        try:
            require_same_vocabulary(first, checkpoint)
        except CheckpointError as error:
            raise ModelError(f"only checkpoints of one vocabulary can be averaged: {both} differ") from error
    models = [load_model(checkpoint) for checkpoint, _ in parts]
    states, total = [model.state_dict() for model in models], sum(share for _, share in parts)
    mean = {
        key: sum(share / total * state[key].double() for state, (_, share) in zip(states, parts, strict=True))
        for key in states[0]
    }
    models[0].load_state_dict(mean)
    export_student(models[0], first, range(first.dimensions.decoder_layers), folder, name)


_COPIED = (
    "preprocessor_config.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "normalizer.json",
)  # fmt: skip
_REPLACED = (
    *_COPIED, "tokenizer.json", "whisperd.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json",
)  # fmt: skip
"""What an older checkpoint in the same folder leaves behind for none of the new files."""


@contextmanager
def _checkpoint_in(folder: Path) -> Iterator[Path]:
    """Where to write a checkpoint's files, which go to `folder` once all are written."""
    strange = folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file()
    if strange and not unfinished_folder(folder).is_dir():
        raise ModelError(f"{folder} holds something else than a checkpoint: empty it, or choose another --out")
    try:
        with folder_written_whole(folder, last="config.json", replaced=_REPLACED) as part:
            yield part
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"the checkpoint cannot be written to {folder} ({error}): make room, or choose another --out"
        ) from error


def _stored_as(checkpoint: Checkpoint) -> torch.dtype:
    stored = WhisperConfig.from_pretrained(checkpoint.directory).dtype
    return stored if isinstance(stored, torch.dtype) else torch.float32


def _save(model: Whisper, generation: GenerationConfig, folder: Path, dtype: torch.dtype) -> None:
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = generation
    copy.to(dtype).save_pretrained(folder)


def _describe(folder: Path, about: Mapping[str, Any]) -> None:
    (folder / "whisperd.json").write_text(json.dumps(about, indent=2) + "\n")
