"""Files of other programs: what is read from them, and that damage is a sentence, whatever it is."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import checkpoints
import foreign_formats
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from streaming.whisper.checkpoint import Checkpoint, open_checkpoint
from streaming.whisper.formats import ctranslate2, ggml, openai, read, vocabulary
from streaming.whisper.formats.imported import FormatError, ImportedModel, dimensions

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


def read_bytes(content: bytes, form: Callable[[memoryview, str], ImportedModel]) -> None:
    model = form(memoryview(content), "x.bin")
    sizes = dimensions(model, "x.bin")
    if model.vocabulary is not None:
        vocabulary.build_tokenizer(model.vocabulary, sizes.vocabulary, "x.bin")


def told(error: FormatError) -> None:
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) < 500


def readers(directory: Path) -> list[tuple[bytes, Callable[[memoryview, str], ImportedModel]]]:
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


@pytest.mark.parametrize("number", range(4))
def test_a_number_at_its_end_is_a_sentence_or_a_weight(small: Path, number: int) -> None:
    """Counts, sizes, ranks and lengths: none, negative, and as large as they can be."""
    content, form = readers(small)[number]
    vocabulary_at = 60 + 4 * 80 * 201
    places = st.integers(0, 600) | st.integers(vocabulary_at - 12, vocabulary_at + 9000)

    @settings(max_examples=150)
    @given(places, st.sampled_from([0, -1, 1, 1 << 30, (1 << 31) - 1, -(1 << 31)]), st.sampled_from("bhi"))
    def put(at: int, value: int, form_of_it: str) -> None:
        harmed = bytearray(content)
        bits = 8 * struct.calcsize(form_of_it)
        struct.pack_into(f"<{form_of_it.upper()}", harmed, at, value & ((1 << bits) - 1))
        try:
            read_bytes(bytes(harmed), form)
        except FormatError as error:
            told(error)

    put()


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
    with pytest.raises(FormatError, match=r"'posix\.system'.: nothing in it was executed"):
        openai.read(file)
    assert not (tmp_path / "executed").exists()
    file.write_bytes(pickle.dumps({}, protocol=2))
    with pytest.raises(FormatError, match="torch's format from before 2020"):
        read.read(file)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"dims": {}}, "states no number of heads"),
        ({"dims": 3}, "states no number of heads"),
        ({"model_state_dict": []}, "has no weights in its model_state_dict"),
        ({"model_state_dict": {"encoder.conv1.weight": torch.zeros(3)}}, "cannot be read|lacks the weights"),
        ({"model_state_dict": {"layers.0.weight": torch.zeros(3)}}, "of another architecture"),
        ({"model_state_dict": {"../../etc/x": torch.zeros(3)}}, "of another architecture"),
        ({"model_state_dict": {"encoder.conv1.bias": torch.zeros(3, device="meta")}}, "nothing in it was executed"),
        ({"more": bytearray(8)}, "bytearray'.: nothing in it was executed"),
        ({"more": torch.zeros(3).to_sparse()}, "nothing in it was executed"),
        *(
            (
                {"dims": {"n_audio_head": heads, "n_text_head": heads}},
                "states no number of heads|has .* heads for a width",
            )
            for heads in (0, -1, 7, 1 << 70, True, None, 2.0, "x" * 1000, [1], torch.zeros(30, 30))
        ),
    ],
)
def test_a_pt_with_something_else(small: Path, tmp_path: Path, changed: dict[str, object], sentence: str) -> None:
    file = foreign_formats.write_openai(small, tmp_path / "small.pt", **changed)
    with pytest.raises(FormatError, match=sentence) as caught:
        read.read(file)
    told(caught.value)


def weights_in(directory: Path, **changed: Tensor) -> dict[str, Tensor]:
    return {**foreign_formats.openai_names(foreign_formats.weights_of(directory)), **changed}


def test_a_pt_is_no_larger_than_it_looks(small: Path, tmp_path: Path) -> None:
    """One number that stands for many, and what unpacks to more."""
    tokens = torch.zeros(1, dtype=torch.float16).expand(1 << 30, 32)
    state = weights_in(small, **{"decoder.token_embedding.weight": tokens})
    file = foreign_formats.write_openai(small, tmp_path / "small.pt", model_state_dict=state)
    with pytest.raises(FormatError, match="larger than itself"):
        openai.read(file)
    foreign_formats.write_openai(small, file)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    with pytest.raises(FormatError, match="is compressed"):
        openai.read(file)
    with zipfile.ZipFile(file, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, bytes(5 << 20) if name.endswith("data.pkl") else part)
    with pytest.raises(FormatError, match="an index of"):
        openai.read(file)
    with zipfile.ZipFile(file, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part[:10] if "/data/" in name else part)
    with pytest.raises(FormatError, match="cannot be read"):
        openai.read(file)


def test_names_that_are_there_twice(small: Path, tmp_path: Path) -> None:
    bias = torch.zeros(32)
    name = "decoder.blocks.1.attn.out.bias"
    twice = "has the weights 'decoder.*' twice"
    with pytest.raises(FormatError, match=twice):
        ggml.read(memoryview(foreign_formats.ggml_file(small, more=[(name, bias)])), "x.bin")
    state = weights_in(small, **{name.replace("1", "01"): bias})
    with pytest.raises(FormatError, match=twice):
        openai.read(foreign_formats.write_openai(small, tmp_path / "small.pt", model_state_dict=state))
    # The last one is an alias, too.
    for name in ("decoder/layer_norm/gamma", "decoder/projection/weight"):
        content = foreign_formats.ctranslate2_file(small, more=[(name, bias.numpy())])
        with pytest.raises(FormatError, match=twice):
            ctranslate2.read(memoryview(content), "x.bin")


@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 32), (32, 0), (-1,), (1, 1, 1, -1)])
def test_weights_in_another_shape(small: Path, shape: tuple[int, ...]) -> None:
    for name, array in foreign_formats.ctranslate2_variables(small, "int8").items():
        changed = array.reshape(shape) if -1 in shape else np.zeros(shape, array.dtype)
        # These are read whatever their shape is.
        if changed.shape == array.shape or name.endswith(("_scale", "/num_heads")):
            continue
        content = foreign_formats.ctranslate2_file(small, "int8", changed={name: changed})
        with pytest.raises(FormatError) as caught:
            read_bytes(content, ctranslate2.read)
        told(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("encoder/conv1/bias", np.zeros(32, "i4"), "has integers as the weights 'encoder.conv1.bias'"),
        ("decoder/layer_norm/gamma", np.zeros(32, "i1"), "has integers as the weights 'decoder.layer_norm.weight'"),
        ("encoder/num_heads", np.array(4, "i2"), "different numbers of heads in its encoder"),
        ("encoder/num_heads", np.zeros(0, "i2"), "cannot be read"),
        ("encoder/num_heads", np.array(np.nan, "f4"), "cannot be read"),
        ("decoder/embeddings/weight_scale", np.array(np.nan, "f4"), "scales that are 0 or not numbers"),
        ("decoder/embeddings/weight_scale", np.array(np.inf, "f4"), "scales that are 0 or not numbers"),
        ("decoder/embeddings/weight_scale", np.array(0, "f4"), "scales that are 0 or not numbers"),
        ("decoder/embeddings/weight_scale", np.zeros(0, "f4"), "has 0 scales for 2112 rows"),
    ],
)
def test_numbers_of_another_kind(small: Path, name: str, value: NDArray[Any], sentence: str) -> None:
    content = foreign_formats.ctranslate2_file(small, "int8", changed={name: value})
    with pytest.raises(FormatError, match=sentence) as caught:
        read_bytes(content, ctranslate2.read)
    told(caught.value)


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_blocks_with_a_scale_that_is_none(small: Path, kind: str) -> None:
    """They are no numbers then, which is found when they are written; nobody is warned of arithmetic."""
    content = foreign_formats.ggml_file(small, kind)
    at = content.index(b"decoder.token_embedding.weight") + len("decoder.token_embedding.weight")
    for scale in (np.nan, np.inf, 65504):
        harmed = content[:at] + np.array(scale, "<f2").tobytes() + content[at + 2 :]
        weights = ggml.read(memoryview(harmed), "x.bin").weights["decoder.embed_tokens.weight"]
        assert not weights[0].isfinite().all()
        assert weights[1:].isfinite().all()


BYTES = [bytes([byte]) for byte in range(256)]
PAIRS = [bytes([65 + number // 256, number % 256]) for number in range(340)]


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        ([], "has 0 tokens of text"),
        ([b"x%d" % number for number in range(600)], "no tokens for some bytes"),
        ([*BYTES, *BYTES, *PAIRS[:80]], "has a token twice"),
        ([*BYTES, *PAIRS, b"abc"], "that is not a pair of earlier ones"),
        ([*BYTES, b"abc", *PAIRS, b"ab"], "that is not a pair of earlier ones"),
        ([*BYTES, *PAIRS, b"\xff" * 1000], "that is not a pair of earlier ones"),
        ([*BYTES, *(bytes(400 + number) for number in range(340))], "or far too long ones"),
        ([*BYTES, bytes(2000)], "has a token of 2000 bytes"),
        ([*BYTES, *(b"x" for _ in range(200000))], "has 200256 tokens"),
    ],
)
def test_a_vocabulary_that_is_none(small: Path, tokens: Sequence[bytes], sentence: str) -> None:
    with pytest.raises(FormatError, match=sentence) as caught:
        read_bytes(foreign_formats.ggml_file(small, tokens=tokens), ggml.read)
    told(caught.value)


def test_an_empty_token_and_bytes_that_are_no_text_are_tokens(small: Path, tmp_path: Path) -> None:
    """OpenAI's vocabulary with languages has both."""
    tokens = [*foreign_formats.tokens_of(small)[:598], b"\xff\xfe", b""]
    file = tmp_path / "ggml.bin"
    file.write_bytes(foreign_formats.ggml_file(small, tokens=tokens))
    assert read.read(file).model.vocabulary == tokens


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
    tokens = foreign_formats.ggml_file(small)[:48] + struct.pack("<2i", 1 << 13, 1 << 13)
    with pytest.raises(FormatError, match="truncated"):
        ggml.read(memoryview(tokens), "ggml.bin")
    # Tensors of nothing take no bytes of the file.
    nothing = [(f"x{number}", np.zeros(0, "f4")) for number in range(1 << 15)]
    with pytest.raises(FormatError, match="more than 16384 tensors"):
        ctranslate2.read(memoryview(foreign_formats.ctranslate2_file(small, more=nothing)), "model.bin")


