"""Checkpoints: a directory in the Hugging Face Whisper layout, as plain values.

Owns reading its JSON files, and every error that tells a person what is wrong with them; `locate.py` finds the
directory, and `weights.py` has the weights. Knows nothing of how a model computes, of jobs, or of devices.

The layout: `config.json`, `generation_config.json`, `model.safetensors` (or its shards), `tokenizer.json` (or files
that transformers can convert), and optionally our own `whisperd.json`. Its `contexts` lists the encoder contexts, in
seconds, that the model was trained for. Without it a checkpoint has only its full context (30 s): a Whisper that was
not trained on shorter ones loops when they are cut. Its `shares` names a teacher whose weights are a student's too:
`{"teacher": a checkpoint's name or directory, "digest": of its weights}`. What the student's directory lacks of the
other files is the teacher's as well.
"""

from __future__ import annotations

import atexit
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tokenizers import Tokenizer

from streaming.whisper.locate import CheckpointError as CheckpointError  # whoever reads checkpoints catches it
from streaming.whisper.locate import Role, locate
from streaming.whisper.tokenizer import TokenizerError, load_tokenizer

log = logging.getLogger(__name__)

_LARGEST_SIZE = 1 << 24
"""Of anything in a `config.json`: beyond all models, and below what a machine chokes on before its weights are read."""

_MOST_LAYERS = 1024
"""Each has tensors of its own, which are looked for by name."""

_LONGEST_SHOWN = 60
"""Characters of a value that an error quotes."""

POSITIONS_PER_SECOND = 50
"""Encoder positions in a second of audio: mel frames of 10 ms, halved by the second convolution."""


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Sizes of a model, from `config.json`."""

    mels: int
    d_model: int
    encoder_layers: int
    encoder_heads: int
    encoder_ffn: int
    decoder_layers: int
    decoder_heads: int
    decoder_ffn: int
    vocabulary: int
    source_positions: int
    target_positions: int
    scale_embedding: bool
    tied_embedding: bool
    median_filter: int


@dataclass(frozen=True, slots=True)
class Grammar:
    """The special tokens and the restrictions on what may be said, from `generation_config.json`.

    Attributes:
        sot: start of transcript.
        eot: end of text.
        languages: code ("en") to token; empty for an English-only checkpoint.
        tasks: name to token; empty for an English-only checkpoint.
        no_timestamps: the token before the first timestamp; None where the vocabulary has no timestamps.
        no_speech: the token whose probability after start of transcript tells silence; None where there is none.
        suppress: tokens that are never said.
        begin_suppress: tokens that are never the first of a text.
        max_initial_timestamp: how many steps of 20 ms the first timestamp may be late; None for any.
        max_length: as `transformers.generate` counts it: the prompt comes on top, within the decoder's positions.
        previous: the token in front of the text before; None where there is none.
    """

    sot: int
    eot: int
    languages: Mapping[str, int]
    tasks: Mapping[str, int]
    no_timestamps: int | None
    no_speech: int | None
    suppress: tuple[int, ...]
    begin_suppress: tuple[int, ...]
    max_initial_timestamp: int | None
    max_length: int
    previous: int | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything about a checkpoint but its weights (`read_weights`).

    Attributes:
        name: as it is shown.
        directory: where its files lie.
        dimensions: its sizes.
        grammar: its special tokens and restrictions.
        contexts: the windows that it hears, in seconds, ascending.
        alignment_heads: (layer, head) of the decoder whose cross-attention follows the audio; None where the checkpoint
            does not name them.
        tokenizer_file: a `tokenizer.json`.
        lender: the directory of the teacher whose weights it shares, if there is one.
        lender_digest: the digest of those weights.
    """

    name: str
    directory: Path
    dimensions: Dimensions
    grammar: Grammar
    contexts: tuple[float, ...]
    alignment_heads: tuple[tuple[int, int], ...] | None
    tokenizer_file: Path
    lender: Path | None = None
    lender_digest: str = ""


def shown(value: object) -> str:
    """Return a value from a stranger's file as an error quotes it: on one line, and short."""
    return _cut(repr(value), _LONGEST_SHOWN)


