"""Files of other programs: what is read from them, and that damage is a sentence, whatever it is."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import checkpoints
import foreign_formats
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from streaming.whisper.checkpoint import Checkpoint, open_checkpoint
from streaming.whisper.formats import ctranslate2, ggml, openai, read, vocabulary
from streaming.whisper.formats.foreign import Foreign, FormatError, dimensions

TEXTS = ["Turn on the kitchen light.", "what time is it", "café naïve résumé", "日本語", " ♪♪ (laughs) -- "]


@pytest.fixture(scope="module")
def small(folder: Path) -> Path:
    """Its weights are halves, so that every format can hold them to the last bit."""
    return checkpoints.build_checkpoint(
        folder / "formats", foreign_formats.ENGLISH, seed=6, dtype=torch.float16, alignment_heads=[(0, 1), (1, 0)]
    )


@pytest.fixture(scope="module")
def original(small: Path) -> Checkpoint:
    return open_checkpoint(str(small), "student")


def as_file(directory: Path, kind: str, folder: Path) -> Path:
    form, _, numbers = kind.partition(" ")
    if form == "ctranslate2":
        return foreign_formats.write_ctranslate2(directory, folder / "there", numbers) / "model.bin"
    if form == "openai":
        return foreign_formats.write_openai(directory, folder / "small.pt")
    (folder / "ggml-small.bin").write_bytes(foreign_formats.ggml_file(directory, numbers))
    return folder / "ggml-small.bin"


EXACT = ["ctranslate2 float32", "ctranslate2 float16", "openai", "ggml f32", "ggml f16"]
ROUNDED = {
    "ctranslate2 int8": 0.01,
    "ctranslate2 int16": 0.002,
    "ggml q8_0": 0.01,
    "ggml q5_0": 0.09,
    "ggml q5_1": 0.06,
    "ggml q4_0": 0.17,
    "ggml q4_1": 0.1,
}
"""With how far a weight may be from what it was, in parts of the largest."""


@pytest.mark.parametrize("kind", [*EXACT, *ROUNDED])
def test_what_is_read_is_what_was_written(small: Path, original: Checkpoint, tmp_path: Path, kind: str) -> None:
    found = read.read(as_file(small, kind, tmp_path))
    assert found.dimensions == original.dimensions
    expected = foreign_formats.weights_of(small)
    assert found.model.weights.keys() == expected.keys()
    for name, weight in expected.items():
        ours = found.model.weights[name].float()
        if kind in EXACT:
            assert torch.equal(ours, weight.float()), name
        else:
            assert (ours - weight.float()).abs().max() <= ROUNDED[kind] * weight.abs().max(), name
    built, theirs = Tokenizer.from_str(found.tokenizer), Tokenizer.from_file(str(original.tokenizer_file))
    for text in TEXTS:
        ids = built.encode(text, add_special_tokens=False).ids
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert built.decode(ids) == text


@pytest.mark.parametrize("kind", ["openai", "ggml f16", "ctranslate2 float16"])
def test_the_rules_follow_from_the_vocabulary_where_the_file_has_none(
    small: Path, original: Checkpoint, tmp_path: Path, kind: str
) -> None:
    found = read.read(as_file(small, kind, tmp_path)).grammar
    if kind.startswith("ctranslate2"):
        assert found == original.grammar
        return
    derived = ("suppress", "begin_suppress")
    for field in fields(found):
        if field.name not in derived:
            assert getattr(found, field.name) == getattr(original.grammar, field.name), field.name
    tokenizer = Tokenizer.from_file(str(original.tokenizer_file))
    assert found.begin_suppress == (tokenizer.encode(" ", add_special_tokens=False).ids[0], found.eot)
    said = {tokenizer.id_to_token(each) for each in found.suppress}
    assert {"(", "[", "<|startoftranscript|>", "<|translate|>", "<|transcribe|>", "<|nocaptions|>"} <= said
    assert not {",", ".", "?", "<|endoftext|>", "<|notimestamps|>"} & said


def test_languages_are_counted_and_named(folder: Path, tmp_path: Path) -> None:
    directory = checkpoints.build_checkpoint(folder / "many", foreign_formats.MULTILINGUAL, dtype=torch.float16)
    expected = open_checkpoint(str(directory), "student").grammar
    for kind in ("ggml f16", "openai", "ctranslate2 float16"):
        (tmp_path / kind).mkdir()
        found = read.read(as_file(directory, kind, tmp_path / kind)).grammar
        assert len(found.languages) == 99
        assert found.languages == expected.languages
        assert found.tasks == expected.tasks
        assert (found.sot, found.eot, found.no_timestamps) == (50258, 50257, 50363)


def test_published_alignment_heads_are_of_published_sizes() -> None:
    for (layers, heads, _), pairs in vocabulary._ALIGNMENT_HEADS.items():
        assert all(layer < layers and head < heads for layer, head in pairs)


def test_a_vocabulary_that_counts_the_end_of_text_too(small: Path, tmp_path: Path) -> None:
    file = tmp_path / "ggml.bin"
    file.write_bytes(foreign_formats.ggml_file(small, with_end=True))
    plain = ggml.read(memoryview(foreign_formats.ggml_file(small)), "plain")
    assert ggml.read(memoryview(file.read_bytes()), "with").vocabulary == plain.vocabulary
    read.read(file)


# --- damage ----------------------------------------------------------------------------------------------------------


def read_bytes(content: bytes, form: Callable[[memoryview, str], Foreign]) -> None:
    model = form(memoryview(content), "x.bin")
    sizes = dimensions(model, "x.bin")
    if model.vocabulary is not None:
        vocabulary.build_tokenizer(model.vocabulary, sizes.vocabulary, "x.bin")


def told(error: FormatError) -> None:
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) < 500


def readers(directory: Path) -> list[tuple[bytes, Callable[[memoryview, str], Foreign]]]:
    return [
        (foreign_formats.ctranslate2_file(directory), ctranslate2.read),
        (foreign_formats.ctranslate2_file(directory, "int8"), ctranslate2.read),
        (foreign_formats.ggml_file(directory), ggml.read),
        (foreign_formats.ggml_file(directory, "q5_1"), ggml.read),
    ]


@pytest.mark.parametrize("number", range(4))
def test_a_truncated_file_is_a_sentence(small: Path, number: int) -> None:
    content, form = readers(small)[number]

    @settings(max_examples=60)
    @given(st.integers(0, len(content) - 1) | st.integers(0, 2000) | st.integers(len(content) - 300, len(content) - 1))
    def cut(length: int) -> None:
        with pytest.raises(FormatError):
            read_bytes(content[:length], form)

    cut()


@pytest.mark.parametrize("number", range(4))
def test_a_flipped_byte_is_a_sentence_or_a_weight(small: Path, number: int) -> None:
    content, form = readers(small)[number]
    # The vocabulary and the first tensor's header are behind the mel filters.
    vocabulary_at = 60 + 4 * 80 * 201
    places = st.integers(0, 600) | st.integers(vocabulary_at, vocabulary_at + 6000) | st.integers(0, len(content) - 1)

    @settings(max_examples=150)
    @given(places, st.integers(1, 255))
    def flip(at: int, by: int) -> None:
        harmed = bytearray(content)
        harmed[at] ^= by
        try:
            read_bytes(bytes(harmed), form)
        except FormatError as error:
            told(error)

    flip()


@pytest.mark.parametrize("part", ["start", "pickle", "end"])
def test_a_harmed_pt_is_a_sentence(small: Path, tmp_path: Path, part: str) -> None:
    file = foreign_formats.write_openai(small, tmp_path / "small.pt")
    content = file.read_bytes()
    begin, end = {"start": (0, 200), "pickle": (64, 6000), "end": (len(content) - 3000, len(content))}[part]

    @settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(begin, end - 1), st.integers(1, 255), st.booleans())
    def harm(at: int, by: int, cut: bool) -> None:
        harmed = bytearray(content)
        harmed[at] ^= by
        file.write_bytes(harmed[:at] if cut else harmed)
        try:
            dimensions(openai.read(file), file.name)
            assert not cut
        except FormatError as error:
            told(error)

    harm()


def test_nothing_in_a_pt_is_executed(small: Path, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    file = foreign_formats.write_openai(small, tmp_path / "small.pt", more=Harmful())
    with pytest.raises(FormatError, match=r"small\.pt cannot be read"):
        openai.read(file)
    assert not (tmp_path / "executed").exists()
    file.write_bytes(pickle.dumps({}, protocol=2))
    with pytest.raises(FormatError, match="torch's form of before 2020"):
        read.read(file)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"dims": {}}, "names no number of heads"),
        ({"dims": 3}, "names no number of heads"),
        ({"model_state_dict": []}, "has no weights in its model_state_dict"),
        ({"model_state_dict": {"encoder.conv1.weight": torch.zeros(3)}}, "cannot be read|lacks the weights"),
        ({"model_state_dict": {"layers.0.weight": torch.zeros(3)}}, "of another architecture"),
    ],
)
def test_a_pt_with_something_else(small: Path, tmp_path: Path, changed: dict[str, object], sentence: str) -> None:
    file = foreign_formats.write_openai(small, tmp_path / "small.pt", **changed)
    with pytest.raises(FormatError, match=sentence):
        read.read(file)


def test_numbers_claim_no_memory(small: Path) -> None:
    """A count is bounded by the bytes that are there."""
    text = struct.pack("<H", 12) + b"WhisperSpec\0"
    many = struct.pack("<I", 6) + text + struct.pack("<II", 3, 0xFFFFFFFF)
    with pytest.raises(FormatError, match="truncated"):
        ctranslate2.read(memoryview(many), "model.bin")
    huge = struct.pack("<I", 6) + text + struct.pack("<III", 3, 1, 0x00620002)[:-2] + b"b\0"
    huge += struct.pack("<B4IBI", 4, *[1 << 31] * 4, 0, 0xFFFFFFFF)
    with pytest.raises(FormatError):
        ctranslate2.read(memoryview(huge), "model.bin")
    # Scales that are no rows' would be multiplied out with them.
    found = {"x": torch.zeros(1, 9, dtype=torch.int8), "x_scale": torch.zeros(7)}
    with pytest.raises(FormatError, match="7 scales for 1 rows"):
        ctranslate2._expanded(found, "x")
    tokens = foreign_formats.ggml_file(small)[:48] + struct.pack("<2i", 1 << 15, 1 << 15)
    with pytest.raises(FormatError, match="truncated"):
        ggml.read(memoryview(tokens), "ggml.bin")


def test_other_things_are_named(small: Path, tmp_path: Path) -> None:
    def refused(content: bytes, sentence: str, name: str = "x.bin") -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match=sentence):
            read.read(tmp_path / name)

    refused(b"", "is empty")
    refused(b"GGUF" + bytes(100), "is in GGUF")
    refused(b"hello, this is no model", "is in no known format")
    refused(foreign_formats.ctranslate2_file(small, specification="TransformerSpec"), "holds a 'TransformerSpec' model")
    refused(struct.pack("<I", 9) + foreign_formats.ctranslate2_file(small)[4:], r"in a known version \(9\)")
    refused(foreign_formats.ggml_file(small, "q5_0", generation=1), "quantised by an old whisper.cpp")
    refused(foreign_formats.ctranslate2_file(small), "no tokenizer.json beside it")
    kind = bytearray(foreign_formats.ggml_file(small, "q8_0"))
    name_at = kind.index(b"decoder.token_embedding.weight")
    kind[name_at - 12 : name_at - 8] = struct.pack("<i", 12)  # before two sizes
    refused(bytes(kind), r"not known here \(type 12\)")
    mels = struct.pack("<i", 0)
    content = foreign_formats.ggml_file(small)
    refused(content[:8] + mels + content[12:], "sizes that no Whisper model has")


def test_a_tokenizer_of_another_model(small: Path, tmp_path: Path) -> None:
    file = foreign_formats.write_openai(small, tmp_path / "small.pt")
    with pytest.raises(FormatError, match=r"no tokenizer\.json that can be read"):
        read.read(file, tmp_path / "none.json")
    other = json.loads((small / "tokenizer.json").read_text())
    other["added_tokens"].append({**other["added_tokens"][-1], "id": 2112, "content": "<|more|>"})
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(FormatError, match="is of another model: it has 2113 tokens, the model 2112"):
        read.read(file, tmp_path / "other.json")
    plain = Tokenizer.from_file(str(small / "tokenizer.json")).to_str().replace("<|endoftext|>", "<|end|>")
    (tmp_path / "plain.json").write_text(plain)
    with pytest.raises(FormatError, match="none of a Whisper model"):
        read.read(file, tmp_path / "plain.json")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "cannot be read"),
        ("[]", "must hold a JSON object"),
        ('{"suppress_ids": ["x"]}', "suppress_ids of the config.json"),
        ('{"suppress_ids": [99999]}', "suppress_ids of the config.json"),
        ('{"alignment_heads": [[7, 0]]}', "alignment_heads of the config.json"),
        ('{"alignment_heads": 7}', "alignment_heads of the config.json"),
    ],
)
def test_a_config_that_is_wrong(small: Path, tmp_path: Path, content: str, sentence: str) -> None:
    folder = foreign_formats.write_ctranslate2(small, tmp_path / "there")
    (folder / "config.json").write_text(content)
    with pytest.raises(FormatError, match=sentence):
        read.read(folder / "model.bin")
    (folder / "config.json").unlink()
    read.read(folder / "model.bin")