def test_other_things_are_named(small: Path, tmp_path: Path) -> None:
    def refused(content: bytes, sentence: str, name: str = "x.bin") -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match=sentence):
            read.read(tmp_path / name)

    refused(b"", "is empty")
    refused(b"GGUF" + bytes(100), "is in GGUF")
    refused(b"hello, this is no model", "is in an unknown format")
    refused(
        foreign_formats.ctranslate2_file(small, specification="TransformerSpec"), "contains a 'TransformerSpec' model"
    )
    refused(struct.pack("<I", 9) + foreign_formats.ctranslate2_file(small)[4:], r"of a known version \(9\)")
    refused(foreign_formats.ggml_file(small, "q5_0", generation=1), "quantised by an old whisper.cpp")
    refused(foreign_formats.ctranslate2_file(small), "no tokenizer.json beside it")
    kind = bytearray(foreign_formats.ggml_file(small, "q8_0"))
    name_at = kind.index(b"decoder.token_embedding.weight")
    kind[name_at - 12 : name_at - 8] = struct.pack("<i", 12)  # before two sizes
    refused(bytes(kind), r"an unknown format \(type 12\)")
    mels = struct.pack("<i", 0)
    content = foreign_formats.ggml_file(small)
    refused(content[:8] + mels + content[12:], "sizes that no Whisper model has")


