"""What a pair can do, measured through the service's own engine and pipeline.

Owns the measurements of Distil-Whisper's tables for any pair (Gandhi et al. 2023): size, speed, word errors on each
set, long form, noise, words invented, speculation, and when to ask the teacher. They are taken part by part, and
`saved_parts.py` keeps those that are done. What comes out is plain data, which `report.py` makes readable. Knows
nothing of training.
"""

from __future__ import annotations

import hashlib
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from distillation.augment import Rng
from distillation.corpus import Clip, Corpus, evenly
from distillation.errors import DistillError
from distillation.files import digest_of_files
from distillation.hearing import ALONE, MARGINS, Escalation, Transcriber, decoded_text, hear, waves_of, with_margins
from distillation.noise import Noises, at_level
from distillation.saved_parts import Parts
from distillation.scores import Comparable, Score, auroc, repeats, score, word_errors
from streaming.confidence import ConfidenceSettings, verdict, without_loop
from streaming.events import Final
from streaming.job import ALWAYS, NEVER, SAMPLE_RATE, Job, Result, Waveform, isolated
from streaming.offline import listen, stop, utterances
from streaming.segment import SegmentSettings
from streaming.session import Session, SessionSettings
from streaming.text import Text
from streaming.vad import Detector
from streaming.whisper.checkpoint import Checkpoint, open_checkpoint
from streaming.whisper.engine import WhisperEngine
from streaming.whisper.weights import count_parameters

THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, math.inf)
SHARES = tuple(round(0.05 * step, 2) for step in range(21))
SNRS = (40, 20, 10, 5, 0, -5)
CHECKED = Escalation(ALWAYS)
BATCHES = (1, 4, 16)
TIMED_BATCHES = (1, 16)
SPLIT = "dev"
LONGEST = 28.0
"""Seconds of a clip, which with margins shall fit into the window of any Whisper."""


class EvaluationError(DistillError):
    """There is nothing to measure on, or not what was asked for."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Attributes:
        clips: of a set, at most.
        sets: the same for some sets, by name.
        noise_seconds: seconds of noise in which invented words are counted.
        curve_clips: clips for each point of the noise curve.
        long_minutes: minutes of joined utterances.
        live_clips: clips that go through detection and session.
        checked_clips: clips whose checked texts are compared with the teacher's.
        rounds: of every timing.
        timed_clips: clips in each round.
    """

    clips: int = 400
    sets: Mapping[str, int] = field(default_factory=dict)
    noise_seconds: float = 1800.0
    curve_clips: int = 48
    long_minutes: float = 8.0
    live_clips: int = 200
    checked_clips: int = 200
    rounds: int = 3
    timed_clips: int = 32


@dataclass(frozen=True, slots=True)
class Pair:
    """A student with its teacher, and the teacher alone.

    Attributes:
        engine: the pair.
        alone: the teacher as its own student, through the same engine.
        student: the student's checkpoint.
        teacher: the teacher's checkpoint.
        language: a code; when None, a multilingual pair detects it.
    """

    engine: WhisperEngine
    alone: WhisperEngine
    student: Checkpoint
    teacher: Checkpoint
    language: str | None = None

    @staticmethod
    def open(student: str, teacher: str, language: str | None = None, device: str = "auto") -> Pair:
        """Load and warm a pair.

        Args:
            student: a checkpoint.
            teacher: a checkpoint.
            language: a code; when None, a multilingual pair detects it.
            device: of the engine.

        Raises:
            CheckpointError: one of them cannot be used, or they do not match.
        """
        first, second = open_checkpoint(student, "student"), open_checkpoint(teacher, "teacher")
        engine = WhisperEngine.load(str(first.directory), str(second.directory), device)
        alone = engine.alone(engine.models[1])
        for each in (engine, alone):
            each.warm()
        return Pair(engine, alone, first, second, language)

    def hear(self, waves: Sequence[Waveform], escalation: Escalation) -> list[Result]:
        return hear(waves, Transcriber(self.engine, escalation, self.language))

    def hear_alone(self, waves: Sequence[Waveform]) -> list[Result]:
        return hear(waves, Transcriber(self.alone, ALONE, self.language))


