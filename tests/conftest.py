"""What tests share: the property tests' profiles, a small real tokenizer, and the recordings.

The only conftest of the tree: its folder goes on the import path, so that `import checkpoints` works in every
test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from hypothesis import settings
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from streaming.job import SAMPLE_RATE, Waveform
from streaming.text import Text

if TYPE_CHECKING:
    from checkpoints import Pair
    from speakers import Speaker

# No deadline: how long an example takes says more about the machine than about the code.
settings.register_profile("ci", deadline=None, derandomize=True)  # what fails here fails everywhere, and each time
settings.register_profile("free", deadline=None, derandomize=False, max_examples=1000)  # see `make fuzz`
settings.load_profile("ci")

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
    tokenizer.add_special_tokens(["<|endoftext|>", "<|startoftranscript|>", "<|startofprev|>", "<|0.00|>"])
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


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where checkpoints that are too slow to build for every test are kept."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def english(folder: Path) -> Pair:
    """An English-only teacher with short contexts, and a student with its encoder that is right only in part."""
    import checkpoints  # it imports transformers, which takes seconds: only for the tests that need it

    teacher = checkpoints.build_checkpoint(folder / "english-teacher", seed=2, contexts=[1, 2, 5])
    return checkpoints.Pair(checkpoints.build_student(teacher, folder / "english", (0, 1), noise=0.02), teacher)


@pytest.fixture(scope="session")
def multilingual(folder: Path) -> Pair:
    """The same with languages; the student has an encoder of its own, and other contexts."""
    import checkpoints  # as above

    shape = checkpoints.SMALL_MULTILINGUAL
    teacher = checkpoints.build_checkpoint(folder / "multilingual-teacher", shape, contexts=[2, 5])
    student = checkpoints.build_checkpoint(folder / "multilingual", shape, seed=1, contexts=[1, 5])
    return checkpoints.Pair(student, teacher)


@pytest.fixture(scope="module")
def teacher(english: Pair) -> Speaker:
    from speakers import speaker  # as above

    return speaker(english.teacher)


@pytest.fixture(scope="module")
def student(english: Pair) -> Speaker:
    from speakers import speaker  # as above

    return speaker(english.student)


@pytest.fixture(scope="module")
def linguist(multilingual: Pair) -> Speaker:
    from speakers import speaker  # as above

    return speaker(multilingual.student)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For arithmetic whose order, and so whose last digits, must not depend on the machine's cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
