"""One YAML file and the environment -> validated, frozen settings.

Owns the keys, their defaults and the sentences that say what is wrong with a value. The only reader of the
environment. Settings that belong to the stream half are declared there; here they only get their keys.

Precedence: the environment (`WHISPERD_SERVER__PORT=9000`), then the file, then the defaults.
"""

from __future__ import annotations

import codecs
import dataclasses
import difflib
import hashlib
import ipaddress
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_type_hints

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from daemon.access import EVERYTHING
from daemon.dialects.words import language_code, quoted
from daemon.faults import Fault
from daemon.sources import check_name, check_pattern
from streaming.confidence import ConfidenceSettings
from streaming.job import ALWAYS, NEVER
from streaming.segment import SegmentSettings
from streaming.session import SessionSettings
from streaming.vad import VadSettings

PREFIX = "WHISPERD_"
PLACES = (Path("whisperd.yaml"), Path("/etc/whisperd/whisperd.yaml"))
"""Where the file is looked for when none is named; the defaults hold when there is none."""


class ConfigurationError(Exception):
    """One or more sentences, one a line, each beginning with the key's path."""


# --- the keys --------------------------------------------------------------------------------------------------------


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
    """As browsers write it: in small letters, without a path, and without the port that goes without saying."""
    if origin in ("*", "null"):
        return origin
    form = "write https://HOST or https://HOST:PORT, without a path"
    found = _ORIGIN.fullmatch(origin)
    if found is None:
        raise ValueError(f"{origin!r} is no origin: {form}")
    scheme, port = found[1].lower(), int(found[3] or 0)
    if "*" in found[2]:
        raise ValueError(f"{origin!r} fits no page: a * stands for all only alone; name each host")
    host = _host(found[2])
    if not host.isascii():
        raise ValueError(f"browsers may write {origin!r} otherwise: give its host as they send it, as https://xn--...")
    if not host or port > 65535:
        raise ValueError(f"{origin!r} is no origin that a browser sends: {form}")
    return f"{scheme}://{host}" if found[3] is None or (scheme, port) in _DEFAULT_PORTS else f"{scheme}://{host}:{port}"


def _host(host: str) -> str:
    """As browsers send it: "" where they could not, and in letters beyond ASCII where they may not all agree."""
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
    """A host in any script as names of domains are sent; as it was where that is not certain."""
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
            f"{quoted(name)} has a *, which stands for nothing here: name each source, or leave the list empty for all "
            "that are heard"
        )
    return name


_Name = Annotated[str, AfterValidator(_name)]
_Pattern = Annotated[str, AfterValidator(check_pattern)]


def _texts() -> Any:
    # Strict mode takes no list for a tuple, and YAML knows only lists.
    return Field(default=(), strict=False)


class Token(Section):
    """What must be shown, and the sources that whoever shows it may speak as and read."""

    token: str = Field(repr=False)
    send: tuple[_Pattern, ...] = _texts()
    read: tuple[_Pattern, ...] = _texts()

    @field_validator("token")
    @classmethod
    def _can_be_shown(cls, token: str) -> str:
        if not token or not token.isprintable() or " " in token:
            raise ValueError("must be one word: a token is shown in a header or an address")
        return token


def _token(value: object) -> object:
    """A text alone may do everything."""
    if isinstance(value, str):
        return {"token": value, "send": EVERYTHING, "read": EVERYTHING}
    if not isinstance(value, dict | Token):
        raise ValueError(
            "must be a text (in quotes, if it looks like a number) or {token: T, send: [...], read: [...]}"
        )
    return value


class Server(Section):
    host: str = "127.0.0.1"
    port: int = Field(default=8765, ge=0, le=65535)
    tokens: tuple[Annotated[Token, BeforeValidator(_token)], ...] = Field(default=(), strict=False)
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
    def _tls(self) -> Server:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together: give both, or neither")
        return self


