"""A Ray cluster on this machine: real raylets, each with a part of the processor, and an application of ours on them.

Owns those processes, and what is deployed. They have ports and folders of their own, beside any other cluster here.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, cast

import psutil

from daemon.engines.cluster.application import DEPLOYMENT, application
from daemon.engines.life import LoadEngine
from daemon.settings.schema import Settings

APPLICATION = "whisperd"

# Ray gives its workers the lowest priority, which on a busy machine is none; and it would tell its makers of each use.
os.environ |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}


class LocalCluster:
    """Raylets on this machine; the first has the head, and this process is a driver there."""

    def __init__(self, raylets: int, cpus: int) -> None:
        import ray
        from ray.cluster_utils import Cluster

        # Replicas find what loads their engine where this process finds it.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, "include_dashboard": False})
        self._others = [self._cluster.add_node(num_cpus=cpus) for _ in range(raylets - 1)]
        ray.init(self.address, namespace="whisperd", log_to_driver=False, logging_level=logging.ERROR)

    @property
    def address(self) -> str:
        """What `engine.address` is for a daemon here."""
        return str(self._cluster.address)

    def deploy(
        self,
        load: LoadEngine,
        digest: Callable[[Settings], str],
        replicas: int = 1,
        sections: Mapping[str, Any] | None = None,
        *,
        wait: bool = True,
        version: str | None = None,
        **options: Any,
    ) -> None:
        """Deploy our application, or other engines under the same name: replicas are replaced one after another.

        Args:
            load: loads an engine; whoever is on this machine can import it.
            digest: returns the digest of its weights.
            replicas: how many, unless `options` has an `autoscaling_config`.
            sections: of the settings.
            wait: until all are there.
            version: of the code; replicas stay that have this one already. None is a version of its own.
            options: of the deployment.
        """
        from ray import serve

        serve.start(proxy_location="Disabled")
        if "autoscaling_config" not in options:
            options["num_replicas"] = replicas
        options.setdefault("ray_actor_options", {"num_cpus": 1})
        deployed = application(sections or {}, load, digest, **options)
        cast(Any, deployed)._bound_deployment._version = version  # `serve deploy` derives it from its configuration
        target = serve.RunTarget(target=deployed, name=APPLICATION, route_prefix=None)
        serve.run_many([target], wait_for_applications_running=wait)

    def running(self) -> int:
        """Return how many replicas take batches."""
        from ray import serve
        from ray.serve.schema import ReplicaState  # type: ignore[attr-defined]

        found = serve.status().applications[APPLICATION].deployments[DEPLOYMENT]
        return found.replica_states.get(ReplicaState.RUNNING, 0)

    def replicas(self) -> list[int]:
        """Return the processes of the replicas."""
        return _processes(f"ray::ServeReplica:{APPLICATION}:{DEPLOYMENT}")

    def controllers(self) -> list[int]:
        """Return the process of Serve's controller."""
        return _processes("ray::ServeController")

    def kill_raylet(self) -> None:
        """Kill a raylet that has not the head, with all that runs there."""
        self._cluster.remove_node(self._others.pop(), allow_graceful=False)

    def add_raylet(self, cpus: int) -> None:
        self._others.append(self._cluster.add_node(num_cpus=cpus))

    def shutdown(self) -> None:
        import ray

        ray.shutdown()
        self._cluster.shutdown()  # type: ignore[no-untyped-call]


def _processes(title: str) -> list[int]:
    """Return the processes of the cluster that call themselves so. A raylet is a child of ours, a worker one of its."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if " ".join(process.cmdline()).startswith(title):
                found.append(process.pid)
    return found


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)


def until(held: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait until something holds.

    Raises:
        TimeoutError: it did not within that time.
    """
    end = time.monotonic() + seconds
    while not held():
        if time.monotonic() > end:
            raise TimeoutError("the cluster did not get there")
        time.sleep(0.2)


@contextmanager
def cluster(raylets: int = 2, cpus: int = 4) -> Iterator[LocalCluster]:
    """Run a cluster for a block."""
    with redirect_stdout(sys.stderr):  # Ray says there what became of its processes
        made = LocalCluster(raylets, cpus)
        try:
            yield made
        finally:
            made.shutdown()
