"""Whether drafts and company change a text in low precision: how often, and how near the tie was.

In float32 a draft never changes a text. In bfloat16 a check of many tokens and a step of one may round differently, and
the text then departs where two tokens are almost equally likely. In fast mode, the rate of finals that stay identical
is measured, with the margin (of the scores of the two best tokens, natural log) at each departure. Deterministic mode
gives every pass one shape: there the texts must be identical, or the benchmark ends with an error.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from bench.engine import DTYPES
from bench.player import SENTENCES
from bench.table import circumstances, table
from distillation.arguments import count, device
from distillation.recordings import read_mono
from streaming.job import Job, Waveform
from streaming.offline import utterances
from streaming.whisper.engine import WhisperEngine
from streaming.whisper.hearing import rows_of
from streaming.whisper.model import KVCache

Tokens = tuple[int, ...]


def cut(waves: Sequence[Waveform], count: int) -> list[Waveform]:
    """Return `count` pieces: the utterances, then the same with more and more of their ends missing.

    Partials are heard like this.
    """
    pieces = [wave[: len(wave) - len(wave) * part // 8] for part in range(6) for wave in waves]
    return [piece for piece in pieces if len(piece)][:count]


def drafted(jobs: Sequence[Job], drafts: Sequence[Tokens]) -> list[Job]:
    return [Job(job.audio, draft=draft) for job, draft in zip(jobs, drafts, strict=True)]


def compare(
    engine: WhisperEngine, jobs: Sequence[Job], drafts: dict[str, list[Tokens]], batch: int
) -> list[list[object]]:
    """Return a row for each kind of draft, checked alone and in batches, against no draft and no company."""
    expected = [engine.run([job])[0].tokens for job in tqdm(jobs, desc="alone", leave=False)]
    rows: list[list[object]] = []
    for name, texts in drafts.items():
        asked = drafted(jobs, texts)
        for company in (1, batch):
            found: list[Tokens] = []
            for start in range(0, len(asked), company):
                found += [result.tokens for result in engine.run(asked[start : start + company])]
            different = [index for index, text in enumerate(expected) if found[index] != text]
            margins = sorted(margin(engine, jobs[index], expected[index], found[index]) for index in different)
            rows.append([
                name, company, len(jobs), f"{1 - len(different) / len(jobs):.1%}",
                ", ".join(f"{each:.3f}" for each in margins) or "none",
            ])  # fmt: skip
    return rows


@torch.inference_mode()
def margin(engine: WhisperEngine, job: Job, one: Tokens, other: Tokens) -> float:
    """Return by how much the best token is likelier than the second where two texts depart, in natural log."""
    (model,) = engine.models
    places = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    shared = next(places, min(len(one), len(other)))
    (row,) = rows_of(model, [job], ["en"], [()])
    text = [*row.prompt, *one[:shared]]
    tokens = torch.tensor([text], device=engine.device)
    positions = torch.arange(len(text), device=engine.device)[None]
    cache = KVCache(model.decoder.remember(model.listen([job], model.context(job))))
    cache.reserve(len(text))
    logits = model.decoder(tokens, positions, cache)[0, -1].float()
    best = logits.topk(2).values.tolist()
    return float(best[0] - best[1])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="whisperd bench exactness", description=__doc__)
    parser.add_argument("--student", default="tiny-en")
    parser.add_argument("--teacher", default="tiny-en")
    parser.add_argument("--device", type=device, default="auto")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--utterances", type=count, default=60)
    parser.add_argument("--batch", type=count, default=8, help="finals in a pass (default: %(default)s)")
    parser.add_argument("--recording", type=Path, default=SENTENCES)
    options = parser.parse_args(arguments)
    audio = read_mono(options.recording)
    jobs = [Job(wave) for wave in cut(list(utterances(audio)), options.utterances)]
    student = WhisperEngine.load(options.student, None, options.device, dtype=options.dtype)
    own = [result.tokens for result in student.run(jobs)]
    drafts = {"student's own": own, "another utterance's": [*own[1:], *own[:1]]}
    # The teacher as an engine of its own, so that each of its finals is a check of the draft that is given.
    teacher = directory(options.teacher)
    print(f"{circumstances()}\n\nFinals of {options.teacher}'s teacher in {options.dtype} on {student.device}, against "
          "its own without a draft and alone.\n", flush=True)  # fmt: skip
    lines, broken = [], False
    for mode in ("fast", "deterministic"):
        engine = WhisperEngine.load(teacher, None, options.device, dtype=options.dtype, mode=mode, batch=options.batch)
        engine.warm()
        found = compare(engine, jobs, drafts, options.batch)
        lines += [[mode, *row] for row in found]
        broken = broken or (mode == "deterministic" and any(row[3] != "100.0%" for row in found))
    print(table(["mode", "draft", "batch", "finals", "identical", "margins where they depart"], lines))
    if broken:
        print("\nDeterministic mode was not deterministic.")
    return int(broken)


def directory(name: str) -> str:
    from streaming.whisper.checkpoint import open_checkpoint

    return str(open_checkpoint(name, "teacher").directory)


if __name__ == "__main__":
    raise SystemExit(main())
