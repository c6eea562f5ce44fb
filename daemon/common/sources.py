"""The sources: which there are, the state of each, and whether it is listened to.

Owns the rule for names, and the switch and the state of each source. Knows nothing of audio, of topics or of observers.
Streams report here, and the edges that show a state or turn a switch read and write here. Neither knows the other.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from daemon.common.client_input import quoted
from daemon.common.errors import Fault

State = Literal["idle", "listening", "speech"]

DEFAULT_SOURCE = "stream"
_LONGEST_NAME = 64
_FORBIDDEN = frozenset('/+#$"\\')
_MOST_REMEMBERED = 1024


_UNSEEN = (
    (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
    (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x2800, 0x2800), (0x3164, 0x3164), (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFFC), (0x16FE4, 0x16FE4), (0x1BCA0, 0x1BCA3), (0x1D159, 0x1D159),
    (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
"""Unicode's Default_Ignorable_Code_Point, and the few others that are drawn as nothing: first and last of each."""
_NON_JOINER, _JOINER = "\u200c", "\u200d"
_VIRAMA = 9  # its combining class
_ABOVE = 230  # likewise, of a mark above its letter
_DOT_ABOVE = "\u0307"
_DOTTED = frozenset("ij\u0131\u0237\u0249\u0268\u029d\u03f3\u0456\u0458\u1d96\U0001df1a")
"""Unicode's Soft_Dotted, and i and j without their dots: a dot above makes of each what another spelling is already."""
_MOST_ACCENTS, _MOST_MARKS = 4, 6
"""On one letter. Accents of no script of its own pile up as high as one likes: scholars' Greek has four. Of its own
script's marks Burmese has five in plain words, and Hebrew with vowels and accents four."""


def check_name(name: str) -> str:
    """Return `name` in its one spelling (NFC), if it can name a source.

    A name becomes one level of a topic, and people tell sources apart by it. So every character in it can be seen.

    Raises:
        Fault: `bad_source`.
    """
    name = normalised(name)
    broken = _broken(name) if len(name) <= _LONGEST_NAME else _SPACES
    if broken is not None:
        raise Fault("bad_source", f"source must be {_RULE} {broken}, got {_shown(name)}", fatal=True)
    return name


def channel_names(source: str, channels: int) -> tuple[str, ...]:
    """Return the names of the channels of a stream that are heard each by itself: `NAME-1`, `NAME-2`..."""
    return tuple(f"{source}-{number}" for number in range(1, channels + 1))


def check_pattern(pattern: str) -> str:
    """Return `pattern` as it is compared with names; `*` stands for any characters.

    Raises:
        ValueError: no name can match it. The message says why, and does not quote it: in the settings it stands beside
            a secret.
    """
    pattern = normalised(pattern)
    fits = len(pattern.replace("*", "")) <= _LONGEST_NAME
    broken = _broken(_example(pattern)) if fits else _SPACES
    if broken is not None:
        raise ValueError(f"not a valid source name: it must be {_RULE} {broken}")
    return pattern


def normalised(name: str) -> str:
    """Return the one spelling of a name, or of a pattern of names."""
    # One that is far too long is refused as it is.
    return unicodedata.normalize("NFC", name) if len(name) <= 4 * _LONGEST_NAME else name


def _example(pattern: str) -> str:
    """Return a text that matches `pattern`, and breaks the rule only if all such texts do.

    Each `*` becomes what allows the most beside it: an Arabic letter, and before a joiner or non-joiner also a letter
    with a virama.
    """
    first, *others = pattern.split("*")
    return first + "".join(
        ("\u0628\u0915\u094d" if each.startswith((_NON_JOINER, _JOINER)) else "\u0628") + each for each in others
    )


_RULE = f"1..{_LONGEST_NAME} printable characters without any of {' '.join(sorted(_FORBIDDEN))}"
_SPACES = "with no leading, trailing or consecutive spaces"


def _broken(name: str) -> str | None:
    """Return the part of the rule, beside its length, that `name` breaks."""
    if not name or name != name.strip() or "  " in name or _FORBIDDEN & set(name):
        return _SPACES
    if unicodedata.category(name[0]).startswith("M"):
        return "and must not begin with a combining mark"
    if (unseen := _unseen(name)) is not None:
        return f"all of them visible (U+{ord(unseen):04X} is not)"
    letters = list(_letters(name))
    if any(_looks_plain(letter, marks) for letter, marks in letters):
        return "without U+0307 on i or j, where nobody can see it"
    if any(_piled(marks) for _, marks in letters):
        return f"with at most {_MOST_ACCENTS} accents or {_MOST_MARKS} marks on each, none of them twice"
    return None


def _letters(name: str) -> Iterator[tuple[str, str]]:
    """Yield each letter with the marks on it, taken apart.

    Joiners and non-joiners are neither: marks go on behind them.
    """
    letter, marks = "", ""
    for char in unicodedata.normalize("NFD", name):
        if unicodedata.category(char).startswith("M"):
            marks += char
        elif char not in (_NON_JOINER, _JOINER):
            if letter:
                yield letter, marks
            letter, marks = char, ""
    yield letter, marks


