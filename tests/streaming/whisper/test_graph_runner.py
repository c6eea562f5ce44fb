"""At fixed addresses, in fixed widths and batches, the same tokens come out, in the same number of passes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
import speakers
import torch
from checkpoints import Pair
from hypothesis import given, settings
from hypothesis import strategies as st
from speakers import BEFORE, LONGEST, RECORDINGS, Plan, Speaker, batches, common_prefix
from test_engine import decided
from torch.utils._python_dispatch import TorchDispatchMode
from waveforms import murmur

from streaming.job import ALWAYS, NEVER, Job, Result
from streaming.whisper.cache_slots import OVERHANG, PAGE, Slots
from streaming.whisper.decode import DraftModel, decode, language_logits
from streaming.whisper.engine import WhisperEngine
from streaming.whisper.graph_runner import WIDTHS, Ahead, GraphDecoder, GraphDraft, GraphRunner
from streaming.whisper.graphs import Buckets
from streaming.whisper.hearing import LoadedModel
from streaming.whisper.model import Memory
from streaming.whisper.rows import Row

CPU = torch.device("cpu")
FAST = Buckets((1, 2, 4, 8), WIDTHS, (64, 192, 448 + OVERHANG))
FIXED = Buckets((8,), (9,), (448 + OVERHANG,))
NARROW = Buckets((3, 8), (1, 2), (448 + OVERHANG,))
HEARD = 100
THIRTY_SECONDS = 1500


@dataclass(repr=False)
class Stage:
    """A speaker's model at fixed addresses, and what it last remembered in which slot."""

    speaker: Speaker
    voice: GraphDecoder
    helper: GraphDraft | None = None

    def place(self, recordings: list[int], slots: list[int]) -> None:
        memory = self.speaker.memory.select(torch.tensor(recordings))
        for layer, pool in enumerate(self.voice.slots.audio):
            for part, found in zip(pool, (memory.keys[layer], memory.values[layer]), strict=True):
                part[slots, :HEARD] = found.transpose(1, 2)


def stage(speaker: Speaker, buckets: Buckets, ahead: Ahead) -> Stage:
    checkpoint: Any = None
    model = LoadedModel("student", checkpoint, checkpoint, checkpoint, speaker.decoder, speaker.rules, checkpoint)
    phrases = speakers.phrases(speaker.decoder.embed_tokens.weight.shape[0])
    return Stage(speaker, GraphDecoder(model, buckets, (2.0,), CPU, ahead, phrases))


WAYS = {
    "fast": (FAST, Ahead(0)),
    "a step late": (FAST, Ahead(1)),
    "later still": (FAST, Ahead(3, 2)),
    "one shape": (FIXED, Ahead(0)),
    "narrow": (NARROW, Ahead(1, 1)),
}


@pytest.fixture(scope="module", params=WAYS)
def stages(request: pytest.FixtureRequest, teacher: Speaker, student: Speaker) -> tuple[Stage, Stage]:
    """The teacher with no helper; and with the student as its helper."""
    buckets, ahead = WAYS[request.param]
    alone, helped, helps = (stage(each, buckets, ahead) for each in (teacher, teacher, student))
    helped.helper = GraphDraft(helps.voice, helped.voice, 3)
    return alone, helped


@torch.inference_mode()
def dynamic(speaker: Speaker, batch: list[Plan], proposer: Speaker | None = None) -> list[Row]:
    rows = rows_of(speaker, batch)
    recordings = torch.tensor([plan.recording for plan in batch])
    helper = None
    if proposer is not None:
        helper = DraftModel(proposer.decoder, proposer.memory.select(recordings), proposer.rules, 3)
    decode(speaker.decoder, speaker.memory.select(recordings), speaker.rules, rows, helper)
    return rows


def rows_of(speaker: Speaker, batch: list[Plan]) -> list[Row]:
    return [plan.row(speaker) for plan in batch]


