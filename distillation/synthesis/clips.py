"""Clips of sentences that neural voices speak, as blocks of a corpus.

Owns which sentences and voices make a block, and how blocks are made by several processes. Knows nothing of recordings,
labels or models.
"""

from __future__ import annotations

import functools
import multiprocessing
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from distillation.corpus import About, block_index, trim, write_block
from distillation.interrupts import deaf_children
from distillation.synthesis import neural_voices
from distillation.synthesis.grammar import sentences
from distillation.synthesis.voices import choose_voice
from streaming.job import Waveform

BLOCK_CLIPS = 200


@dataclass(frozen=True, slots=True)
class Synthesis:
    """What is synthesised.

    Attributes:
        clips: how many, by neural voices.
        styles: the folder of Kokoro's speakers, as for `neural_voices.styles_of`.
    """

    clips: int
    styles: Path | None = None

    @property
    def blocks(self) -> range:
        return range(-(-self.clips // BLOCK_CLIPS))


def synthesise(folder: Path, wanted: Synthesis, seed: int, workers: int, spoken: Sequence[str] = ()) -> None:
    """Add synthetic clips by random voices to the corpus in a folder.

    Args:
        folder: the corpus, which is made when it is not there.
        wanted: how many clips, and by which speakers.
        seed: of everything that is random.
        workers: processes to use.
        spoken: sentences to choose from; when empty, the grammar makes home commands.
    """
    blocks = wanted.blocks
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in blocks if not block_index(folder, number).is_file()]
    speak_block = functools.partial(_speak_block, folder=folder, wanted=wanted, seed=seed, spoken=tuple(spoken))
    if missing:
        neural_voices.unpack()
    # On the way out, by an interrupt too, the pool ends its processes: what they were writing does not count.
    with deaf_children():
        pool = multiprocessing.Pool(workers)
    with pool:
        done = pool.imap(speak_block, missing)
        for _ in tqdm(done, desc="voices", unit="block", initial=len(blocks) - len(missing), total=len(blocks)):
            pass


def _speak_block(number: int, folder: Path, wanted: Synthesis, seed: int, spoken: tuple[str, ...]) -> None:
    rng = random.Random(f"{seed}/{number}")
    texts = sentences(rng.randrange(2**31))
    clips: list[tuple[Waveform, About]] = []
    while len(clips) < BLOCK_CLIPS:
        voice = choose_voice(rng, wanted.styles)
        batch = [rng.choice(spoken) if spoken else next(texts) for _ in range(8)]
        about = {"speaker": voice.speaker, "set": voice.program, "split": "train"}
        clips += [(trim(voice.speak(text)), {**about, "text": text}) for text in batch]
    write_block(folder, number, clips[:BLOCK_CLIPS])
