"""Names of a house: which, in which order, and from whatever a registry may hold."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from daemon.home_assistant.names import House, vocabulary
from streaming.vocabulary import MOST_PHRASES


def state(entity: str, name: object) -> dict[str, Any]:
    return {"entity_id": entity, "state": "on", "attributes": {"friendly_name": name}}


def texts(house: House) -> list[str]:
    return [phrase.text for phrase in vocabulary(house, 1.0).phrases]


HOUSE = House(
    exposed=frozenset({"light.a", "sensor.b", "light.d", "scene.gone"}),
    states=(
        state("sensor.b", "Boiler"), state("light.a", "Kallax  lamp"), state("light.c", "Hidden"),
        state("light.d", "Broken"),
    ),
    entries={
        "light.a": {"aliases": ["Lumen", None], "device_id": "1"},
        "light.d": {"disabled_by": "user", "aliases": ["Off"]},
    },
    devices=({"id": "1", "area_id": "kitchen"},),
    areas=(
        {"area_id": "attic", "name": "Attic", "aliases": []},
        {"area_id": "kitchen", "name": "Kitchen", "aliases": ["kitchen", "Scullery"], "floor_id": "g"},
    ),
    floors=({"floor_id": "g", "name": "Ground floor", "aliases": None}, {"floor_id": "1", "name": "Upstairs"}),
)  # fmt: skip


def test_names_by_how_likely_they_are_spoken() -> None:
    """The area that a lamp is in through its device, its floor, the lamp with its alias, the sensor, other areas."""
    assert texts(HOUSE) == ["Kitchen", "Scullery", "Ground floor", "Kallax lamp", "Lumen", "Boiler", "Attic"]


def test_no_more_than_a_vocabulary_takes() -> None:
    many = tuple(state(f"light.{number}", f"Lamp {number}") for number in range(MOST_PHRASES + 50))
    names = texts(House(frozenset(str(each["entity_id"]) for each in many), many))
    assert names == [f"Lamp {number}" for number in range(MOST_PHRASES)]


def test_what_nobody_can_say_is_left_out() -> None:
    odd = (state("light.a", "<|x|>"), state("light.b", "a" * 200), state("light.c", 3), state("light.d", "Fine"))
    assert texts(House(frozenset({"light.a", "light.b", "light.c", "light.d"}), odd)) == ["Fine"]


KEYS = st.sampled_from("entity_id attributes friendly_name aliases area_id device_id name id x".split())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["entity_id", "attributes", "friendly_name", "aliases", "area_id", "device_id", "name", "id", "x"]
)
entries = st.lists(st.dictionaries(KEYS, JSON, max_size=5), max_size=3).map(tuple)


@given(entries, entries, entries, entries, st.dictionaries(st.sampled_from(["a", "None"]), st.dictionaries(KEYS, JSON)))
def test_whatever_a_registry_holds(
    states: Any, devices: Any, areas: Any, floors: Any, registered: dict[str, dict[str, Any]]
) -> None:
    texts(House(frozenset({"a", "None"}), states, registered, devices, areas, floors))
