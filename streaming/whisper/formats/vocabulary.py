"""The tokenizer and the rules of decoding of a model from elsewhere, by OpenAI's published vocabularies.

Owns rebuilding a tokenizer from its tokens in their order, where OpenAI's vocabularies have their special tokens, which
tokens are never said, and OpenAI's alignment heads. Knows no file format.

Sources: Robust Speech Recognition via Large-Scale Weak Supervision (Radford et al. 2022), and OpenAI's code, its
`tokenizer.py` (the order of languages and special tokens, the symbols that are no speech) and `__init__.py` (alignment
heads); byte pairs (Sennrich et al. 2016) in GPT-2's byte-level form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from streaming.whisper.checkpoint import Dimensions, Grammar
from streaming.whisper.formats.imported import FormatError
from streaming.whisper.tokenizer import library_errors

ENGLISH_ONLY = 51864
"""Tokens of the published English-only models; those with languages have one or two more."""
_PUBLISHED = (ENGLISH_ONLY, 51865, 51866)

_LANGUAGES = """
en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th ur hr bg lt la mi ml cy sk
te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr pa si km sn yo so af oc ka be tg sd gu am yi lo uz fo
ht ps tk nn mt sa lb my bo tl mg as tt haw ln ha ba jw su yue
""".split()

_END, _START = "<|endoftext|>", "<|startoftranscript|>"
_AFTER_LANGUAGES = (
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)
_TIMESTAMPS = 1501  # 0.00 to 30.00 s in steps of 20 ms
_MOST_WORK = 1 << 24
"""Squares of the tokens' lengths, added up: what finding their halves takes. The published ones come to 2.5 million."""

_NO_SPEECH = [
    *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
    *"<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪".split(),
]
"""Written where nobody said it: only where one token is all of it. Of a note the first token is enough."""
_NOTES = "♩♪♫♬♭♮♯"
_NOT_FIRST = (" -", " '")  # between words they are well

_ALIGNMENT_HEADS = {
    (4, 6, 51864): ((1, 0), (2, 0), (2, 5), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4)),
    (4, 6, 51865): ((2, 2), (3, 0), (3, 2), (3, 3), (3, 4), (3, 5)),
    (6, 8, 51864): ((3, 3), (4, 7), (5, 1), (5, 5), (5, 7)),
    (6, 8, 51865): ((3, 1), (4, 2), (4, 3), (4, 7), (5, 1), (5, 2), (5, 4), (5, 6)),
    (12, 12, 51864): (
        (6, 6), (7, 0), (7, 3), (7, 8), (8, 2), (8, 5), (8, 7), (9, 0), (9, 4), (9, 8), (9, 10), (10, 0), (10, 1),
        (10, 2), (10, 3), (10, 6), (10, 11), (11, 2), (11, 4),
    ),
    (12, 12, 51865): (
        (5, 3), (5, 9), (8, 0), (8, 4), (8, 7), (8, 8), (9, 0), (9, 7), (9, 9), (10, 5),
    ),
    (24, 16, 51864): (
        (11, 4), (14, 1), (14, 12), (14, 14), (15, 4), (16, 0), (16, 4), (16, 9), (17, 12), (17, 14), (18, 7),
        (18, 10), (18, 15), (20, 0), (20, 3), (20, 9), (20, 14), (21, 12),
    ),
    (24, 16, 51865): ((13, 15), (15, 4), (15, 15), (16, 1), (20, 0), (23, 4)),
    (32, 20, 51866): (
        (7, 0), (10, 17), (12, 18), (13, 12), (16, 1), (17, 14), (19, 11), (21, 4), (24, 1), (25, 6),
    ),
    (4, 20, 51866): ((2, 4), (2, 11), (3, 3), (3, 6), (3, 11), (3, 14)),
}  # fmt: skip
"""By decoder layers, heads, and vocabulary. The first and the second large model have one size and other heads, so
neither is here."""


# --- the tokenizer ---------------------------------------------------------------------------------------------------


