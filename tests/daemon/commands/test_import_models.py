"""`whisperd models import` and `export`: models of other programs say here what they say elsewhere, token for token."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import foreign_formats
import numpy as np
import pytest
import torch
from checkpoints import Pair
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor, GenerationConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from waveforms import murmur

from daemon.commands import cli, models
from streaming.job import SAMPLE_RATE, Job
from streaming.whisper import layout
from streaming.whisper.checkpoint import open_checkpoint
from streaming.whisper.engine import WhisperEngine
from streaming.whisper.locate import is_imported_name

pytestmark = pytest.mark.timeout(300)  # seconds of arithmetic on a free core, but there may be none

AUDIO = [murmur(1.0 + 2 * number, seed=number) for number in range(4)]
LIMIT = 40


@pytest.fixture(scope="module")
def small(folder: Path) -> Path:
    """Its weights are halves, which an import keeps to the last bit."""
    return checkpoints.build_checkpoint(
        folder / "importable", foreign_formats.ENGLISH, seed=7, dtype=torch.float16, alignment_heads=[(0, 1), (1, 0)]
    )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the hub's library, and with it the imports, are at home."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    return tmp_path / "home"


Whisperd = Callable[..., tuple[int, str, str]]


@pytest.fixture
def whisperd(home: Path, capsys: pytest.CaptureFixture[str]) -> Whisperd:
    def command(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(["models", *map(str, arguments)])
        done = capsys.readouterr()
        return code, done.out, done.err

    return command


def ggml(directory: Path, folder: Path, kind: str = "f16") -> Path:
    file = folder / "ggml-small.bin"
    file.write_bytes(foreign_formats.ggml_file(directory, kind))
    return file


def openai(directory: Path, folder: Path) -> Path:
    return foreign_formats.write_openai(directory, folder / "small.pt")


def faster_whisper(directory: Path, folder: Path) -> Path:
    return foreign_formats.write_ctranslate2(directory, folder / "small")


def here(name: str, recordings: int = len(AUDIO), **wishes: Any) -> list[tuple[int, ...]]:
    results = WhisperEngine.load(name, None, "cpu", dtype="float32").run(
        [Job(audio, max_tokens=LIMIT, **wishes) for audio in AUDIO[:recordings]]
    )
    assert [result.error for result in results] == [None] * recordings
    return [result.tokens for result in results]


def in_transformers(weights: Path, rules: Path, **wishes: Any) -> list[tuple[int, ...]]:
    """Greedily, with the weights of one folder and the generation config of another."""
    model = WhisperForConditionalGeneration.from_pretrained(weights, dtype=torch.float32).eval()
    model.generation_config = GenerationConfig.from_pretrained(rules)
    features = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    plain = {"force_unique_generate_call": True, "return_dict_in_generate": True, "output_scores": True}
    said = []
    for audio in AUDIO:
        heard = features(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        answer = model.generate(heard, max_new_tokens=LIMIT, **plain, **wishes)
        tokens = answer.sequences[0, -len(answer.scores) :].tolist()
        said.append(tuple(tokens[:-1] if tokens[-1] == model.generation_config.eos_token_id else tokens))
    return said


# --- what an import says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [ggml, openai, faster_whisper])
def test_an_import_says_what_the_original_says(
    small: Path, home: Path, whisperd: Whisperd, tmp_path: Path, write: Callable[[Path, Path], Path]
) -> None:
    source = write(small, tmp_path)
    code, out, err = whisperd("import", source)
    assert (code, err) == (0, "")
    assert out.startswith("small: ")
    assert "2 + 2 layers, English" in out
    expected = in_transformers(small, home / "whisperd" / "small")
    assert any(expected)
    assert here("small") == expected
    # As a teacher, and as the checkpoint of transformers itself.
    assert here(str(home / "whisperd" / "small")) == expected
    assert in_transformers(home / "whisperd" / "small", home / "whisperd" / "small") == expected
    AutoProcessor.from_pretrained(home / "whisperd" / "small")

    weights = source / "model.bin" if source.is_dir() else source
    noted = json.loads((home / "whisperd" / "small" / "whisperd.json").read_text())["source"]
    assert noted["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert noted["bytes"] == weights.stat().st_size


@pytest.mark.parametrize("write", [ggml, openai])
def test_an_import_with_languages(
    folder: Path, home: Path, whisperd: Whisperd, tmp_path: Path, write: Callable[[Path, Path], Path]
) -> None:
    directory = folder / "importable-languages"
    if not directory.exists():
        checkpoints.build_checkpoint(directory, foreign_formats.MULTILINGUAL, seed=8, dtype=torch.float16)
    code, out, _ = whisperd("import", write(directory, tmp_path), "--name", "many")
    assert code == 0
    assert "99 languages" in out
    expected = in_transformers(directory, home / "whisperd" / "many", language="de", task="translate")
    assert here("many", language="de", task="translate") == expected


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "int8", "int8_float16", "int8_float32", "int16"])
def test_a_model_of_ctranslate2_says_what_it_says_there(
    small: Path, whisperd: Whisperd, tmp_path: Path, kind: str
) -> None:
    """Written by its own converter, and asked by its own decoder."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(small)).convert(str(tmp_path / "there"), quantization=kind)
    shutil.copy(small / "tokenizer.json", tmp_path / "there")
    assert whisperd("import", tmp_path / "there", "--name", kind)[0] == 0
    checkpoint = open_checkpoint(kind, "student")
    assert checkpoint.alignment_heads == ((0, 1), (1, 0))
    # Rounded weights are expanded there, too: arithmetic in 8 bits is another matter than weights.
    model = ctranslate2.models.Whisper(str(tmp_path / "there"), compute_type="float32", intra_threads=1)
    features = WhisperFeatureExtractor()
    expected = []
    for audio in AUDIO:
        heard = features(audio, sampling_rate=SAMPLE_RATE, return_tensors="np").input_features
        (answer,) = model.generate(
            ctranslate2.StorageView.from_array(np.ascontiguousarray(heard, np.float32)),
            [[checkpoint.grammar.sot, checkpoint.grammar.no_timestamps]],
            beam_size=1,
            max_length=2 * LIMIT,  # half of which may be text
            suppress_tokens=list(checkpoint.grammar.suppress),
        )
        expected.append(tuple(answer.sequences_ids[0]))
    assert any(expected)
    assert here(kind) == expected


