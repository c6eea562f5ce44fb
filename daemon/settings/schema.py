"""The settings: their keys, types, limits and defaults, validated and frozen.

Owns the keys. `vad`, `segment`, `confidence` and the defaults of `partials` are declared in `streaming/vad.py`,
`segment.py`, `confidence.py` and `session.py`, and only get their keys here. Knows nothing of files, of the
environment, or of how an error is worded.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import unicodedata
from collections.abc import Callable
from typing import Annotated, Any, Literal, cast, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    WithJsonSchema,
    create_model,
    field_validator,
    model_validator,
)

from daemon.common.client_input import language_code, language_codes, quoted
from daemon.common.errors import Fault
from daemon.common.permissions import EVERYTHING
from daemon.common.sources import check_name, check_pattern
from streaming.confidence import ConfidenceSettings
from streaming.events import LongFormMethod
from streaming.job import ALWAYS, NEVER
from streaming.segment import SegmentSettings
from streaming.session import SessionSettings
from streaming.vad import VadSettings
from streaming.vocabulary import (
    GREATEST_WEIGHT,
    Vocabulary,
    VocabularyError,
    read_lines,
    read_vocabulary,
)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


_TOPIC = r"^[^/+#\x00]([^+#\x00]*[^/+#\x00])?$"


_ORIGIN = re.compile(
    r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[^\s/?#@:\[\]]+)(?::(\d{1,5}))?/?", re.IGNORECASE | re.ASCII
)


_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?")


_DEFAULT_PORTS = {("http", 80), ("https", 443)}


_DISPUTED = frozenset("\u00df\u1e9e\u03c2\u200c\u200d")
"""What the two standards for names of domains write differently: browsers have gone from one to the other."""


def _origin(origin: str) -> str:
    """Return an origin as browsers write it: in lower case, without a path, and without a default port."""
    if origin in ("*", "null"):
        return origin
    form = "write https://HOST or https://HOST:PORT, without a path"
    found = _ORIGIN.fullmatch(origin)
    if found is None:
        raise ValueError(f"{origin!r} is not an origin: {form}")
    scheme, port = found[1].lower(), int(found[3] or 0)
    if "*" in found[2]:
        raise ValueError(f"{origin!r} matches no page: only a * by itself stands for all pages; name each host")
    host = _host(found[2])
    if not host.isascii():
        raise ValueError(
            f"browsers may write {origin!r} differently: give the host as they send it, such as https://xn--..."
        )
    if not host or port > 65535:
        raise ValueError(f"{origin!r} is not an origin that a browser sends: {form}")
    return f"{scheme}://{host}" if found[3] is None or (scheme, port) in _DEFAULT_PORTS else f"{scheme}://{host}:{port}"


def _host(host: str) -> str:
    """Return a host as browsers send it; "" where they cannot, and beyond ASCII where they may not all agree."""
    host = host if host.isascii() else _punycode(host)
    host = host.lower()
    try:
        if host.startswith("["):
            return f"[{ipaddress.IPv6Address(host[1:-1])}]"
        if host.rpartition(".")[2].isdecimal():  # browsers take it for an address then, or for nothing
            return str(ipaddress.IPv4Address(host))
    except ValueError:
        return ""
    return host if not host.isascii() or _HOST.fullmatch(host) else ""


def _punycode(host: str) -> str:
    """Return a host in any script as names of domains are sent; as it was where that is not certain."""
    if _DISPUTED & set(host):
        return host
    folded = unicodedata.normalize("NFKC", host.casefold())
    try:
        sent = folded.encode("idna").decode("ascii")
        # Python's table is that of the old standard. Where it changes nothing, the new one has the same.
        return sent if sent.encode("ascii").decode("idna") == folded else host
    except UnicodeError:
        return host


def _name(name: str) -> str:
    try:
        return check_name(name)
    except Fault as fault:
        raise ValueError(fault.message) from None


def _name_alone(name: str) -> str:
    if "*" in name:
        raise ValueError(
            f"{quoted(name)} contains a *, which means nothing here: name each source, or leave the list empty for all "
            "that are heard"
        )
    return name


_Name = Annotated[str, AfterValidator(_name)]


_Pattern = Annotated[str, AfterValidator(check_pattern)]


def _texts() -> Any:
    # Strict mode takes no list for a tuple, and YAML knows only lists.
    return Field(default=(), strict=False)


class Token(Section):
    """A token, and the sources that a client which shows it may speak as and read."""

    token: str = Field(repr=False)
    send: tuple[_Pattern, ...] = _texts()
    read: tuple[_Pattern, ...] = _texts()

    @field_validator("token")
    @classmethod
    def _can_be_shown(cls, token: str) -> str:
        if not token or not token.isprintable() or " " in token:
            raise ValueError("must be one word: a token is sent in a header or an address")
        return token


def token_of(value: object) -> object:
    """Turn a token that is a plain text into one that may do everything.

    Raises:
        ValueError: `value` is neither a text nor a section.
    """
    if isinstance(value, str):
        return {"token": value, "send": EVERYTHING, "read": EVERYTHING}
    if not isinstance(value, dict | Token):
        raise ValueError(
            "must be a string (in quotes, if it looks like a number) or {token: T, send: [...], read: [...]}"
        )
    return value


class ServerSettings(Section):
    host: str = "127.0.0.1"
    port: int = Field(default=8765, ge=0, le=65535)
    tokens: tuple[Annotated[Token, BeforeValidator(token_of)], ...] = Field(default=(), strict=False)
    tokens_file: str | None = None
    open: bool = False
    origins: tuple[str, ...] = _texts()
    certificate: str | None = None
    key: str | None = None
    max_streams: int = Field(default=32, ge=1)
    max_subscribers: int = Field(default=64, ge=0)
    max_message: int = Field(default=1048576, ge=1024)
    max_per_address: int = Field(default=16, ge=1)
    max_handshakes: int = Field(default=64, ge=1)
    max_rate: int = Field(default=5000, ge=1)
    resume: float = Field(default=60.0, ge=0, le=3600)

    @field_validator("origins")
    @classmethod
    def _as_browsers_write_them(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_origin(each) for each in origins)

    @model_validator(mode="after")
    def _tls(self) -> ServerSettings:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: set both or neither")
        return self


def _seconds(value: object) -> object:
    """Return seconds, where a duration is written with its unit, such as 15m."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)", value) if isinstance(value, str) else None
    return value if found is None else float(found[1]) * {"s": 1, "h": 3600}.get(found[2], 60)


