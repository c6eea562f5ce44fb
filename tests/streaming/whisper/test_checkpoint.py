"""Checkpoints as they come, and the sentence that each broken one is refused with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from checkpoints import Pair
from safetensors.torch import load_file
from transformers import WhisperForConditionalGeneration

from streaming.whisper.checkpoint import (
    CheckpointError,
    open_checkpoint,
    require_same_vocabulary,
)
from streaming.whisper.model import build_decoder, build_encoder
from streaming.whisper.weights import count_parameters, read_weights, same_encoder


@pytest.fixture
def copy(english: Pair, tmp_path: Path) -> Path:
    """A checkpoint to break."""
    return Path(shutil.copytree(english.teacher, tmp_path / "copy"))


def rewrite(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_english_only(english: Pair) -> None:
    checkpoint = open_checkpoint(str(english.teacher), "student")
    assert checkpoint.name == "english-teacher"
    assert checkpoint.contexts == (1.0, 2.0, 5.0)
    assert checkpoint.dimensions.mels == 80
    assert checkpoint.alignment_heads is None
    grammar = checkpoint.grammar
    assert (grammar.eot, grammar.sot, grammar.no_timestamps, grammar.no_speech) == (600, 601, 610, 609)
    assert (grammar.languages, grammar.tasks, grammar.max_length) == ({}, {}, 448)


def test_multilingual_and_without_our_own_file(folder: Path) -> None:
    directory = checkpoints.build_checkpoint(
        folder / "aligned", checkpoints.SMALL_MULTILINGUAL, alignment_heads=[(1, 0)]
    )
    checkpoint = open_checkpoint(str(directory), "teacher")
    assert checkpoint.contexts == (30.0,)
    assert list(checkpoint.grammar.languages) == ["en", "de", "fr"]
    assert sorted(checkpoint.grammar.tasks) == ["transcribe", "translate"]
    assert checkpoint.alignment_heads == ((1, 0),)


@pytest.mark.parametrize(("named", "kept"), [([[1, 0], [7, 0]], ((1, 0),)), ([[7, 0], [0, 99]], None)])
def test_alignment_heads_of_the_teachers_layers_are_left_out(
    named: list[list[int]], kept: tuple[tuple[int, int], ...] | None, folder: Path, tmp_path: Path
) -> None:
    """As published students name them, whose configuration is their teachers'."""
    directory = checkpoints.build_checkpoint(tmp_path / "student", checkpoints.SMALL_MULTILINGUAL)
    rewrite(directory / "generation_config.json", lambda c: c.update(alignment_heads=named))
    assert open_checkpoint(str(directory), "student").alignment_heads == kept


def test_an_old_multilingual_checkpoint_tells_by_its_tokens(folder: Path, tmp_path: Path) -> None:
    """Without lists of languages and tasks, the tokenizer and the vocabulary's size have to say."""
    directory = checkpoints.build_checkpoint(tmp_path / "old", checkpoints.SMALL_MULTILINGUAL)

    def forget(generation: dict[str, Any]) -> None:
        del generation["lang_to_id"], generation["task_to_id"], generation["no_timestamps_token_id"]

    rewrite(directory / "generation_config.json", forget)
    grammar = open_checkpoint(str(directory), "student").grammar
    assert grammar.languages == {"en": 602, "de": 603, "fr": 604}
    assert grammar.tasks == {"transcribe": 606, "translate": 605}
    assert grammar.no_timestamps == 610


