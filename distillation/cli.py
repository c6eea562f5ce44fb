"""`whisperd distill`: the command line of the recipe.

Owns the commands and their defaults. Each command can be stopped and given again: it continues where it was. Heavy
imports are made inside the commands, so that help, or an error in an option, appears at once.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from distillation import arguments
from distillation.corpus import Corpus, gather, record
from distillation.errors import DistillError
from distillation.files import only_writer
from distillation.synthesis.clips import BLOCK_CLIPS, Synthesis, synthesise

if TYPE_CHECKING:
    from distillation.label import Filter
    from streaming.whisper.checkpoint import Checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 for success; 1 when it cannot be done, and standard error says why; 2 for bad usage; 130 for an interrupt.
    """
    options = _parser().parse_args(argv)
    try:
        return _obey(options)
    except KeyboardInterrupt:
        print("whisperd distill: interrupted; run the same command to continue", file=sys.stderr)
        return 130


def _obey(options: argparse.Namespace) -> int:
    from streaming.whisper.checkpoint import CheckpointError

    try:
        options.run(options)
    except ModuleNotFoundError as error:
        print(f"whisperd distill: {error}; pip install 'whisperd[distill]'", file=sys.stderr)
    except (CheckpointError, DistillError) as error:
        print(f"whisperd distill: {error}", file=sys.stderr)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"whisperd distill: {place}{error.strerror or error}", file=sys.stderr)
    else:
        return 0
    return 1


# --- options ---------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="whisperd distill",
        description="Make a student from your teacher: label, init, train, export, evaluate, or all of them by one "
        "command. `corpus` adds synthetic voices to your recordings.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_label(commands.add_parser("label", help="transcribe your recordings with the teacher and filter the labels"))
    _add_init(
        commands.add_parser("init", help="make a student of the teacher's encoder and some of its decoder layers")
    )
    _add_train(commands.add_parser("train", help="train the student on the labels"))
    _add_export(commands.add_parser("export", help="write the trained student as a model"))
    _add_evaluate(commands.add_parser("evaluate", help="measure a pair and write a report"))
    _add_all(commands.add_parser("all", help="all of these, one after another, in one folder"))
    _add_corpus(commands.add_parser("corpus", help="make clips of sentences spoken by neural voices"))
    _add_average(commands.add_parser("average", help="average students of one training line"))
    return parser


def _add_label(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--recordings", type=Path, nargs="+", default=[], metavar="DIR", help="audio, with or without transcripts"
    )
    command.add_argument("--corpus", type=Path, required=True, metavar="DIR", help="recordings are gathered there")
    command.add_argument("--dev", type=Path, nargs="+", default=[], metavar="DIR", help="recordings to measure on")
    command.add_argument("--teacher", required=True, metavar="CHECKPOINT")
    command.add_argument("--out", type=Path, required=True, metavar="LABELS.jsonl")
    command.add_argument("--language", help="of the recordings (default: a multilingual teacher detects it)")
    command.add_argument(
        "--at-most", type=arguments.count_of, nargs="+", default=[], metavar="[SET=]CLIPS",
        help="how many clips of a set to label, evenly chosen; without SET, of every set",
    )  # fmt: skip
    command.add_argument(
        "--beginnings", type=arguments.share, default=0.3,
        help="share of clips whose beginning is labelled too, like a partial (default: %(default)s)",
    )  # fmt: skip
    _normaliser_argument(command, "how to normalise transcripts")
    _device_argument(command)
    _filter_arguments(command)
    command.set_defaults(run=_label)


