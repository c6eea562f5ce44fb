"""Functions on static buffers, each in the few shapes that it may be asked for, and what replays them.

Owns which shapes there are, which of them serves a demand, and the common interface, `Graph.replay`. On a GPU a graph
is captured before the engine is ready, never later. Elsewhere, and where a capture failed, it calls the very function
that would have been captured. Knows nothing of what the functions do.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

import torch

from streaming.job import Captured

log = logging.getLogger(__name__)


class Shape(NamedTuple):
    """The sizes of one pass.

    Attributes:
        batch: rows.
        heard: encoder positions.
        width: positions in a window.
        reach: positions of text to be seen.
    """

    batch: int
    heard: int
    width: int
    reach: int

    @property
    def size(self) -> int:
        return self.batch * self.heard * self.width * self.reach

    def serves(self, wanted: Shape) -> bool:
        """Return whether what is wanted fits; a context is heard exactly, as a longer one would give another text."""
        return self.heard == wanted.heard and all(ours >= theirs for ours, theirs in zip(self, wanted, strict=True))


class Graph(Protocol):
    """Anything that repeats its work on the same buffers, such as a `torch.cuda.CUDAGraph`."""

    def replay(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Called:
    """No graph: the function itself."""

    function: Callable[[Shape], None]
    shape: Shape

    def replay(self) -> None:
        self.function(self.shape)


@dataclass(frozen=True, slots=True)
class Buckets:
    """The values of each side of a shape, ascending: what is asked for is rounded up to one of them."""

    batches: tuple[int, ...]
    widths: tuple[int, ...]
    reaches: tuple[int, ...]

    def fit(self, batch: int, heard: int, width: int, reach: int) -> Shape:
        """Return the least shape that holds so much; what is wider than the widest is left for the next pass."""
        width = min(width, self.widths[-1])
        return Shape(_up(self.batches, batch), heard, _up(self.widths, width), _up(self.reaches, reach))


def up_to(most: int) -> tuple[int, ...]:
    """Return the powers of two up to `most`, and `most`."""
    return (*(1 << n for n in range(most.bit_length()) if 1 << n < most), most)


def ends_of(values: Sequence[int]) -> tuple[int, ...]:
    """Return the least and the largest of some ascending values."""
    return tuple(sorted({values[0], values[-1]}))


def _up(values: Sequence[int], wanted: int) -> int:
    place = bisect_left(values, wanted)
    if place == len(values):
        raise ValueError(f"{wanted} is more than the largest of {values}")
    return values[place]


@dataclass(slots=True)
class Function:
    """One of the functions, by its name, and the graphs of its shapes.

    Attributes:
        name: for logs.
        call: does the work.
        shapes: those that are captured.
        activations: about how many numbers the work makes for itself in a shape.
        captured: the graphs.
    """

    name: str
    call: Callable[[Shape], None]
    shapes: tuple[Shape, ...]
    activations: Callable[[Shape], int] = attrgetter("size")
    captured: dict[Shape, Graph] = field(default_factory=dict)

    def graph(self, wanted: Shape) -> tuple[Shape, Graph]:
        """Return what serves a shape: its own graph, that of the next larger shape, or else a call."""
        if wanted in self.captured:
            return wanted, self.captured[wanted]
        larger = [shape for shape in self.captured if shape.serves(wanted)]
        if larger:
            shape = min(larger, key=lambda each: each.size)
            return shape, self.captured[shape]
        return wanted, Called(self.call, wanted)


class Recorder:
    """Captures functions of one device into one pool, those with the largest activations first."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def capture(self, functions: Iterable[Function]) -> Captured:
        """Capture every shape of every function; a device without graphs has none, which is no error."""
        if self._device.type != "cuda":
            return Captured()
        graphs = missing = 0
        began, free = time.perf_counter(), self._free()
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(self._device)
        self._free_unused()
        todo = [(shape, function) for function in functions for shape in function.shapes]
        # What the first leaves in the pool is room enough for all that come later.
        for shape, function in sorted(todo, key=lambda each: -each[1].activations(each[0])):
            try:
                function.captured[shape] = self._captured(function, shape, pool, stream)
                graphs += 1
            # Out of memory, or a kernel that cannot be captured here, whose launcher may raise anything: called, it
            # works. Where it does not, the canary decode tells, or the job that needs that shape.
            except Exception as error:
                log.warning("no graph of %s for %s: %s", function.name, shape, str(error).partition("\n")[0])
                missing += 1
        torch.cuda.synchronize(self._device)
        self._free_unused()  # what the calls before the captures left
        return Captured(graphs, missing, time.perf_counter() - began, max(0, free - self._free()))

    @staticmethod
    def _captured(function: Function, shape: Shape, pool: Any, stream: torch.cuda.Stream) -> Graph:
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            function.call(shape)  # libraries make their handles and choose their kernels outside of a graph
            graph = torch.cuda.CUDAGraph()
            # Another engine's thread may be at work on another device.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                function.call(shape)
            except Exception:
                with contextlib.suppress(RuntimeError):  # of the capture that is broken: the first error tells why
                    graph.capture_end()
                raise
            graph.capture_end()
        torch.cuda.current_stream(stream.device).wait_stream(stream)
        return graph

    @staticmethod
    def _free_unused() -> None:
        gc.collect()
        torch.cuda.empty_cache()

    def _free(self) -> int:
        return int(torch.cuda.mem_get_info(self._device)[0])


def shapes(
    batches: Sequence[int], heard: Sequence[int], widths: Sequence[int] = (1,), reaches: Sequence[int] = (1,)
) -> tuple[Shape, ...]:
    return tuple(Shape(*sides) for sides in product(batches, heard, widths, reaches))
