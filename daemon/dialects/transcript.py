"""One text out of several finals, for clients that can only be told more of a text, and never another one.

Owns how finals are joined, and how much of the whole such a client knows already. Knows no dialect.
"""

from __future__ import annotations


class Transcript:
    """The text of a turn, and how much of it the client knows.

    What a partial has stable is told while somebody speaks. Where a final changes it all the same, no more is told:
    then only the whole text is right, which each of these protocols has at its end.

    Attributes:
        text: the finals so far.
    """

    def __init__(self) -> None:
        self.text = ""
        self._told = ""

    def partial(self, stable: str) -> str:
        """Return what to tell now that this much of the next final is known; often nothing."""
        return self._more(self._with(stable))

    def final(self, text: str) -> str:
        """Return what to tell now that the next final is there."""
        self.text = self._with(text)
        return self._more(self.text)

    def _with(self, text: str) -> str:
        return " ".join(part for part in (self.text, text.strip()) if part)

    def _more(self, text: str) -> str:
        if not text.startswith(self._told):
            return ""
        more, self._told = text[len(self._told) :], text
        return more