def _add_init(command: argparse.ArgumentParser) -> None:
    command.add_argument("--teacher", required=True, metavar="CHECKPOINT")
    command.add_argument("--decoder-layers", type=arguments.count, default=2, help="(default: %(default)s)")
    command.add_argument(
        "--encoder", choices=("own", "shared"), default="own",
        help="own: the student's learns short windows; shared: the teacher's, once in memory (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--contexts", type=arguments.positive, nargs="+", metavar="SECONDS",
        help="windows to learn (default: 2 3 5 7 10 15 20 30 with an own encoder, else the teacher's)",
    )  # fmt: skip
    command.add_argument(
        "--start", metavar="CHECKPOINT", help="start from the weights of this earlier student of the teacher"
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument("--name", default="student", help="the student's name (default: %(default)s)")
    command.set_defaults(run=_init)


def _add_train(command: argparse.ArgumentParser) -> None:
    command.add_argument("--student", type=Path, required=True, metavar="DIR", help="made by init")
    command.add_argument("--teacher", required=True, metavar="CHECKPOINT")
    command.add_argument("--labels", type=Path, required=True, metavar="LABELS.jsonl")
    command.add_argument("--language", help="of the recordings, for a multilingual teacher")
    _normaliser_argument(command, "how to normalise texts to watch word errors: as for label")
    _filter_arguments(command)
    command.add_argument("--ce-weight", type=arguments.not_negative, default=0.8, help="(default: %(default)s)")
    command.add_argument("--kl-weight", type=arguments.not_negative, default=1.0, help="(default: %(default)s)")
    command.add_argument(
        "--batch-seconds", type=arguments.positive, default=80, help="audio in a batch (default: %(default)s)"
    )
    command.add_argument(
        "--longest", type=arguments.positive, default=28, help="seconds of the longest clip (default: %(default)s)"
    )
    command.add_argument(
        "--augment", type=arguments.share, default=0.4, help="how much, from 0 to 1 (default: %(default)s)"
    )
    command.add_argument("--corpus", type=Path, required=True, metavar="DIR")
    command.add_argument("--noise", type=Path, metavar="DIR", help="a folder of noises to mix in")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument("--steps", type=arguments.count, default=3000, help="(default: %(default)s)")
    command.add_argument(
        "--rate", type=arguments.not_negative, default=1e-4, help="learning rate (default: %(default)s)"
    )
    command.add_argument(
        "--cooldown", type=arguments.count_or_none,
        help="last steps, with a falling rate (default: 0.6 of --steps)",
    )  # fmt: skip
    command.add_argument(
        "--save-every", type=arguments.count, default=500, metavar="STEPS",
        help="steps between checkpoints, each with a row of the curve (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--seed", type=arguments.count_or_none, default=0,
        help="seed of the training order and of everything random (default: %(default)s)",
    )  # fmt: skip
    _device_argument(command)
    command.set_defaults(run=_train)


def _add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument("--student", type=Path, required=True, metavar="DIR", help="made by init")
    command.add_argument("--trained", type=Path, required=True, metavar="DIR", help="made by train")
    command.add_argument("--teacher", required=True, metavar="CHECKPOINT")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument("--name", default="student", help="the student's name (default: %(default)s)")
    command.add_argument(
        "--whole", action="store_true", help="write all weights, in the hub layout, for other programs"
    )
    command.set_defaults(run=_export)


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    command.add_argument("--corpus", type=Path, required=True, metavar="DIR", help="as for label")
    command.add_argument(
        "--dev", type=Path, nargs="+", default=[], metavar="DIR", help="recordings to measure on, if not there yet"
    )
    command.add_argument("--student", default="tiny-en", metavar="CHECKPOINT")
    command.add_argument("--teacher", default="tiny-en", metavar="CHECKPOINT")
    command.add_argument("--noise", type=Path, metavar="DIR", help="a folder of noises, to count invented words")
    command.add_argument(
        "--threshold", type=arguments.share, default=0.72,
        help="below this confidence the teacher decides (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--shortest", type=arguments.not_negative, default=2.0, metavar="SECONDS",
        help="the student decides shorter texts alone (default: %(default)s)",
    )  # fmt: skip
    command.add_argument("--language", help="of the recordings, for a multilingual pair")
    _normaliser_argument(command, "how to normalise texts: as for label")
    command.add_argument("--domain", nargs="*", default=[], metavar="SET", help="sets on which the cascade is judged")
    command.add_argument(
        "--at-most", type=arguments.count_of, nargs="+", default=[], metavar="[SET=]CLIPS",
        help="how many clips of a set to measure, evenly chosen; without SET, of every set (default: 400)",
    )  # fmt: skip
    command.add_argument(
        "--noise-seconds", type=arguments.positive, default=1800, help="how much to listen to (default: %(default)s)"
    )
    command.add_argument(
        "--out", type=Path, metavar="DIR",
        help="for REPORT.md, report.json, pictures and measurements, so that an interrupted run continues",
    )  # fmt: skip
    _device_argument(command)
    command.set_defaults(run=_evaluate)


def _add_all(command: argparse.ArgumentParser) -> None:
    command.add_argument("--teacher", required=True, metavar="CHECKPOINT")
    command.add_argument(
        "--recordings", type=Path, nargs="+", required=True, metavar="DIR", help="audio, with or without transcripts"
    )
    command.add_argument(
        "--dev", type=Path, nargs="+", required=True, metavar="DIR", help="recordings to measure on, with transcripts"
    )
    command.add_argument("--noise", type=Path, metavar="DIR", help="a folder of noises to mix in and to measure on")
    command.add_argument(
        "--decoder-layers", type=arguments.count, default=4, help="of the student (default: %(default)s)"
    )
    command.add_argument(
        "--encoder", choices=("own", "shared"), default="own", help="as for init (default: %(default)s)"
    )
    command.add_argument("--steps", type=arguments.count, default=3000, help="of training (default: %(default)s)")
    command.add_argument("--language", help="of the recordings, for a multilingual teacher")
    command.add_argument("--name", default="student", help="the student's name (default: %(default)s)")
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", dest="folder",
        help="for everything: the student will be in its folder student, the report in report",
    )  # fmt: skip
    _normaliser_argument(command, "how to normalise transcripts")
    _device_argument(command)
    command.set_defaults(run=_all)


