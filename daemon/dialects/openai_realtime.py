"""OpenAI's realtime protocol for transcription (`/v1/realtime`): websocket frames <-> events, without I/O.

Owns the events of both sides, in the present shape and the earlier ("beta") one, and which utterance is which item.
What a session may ask for is read in `openai_session`, and what it only advises is said as `advice` has it. Knows
nothing of sockets, of streams, or of the models.

An item is what was said in one turn. With turn detection a turn is an utterance of the stream. Without it, a turn is
all that was said up to the client's commit, however many utterances that was. Text that has been sent cannot be taken
back in this protocol, so deltas carry what is stable, while somebody still speaks; `completed` is right where they were
not.

A change of the session after audio came begins another stream, behind the last final of the one before. New phrases
alone do not cut what is being said: they hold from the next pause on.

There is no event for a warning, and clients take any `error` for a failure. So a notice that audio has the wrong form
goes to the log alone.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import uuid
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from daemon.common.client_input import LONGEST_TEXT, is_text, quoted, read_json
from daemon.common.errors import Fault
from daemon.dialects.advice import AdviceLog
from daemon.dialects.codec import Codec, Dialect, Frame, Handshake, Message, Reply, query_pairs, shown_tokens
from daemon.dialects.openai_session import Refused, SessionConfig, updated, updated_beta
from daemon.dialects.transcript import Transcript
from streaming.events import (
    Audio,
    Discard,
    Error,
    Event,
    Final,
    Flush,
    Flushed,
    Partial,
    SpeechStarted,
    SpeechStopped,
    Stopped,
    Word,
)

PATHS = frozenset({"/v1/realtime"})
SOURCE = "openai"
"""The source of a stream whose client names none with `?source=`."""

_LARGEST = 1024 * 1024
"""Bytes of a frame: clients send up to a quarter of a minute at once, and base64 makes a third more of it."""

_LEAST_COMMIT = 0.1
"""Seconds of audio, as in the hosted service."""

_EDGE = 0.1
"""Seconds before a commit in which an utterance that begins belongs to what follows: the resampler still held it."""

_LONGEST_ID = 512
"""Characters of a client's event id, as in the hosted service."""

_KEY_PREFIX = "openai-insecure-api-key."
_BETA_PROTOCOL = "openai-beta.realtime-v1"

_TRANSCRIPTION = "conversation.item.input_audio_transcription"

_NO_CONVERSATION = frozenset(
    {
        "response.create", "response.cancel", "conversation.item.create", "conversation.item.delete",
        "conversation.item.retrieve", "conversation.item.truncate", "output_audio_buffer.clear",
    }
)  # fmt: skip


@dataclass(slots=True, eq=False)
class _Item:
    """One turn.

    Attributes:
        begun: seconds since the session began.
        end: likewise; infinite until it is known.
        said: the text of its utterances.
        forgotten: whether the client cleared the buffer, so that nothing is told of it.
    """

    id: str
    begun: float = 0.0
    end: float = math.inf
    said: Transcript = field(default_factory=Transcript)
    words: list[Word] = field(default_factory=list)
    forgotten: bool = False


class _Mark(NamedTuple):
    """A flush or a discard that is not answered.

    Attributes:
        at: seconds since the session began.
        event_id: that of the client's commit.
    """

    at: float
    event_id: str | None = None