def message_of(error: BaseException, most: int = 200) -> str:
    """Return what an error says, which may quote such a file too: on one line, and short."""
    return _cut(" ".join(str(error).split()) or type(error).__name__, most)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def open_checkpoint(name: str, role: Role) -> Checkpoint:
    """Open the checkpoint of a name: a shipped one (each has both roles), a directory, or a hub name.

    Raises:
        CheckpointError: it is not here, or cannot be used.
    """
    title, directory = locate(name, role)
    try:
        return _opened_checkpoint(title, directory)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        # Files of strangers: whatever shape a value has, it is the file that is wrong.
        raise CheckpointError(
            f"{directory}: config.json, generation_config.json or the tokenizer has a value that makes no sense "
            f"({type(error).__name__}: {message_of(error, 120)}); fetch or export it again"
        ) from error


def _opened_checkpoint(title: str, directory: Path) -> Checkpoint:
    config = _read_json(directory / "config.json")
    own = directory / "whisperd.json"
    about = _read_json(own) if own.exists() else {}
    lender, digest = _lender(about, directory)
    if config.get("model_type", "whisper") != "whisper":
        raise CheckpointError(f"{directory} has a {shown(config['model_type'])} model; a Whisper model is required")
    rules = _file(directory, lender, "generation_config.json")
    # Old checkpoints have their generation rules in config.json, as transformers still honours.
    generation = _read_json(rules) if rules.exists() else config
    dimensions = _dimensions(config, directory)
    tokenizer_file = _tokenizer_file(directory, lender)
    tokens = _load_tokenizer(tokenizer_file).get_vocab(with_added_tokens=True)
    return Checkpoint(
        name=title,
        directory=directory,
        dimensions=dimensions,
        grammar=_grammar(generation, config, tokens, directory),
        contexts=_contexts(about.get("contexts"), own, dimensions),
        alignment_heads=_alignment_heads(generation, dimensions, directory),
        tokenizer_file=tokenizer_file,
        lender=lender,
        lender_digest=digest,
    )


def require_same_vocabulary(student: Checkpoint, teacher: Checkpoint) -> None:
    """Require that student and teacher mean the same by their tokens, since a draft is tokens.

    Raises:
        CheckpointError: they do not.
    """
    ours, theirs = student.grammar, teacher.grammar
    same = (
        (ours.sot, ours.eot, ours.no_timestamps) == (theirs.sot, theirs.eot, theirs.no_timestamps)
        and (ours.languages, ours.tasks) == (theirs.languages, theirs.tasks)
        and _same_tokens(student.tokenizer_file, teacher.tokenizer_file)
    )
    if not same:
        raise CheckpointError(
            f"the vocabularies of the student {student.name!r} and the teacher {teacher.name!r} do not match: "
            "choose a student that was distilled from this teacher, or no teacher"
        )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file.parent} has no {file.name}: it is not a checkpoint in the Hugging Face Whisper layout"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {_trouble(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} must hold a JSON object")
    return content


def _trouble(error: Exception) -> str:
    """Why a file is no JSON. Of a number with too many digits Python says which setting of its own to change."""
    own = isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
    return "a number in it has too many digits" if own else message_of(error)