def _add_corpus(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument(
        "--clips", type=arguments.count, default=1000,
        help=f"clips to make, in blocks of {BLOCK_CLIPS} (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--texts", type=Path, metavar="FILE", help="texts to speak, one line per clip (default: home commands)"
    )
    command.add_argument("--styles", type=Path, metavar="DIR",
                         help="more speakers of Kokoro: the folder `voices` of the npm package kokoro-js")  # fmt: skip
    command.add_argument("--workers", type=arguments.count, default=2)
    command.add_argument("--seed", type=arguments.count_or_none, default=1)
    command.set_defaults(run=_corpus)


def _add_average(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "parts", nargs="+", metavar="CHECKPOINT[:SHARE]", help="with its share of the mean (default: 1)"
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument("--name", default="student", help="the student's name (default: %(default)s)")
    command.set_defaults(run=_average)


def _normaliser_argument(command: argparse.ArgumentParser, purpose: str) -> None:
    """The same for all, as what they count must be the same."""
    command.add_argument(
        "--normaliser", choices=("english", "basic"), default="english",
        help=f"{purpose} (default: %(default)s)",
    )  # fmt: skip


def _filter_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--filter",
        type=arguments.not_negative,
        default=0.1,
        help="highest word error rate of a label that is kept (default: %(default)s)",
    )
    command.add_argument(
        "--confidence",
        type=arguments.share,
        default=0.7,
        help="lowest confidence of a kept label without a transcript (default: %(default)s)",
    )


def _device_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device", type=arguments.device, default="auto", help="cpu, cuda, or auto (default: %(default)s)"
    )


# --- commands --------------------------------------------------------------------------------------------------------


def _all(options: argparse.Namespace) -> None:
    from distillation.recipe import Recipe

    recipe = Recipe(**{field.name: getattr(options, field.name) for field in fields(Recipe)})
    for command in recipe.commands():
        print(f"whisperd distill {shlex.join(command)}", file=sys.stderr)
        step = _parser().parse_args(command)
        step.run(step)


def _corpus(options: argparse.Namespace) -> None:
    texts = options.texts.read_text(encoding="utf-8").split("\n") if options.texts else []
    spoken = [text for text in map(str.strip, texts) if text]
    synthesise(options.out, Synthesis(options.clips, options.styles), options.seed, options.workers, spoken)
    gather(options.out)


def _label(options: argparse.Namespace) -> None:
    from distillation.model import layout_of

    teacher = _checkpoint(options.teacher, "teacher")
    if options.language:
        layout_of(teacher, options.language)  # says that the teacher does not know it before hours of work do
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(options.out):
        _write_labels(options, teacher)


