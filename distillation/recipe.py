"""The mixture of lessons that a student learns from.

Owns its shares. Knows nothing of how a batch is made or a model trained.
"""

from __future__ import annotations

from distillation.batches import Mixture


def student_mixture(seconds: float, longest: float, strength: float, seed: int) -> Mixture:
    """What the service hears: utterances and beginnings of them in the smallest window that holds them, at times in a
    larger one; some joined ones, as recordings seldom fill a long window; and noise.

    seconds: of audio in a batch. longest: of a clip. strength: of augmentation, 0..1.
    """
    return Mixture(
        {}, seconds=seconds, most_rows=32, longest=longest, joined_share=0.12, empty_share=0.03, strength=strength,
        seed=seed,
    )  # fmt: skip
