"""The release of whisperd that is running.

Owns the look-up in the installed package. Knows nothing else.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def our_version() -> str | None:
    """Return the version in `pyproject.toml`, or None if whisperd runs from its sources without being installed."""
    try:
        return version("whisperd")
    except PackageNotFoundError:
        return None