class Models(Section):
    student: str = Field(default="tiny-en", min_length=1)
    teacher: str | None = "tiny-en"
    device: str = Field(default="auto", pattern=r"^(auto|(cpu|cuda(:\d+)?)(,(cpu|cuda(:\d+)?))*)$")
    dtype: Literal["auto", "mixed", "float32", "float16", "bfloat16"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    graphs: Literal["auto", "on", "off"] = "auto"
    mode: Literal["fast", "deterministic"] = "fast"

    @field_validator("graphs", mode="before")
    @classmethod
    def _yaml_means_a_word(cls, value: object) -> object:
        """YAML reads a bare on or off as a truth."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @property
    def devices(self) -> tuple[str, ...]:
        """Each has a copy of the models; streams are shared among them."""
        return tuple(self.device.split(","))


class Escalate(Section):
    when: Literal["low-confidence", "always", "never"] = "low-confidence"
    below: float = Field(default=0.72, ge=0, le=1)
    shortest: float = Field(default=2.0, ge=0)

    @property
    def threshold(self) -> float:
        """What `Job.ask_teacher_below` shall be."""
        return {"low-confidence": self.below, "always": ALWAYS, "never": NEVER}[self.when]


class Partials(Section):
    interval: float = Field(default=SessionSettings().partial_interval, gt=0)
    first: float = Field(default=SessionSettings().first_partial, gt=0)


class Scheduler(Section):
    batch: int = Field(default=8, ge=1)
    backlog: float = Field(default=60.0, gt=0)
    longest_wait: float = Field(default=5.0, gt=0)


class Subscribers(Section):
    queue: int = Field(default=256, ge=8)
    replay: int = Field(default=128, ge=0)
    send_timeout: float = Field(default=2.0, gt=0)

    @model_validator(mode="after")
    def _replay_fits(self) -> Subscribers:
        if self.replay >= self.queue:
            raise ValueError("replay must be smaller than queue, or a replay alone would overflow it")
        return self


def _on_or_off(value: object) -> object:
    """YAML reads `off` as a truth value."""
    return {False: "off", True: "auto", "on": "auto"}.get(value, value) if isinstance(value, bool | str) else value


def _version(value: object) -> object:
    """YAML reads `5` as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _none_is_empty(value: object) -> object:
    """YAML reads nothing after a key as null."""
    return "" if value is None else value


_OptionalHost = Annotated[str, BeforeValidator(_none_is_empty)]


MOST_SHOWN = 64
"""Sources that Home Assistant is shown: clients choose their names, and each becomes five entities."""


class Mqtt(Section):
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
                f"has {len(names)} names, and {MOST_SHOWN} are shown at most: leave out what matters least"
            )
        return names

    @model_validator(mode="after")
    def _tls(self) -> Mqtt:
        if self.key is not None and self.certificate is None:
            raise ValueError("key is that of a certificate: give both, or neither")
        if not self.tls and (self.ca_file or self.certificate or self.tls_insecure):
            raise ValueError("ca_file, certificate and tls_insecure need tls: true; without it all goes in the clear")
        return self


class Wyoming(Section):
    host: _OptionalHost = ""
    port: int = Field(default=10300, ge=0, le=65535)
    source: _Name = "wyoming"
    requires_external_vad: bool = False
    no_speech: float = Field(default=15.0, gt=0)
    longest: float = Field(default=60.0, gt=0)
    timeout: float = Field(default=30.0, gt=0)
    max_clients: int = Field(default=32, ge=1)
    zeroconf: bool = False


class Dialects(Section):
    openai: bool = True
    max_upload: int = Field(default=26_214_400, ge=1024)  # what the hosted service takes: 25 MiB
    deepgram: bool = True
    vosk: int | None = Field(default=None, ge=0, le=65535)
    vosk_sample_rate: int = Field(default=8000, ge=8000, le=192000)
    whisperlive: int | None = Field(default=None, ge=0, le=65535)

    @property
    def ports(self) -> dict[str, int]:
        """Of those that have one of their own and are wanted, by their names."""
        wanted = {"vosk": self.vosk, "whisperlive": self.whisperlive}
        return {name: port for name, port in wanted.items() if port is not None}


class AnyMicrophone(Section):
    device: str | int | None = None
    source: _Name
    language: str | None = None
    buffer: float = Field(default=10.0, gt=0)

    @field_validator("language")
    @classmethod
    def _as_clients_may_write_it(cls, language: str | None) -> str | None:
        return language_code(language)


class Microphone(AnyMicrophone):
    enabled: bool = False
    source: _Name = "microphone"


class Health(Section):
    canary: float = Field(default=10.0, gt=0)
    stall: float = Field(default=60.0, gt=0)


class Shutdown(Section):
    drain: float = Field(default=20.0, gt=0)


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    transcripts: bool = False