@torch.inference_mode()
def static(on: Stage, batch: list[Plan], slots: list[int], helps: Speaker | None = None) -> list[Row]:
    """Of the batch in those slots, among whatever earlier batches left."""
    rows, recordings = rows_of(on.speaker, batch), [plan.recording for plan in batch]
    on.place(recordings, slots)
    if on.helper is not None and helps is not None:
        own = on.helper._own
        Stage(helps, own).place(recordings, slots)
        own.say(slots, [replace(plan, start="nothing", edits=(), limit=LONGEST).row(helps) for plan in batch], HEARD)
        on.helper.begin(HEARD)
    on.voice.say(slots, rows, HEARD, on.helper)
    return rows


slot_orders = st.permutations(range(8))


@given(batches, slot_orders)
@settings(max_examples=20)
def test_any_draft_in_any_slots_gives_what_no_draft_gives(
    stages: tuple[Stage, Stage], batch: list[Plan], slots: list[int]
) -> None:
    alone, _ = stages
    speaker = alone.speaker
    rows = static(alone, batch, slots[: len(batch)])
    for plan, row in zip(batch, rows, strict=True):
        expected = plan.said(speaker)
        count = min(plan.limit, len(expected.log_probs))
        assert row.tokens == expected.tokens[: len(row.prompt) + count]
        assert row.log_probs == pytest.approx(expected.log_probs[:count], abs=1e-3)
        assert row.accepted == common_prefix(plan.draft(speaker)[: plan.limit], expected.text)
        assert row.no_speech == pytest.approx(expected.no_speech, rel=1e-3)
        assert row.done


@given(batches, slot_orders)
@settings(max_examples=12)
def test_so_it_is_with_a_helper(
    stages: tuple[Stage, Stage], student: Speaker, batch: list[Plan], slots: list[int]
) -> None:
    _, helped = stages
    for plan, row in zip(batch, static(helped, batch, slots[: len(batch)], student), strict=True):
        expected = plan.said(helped.speaker)
        count = min(plan.limit, len(expected.log_probs))
        assert row.tokens == expected.tokens[: len(row.prompt) + count]
        assert row.done


@given(batches)
@settings(max_examples=20)
def test_passes_are_those_of_the_plain_way(teacher: Speaker, batch: list[Plan]) -> None:
    """The rows on the device do as `Row` and `Draft` do, where the windows are as wide as the drafts."""
    wide = stage(teacher, Buckets((8,), (64,), (448 + OVERHANG,)), Ahead(0))
    batch = [replace(plan, before=0) for plan in batch]  # a longer prompt takes passes of this width
    assert [row.passes for row in static(wide, batch, list(range(len(batch))))] == [
        row.passes for row in dynamic(teacher, batch)
    ]


@given(batches)
@settings(max_examples=10)
def test_the_same_with_languages(linguist: Speaker, batch: list[Plan]) -> None:
    rows = static(stage(linguist, FAST, Ahead(1)), batch, list(range(len(batch))))
    assert [row.tokens for row in rows] == [row.tokens for row in dynamic(linguist, batch)]


