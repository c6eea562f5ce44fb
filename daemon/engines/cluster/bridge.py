"""The program of a bridge: a daemon's only part that knows Ray.

Owns the link to the cluster: it sends batches to replicas, and says how many replicas there are. It is a process of its
own because Ray ends any process whose cluster is gone for too long. Then it is started again (`lives.py`), and a daemon
goes on without a cluster, as it does with one. Knows nothing of streams, or of what becomes of a batch that is lost.

    python -m daemon.engines.cluster.bridge SOCKET AUDIO BATCH PLACES LEVEL FORMAT
        as for `daemon.engines.child`
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Awaitable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

from daemon.common.errors import ServiceError
from daemon.engines.child import begin, outlive_signals
from daemon.engines.cluster.application import DEPLOYMENT
from daemon.engines.cluster.wire import (
    Batch,
    Brought,
    Changed,
    Description,
    Join,
    Joined,
    Models,
    Refusal,
    Replicas,
    Reply,
)  # fmt: skip
from daemon.engines.messages import Answer, Request, Run, SharedAudio, framed, read
from daemon.engines.persistence import LostBatchError
from streaming.job import Job

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

_LOOK = 1.0
"""Seconds between two looks at the replicas."""

_SILENCE = 30.0
"""Seconds without an answer to such a look after which the link itself is taken for broken."""

_PAUSE = 0.2
"""Seconds before a batch that could not even begin is tried again."""

_CONNECTING = 30.0
"""Seconds that a cluster may take to let the link in."""

_START = (
    "start one (`ray start --head`) on this machine, or let this machine join one (`ray start --address HEAD:6379`)"
)

_JOINING = 20.0
"""Seconds that the first replica, and Serve's controller, may take to answer."""

_NO_CONTROLLER = "Serve's controller does not answer"

_KNOWN = 8
"""Digests of weights that are remembered: a roll-out has two."""


