"""Home Assistant's names for what people speak of: from what its registries answer to phrases.

Owns which entities, areas and floors count, their order, and what their names are. Knows nothing of connections.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from streaming.vocabulary import MOST_PHRASES, Phrase, Vocabulary, VocabularyError, phrase, vocabulary_of

_SPOKEN_OF = frozenset(
    {"light", "switch", "fan", "media_player", "climate", "cover", "lock", "vacuum", "scene", "todo"}
)
"""Domains whose entities people name in commands; where there are too many names, theirs go before those of others."""

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class House:
    """What Home Assistant answered.

    Attributes:
        exposed: the entities that voice assistants may see.
        states: of all entities.
        entries: of the registry, by entity; without those that are not registered.
        devices: of the registry.
        areas: of the registry.
        floors: of the registry.
    """

    exposed: frozenset[str]
    states: tuple[Entry, ...] = ()
    entries: Mapping[str, Entry] = field(default_factory=dict)
    devices: tuple[Entry, ...] = ()
    areas: tuple[Entry, ...] = ()
    floors: tuple[Entry, ...] = ()


def vocabulary(house: House, weight: float) -> Vocabulary:
    """Return the names of a house as phrases, the likeliest to be spoken first, as many as a vocabulary may have.

    Args:
        house: what Home Assistant answered.
        weight: of each.
    """
    phrases: dict[str, Phrase] = {}
    for name in _names(house):
        try:
            found = phrase(name, weight)
        except VocabularyError:
            continue  # nobody says that
        phrases.setdefault(found.text.casefold(), found)
        if len(phrases) == MOST_PHRASES:
            break
    return vocabulary_of(phrases.values())


def _names(house: House) -> Iterator[str]:
    devices = {_id(device, "id"): device for device in house.devices}
    entities = [_Entity(state, house.entries.get(_id(state, "entity_id"), {}), devices) for state in house.states]
    seen = [each for each in entities if each.id in house.exposed and not each.disabled]
    areas = {each.area for each in seen} - {""}
    used = [area for area in house.areas if _id(area, "area_id") in areas]
    floors = {_id(area, "floor_id") for area in used} - {""}
    yield from _named(used)
    yield from _named(floor for floor in house.floors if _id(floor, "floor_id") in floors)
    for first in (True, False):
        for each in seen:
            if (each.id.partition(".")[0] in _SPOKEN_OF) is first:
                yield from each.names
    yield from _named(area for area in house.areas if _id(area, "area_id") not in areas)


def _named(entries: Iterable[Entry]) -> Iterator[str]:
    for entry in entries:
        yield from _texts(entry.get("name"), entry.get("aliases"))


def _texts(name: object, aliases: object) -> Iterator[str]:
    """Yield a name and its aliases: one may be null, which stands for the entity's own name."""
    values = [name, *(aliases if isinstance(aliases, list) else ())]
    yield from (value for value in values if isinstance(value, str))


def _id(entry: Entry, key: str) -> str:
    """Return what identifies something in a registry; "" for nothing."""
    value = entry.get(key)
    return value if isinstance(value, str) else ""


class _Entity:
    def __init__(self, state: Entry, entry: Entry, devices: Mapping[str, Entry]) -> None:
        self.id = _id(state, "entity_id")
        self.disabled = entry.get("disabled_by") is not None
        device = devices.get(_id(entry, "device_id"), {})
        self.area = _id(entry, "area_id") or _id(device, "area_id")
        attributes = state.get("attributes")
        name = attributes.get("friendly_name") if isinstance(attributes, Mapping) else None
        self.names = list(_texts(name, entry.get("aliases")))