def test_rules_in_config_where_there_is_no_generation_config(copy: Path) -> None:
    (copy / "generation_config.json").unlink()
    rewrite(copy / "config.json", lambda config: config.update(suppress_tokens=[4, 5], begin_suppress_tokens=[6]))
    grammar = open_checkpoint(str(copy), "student").grammar
    assert (grammar.suppress, grammar.begin_suppress, grammar.no_timestamps) == ((4, 5), (6,), 610)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_in_any_precision_and_in_shards(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = checkpoints.build_checkpoint(tmp_path / "whole", dtype=dtype)
    expected = load_file(whole / "model.safetensors")
    model = WhisperForConditionalGeneration.from_pretrained(whole, dtype=dtype)
    sharded = Path(shutil.copytree(whole, tmp_path / "sharded"))
    (sharded / "model.safetensors").unlink()
    model.save_pretrained(sharded, max_shard_size="100KB")
    assert not (sharded / "model.safetensors").exists()
    for directory in (whole, sharded):
        weights = read_weights(open_checkpoint(str(directory), "student"), torch.float32)
        assert {value.dtype for value in weights.values()} == {torch.float32}
        assert weights.keys() == {name.removeprefix("model.") for name in expected}
        for name, value in expected.items():
            assert torch.equal(weights[name.removeprefix("model.")], value.float())


def test_an_untied_head_and_a_scaled_embedding_are_honoured(copy: Path) -> None:
    rewrite(copy / "config.json", lambda config: config.update(tie_word_embeddings=False, scale_embedding=True))
    checkpoint = open_checkpoint(str(copy), "student")
    weights = read_weights(checkpoint, torch.float32)
    weights["proj_out.weight"] = torch.randn_like(weights["decoder.embed_tokens.weight"])
    decoder = build_decoder(checkpoint.dimensions, weights)
    assert decoder.proj_out is not None
    assert torch.equal(decoder.proj_out.weight, weights["proj_out.weight"])
    assert decoder.scale == pytest.approx(32**0.5)


def test_a_tokenizer_that_has_to_be_converted(copy: Path) -> None:
    whole = json.loads((copy / "tokenizer.json").read_text())
    model = whole["model"]
    words = dict(model["vocab"])
    (copy / "vocab.json").write_text(json.dumps(words))
    (copy / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]) + "\n")
    added = {token["content"]: token["id"] for token in whole["added_tokens"] if token["content"] not in words}
    (copy / "added_tokens.json").write_text(json.dumps(added))
    reference = open_checkpoint(str(copy), "student")
    (copy / "tokenizer.json").unlink()
    rewrite(copy / "tokenizer_config.json", lambda config: config.pop("added_tokens_decoder", None))
    checkpoint = open_checkpoint(str(copy), "student")
    assert checkpoint.tokenizer_file.exists()
    assert checkpoint.tokenizer_file.parent != copy
    assert checkpoint.grammar == reference.grammar
    require_same_vocabulary(checkpoint, open_checkpoint(str(copy), "teacher"))


def broken(name: str, error: str, change: Callable[[Path], Any]) -> Any:
    return pytest.param(change, error, id=name)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        broken("config", "has no config.json", lambda d: (d / "config.json").unlink()),
        broken("json", "config.json cannot be read", lambda d: (d / "config.json").write_text("{")),
        broken("object", "must hold a JSON object", lambda d: (d / "config.json").write_text("[]")),
        broken("size", "misstates 'd_model'", lambda d: rewrite(d / "config.json", lambda c: c.pop("d_model"))),
        broken(
            "another model",
            "a 'llama' model; a Whisper",
            lambda d: rewrite(d / "config.json", lambda c: c.update(model_type="llama")),
        ),
        broken(
            "activation",
            "'relu'; only gelu",
            lambda d: rewrite(d / "config.json", lambda c: c.update(activation_function="relu")),
        ),
        broken(
            "shape",
            "do not fit config.json: .*size mismatch",
            lambda d: rewrite(d / "config.json", lambda c: c.update(vocab_size=9999)),
        ),
        broken(
            "layers", "do not fit .*Missing", lambda d: rewrite(d / "config.json", lambda c: c.update(decoder_layers=3))
        ),
        broken("weights", "has no model.safetensors: convert", lambda d: (d / "model.safetensors").unlink()),
        broken(
            "cut weights",
            "cannot be read .*again",
            lambda d: (d / "model.safetensors").write_bytes(b"\x10" + b"\0" * 20),
        ),
        broken("tokenizer", "tokenizer.json cannot be read", lambda d: (d / "tokenizer.json").write_text("{}")),
        broken("no tokenizer", "has no tokenizer.json", lambda d: (d / "tokenizer.json").unlink()),
        broken("contexts", "must list seconds", lambda d: (d / "whisperd.json").write_text('{"contexts": [0]}')),
        broken("long context", "must list", lambda d: (d / "whisperd.json").write_text('{"contexts": [31]}')),
        broken("odd context", "must list", lambda d: (d / "whisperd.json").write_text('{"contexts": [1.234]}')),
        broken("no context", "must list", lambda d: (d / "whisperd.json").write_text('{"contexts": []}')),
    ],
)
def test_a_broken_checkpoint_is_refused_in_words(copy: Path, change: Callable[[Path], Any], error: str) -> None:
    change(copy)
    with pytest.raises(CheckpointError, match=error):
        use(copy)