def _section_of(settings: type[Any]) -> type[Section]:
    """A section with the fields, defaults and checks of a settings dataclass of the stream half."""
    hints = get_type_hints(settings)

    def check(self: Section) -> Section:
        settings(**self.model_dump())
        return self

    keys: dict[str, Any] = {field.name: (hints[field.name], field.default) for field in dataclasses.fields(settings)}
    validators: dict[str, Any] = {"check": cast(Callable[..., Any], model_validator(mode="after")(check))}
    return create_model(settings.__name__, __base__=Section, __validators__=validators, **keys)


class Vad(_section_of(VadSettings)):  # type: ignore[misc] # its fields are read from the dataclass
    pass


class Segment(_section_of(SegmentSettings)):  # type: ignore[misc] # likewise
    pass


class Confidence(_section_of(ConfidenceSettings)):  # type: ignore[misc] # likewise
    pass


class Settings(Section):
    server: Server = Server()
    models: Models = Models()
    escalate: Escalate = Escalate()
    vad: Vad = Vad()
    segment: Segment = Segment()
    confidence: Confidence = Confidence()
    partials: Partials = Partials()
    scheduler: Scheduler = Scheduler()
    subscribers: Subscribers = Subscribers()
    mqtt: Mqtt = Mqtt()
    wyoming: Wyoming = Wyoming()
    dialects: Dialects = Dialects()
    microphone: Microphone = Microphone()
    microphones: tuple[AnyMicrophone, ...] = Field(default=(), strict=False)
    health: Health = Health()
    shutdown: Shutdown = Shutdown()
    log: Log = Log()

    @model_validator(mode="after")
    def _teacher_to_ask(self) -> Settings:
        if self.escalate.when == "always" and not self.models.teacher:
            raise ValueError("escalate.when is always, but models.teacher is empty: name a teacher")
        return self

    @model_validator(mode="after")
    def _microphones_differ(self) -> Settings:
        names = [each.source for each in self.all_microphones]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"microphones: {', '.join(twice)} names more than one: give each a source of its own")
        return self

    @property
    def all_microphones(self) -> tuple[AnyMicrophone, ...]:
        """Those that shall be listened to."""
        return ((self.microphone,) if self.microphone.enabled else ()) + self.microphones

    @property
    def teacher(self) -> str | None:
        """The teacher to load: none where it would never be asked."""
        return self.models.teacher or None if self.escalate.when != "never" else None

    def for_each_device(self) -> list[Settings]:
        """These settings for an engine on each of `models.device`."""
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


# --- where they come from --------------------------------------------------------------------------------------------


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings from `path`, or else from the first of `PLACES` that exists, and the environment.

    Raises:
        ConfigurationError: a file that cannot be read, an unknown key, a value that will not do.
    """
    values = _merge(_read(path or find()), _from_environment(environ))
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        # A value that may be of two types has an error for each: the first says enough.
        first = {_path(each): _sentence(each) for each in reversed(error.errors())}
        raise ConfigurationError("\n".join(reversed(first.values()))) from None


def find() -> Path | None:
    return next((place for place in PLACES if place.is_file()), None)


class _Loader(yaml.SafeLoader):
    """YAML takes the last of two equal keys, and drops the first without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} is there twice, and only one can hold: join the two", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: is not YAML: {_yaml_trouble(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: must hold keys such as server: and models:, and holds {_kind(values)}")
    return values


def _yaml_trouble(error: Exception) -> str:
    """What is wrong and where, without the line itself: it may hold a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    if isinstance(error, yaml.YAMLError):
        return str(error).partition("\n")[0]
    if isinstance(error, UnicodeDecodeError):
        return "it must be UTF-8"
    return "it is nested too deeply" if isinstance(error, RecursionError) else "a date or a number in it is none"


def _kind(value: object) -> str:
    return {bool: "a truth value", int: "a number", float: "a number", str: "a text", list: "a list"}.get(
        type(value), type(value).__name__
    )


_FOREIGN = (
    (r"([A-Z0-9_]+_)?SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)", r".*"),
    (r"([A-Z0-9_]+_)?PORT(_\d+_(TCP|UDP|SCTP))?", r"(tcp|udp|sctp)://.*"),
    (r"([A-Z0-9_]+_)?PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)", r".*"),
    (r"([A-Z0-9_]+_)?NAME", r"/.*"),
    (r"([A-Z0-9_]+_)?ENV_.+", r".*"),
)
"""Names, behind the prefix, and values that Kubernetes sets in each pod beside a Service called whisperd, or
whisperd-something, and docker where containers are linked. Nobody meant a setting by them.
"""


def foreign_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The names with our prefix that are no settings of ours."""
    return sorted(name for name, value in environ.items() if name.startswith(PREFIX) and _is_foreign(name, value))


