"""`python -m tests.audit`: are the libraries those that we mean, and is anything bad known of them?

Owns three questions that need no network, and one that does:

- Is each pin of constraints.txt a pin (`name==version`), and installed as pinned?
- Do the installed distributions fit each other (`pip check`)?
- Are their files those that were installed? Each distribution lists its files with their SHA-256; what was changed or
  deleted afterwards is named. The list lies beside the files: this finds damage and carelessness, not somebody who
  changed both.
- Is a vulnerability known? `pip-audit` asks PyPI's advisories about every installed version, where it is installed and
  the network is there. Of what is not known there, or has no answer, it says so.

Without the network nothing can be known of vulnerabilities that were published, and it says so; nor can it, ever, of
those that were not. Exit code: 1 if something is wrong, 0 if nothing that could be looked at is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, PackagePath, distribution, distributions
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
PATIENCE = 300.0


def main(constraints: Path = CONSTRAINTS) -> int:
    installed = list(distributions())
    pinned, files = _lines(constraints), sum(len(list(recorded(each))) for each in installed)
    wrong = 0
    for question, among, found in [
        ("pins that are not installed as pinned", len(pinned), pins(pinned)),
        ("distributions that do not fit each other", len(installed), unfit()),
        ("files that are not as they were installed", files, [each for one in installed for each in damaged(one)]),
    ]:
        print(f"{'FAIL' if found else 'ok':6}{question}: {len(found) or 'none'} of {among}")
        for sentence in found:
            print(f"      {sentence}")
        wrong += len(found)
    known, said = vulnerabilities([sys.executable, "-m", "pip_audit"])
    print(f"{ {None: '?', True: 'FAIL', False: 'ok'}[known]:6}known vulnerabilities: {said}")
    return 1 if wrong or known else 0


def _lines(constraints: Path) -> list[str]:
    lines = [line.partition("#")[0].strip() for line in constraints.read_text().splitlines()]
    return [line for line in lines if line]


def pins(lines: Sequence[str]) -> list[str]:
    """What is wrong with the lines of a constraints file, and with what is installed."""
    return [sentence for line in lines if (sentence := _pin(line))]


def _pin(line: str) -> str:
    try:
        requirement = Requirement(line)
    except InvalidRequirement:
        return f"{line}: is no requirement"
    pinned = next(iter(requirement.specifier), None)
    if pinned is None or len(requirement.specifier) != 1 or pinned.operator != "==" or pinned.version.endswith("*"):
        return f"{line}: is no pin: write {requirement.name}==VERSION"
    if requirement.marker is not None and not requirement.marker.evaluate():
        return ""
    try:
        here = distribution(requirement.name).version
    except PackageNotFoundError:
        return f"{line}: is not installed"
    # 2.13.0+cpu is a build of 2.13.0, and as good.
    return "" if here == pinned.version or Version(here).public == pinned.version else f"{line}: {here} is installed"


def unfit() -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "check", "--disable-pip-version-check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return [] if done.returncode == 0 else (done.stdout + done.stderr).strip().splitlines()


def recorded(installed: Distribution) -> Iterator[PackagePath]:
    """Its files of which it is known what was in them."""
    return (file for file in installed.files or () if file.hash is not None and file.suffix != ".pyc")


def damaged(installed: Distribution) -> list[str]:
    """Files of it that are gone, or are not what was installed."""
    found = []
    for file in recorded(installed):
        path = Path(str(file.locate()))
        if not path.is_file():
            found.append(f"{installed.name}: {file} is gone")
        elif not _is_as_recorded(path, file):
            found.append(f"{installed.name}: {file} was changed")
    return found


def _is_as_recorded(path: Path, file: PackagePath) -> bool:
    assert file.hash is not None, "it was asked for"
    with open(path, "rb") as data:
        digest = hashlib.file_digest(data, file.hash.mode).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value


def vulnerabilities(auditor: Sequence[str]) -> tuple[bool | None, str]:
    """Whether one is known (None: could not be found out), and what to say. auditor: the command."""
    try:
        done = subprocess.run(
            [*auditor, "--local", "--skip-editable", "--progress-spinner", "off", "--format", "json"],
            capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
        looked_up = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return None, f"not looked up: no answer in {PATIENCE:.0f} s"
    except ValueError:  # it ends without its list where there is no network, and where it is not installed
        return None, "not looked up: " + (done.stderr.strip().splitlines() or ["no answer"])[-1]
    bad = [
        f"{each['name']} {each['version']}: {vulnerability['id']}, {_mended(vulnerability['fix_versions'])}"
        for each in looked_up
        for vulnerability in each.get("vulns", ())
    ]
    skipped = [each["name"] for each in looked_up if "skip_reason" in each]
    asked = f"{len(looked_up) - len(skipped)} of {len(looked_up)} distributions looked up"
    if bad:
        return True, f"{len(bad)}, {asked}" + "".join(f"\n      {sentence}" for sentence in bad)
    if skipped:
        return None, f"none, but only {asked}; nothing was found out about {', '.join(skipped)}"
    return False, f"none, {asked}"


def _mended(versions: Sequence[str]) -> str:
    return f"mended in {', '.join(versions)}" if versions else "not mended yet"


if __name__ == "__main__":
    sys.exit(main())
