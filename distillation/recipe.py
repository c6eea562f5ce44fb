"""The settings by which `home-en` was made: which sets weigh how much, when, and how much is done to them.

Owns the mixtures of each stage. Knows nothing of how a batch is made or a model trained.

How often a set comes in an epoch: once, unless it is named. The names are those of `distill corpus` and of the
recordings that home-en learnt from: in a corpus of somebody else's, a set may be called so and be something else.
"""

from __future__ import annotations

from collections.abc import Mapping

from distillation.batches import Mixture

SYNTHETIC_FIRST = {
    "gsc2_test": 0.15,
    "gsc1_bed_cat_happy": 0.2,
    "digits_fsdd": 0.15,
    "speechocean762": 0.5,
    "common_voice_min": 0.5,
    "hymel_custom": 0.2,
    "librispeech_dummy": 0.0,
    "espeak": 0.7,
}
THEN_PEOPLE = {
    "gsc2_test": 1.5,
    "gsc1_bed_cat_happy": 2.0,
    "speechocean762": 0.8,
    "librispeech_dummy": 0.0,
    "espeak": 0.9,
}
# For a teacher that has found its way: beside thousands of clips by older synthetic voices, those that sound most like
# people weigh most, and festival's diphones, of which there are few.
REFINING = {
    "espeak": 2.0,
    "festival": 2.0,
    "diphone": 2.0,
    "pico": 1.5,
    "kokoro": 3.0,
    "piper": 3.0,
    "kathleen": 4.0,
    "speechocean762": 2.5,
    "common_voice_min": 4.0,
    "digits_fsdd": 0.4,
    "hymel_custom": 0.3,
    "wake_precise": 0.5,
}
WEIGHTS: Mapping[str, Mapping[str, float]] = {"none": {}, "home-en": REFINING}
"""By the name that `distill train --weights` takes."""
PEOPLE_FROM = 3000

Stages = list[tuple[int, Mixture]]
"""(first step, mixture), ascending."""


# Each stage has numbers of its own, and each seed of a training other ones; with seed 0 they are those of home-en.


def from_scratch(steps: int, seed: int = 0) -> Stages:
    """First mostly synthetic voices, in short clips and small batches: the encoder must find how sounds and letters go
    together, and noisy single words hide it. Then people.
    """
    first = Mixture(SYNTHETIC_FIRST, seconds=44, most_rows=24, longest=4.5, joined_share=0, empty_share=0.01,
                    clean_until=PEOPLE_FROM, exact_from=steps, seed=1 + 1000 * seed)  # fmt: skip
    then = Mixture(THEN_PEOPLE, seconds=50, most_rows=28, longest=6, joined_share=0.015, empty_share=0.03,
                   clean_until=PEOPLE_FROM, full_from=15000, exact_from=steps * 4 // 5,
                   seed=3 + 1000 * seed)  # fmt: skip
    return [(0, first), (PEOPLE_FROM, then)]


def refining(steps: int, seed: int = 0) -> Stages:
    """Augmented from three to five tenths of full strength."""
    mixture = Mixture(REFINING, seconds=56, most_rows=32, longest=7, joined_share=0.03, empty_share=0.04,
                      clean_until=-3 * steps // 2, full_from=7 * steps // 2, exact_from=steps * 3 // 4,
                      seed=12 + 1000 * seed)  # fmt: skip
    return [(0, mixture)]


def student_mixture(
    seconds: float, longest: float, strength: float, seed: int, weights: Mapping[str, float]
) -> Mixture:
    """For a student of any teacher: the encoder is frozen and has heard it all, so augmentation stays as it is.

    seconds: of audio in a batch. longest: of a clip. strength: of augmentation, 0..1.
    weights: how often a set comes in an epoch, where not once.
    """
    # A ramp so long that it stands still: `strength` at its place 0.
    ramp = 10**9
    return Mixture(weights, seconds=seconds, most_rows=32, longest=longest, joined_share=0.03, empty_share=0.03,
                   clean_until=-round(strength * ramp), full_from=round((1 - strength) * ramp), exact_from=0,
                   seed=seed)  # fmt: skip
