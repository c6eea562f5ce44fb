"""The settings: files, overrides from the environment, and files of tokens.

Whatever is in them, they are settings or a complaint; and no complaint, nor what is printed of settings, tells a token.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from daemon.common.errors import ConfigurationError
from daemon.settings.environment import ServiceEnvironment
from daemon.settings.load import load
from daemon.settings.schema import Section, Settings
from daemon.settings.secrets import with_tokens

from .rounds import Target

SECRET = "thesecretnobodymaysee"
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | st.binary(max_size=5) | st.text(max_size=20)
)
VALUES = st.recursive(
    SCALARS | st.sampled_from(["0.0.0.0", "auto", "off", "tiny-en", "/nowhere", "/dev/null", "a\x00b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
TOKENS = st.recursive(
    st.just(SECRET) | SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["token", "send", "read", "sned"]), inner, max_size=4)
    ),
    max_leaves=5,
)
KEYS = [
    (name, key)
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    for key in field.annotation.model_fields
]


@st.composite
def files(draw: st.DrawFn) -> str:
    settings: dict[Any, Any] = {}
    for name, key in draw(st.lists(st.sampled_from(KEYS), max_size=4)):
        settings.setdefault(name, {})[key] = draw(VALUES)
    if draw(st.booleans()):
        settings.setdefault("server", {})["tokens"] = draw(TOKENS)
    if draw(st.booleans()):
        settings.setdefault("mqtt", {})["password"] = draw(st.just([SECRET]) | st.just({"x": SECRET}) | SCALARS)
    if draw(st.integers(0, 5)) == 0:
        settings[draw(st.sampled_from(list(Settings.model_fields)) | st.text(max_size=8))] = draw(VALUES)
    text = yaml.safe_dump(settings, allow_unicode=True)
    if draw(st.integers(0, 5)) == 0:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.text(max_size=5)) + text[at:]
    return text


ENVIRONMENT = st.dictionaries(
    st.sampled_from([f"WHISPERD_{name}__{key}".upper() for name, key in KEYS]) | st.just("WHISPERD_X"),
    st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20) | st.just("[1, {a: ["),
    max_size=2,
)
LINES = st.lists(
    st.just(SECRET) | st.just(f"{{token: {SECRET}, send: [a, [b]]}}") | st.text(max_size=30), max_size=4
).map("\n".join)


def read(example: tuple[str | bytes, dict[str, str], str]) -> None:
    text, environment, lines = example
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whisperd.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        (path.parent / "server_tokens").write_bytes(lines.encode("utf-8", "surrogatepass"))
        try:
            settings = with_tokens(load(path, environment), ServiceEnvironment(credentials=path.parent))
        except ConfigurationError as error:
            assert str(error)
            assert SECRET not in str(error)
            return
    assert SECRET not in repr(settings)
    assert Settings.model_validate(settings.model_dump()) == settings
    assert all(token.token for token in settings.server.tokens)


TARGETS = (Target("config", st.tuples(files() | st.binary(max_size=50), ENVIRONMENT, LINES), read, size=200),)
