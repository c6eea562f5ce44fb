"""Names that a model does not know, with and without a vocabulary: how many are heard or made up, and what it costs.

Neural voices speak home commands with rare names. The pair hears them without and with the list of names, the student
alone and as the service asks its teacher. On recordings in which none of the names is said, the same list shows what it
spoils: words that become names, and word errors. At last a step of the decoder is timed with a thousand phrases and
with none, in turns.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from bench.player import SENTENCES
from bench.table import circumstances, table
from bench.word_errors import comparable
from daemon.settings.schema import EscalationSettings
from distillation.arguments import count, device, positive
from distillation.corpus import Corpus, evenly, gather, record
from distillation.hearing import Transcriber, waves_of
from distillation.recordings import read_mono
from distillation.scores import score
from distillation.synthesis.clips import Synthesis, synthesise
from streaming.job import NO_VOCABULARY, SAMPLE_RATE, Job, Phrase, Vocabulary, Waveform, teacher_threshold
from streaming.offline import utterances
from streaming.whisper.biasing import numbered
from streaming.whisper.decode import decode
from streaming.whisper.engine import WhisperEngine
from streaming.whisper.hearing import LoadedModel, rows_of

NAMES = (
    "Thibault Lumen Kallax Xanthe Saoirse Ottoline Zephyrine Quillon Brannagh Eluned Ffion Tamsin Perpetua Isolde "
    "Leocadia Marisol Anneliese Bryndis Cosima Dagmar Evander Fenella Gwendal Hyacinth Ignatius Jocasta Kestrel "
    "Lysander Mirabel Nerys Oswin Philippa Quentin Rosalind Sidonie Theodora Ulric Verity Yevgeny Zenobia Aoife "
    "Balthazar Caspian Delphine Eleri Florian Giselle Hadrian Ingrid Jorunn Katarzyna Leander Morwenna Niamh Odile "
    "Poäng Malm Hemnes Tradfri Symfonisk Fyrtur Rodret Vallhorn Parasoll"
).split()  # fmt: skip
SENTENCE = (
    "turn on the {} lamp", "turn off the {} speaker", "call {} please", "is {} at home", "send a message to {}",
    "set the {} light to forty percent", "what is the temperature in {}'s room", "add {} to the meeting",
    "open the blinds in {}'s room", "remind me to write to {} tomorrow", "play music on the {} speaker",
    "tell {} that dinner is ready",
)  # fmt: skip
PHRASES = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="whisperd bench vocabulary", description=__doc__)
    parser.add_argument("--student", default="tiny-en")
    parser.add_argument("--teacher", default="tiny-en")
    parser.add_argument("--device", type=device, default="auto")
    parser.add_argument("--utterances", type=count, default=200, help="with names (default: %(default)s)")
    parser.add_argument("--weight", type=positive, default=1.0, help="of each name (default: %(default)s)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where what was spoken is kept (default: nowhere)")
    parser.add_argument("--foreign", type=Path, metavar="DIR", help="recordings with texts in which nobody says a name")
    parser.add_argument("--clips", type=count, default=400, help="of these (default: %(default)s)")
    options = parser.parse_args(arguments)
    engine = WhisperEngine.load(options.student, options.teacher, options.device)
    print(f"{circumstances()}\n{options.student}, {options.teacher}, {engine.device}, {engine.numbers}\n")
    with TemporaryDirectory() as scratch:
        folder = options.work or Path(scratch)
        named = spoken(folder / "names", options.utterances)
        foreign = recorded(folder / "foreign", options.foreign, options.clips) if options.foreign else sentences()
        vocabulary = Vocabulary(tuple(Phrase(name, options.weight) for name in NAMES))
        print(heard_names(engine, named, vocabulary), end="\n\n")
        print(spoilt(engine, foreign, vocabulary), end="\n\n")
    print(cost(engine.models[0]))
    return 0


Clips = list[tuple[Waveform, str]]
"""Utterances, 16 kHz mono, and what is said in them."""


def spoken(folder: Path, count: int) -> Clips:
    """Let neural voices say commands with names; what a folder has already is not spoken again."""
    rng = random.Random(7)
    lines = [rng.choice(SENTENCE).format(NAMES[place % len(NAMES)]) for place in range(count)]
    synthesise(folder, Synthesis(count), seed=7, workers=1, spoken=lines)
    gather(folder)
    return _read(folder, "train", count)


def recorded(folder: Path, source: Path, count: int) -> Clips:
    record(folder, source, "dev")
    gather(folder)
    return _read(folder, "dev", count)


def sentences() -> Clips:
    """The benchmarks' own utterances, without their texts."""
    return [(wave, "") for wave in utterances(read_mono(SENTENCES))]


