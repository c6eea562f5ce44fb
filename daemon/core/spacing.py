"""How far apart the partials of a stream are, where the engine cannot keep up with their interval.

Owns one number, which follows from how long partials took of late. A checkpoint that hears its whole window each time
does the same work for a word as for a sentence. Where that takes longer than the interval of partials, an engine has
nothing else to do, and a final finds it busy. Partials that are further apart leave it free. Knows no clock, no stream
and no engine: whoever runs partials tells how long they took.
"""

from __future__ import annotations

WIDEST = 8.0
"""Times their interval that partials are apart, at most."""

_STEEPNESS = 3.0
"""How fast the factor grows with the time that partials take. At 1 they would be as far apart as they take, and a
stream alone would keep its engine busy."""

_SLOWER, _FASTER = 0.25, 0.5
"""What a new time counts against those before it: one that took long may be chance, and nobody waits for text in vain
once the load has gone."""


class Spacing:
    """How many times their interval partials are apart.

    It is 1 as long as they take no longer than the interval.

    Args:
        interval: seconds of new audio that make the next partial due, where the engine keeps up.

    Attributes:
        interval: may be set.
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._usual = 0.0  # seconds that partials took of late

    @property
    def factor(self) -> float:
        """Times the interval, from 1 to `WIDEST`."""
        late = self._usual / self.interval - 1.0
        return min(max(1.0 + _STEEPNESS * late, 1.0), WIDEST)

    def took(self, seconds: float) -> None:
        """Note how long partials took from when they were due until they were heard, waiting included."""
        # More than what makes them widest would only have to be forgotten again.
        most = self.interval * (1.0 + (WIDEST - 1.0) / _STEEPNESS)
        seconds, before = min(seconds, most), min(self._usual, most)
        self._usual = before + (_SLOWER if seconds > before else _FASTER) * (seconds - before)
