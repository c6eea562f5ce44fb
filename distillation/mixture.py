"""The mixture of lessons that a student learns from.

Owns its shares. Knows nothing of how a batch is made or a model trained.
"""

from __future__ import annotations

from distillation.batches import Mixture


def student_mixture(seconds: float, longest: float, strength: float, seed: int) -> Mixture:
    """Return a mixture that is like what the service hears.

    It has utterances and their beginnings, mostly in the smallest window that holds them; some joined utterances, as
    recordings seldom fill a long window; and noise.

    Args:
        seconds: of audio in a batch.
        longest: seconds that a clip may last.
        strength: of the augmentation, 0 to 1.
        seed: of everything that is random.
    """
    return Mixture(
        {}, seconds=seconds, most_rows=32, longest=longest, joined_share=0.12, empty_share=0.03, strength=strength,
        seed=seed,
    )  # fmt: skip