def test_every_command_knows_an_import(small: Path, home: Path, whisperd: Whisperd, tmp_path: Path) -> None:
    assert whisperd("import", openai(small, tmp_path), "--name", "My.model-1")[0] == 0
    (listed,) = [each for each in models.here([]) if each.where == "imported"]
    assert (listed.name, listed.layers, listed.languages, listed.state) == ("My.model-1", "2 + 2", "English", "")
    assert any(line.split()[:4] == ["My.model-1", "2", "+", "2"] for line in whisperd()[1].splitlines())
    assert f"directory        {home / 'whisperd' / 'My.model-1'}" in whisperd("show", "My.model-1")[1]
    assert "nothing to fetch" in whisperd("pull", "My.model-1")[1]
    (home / "whisperd" / "My.model-1" / "model.safetensors").unlink()
    (home / "whisperd" / "My.model-1" / "config.json").write_text("{}")
    (listed,) = [each for each in models.here([]) if each.where == "imported"]
    assert "import it again, with --force" in listed.state


def test_a_name_is_taken_once(small: Path, home: Path, whisperd: Whisperd, tmp_path: Path) -> None:
    source = openai(small, tmp_path)
    assert whisperd("import", source)[0] == 0
    before = (home / "whisperd" / "small" / "whisperd.json").read_bytes()
    code, out, err = whisperd("import", source)
    assert (code, out) == (1, "")
    assert err == "whisperd: small was imported before: choose another name (--name NAME), or replace it with --force\n"
    assert whisperd("import", ggml(small, tmp_path), "--force")[0] == 0
    assert (home / "whisperd" / "small" / "whisperd.json").read_bytes() != before
    assert whisperd("import", source, "--name", "tiny-en")[2].startswith("whisperd: tiny-en is the name of a shipped")