@torch.inference_mode()
def test_a_good_helper_saves_passes(teacher: Speaker) -> None:
    """The model itself is always right: four tokens a pass instead of one, the first pass and catching up apart."""
    helped, helps = stage(teacher, FAST, Ahead(0)), stage(teacher, FAST, Ahead(0))
    helped.helper = GraphDraft(helps.voice, helped.voice, 3)
    plans = [Plan(number, False, LONGEST, "nothing", ()) for number in range(RECORDINGS)]
    for number, row in enumerate(static(helped, plans, list(range(RECORDINGS)), teacher)):
        alone = teacher.alone(number, False)
        assert row.tokens == alone.tokens
        assert row.passes <= 1 + -(-(len(alone.log_probs) - 1) // 4)


@torch.inference_mode()
def test_what_an_earlier_batch_left_is_not_seen(teacher: Speaker, linguist: Speaker) -> None:
    """Not even numbers that are none, which a mask does not keep out."""
    hears = stage(linguist, FAST, Ahead(1))
    hears.voice.slots.text.fill_(torch.nan)
    hears.place(list(range(RECORDINGS)), list(range(RECORDINGS)))
    found = hears.voice.languages(range(RECORDINGS), HEARD)
    assert found == language_logits(linguist.decoder, linguist.memory, linguist.rules)
    on = stage(teacher, FAST, Ahead(1))
    on.voice.slots.text.fill_(torch.nan)
    plans = [Plan(number, False, LONGEST, "truth", ((2, "replace", 599),)) for number in range(RECORDINGS)]
    rows = static(on, plans, list(range(RECORDINGS)))
    assert [row.tokens for row in rows] == [teacher.alone(number, False).tokens for number in range(RECORDINGS)]


# --- the whole engine ------------------------------------------------------------------------------------------------


@cache
def engine(pair: Pair, graphs: Literal["on", "off"], mode: Literal["fast", "deterministic"] = "fast") -> WhisperEngine:
    made = WhisperEngine.load(
        str(pair.student), str(pair.teacher), "cpu", dtype="float32", graphs=graphs, mode=mode, batch=4
    )
    made.warm()
    return made


@pytest.fixture(params=["shared encoder", "own encoders"])
def pair(request: pytest.FixtureRequest, english: Pair, multilingual: Pair) -> Pair:
    return english if request.param == "shared encoder" else multilingual


def wishes() -> list[Job]:
    """More than a batch holds, of several contexts, with and without drafts, timestamps, times, teacher, past text."""
    return [
        Job(
            murmur(0.4 + 0.35 * number, number), (5, 6, 7) if number % 3 == 0 else (), None, "transcribe",
            number % 4 == 3, number % 2 == 0, ALWAYS if number % 3 else NEVER, 14, previous=BEFORE[number % 4 % 3],
        )
        for number in range(9)
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["fast", "deterministic"])
def test_an_engine_at_fixed_addresses_hears_the_same(pair: Pair, mode: Literal["fast", "deterministic"]) -> None:
    expected = engine(pair, "off").run(wishes())
    for _ in range(2):  # the second time in slots that are not empty
        for ours, theirs in zip(engine(pair, "on", mode).run(wishes()), expected, strict=True):
            assert decided(ours) == decided(theirs)
            assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-3)
            assert np.ravel(ours.times) == pytest.approx(np.ravel(theirs.times), abs=0.021)
            assert (ours.accepted, ours.teacher_accepted) == (theirs.accepted, theirs.teacher_accepted)
            assert ours.no_speech == pytest.approx(theirs.no_speech, rel=1e-3)


@cache
def one_shape(pair: Pair, dtype: str) -> WhisperEngine:
    return WhisperEngine.load(
        str(pair.student), str(pair.teacher), "cpu", dtype=dtype, mode="deterministic", graphs="off", batch=4
    )


@cache
def alone(pair: Pair, dtype: str, number: int) -> Result:
    return one_shape(pair, dtype).run([wish(number)])[0]


def wish(number: int, draft: tuple[int, ...] = ()) -> Job:
    return Job(murmur(0.3 + 0.1 * number, number), draft, ask_teacher_below=ALWAYS, max_tokens=14)


drafts = st.lists(st.integers(0, 599), max_size=14).map(tuple)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@given(batch=st.lists(st.tuples(st.integers(0, 5), drafts, st.booleans()), min_size=1, max_size=4))
@settings(max_examples=10)
def test_in_one_shape_not_even_rounding_tells_of_drafts_or_neighbours(
    english: Pair, dtype: str, batch: list[tuple[int, tuple[int, ...], bool]]
) -> None:
    """To the last bit, in any order, beside any others, with right drafts and garbage."""
    expected = [alone(english, dtype, number) for number, _, _ in batch]
    jobs = [
        wish(number, result.tokens if right else draft)
        for (number, draft, right), result in zip(batch, expected, strict=True)
    ]
    for result, before in zip(one_shape(english, dtype).run(jobs), expected, strict=True):
        assert result.error is None
        assert (result.tokens, result.log_probs) == (before.tokens, before.log_probs)
        assert result.student_confidence == before.student_confidence


