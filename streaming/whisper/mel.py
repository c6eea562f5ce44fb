"""Log-mel features, computed on the model's device.

Owns the one transformation from waveforms to the encoder's input; equal, to rounding, to `WhisperFeatureExtractor` of
transformers. Knows nothing of models or jobs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from streaming.job import SAMPLE_RATE, Waveform

FFT = 400
HOP = 160
_LINEAR_UP_TO = 1000.0  # Hz; Slaney's mel scale is linear below and logarithmic above
_MEL_PER_HZ = 3.0 / 200.0
_LOG_STEP = math.log(6.4) / 27.0


class LogMel:
    """Waveforms to log-mel features.

    Args:
        bins: the number of mel bands.
        device: where they are computed.
    """

    def __init__(self, bins: int, device: torch.device) -> None:
        self._window = torch.hann_window(FFT, device=device)
        self._filters = mel_filters(bins).to(device, torch.float32)
        self._device = device

    def __call__(self, waveforms: Sequence[Waveform], seconds: float) -> Tensor:
        """Compute the features of waveforms, each padded with zeros to `seconds`.

        Each row is scaled by its own loudest bin, so that a row does not depend on its neighbours.

        Returns:
            float32, `[rows, bins, 100 * seconds]`.
        """
        power = power_spectrum(waveforms, seconds, self._window)
        return compressed(self._filters @ power)


def power_spectrum(waveforms: Sequence[Waveform], seconds: float, window: Tensor) -> Tensor:
    """Compute the power spectrum of waveforms, each padded with zeros to `seconds`, on the window's device.

    Returns:
        `[rows, 1 + FFT / 2, 100 * seconds]`.
    """
    audio = _padded(waveforms, round(seconds * SAMPLE_RATE), window.device)
    spectrum = torch.stft(audio, FFT, HOP, window=window, pad_mode="reflect", return_complex=True)
    spectrum = spectrum[..., :-1]
    # A tenth of the time of `abs().square()`, which takes the modulus' root first.
    return spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)


def _padded(waveforms: Sequence[Waveform], samples: int, device: torch.device) -> Tensor:
    """The waveforms on the device, zeros behind each: `[rows, samples]`.

    Only true samples travel: a short command in a window of half a minute is a few hundredths of it.
    """
    lengths = [len(waveform) for waveform in waveforms]
    # From pinned memory the copies wait for nothing, and the host does not wait for them.
    sent = torch.empty(sum(lengths), pin_memory=device.type == "cuda")
    np.concatenate(waveforms, out=sent.numpy())
    audio = torch.zeros(len(waveforms), samples, device=device)
    for row, part in zip(audio, sent.split(lengths), strict=True):
        row[: len(part)].copy_(part, non_blocking=True)
    return audio


def compressed(mel: Tensor) -> Tensor:
    """Scale the power of bins as Whisper does, in decibels down to 80 below a row's loudest bin.

    Args:
        mel: `[rows, bins, frames]`.
    """
    log = mel.clamp(min=1e-10).log10()
    return (torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


def mel_filters(bins: int) -> Tensor:
    """Return triangular filters of equal area on Slaney's mel scale from 0 to 8 kHz.

    Source: M. Slaney, Auditory Toolbox (1998), in the form that Whisper took from librosa.

    Returns:
        float64, `[bins, 1 + FFT / 2]`.
    """
    frequencies = torch.linspace(0.0, SAMPLE_RATE / 2, 1 + FFT // 2, dtype=torch.float64)
    top = _LINEAR_UP_TO * _MEL_PER_HZ + math.log(SAMPLE_RATE / 2 / _LINEAR_UP_TO) / _LOG_STEP
    edges = _hertz(torch.linspace(0.0, top, bins + 2, dtype=torch.float64))
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (frequencies - low) / (centre - low)
    falling = (high - frequencies) / (high - centre)
    return torch.minimum(rising, falling).clamp(min=0.0) * 2.0 / (high - low)


def _hertz(mel: Tensor) -> Tensor:
    linear = mel / _MEL_PER_HZ
    start = _LINEAR_UP_TO * _MEL_PER_HZ
    return torch.where(mel < start, linear, _LINEAR_UP_TO * torch.exp(_LOG_STEP * (mel - start)))