def _read(folder: Path, split: str, count: int) -> Clips:
    corpus = Corpus(folder)
    clips = evenly(corpus.split(split), count)
    return list(zip(waves_of(corpus, clips), (clip.text for clip in clips), strict=True))


def texts(engine: WhisperEngine, clips: Clips, vocabulary: Vocabulary, ask: bool) -> list[str]:
    """Return what the student hears of clips, or what the service does when it may ask its teacher."""
    transcriber, below = Transcriber(engine), EscalationSettings()
    found = []
    for wave, _ in clips:
        threshold = teacher_threshold(below.below, wave, below.shortest) if ask else 0.0
        (result,) = engine.run([Job(wave, ask_teacher_below=threshold, vocabulary=vocabulary)])
        found.append(comparable()(transcriber.text(result.tokens)))
    return found


def names_in(text: str) -> set[str]:
    words = text.removesuffix(" s").split()
    return {name for name in map(comparable(), NAMES) if name in words}


def heard_names(engine: WhisperEngine, clips: Clips, vocabulary: Vocabulary) -> str:
    """Return the table of the names that were heard."""
    rows = []
    said = [names_in(comparable()(text)) for _, text in clips]
    for who, ask in (("student", False), ("cascade", True)):
        for how, phrases in (("without", NO_VOCABULARY), ("with", vocabulary)):
            found = texts(engine, clips, phrases, ask)
            right = sum(len(names & names_in(text)) for names, text in zip(said, found, strict=True))
            wrong = sum(len(names_in(text) - names) for names, text in zip(said, found, strict=True))
            errors = score([text for _, text in clips], found, comparable())
            rows.append([
                who, how, str(len(clips)), f"{right / sum(map(len, said)):.1%}", str(wrong), f"{errors.wer:.1%}"
            ])  # fmt: skip
    return table(["who", "vocabulary", "utterances", "names heard", "other names", "WER"], rows)


def spoilt(engine: WhisperEngine, clips: Clips, vocabulary: Vocabulary) -> str:
    """Return the table of what a list of foreign names does to recordings without them."""
    rows = []
    for who, ask in (("student", False), ("cascade", True)):
        for how, phrases in (("without", NO_VOCABULARY), ("with", vocabulary)):
            found = texts(engine, clips, phrases, ask)
            wrong = sum(
                len(names_in(text) - names_in(comparable()(said))) for text, (_, said) in zip(found, clips, strict=True)
            )
            known = any(said for _, said in clips)
            wer = f"{score([said for _, said in clips], found, comparable()).wer:.2%}" if known else "no texts"
            rows.append([who, how, str(len(clips)), str(wrong), wer])
    return table(["who", "vocabulary", "foreign utterances", "names made up", "WER"], rows)


def cost(model: LoadedModel, rounds: int = 15) -> str:
    """Return the table of a step's time with a thousand phrases and with none."""
    rng = random.Random(3)
    letters = "abcdefghijklmnopqrstuvwxyz"
    phrases = ["".join(rng.choices(letters, k=rng.randint(4, 9))).capitalize() for _ in range(PHRASES)]
    many = Vocabulary(tuple(map(Phrase, phrases)))
    noise = np.random.default_rng(0).normal(0.0, 0.1, 3 * SAMPLE_RATE).astype(np.float32)
    times: dict[Vocabulary, list[float]] = {NO_VOCABULARY: [], many: []}
    ratios = []
    for _ in range(rounds):
        for each, spent in times.items():
            spent.append(_step_seconds(model, Job(noise, vocabulary=each, max_tokens=40)))
        ratios.append(times[many][-1] / times[NO_VOCABULARY][-1])
    one, other = (statistics.median(each) * 1000 for each in times.values())
    return table(
        ["step of the student", "ms", "ratio (least to most)"],
        [["no vocabulary", f"{one:.2f}", ""],
         [f"{PHRASES} phrases", f"{other:.2f}",
          f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"]],
    )  # fmt: skip


@torch.inference_mode()
def _step_seconds(model: LoadedModel, job: Job) -> float:
    memory = model.decoder.remember(model.listen([job], model.context(job)))
    numbers, together = numbered([job])
    rules = model.rules.with_phrases(model.vocabularies.tables(together)) if together else model.rules
    (row,) = rows_of(model, [job], ["en"], [()], numbers)
    row.eot = -1  # the same number of steps, whatever is said
    start = time.perf_counter()
    decode(model.decoder, memory, rules, [row])
    return (time.perf_counter() - start) / row.passes


if __name__ == "__main__":
    raise SystemExit(main())