def _write_labels(options: argparse.Namespace, teacher: Checkpoint) -> None:
    from distillation.hearing import Transcriber
    from distillation.label import Choice, Manner, account, digest, label, normaliser, picture
    from streaming.whisper.engine import WhisperEngine

    for number, source in enumerate(options.recordings):
        record(options.corpus, source, "train", number)
    for number, source in enumerate(options.dev):
        record(options.corpus, source, "dev", number)
    if options.recordings or options.dev:
        gather(options.corpus)
    corpus = Corpus(options.corpus)
    transcriber = Transcriber(
        WhisperEngine.load(str(teacher.directory), None, options.device), language=options.language
    )
    comparable = normaliser(options.normaliser, teacher.directory / "normalizer.json")
    manner = Manner(digest(teacher), options.normaliser, options.language)
    limits = dict(options.at_most)
    wanted = Choice(limits.pop("", 10**9), limits, options.beginnings)
    found, choice = label(corpus, transcriber, options.out, manner, wanted, comparable), _filter(options)
    summary = account(found, choice)
    options.out.with_suffix(".md").write_text(summary, encoding="utf-8")
    picture(found, choice, options.out.with_suffix(".png"))
    print(summary)


def _init(options: argparse.Namespace) -> None:
    from distillation.model import (
        CONTEXTS,
        Student,
        continue_student,
        export_student,
        load_model,
        make_student,
        require_contexts,
        require_other_folder,
        require_whole,
        student_layers,
    )
    from streaming.whisper.checkpoint import require_same_vocabulary

    teacher = _checkpoint(options.teacher, "teacher")
    require_other_folder(options.out, teacher)
    require_whole(teacher)
    own_encoder = options.encoder == "own"
    longest = teacher.contexts[-1]
    usual = [seconds for seconds in CONTEXTS if seconds < longest] + [longest] if own_encoder else teacher.contexts
    contexts = sorted(options.contexts or usual)
    require_contexts(contexts, teacher)
    layers = student_layers(teacher.dimensions.decoder_layers, options.decoder_layers)
    student = make_student(load_model(teacher), options.decoder_layers)
    decoder = f"its decoder layers {', '.join(map(str, layers))} (the first is 0)"
    if options.start:
        earlier = _checkpoint(options.start, "student")
        require_same_vocabulary(earlier, teacher)
        continue_student(student, load_model(earlier))
        decoder = f"what {options.start} has learnt"
    about = Student(options.name, teacher, layers, contexts, own_encoder)
    export_student(student, about, options.out)
    print(f"{options.out}: {'an encoder of its own' if own_encoder else 'the encoder of its teacher'} and {decoder}")


def _train(options: argparse.Namespace) -> None:
    import torch

    from distillation.batches import Batches, Mixture
    from distillation.label import distributions_of, normaliser, read_labels
    from distillation.lessons import Lessons
    from distillation.model import layout_of, load_model, student_of
    from distillation.noise import read_noises, with_mistaken
    from distillation.settings import DIGEST, Settings, digest_of_noises, digest_of_weights
    from distillation.train import Schedule, StudentObjective, fit
    from distillation.validation import validator

    corpus = Corpus(options.corpus)
    labels = read_labels(options.labels)
    lessons = Lessons(corpus, labels, distributions_of(options.labels), _filter(options))
    print(f"{len(lessons.all)} of {len(labels)} labels pass the filter")
    teacher, begun = _checkpoint(options.teacher, "teacher"), _checkpoint(options.student, "student")
    about = student_of(begun, teacher)
    layout = layout_of(begun, options.language)
    torch.manual_seed(options.seed)
    noises = with_mistaken(read_noises(options.noise))
    mixture = Mixture(options.batch_seconds, longest=options.longest, strength=options.augment, seed=options.seed)
    batches = Batches(lessons, noises, layout, mixture)
    student = load_model(begun)
    objective = StudentObjective(student, options.ce_weight, options.kl_weight, own_encoder=about.own_encoder)
    settings: Settings = {
        "--student": digest_of_weights(begun),
        "--teacher": digest_of_weights(teacher),
        "--language": options.language or "none",
        "--ce-weight": options.ce_weight,
        "--kl-weight": options.kl_weight,
        "--batch-seconds": options.batch_seconds,
        "--longest": options.longest,
        "--augment": options.augment,
        "--rate": options.rate,
        "--seed": options.seed,
        "--noise": digest_of_noises(options.noise),
        # It comes last: where it differs, an option that is named before it is mostly why.
        "corpus or set of labels": DIGEST + batches.fingerprint,
    }
    usual = options.steps * 6 // 10
    schedule = Schedule.of(options.steps, options.rate, 100, usual, options.cooldown, options.save_every, options.seed)
    comparable = normaliser(options.normaliser, teacher.directory / "normalizer.json")
    validate = validator(student, corpus, layout, comparable)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(options.out):
        fit(objective, batches, schedule, options.out, validate, options.device, settings)


