"""Whisper models to train: made, copied down to a student, run over whole texts, and written in the hub layout.

Owns the shapes and the forward passes of training. The modules and the file layout are those of `transformers`; only
its encoder's demand for exactly 30 s is avoided, so that the cost of a clip follows its length. Knows nothing of
corpora, losses or schedules.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from distillation.errors import DistillError
from distillation.files import folder_written_whole, unfinished_folder
from streaming.whisper.checkpoint import POSITIONS_PER_SECOND, Checkpoint, CheckpointError, open_checkpoint
from streaming.whisper.locate import SHIPPED
from streaming.whisper.rules import LogitRules
from streaming.whisper.weights import own_names, read_weights, weights_digest, write_weights

CONTEXTS = (2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0)
"""Windows, in seconds, that a student learns: each saves work where the next would be mostly silence."""

Whisper = Any  # WhisperForConditionalGeneration: transformers ships no types


class ModelError(DistillError):
    """The checkpoint cannot be trained from, or cannot be written; the message says why."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How texts are put to a checkpoint.

    Attributes:
        tokenizer: the checkpoint's own.
        prompt: the tokens before every text.
        end: the end of text.
        no_speech: the token that stands second where nothing was said, as Whisper has it.
        contexts: the windows that it is to hear, in seconds.
        mels: the number of mel bands.
        suppressed: tokens that are never said.
    """

    tokenizer: Tokenizer
    prompt: tuple[int, ...]
    end: int
    no_speech: int | None
    contexts: tuple[float, ...]
    mels: int
    suppressed: tuple[int, ...] = ()

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text alone, without prompt and end; an empty text has none."""
        return list(self.tokenizer.encode(" " + text, add_special_tokens=False).ids) if text else []