@pytest.mark.parametrize("name", ["../up", "a/b", "/etc/x", "", ".hidden", "a b", "x" * 97, "x.part", "-x", "é", "a\n"])
def test_a_name_is_no_path(small: Path, home: Path, whisperd: Whisperd, tmp_path: Path, name: str) -> None:
    assert not is_imported_name(name)
    code, _, err = whisperd("import", openai(small, tmp_path), f"--name={name}")
    assert code == 1
    assert "is not a name for a model" in err
    assert not home.exists()


def test_it_is_called_what_others_call_it(small: Path, home: Path, whisperd: Whisperd, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--Systran--faster-whisper-tiny.en" / "snapshots" / ("0" * 40)
    foreign_formats.write_ctranslate2(small, snapshot)
    assert whisperd("import", snapshot)[1].startswith("faster-whisper-tiny.en: CTranslate2 float16")
    foreign_formats.write_ctranslate2(small, tmp_path / "mine", "int8")
    assert whisperd("import", tmp_path / "mine" / "model.bin")[1].startswith("mine: CTranslate2 int8")
    assert whisperd("import", ggml(small, tmp_path, "q5_1"))[1].startswith("small: ggml q5_1")


# --- what goes wrong -------------------------------------------------------------------------------------------------


def refused(home: Path, done: tuple[int, str, str], sentence: str) -> None:
    code, out, err = done
    assert (code, out) == (1, "")
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert not list(home.glob("whisperd/*"))


def test_what_is_no_model(small: Path, home: Path, whisperd: Whisperd, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(home, whisperd("import", tmp_path / "none"), "there is no ")
    refused(home, whisperd("import", tmp_path / "empty"), "has no model.bin")
    refused(home, whisperd("import", small), "is already in the Hugging Face layout")
    source = faster_whisper(small, tmp_path)
    (source / "tokenizer.json").unlink()
    refused(home, whisperd("import", source), "no tokenizer.json beside it")
    refused(home, whisperd("import", source, "--tokenizer", tmp_path / "none.json"), "none.json")
    assert whisperd("import", source, "--tokenizer", small / "tokenizer.json")[0] == 0


def test_a_truncated_file(small: Path, home: Path, whisperd: Whisperd, tmp_path: Path) -> None:
    for source in (openai(small, tmp_path), ggml(small, tmp_path), faster_whisper(small, tmp_path) / "model.bin"):
        source.write_bytes(source.read_bytes()[:-1000])
        refused(home, whisperd("import", source), source.name)


def test_a_hostile_file_leaves_nothing_behind(small: Path, home: Path, whisperd: Whisperd, tmp_path: Path) -> None:
    """Whatever is wrong with it, and however far it was read; what was imported before stays."""
    assert whisperd("import", openai(small, tmp_path))[0] == 0
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    sources = (openai(small, tmp_path), ggml(small, tmp_path, "q5_1"), faster_whisper(small, tmp_path) / "model.bin")
    for source in sources:
        content = source.read_bytes()

        @settings(max_examples=25)
        @given(st.integers(0, len(content) - 1), st.integers(1, 255), st.booleans())
        def harm(at: int, by: int, cut: bool) -> None:
            harmed = bytearray(content)  # noqa: B023 - it is called before the next one
            harmed[at] ^= by
            source.write_bytes(harmed[:at] if cut else harmed)  # noqa: B023
            code, out, err = whisperd("import", source, "--name", "other")  # noqa: B023
            if code == 0:  # one weight is another
                shutil.rmtree(home / "whisperd" / "other")
            else:
                assert (code, out, len(err.splitlines())) == (1, "", 1), err
            assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before

        harm()


def test_a_scale_that_is_none(small: Path, home: Path, whisperd: Whisperd, tmp_path: Path) -> None:
    source = ggml(small, tmp_path, "q8_0")
    content = source.read_bytes()
    at = content.index(b"decoder.token_embedding.weight") + len("decoder.token_embedding.weight")
    source.write_bytes(content[:at] + np.array(np.inf, "<f2").tobytes() + content[at + 2 :])
    refused(
        home, whisperd("import", source), "decoder.embed_tokens.weight are not numbers, or are too large for float16"
    )


def test_weights_that_are_none(small: Path, home: Path, whisperd: Whisperd, tmp_path: Path) -> None:
    state = foreign_formats.openai_names(foreign_formats.weights_of(small))
    state["encoder.conv1.bias"] = torch.full_like(state["encoder.conv1.bias"], 1e6, dtype=torch.float32)
    source = foreign_formats.write_openai(small, tmp_path / "small.pt", model_state_dict=state)
    refused(home, whisperd("import", source), "encoder.conv1.bias are not numbers, or are too large for float16")


@pytest.mark.parametrize("force", [False, True])
def test_a_full_disk(
    small: Path, home: Path, whisperd: Whisperd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    """Nothing is half-written, and what was there stays."""
    source = openai(small, tmp_path)
    if force:
        assert whisperd("import", source)[0] == 0

    def full(_: object, file: Path, **__: object) -> None:
        file.write_bytes(b"begun")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(layout, "save_file", full)
    code, out, err = whisperd("import", source, *(["--force"] if force else []))
    assert (code, out) == (1, "")
    assert "is full, and nothing was written: make room, then run the command again" in err
    assert [path.name for path in home.glob("whisperd/*")] == (["small"] if force else [])
    if force:
        assert any(here("small"))


def test_a_folder_that_may_not_be_written(small: Path, home: Path, whisperd: Whisperd, tmp_path: Path) -> None:
    home.mkdir()
    (home / "whisperd").write_text("in the way")
    code, _, err = whisperd("import", openai(small, tmp_path))
    assert code == 1
    assert "cannot be written" in err


# --- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_transformers_loads_what_is_exported(english: Pair, whisperd: Whisperd, tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "plain"
    code, said, err = whisperd("export", english.student, "--dtype", dtype, out)
    assert (code, err) == (0, "")
    assert said.startswith(f"english: {dtype}, ")
    loaded: Any = WhisperForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    model, report = loaded
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == getattr(torch, dtype)
    AutoProcessor.from_pretrained(out)
    ours, theirs = open_checkpoint(str(out), "student"), open_checkpoint(str(english.student), "student")
    assert (ours.grammar, ours.dimensions, ours.contexts, ours.alignment_heads) == (
        theirs.grammar, theirs.dimensions, theirs.contexts, theirs.alignment_heads,
    )  # fmt: skip
    if dtype == "float32":
        assert here(str(out), 3) == here(str(english.student), 3)


def test_shipped_and_imported_ones_are_exported(small: Path, whisperd: Whisperd, tmp_path: Path) -> None:
    assert whisperd("import", openai(small, tmp_path))[0] == 0
    assert whisperd("export", "small", tmp_path / "small")[0] == 0
    assert (tmp_path / "small" / "config.json").exists()
    assert whisperd("export", "tiny-en", tmp_path / "a")[1].startswith("tiny-en: float16")
    assert whisperd("export", "tiny-en/teacher", tmp_path / "b")[1].startswith("tiny-en-teacher: float16")
    code, _, err = whisperd("export", "tiny-en", tmp_path / "b")
    assert (code, "already exists and is not empty: choose another, or use --force" in err) == (1, True)
    assert whisperd("export", "tiny-en", tmp_path / "b", "--force")[0] == 0
    code, _, err = whisperd("export", "./none", tmp_path / "c")
    assert (code, "there is no directory" in err) == (1, True)
    assert not (tmp_path / "c").exists()
