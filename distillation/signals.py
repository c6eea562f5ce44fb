"""How sure a student was of what it said, in several ways: what may decide whether its teacher is asked.

Owns the candidates for that signal. The service's own is the geometric mean of the tokens' probabilities; the others
are computed here from the whole distribution behind every token, by teacher forcing. Knows nothing of thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from distillation.augment import features, padded_seconds
from distillation.model import Layout, Whisper, encode, logits
from streaming.job import SAMPLE_RATE, Waveform

SIGNALS = ("mean log-prob", "least token probability", "entropy", "greatest entropy", "margin", "least margin")
"""The higher the surer, all of them: entropies are negated."""


@torch.no_grad()
def signals(model: Whisper, layout: Layout, wave: Waveform, tokens: Sequence[int]) -> dict[str, float]:
    """Of a text that `model` said of `wave`, its end included."""
    seconds = padded_seconds(wave.size / SAMPLE_RATE, layout.contexts, exact=True)
    device = next(model.parameters()).device
    states = encode(model, features([wave], seconds, layout.mels).to(device))
    said = [*tokens, layout.end]
    inputs = torch.tensor([[*layout.prompt, *tokens]], device=device)
    scores = logits(model, inputs, states)[0, len(layout.prompt) - 1 :].float().cpu()
    scores[:, list(layout.suppressed)] = -math.inf
    return _summary(scores.log_softmax(-1), torch.tensor(said))


def _summary(log_probs: Tensor, said: Tensor) -> dict[str, float]:
    """log_probs: [tokens, vocabulary]; said: [tokens]."""
    chosen = log_probs.gather(1, said[:, None])[:, 0]
    entropy = -(log_probs.exp() * log_probs.nan_to_num(neginf=0.0)).sum(-1)
    best = log_probs.exp().topk(2, dim=-1).values
    margin = best[:, 0] - best[:, 1]
    values = (chosen.mean().exp(), chosen.min().exp(), -entropy.mean(), -entropy.max(), margin.mean(), margin.min())
    return {name: float(value) for name, value in zip(SIGNALS, values, strict=True)}
