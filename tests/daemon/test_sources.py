"""Names, switches and states."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon import sources
from daemon.faults import Fault
from daemon.sources import Sources, State, check_name


@given(st.text(max_size=80))
def test_a_name_is_one_level_of_a_topic_or_a_fault(name: str) -> None:
    fine = 1 <= len(name) <= 64 and name == name.strip() and not set(name) & set('/+#$"\\') and name.isprintable()
    if fine:
        assert check_name(name) == name
        return
    with pytest.raises(Fault) as caught:
        check_name(name)
    assert (caught.value.code, caught.value.fatal) == ("bad_source", True)
    assert caught.value.message.isascii()


@pytest.mark.parametrize("name", ["kitchen", "küche", "Living room", "台所", "a-b_c.1"])
def test_names_that_people_give(name: str) -> None:
    assert check_name(name) == name


def changes(which: Sources) -> list[tuple[str, State]]:
    told: list[tuple[str, State]] = []
    which.watch(lambda name, state: told.append((name, state)))
    return told


def test_a_life() -> None:
    which = Sources()
    told = changes(which)
    which.opened("kitchen")
    which.speech("kitchen", True)
    which.speech("kitchen", False)
    which.closed("kitchen")
    assert [state for _, state in told] == ["listening", "speech", "listening", "idle"]
    assert which.states() == {"kitchen": "idle"}


def test_streams_of_one_name_share_a_state() -> None:
    which = Sources()
    told = changes(which)
    which.opened("kitchen")
    which.opened("kitchen")
    which.speech("kitchen", True)
    which.closed("kitchen")
    which.speech("kitchen", False)
    which.closed("kitchen")
    assert [state for _, state in told] == ["listening", "speech", "listening", "idle"]


def test_switched_off_is_idle_whoever_speaks() -> None:
    which = Sources()
    assert which.is_on("kitchen")
    which.opened("kitchen")
    which.switch("kitchen", False)
    told = changes(which)
    which.speech("kitchen", True)
    which.speech("kitchen", False)
    assert told == []
    assert which.states() == {"kitchen": "idle"}
    which.switch("kitchen", True)
    assert told == [("kitchen", "listening")]


def test_a_switch_holds_for_streams_to_come() -> None:
    which = Sources()
    which.switch("kitchen", False)
    which.opened("kitchen")
    assert not which.is_on("kitchen")


def test_streams_hear_of_the_turn_alone() -> None:
    which = Sources()
    muted: list[str] = []
    one, two = (lambda: muted.append("one")), (lambda: muted.append("two"))
    which.opened("kitchen", one)
    which.opened("kitchen", two)
    which.opened("hall", lambda: muted.append("hall"))
    which.switch("kitchen", False)
    which.switch("kitchen", False)
    assert muted == ["one", "two"]
    which.closed("kitchen", one)
    which.switch("kitchen", True)
    which.switch("kitchen", False)
    assert muted == ["one", "two", "two"]


def test_names_are_forgotten_in_the_end_but_not_those_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_MOST_REMEMBERED", 3)
    which = Sources()
    which.opened("kitchen")
    which.switch("hall", False)
    for number in range(10):
        which.opened(f"s{number}")
        which.closed(f"s{number}")
    assert set(which.states()) == {"kitchen", "hall", "s9"}
    which.opened("one")
    which.opened("two")
    which.opened("three")
    assert set(which.states()) == {"kitchen", "one", "two", "three"}
