"""Live text in a terminal."""

from __future__ import annotations

import io
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.commands import terminal
from daemon.commands.terminal import Live
from streaming.events import Error, Final, Partial, SpeechStarted

STARTED = SpeechStarted("desk", 1, 0.0)


class Screen(io.StringIO):
    """What a terminal is written."""

    def __init__(self, *, terminal: bool = True) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def partial(stable: str, tail: str) -> Partial:
    return Partial("desk", 1, 0.0, 1.0, stable, tail, 0)


def final(text: str) -> Final:
    return Final("desk", 1, 0.0, 1.0, text, 0.9, "student", "en", 0)


def test_settled_text_is_solid_and_the_rest_is_dim() -> None:
    screen = Screen()
    live = Live(screen)
    for event in (
        STARTED,
        partial("turn on", " the kit"),
        partial("turn on the", " kitchen"),
        final("turn on the light"),
    ):
        live.show(event)
    *lines, last, after = screen.getvalue().split("\r\x1b[K")
    assert lines == ["", "", "turn on\x1b[2m the kit\x1b[0m"]
    assert (last, after) == ("turn on the\x1b[2m kitchen\x1b[0m", "turn on the light\n")


def test_only_finals_go_into_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(terminal=False)
    live = Live(screen)
    for event in (STARTED, partial("turn", " on"), final("turn on"), Error("internal", "it broke", fatal=True)):
        live.show(event)
    assert screen.getvalue() == "turn on\n"
    assert capsys.readouterr().err == "whisperd: it broke\n"


@given(st.text("ab 日é\u0301"), st.text("xy 語"), st.integers(1, 30))
def test_a_line_is_as_much_of_the_end_as_fits(stable: str, tail: str, columns: int) -> None:
    shown_stable, shown_tail = terminal._fit(stable, tail, columns)
    shown = shown_stable + shown_tail
    assert (stable + tail).endswith(shown)
    assert stable.endswith(shown_stable)
    assert tail.endswith(shown_tail)
    assert shown_tail == tail or not shown_stable
    width = sum(0 if unicodedata.combining(c) else 2 if re.match("[日語]", c) else 1 for c in shown)
    assert width <= columns
    assert shown == stable + tail or width >= columns - 1
