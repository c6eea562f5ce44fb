"""What tests share: the property tests' profile, a small real tokenizer, and the recordings.

The only conftest of the tree: its folder goes on the import path, so that `import checkpoints` works in every
test.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import settings
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from streaming.job import SAMPLE_RATE, Waveform
from streaming.text import Text

# No deadline: how long an example takes says more about the machine than about the code.
settings.register_profile("whisperd", deadline=None)
settings.load_profile("whisperd")

DATA = Path(__file__).parent / "data"
SENTENCES = [
    "turn on the kitchen light",
    "turn off the bedroom lamp, please",
    "what time is it",
    "stop the music",
    "café naïve résumé",
    "日本語",
]


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of all single bytes and a few merges, as `tokenizer.json`."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([" " + sentence for sentence in SENTENCES], trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|startoftranscript|>", "<|0.00|>"])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_file))


@pytest.fixture(scope="session")
def text(tokenizer_file: Path, tokenizer: Tokenizer) -> Text:
    eot = tokenizer.token_to_id("<|endoftext|>")
    assert eot is not None
    return Text(tokenizer_file, eot)


@pytest.fixture(scope="session")
def recording() -> Callable[[str], Waveform]:
    def read(name: str) -> Waveform:
        samples, rate = soundfile.read(DATA / f"{name}.flac", dtype="float32")
        assert rate == SAMPLE_RATE
        return np.asarray(samples, np.float32)

    return read