@dataclass(frozen=True, slots=True)
class Terms:
    """By what a pair is judged.

    Attributes:
        escalation: when the teacher decides.
        domain: beginnings of the names of the sets that the pair is meant for. The cascade is judged on them, or on all
            sets where none is named.
        normaliser: the name of what makes texts comparable, as in `label.normaliser`.
        effort: how much is measured.
    """

    escalation: Escalation
    domain: Sequence[str]
    normaliser: str
    effort: Effort


@dataclass(frozen=True, slots=True)
class Material:
    """What a pair is measured on.

    Attributes:
        corpus: where the clips lie.
        noises: those of the measurements in noise.
        comparable: makes two texts comparable.
        clips: those with words.
        sets: some of the clips, by the name of their set.
        wordless: how many clips are left out because their comparable text is empty.
        text: makes text of tokens.
    """

    corpus: Corpus
    noises: Noises
    comparable: Comparable
    clips: Sequence[Clip]
    sets: Mapping[str, Sequence[Clip]]
    wordless: int
    text: Callable[[Sequence[int]], str]

    def score(self, said: Sequence[str], heard: Sequence[str]) -> Score:
        return score(said, heard, self.comparable)


def choose(corpus: Corpus, noises: Noises, comparable: Comparable, terms: Terms, tokenizer: Tokenizer) -> Material:
    """Choose recordings of the split "dev".

    Args:
        corpus: where they lie.
        noises: those of the measurements in noise.
        comparable: makes two texts comparable.
        terms: how much is measured, and on which sets.
        tokenizer: the pair's own.

    Raises:
        EvaluationError: there are no recordings, or no set of the domain.
    """
    transcribed = [clip for clip in corpus.split(SPLIT) if clip.transcribed]
    clips = [clip for clip in transcribed if comparable(clip.text)]
    if not clips:
        raise EvaluationError(_nothing(len(transcribed), terms))
    sets = sets_of(clips, terms.effort)
    for name in terms.domain:
        if not any(one.startswith(name) for one in sets):
            raise EvaluationError(f"no set begins with {name!r}; --domain takes beginnings of {', '.join(sets)}")
    wordless = len(transcribed) - len(clips)
    return Material(corpus, noises, comparable, clips, sets, wordless, partial(decoded_text, tokenizer))


def sets_of(clips: Sequence[Clip], effort: Effort) -> dict[str, list[Clip]]:
    """Group clips by their set, evenly chosen where a set has more than wanted."""
    sets: dict[str, list[Clip]] = {}
    for clip in clips:
        sets.setdefault(clip.set, []).append(clip)
    return {name: evenly(each, effort.sets.get(name, effort.clips)) for name, each in sets.items()}


def _nothing(wordless: int, terms: Terms) -> str:
    """Why there is nothing to measure on, and what to do."""
    if not wordless:
        return "the corpus has no transcribed recordings to measure on: add some with --dev"
    return (
        f"the corpus has nothing to measure on: {wordless} clips have no words by --normaliser {terms.normaliser} "
        "(choose another)"
    )


@dataclass(frozen=True, slots=True)
class Heard:
    """One clip: what was said, what student and teacher heard, and how sure the student was.

    Attributes:
        set: the clip's.
        text: what was said.
        student: the student's text.
        teacher: the teacher's text.
        confidence: the student's; 1 for a clip that is too short for the teacher to be asked, 0 for a loop.
        student_silenced: whether the service would take the student's text for silence, and not send it.
        teacher_silenced: the same of the teacher's text.
    """

    set: str
    text: str
    student: str
    teacher: str
    confidence: float
    student_silenced: bool = False
    teacher_silenced: bool = False

    def cascade(self, threshold: float) -> str:
        """Return the text when the teacher decides below a confidence of `threshold`.

        A checked text is the teacher's, token for token.
        """
        return self.teacher if self.confidence < threshold else self.student

    def sent(self, threshold: float) -> str:
        """Return the same, but nothing where the service takes the text for silence."""
        silenced = self.teacher_silenced if self.confidence < threshold else self.student_silenced
        return "" if silenced else self.cascade(threshold)


