"""Which release of whisperd this is.

Owns the question to the installed package. Knows nothing else.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def our_version() -> str | None:
    """As in `pyproject.toml`; None where it is run from its sources without having been installed."""
    try:
        return version("whisperd")
    except PackageNotFoundError:
        return None
