"""What an open utterance is thought to say so far: a stable prefix, which never shrinks, and a tail, which may change.

Owns both, as tokens. Knows nothing of audio, of jobs, or of when a hypothesis is asked for.

The policy is LocalAgreement-2 (Liu et al. 2020; used for Whisper by Macháček et al. 2023): what two consecutive
hypotheses agree on is stable. Here the agreement need not be searched for: the last hypothesis was the model's draft,
and the model says how many of its tokens it accepts.
"""

from __future__ import annotations

from collections.abc import Sequence

from streaming.text import Text


class Hypothesis:
    """The hypothesis of one utterance.

    Attributes:
        latest: all tokens of the last result, which are the draft of the next job.
        stable: tokens shown as stable; only ever extended.
        tail: tokens shown after them.
    """

    def __init__(self, text: Text) -> None:
        self._text = text
        self.latest: tuple[int, ...] = ()
        self.stable: tuple[int, ...] = ()
        self.tail: tuple[int, ...] = ()

    def update(self, tokens: tuple[int, ...], accepted: int, language: str | None = None) -> None:
        """Take a new result.

        Args:
            tokens: of its text.
            accepted: how many of them, from the first on, equal those of `latest`.
            language: of the text, which decides where its words end.
        """
        # Whisper ends what it has heard so far with a full stop, wherever that is: stable only once more follows.
        agreed = min(self._text.word_boundary(tokens, accepted, language), self._text.last_signs(tokens))
        # A model may take back what it said twice. What is stable stays as it was shown, until the final
        # corrects it, and goes on from where the new tokens have come level with it.
        level = _level_with(self.stable, tokens)
        self.latest = tokens
        self.stable += tokens[level:agreed]
        self.tail = tokens[max(level, agreed) :]

    def shown(self) -> tuple[str, str]:
        """Return the stable text and the tail, which together are the whole hypothesis."""
        return self._text.split(self.stable + self.tail, len(self.stable))


def _level_with(stable: Sequence[int], tokens: Sequence[int]) -> int:
    """How many of `tokens` say what `stable` says.

    It is the number with the least edit distance to `stable`, and the largest of equals.
    """
    if tuple(tokens[: len(stable)]) == tuple(stable):
        return len(stable)
    distances = list(range(len(tokens) + 1))  # from no stable token to each prefix of `tokens`
    for row, wanted in enumerate(stable, 1):
        diagonal, distances[0] = distances[0], row
        for column, token in enumerate(tokens, 1):
            replaced = diagonal + (token != wanted)
            diagonal = distances[column]
            distances[column] = min(replaced, diagonal + 1, distances[column - 1] + 1)
    return max(range(len(distances)), key=lambda column: (-distances[column], column))
