"""Tokenizers of strangers: what the library would panic by is refused before, and its panics are errors like others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Pair

from streaming.whisper import tokenizer
from streaming.whisper.checkpoint import CheckpointError, open_checkpoint
from streaming.whisper.tokenizer import TokenizerError, library_errors, load_tokenizer

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def changed(english: Pair, tmp_path: Path) -> Callable[[Change], Path]:
    """The tokenizer of a checkpoint, with something else in it."""

    def write(change: Change) -> Path:
        content = json.loads((english.teacher / "tokenizer.json").read_text())
        change(content)
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        return tmp_path / "tokenizer.json"

    return write


def test_a_tokenizer_is_read(changed: Callable[[Change], Path]) -> None:
    assert load_tokenizer(changed(lambda content: None)).token_to_id("<|endoftext|>") == 600
    # As files of before had them.
    file = changed(
        lambda content: content["model"].update(merges=[" ".join(each) for each in content["model"]["merges"]])
    )
    assert load_tokenizer(file).token_to_id("<|endoftext|>") == 600


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        # The library cuts letters in two by it, and ends the process when it speaks of that.
        (lambda content: content["model"].update(continuing_subword_prefix="x"), "its tokens have a prefix or suffix"),
        (lambda content: content["model"].update(continuing_subword_prefix="é"), "its tokens have a prefix or suffix"),
        (lambda content: content["model"].update(end_of_word_suffix="</w>"), "its tokens have a prefix or suffix"),
        # It panics.
        (lambda content: content["model"]["merges"].insert(0, ["Ġ", "<|endoftext|>"]), "something that is not a token"),
        (lambda content: content["model"]["merges"].insert(0, ["a", "no token"]), "something that is not a token"),
        (lambda content: content["model"]["merges"].insert(0, ["a"]), "something that is not a token"),
        (lambda content: content["model"]["merges"].insert(0, "a"), "something that is not a token"),
        (lambda content: content["model"]["merges"].insert(0, 5), "something that is not a token"),
        (lambda content: content["model"]["merges"].insert(0, [["a"], {}]), "something that is not a token"),
        (lambda content: content["model"].update(merges={}), "no vocabulary or no merges"),
        (lambda content: content["model"].update(vocab=[["a", 0]]), "no vocabulary or no merges"),
        (lambda content: content["model"].update(vocab={}, merges=[]), "no vocabulary or no merges"),
        (lambda content: content["model"]["vocab"].update(a="x"), ""),
        (lambda content: content["model"]["vocab"].update(a=-1), ""),
        (lambda content: content["model"]["vocab"].update(a=1e300), ""),
        (lambda content: content["model"].update(type="Unigram"), "does not use byte pairs"),
        (lambda content: content.update(model=[]), "does not use byte pairs"),
        (lambda content: content.pop("model"), "does not use byte pairs"),
        (lambda content: content.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), ""),
        (lambda content: content.update(pre_tokenizer={"type": "none"}), ""),
        (lambda content: content.update(added_tokens=5), ""),
    ],
)
def test_a_hostile_tokenizer_is_a_sentence(
    change: Change, sentence: str, changed: Callable[[Change], Path], english: Pair, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(english.teacher, tmp_path / "copy"))
    shutil.copy(changed(change), directory)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(directory), "student")
    assert sentence in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"x": "\xff"}', b"[" * 100_000, b"\x00" * 100])
def test_what_is_no_tokenizer(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match="No such file"):
        load_tokenizer(tmp_path / "none.json")


def test_a_file_without_end_is_not_read_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_LARGEST", 1000)
    with pytest.raises(TokenizerError, match="more than 1000 bytes"):
        load_tokenizer(Path("/dev/zero"))


def test_an_interrupt_is_no_error_of_the_library() -> None:
    with pytest.raises(KeyboardInterrupt), library_errors():
        raise KeyboardInterrupt