class Bridge:
    """The link to an application of Ray Serve."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, audio: SharedAudio) -> None:
        self._reader, self._writer = reader, writer
        self._audio = audio
        self._join: Join | None = None
        self._handle: Any = None
        self._known: list[str] = []
        self._models: Models | None = None  # as they were when it joined
        self._met: Models | None = None  # with other weights, last
        self._replicas = Replicas(0)
        self._seen = time.monotonic()  # when the cluster last told of its replicas
        self._number = 0  # of batches that were sent
        self._latest = 0  # the greatest number of one that came back
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Do what is asked for, until whoever asks is gone."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request: Request = await read(self._reader)
                self._begin(self._answer(request))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: Request) -> None:
        answer = Answer(request.number)
        try:
            answer = Answer(request.number, await self._done(request.read()))
        except (ServiceError, LostBatchError) as error:
            answer = Answer(request.number, error=error)
        except Exception as error:
            answer = await self._failed(request, error)
        try:
            self._say(answer)
        except Exception as error:  # it cannot be sent
            self._say(await self._failed(request, error))

    async def _failed(self, request: Request, error: Exception) -> Answer:
        """Return the answer to what failed here: somebody waits for one."""
        _log.error("the bridge failed", exc_info=error)
        await asyncio.sleep(_PAUSE)
        return Answer(request.number, error=LostBatchError(f"{type(error).__name__}: {_line(error)}", blamed=True))

    async def _done(self, order: Any) -> Any:
        if isinstance(order, Run):
            return await self._run_batch(self._audio.jobs(order))
        assert isinstance(order, Join)
        return await self._joined(order)

    def _say(self, message: object) -> None:
        self._writer.write(framed(message))

    # --- joining ---------------------------------------------------------------------------------------------------

    async def _joined(self, join: Join) -> Joined:
        """Join the cluster.

        Raises:
            ServiceError: it is not there, or has no such application.
        """
        self._join = join
        try:
            async with asyncio.timeout(_CONNECTING):  # Ray would go on for many minutes
                self._handle = await asyncio.to_thread(_handle, join)
        except TimeoutError:
            raise ServiceError(f"{_nowhere(join)}: no answer within {_CONNECTING:g} s; {_START}") from None
        outlive_signals()  # Ray has its own mind about them
        description: Description = await _told(
            _awaited(self._handle.describe.remote()), f"no replica of {join.application} answers"
        )
        models = description.models
        if join.vocabulary not in ("", models.vocabulary):
            raise ServiceError(f"replicas have models with another vocabulary now ({models}): restart this daemon")
        self._models = models
        self._known = [models.digest]
        self._replicas = await _told(asyncio.to_thread(_replicas, join), _NO_CONTROLLER)
        self._seen = time.monotonic()
        self._begin(self._watch(join))
        return Joined(description, self._replicas)

    async def _watch(self, join: Join) -> None:
        """Tell of the replicas, and end the process when the cluster does not tell any more."""
        while True:
            await asyncio.sleep(_LOOK)
            try:
                async with asyncio.timeout(_SILENCE):
                    replicas = await asyncio.to_thread(_replicas, join)
                self._seen = time.monotonic()
            except Exception as error:  # Serve's controller may be starting again; batches go on meanwhile
                _log.debug("the cluster does not tell of its replicas: %s", _line(error))
                if time.monotonic() - self._seen > _SILENCE:
                    _log.error("the cluster has told nothing of its replicas for %.0f s: %s", _SILENCE, _line(error))
                    os._exit(1)
                continue
            if replicas != self._replicas:
                self._replicas = replicas
                self._say(replicas)

    # --- batches ---------------------------------------------------------------------------------------------------

    async def _run_batch(self, jobs: Sequence[Job]) -> Brought:
        """Send a batch to a replica, and return what came of it.

        Raises:
            LostBatchError: nothing did.
        """
        began = time.monotonic()
        reply = await self._sent(jobs)
        if isinstance(reply, Refusal):
            await self._meet(reply.models)
            reply = await self._sent(jobs)
        if isinstance(reply, Refusal):
            await asyncio.sleep(_PAUSE)
            raise LostBatchError("replicas with ever other weights answer", blamed=False)
        return Brought(reply, max(0.0, time.monotonic() - began - reply.stay))

    async def _sent(self, jobs: Sequence[Job]) -> Reply | Refusal:
        assert self._join is not None, "joined"
        self._number += 1
        number = self._number
        try:
            response = self._handle.run.remote(Batch(jobs, tuple(self._known), self._join.timeout))
            reply = await self._answered(response, number, self._join.timeout)
        except _of_ray() as error:
            blamed = _died_at_it(error)
            if not blamed:
                await asyncio.sleep(_PAUSE)
            raise LostBatchError(f"a replica was lost: {_line(error)}", blamed=blamed) from None
        self._latest = max(self._latest, number)
        return reply

    async def _answered(self, response: Any, number: int, seconds: float) -> Reply | Refusal:
        """Return what a replica answers to the batch of this number.

        Raises:
            LostBatchError: it took too long. It may hang if batches that were sent later have come back; else all wait
                as long, for there is more to do than replicas can.
        """
        answer = asyncio.ensure_future(_awaited(response))
        try:
            while not (await asyncio.wait({answer}, timeout=seconds))[0]:
                if self._replicas.running:  # else it waits for one, which is nobody's fault
                    response.cancel()
                    blamed = self._latest > number
                    raise LostBatchError(f"a replica took longer than {seconds:g} s", blamed=blamed)
            if answer.cancelled():  # by Ray
                await asyncio.sleep(_PAUSE)
                raise LostBatchError("a replica gave a batch up", blamed=False)
            return cast("Reply | Refusal", answer.result())
        finally:
            answer.cancel()

    async def _meet(self, models: Models) -> None:
        """Note that there are replicas with other weights.

        Raises:
            LostBatchError: their tokens mean something else.
        """
        assert self._models is not None, "joined"
        usable = models.stand_in_for(self._models)
        if models.digest not in self._known and models != self._met:
            self._say(Changed(models, usable))
        self._met = models
        if not usable:
            await asyncio.sleep(_LOOK)
            raise LostBatchError(f"a replica has models that cannot be used ({models})", blamed=False)
        if models.digest not in self._known:
            self._known = [*self._known, models.digest][-_KNOWN:]


async def _awaited(response: Any) -> Any:
    return await response


async def _told(answer: Awaitable[_T], nobody: str) -> _T:
    """Return the answer of somebody in the cluster.

    Raises:
        ServiceError: `nobody` answers.
    """
    try:
        async with asyncio.timeout(_JOINING):
            return await answer
    except TimeoutError:
        raise ServiceError(f"{nobody}: see what `serve status` says on the cluster") from None
    except _of_ray() as error:
        raise ServiceError(f"{nobody}: {_line(error)}") from None


# --- Ray -------------------------------------------------------------------------------------------------------------


def _handle(join: Join) -> Any:
    """Return a handle to the application's engines.

    Raises:
        ServiceError: there is no cluster there, or no such application.
    """
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ServiceError(f"engine.backend is ray, but {error}: pip install 'whisperd[ray]'") from None
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # it chose a level of its own when it was imported
    if not ray.is_initialized():
        try:
            ray.init(join.address, namespace="whisperd", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            raise ServiceError(f"{_nowhere(join)}: {_line(error)}; {_START}") from None
    try:
        application = serve.status().applications.get(join.application)
    except _of_ray() as error:
        raise ServiceError(f"{_NO_CONTROLLER}: {_line(error)}") from None
    if application is None:
        raise ServiceError(
            f"the cluster has no application {join.application!r} (engine.application): deploy it with "
            "`serve deploy config/serve.yaml`"
        )
    if DEPLOYMENT not in application.deployments:  # it is built first, which loads all that it imports
        raise ServiceError(
            f"the application {join.application} has no engines yet: see what `serve status` says on the cluster"
        )
    return serve.get_deployment_handle(DEPLOYMENT, join.application)


def _nowhere(join: Join) -> str:
    return f"there is no Ray cluster at {join.address} (engine.address)"


def _replicas(join: Join) -> Replicas:
    """Ask Serve's controller how many replicas there are."""
    from ray import serve

    application = serve.status().applications.get(join.application)
    deployment = application.deployments.get(DEPLOYMENT) if application is not None else None
    states = deployment.replica_states if deployment is not None else {}
    running = sum(count for state, count in states.items() if state == "RUNNING")
    return Replicas(running, sum(states.values()) - running)


def _of_ray() -> tuple[type[Exception], ...]:
    """Return what Ray raises where a replica, its machine or its controller is lost."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    return RayError, RayServeException


def _died_at_it(error: Exception) -> bool:
    """Return whether a replica died while it had the batch, or failed at it."""
    from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError, WorkerCrashedError

    if isinstance(error, ActorUnavailableError):
        return False
    return isinstance(error, RayActorError | RayTaskError | WorkerCrashedError)


def _line(error: BaseException) -> str:
    """Return what an error says, on one line of a bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def _silence_ray() -> None:
    """Keep what Ray says of its own out of our log: pages of a raylet's state, in a form of its own."""
    logging.getLogger("ray").setLevel(logging.WARNING)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives; our log is not written there


async def _serve(connection: socket.socket, audio: SharedAudio) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    try:
        await Bridge(reader, writer, audio).run()
    finally:
        os._exit(0)  # nobody is left to hear; to take leave of a cluster, or of threads that wait for one, takes long


def main(arguments: Sequence[str]) -> None:
    connection, audio = begin(arguments)
    _silence_ray()
    asyncio.run(_serve(connection, audio))


if __name__ == "__main__":
    main(sys.argv[1:])