def evaluate(pair: Pair, material: Material, terms: Terms, parts: Parts, teachers: Parts) -> dict[str, Any]:
    """Measure all figures of a pair; without noises, none about words invented.

    Args:
        pair: what is measured.
        material: on what.
        terms: by what it is judged.
        parts: keeps the measurements, and may have some already.
        teachers: the same for measurements of the teacher alone.

    Returns:
        The figures by name, as plain data.
    """
    told = teachers.all(
        {f"teacher heard {name}": partial(hear_set, pair.hear_alone, material, name) for name in material.sets}
    )
    found = parts.all(_measures(pair, material, terms))
    heard = [one for name in material.sets for one in joined(found, told, material, name, terms.escalation.shortest)]
    meant = [one for one in heard if one.set.startswith(tuple(terms.domain))] or heard
    rows = partial(_row, threshold=terms.escalation.below, material=material)
    figures: dict[str, Any] = {
        "student": pair.student.name,
        "teacher": pair.teacher.name,
        "threshold": terms.escalation.below,
        "shortest": terms.escalation.shortest,
        "domain": list(terms.domain),
        "normaliser": terms.normaliser,
        "left_out": {"wordless": material.wordless},
        "numbers": pair.engine.numbers,
        "size": _size(pair),
        "sets": {name: rows([one for one in heard if one.set == name]) for name in material.sets},
        "silenced": _silenced(heard, material, terms.escalation.below),
        "cascade": _cascade(meant, material, {*THRESHOLDS, terms.escalation.below}),
        "live": found["live"],
        "long_form": found["long form"],
        "noise_curve": _named(found, "noise curve "),
        "speed": _named(found, "speed "),
        "speculation": found["speculation"] | _named(found, "speculation "),
    }
    if "noise" in found:
        seconds, words = found["noise"]
        figures["noise"] = {"seconds": seconds, "words": words, "words_an_hour": 3600 * words / seconds}
    return figures


def joined(
    found: Mapping[str, Any], told: Mapping[str, Any], material: Material, name: str, shortest: float
) -> Iterator[Heard]:
    clips, student, teacher = material.sets[name], found[f"heard {name}"], told[f"teacher heard {name}"]
    for clip, mine, theirs in zip(clips, student, teacher, strict=True):
        sure = mine["confidence"] if clip.seconds + MARGINS >= shortest else 1.0
        if mine["loops"]:
            sure = 0.0  # the service has the teacher look at a loop, however sure of it the student is
        yield Heard(name, clip.text, mine["text"], theirs["text"], sure, mine["silenced"], theirs["silenced"])


def _measures(pair: Pair, material: Material, terms: Terms) -> dict[str, Callable[[], Any]]:
    """Everything that takes long, each by the name of its part."""
    effort, noises = terms.effort, material.noises.speechless
    waves = _timed_waves(material, effort)
    curves = {"white": [], "recorded": noises} if noises else {"white": []}
    hear = partial(pair.hear, escalation=ALONE)
    measures: dict[str, Callable[[], Any]] = {
        **{f"heard {name}": partial(hear_set, hear, material, name) for name in material.sets},
        "live": partial(_live, pair, material, terms),
        "long form": partial(_long_form, pair, material, terms),
        **{
            f"noise curve {kind}": partial(_noise_curve, pair, material, effort, sources)
            for kind, sources in curves.items()
        },
        **{f"speed {batch}": partial(_speed, pair, waves, batch, effort) for batch in TIMED_BATCHES},
        "speculation": partial(_speculation, pair, material, waves, effort),
        **{f"speculation {batch}": partial(_speculation_speed, pair, waves, batch, effort) for batch in BATCHES},
    }
    if noises:
        measures["noise"] = partial(
            words_from_noise, pair.engine, noises, terms.escalation, effort.noise_seconds, pair.language
        )
    return measures


def _named(found: Mapping[str, Any], beginning: str) -> dict[str, Any]:
    return {name.removeprefix(beginning): each for name, each in found.items() if name.startswith(beginning)}