class Realtime(Codec):
    """The codec of one client.

    Raises:
        Fault: `bad_parameter`, `unsupported_parameter`.
    """

    def __init__(self, handshake: Handshake) -> None:
        query = dict(query_pairs(handshake.query, 64))
        if (intent := query.get("intent", "transcription")) != "transcription":
            raise Fault("unsupported_parameter", f"the intent must be transcription here, not {quoted(intent)}")
        headers = ",".join(handshake.headers.get("openai-beta", ()))
        self._beta = "realtime=v1" in headers or _BETA_PROTOCOL in handshake.subprotocols
        self._source = query.get("source", SOURCE)
        self._id = _new_id("sess")
        model = query.get("model")
        if not (model is None or is_text(model)):
            raise Fault("bad_parameter", f"model may have at most {LONGEST_TEXT} characters, got {quoted(model)}")
        self._config = SessionConfig().with_model(model or None)
        self._advice = AdviceLog(DIALECT.name)
        self._live: SessionConfig | None = None  # that of the stream which is open
        self._offset = 0.0  # seconds of audio in the streams before it
        self._heard = 0  # bytes of audio in it
        self._committed_at = 0.0  # seconds since the session began
        self._flushes: deque[_Mark] = deque()
        self._items: deque[_Item] = deque()  # those that are not completed, the next first
        self._of: dict[int, _Item] = {}  # with turn detection: by their utterances
        self._last_id: str | None = None  # of the item that was committed last
        self._fresh = False  # with turn detection: a turn was committed since the client last asked for one
        self._speaking = False  # an utterance of the stream is open

    # --- what comes in ---------------------------------------------------------------------------------------------

    def greet(self) -> Iterable[Message]:
        created = "transcription_session.created" if self._beta else "session.created"
        yield Reply(_event(created, session=self._session()))

    def decode(self, frame: Frame) -> Iterable[Message]:
        body = _object(frame)
        event_id = body.get("event_id")
        # What cannot be sent back is no id.
        event_id = event_id if is_text(event_id, _LONGEST_ID) else None
        try:
            yield from self._messages(body, event_id)
        except Refused as refused:
            refused.event_id = event_id
            raise

    def _messages(self, body: dict[str, Any], event_id: str | None) -> Iterable[Message]:
        match body.get("type"):
            case "input_audio_buffer.append":
                yield from self._append(body)
            case "input_audio_buffer.commit":
                yield from self._commit(event_id)
            case "input_audio_buffer.clear":
                yield from self._clear()
            case "session.update":
                read = updated_beta if self._beta else updated
                self._config = read(self._config, body.get("session"))
                yield Reply(_event("session.updated", session=self._session()))
            case "transcription_session.update":
                self._beta = True
                self._config = updated_beta(self._config, body.get("session"))
                yield Reply(_event("transcription_session.updated", session=self._session()))
            case kind if isinstance(kind, str) and kind in _NO_CONVERSATION:
                raise Refused(
                    "unsupported_event", f"{kind}: this service only transcribes, and holds no conversation", "type"
                )
            case kind:
                raise Refused("invalid_value", f"unknown event type {quoted(kind)}", "type")

    def _append(self, body: dict[str, Any]) -> Iterable[Message]:
        audio = _audio(body.get("audio"))
        if not audio:
            return
        if self._begins_anew():
            yield self._config.start(self._source)
            # Not before: the stream before it ends while this start is taken in, and its events are still its own.
            self._live = self._config
            self._heard = 0
        self._advice.say(self._config.advice)  # not before the log knows the stream
        self._heard += len(audio)
        yield Audio(audio)

    def _begins_anew(self) -> bool:
        if self._live is not None and self._speaking:
            return self._live.with_phrases_of(self._config) != self._config
        return self._live != self._config

    def _commit(self, event_id: str | None) -> Iterable[Message]:
        now = self._now()
        if now - self._committed_at < _LEAST_COMMIT:
            raise Refused(
                "input_audio_buffer_commit_empty",
                f"the buffer holds {1000 * (now - self._committed_at):.0f} ms of audio: "
                f"a commit needs {1000 * _LEAST_COMMIT:.0f} ms",
            )
        self._committed_at = now
        if self._live is not None and self._live.turns is None:
            item = self._buffer()
            item.end = now
            for frame in self._tell_committed(item):
                yield Reply(frame)
        else:
            self._fresh = False
        if self._live is not None:
            self._flushes.append(_Mark(now, event_id))
            yield Flush("commit")

    def _clear(self) -> Iterable[Message]:
        if self._live is None:
            yield Reply(_event("input_audio_buffer.cleared"))
            return
        if self._live.turns is None:
            item = self._buffer()
            item.forgotten, item.end = True, self._now()
        self._committed_at = self._now()
        self._flushes.append(_Mark(self._committed_at))
        yield Discard("clear")  # the client is told when it is answered, behind all that a commit before it brought

    def _now(self) -> float:
        """Return the seconds of audio since the session began."""
        return self._offset + (self._heard / self._live.bytes_per_second if self._live is not None else 0.0)

    # --- what goes out ---------------------------------------------------------------------------------------------

    def encode(self, event: Event) -> Iterable[Frame]:
        self._speaking = (self._speaking or isinstance(event, SpeechStarted)) and not isinstance(
            event, SpeechStopped | Stopped
        )
        if isinstance(event, Error):
            return self._tell_error(event)
        if isinstance(event, Stopped):
            return self._end_stream(event)
        if self._live is not None and self._live.turns is None:
            return self._tell_manual(event)
        return self._tell_turn(event)

    def blame(self, fault: Fault) -> Iterable[Frame]:
        return [error(fault)]

    # with turn detection

    def _tell_turn(self, event: Event) -> Iterable[Frame]:
        match event:
            case SpeechStarted(utterance=utterance, start=start):
                item = self._of[utterance] = _Item(_new_id("item"), begun=self._offset + start)
                self._items.append(item)
                yield _event("input_audio_buffer.speech_started", audio_start_ms=_ms(item.begun), item_id=item.id)
            case Partial(utterance=utterance, stable=stable) if utterance in self._of:
                yield from self._tell_partial(self._of[utterance], stable)
            case SpeechStopped(utterance=utterance, end=end) if utterance in self._of:
                item = self._of[utterance]
                item.end = self._offset + end
                self._fresh = True
                yield _event("input_audio_buffer.speech_stopped", audio_end_ms=_ms(item.end), item_id=item.id)
                yield from self._tell_committed(item)
            case Final(utterance=utterance) if utterance in self._of:
                item = self._of[utterance]
                yield from self._complete(each for each in self._items if each.begun < item.begun)
                yield from self._take_final(item, event)
                yield from self._tell_completed(item)
            case Flushed(id):
                mark = self._flushes.popleft()
                yield from self._complete(each for each in self._items if each.end <= mark.at)
                if id == "commit" and not self._fresh:
                    nothing = "nothing has been said since the last turn"
                    yield error(Refused("input_audio_buffer_commit_empty", nothing, event_id=mark.event_id))
                yield from self._tell_cleared(id)

    def _complete(self, items: Iterable[_Item]) -> Iterable[Frame]:
        """Complete items that had no final when theirs was due.

        Finals come in order, so these were silence, or were cleared.
        """
        for item in list(items):
            yield from self._tell_completed(item)

    # without

    def _buffer(self) -> _Item:
        """Return the item that is not committed."""
        if not self._items or not math.isinf(self._items[-1].end):
            self._items.append(_Item(_new_id("item"), begun=self._committed_at))
        return self._items[-1]

    def _tell_manual(self, event: Event) -> Iterable[Frame]:
        match event:
            case SpeechStarted(utterance=utterance, start=start):
                self._of[utterance] = self._item_at(self._offset + start)
            case Partial(utterance=utterance, stable=stable) if utterance in self._of:
                yield from self._tell_partial(self._of[utterance], stable)
            case Final(utterance=utterance):
                self._of.pop(utterance, None)
                # In order, and a commit's mark comes behind the last of its own.
                yield from self._take_final(self._items[0] if self._items else self._buffer(), event)
            case Flushed(id):
                self._flushes.popleft()
                yield from self._tell_completed(self._items[0])
                yield from self._tell_cleared(id)

    def _item_at(self, time: float) -> _Item:
        return next((each for each in self._items if time < each.end - _EDGE), None) or self._buffer()

    # both

    def _tell_cleared(self, id: str | None) -> Iterable[Frame]:
        if id == "clear":
            yield _event("input_audio_buffer.cleared")

    def _tell_partial(self, item: _Item, stable: str) -> Iterable[Frame]:
        yield from self._tell_delta(item, item.said.partial(stable))

    def _take_final(self, item: _Item, final: Final) -> Iterable[Frame]:
        yield from self._tell_delta(item, item.said.final(final.text))
        item.words += final.words or ()

    def _tell_delta(self, item: _Item, more: str) -> Iterable[Frame]:
        if more and not item.forgotten:
            yield _event(f"{_TRANSCRIPTION}.delta", item_id=item.id, content_index=0, delta=more)

    def _tell_committed(self, item: _Item) -> list[Frame]:
        before, self._last_id = self._last_id, item.id
        shown = {
            "id": item.id,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        kinds = ["conversation.item.created"]
        if not self._beta:
            kinds = ["conversation.item.added", *kinds, "conversation.item.done"]
        committed = _event("input_audio_buffer.committed", item_id=item.id, previous_item_id=before)
        return [committed, *(_event(kind, item=shown, previous_item_id=before) for kind in kinds)]

    def _tell_completed(self, item: _Item) -> Iterable[Frame]:
        self._let_go(item)
        if item.forgotten:
            return
        config = self._live or self._config
        log_probs = {"logprobs": [_log_prob(word) for word in item.words]} if config.log_probs else {}
        yield _event(
            f"{_TRANSCRIPTION}.completed",
            item_id=item.id,
            content_index=0,
            transcript=item.said.text,
            usage={"type": "duration", "seconds": round(item.end - item.begun, 3)},
            **log_probs,
        )

    def _let_go(self, item: _Item) -> None:
        self._items.remove(item)
        for utterance in [number for number, each in self._of.items() if each is item]:
            del self._of[utterance]

    def _tell_error(self, event: Error) -> Iterable[Frame]:
        if event.code == "transcription_failed" and self._items:
            item = self._items[0]
            item.forgotten = True
            if self._live is None or self._live.turns is not None:
                self._let_go(item)
            failure = {"type": "server_error", "code": event.code, "message": event.message, "param": None}
            yield _event(f"{_TRANSCRIPTION}.failed", item_id=item.id, content_index=0, error=failure)
            return
        yield error(Fault(event.code, event.message))

    def _end_stream(self, event: Stopped) -> Iterable[Frame]:
        live = self._live or self._config
        if live.turns is not None:
            yield from self._complete(self._items)
        elif self._config.turns is not None and self._items:
            # From now on nobody commits: what waits for it is a turn of its own.
            item = self._items[0]
            item.end = self._now()
            yield from () if item.forgotten else self._tell_committed(item)
            yield from self._tell_completed(item)
        self._offset += event.audio_seconds
        self._live, self._heard = None, 0
        self._of.clear()

    def _session(self) -> dict[str, Any]:
        return {"id": self._id, **(self._config.as_beta() if self._beta else self._config.as_ga())}


# --- the wire --------------------------------------------------------------------------------------------------------


def error(fault: Fault) -> str:
    ours = fault.code in ("internal", "busy", "full", "shutting_down", "transcription_failed")
    return _event(
        "error",
        error={
            "type": "server_error" if ours else "invalid_request_error",
            "code": fault.code,
            "message": fault.message,
            "param": getattr(fault, "param", None),
            "event_id": getattr(fault, "event_id", None),
        },
    )


def tokens(handshake: Handshake) -> list[str]:
    """Return the tokens that the client shows, in its query, headers or subprotocols.

    Raises:
        Fault: `bad_parameter`.
    """
    shown = shown_tokens(handshake, "bearer")
    shown += [value for name, value in query_pairs(handshake.query, 256) if name == "api-key"]
    shown += handshake.headers.get("api-key", ())
    return shown + [each.removeprefix(_KEY_PREFIX) for each in handshake.subprotocols if each.startswith(_KEY_PREFIX)]


def _object(frame: Frame) -> dict[str, Any]:
    if isinstance(frame, bytes):
        raise Refused("invalid_frame", "events are text frames; audio goes as base64 in input_audio_buffer.append")
    try:
        body = read_json(frame)
    except ValueError as wrong:
        raise Refused("invalid_json", f"an event must be one JSON object: {wrong}") from None
    if not isinstance(body, dict):
        raise Refused("invalid_json", f"an event must be one JSON object, got {quoted(body)}")
    return body


_LINE_BREAKS = dict.fromkeys(map(ord, " \t\r\n"))
"""Between the characters of base64: MIME's encoders, and Android's by default, break it into lines."""


def _audio(value: object) -> bytes:
    if not isinstance(value, str):
        raise Refused("invalid_value", f"audio must be a base64 string, got {quoted(value)}", "audio")
    try:
        return base64.b64decode(value.translate(_LINE_BREAKS), validate=True)
    except (binascii.Error, ValueError) as wrong:
        advice = "use the standard alphabet (A-Z a-z 0-9 + /) with padding"
        raise Refused(
            "invalid_value", f"audio must be base64, got {quoted(value)}: {str(wrong)[:60]}; {advice}", "audio"
        ) from None


def _event(kind: str, **fields: Any) -> str:
    text = json.dumps({"type": kind, "event_id": _new_id("event"), **fields}, ensure_ascii=False, separators=(",", ":"))
    # Half a surrogate pair that a client sent comes back to it as JSON can write it; UTF-8 cannot.
    return text.encode("utf-8", "backslashreplace").decode()


def _log_prob(word: Word) -> dict[str, Any]:
    """Return a word in place of a token: words are what the service is sure or unsure of."""
    return {
        "token": word.text,
        "bytes": list(word.text.encode()),
        "logprob": round(math.log(max(word.confidence, 1e-6)), 4),
    }


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:20]}"


def _ms(seconds: float) -> int:
    return round(1000 * seconds)


DIALECT = Dialect(
    "openai",
    Realtime,
    tokens,
    lambda fault: [error(fault)],
    paths=PATHS,
    subprotocols=("realtime",),
    largest=_LARGEST,
)
