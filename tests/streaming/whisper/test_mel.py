"""Log-mel features against transformers' feature extractor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import WhisperFeatureExtractor
from waveforms import murmur

from streaming.job import SAMPLE_RATE, Waveform
from streaming.whisper.mel import LogMel, mel_filters

CPU = torch.device("cpu")


@pytest.mark.parametrize("bins", [80, 128])
def test_filters(bins: int) -> None:
    extractor = WhisperFeatureExtractor(feature_size=bins)
    assert torch.allclose(mel_filters(bins).T, torch.from_numpy(extractor.mel_filters), atol=1e-9)


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("seconds", [2, 5, 30])
def test_features(bins: int, seconds: int) -> None:
    """Audio of unequal lengths and loudness, silence included, in one batch."""
    waveforms: list[Waveform] = [
        murmur(seconds, 0),
        murmur(0.3 * seconds, 1) * np.float32(0.01),
        np.zeros(SAMPLE_RATE, np.float32),
        np.full(1, 0.5, np.float32),
    ]
    ours = LogMel(bins, CPU)(waveforms, seconds)
    extractor = WhisperFeatureExtractor(feature_size=bins, chunk_length=seconds)
    theirs = extractor(waveforms, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    assert ours.shape == (len(waveforms), bins, 100 * seconds)
    assert torch.allclose(ours, theirs, atol=2e-4)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    mel = LogMel(80, CPU)
    quiet, loud = murmur(1, 0) * np.float32(1e-3), murmur(2, 1)
    assert torch.equal(mel([quiet], 2)[0], mel([loud, quiet], 2)[1])


class Copies(TorchDispatchMode):
    """How many numbers are copied from tensor to tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch does not say
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ == "copy_":
            self.count += args[1].numel()
        return function(*args, **(kwargs or {}))


def test_only_true_samples_travel() -> None:
    waves = [murmur(1, 0), murmur(0.2, 1)]
    with Copies() as copies:
        LogMel(80, CPU)(waves, 30)
    assert copies.count == sum(map(len, waves))
