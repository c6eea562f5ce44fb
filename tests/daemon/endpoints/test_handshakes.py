"""A request's first lines, read alike for every dialect and by whichever library took them in."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from daemon.common.errors import Fault
from daemon.dialects import native, vosk, whisperlive
from daemon.dialects.codec import Handshake, bearer_tokens, named_source
from daemon.endpoints.auth import handshake_of


def test_headers_are_known_by_small_letters_as_often_as_they_come() -> None:
    read = handshake_of("/v1/stream/?source=a", [("Origin", "x"), ("HOST", "h"), ("origin", "y")])
    assert read == Handshake("/v1/stream", "source=a", {"origin": ("x", "y"), "host": ("h",)})


@pytest.mark.parametrize(("url", "path", "query"), [("", "/", ""), ("//[", "/", ""), ("/a//?b?c", "/a", "b?c")])
def test_an_address_of_any_kind(url: str, path: str, query: str) -> None:
    read = handshake_of(url, [])
    assert (read.path, read.query) == (path, query)


def test_a_source_in_the_address() -> None:
    assert named_source(Handshake("/", "source=kitchen&token=secret")) == "kitchen"
    assert named_source(Handshake("/", "source=")) == ""
    assert named_source(Handshake("/")) is None


@pytest.mark.parametrize(
    ("query", "code"),
    [("source=a&source=b", "bad_parameter"), ("sorce=a", "unknown_parameter"), ("a&" * 99, "bad_parameter")],
)
@pytest.mark.parametrize(
    "make", [named_source, native.Native, whisperlive.WhisperLive, lambda handshake: vosk.Vosk(handshake, 8000)]
)
def test_an_address_that_will_not_do(make: Callable[[Handshake], object], query: str, code: str) -> None:
    with pytest.raises(Fault) as caught:
        make(Handshake("/", query))
    assert caught.value.code == code


@pytest.mark.parametrize(
    "tokens", [bearer_tokens, native.tokens, whisperlive.DIALECT.tokens, vosk.dialect(8000).tokens]
)
def test_tokens_are_shown_alike(tokens: Callable[[Handshake], list[str]]) -> None:
    headers = {"authorization": ("Bearer one", "bearer  two ", "Basic three", "four")}
    assert tokens(Handshake("/", "token=five", headers)) == ["five", "one", "two"]
