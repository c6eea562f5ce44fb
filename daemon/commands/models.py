"""`whisperd models`: which checkpoints are here, which are recommended, and what is in one.

Owns the recommendations, with where each figure is from, and the tables. Knows how a checkpoint is found and read;
`pull.py` fetches.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.commands import pull
from streaming.whisper.locate import CheckpointError, Role, imported, is_shipped, locate, shipped


@dataclass(frozen=True, slots=True)
class Advice:
    """A pair for a kind of machine.

    Attributes:
        machine: the kind, in words.
        gpu: the memory of its GPU in GB from which on the pair fits; 0 if it needs none.
        student: its name, or OWN.
        teacher: its name.
        figures: what to expect, in words.
        cores: the fewest that it is for.
    """

    machine: str
    gpu: float
    student: str
    teacher: str
    figures: str
    cores: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the checkpoints that can be fetched."""
        return tuple(name for name in (self.student, self.teacher) if name != OWN)


OWN = "one of your own"
"""No student of these is to be had that hears short windows: `whisperd distill` makes one."""


ADVICE = (
    Advice(
        "CPU, 2 cores", 0, "tiny-en", "tiny-en",
        "English. OpenAI's tiny.en and a student that hears short windows, 37.8 M parameters each, some of them "
        "shared; its card has accuracy and speed",
    ),
    Advice(
        "CPU, 4 cores", 0, OWN, "openai/whisper-base.en",
        "English. 74 M parameters (the teacher's card); `whisperd distill` makes the student, as docs/models.md says",
        cores=4,
    ),
    Advice(
        "CPU, 4 cores", 0, OWN, "openai/whisper-small.en",
        "English, slower and better than base.en. 244 M parameters (the teacher's card); the student likewise",
        cores=4,
    ),
    Advice(
        "GPU, 8 GB", 7, "distil-whisper/distil-medium.en", "openai/whisper-medium.en",
        "English. 394 M + 769 M parameters; the student is 6.8 times as fast as large-v2, with 11.1 % word errors in "
        "short form (the student's card)",
    ),
    Advice(
        "GPU, 24 GB", 22, "distil-whisper/distil-large-v3.5", "openai/whisper-large-v3",
        "English. 756 M + 1550 M parameters; the student has 7.08 % word errors in short form, out of distribution; "
        "with its drafts the teacher is about 2 times as fast as alone (the student's card)",
    ),
    Advice(
        "GPU, 24 GB", 22, "openai/whisper-large-v3-turbo", "openai/whisper-large-v3",
        "Many languages. 809 M + 1550 M parameters; the student has 7.30 % word errors in English in short form, out "
        "of distribution (the card of distil-large-v3.5)",
    ),
)  # fmt: skip
"""In ascending order of what they need."""


@dataclass(frozen=True, slots=True)
class Machine:
    cores: int
    gpu: str | None = None
    gpu_gigabytes: float = 0.0

    def __str__(self) -> str:
        gpu = f"{self.gpu} with {self.gpu_gigabytes:.0f} GB" if self.gpu else "no GPU that torch can use"
        return f"{self.cores} cores, {gpu}"

    def best(self) -> str:
        """Return the kind of machine that this one is, among those that there is advice for."""
        fitting = [each for each in ADVICE if each.gpu <= self.gpu_gigabytes and each.cores <= self.cores]
        return fitting[-1].machine


def this_machine() -> Machine:
    """Return what torch can use of this machine. It loads torch, which takes seconds."""
    import torch

    cores = len(os.sched_getaffinity(0))
    if not torch.cuda.is_available():
        return Machine(cores)
    memory = torch.cuda.get_device_properties(0).total_memory
    return Machine(cores, torch.cuda.get_device_name(0), memory / 2**30)


# --- what is here ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Here:
    """A checkpoint that is here.

    Attributes:
        name: as `whisperd models show` takes it, with its role if it is shipped.
        where: the kind of place, in words.
        size: the bytes of its weights.
        layers: of the encoder and the decoder, in words.
        languages: how many, or which one.
        state: what is wrong, in words; empty where all is well.
    """

    name: str
    where: str
    size: int = 0
    layers: str = ""
    languages: str = ""
    state: str = ""


def here(directories: Iterable[str]) -> list[Here]:
    """Return what is shipped, imported, in the hub's cache, and in `directories`.

    Each of these is a checkpoint, or a folder of checkpoints.
    """
    found = [_shipped(name, role) for name in shipped() for role in _roles(name)]
    found += [_imported(name) for name in imported()]
    found += [entry for name in _cached_names() if (entry := _in_cache(name)) is not None]
    for directory in directories:
        found += _in_directory(Path(directory).expanduser())
    return found


def _shipped(name: str, role: Role) -> Here:
    try:
        return _described(f"{name} ({role})", "shipped", locate(name, role)[1])
    except CheckpointError as error:
        return Here(name, "shipped", state=str(error))


def _imported(name: str) -> Here:
    try:
        return _described(name, "imported", locate(name, "student")[1])
    except (CheckpointError, _NoWhisper) as error:
        return Here(name, "imported", state=f"{error}: import it again, with --force")


def _cached_names() -> list[str]:
    folders = sorted(pull.folder("x").parent.glob("models--*"))
    return [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders]


def _in_cache(name: str) -> Here | None:
    """Return a model in the hub's cache; None for what is no Whisper, or was only asked about."""
    try:
        return _described(name, "hub cache", locate(name, "student")[1])
    except _NoWhisper:
        return None
    except CheckpointError as error:
        begun = pull.broken_off(name)
        configs = pull.folder(name).glob("snapshots/*/config.json")
        known = any(_json(config).get("model_type") == "whisper" for config in configs)
        return Here(name, "hub cache", begun, state=str(error)) if begun or known else None