NESTED = "[" * 100_000 + "]" * 100_000

DIGITS = "9" * 4000
LONG = '"' + "x" * 9000 + '"'

HOSTILE = {
    "config.json": [
        *(f'"{key}": {value}' for key in ("d_model", "num_mel_bins", "encoder_attention_heads", "max_source_positions")
          for value in ("1e999", "-64", "0", "null", "[]", '"x"', "{}", "99999999999", NESTED)),
        '"decoder_attention_heads": 7',
        '"vocab_size": 1e999',
        '"decoder_layers": 16777216',
        '"d_model": 16777216',  # with weights for another
        '"decoder_layers": 1000',
        '"encoder_layers": 1048576',
        '"activation_function": {}',
        '"model_type": []',
        *(f'"{key}": {value}' for key in ("d_model", "vocab_size", "decoder_layers", "median_filter_width")
          for value in (DIGITS, f"-{DIGITS}", DIGITS * 2, f'"{DIGITS}"', LONG, f"[{LONG}]")),
        *(f'"{key}": {value}' for key in ("activation_function", "model_type")
          for value in (DIGITS, LONG, f"[{LONG}]", f'{{"a": {LONG}}}', '"a\\nb"')),
    ],
    "generation_config.json": [
        '"suppress_tokens": 5', '"suppress_tokens": [[]]', '"suppress_tokens": ["x"]', '"begin_suppress_tokens": 1e999',
        '"eos_token_id": []', '"eos_token_id": 1e999', '"eos_token_id": {}', '"decoder_start_token_id": "x"',
        '"max_length": 1e999',
        '"max_length": [1]', '"max_initial_timestamp_index": []', '"no_timestamps_token_id": [1]',
        '"alignment_heads": 5', '"alignment_heads": [5]', '"alignment_heads": [[1e999, 0]]', '"alignment_heads": [[0]]',
        '"is_multilingual": true, "lang_to_id": 5', '"is_multilingual": true, "lang_to_id": {"<|en|>": []}',
        '"is_multilingual": true, "lang_to_id": [1]', '"is_multilingual": true, "task_to_id": [5]',
        f'"suppress_tokens": {NESTED}',
        '"decoder_start_token_id": 1000000000', '"eos_token_id": -1', '"no_timestamps_token_id": 1000000000',
        '"no_timestamps_token_id": -7', '"is_multilingual": true, "lang_to_id": {"<|en|>": 1000000000}',
        '"is_multilingual": true, "task_to_id": {"transcribe": 1000000000}',
        *(f'"{key}": {value}' for key in ("eos_token_id", "decoder_start_token_id", "no_timestamps_token_id")
          for value in (DIGITS, LONG)),
        f'"suppress_tokens": [{LONG}]', f'"alignment_heads": {LONG}', f'"max_length": {DIGITS * 2}',
    ],
    "whisperd.json": ['"contexts": [1e999]', '"contexts": 5', '"contexts": [{}]', f'"contexts": {NESTED}',
                      f'"contexts": [{DIGITS}]', f'"contexts": {LONG}',
                      f'"shares": {{"teacher": {LONG}, "digest": "x"}}',
                      f'"shares": {{"teacher": "{"b" * 90}", "digest": {LONG}}}'],
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "keys"), [(file, keys) for file, each in HOSTILE.items() for keys in each], ids=lambda value: value[:60]
)
def test_a_hostile_checkpoint_is_refused_in_one_sentence(copy: Path, file: str, keys: str) -> None:
    path = copy / file
    content = path.read_text().strip() if path.exists() else "{}"
    path.write_text(
        content.removesuffix("}").rstrip().removesuffix(",") + (", " if content != "{}" else "") + keys + "}"
    )
    with pytest.raises(CheckpointError) as caught:
        use(copy)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_what_a_strangers_file_says_is_quoted_by_its_beginning(copy: Path) -> None:
    rewrite(copy / "config.json", lambda config: config.update(d_model=10**4000))
    with pytest.raises(CheckpointError, match=r"config\.json states d_model of 10{56}\.\.\., which no model has$"):
        use(copy)
    rewrite(copy / "config.json", lambda config: config.update(d_model=["x" * 9000]))
    with pytest.raises(
        CheckpointError, match=r"config\.json lacks or misstates 'd_model': \['x{55}\.\.\. is not a number$"
    ):
        use(copy)
    (copy / "config.json").write_text(f'{{"d_model": {"9" * 5000}}}')
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read: a number in it has too many digits$"):
        use(copy)


