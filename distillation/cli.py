"""`whisperd distill`: the command line of the recipe.

Owns the commands and the settings with which `home-en` was made. Each command can be stopped and given again: it goes
on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from distillation.corpus import Corpus, CorpusError, gather, record, recordings_texts, synthesise
from distillation.text import sentences
from distillation.voices import VoiceError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from distillation.model import Whisper
    from streaming.job import Waveform

# How often a set of the corpus comes in an epoch (once, unless named). First mostly synthetic voices, in short clips
# and small batches: the encoder must find how sounds and letters go together, and noisy single words hide it. Then
# people.
SYNTHETIC_FIRST = {
    "gsc2_test": 0.15,
    "gsc1_bed_cat_happy": 0.2,
    "digits_fsdd": 0.15,
    "speechocean762": 0.5,
    "common_voice_min": 0.5,
    "hymel_custom": 0.2,
    "librispeech_dummy": 0.0,
    "espeak": 0.7,
}
THEN_PEOPLE = {
    "gsc2_test": 1.5,
    "gsc1_bed_cat_happy": 2.0,
    "speechocean762": 0.8,
    "librispeech_dummy": 0.0,
    "espeak": 0.9,
}
PEOPLE_FROM = 3000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except ModuleNotFoundError as error:
        print(f"whisperd distill: {error}; pip install 'whisperd[distill]'", file=sys.stderr)
        return 1
    except (CorpusError, VoiceError, ValueError) as error:
        print(f"whisperd distill: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"whisperd distill: {error.filename or ''}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("whisperd distill: interrupted; the same command goes on from here", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="whisperd distill", description="Make your own student.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    corpus = commands.add_parser("corpus", help="synthetic voices and your recordings -> a corpus")
    corpus.add_argument("--out", type=Path, required=True, metavar="DIR")
    corpus.add_argument("--clips", type=int, default=44000, help="synthetic clips (default: %(default)s)")
    corpus.add_argument("--recordings", type=Path, metavar="MANIFEST.jsonl", help="to train on")
    corpus.add_argument("--dev", type=Path, metavar="MANIFEST.jsonl", help="to measure on")
    corpus.add_argument("--workers", type=int, default=2)
    corpus.add_argument("--seed", type=int, default=1)
    corpus.set_defaults(run=_corpus)

    teacher = commands.add_parser("teacher", help="a teacher from scratch")
    _training_arguments(teacher, steps=10000, rate=1e-3, cooldown=3500)
    teacher.add_argument("--start", type=Path, metavar="CHECKPOINT", help="go on from this one's weights")
    teacher.add_argument("--width", type=int, default=256)
    teacher.add_argument("--encoder-layers", type=int, default=6)
    teacher.add_argument("--decoder-layers", type=int, default=4)
    teacher.add_argument("--vocabulary", type=int, default=1200, help="text tokens (default: %(default)s)")
    teacher.set_defaults(run=_teacher)

    label = commands.add_parser("label", help="the teacher's transcripts of the corpus")
    label.add_argument("--corpus", type=Path, required=True, metavar="DIR")
    label.add_argument("--teacher", required=True, metavar="CHECKPOINT")
    label.add_argument("--out", type=Path, required=True, metavar="LABELS.jsonl")
    label.add_argument("--every", type=int, default=1, help="label every n-th clip only (default: %(default)s)")
    label.set_defaults(run=_label)

    student = commands.add_parser("student", help="a student from its teacher and the labels")
    _training_arguments(student, steps=2500, rate=8e-4, cooldown=1500)
    student.add_argument("--teacher", type=Path, required=True, metavar="CHECKPOINT")
    student.add_argument("--labels", type=Path, required=True, metavar="LABELS.jsonl")
    student.add_argument("--decoder-layers", type=int, default=2)
    student.add_argument("--filter", type=float, default=0.1, help="most word errors of a label (default: %(default)s)")
    student.add_argument("--ce-weight", type=float, default=0.8)
    student.add_argument("--kl-weight", type=float, default=1.0)
    student.add_argument("--temperature", type=float, default=2.0)
    student.set_defaults(run=_student)

    evaluate = commands.add_parser("evaluate", help="word errors and speed of a pair, as a table")
    evaluate.add_argument("--corpus", type=Path, required=True, metavar="DIR")
    evaluate.add_argument("--student", default="home-en", metavar="CHECKPOINT")
    evaluate.add_argument("--teacher", default="home-en", metavar="CHECKPOINT")
    evaluate.add_argument("--noise", type=Path, metavar="DIR", help="noises without speech, for the words invented")
    evaluate.add_argument("--threshold", type=float, default=0.85, help="below this confidence the teacher decides")
    evaluate.add_argument("--out", type=Path, metavar="REPORT.json")
    evaluate.set_defaults(run=_evaluate)
    return parser


def _training_arguments(parser: argparse.ArgumentParser, steps: int, rate: float, cooldown: int) -> None:
    parser.add_argument("--corpus", type=Path, required=True, metavar="DIR")
    parser.add_argument("--noise", type=Path, metavar="DIR", help="a folder of noises to mix in")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--name", default="home-en", help="what the checkpoint calls itself (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=steps, help="(default: %(default)s)")
    parser.add_argument("--rate", type=float, default=rate, help="learning rate (default: %(default)s)")
    parser.add_argument(
        "--cooldown", type=int, default=cooldown, help="last steps, of falling rate (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")


def _corpus(options: argparse.Namespace) -> None:
    for manifest, split in ((options.recordings, "train"), (options.dev, "dev")):
        if manifest:
            record(options.out, manifest, split)
    texts = recordings_texts(options.recordings) if options.recordings else []
    synthesise(options.out, options.clips, options.seed, options.workers, texts)
    gather(options.out)


def _teacher(options: argparse.Namespace) -> None:
    import torch
    from tokenizers import Tokenizer

    from distillation.batches import Batches, Mixture, Staged
    from distillation.model import CONTEXTS, export, make_teacher
    from distillation.train import Schedule, TeacherObjective, fit
    from distillation.watch import watching

    corpus = Corpus(options.corpus)
    torch.manual_seed(0)
    if options.start:
        tokenizer = Tokenizer.from_file(str(options.start / "tokenizer.json"))
        model = _load_model(options.start)
    else:
        tokenizer = _tokenizer(options, corpus)
        model = make_teacher(tokenizer, options.width, options.encoder_layers, options.decoder_layers, dropout=0.0)
    end = options.steps
    first = Mixture(SYNTHETIC_FIRST, seconds=44, most_rows=24, longest=4.5, joined_share=0, empty_share=0.01,
                    clean_until=PEOPLE_FROM, exact_from=end)  # fmt: skip
    then = Mixture(THEN_PEOPLE, seconds=50, most_rows=28, longest=6, joined_share=0.015, empty_share=0.02,
                   clean_until=PEOPLE_FROM, full_from=15000, exact_from=end * 4 // 5, seed=3)  # fmt: skip
    clips, noises = corpus.split("train"), _noises(options.noise)
    stages = [
        (start, Batches(corpus, clips, noises, tokenizer, mixture))
        for start, mixture in ((0, first), (PEOPLE_FROM, then))
    ]
    batches = Staged(stages)
    schedule = Schedule(options.steps, options.rate, cooldown=options.cooldown)
    watch = watching(model, corpus, tokenizer)
    fit(TeacherObjective(model, ctc_weight=1.0), batches, schedule, options.out / "run", watch, options.device)
    export(model.cpu(), tokenizer, options.out / "checkpoint", CONTEXTS, options.name)


def _tokenizer(options: argparse.Namespace, corpus: Corpus) -> Tokenizer:
    """The one that was trained for this teacher; trained now if there is none yet."""
    from tokenizers import Tokenizer

    from distillation.tokenizer import save_tokenizer, train_tokenizer

    folder = options.out / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        spoken = sorted({clip.text for clip in corpus.split("train")})
        save_tokenizer(train_tokenizer([*islice(sentences(7), 20000), *spoken], options.vocabulary), folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _load_model(folder: Path) -> Whisper:
    from transformers import WhisperForConditionalGeneration

    return WhisperForConditionalGeneration.from_pretrained(folder, dtype="float32")


def _label(options: argparse.Namespace) -> None:
    from distillation.evaluate import Transcriber
    from distillation.label import label
    from streaming.whisper.engine import Engine

    label(Corpus(options.corpus), Transcriber(Engine.load(options.teacher, None)), options.out, every=options.every)


def _student(options: argparse.Namespace) -> None:
    from tokenizers import Tokenizer

    from distillation.batches import Batches, Mixture
    from distillation.label import read_labels, relabelled
    from distillation.model import CONTEXTS, export, make_student
    from distillation.train import Schedule, StudentObjective, fit
    from distillation.watch import watching

    corpus = Corpus(options.corpus)
    clips = relabelled(corpus, read_labels(options.labels), options.filter)
    print(
        f"{len(clips)} of {len(corpus.split('train'))} clips are within {options.filter:.0%} word errors of their text"
    )
    tokenizer = Tokenizer.from_file(str(options.teacher / "tokenizer.json"))
    teacher = _load_model(options.teacher)
    student = make_student(teacher, options.decoder_layers)
    mixture = Mixture(
        THEN_PEOPLE,
        seconds=50,
        most_rows=28,
        longest=6,
        joined_share=0.03,
        empty_share=0.03,
        clean_until=-options.steps,
        full_from=2 * options.steps,
        exact_from=options.steps // 2,
        seed=2,
    )
    objective = StudentObjective(student, teacher, options.ce_weight, options.kl_weight, options.temperature)
    batches = Batches(corpus, clips, _noises(options.noise), tokenizer, mixture)
    schedule = Schedule(options.steps, options.rate, warmup=100, cooldown=options.cooldown)
    watch = watching(student, corpus, tokenizer)
    fit(objective, batches, schedule, options.out / "run", watch, options.device)
    export(student.cpu(), tokenizer, options.out / "checkpoint", CONTEXTS, options.name)


def _noises(folder: Path | None, *, speechless: bool = False) -> list[Waveform]:
    """The noises of a folder; where its manifest says `contains_speech`, those can be left out."""
    from distillation.corpus import read_mono

    if folder is None:
        return []
    manifest = folder / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()] if manifest.is_file() else []
    voices = {row["path"] for row in rows if row.get("contains_speech")} if speechless else set()
    return [read_mono(path) for path in sorted(folder.glob("*.flac")) if path.name not in voices]


def _evaluate(options: argparse.Namespace) -> None:
    from distillation.evaluate import as_markdown, report
    from streaming.whisper.checkpoint import open_checkpoint
    from streaming.whisper.engine import Engine

    engine = Engine.load(options.student, options.teacher)
    alone = Engine.load(str(open_checkpoint(options.teacher, "teacher").directory), None)
    for one in (engine, alone):
        one.warm()
    figures = report(engine, alone, Corpus(options.corpus), _noises(options.noise, speechless=True), options.threshold)
    print(as_markdown(figures))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
