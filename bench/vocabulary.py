"""Names that a model does not know, with and without a vocabulary: how many are heard or made up, and what it costs.

Neural voices speak home commands with rare names. The pair hears them without and with the list of names, the student
alone and as the service asks its teacher. On recordings in which nobody says one of a hundred other names, a list of
these shows what it spoils: words that become names, and word errors. At last steps of the decoder are timed without
phrases, with a hundred and with a thousand, for one text and for as many as have vocabularies of their own in a pass.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from bench.player import SENTENCES, RecordingError, said_in
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
from streaming.whisper.biasing import TOGETHER, numbered
from streaming.whisper.decode import advance
from streaming.whisper.engine import WhisperEngine
from streaming.whisper.hearing import LoadedModel, rows_of
from streaming.whisper.model import KVCache, Memory

NAMES = (
    "Thibault Lumen Kallax Xanthe Saoirse Ottoline Zephyrine Quillon Brannagh Eluned Ffion Tamsin Perpetua Isolde "
    "Leocadia Marisol Anneliese Bryndis Cosima Dagmar Evander Fenella Gwendal Hyacinth Ignatius Jocasta Kestrel "
    "Lysander Mirabel Nerys Oswin Philippa Quentin Rosalind Sidonie Theodora Ulric Verity Yevgeny Zenobia Aoife "
    "Balthazar Caspian Delphine Eleri Florian Giselle Hadrian Ingrid Jorunn Katarzyna Leander Morwenna Niamh Odile "
    "Poäng Malm Hemnes Tradfri Symfonisk Fyrtur Rodret Vallhorn Parasoll"
).split()  # fmt: skip
OTHER_NAMES = (
    "Adaeze Agnetha Alasdair Amarante Anouk Aurelio Babajide Barnaby Benedikta Birgit Blanka Bohumil Bronagh Caoimhe "
    "Casimir Ciaran Clodagh Dagny Dashiell Deirdre Dimitra Dominika Eilidh Emeka Enrique Fabrizio Farrukh Feodora "
    "Fionnuala Gaetano Gintaras Gunnhild Gwyneth Hadiya Heikki Henrike Hiroko Ilaria Imogen Ingvild Jadwiga Jaromir "
    "Kasimira Keziah Kwabena Laszlo Lieselotte Ludmila Maarten Malgorzata Mehmet Milena Nadezhda Nkechi Octavian "
    "Oksana Ottavio Paloma Pavlina Priyanka Radoslav Ragnhild Sanjay Severin Shreya Sigrid Snorri Svetlana Tadeusz "
    "Takeshi Tiberiu Tomasz Torvald Urszula Vasile Venkat Viktoria Waleria Wojciech Xiomara Yannick Yasmin Yolanda "
    "Zbigniew Zuzana Aqara Dirigera Fibaro Govee Lutron Nanoleaf Roborock Shelly Somfy Sonos Tuya Velux Zigbee Pergola "
    "Orangery"
).split()  # fmt: skip
"""A hundred that nobody says in LibriSpeech test-clean, nor in the benchmarks' own recording."""
SENTENCE = (
    "turn on the {} lamp", "turn off the {} speaker", "call {} please", "is {} at home", "send a message to {}",
    "set the {} light to forty percent", "what is the temperature in {}'s room", "add {} to the meeting",
    "open the blinds in {}'s room", "remind me to write to {} tomorrow", "play music on the {} speaker",
    "tell {} that dinner is ready",
)  # fmt: skip
PHRASES = (0, 100, 1000)
"""In a vocabulary whose cost is measured; a home has about a hundred."""
STEPS = 40
"""Of a text whose steps are timed."""
PARTS = ("names", "foreign", "step")


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
    parser.add_argument("--rounds", type=count, default=10, help="texts that are timed (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured (default: all)")
    options = parser.parse_args(arguments)
    engine = WhisperEngine.load(options.student, options.teacher, options.device)
    print(f"{circumstances()}\n{options.student}, {options.teacher}, {engine.device}, {engine.numbers}\n")
    with TemporaryDirectory() as scratch:
        folder = options.work or Path(scratch)
        if "names" in options.parts:
            named = spoken(folder / "names", options.utterances)
            print(heard_names(engine, named, options.weight), end="\n\n")
        if "foreign" in options.parts:
            foreign = recorded(folder / "foreign", options.foreign, options.clips) if options.foreign else sentences()
            print(spoilt(engine, foreign, options.weight), end="\n\n")
    if "step" in options.parts:
        print(cost(engine.models[0], options.rounds))
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
    """Read recordings with texts in which nobody says one of the other names.

    Raises:
        RecordingError: somebody does.
    """
    record(folder, source, "dev")
    gather(folder)
    clips = _read(folder, "dev", count)
    require_unsaid([text for _, text in clips], str(source))
    return clips


def sentences() -> Clips:
    """The benchmarks' own utterances, without their texts."""
    require_unsaid(said_in(SENTENCES), SENTENCES.name)
    return [(wave, "") for wave in utterances(read_mono(SENTENCES))]


def require_unsaid(texts: Sequence[str], where: str) -> None:
    """Require that nobody says one of the other names.

    Raises:
        RecordingError: somebody does.
    """
    said = sorted(set().union(*(names_in(comparable()(text), OTHER_NAMES) for text in texts)))
    if said:
        raise RecordingError(
            f"{where}: somebody says {', '.join(said)}, so not every such name is made up: "
            "give recordings without these, or other names in bench/vocabulary.py"
        )


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


