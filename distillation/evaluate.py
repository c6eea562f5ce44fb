"""What a pair can do, measured through the service's own engine and pipeline.

Owns the measurements of Distil-Whisper's tables for any pair (Gandhi et al. 2023): size, speed, word errors on each
set, long form, noise, words invented, speculation, and whom to ask when. What comes out is plain data; `report.py`
makes it readable. Knows nothing of training.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from distillation.augment import Rng
from distillation.corpus import Clip, Corpus
from distillation.hearing import Transcriber, hear, waves_of, with_margins
from distillation.model import layout_of, load_model
from distillation.noise import Noises, at_level
from distillation.scores import auroc, repeats, score, word_errors
from distillation.signals import SIGNALS, signals
from streaming.confidence import ConfidenceSettings, verdict
from streaming.events import Final
from streaming.job import ALWAYS, NEVER, SAMPLE_RATE, Job, Result, Waveform, isolated
from streaming.offline import listen, stop
from streaming.session import Session, SessionSettings
from streaming.text import Text
from streaming.vad import Detector
from streaming.whisper.checkpoint import Checkpoint, open_checkpoint, read_weights
from streaming.whisper.engine import Engine

THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, math.inf)
SHARES = tuple(round(0.05 * step, 2) for step in range(21))
SNRS = (40, 30, 20, 15, 10, 5, 0, -5)
BATCHES = (1, 4, 16)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    clips: of a set at most. noise_seconds: listened to for invented words. curve_clips: of each point of the noise
    curve. long_minutes: of joined utterances, for each kind. rounds: of every timing. timed_clips: in each.
    """

    clips: int = 400
    noise_seconds: float = 3600.0
    curve_clips: int = 96
    long_minutes: float = 8.0
    rounds: int = 5
    timed_clips: int = 48


@dataclass(frozen=True, slots=True)
class Pair:
    """A student with its teacher, and the teacher alone: as its own student, through the same engine."""

    engine: Engine
    alone: Engine
    student: Checkpoint
    teacher: Checkpoint
    language: str | None = None

    @staticmethod
    def open(student: str, teacher: str, language: str | None = None) -> Pair:
        """
        Raises:
            CheckpointError: one of them cannot be used, or they do not match.
        """
        first, second = open_checkpoint(student, "student"), open_checkpoint(teacher, "teacher")
        engine = Engine.load(str(first.directory), str(second.directory))
        alone = Engine.load(str(second.directory), None, dtype=engine.dtype)
        for each in (engine, alone):
            each.warm()
        return Pair(engine, alone, first, second, language)

    def hear(self, waves: Sequence[Waveform], threshold: float) -> list[Result]:
        return hear(waves, Transcriber(self.engine, threshold, self.language))

    def hear_alone(self, waves: Sequence[Waveform]) -> list[Result]:
        return hear(waves, Transcriber(self.alone, NEVER, self.language))


@dataclass(frozen=True, slots=True)
class Heard:
    """One clip: what was said, what each of the pair heard, how sure the student was, by each signal."""

    set: str
    text: str
    student: str
    teacher: str
    confidence: float
    signals: Mapping[str, float]

    def cascade(self, threshold: float) -> str:
        """What comes out when the teacher decides below `threshold`: a checked text is the teacher's, to the token."""
        return self.teacher if self.confidence < threshold else self.student


def evaluate(
    pair: Pair, corpus: Corpus, noises: Noises, threshold: float, domain: Sequence[str], effort: Effort
) -> dict[str, Any]:
    """All figures of a pair. Without noises nothing is said about words invented from noise.

    domain: beginnings of the names of those sets that the pair is meant for: the cascade is judged on them. All sets,
    where none is named.
    """
    heard, differing, silenced = _hear_sets(pair, corpus, effort)
    names = list(dict.fromkeys(one.set for one in heard))
    meant = [one for one in heard if one.set.startswith(tuple(domain))] or heard
    figures: dict[str, Any] = {
        "student": pair.student.name,
        "teacher": pair.teacher.name,
        "threshold": threshold,
        "domain": list(domain),
        "size": _size(pair),
        "sets": {name: _row([one for one in heard if one.set == name], threshold) for name in names},
        "held_out": _row([one for one in heard if one.set.startswith("held_out/")], threshold),
        "silenced": silenced,
        "cascade": _cascade(meant),
        "long_form": _long_form(pair, corpus, noises, threshold, effort),
        "noise_curve": _noise_curve(pair, corpus, noises, effort),
        "speed": _speed(pair, corpus, effort),
        "speculation": {"differs": differing, "clips": len(heard)} | _speculation(pair, corpus, effort),
    }
    if noises.speechless:
        seconds, words = words_from_noise(pair.engine, noises.speechless, threshold, effort.noise_seconds)
        figures["noise"] = {"seconds": seconds, "words": words, "words_an_hour": 3600 * words / seconds}
    return figures


