"""Pictures of curves, for reports that are read by people. Owns how they look; knows nothing of what they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Curve = tuple[Sequence[float], Sequence[float]]
"""Places and values."""

Panel = tuple[str, Mapping[str, Curve], float | None]
"""What its horizontal axis is, its curves by name, and a place to mark (None for none)."""


def draw(path: Path, panels: Mapping[str, Panel], values: str) -> None:
    """Panels side by side, by title, in one PNG file. values: what the vertical axis is."""
    figure = Figure(figsize=(5.2 * max(1, len(panels)), 3.8), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for number, (title, (places, curves, mark)) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), number)
        for name, (x, y) in curves.items():
            axes.plot(list(x), list(y), label=name, marker="o" if len(x) < 20 else None, markersize=3)
        if mark is not None:
            axes.axvline(mark, color="grey", linestyle="--", linewidth=1)
        axes.set(title=title, xlabel=places, ylabel=values)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    canvas.print_png(str(path))  # type: ignore[no-untyped-call]  # matplotlib is only partly annotated