class ModelSettings(Section):
    student: str = Field(default="tiny-en", min_length=1)
    teacher: str | None = "tiny-en"
    device: str = Field(default="auto", pattern=r"^(auto|(cpu|cuda(:\d+)?)(,(cpu|cuda(:\d+)?))*)$")
    dtype: Literal["auto", "mixed", "float32", "float16", "bfloat16"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    graphs: Literal["auto", "on", "off"] = "auto"
    mode: Literal["fast", "deterministic"] = "fast"
    unload_after: float | None = Field(default=None, gt=0)
    languages: list[str] = Field(default=[], max_length=100)

    @field_validator("languages")
    @classmethod
    def _as_clients_may_write_them(cls, languages: list[str]) -> list[str]:
        return list(language_codes(languages))

    @field_validator("unload_after", mode="before")
    @classmethod
    def _with_its_unit(cls, value: object) -> object:
        return _seconds(value)

    @field_validator("graphs", mode="before")
    @classmethod
    def _yaml_means_a_word(cls, value: object) -> object:
        """Return the word, because YAML reads a bare on or off as a truth value."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices. Each has a copy of the models, and streams are shared among them."""
        return tuple(self.device.split(","))


class EngineSettings(Section):
    backend: Literal["auto", "process", "thread", "ray"] = "auto"
    address: str = Field(default="auto", min_length=1, max_length=200)
    application: str = Field(default="whisperd", min_length=1, max_length=100)
    replicas: int = Field(default=1, ge=1, le=1000)
    at_most: int = Field(default=8, ge=1, le=256)
    timeout: float = Field(default=20.0, gt=0)


class EscalationSettings(Section):
    when: Literal["low-confidence", "always", "never"] = "low-confidence"
    below: float = Field(default=0.72, ge=0, le=1)
    shortest: float = Field(default=2.0, ge=0)

    @property
    def threshold(self) -> float:
        """The value of `Job.ask_teacher_below`."""
        return {"low-confidence": self.below, "always": ALWAYS, "never": NEVER}[self.when]


class PartialSettings(Section):
    interval: float = Field(default=SessionSettings().partial_interval, gt=0)
    first: float = Field(default=SessionSettings().first_partial, gt=0)


class FileSettings(Section):
    long_form: LongFormMethod = "vad"


class SchedulerSettings(Section):
    batch: int = Field(default=8, ge=1)
    backlog: float = Field(default=60.0, gt=0)
    longest_wait: float = Field(default=5.0, gt=0)


class SubscriberSettings(Section):
    queue: int = Field(default=256, ge=8)
    replay: int = Field(default=128, ge=0)
    send_timeout: float = Field(default=2.0, gt=0)

    @model_validator(mode="after")
    def _replay_fits(self) -> SubscriberSettings:
        if self.replay >= self.queue:
            raise ValueError("replay must be smaller than queue, or a replay alone would overflow it")
        return self


def _on_or_off(value: object) -> object:
    """Return the word, because YAML reads `off` as a truth value."""
    return {False: "off", True: "auto", "on": "auto"}.get(value, value) if isinstance(value, bool | str) else value


def _version(value: object) -> object:
    """Return the text, because YAML reads `5` as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _none_is_empty(value: object) -> object:
    """Return the empty text, because YAML reads nothing after a key as null."""
    return "" if value is None else value


_OptionalHost = Annotated[str, BeforeValidator(_none_is_empty)]


MOST_SHOWN = 64
"""Sources that Home Assistant is shown: clients choose their names, and each becomes five entities."""


class MqttSettings(Section):
    host: _OptionalHost = ""
    port: int = Field(default=1883, ge=1, le=65535)
    topic: str = Field(default="whisperd", pattern=_TOPIC)
    client_id: str | None = None
    username: str | None = None
    password: str | None = Field(default=None, repr=False)
    password_file: str | None = None
    tls: bool = False
    ca_file: str | None = None
    certificate: str | None = None
    key: str | None = None
    tls_insecure: bool = False
    version: Annotated[Literal["auto", "5", "3.1.1"], BeforeValidator(_version)] = "auto"
    keepalive: int = Field(default=15, ge=2)  # the client looks at its clock once a second
    queue: int = Field(default=1000, ge=1, le=100_000)  # all of them are in memory as well
    max_age: float = Field(default=86400.0, gt=0)
    spool: Annotated[str, BeforeValidator(_on_or_off), Field(min_length=1)] = "auto"
    discovery: bool = True
    discovery_prefix: str = Field(default="homeassistant", pattern=_TOPIC)
    node_id: str | None = Field(default=None, pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    name: str = Field(default="whisperd", min_length=1)
    sources: tuple[Annotated[_Name, AfterValidator(_name_alone)], ...] = _texts()

    @field_validator("sources")
    @classmethod
    def _all_are_shown(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(names))
        if len(names) > MOST_SHOWN:
            raise ValueError(
                f"has {len(names)} names, but at most {MOST_SHOWN} are shown: leave out the least important"
            )
        return names

    @model_validator(mode="after")
    def _tls(self) -> MqttSettings:
        if self.key is not None and self.certificate is None:
            raise ValueError("key belongs to certificate: set both or neither")
        if not self.tls and (self.ca_file or self.certificate or self.tls_insecure):
            raise ValueError("ca_file, certificate and tls_insecure need tls: true; without it nothing is encrypted")
        return self


class HomeAssistantSettings(Section):
    url: str = Field(default="", pattern=r"^(https?://[^\s/?#]+(/[^\s?#]*)?)?$")
    token: str | None = Field(default=None, repr=False)
    token_file: str | None = None
    weight: float = Field(default=1.0, gt=0, le=GREATEST_WEIGHT)


class WyomingSettings(Section):
    host: _OptionalHost = ""
    port: int = Field(default=10300, ge=0, le=65535)
    source: _Name = "wyoming"
    requires_external_vad: bool = False
    no_speech: float = Field(default=15.0, gt=0)
    longest: float = Field(default=60.0, gt=0)
    timeout: float = Field(default=30.0, gt=0)
    max_clients: int = Field(default=32, ge=1)
    zeroconf: bool = False


class DialectSettings(Section):
    openai: bool = True
    max_upload: int = Field(default=26_214_400, ge=1024)  # what the hosted service takes: 25 MiB
    deepgram: bool = True
    vosk: int | None = Field(default=None, ge=0, le=65535)
    vosk_sample_rate: int = Field(default=8000, ge=8000, le=192000)
    whisperlive: int | None = Field(default=None, ge=0, le=65535)

    @property
    def ports(self) -> dict[str, int]:
        """The ports of the dialects that are wanted and have their own, by name."""
        wanted = {"vosk": self.vosk, "whisperlive": self.whisperlive}
        return {name: port for name, port in wanted.items() if port is not None}


class MicrophoneSettings(Section):
    device: str | int | None = None
    source: _Name
    language: str | None = None
    buffer: float = Field(default=10.0, gt=0)

    @field_validator("language")
    @classmethod
    def _as_clients_may_write_it(cls, language: str | None) -> str | None:
        return language_code(language)


class FirstMicrophoneSettings(MicrophoneSettings):
    enabled: bool = False
    source: _Name = "microphone"


class HealthSettings(Section):
    canary: float = Field(default=10.0, gt=0)
    stall: float = Field(default=60.0, gt=0)


class ShutdownSettings(Section):
    drain: float = Field(default=20.0, gt=0)


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    transcripts: bool = False


def _section_of(settings: type[Any]) -> type[Section]:
    """Return a section with the fields, defaults and checks of a settings dataclass of the stream half."""
    hints = get_type_hints(settings)

    def check(self: Section) -> Section:
        settings(**self.model_dump())
        return self

    keys: dict[str, Any] = {field.name: (hints[field.name], field.default) for field in dataclasses.fields(settings)}
    validators: dict[str, Any] = {"check": cast(Callable[..., Any], model_validator(mode="after")(check))}
    return create_model(settings.__name__, __base__=Section, __validators__=validators, **keys)


class VadSection(_section_of(VadSettings)):  # type: ignore[misc] # its fields are read from the dataclass
    pass


class SegmentSection(_section_of(SegmentSettings)):  # type: ignore[misc] # likewise
    pass


class ConfidenceSection(_section_of(ConfidenceSettings)):  # type: ignore[misc] # likewise
    pass


def vocabulary_in(path: str) -> Vocabulary:
    """Return the phrases of a file with one in each line.

    Raises:
        ValueError: it cannot be read, or a phrase cannot be used.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_VOCABULARY + 1)
        if len(content) > _LARGEST_VOCABULARY:
            raise ValueError(f"the file {path} is larger than {_LARGEST_VOCABULARY} bytes")
        return read_lines(content.decode())
    except OSError as error:
        raise ValueError(f"the file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"the file {path} is not UTF-8 text: save it as UTF-8") from None
    except VocabularyError as error:
        raise ValueError(f"in the file {path}: {error}") from None


def _vocabulary(value: object) -> Vocabulary:
    if isinstance(value, Vocabulary):
        return value
    return vocabulary_in(value) if isinstance(value, str) else read_vocabulary(value)


def _as_written(vocabulary: Vocabulary) -> list[dict[str, object]]:
    return [{"text": phrase.text, "weight": phrase.weight} for phrase in vocabulary.phrases]


_LARGEST_VOCABULARY = 1 << 20

_Phrases = Annotated[
    InstanceOf[Vocabulary],
    BeforeValidator(_vocabulary),
    PlainSerializer(_as_written),
    WithJsonSchema({"type": "array", "default": []}),
]


class SourceSettings(Section):
    vocabulary: _Phrases = Field(default_factory=Vocabulary)
    hangover: float | None = None
    longest: float | None = None
    onset: float | None = None

    def endpointing(self) -> dict[str, float]:
        """Return what differs from the section `segment`, by its keys."""
        wanted = {"hangover": self.hangover, "longest": self.longest, "onset": self.onset}
        return {key: value for key, value in wanted.items() if value is not None}


class Settings(Section):
    server: ServerSettings = ServerSettings()
    models: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    vocabulary: _Phrases = Field(default_factory=Vocabulary)
    sources: dict[_Name, SourceSettings] = Field(default_factory=dict)
    escalate: EscalationSettings = EscalationSettings()
    vad: VadSection = VadSection()
    segment: SegmentSection = SegmentSection()
    confidence: ConfidenceSection = ConfidenceSection()
    partials: PartialSettings = PartialSettings()
    files: FileSettings = FileSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    subscribers: SubscriberSettings = SubscriberSettings()
    mqtt: MqttSettings = MqttSettings()
    home_assistant: HomeAssistantSettings = HomeAssistantSettings()
    wyoming: WyomingSettings = WyomingSettings()
    dialects: DialectSettings = DialectSettings()
    microphone: FirstMicrophoneSettings = FirstMicrophoneSettings()
    microphones: tuple[MicrophoneSettings, ...] = Field(default=(), strict=False)
    health: HealthSettings = HealthSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _teacher_to_ask(self) -> Settings:
        if self.escalate.when == "always" and not self.models.teacher:
            raise ValueError("escalate.when is always, but models.teacher is empty: name a teacher")
        return self

    @model_validator(mode="after")
    def _a_cluster_does_not_sleep(self) -> Settings:
        if self.engine.backend == "ray" and self.models.unload_after is not None:
            raise ValueError(
                "models.unload_after is for models on this machine: with engine.backend ray, set it to null"
            )
        return self

    @model_validator(mode="after")
    def _a_lost_batch_is_no_stall(self) -> Settings:
        if self.engine.backend == "ray" and 2 * self.engine.timeout > self.health.stall:
            raise ValueError(
                f"engine.timeout is {self.engine.timeout:g} s: make it at most half of health.stall "
                f"({self.health.stall:g} s), so that a batch can run again before the service is taken for hanging"
            )
        return self

    @model_validator(mode="after")
    def _sources_can_be_cut(self) -> Settings:
        for name, source in self.sources.items():
            try:
                SegmentSettings(**{**self.segment.model_dump(), **source.endpointing()})
            except ValueError as error:
                raise ValueError(f"sources.{name}: {error}") from None
        return self

    @model_validator(mode="after")
    def _microphones_differ(self) -> Settings:
        names = [each.source for each in self.all_microphones]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"microphones: {', '.join(twice)} is used twice: give each microphone its own source")
        return self

    @property
    def all_microphones(self) -> tuple[MicrophoneSettings, ...]:
        """The microphones that are listened to."""
        return ((self.microphone,) if self.microphone.enabled else ()) + self.microphones

    @property
    def teacher(self) -> str | None:
        """The teacher to load; None where it would never be asked."""
        return self.models.teacher or None if self.escalate.when != "never" else None

    def for_each_device(self) -> list[Settings]:
        """Return a copy of these settings for the engine of each device; a cluster's devices are its own matter."""
        if self.engine.backend == "ray":
            return [self]
        return [
            self.model_copy(update={"models": self.models.model_copy(update={"device": device})})
            for device in self.models.devices
        ]

    def vad_settings(self) -> VadSettings:
        return VadSettings(**self.vad.model_dump())

    def session_settings(self) -> SessionSettings:
        return SessionSettings(
            segment=SegmentSettings(**self.segment.model_dump()),
            confidence=ConfidenceSettings(**self.confidence.model_dump()),
            partial_interval=self.partials.interval,
            first_partial=self.partials.first,
            ask_teacher_below=self.escalate.threshold if self.teacher else NEVER,
            ask_teacher_from=self.escalate.shortest,
        )