@pytest.mark.parametrize(
    "index", ['{"weight_map": {"a": 5}}', '{"weight_map": [5]}', '{"weight_map": {"a": null}}', "[]", "5", NESTED,
              '{"weight_map": {"a": "../../x.safetensors"}}']
)  # fmt: skip
def test_a_hostile_index_is_refused_in_one_sentence(copy: Path, index: str) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError) as caught:
        use(copy)
    assert str(copy) in str(caught.value)


def use(directory: Path) -> None:
    checkpoint = open_checkpoint(str(directory), "student")
    weights = read_weights(checkpoint, torch.float32)
    build_encoder(checkpoint.dimensions, weights)
    build_decoder(checkpoint.dimensions, weights)


def test_a_name_that_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no directory"):
        open_checkpoint(str(tmp_path / "nowhere"), "student")


def test_a_hub_name_without_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The library reads its environment when it is imported: its constants are what can still be set."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"not on this machine .*`whisperd models pull nobody/no-such-whisper`"):
        open_checkpoint("nobody/no-such-whisper", "student")


def test_a_hub_name_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, english: Pair) -> None:
    """The cache's own layout: a snapshot by commit, and a reference to it."""
    commit = "0" * 40
    repository = tmp_path / "models--somebody--whisper-small"
    shutil.copytree(english.teacher, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    checkpoint = open_checkpoint("somebody/whisper-small", "teacher")
    assert checkpoint.name == "somebody/whisper-small"
    assert checkpoint.grammar.eot == 600
    (repository / "snapshots" / commit / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"only partly on this machine: `whisperd models pull somebody/whisper-small` fetches"
    ):
        open_checkpoint("somebody/whisper-small", "teacher")


def test_a_shipped_name_has_both_roles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, english: Pair) -> None:
    shutil.copytree(english.teacher, tmp_path / "own" / "teacher")
    monkeypatch.setattr("streaming.whisper.locate.SHIPPED", tmp_path)
    assert open_checkpoint("own", "teacher").name == "own-teacher"
    with pytest.raises(CheckpointError, match="incomplete"):
        open_checkpoint("own", "student")


def test_vocabularies_that_do_not_match(english: Pair, multilingual: Pair, tmp_path: Path) -> None:
    student, teacher = (open_checkpoint(str(d), "student") for d in (english.student, english.teacher))
    require_same_vocabulary(student, teacher)
    # Special tokens at other places; then the same places, but other words.
    reordered = checkpoints.build_checkpoint(tmp_path / "reordered", checkpoints.SMALL)
    rewrite_words(reordered / "tokenizer.json")
    others = [
        multilingual.teacher,
        checkpoints.build_checkpoint(tmp_path / "b", replace(checkpoints.SMALL, text_tokens=601)),
    ]
    for other in (*others, reordered):
        with pytest.raises(
            CheckpointError, match=r"vocabularies of the student 'english' and the teacher .* do not match"
        ):
            require_same_vocabulary(student, open_checkpoint(str(other), "teacher"))


def rewrite_words(tokenizer: Path) -> None:
    def swap(content: dict[str, Any]) -> None:
        words = content["model"]["vocab"]
        words["a"], words["e"] = words["e"], words["a"]

    rewrite(tokenizer, swap)


def test_whether_two_hear_alike(english: Pair, multilingual: Pair) -> None:
    student, teacher = (
        open_checkpoint(str(english.student), "student"),
        open_checkpoint(str(english.teacher), "teacher"),
    )
    assert same_encoder(student, teacher)
    own = open_checkpoint(str(multilingual.student), "student")
    assert not same_encoder(own, open_checkpoint(str(multilingual.teacher), "teacher"))


def test_parameters_are_counted_as_the_reference_counts_them(english: Pair) -> None:
    reference = WhisperForConditionalGeneration.from_pretrained(english.student)
    assert count_parameters(open_checkpoint(str(english.student), "student")) == reference.num_parameters()