def digest(models: Sequence[Checkpoint], pair: Pair, corpus: Path, noises: Noises, terms: Terms) -> str:
    """Return what distinguishes these measurements from those of other models, clips or noises, or on other terms.

    The domain makes no difference: it only chooses from what is measured.

    Args:
        models: the checkpoints whose measurements they are.
        pair: what is measured.
        corpus: its folder.
        noises: those of the measurements in noise.
        terms: by what the pair is judged.
    """
    told = hashlib.sha256()
    engine = pair.engine
    told.update(repr((replace(terms, domain=()), pair.language, engine.device, engine.numbers)).encode())
    files = [file for each in models for file in sorted(each.directory.iterdir())]
    files = [file for file in files if file.suffix in (".json", ".safetensors") and file.name != "report.json"]
    told.update(digest_of_files([*files, corpus / "index.jsonl"]).encode())
    for noise in noises.speechless:
        told.update(np.ascontiguousarray(noise).tobytes())
    return told.hexdigest()


# --- sets ------------------------------------------------------------------------------------------------------------


def hear_set(hear: Callable[[Sequence[Waveform]], list[Result]], material: Material, name: str) -> list[dict[str, Any]]:
    """Return text, confidence, whether it has a loop, and whether it would be silenced, of each clip of a set."""
    heard = []
    for text, results in hear_whole(hear, material, material.sets[name]):
        verdicts = [verdict(each, material.text(each.tokens), ConfidenceSettings()) for each in results]
        heard.append(
            {
                "text": text,
                "confidence": min(each.student_confidence for each in results),
                "loops": "repetition" in verdicts,
                "silenced": set(verdicts) == {"silence"},
            }
        )
    return heard


def hear_whole(
    hear: Callable[[Sequence[Waveform]], list[Result]], material: Material, clips: Sequence[Clip]
) -> list[tuple[str, list[Result]]]:
    """Return the text and the results of each clip.

    The text is without its loops, as the service says it. A clip that no window holds is heard in pieces, cut where
    nobody speaks.
    """
    pieces = [_pieces(material.corpus.waveform(clip)) for clip in clips]
    results = iter(hear([piece for each in pieces for piece in each]))
    heard = [list(islice(results, len(each))) for each in pieces]
    return [(" ".join(material.text(_unlooped(result)) for result in each), each) for each in heard]


def _unlooped(result: Result) -> tuple[int, ...]:
    tokens, _ = without_loop(result, ConfidenceSettings())
    return tokens


def _pieces(wave: Waveform) -> list[Waveform]:
    if wave.size <= LONGEST * SAMPLE_RATE:
        return [with_margins(wave)]
    cut = list(utterances(wave, SegmentSettings(longest=LONGEST)))
    return cut or [with_margins(wave[: int(LONGEST * SAMPLE_RATE)])]


def _silenced(heard: Sequence[Heard], material: Material, threshold: float) -> dict[str, float]:
    """What it costs that texts not worth believing are silenced."""
    said = [one.text for one in heard]
    texts, sent = [one.cascade(threshold) for one in heard], [one.sent(threshold) for one in heard]
    return {
        "clips": sum(before != after for before, after in zip(texts, sent, strict=True)),
        "wer_cost": material.score(said, sent).wer - material.score(said, texts).wer,
    }


def _row(heard: Sequence[Heard], threshold: float, material: Material) -> dict[str, Any]:
    said = [one.text for one in heard]
    if not said:
        return {}
    by = {
        "teacher": [one.teacher for one in heard],
        "student": [one.student for one in heard],
        "cascade": [one.cascade(threshold) for one in heard],
    }
    scores = {name: material.score(said, texts) for name, texts in by.items()}
    return {
        "clips": len(heard),
        "words": scores["teacher"].words,
        "asked": sum(one.confidence < threshold for one in heard) / len(heard),
        **{name: each.wer for name, each in scores.items()},
        **{
            f"{name}_errors": {"sub": each.substituted, "del": each.deleted, "ins": each.inserted}
            for name, each in scores.items()
        },
    }


# --- the cascade -----------------------------------------------------------------------------------------------------