def build_tokenizer(tokens: Sequence[bytes], vocabulary: int, name: str) -> Tokenizer:
    """Build the tokenizer of a byte-level vocabulary, with the special tokens after it.

    Args:
        tokens: those of text, in the order in which their pairs were joined.
        vocabulary: how many tokens the model has in all.
        name: of the file, for the messages.

    Raises:
        FormatError: these are no such tokens.
    """
    languages = vocabulary - len(tokens) - 2 - len(_AFTER_LANGUAGES) - _TIMESTAMPS
    if not 1 <= languages <= len(_LANGUAGES):
        raise FormatError(
            f"{name} has {len(tokens)} tokens of text for a model of {vocabulary}: it is damaged, or has a vocabulary "
            "of its own: give its tokenizer.json (--tokenizer)"
        )
    ranks = {token: rank for rank, token in enumerate(tokens)}
    if len(ranks) != len(tokens):
        raise FormatError(f"{name} has a token twice: it is damaged")
    if (
        not {bytes([byte]) for byte in range(256)} <= ranks.keys()
        or sum(len(each) ** 2 for each in tokens) > _MOST_WORK
    ):
        raise FormatError(f"{name} has no tokens for some bytes, or far too long ones: it is damaged")
    letters = _letters()
    text = {token: "".join(letters[byte] for byte in token) for token in tokens}
    merges = [
        (text[left], text[right]) for token in tokens if len(token) > 1 for left, right in [_halves(token, ranks, name)]
    ]
    entries = {text[token]: rank for token, rank in ranks.items()}
    if len(entries) != len(tokens) or _END in entries:
        raise FormatError(f"{name} has a token twice: it is damaged")
    entries[_END] = len(tokens)
    tokenizer = Tokenizer(models.BPE(vocab=entries, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [_END, _START, *(f"<|{code}|>" for code in _LANGUAGES[:languages]), *_AFTER_LANGUAGES]
    tokenizer.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in special])
    prompt = [_START, "<|notimestamps|>"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{' '.join(prompt)} $A {_END}",
        pair=f"{' '.join(prompt)} $A $B:1 {_END}:1",
        special_tokens=[(each, int(tokenizer.token_to_id(each) or 0)) for each in (*prompt, _END)],
    )
    return tokenizer


def _letters() -> list[str]:
    """Each byte as a letter that can be seen, as GPT-2 writes them.

    Those that can be seen are themselves; the others follow after all bytes.
    """
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


def _halves(token: bytes, ranks: Mapping[bytes, int], name: str) -> tuple[bytes, bytes]:
    """The two tokens that were joined to this one: what the pairs of before it make of its bytes."""
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[best] >= ranks[token]:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    if len(parts) != 2 or any(ranks.get(part, len(ranks)) >= ranks[token] for part in parts):
        raise FormatError(
            f"{name} has a token ({token[:40]!r}) that is not a pair of earlier ones: it is damaged, or has a "
            "vocabulary of its own: give its tokenizer.json (--tokenizer)"
        )
    return parts[0], parts[1]


# --- the rules -------------------------------------------------------------------------------------------------------


