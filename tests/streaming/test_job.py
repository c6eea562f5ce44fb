"""What the failure of a batch costs, and how sure a text is."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.job import UNTHINNED, Job, Result, isolated, out_of_memory, sureness, utterance_confidence


def jobs_of(count: int) -> list[Job]:
    return [Job(np.zeros(1, np.float32), revision=number) for number in range(count)]


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 40))
def test_each_job_has_its_result_and_only_the_culprits_fail(bad: list[bool], room: int) -> None:
    """Culprits anywhere, and memory for `room` jobs at once."""
    runs: list[int] = []

    def run(jobs: Sequence[Job]) -> list[Result]:
        runs.append(len(jobs))
        if len(jobs) > room:
            raise MemoryError
        if any(bad[job.revision] for job in jobs):
            raise ValueError("bad")
        return [Result(revision=job.revision, tokens=(job.revision,)) for job in jobs]

    results = isolated(run, jobs_of(len(bad)))
    assert [result.revision for result in results] == list(range(len(bad)))
    assert [result.error for result in results] == ["ValueError: bad" if each else None for each in bad]
    assert [result.tokens for result in results] == [() if each else (at,) for at, each in enumerate(bad)]
    # Never more than one by one would have cost, twice.
    assert len(runs) < 2 * len(bad) or len(bad) == 1


def test_what_did_not_fit_is_let_go_of_before_its_halves_are_tried() -> None:
    class Tensor:
        pass

    alive: list[weakref.ref[Tensor]] = []

    def run(jobs: Sequence[Job]) -> list[Result]:
        assert not any(reference() for reference in alive), "the failed batch still holds its memory"
        tensor = Tensor()
        alive.append(weakref.ref(tensor))
        if len(jobs) > 1:
            raise RuntimeError("CUDA out of memory")
        return [Result(revision=jobs[0].revision)]

    assert not any(result.error for result in isolated(run, jobs_of(4)))
    assert len(alive) == 7


def test_a_wrong_number_of_results_is_a_failure() -> None:
    (result,) = isolated(lambda jobs: [], jobs_of(1))
    assert result.error == "RuntimeError: the engine gave 0 results for 1 jobs"


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("the size of tensor a must match the size of tensor b"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, memory: bool) -> None:
    assert out_of_memory(error) is memory


LOG_PROBS = st.floats(-8, 0)


@given(st.lists(LOG_PROBS, max_size=UNTHINNED))
def test_of_up_to_a_sentence_a_text_is_as_sure_as_its_mean(log_probs: list[float]) -> None:
    assert sureness(tuple(log_probs)) == utterance_confidence(tuple(log_probs))


@given(st.lists(LOG_PROBS, min_size=UNTHINNED, max_size=60), st.lists(LOG_PROBS, max_size=60))
def test_more_words_never_make_a_long_text_surer(log_probs: list[float], more: list[float]) -> None:
    assert sureness((*log_probs, *more)) <= sureness(tuple(log_probs)) <= utterance_confidence(tuple(log_probs))


def test_a_loop_is_not_sure_however_sure_each_of_its_words_is() -> None:
    loop = (math.log(0.97),) * 400
    assert utterance_confidence(loop) > 0.9
    assert sureness(loop) < 0.5
