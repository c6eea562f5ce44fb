"""Which phrases each source's streams are to hear: from the settings, and from who told them since.

Owns the lists and their sum. Knows nothing of topics, of clients, or of how phrases are heard.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from streaming.vocabulary import NO_VOCABULARY, Vocabulary, joined

_MOST_TOLD = 1024
"""Sources whose list is remembered: whoever may publish can make names up."""


class SourceVocabularies:
    """The phrases of all sources."""

    def __init__(self) -> None:
        self._everywhere = NO_VOCABULARY
        self._configured: Mapping[str, Vocabulary] = {}
        self._told: dict[str, Vocabulary] = {}
        self._house = NO_VOCABULARY
        # A stream asks for each job, and the lists seldom change.
        self._joined = lru_cache(maxsize=256)(self._join)

    def configure(self, everywhere: Vocabulary, by_source: Mapping[str, Vocabulary]) -> None:
        """Take over the settings: phrases for all sources, and for some."""
        self._everywhere, self._configured = everywhere, by_source
        self._joined.cache_clear()

    def tell(self, source: str, vocabulary: Vocabulary) -> None:
        """Use phrases for a source beside those of the settings, until others are told; none take them back."""
        self._told.pop(source, None)
        if vocabulary.phrases:
            if len(self._told) >= _MOST_TOLD:
                del self._told[next(iter(self._told))]
            self._told[source] = vocabulary
        self._joined.cache_clear()

    def tell_all(self, vocabulary: Vocabulary) -> None:
        """Use phrases for all sources until others are told."""
        self._house = vocabulary
        self._joined.cache_clear()

    def of(self, source: str, own: Vocabulary = NO_VOCABULARY) -> Vocabulary:
        """Return the phrases of a stream.

        Args:
            source: its source.
            own: what its client asked for, which goes before all others where there are too many.
        """
        return self._joined(source, own)

    def _join(self, source: str, own: Vocabulary) -> Vocabulary:
        told, configured = (lists.get(source, NO_VOCABULARY) for lists in (self._told, self._configured))
        return joined(own, told, configured, self._everywhere, self._house)