def _dimensions(config: Mapping[str, Any], directory: Path) -> Dimensions:
    if config.get("activation_function", "gelu") != "gelu":
        raise CheckpointError(
            f"{directory} uses the activation {shown(config['activation_function'])}; only gelu is supported"
        )
    file = directory / "config.json"

    def number(key: str, default: int | None = None) -> int:
        try:
            return int(config.get(key, default))
        except (TypeError, ValueError, OverflowError) as error:
            found = f": {shown(config[key])} is not a number" if key in config else ""
            raise CheckpointError(f"{file} lacks or misstates {key!r}{found}") from error

    dimensions = Dimensions(
        mels=number("num_mel_bins"),
        d_model=number("d_model"),
        encoder_layers=number("encoder_layers"),
        encoder_heads=number("encoder_attention_heads"),
        encoder_ffn=number("encoder_ffn_dim"),
        decoder_layers=number("decoder_layers"),
        decoder_heads=number("decoder_attention_heads"),
        decoder_ffn=number("decoder_ffn_dim"),
        vocabulary=number("vocab_size"),
        source_positions=number("max_source_positions", 1500),
        target_positions=number("max_target_positions", 448),
        scale_embedding=bool(config.get("scale_embedding", False)),
        tied_embedding=bool(config.get("tie_word_embeddings", True)),
        median_filter=number("median_filter_width", 7),
    )
    for field in fields(dimensions):
        size = getattr(dimensions, field.name)
        most = _MOST_LAYERS if field.name.endswith("_layers") else _LARGEST_SIZE
        if not isinstance(size, bool) and not 0 < size <= most:
            raise CheckpointError(f"{file} states {field.name} of {shown(size)}, which no model has")
    if dimensions.d_model % dimensions.encoder_heads or dimensions.d_model % dimensions.decoder_heads:
        raise CheckpointError(f"{file}: a width of {dimensions.d_model} cannot have that number of heads")
    return dimensions


def _grammar(
    generation: Mapping[str, Any], config: Mapping[str, Any], tokens: Mapping[str, int], directory: Path
) -> Grammar:
    def token(key: str, text: str) -> int | None:
        value = generation.get(key, tokens.get(text))
        return None if value is None else int(value)

    sot = token("decoder_start_token_id", "<|startoftranscript|>")
    eot = token("eos_token_id", "<|endoftext|>")
    if sot is None or eot is None:
        raise CheckpointError(f"{directory} names no start of transcript or end of text: it needs Whisper's tokens")
    positions = int(config.get("max_target_positions", 448))
    latest = generation.get("max_initial_timestamp_index")
    grammar = Grammar(
        sot=sot,
        eot=eot,
        languages=_languages(generation, config, tokens, sot),
        tasks=_tasks(generation, config, tokens),
        no_timestamps=token("no_timestamps_token_id", "<|notimestamps|>"),
        no_speech=tokens.get("<|nospeech|>", tokens.get("<|nocaptions|>")),
        suppress=tuple(int(each) for each in generation.get("suppress_tokens") or ()),
        begin_suppress=tuple(int(each) for each in generation.get("begin_suppress_tokens") or ()),
        max_initial_timestamp=None if latest is None else int(latest),
        max_length=int(generation.get("max_length") or positions),
        previous=token("prev_sot_token_id", "<|startofprev|>"),
    )
    _check_tokens(grammar, int(config["vocab_size"]), directory)
    return grammar


def _check_tokens(grammar: Grammar, vocabulary: int, directory: Path) -> None:
    """Those that are given to the decoder or looked for in its logits must be there."""
    named = [grammar.sot, grammar.eot, *grammar.languages.values(), *grammar.tasks.values()]
    optional = grammar.no_timestamps, grammar.no_speech, grammar.previous
    named += [token for token in optional if token is not None]
    for token in named:
        if not 0 <= token < vocabulary:
            raise CheckpointError(f"{directory} names a token {shown(token)}, but its vocabulary has {vocabulary}")