def _cascade(heard: Sequence[Heard], material: Material, thresholds: Iterable[float]) -> dict[str, Any]:
    """Word errors when the teacher decides the least sure share of the texts, and by thresholds."""
    said = [one.text for one in heard]
    student, teacher = (
        material.score(said, texts) for texts in ([one.student for one in heard], [one.teacher for one in heard])
    )
    wrongs = partial(word_errors, comparable=material.comparable)
    errors = [(wrongs(one.text, one.student)[0], wrongs(one.text, one.teacher)[0]) for one in heard]
    sure, wrong = [one.confidence for one in heard], [mine > 0 for mine, _ in errors]
    wers = {str(share): _wer_at(share, sure, errors, student.words) for share in SHARES}
    by_threshold = {str(each): _row(heard, each, material) for each in sorted(thresholds)}
    return {
        "clips": len(heard), "student": student.wer, "teacher": teacher.wer,
        "wer": wers, "auroc_wrong": auroc(sure, wrong),
        "auroc_teacher_better": auroc(sure, [mine > theirs for mine, theirs in errors]), "thresholds": by_threshold,
    }  # fmt: skip


def _wer_at(share: float, values: Sequence[float], errors: Sequence[tuple[int, int]], words: int) -> float:
    order = np.argsort(values, kind="stable")
    asked = set(order[: round(share * len(order))].tolist())
    return sum(pair[index in asked] for index, pair in enumerate(errors)) / max(1, words)


# --- the live path ----------------------------------------------------------------------------------------------------


def _live(pair: Pair, material: Material, terms: Terms) -> dict[str, Any]:
    """Single utterances through detection and session, a second of quiet around each, beside the same heard whole."""
    clips = evenly(max(material.sets.values(), key=len), terms.effort.live_clips)
    said = [clip.text for clip in clips]
    whole = hear_whole(partial(pair.hear, escalation=terms.escalation), material, clips)
    waves = [with_margins(material.corpus.waveform(clip), 1.0, 1.0) for clip in clips]
    bar = tqdm(waves, desc="live", unit="clip", leave=False)
    live = [" ".join(finals(pair.engine, wave, terms.escalation, pair.language)) for wave in bar]
    return {
        "set": clips[0].set, "clips": len(clips),
        "live": material.score(said, live).wer, "offline": material.score(said, [text for text, _ in whole]).wer,
    }  # fmt: skip


# --- long form -------------------------------------------------------------------------------------------------------


def _long_form(pair: Pair, material: Material, terms: Terms) -> dict[str, Any]:
    """Utterances joined to minutes, with pauses and noise between, through detection and session."""
    clips = [clip for each in material.sets.values() for clip in evenly(each, terms.effort.clips)]
    minutes, rng = terms.effort.long_minutes, np.random.default_rng(11)
    scenes = list(_scenes(material.corpus, clips, material.noises, minutes, rng))
    row = partial(_long_row, scenes, language=pair.language, material=material)
    return {
        "minutes": sum(wave.size for _, wave in scenes) / SAMPLE_RATE / 60,
        "student": row(pair.engine, ALONE),
        "teacher": row(pair.alone, ALONE),
        "cascade": row(pair.engine, terms.escalation),
    }


def _scenes(
    corpus: Corpus, clips: Sequence[Clip], noises: Noises, minutes: float, rng: Rng
) -> Iterator[tuple[str, Waveform]]:
    """(text, audio) of about a minute each. The noise is 25 dB below the speech."""
    order = rng.permutation(len(clips)).tolist()
    total = 0
    while order and total < minutes * 60 * SAMPLE_RATE:
        texts, parts = [], [np.zeros(SAMPLE_RATE, np.float32)]
        while order and sum(part.size for part in parts) < 60 * SAMPLE_RATE:
            clip = clips[order.pop()]
            texts.append(clip.text)
            parts += [corpus.waveform(clip), np.zeros(int(rng.uniform(0.3, 2.5) * SAMPLE_RATE), np.float32)]
        wave = at_level(np.concatenate(parts), 0.05)
        if noises.speechless:
            noise = noises.speechless[int(rng.integers(len(noises.speechless)))]
            wave = wave + at_level(np.resize(noise, wave.size), 0.05 * 10 ** (-25 / 20))
        total += wave.size
        yield " ".join(texts), np.asarray(wave, np.float32)


def _long_row(
    scenes: Sequence[tuple[str, Waveform]],
    engine: WhisperEngine,
    escalation: Escalation,
    *,
    language: str | None,
    material: Material,
) -> dict[str, float]:
    bar = tqdm(scenes, desc="long form", unit="scene", leave=False)
    heard = [" ".join(finals(engine, wave, escalation, language)) for _, wave in bar]
    total = material.score([text for text, _ in scenes], heard)
    repeated = sum(
        repeats(said, text, comparable=material.comparable) for (text, _), said in zip(scenes, heard, strict=True)
    )
    return {"wer": total.wer, "insertion_rate": total.insertion_rate, "repeated_5_grams": repeated}


