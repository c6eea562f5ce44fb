"""What all systems have in common: an environment of its own, a server, and a client that plays one talk.

Owns where environments are and what a system must be able to do. Knows no protocol.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psutil

from bench.broker import free_port
from bench.peers.judge import Talk
from bench.peers.screen import Screen
from bench.peers.server import serving


@dataclass(frozen=True, slots=True)
class Weights:
    """tiny.en in the layouts that the others read.

    Attributes:
        ctranslate: a folder in the layout of CTranslate2.
        hub: a folder in the hub's layout.
    """

    ctranslate: Path
    hub: Path


@dataclass(frozen=True, slots=True)
class Served:
    """A server that listens.

    Attributes:
        process: its first process.
        port: on this machine.
    """

    process: psutil.Process
    port: int


class System(ABC):
    """One of the systems that are compared.

    Attributes:
        name: in the table, and on the command line.
        says: how it was run, for the report.
        partials: whether it shows anything before a final.
    """

    name: ClassVar[str]
    says: ClassVar[str]
    partials: ClassVar[bool] = True

    @property
    def missing(self) -> str:
        """What to do so that it can run; empty if nothing is."""
        return ""

    @abstractmethod
    def serving(self, folder: Path) -> AbstractContextManager[Served]:
        """Run its server for as long as the block runs.

        Args:
            folder: where its log and its state go.

        Raises:
            ServiceError: it does not start.
        """

    @abstractmethod
    async def hear(self, served: Served, name: str, talk: Talk, screen: Screen) -> None:
        """Play a talk, and return when nothing more can come.

        Args:
            served: its server.
            name: of the stream.
            talk: what is said.
            screen: what is heard goes there.
        """


class Peer(System):
    """One that is not ours, in an environment of its own.

    Args:
        environments: the folder that has a folder for each.
        weights: the weights.

    Attributes:
        installs: what pip installs there, a call each.
    """

    installs: ClassVar[tuple[str, ...]]
    environment: ClassVar[str]
    """Its folder's name."""

    def __init__(self, environments: Path, weights: Weights) -> None:
        self._home = environments / self.environment
        self._weights = weights

    @property
    def python(self) -> Path:
        return self._home / "bin" / "python"

    @property
    def missing(self) -> str:
        return "" if self.python.exists() else self.recipe(self._home)

    @classmethod
    def recipe(cls, home: Path | str) -> str:
        """Return the commands that make its environment."""
        return " && ".join([f"python -m venv {home}", *(f"{home}/bin/pip install {each}" for each in cls.installs)])

    @abstractmethod
    def command(self, port: int) -> list[str]:
        """Return the arguments of its Python that serve on a port."""

    @contextmanager
    def serving(self, folder: Path) -> Iterator[Served]:
        port = free_port()
        # All of them take the number of threads from here where they are told none.
        told = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(os.cpu_count() or 1)}
        # Isolated (-I), so that nothing of this project's folder is taken for theirs.
        command = [str(self.python), "-I", *self.command(port)]
        with serving(command, port, folder / f"{self.name}.log", told) as process:
            yield Served(process, port)
