"""Clean clips -> the log-mel features of what a microphone might have heard.

Owns what can go wrong between a mouth and a model: speed, pitch, the size of the speaker (a warped frequency axis), the
room, the microphone's colour, noise, babble, gain, silence around, masked bands. Knows nothing of models or files.
Everything is drawn from the generator that is passed in, so a batch can be made again exactly.

`strength` runs from 0 (clean, but for padding and gain) to 1: training starts clean.
Sources: speed perturbation (Ko et al. 2015), VTLP (Jaitly & Hinton 2013), SpecAugment (Park et al. 2019).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from streaming.job import SAMPLE_RATE, Waveform

N_FFT, HOP, MELS = 400, 160, 80
_WARPS = tuple(np.linspace(0.86, 1.16, 13).round(3).tolist())
_NO_WARP = min(_WARPS, key=lambda warp: abs(warp - 1))

Rng = np.random.Generator


def augment_waveform(
    wave: Waveform, rng: Rng, strength: float, noises: Sequence[Waveform], babble: Waveform
) -> Waveform:
    """One clip with another speed, room, noise and level, and with silence around it. `babble`: any other clip."""
    if rng.random() < 0.8 * strength:
        wave = _at_speed(wave, rng.uniform(0.86, 1.16))
    lead, trail = rng.uniform(0.0, 0.45), rng.uniform(0.05, 0.6)
    wave = np.pad(wave, (int(lead * SAMPLE_RATE), int(trail * SAMPLE_RATE)))
    if rng.random() < 0.35 * strength:
        wave = _in_room(wave, rng)
    if rng.random() < 0.6 * strength:
        wave = _mix(wave, _random_noise(wave.size, rng, noises), rng.uniform(3, 35), rng)
    if rng.random() < 0.1 * strength:
        wave = _mix(wave, _looped(babble, wave.size, rng), rng.uniform(12, 30), rng)
    return _at_level(wave, rng, strength)


def noise_alone(samples: int, rng: Rng, noises: Sequence[Waveform]) -> Waveform:
    """What a model must hear as nothing: noise, hum, or next to silence, sometimes with clicks."""
    wave = _random_noise(samples, rng, noises) * np.float32(0.1)
    if rng.random() < 0.3:
        wave = wave * np.float32(0.01)
    for _ in range(rng.integers(0, 3)):
        at = rng.integers(0, max(1, samples - 400))
        wave[at : at + 200] += (rng.standard_normal(200) * np.exp(-np.arange(200) / 30) * 0.3).astype(np.float32)
    return _at_level(wave, rng, 1.0)


def _at_speed(wave: Waveform, speed: float) -> Waveform:
    places = np.arange(0, wave.size - 1, speed)
    return np.asarray(np.interp(places, np.arange(wave.size), wave), dtype=np.float32)


def _in_room(wave: Waveform, rng: Rng) -> Waveform:
    """Convolved with a decaying noise tail behind a direct path: Polack's model of a room's response."""
    reverberation = rng.uniform(0.08, 0.5)
    length = int(reverberation * SAMPLE_RATE)
    tail = rng.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length)
    delay = int(rng.uniform(0.002, 0.012) * SAMPLE_RATE)
    tail[:delay] = 0
    tail *= 10 ** (rng.uniform(-14, 0) / 20) / (np.sqrt((tail**2).sum()) + 1e-9)
    tail[0] = 1.0
    size = 1 << (wave.size + length).bit_length()
    return np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(tail, size), size)[: wave.size].astype(np.float32)


def _random_noise(samples: int, rng: Rng, noises: Sequence[Waveform]) -> Waveform:
    if noises and rng.random() < 0.7:
        return _looped(noises[int(rng.integers(len(noises)))], samples, rng)
    white = rng.standard_normal(samples)
    if rng.random() < 0.5:
        spectrum = np.fft.rfft(white)
        spectrum /= np.maximum(np.arange(spectrum.size), 1) ** rng.uniform(0.2, 1.0)
        white = np.fft.irfft(spectrum, samples)
    if rng.random() < 0.2:
        hum = rng.choice([50, 60, 100, 120])
        white = white / (white.std() + 1e-9) + 3 * np.sin(2 * np.pi * hum * np.arange(samples) / SAMPLE_RATE)
    return np.asarray(white / (white.std() + 1e-9), dtype=np.float32)


def _looped(wave: Waveform, samples: int, rng: Rng) -> Waveform:
    if wave.size == 0:
        return np.zeros(samples, np.float32)
    start = int(rng.integers(wave.size))
    repeated: Waveform = np.take(wave, np.arange(start, start + samples), mode="wrap")
    return np.asarray(repeated / (wave.std() + 1e-6), dtype=np.float32)


def _mix(wave: Waveform, noise: Waveform, snr_db: float, rng: Rng) -> Waveform:
    speech = np.sqrt(np.mean(wave**2)) + 1e-9
    level = speech / (np.sqrt(np.mean(noise**2)) + 1e-9) * 10 ** (-snr_db / 20)
    return np.asarray(wave + noise * level, dtype=np.float32)


def _at_level(wave: Waveform, rng: Rng, strength: float) -> Waveform:
    gain = 10 ** (rng.uniform(-6 - 20 * strength, 4) / 20)
    floor = rng.standard_normal(wave.size) * 10 ** (rng.uniform(-95, -65) / 20)
    return np.asarray(np.clip(wave * gain + floor, -1, 1), dtype=np.float32)


# --- features --------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=32)
def mel_filters(warp: float = 1.0) -> Tensor:
    """Slaney's mel filters, [MELS, N_FFT // 2 + 1], on a frequency axis stretched by `warp` (VTLP)."""
    filters: NDArray[np.float64] = mel_filter_bank(N_FFT // 2 + 1, MELS, 0.0, 8000.0, SAMPLE_RATE, "slaney", "slaney").T
    if warp != 1.0:
        bins = np.arange(N_FFT // 2 + 1)
        filters = np.stack([np.interp(bins * warp, bins, row, right=0.0) for row in filters])
    return torch.from_numpy(filters.astype(np.float32))


def features(waves: Sequence[Waveform], seconds: float, rng: Rng | None = None, strength: float = 0.0) -> Tensor:
    """Whisper's log-mel features [clips, MELS, frames] of clips padded to `seconds`; augmented when `rng` is given."""
    samples = round(seconds * SAMPLE_RATE)
    padded = torch.zeros(len(waves), samples)
    for row, wave in enumerate(waves):
        padded[row, : wave.size] = torch.from_numpy(wave[:samples])
    spectrum = torch.stft(padded, N_FFT, HOP, window=torch.hann_window(N_FFT), return_complex=True)[..., :-1]
    power = spectrum.real.square() + spectrum.imag.square()
    mel = mel_filters() @ power if rng is None else torch.stack([_warped_mel(row, rng, strength) for row in power])
    log = mel.clamp(min=1e-10).log10()
    log = torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - 8.0)
    log = (log + 4.0) / 4.0
    if rng is not None:
        for row, wave in zip(log, waves, strict=True):
            _mask(row, min(row.shape[1], wave.size // HOP), rng, strength)
    return log


def _warped_mel(power: Tensor, rng: Rng, strength: float) -> Tensor:
    warp = float(rng.choice(_WARPS)) if rng.random() < 0.75 * strength else 1.0
    mel = mel_filters(1.0 if warp == _NO_WARP else warp) @ power
    if rng.random() < 0.5 * strength:
        mel = mel * _colour(rng)[:, None]
    return mel


def _colour(rng: Rng) -> Tensor:
    """A microphone's response: a smooth curve of +-8 dB over the bands, at times with one end cut off."""
    knots = rng.uniform(-8, 8, 6)
    curve = np.interp(np.linspace(0, 5, MELS), np.arange(6), knots)
    if rng.random() < 0.3:
        curve[int(rng.integers(50, MELS)) :] -= 40
    if rng.random() < 0.3:
        curve[: int(rng.integers(1, 14))] -= 30
    return torch.from_numpy((10 ** (curve / 10)).astype(np.float32))


def _mask(mel: Tensor, frames: int, rng: Rng, strength: float) -> None:
    """SpecAugment in place: up to two bands and two short stretches of time fall to the floor."""
    floor = float(mel.min())
    for _ in range(2):
        if rng.random() < 0.5 * strength:
            band = int(rng.integers(0, MELS))
            mel[band : band + int(rng.integers(1, 12))] = floor
        if rng.random() < 0.4 * strength and frames > 20:
            at = int(rng.integers(0, frames))
            mel[:, at : at + int(rng.integers(1, max(2, min(14, frames // 12))))] = floor


def padded_seconds(longest: float, contexts: Sequence[float], exact: bool) -> float:
    """The window of a batch: one of the checkpoint's contexts when `exact`, else the next half second (cheaper)."""
    if exact:
        return next((context for context in contexts if context >= longest), contexts[-1])
    return min(math.ceil(longest * 2) / 2, contexts[-1])