def _is_foreign(name: str, value: str) -> bool:
    rest = name.removeprefix(PREFIX)
    if rest.partition("__")[2]:
        return False
    return any(re.fullmatch(its, rest) and re.fullmatch(has, value, re.DOTALL) for its, has in _FOREIGN)


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """`WHISPERD_SERVER__PORT=9000` as `{"server": {"port": 9000}}`."""
    values: dict[str, Any] = {}
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or _is_foreign(name, text):
            continue
        section, _, key = name.removeprefix(PREFIX).lower().partition("__")
        if not key:
            raise ConfigurationError(
                f"{name}: environment overrides name a section and a key, such as {PREFIX}SERVER__PORT"
            )
        if section in Settings.model_fields and _section(section) is None:
            raise ConfigurationError(f"{name}: {section} is a list, which only the file can hold")
        if key in values.setdefault(section, {}):
            raise ConfigurationError(f"{name}: {section}.{key} is there twice, in other letters, and only one can hold")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ConfigurationError(f"{name}: must be UTF-8")
        values[section][key] = _scalar(section, key, text)
    return values


def _scalar(section: str, key: str, text: str) -> Any:
    """`text` as YAML reads it, except where the key takes a text: a password may look like a number."""
    annotation = _annotation(section, key)
    if annotation is str:
        return text
    if annotation == (str | None):
        return text or None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text  # validation says what is wrong with it


def _annotation(section: str, key: str) -> Any:
    model = _section(section)
    inner = model.model_fields.get(key) if model else None
    return inner.annotation if inner else None


