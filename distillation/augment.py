"""Augmentation: clean clips become the log-mel features of what a microphone might have heard.

Owns what can go wrong between a mouth and a model: speed, pitch, an uneven pace, the size of the speaker (a warped
frequency axis) and how steady it is, the room, the microphone's colour, noise, babble, gain, silence around the speech,
and masked bands. Everything is drawn from the generator that is passed in, so a batch can be made again exactly. Knows
nothing of models or files.

`strength` runs from 0 (clean, except for padding and gain) to 1. Training starts clean.

Sources: speed perturbation (Ko et al. 2015), VTLP (Jaitly and Hinton 2013), SpecAugment (Park et al. 2019).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distillation.noise import Noises
from streaming.job import SAMPLE_RATE, Waveform
from streaming.whisper.mel import FFT, HOP, compressed, mel_filters, power_spectrum

_WARPS = tuple(np.linspace(0.86, 1.16, 13).round(3).tolist())
_NO_WARP = min(range(len(_WARPS)), key=lambda index: abs(_WARPS[index] - 1))

Rng = np.random.Generator


def augment_waveform(
    wave: Waveform, rng: Rng, strength: float, noises: Sequence[Waveform], babble: Waveform, *, goes_on: bool = False
) -> Waveform:
    """Give a clip another speed, room, noise and level, and put silence around it.

    Args:
        wave: the clip, 16 kHz mono.
        rng: the generator that everything is drawn from.
        strength: how much is changed, 0 to 1.
        noises: recordings to mix under the speech.
        babble: any other clip, which is mixed in as the voice of somebody else.
        goes_on: whether the speech continues beyond the clip's end, so that no silence follows it.
    """
    if rng.random() < 0.8 * strength:
        wave = _at_uneven_speed(wave, rng.uniform(0.86, 1.16), rng)
    lead, trail = rng.uniform(0.0, 0.45), 0.0 if goes_on else rng.uniform(0.05, 0.6)
    wave = np.pad(wave, (int(lead * SAMPLE_RATE), int(trail * SAMPLE_RATE)))
    if rng.random() < 0.35 * strength:
        wave = _in_room(wave, rng)
    if rng.random() < 0.6 * strength:
        wave = _mix(wave, _random_noise(wave.size, rng, noises), rng.uniform(3, 35), rng)
    if rng.random() < 0.1 * strength:
        wave = _mix(wave, _looped(babble, wave.size, rng), rng.uniform(12, 30), rng)
    return _at_level(wave, rng, strength)


def noise_alone(samples: int, rng: Rng, noises: Noises) -> Waveform:
    """Make a clip that a model must hear as nothing.

    It holds noise, hum, near silence, clicks, or a noise that sounds like speech.

    Args:
        samples: the length of the clip. A noise that sounds like speech has its own length.
        rng: the generator that everything is drawn from.
        noises: recordings to choose from; white and coloured noise is generated too.
    """
    if noises.mistaken and rng.random() < 0.5:
        return _deceptive(rng, noises.mistaken)
    wave = _random_noise(samples, rng, noises.speechless) * np.float32(0.1)
    if rng.random() < 0.3:
        wave = wave * np.float32(0.01)
    for _ in range(rng.integers(0, 3)):
        at = rng.integers(0, max(1, samples - 400))
        wave[at : at + 200] += (rng.standard_normal(200) * np.exp(-np.arange(200) / 30) * 0.3).astype(np.float32)
    return _at_level(wave, rng, 1.0)


def _deceptive(rng: Rng, mistaken: Sequence[Waveform]) -> Waveform:
    wave = _at_speed(mistaken[int(rng.integers(len(mistaken)))], rng.uniform(0.8, 1.25))
    wave = np.pad(wave, rng.integers(0, SAMPLE_RATE // 3, 2).tolist())
    wave = _mix(wave, rng.standard_normal(wave.size).astype(np.float32), rng.uniform(0, 40), rng)
    return _at_level(wave, rng, 1.0)


def _at_speed(wave: Waveform, speed: float) -> Waveform:
    places = np.arange(0, wave.size - 1, speed)
    return np.asarray(np.interp(places, np.arange(wave.size), wave), dtype=np.float32)


def _at_uneven_speed(wave: Waveform, speed: float, rng: Rng, unevenness: float = 0.12) -> Waveform:
    """`speed` on the whole, a little faster here and slower there: two voices don't hold the same sounds as long."""
    knots = max(2, wave.size // (SAMPLE_RATE // 4))
    pace = speed * rng.uniform(1 - unevenness, 1 + unevenness, knots)
    places = np.cumsum(np.interp(np.linspace(0, knots - 1, int(wave.size / speed)), np.arange(knots), pace))
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


@functools.lru_cache(maxsize=64)
def warped_filters(mels: int, warp: float = 1.0) -> Tensor:
    """Return Whisper's mel filters, `[mels, 1 + FFT / 2]`, on a frequency axis stretched by `warp` (VTLP)."""
    filters = mel_filters(mels).numpy()
    if warp != 1.0:
        bins = np.arange(1 + FFT // 2)
        filters = np.stack([np.interp(bins * warp, bins, row, right=0.0) for row in filters])
    return torch.from_numpy(filters.astype(np.float32))


@functools.cache
def _window() -> Tensor:
    return torch.hann_window(FFT)


def features(
    waves: Sequence[Waveform], seconds: float, mels: int, rng: Rng | None = None, strength: float = 0.0
) -> Tensor:
    """Compute Whisper's log-mel features of clips, augmented when `rng` is given.

    Args:
        waves: clips, 16 kHz mono, which are padded or cut to `seconds`.
        seconds: the length of the window.
        mels: the number of mel bands.
        rng: the generator that the augmentation is drawn from; None for clean features.
        strength: how much is changed, 0 to 1.

    Returns:
        `[clips, mels, frames]`.
    """
    samples = round(seconds * SAMPLE_RATE)
    power = power_spectrum([wave[:samples] for wave in waves], seconds, _window())
    if rng is None:
        return compressed(warped_filters(mels) @ power)
    log = compressed(torch.stack([_warped_mel(row, mels, rng, strength) for row in power]))
    for row, wave in zip(log, waves, strict=True):
        _mask(row, min(row.shape[1], wave.size // HOP), rng, strength)
    return log


def _warped_mel(power: Tensor, mels: int, rng: Rng, strength: float) -> Tensor:
    warp = int(rng.integers(len(_WARPS))) if rng.random() < 0.75 * strength else _NO_WARP
    unsteady = rng.random() < 0.8 * strength
    mel = _patched(power, warp, mels, rng) if unsteady else _filters_of(warp, mels) @ power
    if rng.random() < 0.5 * strength:
        mel = mel * _colour(mels, rng)[:, None]
    return mel


def _filters_of(warp: int, mels: int) -> Tensor:
    return warped_filters(mels, 1.0 if warp == _NO_WARP else _WARPS[warp])


def _patched(power: Tensor, warp: int, mels: int, rng: Rng) -> Tensor:
    """Mel bands in which each stretch of a few sounds has its own warp, near `warp`, and its own level.

    Speech that is joined from pieces recorded apart, as in diphone voices, is as unsteady as this.
    """
    stretches: list[Tensor] = []
    at = 0
    while at < power.shape[1]:
        end = at + int(rng.integers(6, 25))
        near = int(np.clip(warp + rng.integers(-2, 3), 0, len(_WARPS) - 1))
        stretches.append(_filters_of(near, mels) @ power[:, at:end] * 10 ** (rng.uniform(-3, 3) / 10))
        at = end
    return torch.cat(stretches, 1)


def _colour(mels: int, rng: Rng) -> Tensor:
    """A microphone's response: a smooth curve of +-8 dB over the bands, at times with one end cut off."""
    knots = rng.uniform(-8, 8, 6)
    curve = np.interp(np.linspace(0, 5, mels), np.arange(6), knots)
    if rng.random() < 0.3:
        curve[int(rng.integers(5 * mels // 8, mels)) :] -= 40
    if rng.random() < 0.3:
        curve[: int(rng.integers(1, mels // 6))] -= 30
    return torch.from_numpy((10 ** (curve / 10)).astype(np.float32))


def _mask(mel: Tensor, frames: int, rng: Rng, strength: float) -> None:
    """SpecAugment in place: up to two bands and two short stretches of time fall to the floor."""
    floor = float(mel.min())
    for _ in range(2):
        if rng.random() < 0.5 * strength:
            band = int(rng.integers(0, mel.shape[0]))
            mel[band : band + int(rng.integers(1, mel.shape[0] // 7 + 1))] = floor
        if rng.random() < 0.4 * strength and frames > 20:
            at = int(rng.integers(0, frames))
            mel[:, at : at + int(rng.integers(1, max(2, min(14, frames // 12))))] = floor


def padded_seconds(longest: float, contexts: Sequence[float], exact: bool) -> float:
    """Return the length of a batch's window, in seconds.

    Args:
        longest: seconds of the longest clip in the batch.
        contexts: the windows of the checkpoint, in seconds, the shortest first.
        exact: whether the window must be one of `contexts`; else it ends at the next half second, which costs less.
    """
    if exact:
        return next((context for context in contexts if context >= longest), contexts[-1])
    return min(math.ceil(longest * 2) / 2, contexts[-1])