def test_rounding_would_tell(english: Pair) -> None:
    """In several shapes it is not equal to the last bit: the test above can fail."""
    fast = WhisperEngine.load(str(english.student), None, "cpu", dtype="float32", graphs="on", batch=4)
    plain = fast.run([wish(number) for number in range(4)])
    checked = [fast.run([wish(number, result.tokens)])[0] for number, result in enumerate(plain)]
    assert [result.tokens for result in plain] == [result.tokens for result in checked]
    assert [result.log_probs for result in plain] != [result.log_probs for result in checked]


def test_a_job_that_breaks_leaves_nothing_behind(english: Pair) -> None:
    """A batch whose encoder gives numbers that are none: its jobs fail, and the next batch is as ever."""
    on = WhisperEngine.load(str(english.student), str(english.teacher), "cpu", dtype="float32", graphs="on", batch=4)
    jobs = [Job(murmur(0.9, seed), max_tokens=6, ask_teacher_below=ALWAYS) for seed in range(4)]
    expected = on.run(jobs)
    hook = on._student.encoder.register_forward_hook(lambda *_: torch.full((4, 50, 32), torch.nan))
    assert all(result.error is not None for result in on.run(jobs))
    hook.remove()
    assert [decided(result) for result in on.run(jobs)] == [decided(result) for result in expected]


# --- nothing in a step waits -----------------------------------------------------------------------------------------


class NothingWaits(TorchDispatchMode):
    """Forbids what makes the host wait for a device: reading a number, and shapes that depend on values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch does not say

    WAITS = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "item"})

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in self.WAITS or self._by_mask(name, args):
            raise AssertionError(f"{name} waits for the device")
        return function(*args, **(kwargs or {}))

    @staticmethod
    def _by_mask(name: str, args: Any) -> bool:
        """`values[mask]` looks for the places where the mask is true."""
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        return any(index is not None and index.dtype == torch.bool for index in indices)


@torch.inference_mode()
def test_no_function_waits_for_the_device(teacher: Speaker, student: Speaker, linguist: Speaker) -> None:
    helped, helps = stage(teacher, FAST, Ahead(1)), stage(student, FAST, Ahead(1))
    helper = GraphDraft(helps.voice, helped.voice, 3)
    shape = FAST.fit(2, HEARD, 5, 60)
    with NothingWaits():
        for function in (*helped.voice.functions[:3], helper.draft, helper.draft_biased):
            for width in (1, 5):
                function.call(shape._replace(width=width))
        stage(linguist, FAST, Ahead(1)).voice.language.call(shape)


@pytest.mark.parametrize(
    "wait",
    [
        lambda values: values.sum().item(),
        lambda values: values.nonzero(),
        lambda values: values[values > 0],
        lambda values: bool(values[0] > 0),
    ],
)
def test_what_waits_is_seen(wait: Any) -> None:
    with NothingWaits(), pytest.raises(AssertionError, match="waits"):
        wait(torch.ones(3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@torch.inference_mode()
def test_a_gpu_is_not_waited_for(english: Pair) -> None:
    """PyTorch's own check, on whole functions, eager and captured."""
    engine = WhisperEngine.load(str(english.student), str(english.teacher), "cuda", graphs="on")
    engine.warm()
    engine.run([Job(murmur(1.0), ask_teacher_below=ALWAYS)] * 3)
    assert isinstance(engine.runner, GraphRunner)
    for function in engine.runner.functions:
        shape = function.shapes[0]
        torch.cuda.set_sync_debug_mode("error")
        try:
            function.call(shape)
            function.graph(shape)[1].replay()
        finally:
            torch.cuda.set_sync_debug_mode("default")


# --- slots -----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_a_kernel_that_is_not_there_is_not_used(teacher: Speaker) -> None:
    """Attention in pages is a GPU's; the trial finds out, and leaves nothing behind."""
    slots = Slots(teacher.decoder, 4, HEARD)
    assert not slots.look_in_pages()
    assert not slots.text.any()
    assert not any(pool.any() for pool in slots.audio)


