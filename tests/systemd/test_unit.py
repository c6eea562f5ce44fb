"""The unit, judged by systemd's own checker, and held to the settings that it goes with."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from daemon.settings.schema import Settings

UNIT = Path(__file__).parent.parent.parent / "systemd" / "whisperd.service"
SOCKET = UNIT.with_suffix(".socket")
EXPLAINED = (UNIT.parent / "README.md").read_text()


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with a program that exists: the checker looks for it."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/whisperd/bin/whisperd", "/bin/true"))
    return copy


def keys(unit: Path = UNIT, section: str = "Service") -> dict[str, str]:
    # Keys may come more than once; the checks below look only at those that do not.
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign] # the documented way to keep upper case
    parser.read(unit)
    return dict(parser[section])


def test_systemd_finds_nothing_to_say(installed: Path) -> None:
    # It exits 0 for a key that it does not know: only silence is approval.
    done = analyze("verify", "--man=no", str(installed))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_finds_nothing_to_say_about_the_socket(installed: Path) -> None:
    copy = installed.with_suffix(".socket")
    copy.write_text(SOCKET.read_text())
    done = analyze("verify", "--man=no", str(copy), str(installed))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_socket_is_the_port_of_the_defaults() -> None:
    server = Settings().server
    assert keys(SOCKET, "Socket")["ListenStream"] == f"{server.host}:{server.port}"
    for key in keys(SOCKET, "Socket"):
        assert f"`{key}" in EXPLAINED, f"{key} is not in the README"


def test_what_may_change_is_explained() -> None:
    from daemon.settings.reloadable import _KEYS, _SECTIONS

    table = EXPLAINED.partition("## Settings that change")[2].partition("## The socket")[0]
    for key in (_KEYS | _SECTIONS) - {
        "log",
        "shutdown",
        "escalate.below",
        "escalate.shortest",
    }:  # named by their one key, or with theirs
        assert f"`{key}`" in table, f"{key} is not in the table"


def test_systemd_would_say_something_about_a_mistake(installed: Path) -> None:
    installed.write_text(installed.read_text().replace("ProtectClock=", "ProtectClocks="))
    assert "ProtectClocks" in analyze("verify", "--man=no", str(installed)).stderr


def test_the_exposure_is_as_documented(installed: Path) -> None:
    done = analyze("security", "--offline=true", "--threshold=20", str(installed))
    assert done.returncode == 0, done.stdout
    told = re.search(r"exposure level for .*: ([0-9.]+)", done.stdout)
    assert told
    assert f"calls the exposure {told[1]} of 10" in EXPLAINED


def test_every_line_is_explained() -> None:
    for key in keys():
        if key not in ("ExecStart", "Environment"):
            assert f"`{key}" in EXPLAINED, f"{key} is not in the README"


def test_a_users_unit_has_the_same_life_and_no_other_walls() -> None:
    user, system = keys(UNIT.parent / "user" / UNIT.name), keys()
    places = {"ExecStart", "WorkingDirectory", "SystemCallFilter"}  # another place; and a key that comes twice
    assert {key: user[key] for key in user.keys() - places} == {key: system[key] for key in user.keys() - places}


@pytest.mark.parametrize("unit", [UNIT, UNIT.parent / "user" / UNIT.name], ids=["system", "user"])
def test_there_are_descriptors_for_all_that_the_defaults_let_in(unit: Path) -> None:
    server = Settings().server
    assert int(keys(unit)["LimitNOFILE"]) >= server.max_streams + server.max_subscribers + server.max_handshakes + 192


def test_stopping_leaves_time_for_the_drain() -> None:
    assert int(keys()["TimeoutStopSec"]) > Settings().shutdown.drain


def test_bad_configuration_is_not_tried_again() -> None:
    from daemon.commands.cli import BAD_USAGE

    assert str(BAD_USAGE) in keys()["RestartPreventExitStatus"].split()
