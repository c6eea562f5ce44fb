"""Clips through the service's own engine: what a student, a teacher, or both hear.

Owns the batching of clips and the margins around them. Knows nothing of word errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from distillation.corpus import Clip, Corpus
from distillation.errors import DistillError
from streaming.job import NEVER, SAMPLE_RATE, Job, Result, Waveform, isolated, teacher_threshold
from streaming.whisper.decode import decode, language_logits
from streaming.whisper.hearing import LoadedModel, languages_of, rows_of
from streaming.whisper.model import KVCache

if TYPE_CHECKING:
    from streaming.whisper.engine import WhisperEngine


class HearingError(DistillError):
    """The engine could not transcribe a clip."""


@dataclass(frozen=True, slots=True)
class Escalation:
    """When the teacher decides a text.

    Attributes:
        below: the student's confidence below which the teacher decides.
        shortest: seconds of audio below which the student decides alone.
    """

    below: float = NEVER
    shortest: float = 0.0


ALONE = Escalation()
"""Never."""


class Transcriber:
    """The engine with texts instead of tokens, in which the student decides alone unless `escalation` says otherwise.

    Args:
        engine: the engine to use.
        escalation: when the teacher decides.
        language: a code; when None, a multilingual checkpoint detects it.
    """

    def __init__(self, engine: WhisperEngine, escalation: Escalation = ALONE, language: str | None = None) -> None:
        self.engine = engine
        self._escalation = escalation
        self._language = language
        self._tokenizer = Tokenizer.from_file(str(engine.tokenizer_file))

    def results(self, waves: Sequence[Waveform]) -> list[Result]:
        """Transcribe clips, 16 kHz mono, in one batch.

        Raises:
            HearingError: a job failed.
        """
        whom = self._escalation
        jobs = [
            Job(wave, language=self._language, ask_teacher_below=teacher_threshold(whom.below, wave, whom.shortest))
            for wave in waves
        ]
        results = isolated(self.engine.run, jobs)
        for result in results:
            if result.error:
                raise HearingError(result.error)
        return results

    def tell(self, waves: Sequence[Waveform]) -> list[Told]:
        """Return what the student of the pair, or the model alone, says of clips, with its logits (`tell`)."""
        return tell(self.engine.models[0], waves, self._language)

    def text(self, tokens: Sequence[int]) -> str:
        return decoded_text(self._tokenizer, tokens)

    def transcribe(self, waves: Sequence[Waveform]) -> list[str]:
        return [self.text(result.tokens) for result in self.results(waves)]


def decoded_text(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens))).strip()


@dataclass(frozen=True, slots=True)
class Told:
    """What a model says of a clip, and what it might have said.

    Attributes:
        tokens: of the text.
        log_probs: of each token and of the end of text, after the rules. A text that was cut off at its limit has no
            end.
        logits: at the place of each token and at the one behind them, before any rule, `[len(tokens) + 1, vocabulary]`.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    logits: Tensor

    @property
    def ended(self) -> bool:
        return len(self.log_probs) > len(self.tokens)


@torch.inference_mode()
def tell(model: LoadedModel, waves: Sequence[Waveform], language: str | None = None) -> list[Told]:
    """Return what a model says in its longest window, as Whisper was trained, with its logits.

    The logits take one more pass over the texts.

    Args:
        model: the model to use.
        waves: clips, 16 kHz mono.
        language: a code; when None, a multilingual checkpoint detects it.
    """
    jobs = [Job(wave, language=language) for wave in waves]
    memory = model.decoder.remember(model.listen(jobs, model.checkpoint.contexts[-1]))
    languages = languages_of(model, jobs, lambda: language_logits(model.decoder, memory, model.rules))
    rows = rows_of(model, jobs, languages, [()] * len(jobs))
    decode(model.decoder, memory, model.rules, rows)
    longest = max(len(row.tokens) for row in rows)
    tokens = torch.tensor([row.tokens + [0] * (longest - len(row.tokens)) for row in rows], device=memory.device)
    cache = KVCache(memory)
    cache.reserve(longest)
    logits = model.decoder(tokens, torch.arange(longest, device=memory.device).expand(len(rows), longest), cache)
    found = []
    for row, scores in zip(rows, logits, strict=True):
        first = len(row.prompt) - 1  # the place that foretells the first token of the text
        places = scores[first : first + len(row.text) + 1]
        found.append(Told(tuple(row.text), tuple(row.log_probs), places))
    return found


def hear(waves: Sequence[Waveform], transcriber: Transcriber, batch: int = 8) -> list[Result]:
    """Transcribe clips, those of similar length together.

    Args:
        waves: clips, 16 kHz mono.
        transcriber: what hears them.
        batch: clips heard together.

    Returns:
        One result a clip, in the order of `waves`.
    """
    order = sorted(range(len(waves)), key=lambda index: waves[index].size)
    heard: dict[int, Result] = {}
    for start in tqdm(range(0, len(order), batch), desc="hear", unit="batch", leave=False):
        indices = order[start : start + batch]
        heard.update(zip(indices, transcriber.results([waves[index] for index in indices]), strict=True))
    return [heard[index] for index in range(len(waves))]


def waves_of(corpus: Corpus, clips: Sequence[Clip]) -> list[Waveform]:
    """Return the audio of clips, with the margins that the service's endpointing leaves around speech."""
    return [with_margins(corpus.waveform(clip)) for clip in clips]


MARGINS = 0.4
"""Seconds that `with_margins` adds to a clip."""


def with_margins(wave: Waveform, before: float = MARGINS / 2, after: float = MARGINS / 2) -> Waveform:
    return np.pad(wave, (int(before * SAMPLE_RATE), int(after * SAMPLE_RATE)))
