"""An engine, as the scheduler sees it: something that runs batches.

Owns no more than this shape; `thread.py` and `process.py` have it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from daemon.engines.batch import Ran
from streaming.job import Job


class Worker(Protocol):
    """Runs batches, in the order in which they were submitted."""

    @property
    def open(self) -> bool:
        """Whether it takes batches now. What it has it finishes."""

    @property
    def ahead(self) -> bool:
        """Whether a full batch may wait at the engine while another runs."""

    def teacher_apart(self) -> bool:
        """Return whether it has a teacher whose passes are too long to come with its student's."""

    def submit(self, jobs: Sequence[Job]) -> asyncio.Future[Ran]:
        """Let the engine run a batch from now on. The future has no exception but those of a fault of ours."""
