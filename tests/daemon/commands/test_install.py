"""`whisperd install-service`, into a folder that stands for the machine; systemd's own checker judges what it wrote."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import ROOT

from daemon.commands import cli, install
from daemon.settings.load import load

Install = Callable[..., tuple[int, str, str]]
UNIT, SOCKET = "etc/systemd/system/whisperd.service", "etc/systemd/system/whisperd.socket"
SETTINGS = "etc/whisperd/whisperd.yaml"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    made.mkdir()
    return made


@pytest.fixture
def whisperd(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Install:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/home/me/.config")

    def run(command: str, *options: str) -> tuple[int, str, str]:
        code = cli.main([command, "--root", str(root), *options])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def verify(*units: Path, user: bool = False) -> tuple[int, str, str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    # A user's manager has a folder for its sockets, even if nobody is logged in here.
    command = [program, *(["--user"] if user else []), "verify", "--man=no", *map(str, units)]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "XDG_RUNTIME_DIR": folder}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stdout, done.stderr


def test_a_service_of_the_system(whisperd: Install, root: Path) -> None:
    code, out, err = whisperd("install-service")
    assert (code, err) == (0, "")
    assert set(tree(root)) == {UNIT, SOCKET, SETTINGS}
    unit = (root / UNIT).read_text()
    assert f"ExecStart={' '.join(install.program())} run\n" in unit
    assert Path(install.program()[0]).parent == Path(sys.executable).parent
    assert verify(root / UNIT, root / SOCKET) == (0, "", "")
    assert load(root / SETTINGS, {}) == load(Path(os.devnull), {})
    # Its user is not ours.
    assert (root / SETTINGS).stat().st_mode & 0o777 == 0o644
    for step in ("edit /etc/whisperd/whisperd.yaml", "systemctl daemon-reload", "systemctl enable --now whisperd"):
        assert step in out


def test_a_service_of_a_user(whisperd: Install, root: Path) -> None:
    code, out, _ = whisperd("install-service", "--user")
    assert code == 0
    unit = root / "home/me/.config/systemd/user/whisperd.service"
    settings = root / "home/me/.config/whisperd/whisperd.yaml"
    assert set(tree(root)) == {str(each.relative_to(root)) for each in (unit, unit.with_suffix(".socket"), settings)}
    assert "run -c %E/whisperd/whisperd.yaml" in unit.read_text()
    assert verify(unit, unit.with_suffix(".socket"), user=True) == (0, "", "")
    assert settings.stat().st_mode & 0o777 == 0o600
    assert "systemctl --user enable --now whisperd" in out
    assert "loginctl enable-linger" in out


def test_a_mistake_in_a_users_unit_would_be_seen(whisperd: Install, root: Path) -> None:
    whisperd("install-service", "--user")
    unit = root / "home/me/.config/systemd/user/whisperd.service"
    unit.write_text(unit.read_text().replace("UMask=", "UMasks="))
    assert "UMasks" in verify(unit, user=True)[2]


def test_a_dry_run_shows_and_writes_nothing(whisperd: Install, root: Path) -> None:
    code, out, _ = whisperd("install-service", "--dry-run")
    assert code == 0
    assert tree(root) == {}
    assert f"would write {root / UNIT}" in out
    assert f"    ExecStart={' '.join(install.program())} run" in out
    assert "systemctl daemon-reload" in out


def test_settings_are_never_overwritten_and_a_changed_unit_is_set_aside(whisperd: Install, root: Path) -> None:
    whisperd("install-service")
    before = tree(root)
    code, out, _ = whisperd("install-service")
    assert (code, tree(root)) == (0, before)
    assert out.count("unchanged") == 3
    (root / SETTINGS).write_text("log: {level: debug}\n")
    (root / UNIT).write_text("mine\n")
    code, out, _ = whisperd("install-service")
    assert code == 0
    assert f"kept       {root / SETTINGS}" in out
    assert "(the previous one is whisperd.service.old)" in out
    assert tree(root) == {**before, SETTINGS: "log: {level: debug}\n", f"{UNIT}.old": "mine\n"}


def test_uninstalling(whisperd: Install, root: Path) -> None:
    whisperd("install-service")
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir()
    (wants / "whisperd.service").symlink_to("../whisperd.service")
    code, _, err = whisperd("uninstall-service")
    assert code == 1
    assert "is enabled: run systemctl disable --now whisperd.service" in err
    (wants / "whisperd.service").unlink()
    assert whisperd("uninstall-service", "--dry-run")[0] == 0
    assert set(tree(root)) == {UNIT, SOCKET, SETTINGS}
    assert whisperd("uninstall-service")[0] == 0
    assert set(tree(root)) == {SETTINGS}
    code, out, _ = whisperd("uninstall-service")
    assert code == 0
    assert "there is no service" in out


def test_a_unit_of_others_is_not_removed(whisperd: Install, root: Path) -> None:
    whisperd("install-service")
    (root / UNIT).write_text("mine\n")
    code, _, err = whisperd("uninstall-service")
    assert code == 1
    assert "was not written by `whisperd install-service`" in err
    assert (root / UNIT).read_text() == "mine\n"


def test_a_place_that_cannot_be_written_to(whisperd: Install, root: Path) -> None:
    (root / "etc").write_text("a file where a folder belongs")
    code, _, err = whisperd("install-service")
    assert code == 1
    assert "cannot be written: Not a directory" in err
    assert "Traceback" not in err


def test_groups_that_the_machine_lacks_are_struck_out() -> None:
    layout = install.InstallPaths.of(None)
    unit = install.files(layout, ["/x"], ["audio", "render", "wheel"])[0].text
    assert "SupplementaryGroups=audio render\n" in unit
    assert "SupplementaryGroups=\n" in install.files(layout, ["/x"], [])[0].text


def test_a_path_with_anything_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "my 100% tools"
    folder.mkdir()
    program = folder / "whisperd"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "whisperd.service"
    unit.write_text(install.files(install.InstallPaths.of(None), [str(program)], install.groups())[0].text)
    assert '/my 100%% tools/whisperd" run' in unit.read_text()
    assert verify(unit) == (0, "", "")
    with pytest.raises(install.InstallError, match="a quote or backslash"):
        install.files(install.InstallPaths.of(None), ["/my 'own'/whisperd"], [])


def test_a_program_that_the_service_could_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    assert install.unseen([Path("/usr/bin/env")]) is None
    assert "PrivateTmp= hides /tmp" in str(install.unseen([Path("/tmp/venv/bin/whisperd")]))
    told = str(install.unseen([Path("/home/me/venv/bin/whisperd")]))
    assert "ProtectHome= hides /home" in told
    assert "--user" in told
    assert "/nowhere does not exist" in str(install.unseen([Path("/nowhere/bin/whisperd")]))
    monkeypatch.setattr(install, "_HIDDEN", {})
    with tempfile.TemporaryDirectory() as closed:
        assert f"{closed} is closed to other users" in str(install.unseen([Path(closed) / "whisperd"]))
        Path(closed).chmod(0o711)
        assert install.unseen([Path(closed) / "whisperd"]) is None


def test_the_package_brings_the_units(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("daemon", "config", "systemd"):
        shutil.copytree(ROOT / name, tmp_path / name)
    script = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = {name.partition(".data/data/")[2] for name in zipfile.ZipFile(wheel).namelist()}
    below = "share/whisperd"
    assert {f"{below}/whisperd.yaml", f"{below}/whisperd.service", f"{below}/whisperd.socket"} <= names
    assert f"{below}/user/whisperd.service" in names