def names_in(text: str, names: Sequence[str]) -> set[str]:
    words = text.removesuffix(" s").split()
    return {name for name in map(comparable(), names) if name in words}


def of_names(names: Sequence[str], weight: float) -> Vocabulary:
    return Vocabulary(tuple(Phrase(name, weight) for name in names))


def heard_names(engine: WhisperEngine, clips: Clips, weight: float) -> str:
    """Return the table of the names that were heard."""
    rows = []
    vocabulary = of_names(NAMES, weight)
    said = [names_in(comparable()(text), NAMES) for _, text in clips]
    for who, ask in (("student", False), ("cascade", True)):
        for how, phrases in (("without", NO_VOCABULARY), ("with", vocabulary)):
            found = texts(engine, clips, phrases, ask)
            right = sum(len(names & names_in(text, NAMES)) for names, text in zip(said, found, strict=True))
            wrong = sum(len(names_in(text, NAMES) - names) for names, text in zip(said, found, strict=True))
            errors = score([text for _, text in clips], found, comparable())
            rows.append([
                who, how, str(len(clips)), f"{right / sum(map(len, said)):.1%}", str(wrong), f"{errors.wer:.1%}"
            ])  # fmt: skip
    return table(["who", "vocabulary", "utterances", "names heard", "other names", "WER"], rows)


def spoilt(engine: WhisperEngine, clips: Clips, weight: float) -> str:
    """Return the table of what a list of other names does to recordings without them."""
    rows = []
    vocabulary = of_names(OTHER_NAMES, weight)
    for who, ask in (("student", False), ("cascade", True)):
        for how, phrases in (("without", NO_VOCABULARY), ("with", vocabulary)):
            found = texts(engine, clips, phrases, ask)
            wrong = sum(len(names_in(text, OTHER_NAMES)) for text in found)
            known = any(said for _, said in clips)
            wer = f"{score([said for _, said in clips], found, comparable()).wer:.2%}" if known else "no texts"
            rows.append([who, how, str(len(clips)), str(wrong), wer])
    return table(["who", "vocabulary", "foreign utterances", "names made up", "WER"], rows)


def cost(model: LoadedModel, rounds: int) -> str:
    """Return the table of a step's time with vocabularies and without, on one thread.

    Args:
        model: whose decoder it is.
        rounds: texts that are timed.
    """
    rows = []
    with one_thread():
        for texts in (1, TOGETHER):
            times = step_times(model, texts, rounds)
            for phrases, spent in zip(PHRASES, times, strict=True):
                ratios = [mine / none for mine, none in zip(spent, times[0], strict=True)]
                low, middle, high = np.percentile(ratios, [25, 50, 75])
                ratio = f"{middle:.3f} ({low:.3f} to {high:.3f})" if phrases else ""
                rows.append([str(texts), str(phrases), f"{statistics.median(spent) * 1000:.2f}", ratio])
    return table(["texts in a pass", "phrases of each", "ms a step", "ratio (half of all)"], rows)


@torch.inference_mode()
def step_times(model: LoadedModel, texts: int, rounds: int) -> list[list[float]]:
    """Return the seconds of steps with each number of `PHRASES`.

    They take turns step by step, and each goes first as often: whatever else slows the machine down, it slows all.
    """
    noise = np.random.default_rng(0).normal(0.0, 0.1, (texts, 3 * SAMPLE_RATE)).astype(np.float32)
    jobs = [
        [Job(wave, vocabulary=_invented(phrases, number), max_tokens=STEPS) for number, wave in enumerate(noise)]
        for phrases in PHRASES
    ]
    memory = model.decoder.remember(model.listen(jobs[0], model.context(jobs[0][0])))
    clock = _clock(memory.device)
    times: list[list[float]] = [[] for _ in PHRASES]
    for _ in range(rounds):
        decodings = [Decoding(model, memory, each) for each in jobs]
        for decoding in decodings:
            decoding.step()  # all of the prompt, and what is slow the first time
        for turn in range(1, STEPS):
            for place in range(turn, turn + len(PHRASES)):
                start = clock()
                decodings[place % len(PHRASES)].step()
                times[place % len(PHRASES)].append(clock() - start)
    return times


class Decoding:
    """Texts in progress, a step at a time."""

    def __init__(self, model: LoadedModel, memory: Memory, jobs: Sequence[Job]) -> None:
        self._decoder, self._cache = model.decoder, KVCache(memory)
        numbers, together = numbered(jobs)
        self._rules = model.rules.with_phrases(model.vocabularies.tables(together)) if together else model.rules
        self._rows = rows_of(model, jobs, ["en"] * len(jobs), [()] * len(jobs), numbers)
        for row in self._rows:
            row.eot = -1  # the same number of steps, whatever is said

    def step(self) -> None:
        advance(self._decoder, self._cache, self._rules, self._rows)


def _invented(phrases: int, seed: int) -> Vocabulary:
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return Vocabulary(
        tuple(Phrase("".join(rng.choices(letters, k=rng.randint(4, 9))).capitalize()) for _ in range(phrases))
    )


def _clock(device: torch.device) -> Callable[[], float]:
    """The time that a step is measured in: on a processor this thread's own, which others do not take."""
    return time.thread_time if device.type == "cpu" else time.perf_counter


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    raise SystemExit(main())
