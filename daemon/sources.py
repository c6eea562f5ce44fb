"""The sources: which there are, what state each is in, and whether it shall be listened to.

Owns the names' rule, the switch of each source and its state. Knows nothing of audio, of topics or of who looks.
Streams report here, the edges that show a state or turn a switch read and write here; neither knows the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from daemon.faults import Fault

State = Literal["idle", "listening", "speech"]

DEFAULT_SOURCE = "stream"
_LONGEST_NAME = 64
_FORBIDDEN = frozenset('/+#$"\\')
_MOST_REMEMBERED = 1024


def check_name(name: str) -> str:
    """`name`, if it may name a source: it becomes one level of a topic.

    Raises:
        Fault: `bad_source`.
    """
    if not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable() or name != name.strip() or _FORBIDDEN & set(name):
        raise Fault(
            "bad_source",
            f"source must be 1..{_LONGEST_NAME} printable characters without any of "
            f"{' '.join(sorted(_FORBIDDEN))} and without spaces around it, got {_shown(name)}",
            fatal=True,
        )
    return name


def _shown(name: str) -> str:
    if len(name) <= _LONGEST_NAME:
        return ascii(name)
    return f"{len(name)} of them: {name[: _LONGEST_NAME // 2]!a}..."


def _nothing() -> None: ...


@dataclass(slots=True, eq=False)
class _Source:
    on: bool = True
    open: list[Callable[[], None]] = field(default_factory=list)  # a `mute` for each stream of this name
    speaking: int = 0  # of them, those in which somebody speaks
    told: State | None = None

    @property
    def state(self) -> State:
        if not self.open or not self.on:
            return "idle"
        return "speech" if self.speaking else "listening"


class Sources:
    """All sources since the start. Several streams may carry one name: a satellite that reconnects, for one.

    At most 1024 names are remembered beside those that are streamed under now.
    """

    def __init__(self) -> None:
        self._sources: dict[str, _Source] = {}
        self._watchers: list[Callable[[str, State], None]] = []

    def watch(self, tell: Callable[[str, State], None]) -> None:
        """Call `tell(source, state)` at every change of a state, and whenever a switch is turned, from now on."""
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
        """Listen to `name`, or do not; for streams to come as well."""
        source = self._source(name)
        turned_off = source.on and not on
        source.on = on
        self._tell(name, anyway=True)
        if turned_off:
            for mute in list(source.open):
                mute()

    def opened(self, name: str, mute: Callable[[], None] = _nothing) -> None:
        """mute: called when `name` is switched off meanwhile: whoever speaks then has said all that is wanted."""
        self._source(name).open.append(mute)
        self._tell(name)

    def closed(self, name: str, mute: Callable[[], None] = _nothing) -> None:
        """mute: as it was given to `opened`."""
        self._source(name).open.remove(mute)
        self._tell(name)

    def speech(self, name: str, started: bool) -> None:
        """In one stream of `name` an utterance opened, or closed."""
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
        if source.state == source.told and not anyway:
            return
        source.told = source.state
        for tell in self._watchers:
            tell(name, source.state)
