"""A batch that is lost with whoever was at it, and runs again.

Owns how often that is tried, and that a job whose fault it is fails alone. Jobs are pure: to run one again is safe.
Knows nothing of where batches run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from daemon.engines.batch import Failure, Ran
from streaming.job import Job, Result

Attempt = Callable[[Sequence[Job]], Awaitable[Ran]]
"""Runs a batch once. It may raise `LostBatchError`."""


class LostBatchError(Exception):
    """Nobody will say what came of a batch.

    Attributes:
        blamed: whether it may be the fault of its jobs: they were being run when it happened.
    """

    def __init__(self, reason: str, *, blamed: bool) -> None:
        super().__init__(reason)
        self.blamed = blamed

    def __reduce__(self) -> tuple[Callable[..., LostBatchError], tuple[str, bool]]:
        return _lost, (str(self), self.blamed)  # an exception is made anew from its positional arguments alone


def _lost(reason: str, blamed: bool) -> LostBatchError:
    return LostBatchError(reason, blamed=blamed)


async def run_to_the_end(jobs: Sequence[Job], attempt: Attempt, tries: int, begun: Awaitable[Ran] | None = None) -> Ran:
    """Return what came of a batch, however often it is lost.

    Args:
        jobs: the batch.
        attempt: runs it.
        tries: how often it may be lost while it runs. Then its halves are tried apart, and a job alone fails.
        begun: the first attempt, if it was begun already.
    """
    reason, blame = "", 0
    while blame < tries:
        try:
            return await (begun if begun is not None else attempt(jobs))
        except LostBatchError as lost:
            reason, blame = str(lost), blame + lost.blamed
        begun = None
    if len(jobs) == 1:
        reason = f"{reason} ({tries} times during this job)"
        failed = Result(revision=jobs[0].revision, error=reason)
        return Ran(0.0, [failed], [Failure(1, no_memory=False, reason=reason, trace=reason)])
    half = len(jobs) // 2
    first = await run_to_the_end(jobs[:half], attempt, tries)
    second = await run_to_the_end(jobs[half:], attempt, tries)
    return Ran(
        first.seconds + second.seconds,
        [*first.results, *second.results],
        [*first.failures, *second.failures],
    )