def _in_directory(directory: Path) -> list[Here]:
    if not directory.is_dir():
        return [Here(str(directory), "directory", state="there is no such directory")]
    if (directory / "config.json").exists():
        candidates = [directory]
    else:
        candidates = sorted(config.parent for config in directory.glob("*/config.json"))
    found = []
    for candidate in candidates:
        try:
            found.append(_described(str(candidate), "directory", candidate))
        except _NoWhisper as error:
            found.append(Here(str(candidate), "directory", state=str(error)))
    return found or [Here(str(directory), "directory", state="it contains no checkpoint")]


class _NoWhisper(Exception):  # noqa: N818 - an answer, not a fault
    pass


def _described(name: str, where: str, directory: Path) -> Here:
    """Return a checkpoint with what its files say.

    Raises:
        _NoWhisper: it is of another kind.
    """
    config = _json(directory / "config.json")
    if config.get("model_type") != "whisper":
        raise _NoWhisper(f"not a Whisper model ({config.get('model_type', 'no config.json that can be read')})")
    generation = _json(directory / "generation_config.json")
    languages = generation.get("lang_to_id")
    count = len(languages) if isinstance(languages, dict) and generation.get("is_multilingual", True) else 0
    return Here(
        name,
        where,
        sum(file.stat().st_size for file in directory.glob("*.safetensors")),
        f"{config.get('encoder_layers', '?')!s:.9} + {config.get('decoder_layers', '?')!s:.9}",
        str(count or "English"),
    )


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


# --- tables ----------------------------------------------------------------------------------------------------------


def listing(found: Sequence[Here], machine: Machine) -> str:
    """Return what is here, and what is recommended, as text."""
    head = ("NAME", "LAYERS", "LANGUAGES", "WEIGHTS", "WHERE")
    rows = [
        (
            each.name,
            each.layers,
            each.languages,
            pull.megabytes(each.size) if each.size else "",
            each.state or each.where,
        )
        for each in found
    ]
    names = {each.name for each in found if not each.state}
    lines = ["On this machine (layers: encoder + decoder):", *_columns([head, *rows]), ""]
    lines += [f"Recommended (this machine: {machine}; its row has a star):"]
    lines += _columns(
        [("", "MACHINE", "STUDENT", "TEACHER")]
        + [
            ("*" if advice.machine == machine.best() else "", advice.machine, advice.student, advice.teacher)
            for advice in ADVICE
        ]
    )
    for advice in ADVICE:
        lines += textwrap.wrap(
            f"{advice.names[0]}: {advice.figures}.",
            110,
            initial_indent="  ",
            subsequent_indent="    ",
            break_on_hyphens=False,
        )
    wanted = [name for advice in ADVICE if advice.machine == machine.best() for name in advice.names]
    missing = [name for name in dict.fromkeys(wanted) if name not in names and not is_shipped(name)]
    lines += (
        ["", "To fetch what is missing:", *(f"  whisperd models pull {name}" for name in missing)] if missing else []
    )
    return "\n".join(line.rstrip() for line in lines)


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def description(name: str, others: Sequence[str] = ()) -> str:
    """Return what is in a checkpoint, from its files.

    Args:
        name: the checkpoint's.
        others: the names of checkpoints that may be its teacher, or its student.

    Raises:
        CheckpointError: it is not here, or cannot be read.
    """
    return "\n\n".join(_description(name, role, others) for role in _roles(name))


def _roles(name: str) -> tuple[Role, ...]:
    return ("student", "teacher") if is_shipped(name) else ("student",)


def _description(name: str, role: Role, others: Sequence[str]) -> str:
    from streaming.whisper.checkpoint import open_checkpoint
    from streaming.whisper.weights import count_parameters

    checkpoint = open_checkpoint(name, role)
    sizes, grammar = checkpoint.dimensions, checkpoint.grammar
    languages = " ".join(grammar.languages) or "en (English only)"
    facts = [
        ("directory", str(checkpoint.directory)),
        ("parameters", f"{count_parameters(checkpoint) / 1e6:.1f} M"),
        ("encoder", f"{sizes.encoder_layers} layers, width {sizes.d_model}, {sizes.encoder_heads} heads"),
        ("decoder", f"{sizes.decoder_layers} layers, width {sizes.d_model}, {sizes.decoder_heads} heads"),
        ("vocabulary", f"{sizes.vocabulary} tokens"),
        ("mel bins", str(sizes.mels)),
        (
            "hears up to",
            f"{checkpoint.contexts[-1]:g} s (contexts: {' '.join(f'{each:g}' for each in checkpoint.contexts)})",
        ),
        ("languages", languages),
        ("same encoder as", _relatives(name, role, others) or "none of those here"),
    ]
    width = max(len(fact) for fact, _ in facts)
    return "\n".join([checkpoint.name, *(f"  {fact:{width}}  {value}" for fact, value in facts)])


def _relatives(name: str, role: Role, others: Sequence[str]) -> str:
    """Return the checkpoints with the very same encoder, which then runs once, and whether they can be a pair."""
    from streaming.whisper.checkpoint import open_checkpoint, require_same_vocabulary
    from streaming.whisper.weights import same_encoder

    mine = open_checkpoint(name, role)
    found = []
    for other, its in ((each, its) for each in (name, *others) for its in _roles(each)):
        try:
            theirs = open_checkpoint(other, its)
            if theirs.directory.resolve() == mine.directory.resolve() or not same_encoder(mine, theirs):
                continue
            require_same_vocabulary(mine, theirs)
        except CheckpointError:
            continue
        deeper = theirs.dimensions.decoder_layers > mine.dimensions.decoder_layers
        found.append(f"{theirs.name} ({'may be its teacher' if deeper else 'may be its student'})")
    return ", ".join(dict.fromkeys(found))
