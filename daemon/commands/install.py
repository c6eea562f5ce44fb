"""`whisperd install-service`: units and settings for this machine, written where systemd looks.

Owns which files a service consists of, how the shipped ones are fitted to this machine (the program's path, the groups
that there are), and what is never overwritten. Starts and stops nothing: it says which commands do. Knows nothing of
what the service does.
"""

from __future__ import annotations

import grp
import os
import shlex
import stat
import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_SHIPPED_PROGRAM = "/opt/whisperd/bin/whisperd"
"""What the shipped units start."""

_MARK = "# Written by `whisperd install-service`: change it with `systemctl edit whisperd`, which a next time keeps.\n"
_UNITS = ("whisperd.service", "whisperd.socket")
_SYSTEM_UNITS, _SYSTEM_SETTINGS = Path("/etc/systemd/system"), Path("/etc/whisperd")

_HIDDEN = {
    "ProtectHome=": ("/home", "/root", "/run/user"),
    "PrivateTmp=": ("/tmp", "/var/tmp"),
}
"""Folders that the unit takes out of the service's sight, by the line that does."""


class InstallError(Exception):
    """Nothing was done; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class ServiceFile:
    """A file of the service.

    Attributes:
        path: where it belongs, on the machine that it is for.
        kept: whether one that is there already stays as it is.
    """

    path: Path
    text: str
    mode: int
    kept: bool = False


@dataclass(frozen=True, slots=True)
class InstallPaths:
    """Where a service lives.

    Attributes:
        units: the folder of its units.
        settings: the folder of its settings.
        user: whether the user's own manager runs it, and not the system's.
    """

    units: Path
    settings: Path
    user: bool

    @classmethod
    def of(cls, config_home: Path | None) -> InstallPaths:
        """Return the paths of a user's service, or of the system's.

        Args:
            config_home: the user's folder for settings; None for a service of the system.
        """
        if config_home is None:
            return cls(_SYSTEM_UNITS, _SYSTEM_SETTINGS, user=False)
        return cls(config_home / "systemd" / "user", config_home / "whisperd", user=True)

    @property
    def settings_file(self) -> Path:
        return self.settings / "whisperd.yaml"


# --- what is written -------------------------------------------------------------------------------------------------


def files(paths: InstallPaths, program: Sequence[str], groups: Iterable[str]) -> list[ServiceFile]:
    """Return the files of the service.

    Args:
        paths: where they belong.
        program: the words that start `whisperd`.
        groups: those that the machine has.

    Raises:
        InstallError: the shipped files are not there, or systemd cannot start a program of this name.
    """
    unit = _shipped("systemd/user/whisperd.service" if paths.user else "systemd/whisperd.service")
    unit = _with_groups(unit.replace(_SHIPPED_PROGRAM, " ".join(_quoted(word) for word in program)), set(groups))
    socket = _shipped("systemd/whisperd.socket")
    settings = _shipped("config/whisperd.yaml")
    return [
        ServiceFile(paths.units / "whisperd.service", _MARK + unit, 0o644),
        ServiceFile(paths.units / "whisperd.socket", _MARK + socket, 0o644),
        # The system's service has a user of its own that must be able to read them.
        ServiceFile(paths.settings_file, settings, 0o600 if paths.user else 0o644, kept=True),
    ]


def program() -> list[str]:
    """Return the words that start this very `whisperd`."""
    script = Path(sys.executable).with_name("whisperd")
    # -P: the folder that it runs in must not be a place for modules.
    return [str(script)] if script.is_file() else [sys.executable, "-P", "-m", "daemon.commands.cli"]


def groups() -> list[str]:
    return [each.gr_name for each in grp.getgrall()]


def unseen(places: Iterable[Path] | None = None) -> str | None:
    """Return why a service of the system could not start this `whisperd`; None if it could."""
    if places is None:
        places = (
            Path(sys.executable),
            Path(sys.executable).resolve(),
            Path(__file__),
            Path(sysconfig.get_path("stdlib")),
        )
    for place in places:
        if (reason := _out_of_sight(place)) is not None:
            return (
                f"the service could not start from {place}: {reason}: install whisperd with the system's Python "
                "into /opt (python3 -m venv /opt/whisperd), or install the service for yourself with --user"
            )
    return None


def _out_of_sight(place: Path) -> str | None:
    for line, folders in _HIDDEN.items():
        for folder in folders:
            if place.is_relative_to(folder):
                return f"{line} hides {folder}"
    for above in reversed(place.parents):
        if not above.exists():
            return f"{above} does not exist"
        if not above.stat().st_mode & stat.S_IXOTH:
            return f"{above} is closed to other users"
    return None


def _shipped(name: str) -> str:
    """Return a shipped file: in a clone from its project, and once installed from the package's data."""
    installed = Path(sysconfig.get_path("data")) / "share" / "whisperd" / Path(name).relative_to(Path(name).parts[0])
    for place in (Path(__file__).parent.parent.parent / name, installed):
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise InstallError(f"{installed} is missing: install the package again")