def paged_attention(wrong_page: int | None = None) -> Any:
    """A kernel for pages in plain operations, of the signature of PyTorch's, which only a GPU has.

    wrong_page: of each row's table, where that goes so far; it is read from another row.
    """

    def attend(
        queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, firsts: torch.Tensor, _: None, width: int,
        longest: int, *, window_size: tuple[int, int], seqused_k: torch.Tensor, block_table: torch.Tensor,
        num_splits: int,
    ) -> torch.Tensor:  # fmt: skip
        table = block_table.long()
        if wrong_page is not None and wrong_page < table.shape[1]:
            table[:, wrong_page] = table[:, wrong_page].flip(0)
        found = []
        for row, length in enumerate(seqused_k.tolist()):
            asked = queries[row * width : (row + 1) * width].transpose(0, 1)
            seen_keys, seen_values = (
                pool[table[row]].flatten(0, 1)[:length].transpose(0, 1) for pool in (keys, values)
            )
            mask = torch.ones(width, length, dtype=torch.bool)
            if window_size == (-1, 0):
                mask = mask.tril(length - width)
            attended = torch.nn.functional.scaled_dot_product_attention(asked, seen_keys, seen_values, attn_mask=mask)
            found.append(attended.transpose(0, 1))
        return torch.cat(found)

    return attend


@torch.inference_mode()
def test_a_kernel_that_reads_every_page_is_used(teacher: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots(teacher.decoder, 4, THIRTY_SECONDS)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", paged_attention())
    assert slots.look_in_pages()
    assert not slots.text.any()
    assert not any(pool.any() for pool in slots.audio)


@pytest.mark.parametrize("page", range(THIRTY_SECONDS // PAGE + 1))
@torch.inference_mode()
def test_a_kernel_that_errs_in_one_page_is_not_used(
    teacher: Speaker, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    slots = Slots(teacher.decoder, 4, THIRTY_SECONDS)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", paged_attention(page))
    assert not slots.look_in_pages()


@torch.inference_mode()
def test_memory_is_what_was_remembered(teacher: Speaker) -> None:
    slots = Slots(teacher.decoder, 4, HEARD)
    states = torch.randn(2, HEARD, 32)
    slots.remember(teacher.decoder, states, torch.tensor([3, 1]))
    expected: Memory = teacher.decoder.remember(states)
    found = slots.memory(torch.tensor([3, 1]), HEARD)
    for ours, theirs in zip((*found.keys, *found.values), (*expected.keys, *expected.values), strict=True):
        assert torch.equal(ours, theirs)
    for number, slot in enumerate([3, 1]):
        one, same = slots.row(slot, HEARD), expected.row(number)
        for ours, theirs in zip((*one.keys, *one.values), (*same.keys, *same.values), strict=True):
            assert torch.equal(ours, theirs)


@torch.inference_mode()
def test_one_row_of_what_was_heard_lies_where_it_was_heard(teacher: Speaker) -> None:
    slots, states = Slots(teacher.decoder, 4, HEARD), torch.randn(2, HEARD, 32)
    memory = teacher.decoder.remember(states)
    held = {tensor.untyped_storage().data_ptr() for tensor in (*memory.keys, *memory.values, *slots.audio)}
    for one in (memory.row(1), slots.row(1, HEARD)):
        assert {tensor.untyped_storage().data_ptr() for tensor in (*one.keys, *one.values)} <= held


# --- results on their way --------------------------------------------------------------------------------------------


@dataclass
class Event:
    """As `torch.cuda.Event`, for a machine that has none."""

    blocking: bool
    recorded: Any = None
    awaited: bool = False

    def record(self, stream: Any) -> None:
        self.recorded = stream

    def synchronize(self) -> None:
        self.awaited = True


def test_numbers_are_awaited_on_the_device_that_sends_them(teacher: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread's current device may be another: its stream has nothing to do with the copy."""
    voice = stage(teacher, FAST, Ahead(1)).voice
    voice.device = torch.device("cuda:1")
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **kind: empty(*shape, **kind))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: ("the current stream of", device))
    letter = voice._post(2)
    arrived: Any = letter.arrived
    assert arrived.recorded == ("the current stream of", torch.device("cuda:1"))
    assert len(letter.read()) == 2
    assert arrived.awaited