# --- sets ------------------------------------------------------------------------------------------------------------


def sets_of(corpus: Corpus, at_most: int) -> dict[str, list[Clip]]:
    """Held-out voices by program, and each set of the split "dev"; evenly chosen where there are more clips."""
    sets: dict[str, list[Clip]] = {}
    for split in ("held_out", "dev"):
        for clip in corpus.split(split):
            if clip.seconds < 28 and clip.transcribed:
                sets.setdefault(f"{split}/{clip.set}", []).append(clip)
    return {name: clips[:: math.ceil(len(clips) / at_most)] for name, clips in sets.items()}


def _hear_sets(pair: Pair, corpus: Corpus, effort: Effort) -> tuple[list[Heard], int, dict[str, float]]:
    """Everything heard; how many clips the pair's check and the teacher alone hear differently; and what it costs that
    texts not worth believing are silenced.
    """
    model, layout = load_model(pair.student).eval(), layout_of(pair.student, pair.language)
    text = Transcriber(pair.engine).text
    heard: list[Heard] = []
    differing = 0
    kept: list[str] = []
    for name, clips in sets_of(corpus, effort.clips).items():
        waves = waves_of(corpus, clips)
        checked = pair.hear(waves, ALWAYS)
        differing += sum(one.tokens != other.tokens for one, other in zip(pair.hear_alone(waves), checked, strict=True))
        for clip, wave, result in zip(clips, waves, checked, strict=True):
            sure = signals(model, layout, wave, result.student_tokens)
            student, teacher = text(result.student_tokens), text(result.tokens)
            heard.append(Heard(name, clip.text, student, teacher, result.student_confidence, sure))
            kept.append("" if verdict(result, teacher, ConfidenceSettings()) == "silence" else teacher)
    said = [one.text for one in heard]
    silenced = {
        "clips": sum(bool(one.teacher) and not text for one, text in zip(heard, kept, strict=True)),
        "wer_cost": score(said, kept).wer - score(said, [one.teacher for one in heard]).wer if heard else 0.0,
    }
    return heard, differing, silenced


def _row(heard: Sequence[Heard], threshold: float) -> dict[str, Any]:
    said = [one.text for one in heard]
    if not said:
        return {}
    by = {
        "teacher": [one.teacher for one in heard],
        "student": [one.student for one in heard],
        "cascade": [one.cascade(threshold) for one in heard],
    }
    scores = {name: score(said, texts) for name, texts in by.items()}
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


def _cascade(heard: Sequence[Heard]) -> dict[str, Any]:
    """Word errors when the teacher decides the least sure share of the texts, by each signal, and by thresholds."""
    said = [one.text for one in heard]
    student, teacher = score(said, [one.student for one in heard]), score(said, [one.teacher for one in heard])
    errors = [(word_errors(one.text, one.student)[0], word_errors(one.text, one.teacher)[0]) for one in heard]
    worse, wrong = [mine > theirs for mine, theirs in errors], [mine > 0 for mine, _ in errors]
    by_signal = {}
    for name in SIGNALS:
        values = [one.signals[name] for one in heard]
        wers = [_wer_at(share, values, errors, student.words) for share in SHARES]
        by_signal[name] = {
            "wer": dict(zip(map(str, SHARES), wers, strict=True)),
            "auroc_wrong": auroc(values, wrong),
            "auroc_teacher_better": auroc(values, worse),
            "recovered_at_30": _recovered(student.wer, teacher.wer, wers[SHARES.index(0.3)]),
        }
    by_threshold = {str(each): _row(heard, each) for each in THRESHOLDS}
    return {
        "clips": len(heard), "student": student.wer, "teacher": teacher.wer,
        "signals": by_signal, "thresholds": by_threshold,
    }  # fmt: skip


