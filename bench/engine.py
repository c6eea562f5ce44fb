"""How fast each part of the engine is, by batch and context, beside the limit of the device that it runs on.

Prints two tables: the parts (encoder, cross-attention memory, one student step, one teacher step, a check of a draft),
each with its ratio to the roofline measured in the same run; and whole jobs, with and without speculation.
`--random large-v3` measures a pair of a published size with random weights.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from bench.player import SENTENCES
from bench.random_models import SHAPES, random_pair
from bench.roofline import Cost, Device, checking, encoding, probe, remembering, timed
from bench.table import circumstances, table
from distillation import arguments
from streaming.job import NEVER, SAMPLE_RATE, Job, Waveform
from streaming.offline import utterances
from streaming.whisper.checkpoint import POSITIONS_PER_SECOND
from streaming.whisper.decode import Window, verify
from streaming.whisper.engine import WhisperEngine
from streaming.whisper.half_precision import is_halved
from streaming.whisper.hearing import LoadedModel, one_encoder
from streaming.whisper.model import KVCache

DTYPES = ("auto", "mixed", "float32", "bfloat16", "float16")
CACHED = 16
"""Tokens that a measured step finds in the cache."""
TOKENS = 24
"""Of a text by random weights, which ends nowhere else."""

Part = tuple[str, Callable[[], object], Cost, torch.dtype]


def parts(model: LoadedModel, rows: int, seconds: float, widths: Sequence[int], *, encodes: bool) -> Iterator[Part]:
    """Prepare the parts of one model at one batch and context.

    Args:
        model: the student or the teacher.
        rows: jobs in a batch.
        seconds: the context.
        widths: positions of a decoder pass.
        encodes: whether its encoder is measured, which it may share.

    Yields:
        Name, what to time, what it costs at least, and in which numbers.
    """
    sizes, device = model.checkpoint.dimensions, model.decoder.embed_tokens.weight.device
    heard, says = model.encoder.conv1.weight.dtype, model.decoder.embed_tokens.weight.dtype
    positions = round(seconds * POSITIONS_PER_SECOND)
    jobs = [Job(_noise(seconds, row)) for row in range(rows)]
    states = model.listen(jobs, seconds)
    if encodes:
        mel = model.mel([job.audio for job in jobs], seconds).to(heard)
        name = f"{model.role}: encoder"
        yield name, partial(model.encoder, mel), encoding(sizes, rows, positions, heard.itemsize), heard
    memory = model.decoder.remember(states)
    costs = remembering(sizes, rows, positions, says.itemsize)
    yield f"{model.role}: memory of the audio", partial(model.decoder.remember, states), costs, says
    cache = KVCache(memory)
    cache.reserve(CACHED + max(widths) + 1)
    scores = partial(model.rules.text, opens=None)
    for width in widths:
        tokens = torch.zeros(rows, width, dtype=torch.long, device=device)
        window = Window(tokens, tokens + torch.arange(CACHED, CACHED + width, device=device), tokens, None)
        name = f"{model.role}: " + ("a step" if width == 1 else f"a check of {width - 1} tokens")
        check = partial(verify, model.decoder, cache, scores, window)
        weights = torch.float16.itemsize if is_halved(model.decoder) else says.itemsize
        yield name, check, checking(sizes, rows, width, positions, CACHED, says.itemsize, weights), says


@torch.inference_mode()
def measure_parts(engine: WhisperEngine, device: Device, batches: Sequence[int], contexts: Sequence[float]) -> str:
    shared = len(engine.models) == 1 or one_encoder(*engine.models)
    lines: list[list[object]] = []
    for model in engine.models:
        student = model.role == "student"
        widths = (1,) if student else (1, 9, 17, 33)
        for seconds in _heard_by(model, contexts):
            for rows in tqdm(batches, desc=f"{model.role}, {seconds:g} s", leave=False):
                for name, work, cost, dtype in parts(model, rows, seconds, widths, encodes=student or not shared):
                    middle, spread = _median_and_spread(timed(work, engine.device))
                    best = device.seconds(cost, dtype)
                    lines.append([name, rows, f"{seconds:g}", f"{1e3 * middle:.2f} ({1e3 * spread:.2f})",
                                  f"{1e3 * best:.3f}", f"{middle / best:.1f}"])  # fmt: skip
    order = {name: place for place, name in enumerate(dict.fromkeys(str(line[0]) for line in lines))}
    lines.sort(key=lambda line: order[str(line[0])])
    return table(["part", "batch", "context s", "ms (spread)", "roofline ms", "times the roofline"], lines)


def _heard_by(model: LoadedModel, contexts: Sequence[float]) -> list[float]:
    """The windows in which it hears audio of these lengths: each model knows its own."""
    own = model.checkpoint.contexts
    return list(dict.fromkeys(next((each for each in own if each >= seconds), own[-1]) for seconds in contexts))


def measure_jobs(engine: WhisperEngine, batches: Sequence[int], waves: Sequence[Waveform], limit: int | None) -> str:
    """Measure whole jobs: the student, the teacher alone, and the teacher with drafts of known quality."""
    student, teacher = (engine.alone(model) for model in engine.models)
    lines: list[list[object]] = []
    for rows in tqdm(batches, desc="jobs", leave=False):
        jobs = [Job(waves[row % len(waves)], max_tokens=limit, ask_teacher_below=NEVER) for row in range(rows)]
        says, knows = student.run(jobs), teacher.run(jobs)
        alone = timed(partial(teacher.run, jobs), engine.device)
        drafting = statistics.median(timed(partial(student.run, jobs), engine.device))
        hearing = statistics.median(timed(partial(_listen, teacher, jobs), engine.device))
        drafts = {
            "student's own": [result.tokens for result in says],
            "all right": [result.tokens for result in knows],
            "every 8th wrong": [_spoilt(result.tokens, 8) for result in knows],
        }
        lines.append([rows, "none: the teacher alone", _each(alone, rows), "", "", ""])
        for name, tokens in drafts.items():
            asked = [Job(job.audio, draft=draft, max_tokens=limit, ask_teacher_below=NEVER)
                     for job, draft in zip(jobs, tokens, strict=True)]  # fmt: skip
            checked = teacher.run(asked)
            if any(one.tokens != other.tokens for one, other in zip(checked, knows, strict=True)):
                raise RuntimeError(f"with the draft {name!r} the teacher said something else")
            taken = timed(partial(teacher.run, asked), engine.device)
            whole = drafting + statistics.median(taken)
            if one_encoder(*engine.models):  # it runs once for both, and is in each of the two measurements
                whole -= hearing
            kept = sum(result.accepted for result in checked) / max(1, sum(len(result.tokens) for result in knows))
            passes = sum(result.passes for result in checked) / rows
            ratio = statistics.median(alone) / whole
            lines.append([rows, name, f"{1e3 * whole / rows:.1f}", f"{kept:.0%}", f"{passes:.1f}", f"{ratio:.2f}x"])
    header = ["batch", "draft", "ms a job, drafting included", "kept at once", "teacher passes", "speed-up"]
    return table(header, lines)


@torch.inference_mode()
def _listen(engine: WhisperEngine, jobs: Sequence[Job]) -> None:
    (model,) = engine.models
    model.listen(jobs, max(model.context(job) for job in jobs))


def _spoilt(tokens: Sequence[int], every: int) -> tuple[int, ...]:
    """Another token in place of every so many."""
    return tuple(token ^ 1 if place % every == every - 1 else token for place, token in enumerate(tokens))


def _each(taken: Sequence[float], rows: int) -> str:
    middle, spread = _median_and_spread(taken)
    return f"{1e3 * middle / rows:.1f} ({1e3 * spread / rows:.1f})"


def _median_and_spread(taken: Sequence[float]) -> tuple[float, float]:
    low, middle, high = np.percentile(taken, [10, 50, 90])
    return float(middle), float(high - low)


def _noise(seconds: float, seed: int) -> Waveform:
    samples = np.random.default_rng(seed).normal(0.0, 0.05, round(seconds * SAMPLE_RATE))
    return np.asarray(samples, dtype=np.float32)


def _speech() -> list[Waveform]:
    audio = np.asarray(soundfile.read(SENTENCES, dtype="float32")[0])
    return list(utterances(audio))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="whisperd bench engine", description=__doc__)
    parser.add_argument("--student", default="tiny-en")
    parser.add_argument("--teacher", default="tiny-en")
    parser.add_argument("--random", choices=SHAPES, help="in place of the two: random weights of this published size")
    parser.add_argument("--device", type=arguments.device, default="auto")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--threads", type=arguments.count)
    parser.add_argument("--batches", type=arguments.count, nargs="+", default=[1, 4, 16])
    parser.add_argument(
        "--contexts", type=arguments.positive, nargs="+", help="seconds (default: 2, 5, 10 and 30 of those it has)"
    )
    options = parser.parse_args(argv)
    if options.random:
        engine = _random(options)
    else:
        engine = WhisperEngine.load(
            options.student, options.teacher, options.device, dtype=options.dtype, threads=options.threads
        )
    contexts = [seconds for seconds in options.contexts or (2, 5, 10, 30) if seconds in engine.contexts]
    if not contexts:
        parser.error(f"--contexts: {engine.student} hears windows of {', '.join(f'{s:g}' for s in engine.contexts)} s")
    dtypes = {model.encoder.conv1.weight.dtype for model in engine.models} | {torch.float32}
    dtypes |= {model.decoder.embed_tokens.weight.dtype for model in engine.models}
    device = probe(engine.device, dtypes)
    rates = sorted(device.arithmetic.items(), key=str)
    flops = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {str(kind).removeprefix('torch.')}" for kind, rate in rates)
    print(f"{circumstances()}\n\n{engine.student} and {engine.teacher} in {engine.numbers} on {device.name}: "
          f"{device.bandwidth / 1e9:.1f} GB/s, {flops}, measured in this run.\n", flush=True)  # fmt: skip
    print(f"{measure_parts(engine, device, options.batches, contexts)}\n", flush=True)
    waves = [_noise(contexts[0], 0)] if options.random else _speech()
    print(measure_jobs(engine, options.batches, waves, TOKENS if options.random else None))


def _random(options: argparse.Namespace) -> WhisperEngine:
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if options.threads:
        torch.set_num_threads(options.threads)
    default = "float32" if device == "cpu" else "bfloat16"
    dtype = getattr(torch, options.dtype if options.dtype not in ("auto", "mixed") else default)
    return random_pair(options.random, device, dtype, options.contexts or (5.0, 10.0, 30.0))


if __name__ == "__main__":
    main()