def layout_of(checkpoint: Checkpoint, language: str | None) -> Layout:
    """Return the layout of any checkpoint.

    Args:
        checkpoint: the checkpoint.
        language: the code with which a multilingual checkpoint is prompted.

    Raises:
        ModelError: the checkpoint does not know the language.
    """
    grammar = checkpoint.grammar
    try:
        prompt = LogitRules(grammar, checkpoint.dimensions.vocabulary, torch.device("cpu")).prompt(
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
    """Load the weights of a checkpoint in single precision.

    Raises:
        ModelError: the weights cannot be read.
    """
    try:
        config = WhisperConfig.from_pretrained(checkpoint.directory)
        model = WhisperForConditionalGeneration(config)
        weights = read_weights(checkpoint, torch.float32)
        tied = {"proj_out.weight": weights["decoder.embed_tokens.weight"]}
        named = {name if name.startswith("proj_out.") else f"model.{name}": weight for name, weight in weights.items()}
        model.load_state_dict(tied | named)
    except (CheckpointError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise _unreadable(checkpoint, error) from error
    return model


def _unreadable(checkpoint: Checkpoint, error: Exception) -> ModelError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ModelError(f"the weights in {checkpoint.directory} cannot be read ({reason}): fetch or export them again")


def student_layers(teacher_layers: int, layers: int) -> list[int]:
    """Return which of the teacher's decoder layers a student begins with.

    They are evenly spaced, and always include the first; the last too, unless there is only one.

    Raises:
        ModelError: the teacher has not so many layers.
    """
    if not 1 <= layers <= teacher_layers:
        raise ModelError(f"a student of this teacher may have 1..{teacher_layers} decoder layers, not {layers}")
    return [0] if layers == 1 else torch.linspace(0, teacher_layers - 1, layers).round().int().tolist()


def make_student(teacher: Whisper, layers: int) -> Whisper:
    """Make a student of the teacher's encoder and embeddings, and some of its decoder layers."""
    config = WhisperConfig.from_dict(teacher.config.to_dict() | {"decoder_layers": layers})
    student = WhisperForConditionalGeneration(config)
    student.model.encoder.load_state_dict(teacher.model.encoder.state_dict())
    kept = student_layers(teacher.config.decoder_layers, layers)
    for own, copied in zip(student.model.decoder.layers, kept, strict=True):
        own.load_state_dict(teacher.model.decoder.layers[copied].state_dict())
    for name in ("embed_tokens", "embed_positions", "layer_norm"):
        getattr(student.model.decoder, name).load_state_dict(getattr(teacher.model.decoder, name).state_dict())
    return student


def continue_student(student: Whisper, earlier: Whisper) -> None:
    """Give a new student the weights that an earlier student of the same teacher has learnt.

    Raises:
        ModelError: the earlier student has another number of layers, or another width.
    """
    for size in (
        "d_model", "encoder_layers", "decoder_layers", "decoder_attention_heads", "decoder_ffn_dim", "num_mel_bins",
    ):  # fmt: skip
        own, other = getattr(student.config, size), getattr(earlier.config, size)
        if own != other:
            raise ModelError(f"the student of --start has {size} {other}, this one {own}: leave --start out")
    student.load_state_dict(earlier.state_dict())


def encode(model: Whisper, mel: Tensor) -> Tensor:
    """Run the encoder on any number of frames up to 30 s.

    Args:
        model: the model.
        mel: log-mel features, `[rows, bins, frames]`.

    Returns:
        Encoder states, `[rows, frames // 2, width]`.
    """
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
    """Choose the attention that trains fastest on a device.

    On a CPU, the backward pass of the fused kernel is the slowest of all.
    """
    model.set_attn_implementation("eager" if torch.device(device).type == "cpu" else "sdpa")


def decoded(model: Whisper, tokens: Tensor, states: Tensor) -> Tensor:
    """Run the decoder over whole texts (teacher forcing).

    Args:
        model: the model.
        tokens: `[rows, length]`.
        states: of the encoder, `[rows, positions, width]`.

    Returns:
        The decoder's state after each token, `[rows, length, width]`.
    """
    output = model.model.decoder(input_ids=tokens, encoder_hidden_states=states, use_cache=False)
    return output.last_hidden_state  # type: ignore[no-any-return]  # transformers ships no types


def logits(model: Whisper, tokens: Tensor, states: Tensor) -> Tensor:
    """Return the logits of the token after each token of whole texts (teacher forcing).

    Args:
        model: the model.
        tokens: `[rows, length]`.
        states: of the encoder, `[rows, positions, width]`.

    Returns:
        `[rows, length, vocabulary]`.
    """
    return model.proj_out(decoded(model, tokens, states))  # type: ignore[no-any-return]  # transformers ships no types


@torch.no_grad()
def greedy(model: Whisper, states: Tensor, prompt: Sequence[int], end: int, limit: int) -> list[list[int]]:
    """Decode greedily, with none of Whisper's rules, to watch a training.

    Args:
        model: the model.
        states: of the encoder, `[rows, positions, width]`.
        prompt: the tokens before every text.
        end: the end of text.
        limit: tokens after which a text is cut off.

    Returns:
        The tokens of each row, without prompt and end.
    """
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


def shared_weights(model: Whisper, *, own_encoder: bool) -> list[str]:
    """Return the names of the weights that a student shares with its teacher and never changes.

    The names have no leading "model.".
    """
    names = ["decoder.embed_tokens.weight", "decoder.embed_positions.weight", "encoder.embed_positions.weight"]
    if not own_encoder:
        names += [f"encoder.{name}" for name in model.model.encoder.state_dict()]
    return list(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class Student:
    """What a student is beside its weights.

    Attributes:
        name: what it calls itself.
        teacher: whose student it is.
        layers: which of the teacher's decoder layers it began with.
        contexts: the windows that it hears, in seconds.
        own_encoder: whether its encoder learnt, or is the teacher's.
    """

    name: str
    teacher: Checkpoint
    layers: Sequence[int]
    contexts: Sequence[float]
    own_encoder: bool


def export_student(model: Whisper, about: Student, folder: Path, *, whole: bool = False) -> None:
    """Write a student: its own weights, in 8 bits, and a reference to the teacher that has the rest.

    Args:
        model: the student's weights.
        about: what else it is.
        folder: where it goes.
        whole: whether to write the hub layout with all weights in float16 instead, for other programs.

    Raises:
        ModelError: it cannot be written to the folder, which is as it was.
    """
    teacher = about.teacher
    generation = _generation(teacher)
    if teacher.alignment_heads:
        places = {layer: place for place, layer in enumerate(about.layers)}
        kept = [[places[layer], head] for layer, head in teacher.alignment_heads if layer in places]
        generation["alignment_heads"] = kept or None
    description: dict[str, Any] = {"name": about.name, "contexts": list(about.contexts)}
    weights = {name.removeprefix("model."): weight for name, weight in model.state_dict().items()}
    with _checkpoint_in(folder) as part:
        (part / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
        if whole:
            _copy_beside(teacher, part)
            _save(model, part)
        else:
            shared = {*shared_weights(model, own_encoder=about.own_encoder), "proj_out.weight"}
            write_weights({k: v for k, v in weights.items() if k not in shared}, part / "model.safetensors")
            model.config.save_pretrained(part)
            description["shares"] = {"teacher": _known_as(teacher), "digest": weights_digest(teacher.directory)}
        _describe(part, description)


def student_of(checkpoint: Checkpoint, teacher: Checkpoint) -> Student:
    """Return what `export_student` wrote down about a student.

    Raises:
        ModelError: the checkpoint is a student of another teacher, or shares nothing with one.
    """
    if checkpoint.lender is None or checkpoint.lender_digest != weights_digest(teacher.directory):
        raise ModelError(f"{checkpoint.directory} is not a student of {teacher.name}: make one with `distill init`")
    layers = student_layers(teacher.dimensions.decoder_layers, checkpoint.dimensions.decoder_layers)
    return Student(checkpoint.name, teacher, layers, checkpoint.contexts, _own_encoder(checkpoint))


def _own_encoder(student: Checkpoint) -> bool:
    try:
        return any(name.startswith("encoder.layers.") for name in own_names(student.directory))
    except CheckpointError as error:
        raise _unreadable(student, error) from error


def _generation(teacher: Checkpoint) -> dict[str, Any]:
    file = teacher.directory / "generation_config.json"
    rules: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return rules or GenerationConfig.from_pretrained(teacher.directory).to_dict()


def _known_as(teacher: Checkpoint) -> str:
    """What a student calls its teacher: a name that other machines know it by, else its place on this one."""
    directory = teacher.directory.resolve()
    if directory.is_relative_to(SHIPPED):
        return directory.relative_to(SHIPPED).parts[0]
    return str(directory) if directory.name == teacher.name else teacher.name


def _copy_beside(teacher: Checkpoint, folder: Path) -> None:
    for file in _COPIED:
        if (teacher.directory / file).is_file():
            shutil.copyfile(teacher.directory / file, folder / file)
    shutil.copyfile(teacher.tokenizer_file, folder / "tokenizer.json")


def require_whole(teacher: Checkpoint) -> None:
    """Require that a teacher has all of its weights, so that it can lend them.

    Raises:
        ModelError: it is a student itself.
    """
    if teacher.lender is not None:
        raise ModelError(f"{teacher.directory} shares the weights of its own teacher: export it with --whole first")


def require_contexts(contexts: Sequence[float], teacher: Checkpoint) -> None:
    """Require that a model of the teacher's shape can hear in these windows.

    Args:
        contexts: the windows, in seconds.
        teacher: the teacher.

    Raises:
        ModelError: one of them is too long, or does not end at an encoder position.
    """
    longest = teacher.dimensions.source_positions / POSITIONS_PER_SECOND
    for seconds in contexts:
        if seconds > longest or not (seconds * POSITIONS_PER_SECOND).is_integer():
            raise ModelError(f"--contexts {seconds:g}: a window lasts {longest:g} s at most, in steps of 0.02 s")


def require_other_folder(folder: Path, teacher: Checkpoint) -> None:
    """Require that a student does not take the place of its teacher.

    Raises:
        ModelError: the folder is the teacher's.
    """
    if folder.resolve() == teacher.directory.resolve():
        raise ModelError(f"{folder} is the teacher, which would be overwritten: choose another --out")


def average(parts: Sequence[tuple[Checkpoint, float]], folder: Path, name: str) -> None:
    """Write the weighted mean of students that come from one training (model soups, Wortsman et al. 2022).

    It often transcribes new voices better than any of them.

    Args:
        parts: checkpoints and their shares. The checkpoints have one shape and one teacher, and either all have an
            encoder of their own or none has. The first gives the contexts.
        folder: where the mean goes.
        name: what it calls itself.

    Raises:
        ModelError: the checkpoints differ in one of these.
    """
    first = parts[0][0]
    teacher = _teacher_of(first)
    about = student_of(first, teacher)
    for checkpoint, _ in parts[1:]:
        both = f"{first.directory} and {checkpoint.directory}"
        if checkpoint.dimensions != first.dimensions:
            raise ModelError(f"only students of one shape can be averaged: {both} differ")
        if checkpoint.lender_digest != first.lender_digest:
            raise ModelError(f"only students of one teacher can be averaged: {both} differ")
        if _own_encoder(checkpoint) != about.own_encoder:
            raise ModelError(f"only one of {both} has an encoder of its own: their mean would have none")
    models = [load_model(checkpoint) for checkpoint, _ in parts]
    states, total = [model.state_dict() for model in models], sum(share for _, share in parts)
    mean = {
        key: sum(share / total * state[key].double() for state, (_, share) in zip(states, parts, strict=True))
        for key in states[0]
    }
    models[0].load_state_dict(mean)
    export_student(models[0], replace(about, name=name), folder)


def _teacher_of(student: Checkpoint) -> Checkpoint:
    """The one with which it shares weights, by the name that the student knows it by."""
    if student.lender is None:
        raise ModelError(
            f"{student.directory} shares nothing with a teacher: only students of one teacher can be averaged"
        )
    description = json.loads((student.directory / "whisperd.json").read_text(encoding="utf-8"))
    return replace(open_checkpoint(str(student.lender), "teacher"), name=description["shares"]["teacher"])


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
        raise ModelError(f"{folder} contains something other than a checkpoint: empty it, or choose another --out")
    try:
        with folder_written_whole(folder, last="config.json", replaced=_REPLACED) as part:
            yield part
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"the checkpoint cannot be written to {folder} ({error}): make room, or choose another --out"
        ) from error


def _save(model: Whisper, folder: Path) -> None:
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.float16).save_pretrained(folder)


def _describe(folder: Path, about: Mapping[str, Any]) -> None:
    (folder / "whisperd.json").write_text(json.dumps(about, indent=2) + "\n")
