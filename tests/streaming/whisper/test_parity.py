"""Token for token what transformers' greedy `generate` says, with its own features, on the shapes of real models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import checkpoints
import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration
from waveforms import murmur

from streaming.job import SAMPLE_RATE, Job, Waveform
from streaming.whisper.engine import WhisperEngine


class Reference:
    """transformers on a checkpoint, in float32."""

    def __init__(self, directory: Path) -> None:
        self._model = WhisperForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
        self._features = WhisperFeatureExtractor(feature_size=self._model.config.num_mel_bins)
        self._eot = self._model.generation_config.eos_token_id

    def say(self, audio: Waveform, **options: Any) -> tuple[tuple[int, ...], bool]:
        """The text's tokens, and whether it ended by itself."""
        features = self._features(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        # One plain call, which returns the prompt and the end as well; each new token has its scores.
        plain = {"force_unique_generate_call": True, "return_dict_in_generate": True, "output_scores": True}
        said = self._model.generate(features, **plain, **options)
        tokens = said.sequences[0, -len(said.scores) :].tolist()
        ended = tokens[-1] == self._eot
        return tuple(tokens[:-1] if ended else tokens), ended


def assert_same(directory: Path, jobs: list[Job], options: list[dict[str, Any]]) -> None:
    engine = WhisperEngine.load(str(directory), None, "cpu", dtype="float32")
    reference = Reference(directory)
    expected = [reference.say(job.audio, **given) for job, given in zip(jobs, options, strict=True)]
    results = engine.run(jobs)
    assert [result.error for result in results] == [None] * len(jobs)
    assert [result.tokens for result in results] == [tokens for tokens, _ in expected]
    assert [len(result.log_probs) > len(result.tokens) for result in results] == [ended for _, ended in expected]


def english_cases(limit: int | None, count: int = 4) -> tuple[list[Job], list[dict[str, Any]]]:
    jobs, options = [], []
    for number in range(count):
        timestamps = number % 2 == 1
        audio = murmur(1.0 + 3 * number, seed=number)
        jobs.append(Job(audio, timestamps=timestamps, max_tokens=limit))
        options.append({"return_timestamps": timestamps} | ({} if limit is None else {"max_new_tokens": limit}))
    return jobs, options


def multilingual_cases(limit: int, language: str, count: int = 3) -> tuple[list[Job], list[dict[str, Any]]]:
    jobs, options = [], []
    wishes: list[tuple[str | None, Literal["transcribe", "translate"], bool]] = [
        (language, "transcribe", False),
        (None, "translate", True),
        (None, "transcribe", False),
    ]
    for number, (code, task, timestamps) in enumerate(wishes[:count]):
        audio = murmur(2.0 + 4 * number, seed=number)
        jobs.append(Job(audio, language=code, task=task, timestamps=timestamps, max_tokens=limit))
        options.append({"language": code, "task": task, "return_timestamps": timestamps, "max_new_tokens": limit})
    return jobs, options


def test_small_english_up_to_its_own_limit(folder: Path) -> None:
    directory = checkpoints.build_checkpoint(folder / "whole", seed=3)
    assert_same(directory, *english_cases(None))


def test_a_text_that_never_ends_is_cut_where_generate_cuts_it(folder: Path) -> None:
    directory = checkpoints.build_checkpoint(folder / "endless", seed=4, ends=0.0)
    assert_same(directory, *english_cases(None, 2))


def test_max_length_counts_without_the_prompt(folder: Path) -> None:
    directory = checkpoints.build_checkpoint(folder / "short", seed=4, ends=0.0, max_length=21)
    assert_same(directory, *english_cases(None))


def test_small_multilingual(folder: Path) -> None:
    directory = checkpoints.build_checkpoint(folder / "languages", checkpoints.SMALL_MULTILINGUAL, seed=5)
    assert_same(directory, *multilingual_cases(60, "de"))


@pytest.mark.parametrize(("shape", "language"), [(checkpoints.SMALL, None), (checkpoints.SMALL_MULTILINGUAL, "de")])
def test_what_it_is_told_of_the_text_before(folder: Path, shape: checkpoints.Shape, language: str | None) -> None:
    """A little, much, and more than there is room for."""
    directory = checkpoints.build_checkpoint(folder / f"told in {language}", shape, seed=6)
    before = checkpoints.special_tokens(shape)["<|startofprev|>"]
    spoken = {} if language is None else {"language": language, "task": "transcribe"}
    jobs, options = [], []
    for count in (3, 100, 400):
        previous = tuple(range(20, 20 + count))
        given = {"prompt_ids": torch.tensor([before, *previous[-223:]]), "max_new_tokens": 40, **spoken}
        for stamped in (False, True):
            jobs.append(Job(murmur(1.5), language=language, timestamps=stamped, max_tokens=40, previous=previous))
            options.append({**given, "return_timestamps": stamped})
    assert_same(directory, jobs, options)


def test_tiny_en(folder: Path) -> None:
    directory = checkpoints.build_checkpoint(folder / "tiny.en", checkpoints.TINY_EN)
    assert_same(directory, *english_cases(12, 3))


def test_tiny(folder: Path) -> None:
    directory = checkpoints.build_checkpoint(folder / "tiny", checkpoints.TINY)
    assert_same(directory, *multilingual_cases(12, "en", 2))


@pytest.mark.timeout(300)  # seconds of arithmetic on a free core, but there may be none
def test_large_v3_width_with_one_layer_each(folder: Path) -> None:
    directory = checkpoints.build_checkpoint(folder / "large", checkpoints.LARGE_V3_FEW_LAYERS, dtype=torch.float16)
    assert_same(directory, *multilingual_cases(4, "yue", 2))
