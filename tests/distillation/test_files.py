"""Files and folders that are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from distillation.files import (
    InUseError,
    NotWritten,
    folder_written_whole,
    only_writer,
    unfinished_folder,
    write_text_whole,
)


def test_a_text_takes_the_place_of_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "about.json"
    for text in ("old", "new"):
        write_text_whole(text, path)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotWritten, match=r"about\.json cannot be written \(.*No such file"):
        write_text_whole("text", tmp_path / "nowhere" / "about.json")


def test_a_folder_that_is_interrupted_stays_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "config.json").write_text("old")

    def write() -> None:
        with folder_written_whole(folder, last="config.json") as part:
            (part / "config.json").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert (folder / "config.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_files_are_moved_into_place_and_strangers_stay(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "notes").mkdir(parents=True)
    secret = folder / "notes" / "secret"
    secret.write_text("mine")
    secret.chmod(0o600)
    for name in ("config.json", "old.safetensors", "README.md"):
        (folder / name).write_text("old")
        (folder / name).chmod(0o600)
    with folder_written_whole(folder, last="config.json", replaced=["*.safetensors"]) as part:
        (part / "config.json").write_text("new")
        (part / "new.safetensors").write_text("new")
    assert {path.name for path in folder.iterdir()} == {"config.json", "new.safetensors", "README.md", "notes"}
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder / "config.json", folder / "README.md", secret)}
    assert modes == {"config.json": 0o644, "README.md": 0o600, "secret": 0o600}
    assert not unfinished_folder(folder).exists()


def test_while_files_are_moved_the_last_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "config.json").write_text("old")
    moved: list[tuple[str, bool]] = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        moved.append((self.name, (folder / "config.json").exists()))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    with folder_written_whole(folder, last="config.json") as part:
        for name in ("a", "config.json", "model.safetensors"):
            (part / name).write_text("new")
    assert sorted(moved[:-1]) == [("a", False), ("model.safetensors", False)]
    assert moved[-1] == ("config.json", False)


def test_two_programs_do_not_write_the_same(tmp_path: Path) -> None:
    labels = tmp_path / "labels.jsonl"
    again = pytest.raises(InUseError, match=r"labels\.jsonl is being written by another program")
    with only_writer(labels), only_writer(tmp_path / "others.jsonl"), again, only_writer(labels):
        pass
    with only_writer(labels):
        pass
