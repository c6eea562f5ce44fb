"""`whisperd distill`: the command line of the recipe.

Owns the commands and their defaults. Each command can be stopped and given again: it goes on where it was. Heavy
imports are made inside the commands, so that help and a mistake in an option come at once.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from distillation import arguments
from distillation.corpus import (
    BLOCK_CLIPS,
    HELD_OUT_BLOCKS,
    Corpus,
    Synthesis,
    gather,
    record,
    recordings_texts,
    synthesise,
)
from distillation.errors import DistillError
from distillation.text import sentences

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from distillation.label import Filter
    from streaming.whisper.checkpoint import Checkpoint

TEACHER_LAYERS = 4
"""Decoder layers of a teacher from scratch."""
TEACHER_COOLDOWN, STUDENT_COOLDOWN = 3500, 1500
"""Last steps, of falling rate, of a training that is long enough for them."""
HEAD_STEPS = 300
"""For which the CTC head learns alone, where a teacher goes on without the head that it had."""


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1: it cannot be done, and standard error says why; 2: bad usage; 130: it was interrupted."""
    options = _parser().parse_args(argv)
    try:
        return _obey(options)
    except KeyboardInterrupt:
        print("whisperd distill: interrupted; the same command goes on from here", file=sys.stderr)
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
        description="Make a student of a teacher of yours: label, init, train, export, evaluate. `corpus` and "
        "`teacher` are what home-en needed beside: synthetic voices, and a teacher from scratch.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_label(commands.add_parser("label", help="the teacher's transcripts of your recordings, and a filter"))
    _add_init(commands.add_parser("init", help="a student with the teacher's encoder and some of its decoder layers"))
    _add_train(commands.add_parser("train", help="the student learns from the labels and the teacher"))
    _add_export(commands.add_parser("export", help="the trained student in the hub layout"))
    _add_evaluate(commands.add_parser("evaluate", help="what a pair can do, as a report"))
    _add_ablations(commands.add_parser("ablations", help="what each part of the recipe is worth, on your data"))
    _add_corpus(commands.add_parser("corpus", help="synthetic voices and recordings -> a corpus"))
    _add_teacher(commands.add_parser("teacher", help="a teacher from scratch"))
    _add_average(commands.add_parser("average", help="the mean of checkpoints of one training's line"))
    return parser


def _add_label(command: argparse.ArgumentParser) -> None:
    command.add_argument("--recordings", type=Path, metavar="DIR", help="audio, with or without transcripts")
    command.add_argument("--corpus", type=Path, required=True, metavar="DIR", help="gathered there, if not there yet")
    command.add_argument("--dev", type=Path, metavar="DIR", help="more recordings, to measure on")
    command.add_argument("--teacher", required=True, metavar="CHECKPOINT")
    command.add_argument("--out", type=Path, required=True, metavar="LABELS.jsonl")
    command.add_argument("--language", help="of the recordings; a multilingual teacher detects it otherwise")
    command.add_argument(
        "--every",
        type=arguments.count,
        default=1,
        help="label every n-th clip only (default: %(default)s); a smaller n adds to what is there",
    )
    _normaliser_argument(command, "how transcripts are made comparable")
    command.add_argument(
        "--device", type=arguments.device, default="auto", help="cpu, cuda, or auto (default: %(default)s)"
    )
    _filter_arguments(command)
    command.set_defaults(run=_label)


