"""One text out of several finals, for clients that can only be told more of a text, and never another one.

Owns how finals are joined, and what of the whole such a client knows already. Knows no dialect.
"""

from __future__ import annotations


class Transcript:
    """What a partial has stable is told while somebody speaks. Where a final does change it, no more is told: then only
    the whole text, which each of these protocols has at its end, is right.

    Attributes:
        text: the finals so far.
    """

    def __init__(self) -> None:
        self.text = ""
        self._told = ""

    def partial(self, stable: str) -> str:
        """What is to be told now that so much of the next final is known; often nothing."""
        return self._more(self._with(stable))

    def final(self, text: str) -> str:
        """What is to be told now that the next final is there."""
        self.text = self._with(text)
        return self._more(self.text)

    def _with(self, text: str) -> str:
        return " ".join(part for part in (self.text, text.strip()) if part)

    def _more(self, text: str) -> str:
        if not text.startswith(self._told):
            return ""
        more, self._told = text[len(self._told) :], text
        return more