def _is_multilingual(generation: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    # The public English-only vocabularies are one token smaller: the only sign that old checkpoints give.
    old = "lang_to_id" in generation or int(config["vocab_size"]) >= 51865
    return bool(generation.get("is_multilingual", old))


def _languages(
    generation: Mapping[str, Any], config: Mapping[str, Any], tokens: Mapping[str, int], sot: int
) -> dict[str, int]:
    if not _is_multilingual(generation, config):
        return {}
    # The vocabulary has the languages right after start of transcript, up to the first task.
    end = tokens.get("<|translate|>", sot)
    known = generation.get("lang_to_id") or {text: n for text, n in tokens.items() if sot < n < end}
    ordered = sorted(known.items(), key=lambda item: int(item[1]))
    return {text.removeprefix("<|").removesuffix("|>"): int(number) for text, number in ordered}


def _tasks(generation: Mapping[str, Any], config: Mapping[str, Any], tokens: Mapping[str, int]) -> dict[str, int]:
    if not _is_multilingual(generation, config):
        return {}
    known = generation.get("task_to_id") or {
        task: tokens[f"<|{task}|>"] for task in ("transcribe", "translate") if f"<|{task}|>" in tokens
    }
    return {task: int(number) for task, number in known.items()}


def _lender(about: Mapping[str, Any], directory: Path) -> tuple[Path | None, str]:
    """The teacher whose weights a student shares: beside it in one folder, or by its name; and their digest."""
    shares = about.get("shares")
    if shares is None:
        return None, ""
    if not isinstance(shares, dict) or not all(isinstance(shares.get(key), str) for key in ("teacher", "digest")):
        raise CheckpointError(f'{directory / "whisperd.json"}: shares must be {{"teacher": NAME, "digest": SHA-256}}')
    beside = directory.parent / "teacher"
    if directory.name == "student" and (beside / "config.json").exists():
        return beside, shares["digest"]
    try:
        return locate(shares["teacher"], "teacher")[1], shares["digest"]
    except (CheckpointError, OSError) as error:  # the system takes no name as long as that
        raise CheckpointError(f"{directory} shares the weights of its teacher, but {message_of(error, 400)}") from error


def _file(directory: Path, lender: Path | None, name: str) -> Path:
    """A checkpoint's own file, or its lender's where it has none."""
    own = directory / name
    return own if lender is None or own.exists() else lender / name


def _contexts(contexts: Any, file: Path, dimensions: Dimensions) -> tuple[float, ...]:
    longest = dimensions.source_positions / POSITIONS_PER_SECOND
    if contexts is None:
        return (longest,)
    valid = isinstance(contexts, list) and bool(contexts)
    for seconds in contexts if valid else ():
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        valid = valid and number and 0 < seconds <= longest and float(seconds * POSITIONS_PER_SECOND).is_integer()
    if not valid:
        raise CheckpointError(f"{file}: contexts must list seconds in steps of 0.02, above 0 and up to {longest:g}")
    return tuple(sorted({float(seconds) for seconds in contexts}))


def _alignment_heads(
    generation: Mapping[str, Any], dimensions: Dimensions, directory: Path
) -> tuple[tuple[int, int], ...] | None:
    heads = generation.get("alignment_heads")
    if not heads:
        return None
    pairs = tuple((int(layer), int(head)) for layer, head in heads)
    known = tuple(
        (layer, head)
        for layer, head in pairs
        if 0 <= layer < dimensions.decoder_layers and 0 <= head < dimensions.decoder_heads
    )
    if len(known) < len(pairs):  # published students name those of their teachers
        log.warning(
            "%s names %d alignment heads that the decoder does not have: they are left out",
            directory / "generation_config.json",
            len(pairs) - len(known),
        )
    return known or None


def _tokenizer_file(directory: Path, lender: Path | None) -> Path:
    """The tokenizer as the tokenizers library reads it; converted, until the process ends, from an older form."""
    file = _file(directory, lender, "tokenizer.json")
    if file.exists():
        return file
    if not (directory / "vocab.json").exists():
        raise CheckpointError(f"{directory} has no tokenizer.json, nor vocab.json with merges.txt to make it from")
    # Imported here: only such a checkpoint needs it, and it takes long.
    from transformers import WhisperTokenizer

    try:
        tokenizer = WhisperTokenizer.from_pretrained(directory)
    except Exception as error:  # whatever its many readers raise, the files are what is wrong
        raise CheckpointError(
            f"{directory / 'vocab.json'} and merges.txt cannot be converted: {message_of(error)}"
        ) from error
    converted = Path(mkdtemp(prefix="whisperd-tokenizer-"))
    atexit.register(shutil.rmtree, converted, ignore_errors=True)
    tokenizer.save_pretrained(converted)
    return converted / "tokenizer.json"


def _load_tokenizer(file: Path) -> Tokenizer:
    try:
        return load_tokenizer(file)
    except TokenizerError as error:
        raise CheckpointError(f"{file} cannot be read: {message_of(error)}") from error


def _same_tokens(ours: Path, theirs: Path) -> bool:
    if ours.read_bytes() == theirs.read_bytes():
        return True
    return bool(_load_tokenizer(ours).get_vocab() == _load_tokenizer(theirs).get_vocab())
