"""Pictures of curves and bars, for reports that people read.

Owns how they look. Knows nothing of what they show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Curve = tuple[Sequence[float], Sequence[float]]
"""Places and values."""

Panel = tuple[str, Mapping[str, Curve], float | None]
"""What its horizontal axis is, its curves by name, and a place to mark (None for none)."""


Bars = Mapping[str, float]
"""Values by name."""


def draw(path: Path, panels: Mapping[str, Panel], values: str, bars: Mapping[str, Bars] | None = None) -> None:
    """Draw panels side by side in one PNG file.

    Args:
        path: the file.
        panels: curves, by title.
        values: the label of the vertical axis of `panels`.
        bars: panels of bars, by title, which come last.
    """
    count = len(panels) + len(bars or {})
    figure = Figure(figsize=(5.2 * max(1, count), 3.8), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for number, (title, (places, curves, mark)) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, count, number)
        for name, (x, y) in curves.items():
            axes.plot(list(x), list(y), label=name, marker="o" if len(x) < 20 else None, markersize=3)
        if mark is not None:
            axes.axvline(mark, color="grey", linestyle="--", linewidth=1)
        axes.set(title=title, xlabel=places, ylabel=values)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    for number, (title, lengths) in enumerate((bars or {}).items(), len(panels) + 1):
        axes = figure.add_subplot(1, count, number)
        axes.bar_label(axes.barh(list(lengths), list(lengths.values())), fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set(title=title)
    canvas.print_png(str(path))  # type: ignore[no-untyped-call]  # matplotlib is only partly annotated
