"""Fixtures of the tests with a broker, and what they ask the service about it.

Imported by name into the files that use them; each has its own way to speak.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Broker, broker

from daemon.mqtt import publisher
from daemon.service.app import Service


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of everything in the file that imports it: a broker that was away is found again at once."""
    monkeypatch.setattr(publisher, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(publisher, "_LONGEST_PAUSE", 0.1)


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Broker]:
    with broker(tmp_path) as made:
        yield made


@pytest.fixture(name="mosquitto")
def mosquitto_not_started(tmp_path: Path) -> Iterator[Broker]:
    """In its place, for tests that give it rules first."""
    with broker(tmp_path, started=False) as made:
        yield made


def section(port: int, **more: Any) -> dict[str, Any]:
    """Settings of a service with a broker there."""
    return {"mqtt": {"host": "127.0.0.1", "port": port, **more}}


def counters(daemon: Service) -> str:
    return daemon.pipeline.metrics.text().decode()


def counter(daemon: Service, name: str) -> float:
    return float(counters(daemon).partition(f"\nwhisperd_{name} ")[2].split()[0])


def connected(daemon: Service) -> bool:
    return counter(daemon, "mqtt_connected") == 1
