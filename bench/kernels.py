"""How many operations each pass of the engine dispatches: on a GPU each is a kernel, and small ones cost their launch.

Prints a table: of each pass at fixed addresses the operations, how many of them are products, and the target. Nothing
is timed, and no GPU is needed: what a GPU captures as graphs runs here on a processor, with random weights of a tiny
width. A count depends on neither. The numbers are bfloat16; in float16 an encoder has one operation more for each
layer, and a decoder as many.

An operation is what PyTorch dispatches to a device; composite functions count as what they are made of. Left out is
what launches nothing there: views, and memory that is only allocated. What a processor lacks, attention in pages, is
replaced by one operation of the same form.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.random_models import Shape as Size
from bench.random_models import random_pair
from bench.table import circumstances, table
from streaming.whisper.checkpoint import POSITIONS_PER_SECOND
from streaming.whisper.graph_runner import GraphRunner
from streaming.whisper.graphs import Function, Shape

TINY = Size(d_model=32, heads=2, encoder_layers=32, decoder_layers=32, mels=128, vocabulary=51866, drafts=2)
"""Large-v3 and a student of two layers, but for the width."""

CONTEXT, ROWS = 2.0, 2

PRODUCTS = frozenset({
    "mm", "addmm", "bmm", "baddbmm", "convolution", "paged_attention", "_scaled_dot_product_flash_attention_for_cpu",
})  # fmt: skip
"""Matrix products, and attention, which is two of them."""


@dataclass(slots=True)
class Operations:
    """What was dispatched.

    Attributes:
        names: how often each operation was.
        views: operations that launch nothing.
    """

    names: Counter[str] = field(default_factory=Counter)
    views: int = 0

    @property
    def count(self) -> int:
        return self.names.total()

    @property
    def products(self) -> int:
        return sum(count for name, count in self.names.items() if name in PRODUCTS)


class Counting(TorchDispatchMode):
    """Counts what is dispatched while it is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch does not say
        self.found = Operations()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # without autograd composite functions arrive whole
            parts = function.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        result = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        if function._schema.is_mutable or self._is_new(name, result, (args, kwargs)):
            self.found.names[name] += 1
        else:
            self.found.views += 1
        return result

    @staticmethod
    def _is_new(name: str, result: Any, given: Any) -> bool:
        """Whether a result has memory of its own, with something in it."""
        held = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(given) if isinstance(leaf, Tensor)}
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return not name.startswith(("empty", "new_empty")) and any(
            leaf.untyped_storage().data_ptr() not in held for leaf in made
        )


def counted(work: Callable[[], object]) -> Operations:
    """Return what a piece of work dispatches."""
    counting = Counting()
    with torch.inference_mode(), counting:
        work()
    return counting.found


@torch.library.custom_op("whisperd_bench::paged_attention", mutates_args=())
def _paged_attention(queries: Tensor) -> Tensor:
    return torch.zeros_like(queries)


@contextmanager
def in_pages(runner: GraphRunner) -> Iterator[None]:
    """Let slots be read in place, by something of the kernel's form: only a GPU has the kernel, which is one launch."""
    decoders = runner.decoders.values()
    with mock.patch("torch.nn.attention.varlen.varlen_attn", lambda queries, *rest, **named: _paged_attention(queries)):
        for decoder in decoders:
            decoder.slots.in_pages = True
        try:
            yield
        finally:
            for decoder in decoders:
                decoder.slots.in_pages = False


@dataclass(frozen=True, slots=True)
class Pass:
    """What is counted.

    Attributes:
        name: for the table.
        function: of the runner, by its name.
        width: positions of its window.
        target: operations at most; None for no target.
    """

    name: str
    function: str
    width: int = 1
    target: int | None = None


PASSES = (
    Pass("student of 2 layers: a step", "student: check", 1, 90),
    Pass("teacher of 32 layers: a step", "teacher: check", 1, 560),
    Pass("student: a draft of 8 tokens", "student: draft", 2, 720),
    Pass("teacher: a check of 8 tokens", "teacher: check", 9),
    Pass("student: a step with a vocabulary", "student: check with a vocabulary"),
    Pass("student: a step with timestamps", "student: check with timestamps"),
    Pass("encoder of 32 layers, and what the student remembers", "student: listen"),
    Pass("what the teacher remembers", "teacher: remember"),
)


@torch.inference_mode()
def count_all(runner: GraphRunner) -> dict[str, Operations]:
    """Return what each of `PASSES` dispatches."""
    functions: dict[str, Function] = {function.name: function for function in runner.functions}
    heard = round(CONTEXT * POSITIONS_PER_SECOND)
    found = {}
    for each in PASSES:
        work = partial(functions[each.function].call, Shape(ROWS, heard, each.width, 64))
        work()  # constants are made by the first call
        found[each.name] = counted(work)
    return found


def bookkeeping(student: Operations, teacher: Operations) -> int:
    """Return what a step takes at any depth: what is left of the student's without its layers."""
    layer = (teacher.count - student.count) / (TINY.decoder_layers - TINY.drafts)
    return round(student.count - TINY.drafts * layer)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="whisperd bench kernels", description=__doc__)
    parser.add_argument("--names", action="store_true", help="also how often each operation is in each pass")
    options = parser.parse_args(argv)
    runner = random_pair("large-v3", "cpu", torch.bfloat16, (CONTEXT,), shape=TINY, slots=ROWS).runner
    assert isinstance(runner, GraphRunner), "it was asked for"
    copied = count_all(runner)
    with in_pages(runner):
        paged = count_all(runner)
    steps = [[found[each.name] for each in PASSES[:2]] for found in (paged, copied)]
    rows: list[list[object]] = [
        ["bookkeeping of a step, at any depth", *(bookkeeping(*each) for each in steps), "", "", ""]
    ]
    for each in PASSES:
        one, other = paged[each.name], copied[each.name]
        target = "" if each.target is None else f"<= {each.target}"
        rows.append([each.name, one.count, other.count, one.products, one.views, target])
    header = ["pass", "operations, slots in pages", "slots copied", "products", "views, not counted", "target"]
    print(f"{circumstances()}\n\n{table(header, rows)}")
    if options.names:
        names = sorted(set().union(*(found.names for found in paged.values())))
        lines = [[name, *(found.names[name] or "" for found in paged.values())] for name in names]
        print(f"\nSlots in pages:\n\n{table(['operation', *paged], lines)}")


if __name__ == "__main__":
    main()