def _export(options: argparse.Namespace) -> None:
    from distillation.model import export_student, load_model, require_other_folder, student_of
    from distillation.train import load_weights, trained

    teacher, begun = _checkpoint(options.teacher, "teacher"), _checkpoint(options.student, "student")
    require_other_folder(options.out, teacher)
    about = replace(student_of(begun, teacher), name=options.name)
    student, found = load_model(begun), trained(options.trained)
    load_weights(student, found.weights, f"the training in {options.trained}")
    export_student(student, about, options.out, whole=options.whole)
    print(f"{options.out}: the student after {found.step} steps")
    print(f"{options.out}: run it with `models: {{student: {options.out}, teacher: {options.teacher}}}`")


def _average(options: argparse.Namespace) -> None:
    from distillation.model import average

    parts = []
    for part in options.parts:
        name, _, share = part.rpartition(":") if ":" in part else (part, "", "1")
        try:
            weight = float(share)
        except ValueError:
            weight = 0.0
        if not (math.isfinite(weight) and weight > 0):
            raise DistillError(f"{part}: the share after the colon must be above 0, as in {name}:0.4")
        parts.append((_checkpoint(name, "student"), weight))
    average(parts, options.out, options.name)
    print(options.out)


def _evaluate(options: argparse.Namespace) -> None:
    from tokenizers import Tokenizer

    from distillation.evaluate import Effort, Pair, Terms, choose, digest, evaluate
    from distillation.hearing import ALONE, Escalation
    from distillation.label import normaliser
    from distillation.noise import read_noises
    from distillation.report import as_markdown, write
    from distillation.saved_parts import Parts

    for number, source in enumerate(options.dev):
        record(options.corpus, source, "dev", number)
    if options.dev:
        gather(options.corpus)
    limits = dict(options.at_most)
    effort = Effort(limits.pop("", 400), limits, options.noise_seconds)
    terms = Terms(Escalation(options.threshold, options.shortest), options.domain, options.normaliser, effort)
    teacher = _checkpoint(options.teacher, "teacher")
    comparable = normaliser(options.normaliser, teacher.directory / "normalizer.json")
    tokenizer = Tokenizer.from_file(str(teacher.tokenizer_file))
    # Chosen before anything is loaded: what is wrong with the corpus shows at once.
    material = choose(Corpus(options.corpus), read_noises(options.noise), comparable, terms, tokenizer)
    pair = Pair.open(options.student, options.teacher, options.language, options.device)
    folder = options.out / "parts" if options.out else None
    # What the teacher alone hears does not depend on when it is asked.
    parts, teachers = (
        Parts(folder, digest(models, pair, options.corpus, material.noises, terms) if folder else "")
        for models, terms in (
            ([pair.student, pair.teacher], terms),
            ([pair.teacher], replace(terms, escalation=ALONE)),
        )
    )
    figures = evaluate(pair, material, terms, parts, teachers)
    if options.out:
        write(figures, options.out)
    print(as_markdown(figures))


def _filter(options: argparse.Namespace) -> Filter:
    from distillation.label import Filter

    return Filter(options.filter, options.confidence)


def _checkpoint(name: str | Path, role: Literal["student", "teacher"]) -> Checkpoint:
    from streaming.whisper.checkpoint import open_checkpoint

    return open_checkpoint(str(name), role)