def test_a_tokenizer_that_does_not_work(small: Path, tmp_path: Path) -> None:
    file = foreign_formats.write_openai(small, tmp_path / "small.pt")
    broken = json.loads((small / "tokenizer.json").read_text())
    broken["model"]["unk_token"] = "none"
    del broken["model"]["vocab"]["Ġ"]
    broken["model"]["merges"] = []
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    with pytest.raises(FormatError, match=r"the tokenizer of small\.pt cannot be used") as caught:
        read.read(file, tmp_path / "broken.json")
    told(caught.value)


def test_a_tokenizer_of_another_model(small: Path, tmp_path: Path) -> None:
    file = foreign_formats.write_openai(small, tmp_path / "small.pt")
    with pytest.raises(FormatError, match=r"not a tokenizer\.json that can be read"):
        read.read(file, tmp_path / "none.json")
    other = json.loads((small / "tokenizer.json").read_text())
    other["added_tokens"].append({**other["added_tokens"][-1], "id": 2112, "content": "<|more|>"})
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(FormatError, match="is of another model: it has 2113 tokens, the model 2112"):
        read.read(file, tmp_path / "other.json")
    plain = Tokenizer.from_file(str(small / "tokenizer.json")).to_str().replace("<|endoftext|>", "<|end|>")
    (tmp_path / "plain.json").write_text(plain)
    with pytest.raises(FormatError, match="not that of a Whisper model"):
        read.read(file, tmp_path / "plain.json")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "cannot be read"),
        ("", "cannot be read"),
        ("[]", "must hold a JSON object"),
        ("[" * 100_000, "cannot be read"),
        ('{"suppress_ids": ' + "[" * 100_000, "cannot be read"),
        ('{"x": "' + "x" * (1 << 20) + '"}', "has more than 1048576 bytes"),
        ('{"suppress_ids": "123"}', "suppress_ids of the config.json"),
        ('{"suppress_ids": [true]}', "suppress_ids of the config.json"),
        ('{"suppress_ids": [1e999]}', "suppress_ids of the config.json"),
        ('{"suppress_ids_begin": [[1]]}', "suppress_ids_begin of the config.json"),
        ('{"alignment_heads": [[0]]}', "alignment_heads of the config.json"),
        ('{"alignment_heads": [[0, -1]]}', "alignment_heads of the config.json"),
        ('{"alignment_heads": [[true, 0]]}', "alignment_heads of the config.json"),
        ('{"alignment_heads": [NaN]}', "alignment_heads of the config.json"),
        ('{"suppress_ids": ["x"]}', "suppress_ids of the config.json"),
        ('{"suppress_ids": [99999]}', "suppress_ids of the config.json"),
        ('{"alignment_heads": [[7, 0]]}', "alignment_heads of the config.json"),
        ('{"alignment_heads": 7}', "alignment_heads of the config.json"),
    ],
)
def test_a_config_that_is_wrong(small: Path, tmp_path: Path, content: str, sentence: str) -> None:
    folder = foreign_formats.write_ctranslate2(small, tmp_path / "there")
    (folder / "config.json").write_text(content)
    with pytest.raises(FormatError, match=sentence) as caught:
        read.read(folder / "model.bin")
    told(caught.value)
    (folder / "config.json").write_bytes(b'{"x": "\xff"}')
    with pytest.raises(FormatError, match="cannot be read"):
        read.read(folder / "model.bin")
    (folder / "config.json").unlink()
    read.read(folder / "model.bin")
