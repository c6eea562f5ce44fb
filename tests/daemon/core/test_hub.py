"""Fan-out: who gets what, in which order, and what happens to the slow."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.common.metrics import Metrics
from daemon.core.hub import Hub, Outbox
from streaming.events import Error, Event, Final, Flushed, Partial, SpeechStarted, SpeechStopped

SOURCES = ("kitchen", "hall")
QUEUE, KEEP = 8, 5


def partial(source: str = "kitchen", utterance: int = 1, tail: str = "") -> Partial:
    return Partial(source, utterance, 0.0, 1.0, "", tail, 1)


def final(source: str = "kitchen", utterance: int = 1, text: str = "") -> Final:
    return Final(source, utterance, 0.0, 1.0, text, 0.9, "student", "en", 1)


def hub(queue: int = QUEUE, keep: int = KEEP) -> Hub:
    return Hub(queue, keep, Metrics())


async def taken(outbox: Outbox) -> list[Event]:
    """What is in it. Ends the subscription."""
    outbox.close()
    return [event async for event in outbox]


def numbers(found: list[Event]) -> list[int]:
    return [event.seq for event in found if isinstance(event, Partial | Final)]


# --- properties ------------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(st.sampled_from(["partial", "final", "started"]), st.sampled_from(SOURCES))
    | st.tuples(st.just("take"), st.integers(1, 6)),
    max_size=60,
)


async def play(steps: list[tuple[str, object]]) -> None:
    """Publishes and takes as `steps` say, and compares with all that was published."""
    house = hub()
    outbox = house.subscribe()
    everything = Hub(10_000, KEEP, house.metrics).subscribe()  # never read, never full
    utterance = dict.fromkeys(SOURCES, 1)
    published: list[Event] = []
    got: list[Event] = []
    reader = aiter(outbox)
    for kind, what in steps:
        if kind == "take":
            assert isinstance(what, int)
            got += [await anext(reader) for _ in range(min(what, len(outbox)))]
            continue
        assert isinstance(what, str)
        event: Event
        match kind:
            case "partial":
                event = partial(what, utterance[what])
            case "final":
                event = final(what, utterance[what])
                utterance[what] += 1
            case _:
                event = SpeechStarted(what, utterance[what], 0.0)
        house.publish(event, what)
        published.append(event)
        assert len(outbox) <= QUEUE
    outbox.close()
    got += [event async for event in reader]
    everything.close()

    finals = [replace(event, seq=0, id=None, at=None) for event in got if isinstance(event, Final)]
    expected = [event for event in published if isinstance(event, Final)]
    if outbox.overflowed:
        assert finals == expected[: len(finals)]
    else:
        assert finals == expected
        assert [e for e in got if isinstance(e, SpeechStarted)] == [
            e for e in published if isinstance(e, SpeechStarted)
        ]
    for source in SOURCES:
        mine = [event for event in got if getattr(event, "source", None) == source]
        assert numbers(mine) == sorted(set(numbers(mine)))
        # No partial after its final.
        ended: set[int] = set()
        for each in mine:
            if isinstance(each, Final):
                ended.add(each.utterance)
            assert not (isinstance(each, Partial) and each.utterance in ended)


@given(STEPS)
def test_finals_are_never_lost_or_reordered_and_the_queue_is_bounded(steps: list[tuple[str, object]]) -> None:
    asyncio.run(play(steps))


@given(st.lists(st.sampled_from(["partial", "final"]), max_size=20), st.integers(0, 25))
def test_a_reconnect_loses_and_repeats_nothing_that_is_kept(kinds: list[str], since: int) -> None:
    async def check() -> None:
        house = hub(queue=50)
        for utterance, kind in enumerate(kinds):
            house.publish(partial(utterance=utterance) if kind == "partial" else final(utterance=utterance), "s")
        found = await taken(house.subscribe("kitchen", since))
        replayed = [event.seq for event in found if isinstance(event, Final)]
        seen = since if since <= len(kinds) else 0
        missed = [at + 1 for at, kind in enumerate(kinds) if kind == "final" and at + 1 > seen]
        assert replayed == missed[-KEEP:]
        lost = len(missed) > KEEP
        assert [event.code for event in found if isinstance(event, Error)] == ["replay_incomplete"] * lost
        assert len(found) == len(replayed) + lost

    asyncio.run(check())


# --- examples --------------------------------------------------------------------------------------------------------


async def test_a_newer_partial_replaces_the_older_and_the_final_both() -> None:
    house = hub()
    outbox = house.subscribe()
    for event in (partial(tail="a"), partial("hall"), partial(tail="b")):
        house.publish(event, event.source)
    assert [getattr(event, "tail", None) for event in await taken(outbox)] == ["", "b"]
    outbox = house.subscribe()
    house.publish(partial(tail="a"), "kitchen")
    house.publish(SpeechStopped("kitchen", 1, 1.0), "kitchen")
    house.publish(final(text="a"), "kitchen")
    assert [event.type for event in await taken(outbox)] == ["speech_stopped", "final"]


async def test_two_streams_of_one_name_do_not_replace_each_others_partials() -> None:
    house = hub()
    outbox = house.subscribe()
    house.publish(partial(tail="a"), "one")
    house.publish(partial(tail="b"), "other")
    assert [event.tail for event in await taken(outbox) if isinstance(event, Partial)] == ["a", "b"]


async def test_whoever_does_not_read_is_cut_off_and_the_others_go_on() -> None:
    house = hub()
    slow, quick = house.subscribe(), house.subscribe()
    reader = aiter(quick)
    for utterance in range(3 * QUEUE):
        house.publish(final(utterance=utterance), "s")
        assert (await anext(reader)).type == "final"
    assert slow.overflowed
    assert not quick.overflowed
    assert [event async for event in slow] == []


async def test_partials_never_cut_anybody_off() -> None:
    house = hub()
    outbox = house.subscribe()
    for utterance in range(QUEUE - 1):
        house.publish(final(utterance=utterance), "s")
    for utterance in range(100, 200):
        house.publish(partial(utterance=utterance), "s")
    assert not outbox.overflowed
    house.publish(final(utterance=300), "s")
    assert [event.type for event in await taken(outbox)] == ["final"] * QUEUE


async def test_who_gets_what() -> None:
    house = hub()
    all_of_them, kitchen, mine = house.subscribe(), house.subscribe("kitchen"), house.follow("stream-1")
    house.publish(final("kitchen", text="a"), "stream-1")
    house.publish(final("hall", text="b"), "stream-2")
    mine.put(Flushed("x"))
    texts = {
        name: [getattr(event, "text", "flushed") for event in await taken(outbox)]
        for name, outbox in {"all": all_of_them, "kitchen": kitchen, "mine": mine}.items()
    }
    assert texts == {"all": ["a", "b"], "kitchen": ["a"], "mine": ["a", "flushed"]}


async def test_each_source_counts_for_itself() -> None:
    house = hub()
    outbox = house.subscribe()
    for event in (partial(), final(), final("hall"), partial(utterance=2)):
        house.publish(event, event.source)
    found = await taken(outbox)
    assert [(e.source, e.seq) for e in found if isinstance(e, Final)] == [("kitchen", 2), ("hall", 1)]
    assert numbers(found)[-1] == 3


async def test_each_final_has_an_id_of_its_own_and_a_time() -> None:
    house = hub()
    one, other = house.subscribe(), house.subscribe("kitchen")
    before = time.time()
    for stream, utterance in (("a", 1), ("a", 2), ("b", 1)):
        house.publish(final(utterance=utterance), stream)
    found = [event for event in await taken(one) if isinstance(event, Final)]
    assert len({event.id for event in found}) == 3
    assert all(event.at is not None and before - 0.001 <= event.at <= time.time() + 0.001 for event in found)
    assert await taken(other) == found


async def test_a_reader_waits_for_what_comes() -> None:
    house = hub()
    reader = aiter(house.subscribe())
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    assert not waiting.done()
    house.publish(final(), "s")
    assert (await waiting).type == "final"
    ending = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    house.close()
    with pytest.raises(StopAsyncIteration):
        await ending


async def test_who_left_gets_nothing_more() -> None:
    house = hub()
    outbox = house.subscribe()
    house.publish(final(text="before"), "s")
    outbox.close()
    house.publish(final(text="after"), "s")
    assert [getattr(event, "text", "") for event in await taken(outbox)] == ["before"]
    assert "whisperd_subscribers 0.0" in house.metrics.text().decode()


# --- one keeps finals before the others are told ---------------------------------------------------------------------


async def test_a_final_is_told_once_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.core.hub._KEEPING", 30.0)
    house = hub()
    keeper, other = aiter(house.keep_first()), aiter(house.subscribe())
    house.publish(partial(), "s")
    assert isinstance(await anext(other), Partial)  # it waits for nothing
    house.publish(final(), "s")
    waiting = asyncio.ensure_future(anext(other))
    kept = await anext(keeper)
    assert isinstance(kept, Final)
    assert kept.id == "s-1"
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiting.done()
    house.kept(kept.id)
    assert await waiting == kept


async def test_whoever_comes_back_waits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.core.hub._KEEPING", 30.0)
    house = hub()
    house.keep_first()
    house.publish(final(), "s")
    waiting = asyncio.ensure_future(anext(aiter(house.subscribe("kitchen", since=0))))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiting.done()
    house.kept("s-1")
    assert isinstance(await waiting, Final)


async def test_a_keeper_that_hangs_holds_up_nobody_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.core.hub._KEEPING", 0.01)
    monkeypatch.setattr("daemon.core.hub._MOST_UNKEPT", 3)
    house = hub()
    house.keep_first()
    other = house.subscribe()
    for utterance in range(6):
        house.publish(final(utterance=utterance), "s")
    assert len(house._unkept) == 3
    assert [event.utterance for event in await taken(other) if isinstance(event, Final)] == list(range(6))
    assert not house._unkept


async def test_whoever_is_cancelled_while_it_waits_takes_nothing_with_it() -> None:
    house = hub()
    keeper = house.keep_first()
    outbox = house.follow("kitchen")
    house.publish(final(), "kitchen")
    (kept,) = await taken(keeper)
    assert isinstance(kept, Final)
    assert kept.id is not None

    async def read() -> Event:
        return await anext(aiter(outbox))

    first = asyncio.create_task(read())
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(read())
    await asyncio.sleep(0)
    house.kept(kept.id)
    assert await second == kept
    assert len(outbox) == 0
