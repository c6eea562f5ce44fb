"""Names, switches and states."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.common import sources
from daemon.common.errors import Fault
from daemon.common.permissions import Rights
from daemon.common.sources import Sources, State, check_name, check_pattern
from daemon.settings.schema import Token


@given(st.text(max_size=80))
def test_a_name_is_one_level_of_a_topic_or_a_fault(name: str) -> None:
    refused: tuple[str, bool, bool] | None = None
    try:
        known = check_name(name)
    except Fault as fault:
        refused = (fault.code, fault.fatal, fault.message.isascii())
    if refused is not None:
        assert refused == ("bad_source", True, True)
        return
    assert 1 <= len(known) <= 64
    assert known == known.strip() == unicodedata.normalize("NFC", name) == check_name(known)
    assert not set(known) & set('/+#$"\\')
    assert all(char.isprintable() or char in "\u200c\u200d" for char in known)


@pytest.mark.parametrize(
    "name",
    [
        "kitchen", "küche", "Living room", "台所", "a-b_c.1", "кухня", "गलियारा", "ห้องครัว", "거실", "☕ corner", "Bếp",
        "آشپزخانه\u200cها",  # noqa: RUF001 - Persian: a plural is written so
        "क्\u200dष", "ക്\u200c",  # behind a virama
    ],
)  # fmt: skip
def test_names_that_people_give(name: str) -> None:
    assert check_name(name) == name


def test_one_name_has_one_spelling() -> None:
    assert check_name("ku\u0308che") == check_name("k\u00fcche") == "k\u00fcche"
    assert Rights(send=("k\u00fcche*",)).check_send("ku\u0308che-2") == "k\u00fcche-2"
    token = Token(token="t", send=("ku\u0308che",), read=())
    assert Rights(send=token.send).check_send("k\u00fcche") == "k\u00fcche"


@pytest.mark.parametrize(
    "name",
    [
        "kitchen\u3164", "\u115f", "kit\u034fchen", "kit\u00adchen", "kit\u200bchen", "kit\u200cchen", "kit\u200dchen",
        "\u200ckitchen", "kitchen\u200c", "kitchen\ufe0f", "\ufeffkitchen", "\u202ekitchen", "\u2800", "a\U000e0061",
        "آ\u200c\u200cش", "آ\u200dش", "\u0308a", "a  b", "a\u00a0b", " a", "a\tb", "a\u2028b", "\ud800", "", "x" * 65,
    ],
)  # fmt: skip
def test_what_nobody_would_see_is_refused(name: str) -> None:
    with pytest.raises(Fault, match="source must be") as caught:
        check_name(name)
    assert caught.value.code == "bad_source"


@pytest.mark.parametrize(
    "name",
    [
        "မြို့", "လျှို့ဝှက်", "ខ្ញុំ", "ที่น้ำ", "ເຮືອນ", "བསྒྲུབས", "ཧཱུྃ",
        "हूँ", "र्क्ष्म्य", "শ্রেণীকক্ষ", "வீடு", "ಕೋಂ", "ගෝං", "വീട്", "ਘਰਾਂ",
        "הַשָּׁמַ֖יִם", "بَيْتٌ", "اللّٰهُ", "مُحَمَّدٌ", "ガレージ",
        "phòng ngủ", "nhà bếp tầng hầm", "ᾱ̓́ͅ", "ọ̀nà", "ą́", "İstanbul", "\u0131ş\u0131k", "ǰ", "ệ", "ї", "1⃣",
    ],
)  # fmt: skip
def test_marks_that_scripts_are_written_with(name: str) -> None:
    """However they come: taken apart or not."""
    known = unicodedata.normalize("NFC", name)
    assert check_name(name) == check_name(unicodedata.normalize("NFD", name)) == known


@pytest.mark.parametrize(
    "name",
    [
        "i\u0307", "k\u0131\u0307tchen", "kitchen-j\u0307", "i\u0323\u0307", "\u012f\u0307", "i\u0307\u0323",
        "\u0456\u0307", "\u0237\u0307", "i\u0307\u0301", "\u2148\u0307",
    ],
)  # fmt: skip
def test_a_dot_on_what_has_one_is_refused(name: str) -> None:
    with pytest.raises(Fault, match=r"without U\+0307 on i or j, where nobody can see it, got") as caught:
        check_name(name)
    assert caught.value.code == "bad_source"


@pytest.mark.parametrize(
    "name",
    [
        "k\u0300\u0301\u0302\u0303\u0304", "k\u0323\u0324\u0325\u0326\u0327itchen", "\u1ea4\u0300\u0303\u0304",
        "a\u0300\u0300", "\u0e01" + "\u0e47" * 2, "\u0e01\u0e31\u0e47\u0e48\u0e49\u0e4a\u0e4b\u0e4c",
        "\u0628\u064b\u064c\u064d\u064e\u064f\u0650\u0651", "\u0915" + "\u094d\u200d" * 8,
    ],
)  # fmt: skip
def test_piles_of_marks_are_refused(name: str) -> None:
    with pytest.raises(Fault, match="with at most 4 accents or 6 marks on each, none of them twice") as caught:
        check_name(name)
    assert caught.value.code == "bad_source"
    assert len(caught.value.message) < 300


letters = st.text(
    st.sampled_from("ai \u0301\u0307\u0308\u0323\u0915\u094d\u093e\u0628\u064e\u200c\u200d-/"), max_size=8
)


@given(letters, letters, letters)
def test_a_pattern_that_a_name_fits_is_taken(before: str, inside: str, behind: str) -> None:
    """Whatever stands for the `*`."""
    pattern = f"{before}*{behind}"
    whole = f"{before}{inside}{behind}"
    try:
        known = check_name(whole)
    except Fault:
        return
    if Rights((), (unicodedata.normalize("NFC", pattern),)).may_read(known):
        check_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    ["*", "**", "kitchen-*", "* mic", "living *", "a * b", "*\u0323", "*\u200cش", "آ\u200c*", "*\u200dष", "क्*",
     "*" * 40, "x" * 64 + "*", "i*\u0307", "x\u0300*\u0300", "k[1]", "?"],
)  # fmt: skip
def test_patterns_that_a_name_may_fit(pattern: str) -> None:
    assert check_pattern(pattern) == pattern


@pytest.mark.parametrize(
    "pattern",
    ["", "kitchen/*", "#", "+", "$SYS*", " *", "* ", "a  *", "*  b", "\u0301*", "kit\u200bchen*", "*i\u0307*", "x" * 65,
     "*" + "x" * 65, "a\u0300\u0300*", "\u200d*", "*\n"],
)  # fmt: skip
def test_patterns_that_no_name_fits(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"^not a valid source name: it must be 1\.\.64 printable") as caught:
        check_pattern(pattern)
    assert len(str(caught.value)) < 250


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
