"""Whether there can be anything to hear in a stream at all, judged by the form of its samples.

Owns what is checked before anything is mixed or clipped, and the messages for a client whose audio carries nothing
although every byte of it is valid. Without them it would never be told why nothing is heard. Each finding is reported
once. Knows nothing of speech, or of how samples are packed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streaming.job import Waveform

LONG = 10.0
"""Seconds from the beginning without any signal after which it is said; a stream that ends earlier is judged then."""

SHORT = 1.0
"""Seconds of a stream that are too few to say that there was nothing in it."""

_NOTHING = 1e-5  # below the least step of 16 bits
_CANCELLED = 1e-4  # of the channels' power is left in their mean: -40 dB
_FAR = 4.0  # full scale is 1: an encoder overshoots by a little
_MANY_SECONDS = 0.05  # of wrong samples: one alone is a click


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with the samples of a stream.

    Attributes:
        code: the word for it on the wire.
        message: what is wrong, and what to send instead.
        channel: the number of the channel, from 0, where each is heard by itself.
    """

    code: str
    message: str
    channel: int = 0


class SignalCheck:
    """The samples of one stream.

    Args:
        rate: samples per second of each channel.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._many = round(_MANY_SECONDS * rate)
        self._heard = 0
        self._peak = 0.0
        self._power = self._mixed_power = 0.0
        self._far = self._invalid = 0
        self._judged = False
        self._reported: set[str] = set()
        self._found: list[Finding] = []

    def look(self, samples: Waveform, mixed: Waveform, invalid: int = 0) -> None:
        """Check the next samples.

        Args:
            samples: shape `[n, channels]`, finite, not clipped.
            mixed: shape `[n]`.
            invalid: how many of the samples were no numbers.
        """
        self._heard += len(mixed)
        self._wrong(np.abs(samples), invalid)
        if self._judged:
            return
        self._power += _power(samples.clip(-1, 1))
        self._mixed_power += samples.shape[1] * _power(mixed)
        if self._heard >= LONG * self._rate:
            self._judge()

    def end(self) -> None:
        """Judge the stream at its end, if it was not judged before."""
        if not self._judged and self._heard >= SHORT * self._rate:
            self._judge()

    def findings(self) -> list[Finding]:
        """Return the findings that were not returned before."""
        found, self._found = self._found, []
        return found

    def _wrong(self, sizes: NDArray[np.float32], invalid: int) -> None:
        largest = float(sizes.max(initial=0))
        self._peak = max(self._peak, largest)
        self._invalid += invalid
        if largest > _FAR:
            self._far += int((sizes > _FAR).sum())
        if self._far >= self._many:
            self._report(
                "out_of_range",
                f"samples are far outside -1..1 (up to {self._peak:.3g}) and are clipped: send floats with a "
                "full scale of 1, or integers as pcm_s16le",
            )
        if self._invalid >= self._many:
            self._report("not_numbers", "many samples are not numbers (NaN or infinite): is this really pcm_f32le?")

    def _judge(self) -> None:
        self._judged = True
        if self._peak <= _NOTHING:
            if not self._invalid:
                self._report(
                    "no_signal",
                    f"all samples were zero for {self._heard / self._rate:.0f} s: is the microphone muted, or is this "
                    "the wrong device?",
                )
        elif self._mixed_power < _CANCELLED * self._power:
            self._report(
                "channels_cancel",
                "the channels are each other's opposite, and nothing is left when they are mixed: send one of them",
            )

    def _report(self, code: str, message: str) -> None:
        if code not in self._reported:
            self._reported.add(code)
            self._found.append(Finding(code, message))


def _power(samples: Waveform) -> float:
    flat = samples.ravel().astype(np.float64)
    return float(flat @ flat)
