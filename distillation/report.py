"""The report of a pair: the figures of `evaluate.py`, as Markdown with pictures, and as JSON.

Owns the words and the tables. Measures nothing. A figure that cannot be had is null, and a dash in a table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distillation.files import write_text_whole
from distillation.tables import table

Figures = Mapping[str, Any]


def write(figures: Figures, folder: Path) -> None:
    """Write REPORT.md, report.json, noise.png and cascade.png into a folder."""
    from distillation.charts import draw

    folder.mkdir(parents=True, exist_ok=True)
    write_text_whole(json.dumps(figures, indent=1, allow_nan=False) + "\n", folder / "report.json")
    if figures["noise_curve"]:
        draw(folder / "noise.png", _noise_panels(figures), "word error rate")
    draw(folder / "cascade.png", _cascade_panels(figures), "word error rate")
    write_text_whole(as_markdown(figures, pictures=True), folder / "REPORT.md")


def as_markdown(figures: Figures, *, pictures: bool = False) -> str:
    parts = [
        f"# `{figures['student']}` and its teacher `{figures['teacher']}`\n\nThe teacher decides below a confidence of "
        f"{figures['threshold']}, of texts of {figures['shortest']:g} s or more. WER: word error rate; sub, del, ins: "
        "words substituted, deleted, inserted, per word. "
        f"Texts are normalised by `--normaliser {figures['normaliser']}`.",
        *_size(figures), *_sets(figures), *_cascade(figures, pictures), *_long(figures), *_noise(figures, pictures),
        *_speculation(figures),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _size(figures: Figures) -> Iterator[str]:
    yield "## Size and speed"
    student, teacher = figures["size"]["student"], figures["size"]["teacher"]
    rows = [
        ["parameters, million", f"{student['parameters'] / 1e6:.1f}", f"{teacher['parameters'] / 1e6:.1f}"],
        ["of these its own", f"{student['own_parameters'] / 1e6:.1f}", f"{teacher['own_parameters'] / 1e6:.1f}"],
        ["encoder layers", student["encoder_layers"], teacher["encoder_layers"]],
        ["decoder layers", student["decoder_layers"], teacher["decoder_layers"]],
        ["files, MB", f"{student['megabytes']:.1f}", f"{teacher['megabytes']:.1f}"],
    ]
    for batch, row in figures["speed"].items():
        for name, suffix in (("a clip", ""), ("up to the first pass", " first pass")):
            cells = [_ms(row["student" + suffix]), _ms(row["teacher" + suffix])]
            rows.append([f"{name}, batch {batch}: ms (spread)", *cells])
    yield table(["", "student", "teacher"], rows)
    ratios = [
        [batch, _ratio(row["relative"]), _ratio(row["relative_decoding"])] for batch, row in figures["speed"].items()
    ]
    yield "How many times faster the student is, through the same engine, clips of two to four seconds (least to most):"
    yield table(["batch", "whole", "decoding after the first pass"], ratios)


def _sets(figures: Figures) -> Iterator[str]:
    yield "## Word errors"
    rows = []
    for name, row in figures["sets"].items():
        if row:
            kinds = [_errors(row, who) for who in ("teacher", "student")]
            rates = [_share(row[who]) for who in ("teacher", "student", "cascade")]
            rows.append([name, row["clips"], *rates, _share(row["asked"]), *kinds])
    header = ["set", "clips", "teacher WER", "student WER", "cascade WER", "asked", "teacher sub/del/ins", "student"]
    yield table(header, rows)
    if wordless := figures["left_out"]["wordless"]:
        yield f"Clips left out: {wordless} without words to compare."
    live = figures["live"]
    yield (
        f"Through detection and session, {live['clips']} clips of {live['set']}: {_share(live['live'])}; "
        f"the same clips as whole recordings: {_share(live['offline'])}."
    )
    silenced = figures["silenced"]
    yield (
        f"Texts that the service takes for silence and does not send: {silenced['clips']} of these clips. This costs "
        f"{100 * silenced['wer_cost']:.2f} % WER, absolute."
    )


def _errors(row: Figures, who: str) -> str:
    counts = row[f"{who}_errors"]
    return " / ".join(_share(counts[kind] / max(1, row["words"])) for kind in ("sub", "del", "ins"))


def _cascade(figures: Figures, pictures: bool) -> Iterator[str]:
    cascade = figures["cascade"]
    yield "## When to ask the teacher"
    sets = ", ".join(figures["domain"]) or "all sets"
    yield (
        f"On {cascade['clips']} clips ({sets}): the student alone {_share(cascade['student'])}, the teacher alone "
        f"{_share(cascade['teacher'])}. AUROC of the student's confidence: {_area(cascade['auroc_wrong'])} in telling "
        f"its wrong texts from its right ones, {_area(cascade['auroc_teacher_better'])} in telling those that the "
        "teacher does better."
    )
    if pictures:
        yield "![Word errors against the share of texts that the teacher decides](cascade.png)"
    rows = []
    for threshold, row in cascade["thresholds"].items():
        name = {"0.0": "never", "inf": "always"}.get(threshold, threshold)
        name = f"**{name}**" if math.isclose(float(threshold), figures["threshold"]) else name
        rows.append([name, _share(row["cascade"]), _share(row["asked"])])
    yield table(["the teacher decides below", "WER", "asked"], rows)


def _long(figures: Figures) -> Iterator[str]:
    yield "## Long form"
    yield "Utterances joined to minutes, pauses and noise (25 dB below) between them, through detection and session."
    row = figures["long_form"]
    rows = [
        [who, _share(row[who]["wer"]), _share(row[who]["insertion_rate"]), row[who]["repeated_5_grams"]]
        for who in ("teacher", "student", "cascade")
    ]
    yield table([f"{row['minutes']:.0f} minutes", "WER", "inserted", "repeated 5-grams"], rows)


def _noise(figures: Figures, pictures: bool) -> Iterator[str]:
    yield "## Noise"
    if noise := figures.get("noise"):
        yield (
            f"Words invented in {noise['seconds'] / 60:.0f} minutes of noise without speech, through the whole "
            f"pipeline: {noise['words']} ({noise['words_an_hour']:.1f} an hour)."
        )
    for kind, curve in figures["noise_curve"].items():
        rows = [[who, *(_share(row[who]) for row in curve.values())] for who in ("student", "teacher")]
        yield table([f"WER, {kind} noise", *(f"{snr} dB" for snr in curve)], rows)
    if pictures and figures["noise_curve"]:
        yield "![Word errors against the level of noise](noise.png)"


def _speculation(figures: Figures) -> Iterator[str]:
    row = figures["speculation"]
    yield "## Speculation"
    yield (
        f"The teacher accepts {_share(row['acceptance'])} of the student's tokens, and says "
        f"{row['tokens_a_teacher_pass']:.1f} tokens a pass. Texts checked by the teacher whose tokens differ from the "
        f"teacher's alone: {row['differs']} of {row['clips']}."
    )
    rows = [
        [batch, _ms(row[batch]["teacher"]), _ms(row[batch]["pair"]), _ratio(row[batch]["speed_up"]),
         _ratio(row[batch]["speed_up_decoding"])]
        for batch in ("1", "4", "16")
    ]  # fmt: skip
    header = ["batch", "teacher alone, ms a clip", "student, then check", "times faster", "decoding alone"]
    yield table(header, rows)


def _noise_panels(figures: Figures) -> dict[str, Any]:
    return {
        f"{kind} noise": (
            "signal to noise, dB",
            {
                who: ([float(snr) for snr in curve], [row[who] for row in curve.values()])
                for who in ("student", "teacher")
            },
            None,
        )
        for kind, curve in figures["noise_curve"].items()
    }


def _cascade_panels(figures: Figures) -> dict[str, Any]:
    cascade = figures["cascade"]
    curves = {"cascade": ([float(share) for share in cascade["wer"]], list(cascade["wer"].values()))}
    asked = [row["asked"] for name, row in cascade["thresholds"].items() if float(name) == figures["threshold"]]
    return {"the teacher decides the least sure": ("share of texts", curves, asked[0] if asked else None)}


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _area(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _ms(row: Figures) -> str:
    return f"{row['ms']:.1f} ({row['spread_ms']:.1f})"


def _ratio(row: Figures) -> str:
    return f"{row['median']:.2f} ({row['least']:.2f} to {row['most']:.2f})"