def _with_groups(unit: str, there: set[str]) -> str:
    """Return a unit without groups that the machine lacks, which would keep the service from starting (216/GROUP)."""
    lines = []
    for line in unit.splitlines(keepends=True):
        key, _, wanted = line.partition("=")
        if key == "SupplementaryGroups":
            found = [group for group in wanted.split() if group in there]
            line = f"{key}={' '.join(found)}\n"
        lines.append(line)
    return "".join(lines)


def _quoted(word: str) -> str:
    """Return a word as systemd reads those of a command (systemd.service(5))."""
    if set(word) & set("\"'\\"):
        raise InstallError(f"systemd cannot start a program with a quote or backslash in its path: move {word}")
    word = word.replace("%", "%%")
    return f'"{word}"' if any(letter.isspace() for letter in word) else word


# --- writing and removing --------------------------------------------------------------------------------------------


def write(wanted: Iterable[ServiceFile], root: Path, *, dry: bool, say: Callable[[str], None]) -> None:
    """Write each file below `root`, whole or not at all.

    Args:
        wanted: the files.
        root: `/`, or the folder of a packager.
        dry: whether to say only what would be done.
        say: prints a line.

    Raises:
        InstallError: a place cannot be written to.
    """
    for file in wanted:
        target = _below(root, file.path)
        try:
            _write(file, target, dry=dry, say=say)
        except OSError as error:
            raise InstallError(f"{target} cannot be written: {error.strerror}{_mend(error)}") from None


def _write(file: ServiceFile, target: Path, *, dry: bool, say: Callable[[str], None]) -> None:
    there = target.read_text(encoding="utf-8") if target.exists() else None
    if there == file.text:
        say(f"unchanged  {target}")
        return
    if there is not None and file.kept:
        say(f"kept       {target}")
        return
    old = target.with_name(f"{target.name}.old")
    beside = "" if there is None else f" (the previous one is {old.name})"
    say(f"{'would write' if dry else 'wrote     '} {target}{beside}")
    if dry:
        say(
            "".join(f"    {line}\n" for line in file.text.splitlines()).rstrip("\n")
            if not file.kept
            else "    as shipped"
        )
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if there is not None:
        target.replace(old)
    fresh = target.with_name(f".{target.name}.new")
    fresh.write_text(file.text, encoding="utf-8")
    fresh.chmod(file.mode)
    fresh.replace(target)


def remove(paths: InstallPaths, root: Path, *, dry: bool, say: Callable[[str], None]) -> None:
    """Remove the units that `write` wrote. Settings and state stay.

    Args:
        paths: where the service lives.
        root: `/`, or the folder of a packager.
        dry: whether to say only what would be done.
        say: prints a line.

    Raises:
        InstallError: one is still enabled, was not written by us, or cannot be removed.
    """
    found = [target for name in _UNITS if (target := _below(root, paths.units / name)).exists()]
    systemctl = "systemctl --user" if paths.user else "systemctl"
    for target in found:
        if any(target.parent.glob(f"*.wants/{target.name}")):
            raise InstallError(f"{target.name} is enabled: run {systemctl} disable --now {target.name}, then try again")
        if not target.read_text(encoding="utf-8").startswith(_MARK):
            raise InstallError(f"{target} was not written by `whisperd install-service`: remove it yourself")
    for target in found:
        say(f"{'would remove' if dry else 'removed'}  {target}")
        if not dry:
            try:
                target.unlink()
            except OSError as error:
                raise InstallError(f"{target} cannot be removed: {error.strerror}{_mend(error)}") from None
    if not found:
        say(f"there is no service in {_below(root, paths.units)}")
    say(f"kept     {_below(root, paths.settings)}, and what the service has stored")


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to(path.anchor)


def _mend(error: OSError) -> str:
    return ": run it as root (sudo), or with --user" if isinstance(error, PermissionError) and os.geteuid() else ""


# --- what to do next -------------------------------------------------------------------------------------------------


def next_steps(paths: InstallPaths, program: Sequence[str]) -> str:
    systemctl, journal = "systemctl", "journalctl -u whisperd -f"
    if paths.user:
        systemctl, journal = "systemctl --user", "journalctl --user -u whisperd -f"
    steps = [
        (f"{shlex.join(program)} check -c {paths.settings_file}", "test every part and say what to do"),
        (f"{systemctl} daemon-reload", ""),
        (f"{systemctl} enable --now whisperd", "start it, now and at every boot"),
        (f"{systemctl} enable --now whisperd.socket", "optional: the port stays open across restarts"),
        (journal, "read its log"),
    ]
    if paths.user:
        steps.insert(3, ("loginctl enable-linger", "also while you are not logged in"))
    width = max(len(command) for command, _ in steps)
    lines = [f"  {command:{width}}  {why and '# ' + why}".rstrip() for command, why in steps]
    return "\n".join(["next:", f"  edit {paths.settings_file}", *lines])