def _add_init(command: argparse.ArgumentParser) -> None:
    command.add_argument("--teacher", required=True, metavar="CHECKPOINT")
    command.add_argument("--decoder-layers", type=arguments.count, default=2, help="(default: %(default)s)")
    command.add_argument(
        "--start",
        metavar="CHECKPOINT",
        help="a student of this teacher before it learnt on: its decoder is kept",
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument("--name", default="student", help="what it calls itself (default: %(default)s)")
    command.set_defaults(run=_init)


def _add_train(command: argparse.ArgumentParser) -> None:
    command.add_argument("--student", type=Path, required=True, metavar="DIR", help="made by init")
    command.add_argument("--teacher", required=True, metavar="CHECKPOINT")
    command.add_argument("--labels", type=Path, required=True, metavar="LABELS.jsonl")
    command.add_argument("--language", help="of the recordings, for a multilingual teacher")
    _normaliser_argument(command, "how texts are made comparable to watch word errors: as of label")
    _filter_arguments(command)
    command.add_argument("--ce-weight", type=arguments.not_negative, default=0.8, help="(default: %(default)s)")
    command.add_argument("--kl-weight", type=arguments.not_negative, default=1.0, help="(default: %(default)s)")
    command.add_argument("--temperature", type=arguments.positive, default=2.0, help="(default: %(default)s)")
    command.add_argument(
        "--batch-seconds", type=arguments.positive, default=60, help="audio in a batch (default: %(default)s)"
    )
    command.add_argument(
        "--longest", type=arguments.positive, default=26, help="seconds of a clip (default: %(default)s)"
    )
    command.add_argument(
        "--augment", type=arguments.share, default=0.4, help="0 (not at all) to 1 (default: %(default)s)"
    )
    command.add_argument(
        "--versions", type=arguments.count, default=2,
        help="how often a clip is augmented anew and heard by the encoder (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--weights", choices=("none", "home-en"), default="none",
        help="how often each set comes in an epoch: all once, or as for home-en, by the names of the sets of its "
        "corpus (default: %(default)s)",
    )  # fmt: skip
    _training_arguments(command, steps=2500, rate=8e-4, cooldown=STUDENT_COOLDOWN)
    command.set_defaults(run=_train)


def _add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument("--student", type=Path, required=True, metavar="DIR", help="made by init")
    command.add_argument("--trained", type=Path, required=True, metavar="DIR", help="made by train")
    command.add_argument("--teacher", required=True, metavar="CHECKPOINT")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument("--name", default="student", help="what it calls itself (default: %(default)s)")
    command.set_defaults(run=_export)


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    command.add_argument("--corpus", type=Path, required=True, metavar="DIR")
    command.add_argument("--student", default="home-en", metavar="CHECKPOINT")
    command.add_argument("--teacher", default="home-en", metavar="CHECKPOINT")
    command.add_argument("--noise", type=Path, metavar="DIR", help="noises, for the words invented")
    command.add_argument(
        "--threshold", type=arguments.share, default=0.85, help="below this confidence the teacher decides"
    )
    command.add_argument("--language", help="of the recordings, for a multilingual pair")
    _normaliser_argument(command, "how texts are made comparable: as of label; corpus suits home-en")
    command.add_argument("--domain", nargs="*", default=[], metavar="SET", help="sets on which the cascade is judged")
    command.add_argument("--clips", type=arguments.count, default=400, help="of a set at most (default: %(default)s)")
    command.add_argument(
        "--noise-seconds", type=arguments.positive, default=3600, help="to listen to (default: %(default)s)"
    )
    command.add_argument(
        "--out", type=Path, metavar="DIR",
        help="for REPORT.md, report.json and pictures; and for what is measured, so that an interrupted run goes on",
    )  # fmt: skip
    command.add_argument(
        "--device", type=arguments.device, default="auto", help="cpu, cuda, or auto (default: %(default)s)"
    )
    command.set_defaults(run=_evaluate)


def _add_ablations(command: argparse.ArgumentParser) -> None:
    command.add_argument("--corpus", type=Path, required=True, metavar="DIR")
    command.add_argument("--teacher", required=True, metavar="CHECKPOINT")
    command.add_argument("--labels", type=Path, required=True, metavar="LABELS.jsonl")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument("--clips", type=arguments.count, default=2000, help="to learn from (default: %(default)s)")
    command.add_argument("--judged", type=arguments.count, default=200, help="held-out clips (default: %(default)s)")
    command.add_argument("--steps", type=arguments.count, default=300, help="of each student (default: %(default)s)")
    command.add_argument("--seeds", type=arguments.count, default=3, help="(default: %(default)s)")
    command.add_argument("--language", help="of the recordings, for a multilingual teacher")
    command.add_argument(
        "--device", type=arguments.device, default="auto", help="cpu, cuda, or auto (default: %(default)s)"
    )
    _filter_arguments(command)
    command.set_defaults(run=_ablations)


def _add_corpus(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument("--clips", type=arguments.count, default=44000,
                         help=f"synthetic clips (default: %(default)s); all kinds come in blocks of {BLOCK_CLIPS}, "
                         f"and {HELD_OUT_BLOCKS * BLOCK_CLIPS} by held-out voices beside, to measure on")  # fmt: skip
    command.add_argument("--diphone-clips", type=arguments.count_or_none, default=0, metavar="CLIPS",
                         help="more by diphones, as speakers of any size and pitch (default: %(default)s)")  # fmt: skip
    command.add_argument("--pico-clips", type=arguments.count_or_none, default=0, metavar="CLIPS",
                         help="more by SVOX Pico, of any size and pitch (default: %(default)s)")  # fmt: skip
    command.add_argument(
        "--neural-clips", type=arguments.count_or_none, default=0, help="more by neural voices (default: %(default)s)"
    )
    command.add_argument("--styles", type=Path, metavar="DIR",
                         help="more speakers of Kokoro: the folder `voices` of the npm package kokoro-js")  # fmt: skip
    command.add_argument("--recordings", type=Path, metavar="DIR", help="to train on (or a manifest.jsonl)")
    command.add_argument("--dev", type=Path, metavar="DIR", help="to measure on (or a manifest.jsonl)")
    command.add_argument("--workers", type=arguments.count, default=2)
    command.add_argument("--seed", type=arguments.count_or_none, default=1)
    command.set_defaults(run=_corpus)


def _add_teacher(command: argparse.ArgumentParser) -> None:
    _training_arguments(command, steps=10000, rate=1e-3, cooldown=TEACHER_COOLDOWN)
    command.add_argument("--start", type=Path, metavar="DIR",
                         help="a checkpoint to go on from, or an earlier --out, with its CTC head")  # fmt: skip
    command.add_argument("--name", default="home-en-teacher", help="what it calls itself (default: %(default)s)")
    command.add_argument("--width", type=arguments.count, default=256)
    command.add_argument("--encoder-layers", type=arguments.count, default=6)
    command.add_argument("--decoder-layers", type=arguments.count,
                         help=f"(default: {TEACHER_LAYERS}, or as many as that of --start has)")  # fmt: skip
    command.add_argument("--vocabulary", type=arguments.count, default=1200, help="text tokens (default: %(default)s)")
    command.set_defaults(run=_teacher)


def _add_average(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "parts", nargs="+", metavar="CHECKPOINT[:SHARE]", help="shares are of their sum; 1 where not said"
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument("--name", default="home-en-teacher", help="what it calls itself (default: %(default)s)")
    command.set_defaults(run=_average)


def _normaliser_argument(command: argparse.ArgumentParser, purpose: str) -> None:
    """The same for all, as what they count must be the same."""
    command.add_argument(
        "--normaliser", choices=("corpus", "english", "basic"), default="english",
        help=f"{purpose} (default: %(default)s)",
    )  # fmt: skip


def _filter_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--filter",
        type=arguments.not_negative,
        default=0.1,
        help="most word errors of a label, per word (default: %(default)s)",
    )
    command.add_argument(
        "--confidence",
        type=arguments.share,
        default=0.7,
        help="least of a label with no transcript (default: %(default)s)",
    )


def _training_arguments(command: argparse.ArgumentParser, steps: int, rate: float, cooldown: int) -> None:
    command.add_argument("--corpus", type=Path, required=True, metavar="DIR")
    command.add_argument("--noise", type=Path, metavar="DIR", help="a folder of noises to mix in")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument("--steps", type=arguments.count, default=steps, help="(default: %(default)s)")
    command.add_argument(
        "--rate", type=arguments.not_negative, default=rate, help="learning rate (default: %(default)s)"
    )
    command.add_argument(
        "--cooldown",
        type=arguments.count_or_none,
        help=f"last steps, of falling rate (default: {cooldown}, or 0.6 of --steps where that is less)",
    )
    command.add_argument(
        "--save-every", type=arguments.count, default=500, metavar="STEPS",
        help="between checkpoints, each with a row of the curve (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--seed", type=arguments.count_or_none, default=0,
        help="of the order of training, and of what is random in it (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--device", type=arguments.device, default="auto", help="cpu, cuda, or auto (default: %(default)s)"
    )


# --- commands --------------------------------------------------------------------------------------------------------


def _corpus(options: argparse.Namespace) -> None:
    for source, split in ((options.recordings, "train"), (options.dev, "dev")):
        if source:
            record(options.out, source, split)
    texts = recordings_texts(options.recordings) if options.recordings else []
    wanted = Synthesis(options.clips, options.diphone_clips, options.pico_clips, options.neural_clips, options.styles)
    synthesise(options.out, wanted, options.seed, options.workers, texts)
    gather(options.out)


def _teacher(options: argparse.Namespace) -> None:
    import torch

    from distillation.batches import Batches, Staged
    from distillation.model import CONTEXTS, deepen, export, load_model, make_teacher, own_layout
    from distillation.noise import read_noises, with_mistaken
    from distillation.recipe import from_scratch, refining
    from distillation.settings import Settings, digest_of_clips, digest_of_noises, digest_of_weights
    from distillation.train import HeadObjective, Schedule, TeacherObjective, fit, trained
    from distillation.watch import watching

    corpus = Corpus(options.corpus)
    torch.manual_seed(options.seed)
    begun = options.start / "run" if options.start and (options.start / "run").is_dir() else None
    weights = begun.with_name("checkpoint") if begun else options.start
    start = _checkpoint(weights, "teacher") if weights else None
    tokenizer = _tokenizer(options, corpus, start)
    if start:
        model = load_model(start)
        model = deepen(model, options.decoder_layers or model.config.decoder_layers)
    else:
        layers = options.decoder_layers or TEACHER_LAYERS
        model = make_teacher(tokenizer, options.width, options.encoder_layers, layers, dropout=0.0)
    objective = TeacherObjective(model, ctc_weight=1.0)
    if begun:
        objective.take_head(trained(begun).weights)
    layout = own_layout(tokenizer)
    clips, noises = corpus.split("train"), with_mistaken(read_noises(options.noise))
    settings: Settings = {
        "--start": digest_of_weights(start) if start else "none",
        "--width": model.config.d_model,
        "--encoder-layers": model.config.encoder_layers,
        "--decoder-layers": model.config.decoder_layers,
        "--vocabulary": "of --start" if start else options.vocabulary,
        "--seed": options.seed,
        "--corpus": digest_of_clips(clips),
        "--noise": digest_of_noises(options.noise),
    }
    stages = refining(options.steps, options.seed) if start else from_scratch(options.steps, options.seed)
    batches = Staged([(first, Batches(corpus, clips, noises, layout, mixture)) for first, mixture in stages])
    if start and not begun:
        steps = min(HEAD_STEPS, options.steps)
        alone = Schedule.of(steps, 5e-3, 20, steps // 2, every=options.save_every, seed=options.seed)
        fit(HeadObjective(objective), batches, alone, options.out / "head", device=options.device, settings=settings)
    schedule = Schedule.of(
        options.steps, options.rate, 400, TEACHER_COOLDOWN, options.cooldown, options.save_every, options.seed
    )
    watch = watching(model, corpus, layout)
    fit(objective, batches, schedule, options.out / "run", watch, options.device, {"--rate": options.rate, **settings})
    export(model.cpu(), tokenizer, options.out / "checkpoint", CONTEXTS, options.name)


def _tokenizer(options: argparse.Namespace, corpus: Corpus, start: Checkpoint | None) -> Tokenizer:
    """That of the checkpoint to begin with; or the one that was trained for this teacher; trained now if there is
    none yet.
    """
    from tokenizers import Tokenizer

    from distillation.files import folder_written_whole
    from distillation.tokenizer import save_tokenizer, train_tokenizer

    if start:
        return Tokenizer.from_file(str(start.tokenizer_file))
    folder = options.out / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        spoken = sorted({clip.text for clip in corpus.split("train")})
        trained = train_tokenizer([*islice(sentences(7), 20000), *spoken], options.vocabulary)
        with folder_written_whole(folder, last="tokenizer.json") as part:
            save_tokenizer(trained, part)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _label(options: argparse.Namespace) -> None:
    from distillation.hearing import Transcriber
    from distillation.label import Manner, account, digest, label, normaliser, picture
    from distillation.model import layout_of
    from streaming.whisper.engine import Engine

    teacher = _checkpoint(options.teacher, "teacher")
    if options.language:
        layout_of(teacher, options.language)  # says that the teacher does not know it before hours of work do
    options.out.parent.mkdir(parents=True, exist_ok=True)
    recordings = [(source, split) for source, split in ((options.recordings, "train"), (options.dev, "dev")) if source]
    for source, split in recordings:
        record(options.corpus, source, split, as_written=True)
    if recordings:
        gather(options.corpus)
    corpus = Corpus(options.corpus)
    transcriber = Transcriber(Engine.load(str(teacher.directory), None, options.device), language=options.language)
    comparable = normaliser(options.normaliser, teacher.directory / "normalizer.json")
    manner = Manner(digest(teacher), options.normaliser, options.language)
    found, choice = label(corpus, transcriber, options.out, manner, options.every, comparable), _filter(options)
    told = account(found, choice)
    options.out.with_suffix(".md").write_text(told, encoding="utf-8")
    picture(found, choice, options.out.with_suffix(".png"))
    print(told)


def _init(options: argparse.Namespace) -> None:
    from distillation.model import (
        continue_student,
        export_student,
        load_model,
        make_student,
        require_other_folder,
        student_layers,
    )
    from streaming.whisper.checkpoint import require_same_vocabulary

    teacher = _checkpoint(options.teacher, "teacher")
    require_other_folder(options.out, teacher)
    layers = student_layers(teacher.dimensions.decoder_layers, options.decoder_layers)
    student = make_student(load_model(teacher), options.decoder_layers)
    decoder = f"its decoder layers {', '.join(map(str, layers))} (the first is 0)"
    if options.start:
        earlier = _checkpoint(options.start, "student")
        require_same_vocabulary(earlier, teacher)
        continue_student(student, load_model(earlier))
        decoder = f"the decoder of {options.start}"
    export_student(student, teacher, layers, options.out, options.name)
    print(f"{options.out}: the teacher's encoder and {decoder}")


def _train(options: argparse.Namespace) -> None:
    import torch

    from distillation.batches import Batches
    from distillation.label import normaliser, read_labels, relabelled
    from distillation.model import encoding, layout_of, load_model
    from distillation.noise import read_noises, with_mistaken
    from distillation.recipe import WEIGHTS, student_mixture
    from distillation.settings import Settings, digest_of_noises, digest_of_weights
    from distillation.states import States
    from distillation.train import Schedule, StudentObjective, fit
    from distillation.watch import watching
    from streaming.whisper.checkpoint import require_same_vocabulary

    corpus = Corpus(options.corpus)
    labels = read_labels(options.labels)
    clips = relabelled(corpus, labels, _filter(options))
    print(f"{len(clips)} clips have a label that passes the filter, of {len(labels)} labels")
    teacher, begun = _checkpoint(options.teacher, "teacher"), _checkpoint(options.student, "student")
    require_same_vocabulary(begun, teacher)
    layout = layout_of(teacher, options.language)
    torch.manual_seed(options.seed)
    noises = with_mistaken(read_noises(options.noise))
    weights = WEIGHTS[options.weights]
    mixture = student_mixture(options.batch_seconds, options.longest, options.augment, options.seed, weights)
    batches = Batches(corpus, clips, noises, layout, mixture)
    student, taught_by = load_model(begun), load_model(teacher)
    objective = StudentObjective(student, taught_by, options.ce_weight, options.kl_weight, options.temperature)
    heard: Settings = {
        "--teacher": digest_of_weights(teacher),
        "--language": options.language or "none",
        "--batch-seconds": options.batch_seconds,
        "--longest": options.longest,
        "--augment": options.augment,
        "--weights": options.weights,
        "--seed": options.seed,
        "--noise": digest_of_noises(options.noise),
    }
    states = States(options.out / "states", batches, options.versions, options.seed, heard)
    states.prepare(encoding(taught_by, options.device))
    settings: Settings = {
        "--student": digest_of_weights(begun),
        "--ce-weight": options.ce_weight,
        "--kl-weight": options.kl_weight,
        "--temperature": options.temperature,
        "--rate": options.rate,
        **states.settings,
    }
    schedule = Schedule.of(
        options.steps, options.rate, 100, STUDENT_COOLDOWN, options.cooldown, options.save_every, options.seed
    )
    comparable = normaliser(options.normaliser, teacher.directory / "normalizer.json")
    watch = watching(student, corpus, layout, comparable)
    fit(objective, states, schedule, options.out, watch, options.device, settings)


def _export(options: argparse.Namespace) -> None:
    from distillation.model import export_student, load_model, require_other_folder, student_layers
    from distillation.train import load_weights, require_teachers_encoder, trained
    from streaming.whisper.checkpoint import require_same_vocabulary

    teacher, begun = _checkpoint(options.teacher, "teacher"), _checkpoint(options.student, "student")
    require_other_folder(options.out, teacher)
    require_same_vocabulary(begun, teacher)
    student, found = load_model(begun), trained(options.trained)
    load_weights(student, found.weights, f"the training in {options.trained}")
    require_teachers_encoder(student, load_model(teacher))
    layers = student_layers(teacher.dimensions.decoder_layers, begun.dimensions.decoder_layers)
    export_student(student, teacher, layers, options.out, options.name)
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
            raise DistillError(f"{part}: behind the colon stands a share above 0, as in {name}:0.4")
        parts.append((_checkpoint(name, "teacher"), weight))
    average(parts, options.out, options.name)
    print(options.out)


def _evaluate(options: argparse.Namespace) -> None:
    from distillation.evaluate import Effort, Pair, Terms, choose, digest, evaluate
    from distillation.label import normaliser
    from distillation.noise import read_noises
    from distillation.parts import Parts
    from distillation.report import as_markdown, write

    effort = Effort(options.clips, options.noise_seconds)
    terms = Terms(options.threshold, options.domain, options.normaliser, effort)
    comparable = normaliser(options.normaliser, _checkpoint(options.teacher, "teacher").directory / "normalizer.json")
    # Chosen before anything is loaded: what is wrong with the corpus shows at once.
    material = choose(Corpus(options.corpus), read_noises(options.noise), comparable, terms)
    pair = Pair.open(options.student, options.teacher, options.language, options.device)
    of = digest(pair, options.corpus, material.noises, terms) if options.out else ""
    parts = Parts(options.out / "parts" if options.out else None, of)
    figures = evaluate(pair, material, terms, parts)
    if options.out:
        write(figures, options.out)
        parts.forget()
    print(as_markdown(figures))


def _ablations(options: argparse.Namespace) -> None:
    from distillation.ablations import Judge, ablate, account
    from distillation.batches import Batches, clips_of
    from distillation.label import read_labels, relabelled
    from distillation.model import encoding, layout_of, load_model
    from distillation.noise import Noises
    from distillation.recipe import WEIGHTS, student_mixture
    from distillation.settings import Settings, digest_of_clips, digest_of_weights
    from distillation.states import States

    corpus = Corpus(options.corpus)
    checkpoint = _checkpoint(options.teacher, "teacher")
    teacher, layout = load_model(checkpoint), layout_of(checkpoint, options.language)
    clips = relabelled(corpus, read_labels(options.labels), _filter(options))
    clips = clips[:: max(1, len(clips) // options.clips)][: options.clips]
    batches = Batches(corpus, clips, Noises(), layout, student_mixture(60, 26, 0.4, 0, WEIGHTS["none"]))
    heard: Settings = {"--teacher": digest_of_weights(checkpoint), "--language": options.language or "none"}
    states = States(options.out / "states", batches, 1, 0, heard)
    states.prepare(encoding(teacher, options.device))
    held_out = clips_of(corpus, "held_out", at_most=options.judged) or clips_of(corpus, "dev", at_most=options.judged)
    judge = Judge(teacher, corpus, held_out, layout, options.device)
    judged: Settings = {"--judged": digest_of_clips(held_out)}
    outcomes = ablate(teacher, states, judge, layout, options.steps, options.seeds, options.out, options.device, judged)
    told = account(outcomes, judge(teacher), options.steps)
    (options.out / "ABLATIONS.md").write_text(told, encoding="utf-8")
    print(told)


def _filter(options: argparse.Namespace) -> Filter:
    from distillation.label import Filter

    return Filter(options.filter, options.confidence)


def _checkpoint(name: str | Path, role: Literal["student", "teacher"]) -> Checkpoint:
    from streaming.whisper.checkpoint import open_checkpoint

    return open_checkpoint(str(name), role)