def _looks_plain(letter: str, marks: str) -> bool:
    """Return whether the only dot that is seen is the one that the letter has anyway."""
    above = next((each for each in marks if unicodedata.combining(each) == _ABOVE), "")
    return above == _DOT_ABOVE and unicodedata.normalize("NFKD", letter)[0] in _DOTTED


def _piled(marks: str) -> bool:
    accents = [each for each in marks if unicodedata.name(each, "").startswith("COMBINING ")]
    return len(accents) > _MOST_ACCENTS or len(marks) > _MOST_MARKS or len(set(marks)) < len(marks)


def _unseen(name: str) -> str | None:
    """Return the first character that nobody would see.

    Persian and the scripts of India need the joiner and the non-joiner, so these are allowed where they show: as in the
    names of domains (RFC 5892, A.1 and A.2), but for any letters of Arabic script.
    """
    for at, char in enumerate(name):
        if char in (_NON_JOINER, _JOINER) and _shows(name, at):
            continue
        if not char.isprintable() or any(low <= ord(char) <= high for low, high in _UNSEEN):
            return char
    return None


def _shows(name: str, at: int) -> bool:
    before = name[at - 1] if at else ""
    if before and unicodedata.combining(before) == _VIRAMA:
        return True
    base = next((each for each in reversed(name[:at]) if not unicodedata.combining(each)), "")
    after = name[at + 1 : at + 2]
    arabic = bool(base and after) and all(unicodedata.bidirectional(each) == "AL" for each in (base, after))
    return name[at] == _NON_JOINER and arabic and before != _NON_JOINER


def _shown(name: str) -> str:
    return quoted(name) if len(name) <= _LONGEST_NAME else f"{len(name)} of them: {quoted(name)}"


def _nothing() -> None: ...


@dataclass(slots=True, eq=False)
class _Source:
    on: bool = True
    open: list[Callable[[], None]] = field(default_factory=list)  # a `mute` for each stream of this name
    speaking: int = 0  # of them, those in which somebody speaks
    announced: State | None = None

    @property
    def state(self) -> State:
        if not self.open or not self.on:
            return "idle"
        return "speech" if self.speaking else "listening"


class Sources:
    """All sources since the start.

    Several streams can have one name, such as those of a satellite that reconnects. At most 1024 names are remembered
    beside those that are in use.
    """

    def __init__(self) -> None:
        self._sources: dict[str, _Source] = {}
        self._watchers: list[Callable[[str, State], None]] = []

    def watch(self, tell: Callable[[str, State], None]) -> None:
        """Call `tell(source, state)` from now on at every change of a state, and whenever a switch is turned."""
        self._watchers.append(tell)

    def states(self) -> dict[str, State]:
        return {name: source.state for name, source in self._sources.items()}

    @property
    def open_streams(self) -> int:
        return sum(len(source.open) for source in self._sources.values())

    def is_on(self, name: str) -> bool:
        source = self._sources.get(name)
        return source is None or source.on

    def switch(self, name: str, on: bool) -> None:
        """Start or stop listening to `name`, in its later streams too."""
        source = self._source(name)
        turned_off = source.on and not on
        source.on = on
        self._tell(name, anyway=True)
        if turned_off:
            for mute in list(source.open):
                mute()

    def opened(self, name: str, mute: Callable[[], None] = _nothing) -> None:
        """Note that a stream has opened.

        Args:
            name: the source of the stream.
            mute: called when the source is switched off while the stream is open: what was said until then is complete.
        """
        self._source(name).open.append(mute)
        self._tell(name)

    def closed(self, name: str, mute: Callable[[], None] = _nothing) -> None:
        """Note that a stream has closed.

        Args:
            name: the source of the stream.
            mute: what was given to `opened`.
        """
        self._source(name).open.remove(mute)
        self._tell(name)

    def speech(self, name: str, started: bool) -> None:
        """Note that an utterance has opened, or closed, in a stream of `name`."""
        self._source(name).speaking += 1 if started else -1
        self._tell(name)

    def _source(self, name: str) -> _Source:
        source = self._sources.get(name)
        if source is None:
            self._forget()
            source = self._sources[name] = _Source()
        return source

    def _forget(self) -> None:
        """Make room for one more: first go those that are switched on and not streamed, then those not streamed."""
        if len(self._sources) < _MOST_REMEMBERED:
            return
        unused = [name for name, source in self._sources.items() if not source.open]
        for name in sorted(unused, key=lambda name: not self._sources[name].on)[:1]:
            del self._sources[name]

    def _tell(self, name: str, *, anyway: bool = False) -> None:
        source = self._sources[name]
        if source.state == source.announced and not anyway:
            return
        source.announced = source.state
        for tell in self._watchers:
            tell(name, source.state)