def _wer_at(share: float, values: Sequence[float], errors: Sequence[tuple[int, int]], words: int) -> float:
    order = np.argsort(values, kind="stable")
    asked = set(order[: round(share * len(order))].tolist())
    return sum(pair[index in asked] for index, pair in enumerate(errors)) / max(1, words)


def _recovered(student: float, teacher: float, cascade: float) -> float:
    """The share of the gap between student and teacher that the cascade closes; nan where there is no gap."""
    return (student - cascade) / (student - teacher) if student > teacher else float("nan")


# --- long form -------------------------------------------------------------------------------------------------------


def _long_form(pair: Pair, corpus: Corpus, noises: Noises, threshold: float, effort: Effort) -> dict[str, Any]:
    """Utterances joined to minutes, with pauses and noise between, through detection and session."""
    figures = {}
    for split in ("held_out", "dev"):
        clips = [
            clip for name, each in sets_of(corpus, effort.clips).items() if name.startswith(split) for clip in each
        ]
        scenes = list(_scenes(corpus, clips, noises, effort.long_minutes, np.random.default_rng(11)))
        if scenes:
            figures[split] = {
                "minutes": sum(wave.size for _, wave in scenes) / SAMPLE_RATE / 60,
                "student": _long_row(scenes, pair.engine, NEVER),
                "teacher": _long_row(scenes, pair.alone, NEVER),
                "cascade": _long_row(scenes, pair.engine, threshold),
            }
    return figures


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


def _long_row(scenes: Sequence[tuple[str, Waveform]], engine: Engine, threshold: float) -> dict[str, float]:
    heard = [" ".join(finals(engine, wave, threshold)) for _, wave in tqdm(scenes, desc="long form", leave=False)]
    total = score([text for text, _ in scenes], heard)
    repeated = sum(repeats(said, text) for (text, _), said in zip(scenes, heard, strict=True))
    return {"wer": total.wer, "insertion_rate": total.insertion_rate, "repeated_5_grams": repeated}


def finals(engine: Engine, wave: Waveform, threshold: float) -> list[str]:
    """The texts of a stream's finals."""
    session = Session(
        "evaluate", SessionSettings(ask_teacher_below=threshold), Detector(), Text(engine.tokenizer_file, engine.eot),
        partials=False,
    )  # fmt: skip
    events = [*listen(session, _one(engine), wave), *stop(session, _one(engine))]
    return [event.text for event in events if isinstance(event, Final)]


def _one(engine: Engine) -> Callable[[Job], Result]:
    return lambda job: isolated(engine.run, [job])[0]


# --- noise -----------------------------------------------------------------------------------------------------------


def words_from_noise(engine: Engine, noises: Sequence[Waveform], threshold: float, seconds: float) -> tuple[float, int]:
    """(seconds heard, words invented): noises end to end, at three levels in turn, over and over, through detection,
    session and engine.
    """
    once = np.concatenate([at_level(noise, level) for level in (0.05, 0.15, 0.01) for noise in noises])
    rounds = math.ceil(seconds * SAMPLE_RATE / once.size)
    texts = [text for _ in tqdm(range(rounds), desc="noise", leave=False) for text in finals(engine, once, threshold)]
    return rounds * once.size / SAMPLE_RATE, sum(len(text.split()) for text in texts)


