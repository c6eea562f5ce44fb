"""Which graph serves which demand, and what happens where there is none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streaming.job import Captured
from streaming.whisper.graphs import Buckets, Called, Function, Recorder, Shape, shapes, up_to

BUCKETS = Buckets((1, 2, 4, 8), (1, 2, 5, 9), (64, 512))


class Recorded:
    """A graph that was captured, as far as one can see from outside."""

    def replay(self) -> None: ...


@pytest.mark.parametrize(("most", "batches"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (32, (1, 2, 4, 8, 16, 32))])
def test_batches_are_powers_of_two_and_the_largest(most: int, batches: tuple[int, ...]) -> None:
    assert up_to(most) == batches


@given(st.integers(1, 8), st.integers(1, 50), st.integers(1, 512))
def test_the_least_shape_that_holds_it(batch: int, width: int, reach: int) -> None:
    shape = BUCKETS.fit(batch, 100, width, reach)
    assert shape.serves(Shape(batch, 100, min(width, 9), reach))  # the rest of a wider window is for the next pass
    smaller = [
        each for each in shapes(BUCKETS.batches, (100,), BUCKETS.widths, BUCKETS.reaches) if each.size < shape.size
    ]
    assert not any(each.serves(Shape(batch, 100, min(width, 9), reach)) for each in smaller)


def test_more_than_the_largest_is_an_error_of_ours() -> None:
    with pytest.raises(ValueError, match="9 is more than the largest"):
        BUCKETS.fit(9, 100, 1, 1)


def test_a_missing_shape_falls_to_the_next_larger() -> None:
    function = Function("check", lambda shape: None, shapes((1, 2, 4, 8), (100, 200), (1, 9), (64,)))
    small, large = Shape(4, 100, 9, 64), Shape(8, 100, 9, 64)
    function.captured = {small: Recorded(), large: Recorded(), Shape(1, 200, 9, 64): Recorded()}
    assert function.graph(Shape(1, 100, 1, 64)) == (small, function.captured[small])
    assert function.graph(Shape(8, 100, 1, 64)) == (large, function.captured[large])


def test_another_context_serves_nobody() -> None:
    function = Function("check", lambda shape: None, ())
    function.captured = {Shape(8, 200, 9, 64): Recorded()}
    wanted = Shape(1, 100, 1, 64)
    assert function.graph(wanted) == (wanted, Called(function.call, wanted))


def test_without_a_graph_the_function_itself_is_called() -> None:
    seen: list[Shape] = []
    function = Function("check", seen.append, ())
    wanted = Shape(2, 100, 5, 64)
    shape, graph = function.graph(wanted)
    graph.replay()
    graph.replay()
    assert seen == [shape, shape] == [wanted, wanted]


def test_a_processor_has_no_graphs_and_calls_nothing_to_find_out() -> None:
    seen: list[Shape] = []
    functions = [Function("check", seen.append, shapes((1, 2), (100,)))]
    assert Recorder(torch.device("cpu")).capture(functions) == Captured()
    assert not seen


class Stream:
    """Of a device that has graphs, for a machine that has none."""

    device = torch.device("cuda:1")

    def wait_stream(self, other: Stream) -> None: ...


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """As much of `torch.cuda` as a capture asks for: a capture calls the function, as a real one does."""

    class CapturedGraph(Recorded):
        def capture_begin(self, **how: object) -> None: ...

        def capture_end(self) -> None: ...

    calls: dict[str, Callable[..., Any]] = {
        "graph_pool_handle": lambda: None,
        "Stream": lambda device: Stream(),
        "current_stream": lambda device=None: Stream(),
        "stream": lambda stream: contextlib.nullcontext(),
        "empty_cache": lambda: None,
        "synchronize": lambda device: None,
        "mem_get_info": lambda device: (2**30, 2**30),
        "CUDAGraph": CapturedGraph,
    }
    for name, call in calls.items():
        monkeypatch.setattr(torch.cuda, name, call)
    return Stream.device


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: operation not permitted when stream is capturing"),
        NotImplementedError("no such kernel"),
        TypeError("a kernel's launcher met an argument that it does not know"),
    ],
)
def test_what_cannot_be_captured_is_called(
    cuda: torch.device, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it was: it costs the graph of that shape, not the start."""
    small, large = shapes((1, 8), (100,))
    calls: list[Shape] = []

    def call(shape: Shape) -> None:
        if shape == large and capturing:
            raise error
        calls.append(shape)

    capturing = True
    function = Function("check", call, (small, large))
    captured = Recorder(cuda).capture([function])
    capturing = False
    assert (captured.graphs, captured.missing) == (1, 1)
    assert str(error) in caplog.text
    assert isinstance(function.graph(small)[1], Recorded)
    shape, graph = function.graph(large)
    calls.clear()
    graph.replay()
    assert calls == [shape] == [large]


def test_what_takes_most_memory_is_captured_first(cuda: torch.device) -> None:
    """Whatever function it is of: the others find room in what it left."""
    calls: list[tuple[str, Shape]] = []
    small, large = shapes((1, 8), (100,))
    functions = [
        Function(name, lambda shape, name=name: calls.append((name, shape)), (small, large), activations)  # type: ignore[misc]  # mypy cannot type a default in a lambda
        for name, activations in (("check", lambda shape: shape.batch), ("listen", lambda shape: 5 * shape.batch))
    ]
    assert Recorder(cuda).capture(functions).graphs == 4
    ordered = list(dict.fromkeys(calls))
    assert ordered == [("listen", large), ("check", large), ("listen", small), ("check", small)]
