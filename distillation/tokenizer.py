"""A tokenizer of Whisper's layout for an English-only checkpoint of our own.

Owns the vocabulary: byte-level BPE, then Whisper's special tokens in Whisper's order, then the timestamps. Knows
nothing of audio or models. What it writes is what `transformers`, CTranslate2 and whisper.cpp expect to find.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from distillation.errors import DistillError

END_OF_TEXT = "<|endoftext|>"
START = "<|startoftranscript|>"
NO_SPEECH = "<|nospeech|>"
NO_TIMESTAMPS = "<|notimestamps|>"
SPECIAL = (END_OF_TEXT, START, "<|en|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>",
           NO_SPEECH, NO_TIMESTAMPS)  # fmt: skip
TIMESTAMPS = tuple(f"<|{step * 0.02:.2f}|>" for step in range(1501))


def train_tokenizer(texts: Iterable[str], tokens: int) -> Tokenizer:
    """Byte-level BPE with `tokens` text tokens (256 bytes among them).

    Texts are encoded behind a space (" turn on the light"), as Whisper's transcripts are.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator((" " + text for text in texts), trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    # Timestamps are ordinary added tokens in Whisper, not special ones: they decode when asked for.
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in TIMESTAMPS])
    ids = {name: token_id(tokenizer, name) for name in SPECIAL}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} {NO_TIMESTAMPS} $A {END_OF_TEXT}",
        special_tokens=[(name, ids[name]) for name in (START, NO_TIMESTAMPS, END_OF_TEXT)],
    )
    return tokenizer


def token_id(tokenizer: Tokenizer, name: str) -> int:
    """The id of a special token.

    Raises:
        DistillError: the vocabulary has no such token.
    """
    found = tokenizer.token_to_id(name)
    if found is None:
        raise DistillError(f"the tokenizer has no {name}: it is not a Whisper tokenizer")
    return int(found)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes every file by which `transformers` knows a Whisper tokenizer and feature extractor."""
    from transformers import WhisperFeatureExtractor, WhisperTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))
    wrapped = WhisperTokenizer(
        tokenizer_object=tokenizer,
        unk_token=END_OF_TEXT, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT,
        additional_special_tokens=list(SPECIAL[1:]), model_max_length=448,
    )  # fmt: skip
    wrapped.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