def finals(engine: WhisperEngine, wave: Waveform, escalation: Escalation, language: str | None = None) -> list[str]:
    """Return the texts of a stream's finals.

    Args:
        engine: the engine that hears.
        wave: the stream's audio, 16 kHz mono.
        escalation: when the teacher decides.
        language: a code; when None, a multilingual checkpoint detects it.
    """
    settings = SessionSettings(ask_teacher_below=escalation.below, ask_teacher_from=escalation.shortest)
    text = Text(engine.tokenizer_file, engine.eot)
    session = Session("evaluate", settings, Detector(), text, language=language, partials=False)
    events = [*listen(session, _one(engine), wave), *stop(session, _one(engine))]
    return [event.text for event in events if isinstance(event, Final)]


def _one(engine: WhisperEngine) -> Callable[[Job], Result]:
    return lambda job: isolated(engine.run, [job])[0]


# --- noise -----------------------------------------------------------------------------------------------------------


def words_from_noise(
    engine: WhisperEngine,
    noises: Sequence[Waveform],
    escalation: Escalation,
    seconds: float,
    language: str | None = None,
) -> tuple[float, int]:
    """Count the words that are heard in noise, through detection, session and engine.

    The noises are played end to end, at three levels in turn, over and over.

    Args:
        engine: the engine that hears.
        noises: recordings without speech, 16 kHz mono.
        escalation: when the teacher decides.
        seconds: how long to listen, at least.
        language: a code; when None, a multilingual checkpoint detects it.

    Returns:
        The seconds heard, and the number of words.
    """
    once = np.concatenate([at_level(noise, level) for level in (0.05, 0.15, 0.01) for noise in noises])
    rounds = math.ceil(seconds * SAMPLE_RATE / once.size)
    bar = tqdm(range(rounds), desc="noise", unit="round", leave=False)
    texts = [text for _ in bar for text in finals(engine, once, escalation, language)]
    return rounds * once.size / SAMPLE_RATE, sum(len(text.split()) for text in texts)


def _noise_curve(pair: Pair, material: Material, effort: Effort, sources: Sequence[Waveform]) -> dict[str, Any]:
    """Word errors under noise, by dB."""
    clips = evenly([clip for clip in material.clips if clip.seconds < LONGEST], effort.curve_clips)
    said = [clip.text for clip in clips]
    text = Transcriber(pair.engine).text
    curve = {}
    for snr in tqdm(SNRS, desc="noise curve", unit="level", leave=False):
        rng = np.random.default_rng(snr + 100)
        waves = [_noisy(material.corpus.waveform(clip), snr, sources, rng) for clip in clips]
        results = pair.hear(waves, CHECKED)
        curve[str(snr)] = {
            "student": material.score(said, [text(result.student_tokens) for result in results]).wer,
            "teacher": material.score(said, [text(result.tokens) for result in results]).wer,
        }
    return curve


def _noisy(wave: Waveform, snr_db: float, sources: Sequence[Waveform], rng: Rng) -> Waveform:
    """Also in the margins: noise does not stop for pauses. white where there are no sources."""
    padded = at_level(with_margins(wave), 0.05)
    noise = rng.standard_normal(padded.size).astype(np.float32)
    if sources:
        chosen = sources[int(rng.integers(len(sources)))]
        noise = np.resize(np.roll(chosen, int(rng.integers(chosen.size))), padded.size)
    return np.asarray(padded + at_level(noise, 0.05 * 10 ** (-snr_db / 20)), np.float32)


# --- size and speed --------------------------------------------------------------------------------------------------


def _size(pair: Pair) -> dict[str, Any]:
    return {role: _sizes(checkpoint) for role, checkpoint in (("student", pair.student), ("teacher", pair.teacher))}


def _sizes(checkpoint: Checkpoint) -> dict[str, float]:
    return {
        "parameters": count_parameters(checkpoint),
        "own_parameters": count_parameters(checkpoint, own=True),
        "decoder_layers": checkpoint.dimensions.decoder_layers,
        "encoder_layers": checkpoint.dimensions.encoder_layers,
        "megabytes": sum(_bytes(file) for file in checkpoint.directory.iterdir()) / 1e6,
    }


