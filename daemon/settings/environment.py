"""What the service manager says through the environment, and the folders that follow from it.

Owns the reading of those variables. Knows no setting but the one for the file of finals that wait for the broker.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from daemon.settings.schema import MqttSettings


@dataclasses.dataclass(frozen=True, slots=True)
class ServiceEnvironment:
    """What the service manager says through the environment.

    Attributes:
        notify_socket: where sd_notify's messages go.
        watchdog: the seconds within which it expects a sign of life.
        credentials: the directory with the service's secrets.
        state: the directory for what outlives the process. It may not exist yet.
        sockets: the file descriptors of ports that it listens on for the service.
        journal: device and inode of the stream that leads into the journal.
    """

    notify_socket: str | None = None
    watchdog: float | None = None
    credentials: Path | None = None
    state: Path | None = None
    sockets: tuple[int, ...] = ()
    journal: str | None = None


_FIRST_SOCKET = 3
"""The first descriptor that a service manager hands over (sd_listen_fds(3))."""


def service_environment(environ: Mapping[str, str] = os.environ) -> ServiceEnvironment:
    directory = environ.get("CREDENTIALS_DIRECTORY")
    period = environ.get("WATCHDOG_USEC", "")
    # Set for another process: a wrapper's, not ours.
    ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    number = environ.get("LISTEN_FDS", "")
    handed = int(number) if environ.get("LISTEN_PID") == str(os.getpid()) and number.isdigit() else 0
    return ServiceEnvironment(
        notify_socket=environ.get("NOTIFY_SOCKET") or None,
        watchdog=int(period) / 1e6 if ours and period.isdigit() and int(period) > 0 else None,
        credentials=Path(directory) if directory else None,
        state=_state_directory(environ),
        sockets=tuple(range(_FIRST_SOCKET, _FIRST_SOCKET + handed)),
        journal=environ.get("JOURNAL_STREAM") or None,
    )


def _state_directory(environ: Mapping[str, str]) -> Path | None:
    """Return the first of the service manager's, or else the user's own."""
    if given := environ.get("STATE_DIRECTORY"):
        return Path(given.partition(":")[0])
    if base := environ.get("XDG_STATE_HOME"):
        return Path(base) / "whisperd"
    home = environ.get("HOME")
    return Path(home) / ".local" / "state" / "whisperd" if home else None


def user_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder where this user keeps settings, which is also that of systemd's user manager."""
    return Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def mqtt_spool(mqtt: MqttSettings, environment: ServiceEnvironment) -> Path | None:
    """Return the file in which finals that wait for the broker outlive the process, or None for no file.

    Each broker and topic has its own: what was meant for one house is not sent to another, and two daemons of one user
    do not share a file.
    """
    if mqtt.spool == "off":
        return None
    if mqtt.spool != "auto":
        return Path(mqtt.spool)
    name = hashlib.sha256(f"{mqtt.host}:{mqtt.port}/{mqtt.topic}".encode()).hexdigest()[:12]
    return environment.state / f"mqtt-{name}.sqlite" if environment.state else None