def grammar(tokenizer: Tokenizer, sizes: Dimensions, config: Mapping[str, Any], name: str) -> Grammar:
    """Return the special tokens and restrictions of a model.

    Args:
        tokenizer: the model's.
        sizes: of the model.
        config: what CTranslate2's `config.json` says of them.
        name: of the model's file, for the messages.

    Raises:
        FormatError: the tokenizer is of another model, or `config` is about other tokens.
        TokenizerError: the tokenizer does not work.
    """
    tokens: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    if _END not in tokens or _START not in tokens:
        raise FormatError(f"the tokenizer of {name} has no {_START} or {_END}: it is not that of a Whisper model")
    eot, sot, silent = tokens[_END], tokens[_START], tokens.get("<|notimestamps|>")
    spare = sizes.vocabulary - (max(tokens.values()) if silent is None else silent + _TIMESTAMPS) - 1
    if spare < 0 or max(tokens.values()) >= sizes.vocabulary or (spare and sizes.vocabulary in _PUBLISHED):
        raise FormatError(
            f"the tokenizer of {name} is of another model: it has {max(tokens.values()) + 1} tokens, "
            f"the model {sizes.vocabulary} with its timestamps: give the right one (--tokenizer)"
        )
    multilingual = sizes.vocabulary > ENGLISH_ONLY  # the only sign that there is
    tasks = {task: tokens[f"<|{task}|>"] for task in ("transcribe", "translate") if f"<|{task}|>" in tokens}
    suppress, first = (_tokens_in(config, key, sizes.vocabulary) for key in ("suppress_ids", "suppress_ids_begin"))
    blank = _encoded(tokenizer, " ")
    return Grammar(
        sot=sot,
        eot=eot,
        languages=_languages(tokens, sot, _tokens_in(config, "lang_ids", sizes.vocabulary)) if multilingual else {},
        tasks=tasks if multilingual else {},
        no_timestamps=silent,
        no_speech=tokens.get("<|nospeech|>", tokens.get("<|nocaptions|>")),
        suppress=_never_said(tokenizer, tokens, eot) if suppress is None else suppress,
        begin_suppress=(*blank[:1], eot) if first is None else first,
        max_initial_timestamp=50,
        max_length=sizes.target_positions,
        previous=tokens.get("<|startofprev|>"),
    )


def _encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    with library_errors():
        return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _tokens_in(config: Mapping[str, Any], key: str, vocabulary: int) -> tuple[int, ...] | None:
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(each) is int and each < vocabulary for each in value):
        raise FormatError(f"{key} of the config.json beside the weights must list tokens of the vocabulary")
    return tuple(each for each in value if each >= 0)


def _languages(tokens: Mapping[str, int], sot: int, listed: tuple[int, ...] | None) -> dict[str, int]:
    """They are right after start of transcript, up to the first task."""
    end = tokens.get("<|translate|>", sot)
    found = sorted((number, text) for text, number in tokens.items() if sot < number < end)
    return {text[2:-2]: number for number, text in found if not listed or number in listed}


def _never_said(tokenizer: Tokenizer, tokens: Mapping[str, int], eot: int) -> tuple[int, ...]:
    def ids(text: str) -> list[int]:
        return [each for each in _encoded(tokenizer, text) if each < eot]

    found = {ids(text)[0] for text in _NOT_FIRST if ids(text)}
    for symbol in (*_NO_SPEECH, *_NOTES):
        for numbers in (ids(symbol), ids(f" {symbol}")):
            if len(numbers) == 1 or (numbers and symbol in _NOTES):
                found.add(numbers[0])
    special = (_START, *_AFTER_LANGUAGES[:-1], "<|nocaptions|>")
    return tuple(sorted(found | {tokens[each] for each in special if each in tokens}))


def alignment_heads(sizes: Dimensions, config: Mapping[str, Any]) -> tuple[tuple[int, int], ...] | None:
    """Return the (layer, head) whose attention follows the audio; None where neither the file nor OpenAI names them.

    Raises:
        FormatError: the decoder does not have them.
    """
    heads = config.get("alignment_heads")
    if not heads:
        return _ALIGNMENT_HEADS.get((sizes.decoder_layers, sizes.decoder_heads, sizes.vocabulary))
    bounds = (sizes.decoder_layers, sizes.decoder_heads)
    if not isinstance(heads, list) or not all(_is_head(head, bounds) for head in heads):
        raise FormatError("alignment_heads of the config.json beside the weights must list pairs of layer and head")
    return tuple((int(layer), int(head)) for layer, head in heads)


def _is_head(head: Any, bounds: tuple[int, int]) -> bool:
    if not isinstance(head, list) or len(head) != 2:
        return False
    return all(type(each) is int and 0 <= each < bound for each, bound in zip(head, bounds, strict=True))