def _section(name: str) -> type[Section] | None:
    """None where there is none of this name, or a list of sections."""
    field = Settings.model_fields.get(name)
    model = field.annotation if field else None
    return model if isinstance(model, type) and issubclass(model, Section) else None


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`, section by section. An empty section (`server:` and nothing) has its defaults."""
    merged = {key: {} if value is None and key in Settings.model_fields else value for key, value in below.items()}
    for section, keys in above.items():
        under = merged.get(section, {})
        if isinstance(under, dict):  # what is no section is left for validation to name
            merged[section] = {**under, **keys}
    return merged


def unheeded(mqtt: Mqtt, around: Surroundings, environ: Mapping[str, str] = os.environ) -> list[str]:
    """What is there and has no effect, a sentence each."""
    told = []
    if foreign := foreign_variables(environ):
        told.append(f"ignored, for Kubernetes and docker set such variables: {', '.join(foreign)}")
    passwords = {
        "mqtt.password": mqtt.password,
        "mqtt.password_file": mqtt.password_file,
        "the credential mqtt_password": _credential("mqtt_password", around),
    }
    first, *others = [name for name, given in passwords.items() if given is not None] or [""]
    told += [f"{name} is not read: {first} comes before it" for name in others]
    return told


# --- what is wrong ---------------------------------------------------------------------------------------------------


def _parts(error: Any) -> list[str]:
    *above, last = error["loc"] or ("",)
    # Where a value may be of two types, the type that was tried is part of pydantic's location. An unknown key may be
    # called so.
    found = [str(part) for part in above if part not in ("str", "int")]
    return found if last in ("str", "int") and error["type"] != "extra_forbidden" else [*found, str(last)]


def _path(error: Any) -> str:
    return ".".join(_parts(error))


def _sentence(error: Any) -> str:
    """One of pydantic's errors as a sentence that begins with the key's path."""
    path = _path(error)
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key{_nearest(_parts(error))}"
    # A secret must not get into the log by way of a slip in its own key.
    got = f", got {_kind(error['input']) if _may_be_secret(path, error['input']) else repr(error['input'])}"
    match error["type"]:
        case "value_error":
            return f"{path}: {error['ctx']['error']}" if path else str(error["ctx"]["error"])
        case "literal_error":
            return f"{path}: must be {error['ctx']['expected']}{got}"
        case "missing":
            return f"{path}: is missing"
        case "model_type":
            return f"{path}: must be a section with keys of its own{got}"
        case "string_type":
            hint = ": put it in quotes" if isinstance(error["input"], int | float) else ""
            return f"{path}: must be a text{got}{hint}"
        case "tuple_type":
            return f"{path}: must be a list{got}"
        case "string_pattern_mismatch":
            return f"{path}: {_PATTERNS.get(path, 'has a form that will not do')}{got}"
    return f"{path}: {error['msg'].replace('Input should be', 'must be')}{got}"


def _may_be_secret(path: str, value: object) -> bool:
    whole_section = "." not in path and not isinstance(value, int | float)
    return whole_section or path == "mqtt.password" or path.startswith("server.tokens.") or path == "server.tokens"


_TOPIC_RULE = "must be a topic without + and #, and must neither begin nor end with /"
_PATTERNS = {
    "models.device": "must be auto, cpu, cuda:N, or several: cuda:0,cuda:1",
    "mqtt.topic": _TOPIC_RULE,
    "mqtt.discovery_prefix": _TOPIC_RULE,
    "mqtt.node_id": "must be 1..64 of the letters a-z and A-Z, digits, _ and -",
}


def _sections() -> dict[str, type[Section]]:
    """Of a list of sections, what each of them is."""
    types = {name: (field.annotation, *get_args(field.annotation)) for name, field in Settings.model_fields.items()}
    return {
        name: next(each for each in found if isinstance(each, type) and issubclass(each, Section))
        for name, found in types.items()
    }


def _nearest(parts: Sequence[str]) -> str:
    """What may have been meant: the key of this name in another place, the likest in the same one, or else all."""
    *above, key = parts
    sections = _sections()
    section, dot, inner = key.partition(".")
    if not above and dot and section in sections and inner in sections[section].model_fields:
        return f": a dot makes no section: write {section}: {{{inner}: ...}}"
    namesakes = [f"{name}.{key}" for name, section in sections.items() if key in section.model_fields]
    known = list(sections[above[0]].model_fields if above else sections)
    if above[:2] == ["server", "tokens"]:
        known, namesakes = list(Token.model_fields), []
    likest = [".".join([*above, near]) for near in difflib.get_close_matches(key, known, n=1, cutoff=0.5)]
    if meant := likest[:1] if above and likest else namesakes[:1] or likest:
        return f"; did you mean {meant[0]}?"
    return f"; known are {', '.join(known)}"


# --- the rest of the environment -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Surroundings:
    """What a service manager tells through the environment.

    notify_socket: where sd_notify's messages go. watchdog: seconds within which it wants a sign of life.
    credentials: the directory with the service's secrets. state: the directory for what outlives the process; it may
    not be there yet. sockets: descriptors of ports that it listens on for us. journal: device and inode of the stream
    that leads into the journal.
    """

    notify_socket: str | None = None
    watchdog: float | None = None
    credentials: Path | None = None
    state: Path | None = None
    sockets: tuple[int, ...] = ()
    journal: str | None = None


_FIRST_SOCKET = 3
"""The first descriptor that a service manager hands over (sd_listen_fds(3))."""


def surroundings(environ: Mapping[str, str] = os.environ) -> Surroundings:
    directory = environ.get("CREDENTIALS_DIRECTORY")
    period = environ.get("WATCHDOG_USEC", "")
    # Set for another process: a wrapper's, not ours.
    ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    number = environ.get("LISTEN_FDS", "")
    handed = int(number) if environ.get("LISTEN_PID") == str(os.getpid()) and number.isdigit() else 0
    return Surroundings(
        notify_socket=environ.get("NOTIFY_SOCKET") or None,
        watchdog=int(period) / 1e6 if ours and period.isdigit() and int(period) > 0 else None,
        credentials=Path(directory) if directory else None,
        state=_state_directory(environ),
        sockets=tuple(range(_FIRST_SOCKET, _FIRST_SOCKET + handed)),
        journal=environ.get("JOURNAL_STREAM") or None,
    )


def _state_directory(environ: Mapping[str, str]) -> Path | None:
    """The service manager's, of which there may be several, or else the user's own."""
    if given := environ.get("STATE_DIRECTORY"):
        return Path(given.partition(":")[0])
    if base := environ.get("XDG_STATE_HOME"):
        return Path(base) / "whisperd"
    home = environ.get("HOME")
    return Path(home) / ".local" / "state" / "whisperd" if home else None


def user_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where this user keeps settings, as systemd's user manager has it too."""
    return Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def mqtt_spool(mqtt: Mqtt, around: Surroundings) -> Path | None:
    """The file in which what waits for the broker outlives the process; None: nowhere.

    A file for each broker and topic: what was meant for one house is not told to another, and two daemons of one user
    do not share one.
    """
    if mqtt.spool == "off":
        return None
    if mqtt.spool != "auto":
        return Path(mqtt.spool)
    name = hashlib.sha256(f"{mqtt.host}:{mqtt.port}/{mqtt.topic}".encode()).hexdigest()[:12]
    return around.state / f"mqtt-{name}.sqlite" if around.state else None


def with_tokens(settings: Settings, around: Surroundings) -> Settings:
    """`settings` with all tokens in `server.tokens`: those of the file and of the credential `server_tokens` too.

    Raises:
        ConfigurationError: the file cannot be read, everybody may read it, or a line of it will not do.
    """
    server, tokens = settings.server, list(settings.server.tokens)
    if server.tokens_file is not None:
        if trouble := secret_trouble("server.tokens_file", Path(server.tokens_file)):
            raise ConfigurationError(trouble)
        tokens += _tokens_in("server.tokens_file", Path(server.tokens_file))
    credential = _credential("server_tokens", around)
    if credential is not None:
        tokens += _tokens_in("the credential server_tokens", credential)
    return settings.model_copy(update={"server": server.model_copy(update={"tokens": tuple(tokens)})})


_LARGEST_SECRET = 1 << 20


def _secret_text(key: str, path: Path) -> str:
    """What a file with secrets holds, wherever it was written: Windows puts a byte order mark in front.

    Raises:
        ConfigurationError: it cannot be read, or is no text.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_SECRET + 1)
        if len(content) > _LARGEST_SECRET:
            raise ConfigurationError(f"{key}: {path}: is larger than {_LARGEST_SECRET} bytes: is it the right file?")
        text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8: save it again as UTF-8"
        raise ConfigurationError(f"{key}: {path}: {reason}") from None
    if "\0" in text:
        raise ConfigurationError(f"{key}: {path}: is no text: save it again as UTF-8")
    return text


def _tokens_in(key: str, path: Path) -> Iterator[Token]:
    """One a line, as in `server.tokens`: a word, or {token: T, send: [...], read: [...]}."""
    for number, line in enumerate(_secret_text(key, path).splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            yield Token.model_validate(_token(yaml.safe_load(text) if text.startswith("{") else text))
        except (ValueError, yaml.YAMLError) as error:
            raise ConfigurationError(f"{key}: {path}, line {number}: {_line_trouble(error)}") from None


def _line_trouble(error: Exception) -> str:
    """What is wrong with a line of such a file, without anything of it: it holds a secret."""
    for each in error.errors() if isinstance(error, ValidationError) else ():
        if each["loc"][:1] in (("send",), ("read",)) and each["type"] == "value_error":  # of `check_pattern`
            return _sentence(each)
    return "must be one word, or {token: T, send: [...], read: [...]}"


def secret_trouble(key: str, path: Path) -> str | None:
    """Why the file with a secret that `key` names will not do; None if only those may read it who should."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        return f"{key}: {path}: {getattr(error, 'strerror', None) or error}: create it, or mend the path"
    if mode & stat.S_IROTH:
        return f"{key}: everybody may read {path}: chmod o= {path}"
    return None if os.access(path, os.R_OK) else f"{key}: this user may not read {path}: chown it"


def secret_files(settings: Settings) -> dict[str, Path]:
    """The files with secrets that the settings name, by their keys."""
    server, mqtt = settings.server, settings.mqtt
    named = {
        "server.tokens_file": server.tokens_file,
        "server.key": server.key,
        "mqtt.key": mqtt.key,
        "mqtt.password_file": mqtt.password_file,
    }
    return {key: Path(path) for key, path in named.items() if path is not None}


def mqtt_password(mqtt: Mqtt, around: Surroundings) -> str | None:
    """The broker's password: as given, from the file named, or the credential `mqtt_password`.

    Raises:
        ConfigurationError: the file named cannot be read, or holds none.
    """
    if mqtt.password is not None:
        return mqtt.password
    if mqtt.password_file is not None:
        return _password_in("mqtt.password_file", Path(mqtt.password_file))
    credential = _credential("mqtt_password", around)
    return _password_in("the credential mqtt_password", credential) if credential is not None else None


def _credential(name: str, around: Surroundings) -> Path | None:
    """The file of one that the service manager hands over, if it does."""
    file = around.credentials / name if around.credentials else None
    return file if file is not None and file.is_file() else None


def _password_in(key: str, path: Path) -> str:
    password = _secret_text(key, path).strip()
    if not password:
        raise ConfigurationError(f"{key}: {path}: is empty: write the password into it")
    return password
