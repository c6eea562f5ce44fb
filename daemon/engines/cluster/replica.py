"""A replica: an engine of the cluster, as Ray Serve runs it.

Owns the engine, the one thread that may touch it, and what makes it unhealthy. It is warm before it is ready. Knows
nothing of streams, or of which daemons there are.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from daemon.engines.batch import Ran, run_batch
from daemon.engines.cluster.wire import Batch, Description, Models, Refusal, Reply
from daemon.engines.life import Engine, LoadEngine
from daemon.engines.load import models_digest
from daemon.engines.thread import EngineThread
from daemon.settings.schema import Settings
from streaming.job import SAMPLE_RATE, Job


class UnhealthyError(Exception):
    """The engine hangs, or its canary cannot be decoded: the replica is to be replaced."""


class Replica:
    """An engine, and what a daemon may ask of it.

    Args:
        sections: of the settings: `models`, `scheduler`, `escalate`.
        load: loads the engine.
        digest: returns the digest of its weights.
        name: of the replica.

    Raises:
        ServiceError: see `load_engine`.
    """

    def __init__(
        self,
        sections: Mapping[str, Any],
        load: LoadEngine,
        digest: Callable[[Settings], str] = models_digest,
        name: str = "replica",
    ) -> None:
        settings = Settings.model_validate(dict(sections))
        self._name = name
        self._engine = load(settings)
        self._engine.warm()
        self._description = _described(self._engine, digest(settings))
        self._thread = EngineThread()
        self._until: float | None = None  # when the running batch must be done (`time.monotonic`)
        # The shape of a job, and nothing to find in it.
        self._canary = Job((0.001 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)).astype(np.float32))

    async def describe(self) -> Description:
        return self._description

    async def run(self, batch: Batch) -> Reply | Refusal:
        """Run a batch, unless the daemon does not know these weights."""
        came = time.monotonic()
        if self._description.models.digest not in batch.known:
            return Refusal(self._description.models)
        ran = await self._thread.call(self._timed, batch)
        return Reply(ran, self._name, time.monotonic() - came)

    async def check_health(self) -> None:
        """Decode the canary, if nothing else is being decoded.

        Raises:
            UnhealthyError: it cannot be decoded, or a batch takes too long.
        """
        if self._until is not None:
            if time.monotonic() > self._until:
                raise UnhealthyError("a batch takes longer than it may: the engine hangs")
            return
        ran: Ran = await self._thread.call(run_batch, self._engine.run, [self._canary])
        if (error := ran.results[0].error) is not None:
            raise UnhealthyError(f"the canary cannot be decoded: {error}")

    def _timed(self, batch: Batch) -> Ran:
        self._until = time.monotonic() + batch.seconds
        try:
            return run_batch(self._engine.run, batch.jobs)
        finally:
            self._until = None


def _described(engine: Engine, digest: str) -> Description:
    tokenizer = engine.tokenizer_file.read_bytes()
    vocabulary = hashlib.sha256(tokenizer + engine.eot.to_bytes(4)).hexdigest()
    models = Models(
        engine.student, engine.teacher, engine.device, engine.eot, engine.contexts, engine.languages, digest, vocabulary
    )
    return Description(models, tokenizer)