def _noise_curve(pair: Pair, corpus: Corpus, noises: Noises, effort: Effort) -> dict[str, Any]:
    """Word errors of held-out voices (of dev recordings, where there are none) under noise, by kind and dB."""
    clips = corpus.split("held_out") or [clip for clip in corpus.split("dev") if clip.transcribed]
    clips = clips[:: max(1, len(clips) // effort.curve_clips)][: effort.curve_clips]
    said = [clip.text for clip in clips]
    text = Transcriber(pair.engine).text
    curves: dict[str, Any] = {}
    for kind, sources in (("white", []), ("recorded", noises.speechless)):
        if not clips or (kind == "recorded" and not sources):
            continue
        curves[kind] = {}
        for snr in SNRS:
            rng = np.random.default_rng(snr + 100)
            waves = [_noisy(corpus.waveform(clip), snr, sources, rng) for clip in clips]
            results = pair.hear(waves, ALWAYS)
            curves[kind][str(snr)] = {
                "student": score(said, [text(result.student_tokens) for result in results]).wer,
                "teacher": score(said, [text(result.tokens) for result in results]).wer,
            }
    return curves


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
    weights = read_weights(checkpoint, torch.float32)
    return {
        "parameters": sum(weight.numel() for weight in weights.values()),
        "decoder_layers": checkpoint.dimensions.decoder_layers,
        "encoder_layers": checkpoint.dimensions.encoder_layers,
        "megabytes": sum(_bytes(file) for file in checkpoint.directory.iterdir()) / 1e6,
    }


def _bytes(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _timed_waves(corpus: Corpus, effort: Effort) -> list[Waveform]:
    """Of one context, so that nothing but the model's work differs: those of two to four seconds."""
    clips = corpus.split("held_out") or corpus.split("dev") or corpus.clips
    clips = [clip for clip in clips if 2.0 < clip.seconds < 4.4] or list(clips)
    return waves_of(corpus, clips[: effort.timed_clips])


def _speed(pair: Pair, corpus: Corpus, effort: Effort) -> dict[str, Any]:
    """Milliseconds a clip of student and teacher; whole, and the decoding beyond the first pass alone."""
    waves = _timed_waves(corpus, effort)
    figures: dict[str, Any] = {}
    for batch in (1, 16):
        runs = {
            f"{name}{suffix}": _work(engine, waves, batch, NEVER, limit)
            for name, engine in (("student", pair.engine), ("teacher", pair.alone))
            for suffix, limit in (("", None), (" first pass", 1))
        }
        times = _interleaved(runs, effort.rounds)
        whole = _ratios(times["teacher"], times["student"])
        decoding = _ratios(
            _minus(times["teacher"], times["teacher first pass"]), _minus(times["student"], times["student first pass"])
        )
        figures[str(batch)] = {name: _summary(values, len(waves)) for name, values in times.items()} | {
            "relative": whole, "relative_decoding": decoding,
        }  # fmt: skip
    return figures


def _speculation(pair: Pair, corpus: Corpus, effort: Effort) -> dict[str, Any]:
    """The teacher's check of the student's text against the teacher alone, through the same engine."""
    waves = _timed_waves(corpus, effort)
    results = pair.hear(waves, ALWAYS)
    drafted = sum(len(result.student_tokens) for result in results)
    figures: dict[str, Any] = {
        "acceptance": sum(result.teacher_accepted for result in results) / max(1, drafted),
        "tokens_a_teacher_pass": sum(len(result.tokens) + 1 for result in results)
        / max(1, sum(result.teacher_passes for result in results)),
    }
    for batch in BATCHES:
        runs = {
            "teacher": _work(pair.alone, waves, batch, NEVER, None),
            "pair": _work(pair.engine, waves, batch, ALWAYS, None),
            "encoder": _work(pair.alone, waves, batch, NEVER, 1),
        }
        times = _interleaved(runs, effort.rounds)
        figures[str(batch)] = {name: _summary(values, len(waves)) for name, values in times.items()} | {
            "speed_up": _ratios(times["teacher"], times["pair"]),
            "speed_up_decoding": _ratios(
                _minus(times["teacher"], times["encoder"]), _minus(times["pair"], times["encoder"])
            ),
        }
    return figures


def _work(
    engine: Engine, waves: Sequence[Waveform], batch: int, threshold: float, limit: int | None
) -> Callable[[], object]:
    jobs = [Job(wave, ask_teacher_below=threshold, max_tokens=limit) for wave in waves]
    return lambda: [engine.run(jobs[start : start + batch]) for start in range(0, len(jobs), batch)]


def _interleaved(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every run in every round: what disturbs the machine disturbs all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
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
