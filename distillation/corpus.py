"""The corpus: clips of speech with their text, gathered in one folder.

Owns the folder's layout and how it is made; `recordings.py` says what recordings may look like. A corpus is
`index.jsonl` (one clip a line: text, speaker, set, split, and where its samples lie) beside `audio.i16` (all clips,
16 kHz mono, one after another). Knows nothing of features or models.

The making can be interrupted and resumed: clips are written in numbered blocks, and a block counts only when its index,
written after its audio, is whole. `gather` joins the blocks. A file beside each block of recordings (`block-....json`)
says which recordings those were, so that others are never mistaken for them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from distillation.errors import DistillError
from distillation.files import to_disk, write_text_whole
from distillation.recordings import LONGEST, Recording, find_recordings, neighbours_joined, read_mono, stamps
from streaming.job import SAMPLE_RATE, Waveform
from streaming.offline import utterances
from streaming.segment import SegmentSettings

# The number of the first block of recordings.
RECORDED_BLOCKS = 90000

JOINED_SECONDS = (1.0, 14.0)
"""Of neighbouring parts of one file, between which a length is drawn."""

Thing = TypeVar("Thing")

About = Mapping[str, str | bool]
"""A clip's `text`, `speaker`, `set` and `split`, and `transcribed` where it is not."""


class CorpusError(DistillError):
    """The corpus or the recordings cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip of a corpus, and what was said in it.

    Attributes:
        text: empty where `transcribed` is false.
        speaker: behind the set and a slash.
        set: the folder of recordings, or the program, that it comes from.
        split: "train" or "dev".
        offset: where the clip begins in `audio.i16`, in samples.
        samples: its length.
        transcribed: whether somebody wrote down what was said.
    """

    text: str
    speaker: str
    set: str
    split: str
    offset: int
    samples: int
    transcribed: bool = True

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE


class Corpus:
    """A gathered corpus, its audio mapped from disk.

    Raises:
        CorpusError: there is no corpus in the folder, or not a whole one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index, audio = folder / "index.jsonl", folder / "audio.i16"
        if not index.is_file() or not audio.is_file():
            raise CorpusError(f"no corpus in {folder}: make one with `whisperd distill corpus --out {folder}`")
        self.clips = _read_index(index)
        samples = audio.stat().st_size // 2
        if any(clip.offset + clip.samples > samples for clip in self.clips):
            raise CorpusError(f"{audio} is shorter than its index: run the command that made the corpus again")
        if not samples:
            raise CorpusError(f"the corpus in {folder} contains no clips: give it recordings with speech")
        self._audio: NDArray[np.int16] = np.memmap(audio, dtype=np.int16, mode="r")
        self._keys: dict[Clip, str] = {}

    def split(self, name: str) -> list[Clip]:
        return [clip for clip in self.clips if clip.split == name]

    def key(self, clip: Clip) -> str:
        """Return what identifies a clip wherever it lies: a digest of its samples and of its text.

        The keys of a day of speech take some seconds, once.
        """
        if clip not in self._keys:
            found = hashlib.blake2b(self._audio[clip.offset : clip.offset + clip.samples].data, digest_size=16)
            found.update(json.dumps(clip.text if clip.transcribed else None).encode())
            self._keys[clip] = found.hexdigest()
        return self._keys[clip]

    def speechless(self, split: str) -> dict[str, int]:
        """Count, by set, the recordings that gave no clip because no speech was found in them."""
        counted: Counter[str] = Counter()
        for number in itertools.count():
            origin = block_index(self.folder, _recorded_block(split, number)).with_suffix(".json")
            if not origin.is_file():
                return dict(counted)
            counted.update(_read_origin(origin)["speechless"])
        raise AssertionError("never")

    def waveform(self, clip: Clip) -> Waveform:
        return self._audio[clip.offset : clip.offset + clip.samples].astype(np.float32) / np.float32(32768)


def evenly(clips: Sequence[Thing], at_most: int) -> list[Thing]:
    """Choose up to `at_most` items, evenly spaced from the first to the last."""
    step = max(1.0, len(clips) / at_most)
    return [clips[int(place * step)] for place in range(min(at_most, len(clips)))]


def _read_index(path: Path) -> list[Clip]:
    clips = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                clips.append(Clip(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise CorpusError(
                    f"{path}, line {number}, is not a clip: remove the file and run the command that made it again"
                ) from error
    return clips


def block_index(folder: Path, number: int) -> Path:
    return folder / f"block-{number:05d}.jsonl"


def trim(wave: Waveform, below_peak_db: float = 45.0, keep_seconds: float = 0.08) -> Waveform:
    """Cut off the silence before and after a clip: augmentation decides how much surrounds it.

    Args:
        wave: 16 kHz mono.
        below_peak_db: how far below the peak counts as silence, in dB.
        keep_seconds: silence to keep at each end.
    """
    level = np.abs(wave)
    loud = np.flatnonzero(level > level.max(initial=0.0) * 10 ** (-below_peak_db / 20))
    if loud.size == 0:
        return wave
    keep = int(keep_seconds * SAMPLE_RATE)
    return wave[max(0, loud[0] - keep) : loud[-1] + keep]


def record(folder: Path, source: Path, split: str, number: int = 0) -> None:
    """Add recordings to a corpus as one block, after the synthetic ones.

    `recordings.py` says what a folder of recordings may look like.

    Args:
        folder: the corpus.
        source: a folder of recordings, or a manifest.
        split: "train" or "dev".
        number: of the source, among several of one split.

    Raises:
        RecordingsError: the recordings cannot be used. Nothing is written then.
        CorpusError: the corpus already holds other recordings.
    """
    block = _recorded_block(split, number)
    origin = {"source": str(source.resolve()), "files": stamps(source)}
    if block_index(folder, block).is_file():
        _require_same(folder, split, number, origin)
        return
    found = find_recordings(source, to_train=split == "train")
    if split == "train":
        found = neighbours_joined(found, JOINED_SECONDS, number)
    folder.mkdir(parents=True, exist_ok=True)
    speechless: Counter[str] = Counter()
    rows = _write_audio(folder, block, _clips(found, split, speechless))
    write_text_whole(json.dumps(origin | {"speechless": speechless}), block_index(folder, block).with_suffix(".json"))
    _finish_block(folder, block, rows)


def _recorded_block(split: str, number: int) -> int:
    return RECORDED_BLOCKS + 256 * number + int.from_bytes(split.encode()[:1])


def _read_origin(path: Path) -> dict[str, Any]:
    try:
        origin: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as error:
        raise CorpusError(f"{path} is damaged: make the corpus again, in another folder") from error
    return origin


def _require_same(folder: Path, split: str, number: int, wanted: Mapping[str, Any]) -> None:
    path = block_index(folder, _recorded_block(split, number)).with_suffix(".json")
    held = _read_origin(path) if path.is_file() else None
    if held is None:
        differs = "does not say which they are"
    elif held["source"] != wanted["source"]:
        differs = f"has those of {held['source']}"
    elif changed := [
        name
        for name in sorted(held["files"].keys() | wanted["files"].keys())
        if held["files"].get(name) != wanted["files"].get(name)
    ]:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        differs = f"was made before a change in {wanted['source']} ({changed[0]}{more})"
    else:
        return
    option = "--recordings" if split == "train" else "--dev"
    raise CorpusError(
        f"the corpus in {folder} contains other recordings: it {differs}. "
        f"Make a corpus of these in another folder, or leave {option} out to use what it contains"
    )


def _clips(found: Sequence[Recording], split: str, speechless: Counter[str]) -> Iterator[tuple[Waveform, About]]:
    """Clips of recordings; `speechless` counts, by set, those that give none because they have no speech."""
    for recording in tqdm(found, desc=split, unit="clip"):
        about: About = {
            "text": recording.text or "",
            "transcribed": recording.text is not None,
            "speaker": f"{recording.set}/{recording.speaker}", "set": recording.set, "split": split,
        }  # fmt: skip
        wave = trim(read_mono(recording.path, recording.start, recording.end))
        too_long = recording.text is None and wave.size > LONGEST * SAMPLE_RATE
        pieces = list(utterances(wave, SegmentSettings(longest=LONGEST))) if too_long else [wave]
        speechless.update([] if pieces else [recording.set])
        yield from ((piece, about) for piece in pieces)


def write_block(folder: Path, number: int, clips: Iterable[tuple[Waveform, About]]) -> None:
    _finish_block(folder, number, _write_audio(folder, number, clips))


def _write_audio(folder: Path, number: int, clips: Iterable[tuple[Waveform, About]]) -> list[dict[str, Any]]:
    """The rows of the index that belongs to it."""
    offset = 0
    rows = []
    path = block_index(folder, number).with_suffix(".i16")
    with path.open("wb") as audio:
        for wave, about in clips:
            samples = (np.clip(wave, -1, 1) * 32767).astype(np.int16)
            audio.write(samples.tobytes())
            rows.append({**about, "offset": offset, "samples": len(samples)})
            offset += len(samples)
    to_disk(path)
    return rows


def _finish_block(folder: Path, number: int, rows: Iterable[Mapping[str, Any]]) -> None:
    """The index appears last and at once: it is what says that the block is whole."""
    write_text_whole("".join(json.dumps(row) + "\n" for row in rows), block_index(folder, number))


def gather(folder: Path) -> None:
    """Join the blocks into `index.jsonl` and `audio.i16`, unless these were already made from the same blocks.

    Raises:
        CorpusError: a block is damaged.
    """
    blocks = sorted(folder.glob("block-*.jsonl"))
    state = {path.name: path.stat() for index in blocks for path in (index, index.with_suffix(".i16"))}
    made_of = json.dumps({name: [about.st_size, about.st_mtime_ns] for name, about in state.items()})
    size = sum(about.st_size for name, about in state.items() if name.endswith(".i16"))
    if _is_gathered(folder, made_of, size):
        return
    offset = 0
    with (
        (folder / "audio.part").open("wb") as audio,
        (folder / "index.part").open("w") as joined,
        tqdm.wrapattr(audio, "write", total=size, desc="gather", miniters=1) as counted,
    ):
        for index in blocks:
            clips = _read_index(index)
            samples = index.with_suffix(".i16").stat().st_size // 2
            if samples != sum(clip.samples for clip in clips):
                raise CorpusError(f"{index} does not fit its audio: remove it, and the same command makes it again")
            for clip in clips:
                joined.write(json.dumps(asdict(replace(clip, offset=clip.offset + offset))) + "\n")
            with index.with_suffix(".i16").open("rb") as data:
                shutil.copyfileobj(data, counted, 1 << 20)
            offset += samples
    for name in ("audio.part", "index.part"):
        to_disk(folder / name)
    # An old index must not be taken for one of the new audio, should this be the last moment.
    (folder / "gathered.json").unlink(missing_ok=True)
    (folder / "index.jsonl").unlink(missing_ok=True)
    (folder / "audio.part").rename(folder / "audio.i16")
    (folder / "index.part").rename(folder / "index.jsonl")
    write_text_whole(made_of, folder / "gathered.json")


def _is_gathered(folder: Path, made_of: str, size: int) -> bool:
    index, audio, stored = (folder / name for name in ("index.jsonl", "audio.i16", "gathered.json"))
    whole = index.is_file() and audio.is_file() and audio.stat().st_size == size
    return whole and stored.is_file() and stored.read_text() == made_of
