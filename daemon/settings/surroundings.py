"""What a service manager tells through the environment, and the folders that follow from it.

Knows nothing of keys but where the file of what waits for the broker lies.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from daemon.settings.schema import MqttSettings


@dataclasses.dataclass(frozen=True, slots=True)
class Surroundings:
    """What a service manager tells through the environment.

    notify_socket: where sd_notify's messages go. watchdog: seconds within which it wants a sign of life.
    credentials: the directory with the service's secrets. state: the directory for what outlives the process; it may
    not be there yet. sockets: descriptors of ports that it listens on for us. journal: device and inode of the stream
    that leads into the journal.
    """

    notify_socket: str | None = None
    watchdog: float | None = None
    credentials: Path | None = None
    state: Path | None = None
    sockets: tuple[int, ...] = ()
    journal: str | None = None


_FIRST_SOCKET = 3
"""The first descriptor that a service manager hands over (sd_listen_fds(3))."""


def surroundings(environ: Mapping[str, str] = os.environ) -> Surroundings:
    directory = environ.get("CREDENTIALS_DIRECTORY")
    period = environ.get("WATCHDOG_USEC", "")
    # Set for another process: a wrapper's, not ours.
    ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    number = environ.get("LISTEN_FDS", "")
    handed = int(number) if environ.get("LISTEN_PID") == str(os.getpid()) and number.isdigit() else 0
    return Surroundings(
        notify_socket=environ.get("NOTIFY_SOCKET") or None,
        watchdog=int(period) / 1e6 if ours and period.isdigit() and int(period) > 0 else None,
        credentials=Path(directory) if directory else None,
        state=_state_directory(environ),
        sockets=tuple(range(_FIRST_SOCKET, _FIRST_SOCKET + handed)),
        journal=environ.get("JOURNAL_STREAM") or None,
    )


def _state_directory(environ: Mapping[str, str]) -> Path | None:
    """The service manager's, of which there may be several, or else the user's own."""
    if given := environ.get("STATE_DIRECTORY"):
        return Path(given.partition(":")[0])
    if base := environ.get("XDG_STATE_HOME"):
        return Path(base) / "whisperd"
    home = environ.get("HOME")
    return Path(home) / ".local" / "state" / "whisperd" if home else None


def user_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where this user keeps settings, as systemd's user manager has it too."""
    return Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def mqtt_spool(mqtt: MqttSettings, around: Surroundings) -> Path | None:
    """The file in which what waits for the broker outlives the process; None: nowhere.

    A file for each broker and topic: what was meant for one house is not told to another, and two daemons of one user
    do not share one.
    """
    if mqtt.spool == "off":
        return None
    if mqtt.spool != "auto":
        return Path(mqtt.spool)
    name = hashlib.sha256(f"{mqtt.host}:{mqtt.port}/{mqtt.topic}".encode()).hexdigest()[:12]
    return around.state / f"mqtt-{name}.sqlite" if around.state else None
