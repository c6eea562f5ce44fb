"""The container's file, as far as a machine without a container engine can prove it: a linter, and its steps."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from harness import process

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "Containerfile"
BIN = Path(sys.executable).parent


def steps() -> list[tuple[str, str]]:
    """Each instruction, and what is behind it."""
    joined = re.sub(r"\\\n\s*", "", "\n".join(line for line in FILE.read_text().splitlines() if line[:1] != "#"))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def of(wanted: str) -> list[str]:
    return [rest for word, rest in steps() if word == wanted]


def test_a_linter_finds_nothing() -> None:
    done = subprocess.run([BIN / "hadolint", str(FILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_linter_would_find_something(tmp_path: Path) -> None:
    worse = tmp_path / "Containerfile"
    worse.write_text(FILE.read_text().replace("STOPSIGNAL", "STOPSIGNALS"))
    assert subprocess.run([BIN / "hadolint", str(worse)], capture_output=True, check=False).returncode != 0


def test_it_ends_as_a_user_without_rights_and_keeps_what_is_to_be_kept() -> None:
    assert of("USER") == ["10001"]
    assert [word for word, _ in steps()].index("USER") > [word for word, _ in steps()].index("VOLUME")
    assert json.loads(of("VOLUME")[0]) == ["/models", "/state"]
    assert "HF_HOME=/models" in of("ENV")[0]
    assert "STATE_DIRECTORY=/state" in of("ENV")[0]
    assert (of("ENTRYPOINT"), of("CMD")) == (['["whisperd"]'], ['["run"]'])


def test_what_is_copied_is_all_that_the_package_is_made_of(tmp_path: Path) -> None:
    """Its own step, without the requirements: a wheel of what was copied has what the repository's has."""
    context, wheels = tmp_path / "src", tmp_path / "wheels"
    context.mkdir()
    for copied in of("COPY"):
        *sources, target = copied.split()
        for source in [] if sources[0].startswith("--") else sources:
            here = ROOT / source
            if here.is_dir():
                shutil.copytree(here, context / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(here, context)
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels)]
    subprocess.run([sys.executable, *build, str(context)], check=True, capture_output=True)
    (wheel,) = wheels.iterdir()
    inside = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(
        ["git", "ls-files", "daemon", "streaming"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    shipped = {name for name in listed.stdout.splitlines() if not name.endswith(".png")}
    assert shipped <= inside
    assert any(name.endswith("share/whisperd/whisperd.yaml") for name in inside)


def test_its_health_check_tells_a_ready_service_from_none(tmp_path: Path) -> None:
    (check,) = (rest.partition("CMD ")[2] for rest in of("HEALTHCHECK"))
    program, *arguments = json.loads(check)
    assert program == "python"
    with process(tmp_path, {}) as daemon:
        asked = [each.replace("127.0.0.1:8765", daemon.url.removeprefix("ws://")) for each in arguments]
        assert subprocess.run([sys.executable, *asked], check=False, capture_output=True).returncode == 0
    assert subprocess.run([sys.executable, *asked], check=False, capture_output=True).returncode != 0


@pytest.mark.parametrize("token", [True, False])
def test_its_settings_ask_for_a_token(token: bool, tmp_path: Path) -> None:
    environment = dict(each.split("=", 1) for each in of("ENV")[0].split() if each.startswith("WHISPERD_"))
    file = tmp_path / "tokens"
    file.write_text("secret\n")
    file.chmod(0o600)
    if token:
        environment["WHISPERD_SERVER__TOKENS_FILE"] = str(file)
    done = subprocess.run(
        [sys.executable, "-m", "daemon.commands.cli", "check", "--json"], env={"PATH": "/usr/bin:/bin", **environment},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    answers = {answer["what"]: answer for answer in json.loads(done.stdout)}
    assert answers["address"]["fine"] is token