def _bytes(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _timed_waves(material: Material, effort: Effort) -> list[Waveform]:
    """Of one context, so that nothing but the model's work differs: those of two to four seconds."""
    short = [clip for clip in material.clips if clip.seconds < LONGEST] or list(material.clips)
    clips = [clip for clip in short if 2.0 < clip.seconds < 4.4] or short
    return waves_of(material.corpus, evenly(clips, effort.timed_clips))


def _speed(pair: Pair, waves: Sequence[Waveform], batch: int, effort: Effort) -> dict[str, Any]:
    """Milliseconds a clip of student and teacher; whole, and the decoding beyond the first pass alone."""
    runs = {
        f"{name}{suffix}": _work(engine, waves, batch, NEVER, limit, pair.language)
        for name, engine in (("student", pair.engine), ("teacher", pair.alone))
        for suffix, limit in (("", None), (" first pass", 1))
    }
    times = _interleaved(runs, effort.rounds)
    whole = _ratios(times["teacher"], times["student"])
    decoding = _ratios(
        _minus(times["teacher"], times["teacher first pass"]), _minus(times["student"], times["student first pass"])
    )
    return {name: _summary(values, len(waves)) for name, values in times.items()} | {
        "relative": whole, "relative_decoding": decoding,
    }  # fmt: skip


def _speculation(pair: Pair, material: Material, waves: Sequence[Waveform], effort: Effort) -> dict[str, float]:
    """What the teacher's check keeps of the student's text, and whether it says what the teacher alone says."""
    results = pair.hear(waves, CHECKED)
    drafted = sum(len(result.student_tokens) for result in results)
    clips = evenly([clip for clip in material.clips if clip.seconds < LONGEST], effort.checked_clips)
    every = waves_of(material.corpus, clips)
    checked, alone = pair.hear(every, CHECKED), pair.hear_alone(every)
    return {
        "differs": sum(one.tokens != other.tokens for one, other in zip(checked, alone, strict=True)),
        "clips": len(clips),
        "acceptance": sum(result.teacher_accepted for result in results) / max(1, drafted),
        "tokens_a_teacher_pass": sum(len(result.tokens) + 1 for result in results)
        / max(1, sum(result.teacher_passes for result in results)),
    }


def _speculation_speed(pair: Pair, waves: Sequence[Waveform], batch: int, effort: Effort) -> dict[str, Any]:
    """The teacher's check of the student's text against the teacher alone, through the same engine."""
    runs = {
        "teacher": _work(pair.alone, waves, batch, NEVER, None, pair.language),
        "pair": _work(pair.engine, waves, batch, ALWAYS, None, pair.language),
        "encoder": _work(pair.alone, waves, batch, NEVER, 1, pair.language),
    }
    times = _interleaved(runs, effort.rounds)
    return {name: _summary(values, len(waves)) for name, values in times.items()} | {
        "speed_up": _ratios(times["teacher"], times["pair"]),
        "speed_up_decoding": _ratios(
            _minus(times["teacher"], times["encoder"]), _minus(times["pair"], times["encoder"])
        ),
    }


def _work(
    engine: WhisperEngine,
    waves: Sequence[Waveform],
    batch: int,
    threshold: float,
    limit: int | None,
    language: str | None,
) -> Callable[[], object]:
    jobs = [Job(wave, language=language, ask_teacher_below=threshold, max_tokens=limit) for wave in waves]
    return lambda: [engine.run(jobs[start : start + batch]) for start in range(0, len(jobs), batch)]


def _interleaved(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every run in every round: what disturbs the machine disturbs all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in tqdm(range(rounds), desc="speed", unit="round", leave=False):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return times


def _minus(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [max(1e-9, whole - part) for whole, part in zip(one, other, strict=True)]


def _ratios(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    ratios = [one / other for one, other in zip(slow, fast, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def _summary(values: Sequence[float], clips: int) -> dict[str, float]:
    milliseconds = [1000 * value / clips for value in values]
    return {"ms": statistics.median(milliseconds), "spread_ms": max(milliseconds) - min(milliseconds)}
