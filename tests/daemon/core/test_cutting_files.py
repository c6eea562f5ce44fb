"""Ways to cut files that the models do not know are named in the log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import scripted

from daemon.core.pipeline import Pipeline
from daemon.settings.schema import Settings


def settings(way: str) -> Settings:
    return Settings.model_validate({"files": {"long_form": way}})


def without(token: str | None, tokenizer_file: Path, file: Path) -> Path:
    """A copy of a tokenizer that has not this token."""
    tokenizer = json.loads(tokenizer_file.read_text())
    tokenizer["added_tokens"] = [each for each in tokenizer["added_tokens"] if each["content"] != token]
    tokenizer["model"]["vocab"].pop(token, None)
    file.write_text(json.dumps(tokenizer))
    return file


@pytest.mark.parametrize(
    ("missing", "way", "said"),
    [
        (None, "conditioned", None),
        ("<|0.00|>", "vad", None),
        ("<|0.00|>", "timestamps", "files.long_form is timestamps, but scripted has no timestamps"),
        ("<|0.00|>", "conditioned", "files.long_form is conditioned, but scripted has no timestamps"),
        ("<|startofprev|>", "timestamps", None),
        ("<|startofprev|>", "conditioned", "scripted cannot be told the text before"),
    ],
)
async def test_what_the_models_do_not_know_is_said(
    tokenizer_file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    missing: str | None,
    way: str,
    said: str | None,
) -> None:
    """At the start, and when the settings are loaded again."""
    file = without(missing, tokenizer_file, tmp_path / "tokenizer.json")
    for begins, later in ((way, "vad"), ("vad", way)):
        caplog.clear()
        pipeline = Pipeline(settings(begins), scripted(file))
        await pipeline.warm_up()
        pipeline.reload(settings(later))
        warnings = [record.message for record in caplog.records if "long_form" in record.message]
        assert len(warnings) == (said is not None)
        assert all(str(said) in warning for warning in warnings)
