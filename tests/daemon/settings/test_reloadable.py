"""Which settings may change while the service runs."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from daemon.settings.reloadable import plan
from daemon.settings.schema import Settings


def settings(**sections: Any) -> Settings:
    return Settings.model_validate(sections)


def test_what_changes_and_what_waits() -> None:
    wanted = settings(
        server={"port": 9000, "tokens": ["t"]},
        vocabulary=["Kallax"],
        sources={"kitchen": {"vocabulary": ["Lumen"]}},
        escalate={"below": 0.5},
        segment={"hangover": 0.4},
        mqtt={"host": "broker"},
        log={"level": "debug"},
    )
    planned = plan(Settings(), wanted, teacher_loaded=True)
    assert planned.changed == (
        "server.tokens", "vocabulary", "sources", "escalate.below", "segment.hangover", "log.level",
    )  # fmt: skip
    assert planned.waiting == ("server.port", "mqtt.host")
    assert planned.settings == settings(
        server={"tokens": ["t"]},
        vocabulary=["Kallax"],
        sources={"kitchen": {"vocabulary": ["Lumen"]}},
        escalate={"below": 0.5},
        segment={"hangover": 0.4},
        log={"level": "debug"},
    )


def test_a_teacher_that_was_never_loaded_cannot_be_asked() -> None:
    never, always = settings(escalate={"when": "never"}), settings(escalate={"when": "always"})
    assert plan(never, always, teacher_loaded=False).waiting == ("escalate.when",)
    assert plan(never, always, teacher_loaded=True).changed == ("escalate.when",)
    assert plan(always, never, teacher_loaded=True).changed == ("escalate.when",)


def test_a_port_does_not_begin_to_speak_tls() -> None:
    plain, secure = Settings(), settings(server={"certificate": "a.pem", "key": "a.key"})
    other = settings(server={"certificate": "b.pem", "key": "b.key"})
    assert plan(plain, secure, teacher_loaded=True).waiting == ("server.certificate", "server.key")
    assert plan(secure, plain, teacher_loaded=True).waiting == ("server.certificate", "server.key")
    assert plan(secure, other, teacher_loaded=True).settings == other


some_settings = st.builds(
    settings,
    server=st.fixed_dictionaries({"port": st.integers(1, 9), "max_streams": st.integers(1, 9)}),
    models=st.fixed_dictionaries({"teacher": st.sampled_from(["tiny-en", None])}),
    escalate=st.fixed_dictionaries({"when": st.sampled_from(["low-confidence", "never"]), "below": st.floats(0, 1)}),
    partials=st.fixed_dictionaries({"interval": st.floats(0.1, 1)}),
    log=st.fixed_dictionaries({"level": st.sampled_from(["info", "debug"])}),
    vocabulary=st.lists(st.sampled_from(["Kallax", "Lumen"])),
)


@given(some_settings, some_settings, st.booleans())
def test_every_difference_is_taken_or_named(now: Settings, wanted: Settings, loaded: bool) -> None:
    planned = plan(now, wanted, teacher_loaded=loaded)
    # What came out is valid by itself, and a second reload has only the same to wait for.
    assert Settings.model_validate(planned.settings.model_dump()) == planned.settings
    again = plan(planned.settings, wanted, teacher_loaded=loaded)
    assert (again.changed, again.waiting) == ((), planned.waiting)
    assert (planned.settings == wanted) == (not planned.waiting)
