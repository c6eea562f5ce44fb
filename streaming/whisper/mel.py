"""Log-mel features, computed on the model's device.

Owns the one transformation from waveforms to the encoder's input; equal, to rounding, to transformers'
`WhisperFeatureExtractor`. Knows nothing of models or jobs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from streaming.job import SAMPLE_RATE, Waveform

FFT = 400
HOP = 160
_LINEAR_UP_TO = 1000.0  # Hz; Slaney's mel scale is linear below and logarithmic above
_MEL_PER_HZ = 3.0 / 200.0
_LOG_STEP = math.log(6.4) / 27.0


class LogMel:
    """Waveforms to log-mel features of `bins` mel bins on `device`."""

    def __init__(self, bins: int, device: torch.device) -> None:
        self._window = torch.hann_window(FFT, device=device)
        self._filters = mel_filters(bins).to(device, torch.float32)
        self._device = device

    def __call__(self, waveforms: Sequence[Waveform], seconds: float) -> Tensor:
        """Features of each waveform padded with zeros to `seconds`: [rows, bins, 100 * seconds] in float32.

        Each row is scaled by its own loudest bin, so that a row does not depend on its neighbours.
        """
        power = power_spectrum(waveforms, seconds, self._window)
        return compressed(self._filters @ power)


def power_spectrum(waveforms: Sequence[Waveform], seconds: float, window: Tensor) -> Tensor:
    """Of each waveform padded with zeros to `seconds`: [rows, 1 + FFT / 2, 100 * seconds], on the window's device."""
    samples = round(seconds * SAMPLE_RATE)
    audio = torch.zeros(len(waveforms), samples)
    for row, waveform in zip(audio, waveforms, strict=True):
        row[: len(waveform)] = torch.tensor(waveform)
    spectrum = torch.stft(audio.to(window.device), FFT, HOP, window=window, pad_mode="reflect", return_complex=True)
    spectrum = spectrum[..., :-1]
    # A tenth of the time of `abs().square()`, which takes the modulus' root first.
    return spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)


def compressed(mel: Tensor) -> Tensor:
    """Whisper's scaling of the bins' power [rows, bins, frames]: decibels down to 80 below a row's loudest bin."""
    log = mel.clamp(min=1e-10).log10()
    return (torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


def mel_filters(bins: int) -> Tensor:
    """Triangular filters [bins, 1 + FFT / 2] in float64, of equal area, on Slaney's mel scale from 0 to 8 kHz.

    Source: M. Slaney, Auditory Toolbox (1998), the form that Whisper took from librosa.
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
