"""The finished parts of a long measurement, kept in a folder until all of it is done.

Owns the files: one for each part, which says what measurement it is part of, so that figures of other models or clips
are never reused. Knows nothing of what is measured.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distillation.files import write_text_whole


class Parts:
    """The parts of one measurement.

    Args:
        folder: where they are kept; None for nowhere.
        of: a digest that distinguishes this measurement from others.
    """

    def __init__(self, folder: Path | None, of: str) -> None:
        self._folder = folder
        self._of = of

    def all(self, measures: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """Return every part, as it was kept, or measured now and kept at once.

        Args:
            measures: what measures each part, by its name; its figures must fit into JSON.
        """
        return {name: self._one(name, measure) for name, measure in tqdm(measures.items(), "evaluate", unit="part")}

    def _one(self, name: str, measure: Callable[[], Any]) -> Any:
        if self._folder is None:
            return measure()
        path = self._folder / _file_name(name)
        kept = _read(path)
        if kept.get("of") != self._of or kept.get("part") != name:
            kept = {"part": name, "of": self._of, "figures": measure()}
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text_whole(json.dumps(kept), path)
        return kept["figures"]

    def forget(self) -> None:
        """Remove what is kept."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _file_name(part: str) -> str:
    """Names of sets may hold anything, and be long: the digest is what tells them apart."""
    return f"{re.sub(r'[^a-z0-9]+', '-', part.lower())[:60]}-{hashlib.sha256(part.encode()).hexdigest()[:8]}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
