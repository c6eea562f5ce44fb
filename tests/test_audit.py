"""The audit: each wrong pin, changed file and known weakness is seen, and what was not looked up is said."""

from __future__ import annotations

import json
import sys
from importlib.metadata import Distribution, PathDistribution, version
from pathlib import Path

import pytest
from audit import CONSTRAINTS, damaged, pins, unfit, vulnerabilities

NUMPY = version("numpy")


def test_what_is_installed_here_is_as_pinned() -> None:
    lines = CONSTRAINTS.read_text().splitlines()
    assert pins([line for line in lines if line and not line.startswith("#")]) == []
    assert unfit() == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"numpy=={NUMPY}", None),
        ("numpy==0.1", f"numpy==0.1: {NUMPY} is installed"),
        ("numpy", "is no pin: write numpy==VERSION"),
        ("numpy>=1", "is no pin"),
        ("numpy==2.*", "is no pin"),
        (f"numpy=={NUMPY},!=1", "is no pin"),
        ("no-such-thing==1", "no-such-thing==1: is not installed"),
        ('no-such-thing==1; python_version < "3"', None),
        ("=1", "=1: is no requirement"),
    ],
)
def test_each_pin_is_looked_at(line: str, said: str | None) -> None:
    found = pins([line])
    assert found == [] if said is None else said in found[0]


def test_a_build_of_the_pinned_version_is_as_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution_of(tmp_path, "built-thing", "1.2+cpu")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert pins(["built-thing==1.2"]) == []
    assert pins(["built-thing==1.3"]) == ["built-thing==1.3: 1.2+cpu is installed"]


def distribution_of(folder: Path, name: str, number: str) -> Distribution:
    """With two files, as an installer would leave them."""
    info = folder / f"{name.replace('-', '_')}-{number}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
    (folder / "one.py").write_text("")
    (folder / "two.py").write_text("")
    empty = "sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0"
    (info / "RECORD").write_text(f"one.py,{empty}\ntwo.py,{empty}\n{info.name}/RECORD,,\n")
    return PathDistribution(info)


def test_files_that_changed_are_seen(tmp_path: Path) -> None:
    installed = distribution_of(tmp_path, "thing", "1")
    assert damaged(installed) == []
    (tmp_path / "one.py").write_text("import os")
    (tmp_path / "two.py").unlink()
    assert damaged(installed) == ["thing: one.py was changed", "thing: two.py is gone"]


def answering(output: str, errors: str = "", code: int = 0) -> list[str]:
    script = f"import sys; sys.stdout.write({output!r}); sys.stderr.write({errors!r}); sys.exit({code})"
    return [sys.executable, "-c", script]


GOOD = {"name": "good", "version": "1", "vulns": []}
BAD = {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
UNMENDED = {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-2", "fix_versions": []}]}
SKIPPED = {"name": "odd", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("dependencies", "code", "known", "said"),
    [
        ([GOOD], 0, False, "none, 1 of 1 distributions looked up"),
        ([GOOD, BAD], 1, True, "bad 2: PYSEC-1, mended in 2.1"),
        ([UNMENDED, SKIPPED], 1, True, "1, 1 of 2 distributions looked up\n      bad 2: PYSEC-2, not mended yet"),
        ([GOOD, SKIPPED], 0, None, "none, but only 1 of 2 distributions looked up; nothing was found out about odd"),
    ],
)
def test_what_an_auditor_finds(dependencies: list[object], code: int, known: bool | None, said: str) -> None:
    found = vulnerabilities(answering(json.dumps({"dependencies": dependencies, "fixes": []}), code=code))
    assert found[0] is known
    assert said in found[1]


def test_what_could_not_be_looked_up_is_no_good_news() -> None:
    assert vulnerabilities(answering("", "Traceback\nConnectionError: no network\n", 1)) == (
        None,
        "not looked up: ConnectionError: no network",
    )
    assert vulnerabilities([sys.executable, "-m", "no_such_auditor"])[0] is None
