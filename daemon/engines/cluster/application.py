"""What Ray Serve deploys: replicas of the engine, without an ingress.

Owns how `config/serve.yaml` becomes a deployment. Batches come through the daemons' handles: Serve's own ingress would
end the long sockets of streams whenever replicas change. Imported by Serve, on the machines of the cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from daemon.engines.cluster.replica import Replica
from daemon.engines.life import LoadEngine
from daemon.engines.load import load_engine, models_digest
from daemon.settings.schema import Settings

if TYPE_CHECKING:
    from ray.serve import Application

DEPLOYMENT = "engine"
"""The deployment's name, by which `config/serve.yaml` sets how many replicas there are, and with what."""

ONGOING = 2
"""Batches at a replica: one that runs, and one that has come meanwhile."""


def build(sections: Mapping[str, Any]) -> Application:
    """Return the application that `config/serve.yaml` names.

    Args:
        sections: of the settings, `args` there: `models`, `scheduler`, `escalate`.

    Raises:
        pydantic.ValidationError: they make no sense.
    """
    Settings.model_validate(dict(sections))  # here, where whoever deploys sees it
    return application(sections)


def application(
    sections: Mapping[str, Any],
    load: LoadEngine = load_engine,
    digest: Callable[[Settings], str] = models_digest,
    **options: Any,
) -> Application:
    """Return an application whose replicas have another engine.

    Args:
        sections: of the settings.
        load: loads the engine, on the replica's machine.
        digest: returns the digest of its weights.
        options: of the deployment, as Ray Serve takes them.
    """
    from ray import serve

    class Engine(Replica):
        def __init__(self) -> None:
            super().__init__(sections, load, digest, serve.get_replica_context().replica_id.unique_id)

    deploy: Callable[[type[Engine]], serve.Deployment] = serve.deployment(
        name=DEPLOYMENT, **{"max_ongoing_requests": ONGOING, **options}
    )
    return deploy(Engine).bind()
