"""Settings: the file, the environment, and the sentences."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from daemon.common.errors import ConfigurationError
from daemon.settings import load as loading
from daemon.settings.environment import ServiceEnvironment, mqtt_spool, service_environment
from daemon.settings.load import load, unheeded
from daemon.settings.schema import MqttSettings, Settings, Token
from daemon.settings.secrets import mqtt_password, with_tokens
from streaming.job import ALWAYS, NEVER, Phrase, Vocabulary
from streaming.session import SessionSettings
from streaming.vad import VadSettings

SHIPPED = Path(__file__).parent.parent.parent.parent / "config" / "whisperd.yaml"
CONTRACT: dict[str, dict[str, Any]] = {
    "server": {"host": "127.0.0.1", "port": 8765},
    "models": {"student": "tiny-en", "teacher": "tiny-en", "device": "auto"},
    "escalate": {"when": "low-confidence"},
    "mqtt": {"host": "", "port": 1883, "topic": "whisperd"},
    "microphone": {"enabled": False, "device": None, "source": "microphone"},
}


def complaint(text: str, tmp_path: Path, **environ: str) -> str:
    path = tmp_path / "whisperd.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load(path, environ)
    return str(caught.value)


def leaves(model: BaseModel) -> list[tuple[str, str]]:
    return [
        (section, key)
        for section in type(model).model_fields
        if isinstance(getattr(model, section), BaseModel)  # a list of sections has no keys
        for key in type(getattr(model, section)).model_fields
    ]


def test_the_shipped_file_equals_the_defaults() -> None:
    assert yaml.safe_load(SHIPPED.read_text()) == Settings().model_dump(mode="json")
    assert load(SHIPPED, {}) == Settings()


def test_every_key_of_the_shipped_file_has_a_comment() -> None:
    above = ""
    for line in SHIPPED.read_text().splitlines():
        if line.startswith("  ") and not line.strip().startswith("#"):
            # Its own, or that of the section above it.
            assert "#" in line or above, line
        above = "" if not line else above or line.partition("#")[2]


def test_the_keys_that_others_rely_on() -> None:
    defaults = Settings().model_dump()
    for section, keys in CONTRACT.items():
        assert keys.items() <= defaults[section].items()


def test_no_file_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PLACES", (tmp_path / "whisperd.yaml",))
    assert load(None, {}) == Settings()
    (tmp_path / "whisperd.yaml").write_text("server: {port: 1}")
    assert load(None, {}).server.port == 1


def test_an_empty_file_and_an_empty_section_hold_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "whisperd.yaml"
    for text in ("", "# nothing\n", "server:\nmqtt:\n", "vocabulary:\nsources:\n"):
        path.write_text(text)
        assert load(path, {}) == Settings()


def test_the_environment_is_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "whisperd.yaml"
    path.write_text("server: {host: 0.0.0.0, port: 1}")
    environ = {
        "WHISPERD_SERVER__PORT": "9000",
        "WHISPERD_SERVER__TOKENS": "[a, b]",
        "WHISPERD_MQTT__PASSWORD": "0123",
        "WHISPERD_MQTT__TLS": "true",
        "WHISPERD_MICROPHONE__DEVICE": "2",
        "WHISPERD_MODELS__TEACHER": "",
        "WHISPERD_SEGMENT__HANGOVER": "0.4",
        "PATH": "/bin",
    }
    settings = load(path, environ)
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 9000)
    assert settings.server.tokens == tuple(Token(token=text, send=("*",), read=("*",)) for text in "ab")
    assert (settings.mqtt.password, settings.mqtt.tls) == ("0123", True)
    assert settings.microphone.device == 2
    assert settings.models.teacher is None
    assert settings.session_settings().segment.hangover == 0.4


@pytest.mark.parametrize(("written", "meant"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("'on'", "on")])
def test_graphs_are_on_or_off_as_one_writes_it(tmp_path: Path, written: str, meant: str) -> None:
    file = tmp_path / "whisperd.yaml"
    file.write_text(f"models: {{graphs: {written}}}")
    assert load(file, {}).models.graphs == meant


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("server: {prot: 1}", "server.prot: unknown key; did you mean server.port?"),
        ("segment: {hangovr: 1}", "segment.hangovr: unknown key; did you mean segment.hangover?"),
        ("port: 1", "port: unknown key; did you mean server.port?"),
        ("sever: {port: 1}", "sever: unknown key; did you mean server?"),
        ("server.port: 1", "server.port: unknown key: a dot does not make a section: write server: {port: ...}"),
        ("servr.port: 1", "servr.port: unknown key; did you mean server?"),
        ("str: 1", "str: unknown key; known are server, models"),
        (".: 1", ".: unknown key; known are server, models"),
        ("server: {a.b.c: 1}", "server.a.b.c: unknown key; known are host, port"),
        ("log: {zzz: 1}", "log.zzz: unknown key; known are level, format, transcripts"),
        ("server: {port: 70000}", "server.port: must be less than or equal to 65535, got 70000"),
        ("server: {port: true}", "server.port: must be a valid integer, got True"),
        ("server: 3", "server: must be a section with its own keys, got 3"),
        ("mqtt: {password: 12}", "mqtt.password: must be a string, got a number: put it in quotes"),
        (
            "mqtt: {topic: 'a/#'}",
            "mqtt.topic: must be a topic without + and #, and must neither begin nor end with /, got 'a/#'",
        ),
        (
            "models: {device: gpu}",
            "models.device: must be auto, cpu, cuda:N, or several: cuda:0,cuda:1, got 'gpu'",
        ),
        ("mqtt: {discovery_prefix: '#'}", "mqtt.discovery_prefix: must be a topic without + and #"),
        ("mqtt: {node_id: a b}", "mqtt.node_id: must be 1..64 of the letters a-z and A-Z, digits, _ and -, got 'a b'"),
        ("mqtt: {version: 4}", "mqtt.version: must be 'auto', '5' or '3.1.1', got '4'"),
        ("mqtt: {ca_file: a.pem}", "mqtt: ca_file, certificate and tls_insecure need tls: true"),
        ("mqtt: {tls: true, key: a.pem}", "mqtt: key belongs to certificate"),
        (
            "escalate: {when: sometimes}",
            "escalate.when: must be 'low-confidence', 'always' or 'never', got 'sometimes'",
        ),
        ("escalate: {when: always}\nmodels: {teacher: null}", "escalate.when is always, but models.teacher is empty"),
        ("server: {tokens: secret}", "server.tokens: must be a list, got a string"),
        (
            "server: {tokens: [12]}",
            "server.tokens.0: must be a string (in quotes, if it looks like a number) or {token: T",
        ),
        ("server: {tokens: [two words]}", "server.tokens.0.token: must be one word"),
        ("server: {tokens: ['']}", "server.tokens.0.token: must be one word"),
        (
            "server: {tokens: [a, {token: secret, sned: [b]}]}",
            "server.tokens.1.sned: unknown key; did you mean server.tokens.1.send?",
        ),
        ("server: {tokens: [{token: secret, send: b}]}", "server.tokens.0.send: must be a list, got a string"),
        ("server: {certificate: a.pem}", "server: certificate and key belong together"),
        ("subscribers: {replay: 300}", "subscribers: replay must be smaller than queue"),
        ("segment: {longest: 99}", "segment: longest must be at least"),
        (
            "microphones: [{source: a, devcie: 1}]",
            "microphones.0.devcie: unknown key; did you mean microphones.0.device?",
        ),
        ("microphones: [{device: 1}]", "microphones.0.source: is missing"),
        ("microphones: [{source: a/b}]", "microphones.0.source: source must be 1..64 printable characters without"),
        ("microphone: {source: ''}", "microphone.source: source must be 1..64 printable characters"),
        (
            "microphones: [{source: a}, {source: a}]",
            "microphones: a is used twice: give each microphone its own source",
        ),
        (
            "microphone: {enabled: true}\nmicrophones: [{source: microphone}]",
            "microphones: microphone is used twice",
        ),
        (
            "vocabulary: [a, {text: b, weight: 99}]",
            "vocabulary: phrase 2: a phrase's weight must be above 0 and at most",
        ),
        ("vocabulary: nowhere.txt", "vocabulary: the file nowhere.txt cannot be read: No such file or directory"),
        ("vocabulary: 3", "vocabulary: a vocabulary must be a list of phrases, such as"),
        ("sources: {kitchen: {vocabulary: [1]}}", "sources.kitchen.vocabulary: phrase 1 must be a string"),
        ("sources: {kitchen: {vocabulry: []}}", "sources.kitchen.vocabulry: unknown key"),
        ("sources: {a/b: {}}", "sources"),
        ("sources: {a: {longest: 2}}", "sources.a: longest must be at least"),
        ("sources: {a: {hangover: -1}}", "sources.a: hangover must be 0 or more seconds"),
        ("vad: {aggressiveness: 7}", "vad: aggressiveness must be 0..3, got 7"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence_with_the_key(text: str, sentence: str, tmp_path: Path) -> None:
    said = complaint(text, tmp_path)
    assert said.startswith(sentence)
    assert "secret" not in said
    assert "\n" not in said


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    said = complaint("server: {prot: 1, port: x}\nmicrophone: {device: [1]}", tmp_path).splitlines()
    assert sorted(line.partition(":")[0] for line in said) == ["microphone.device", "server.port", "server.prot"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "is not YAML" in complaint("a: [", tmp_path)
    assert "must have keys" in complaint("- 1", tmp_path)
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        load(tmp_path / "nowhere.yaml", {})


def test_a_bad_override_is_said_like_a_bad_key(tmp_path: Path) -> None:
    assert complaint("", tmp_path, WHISPERD_SERVER__PRT="1").startswith("server.prt: unknown key; did you mean")
    assert complaint("", tmp_path, WHISPERD_SRVER__PORT="1").startswith("srver: unknown key; did you mean server?")
    assert complaint("", tmp_path, WHISPERD_PORT="1").startswith("WHISPERD_PORT: an environment override must name")
    assert complaint("", tmp_path, WHISPERD_SERVER__PORT="[").startswith("server.port: must be")


@given(st.sampled_from(leaves(Settings())))
def test_every_key_can_be_overridden(leaf: tuple[str, str]) -> None:
    section, key = leaf
    default = getattr(getattr(Settings(), section), key)
    text = "" if default is None else yaml.safe_dump(default, default_flow_style=True).removesuffix("...\n").strip()
    text = default if isinstance(default, str) else text
    assert load(SHIPPED, {f"WHISPERD_{section}__{key}".upper(): text}) == Settings()


def test_the_stream_half_gets_what_is_written(tmp_path: Path) -> None:
    escalate = Settings().escalate
    expected = SessionSettings(ask_teacher_below=escalate.below, ask_teacher_from=escalate.shortest)
    assert Settings().session_settings() == expected
    assert Settings().vad_settings() == VadSettings()


def test_what_a_cluster_cannot_do_and_what_a_stall_must_leave_room_for(tmp_path: Path) -> None:
    sleeping = complaint("engine: {backend: ray}\nmodels: {unload_after: 15m}", tmp_path)
    assert "models.unload_after is for models on this machine" in sleeping
    slow = complaint("engine: {backend: ray, timeout: 45}", tmp_path)
    assert "engine.timeout is 45 s: make it at most half of health.stall (60 s)" in slow
    assert Settings.model_validate({"engine": {"backend": "ray"}}).for_each_device()[0].engine.backend == "ray"


@pytest.mark.parametrize(
    ("escalate", "teacher", "loaded", "below"),
    [
        ({"when": "never"}, "tiny-en", None, NEVER),
        ({"when": "always"}, "tiny-en", "tiny-en", ALWAYS),
        ({"below": 0.5}, "tiny-en", "tiny-en", 0.5),
        ({"below": 0.5}, None, None, NEVER),
    ],
)
def test_when_the_teacher_is_asked(
    escalate: dict[str, Any], teacher: str | None, loaded: str | None, below: float
) -> None:
    settings = Settings.model_validate({"escalate": escalate, "models": {"teacher": teacher}})
    assert settings.teacher == loaded
    assert settings.session_settings().ask_teacher_below == below


def test_which_microphones_are_listened_to() -> None:
    more = {"microphones": [{"source": "kitchen", "device": "USB"}, {"source": "desk", "device": 3}]}
    assert Settings().all_microphones == ()
    assert [each.source for each in Settings.model_validate(more).all_microphones] == ["kitchen", "desk"]
    both = Settings.model_validate({**more, "microphone": {"enabled": True}})
    assert [each.source for each in both.all_microphones] == ["microphone", "kitchen", "desk"]
    assert [each.device for each in both.all_microphones] == [None, "USB", 3]


def test_the_brokers_password_and_where_it_may_come_from(tmp_path: Path) -> None:
    (tmp_path / "mqtt_password").write_text("from systemd\n")
    (tmp_path / "file").write_text("from a file\n")
    environment = ServiceEnvironment(credentials=tmp_path)
    assert mqtt_password(MqttSettings(), ServiceEnvironment()) is None
    assert mqtt_password(MqttSettings(), environment) == "from systemd"
    assert mqtt_password(MqttSettings(password_file=str(tmp_path / "file")), environment) == "from a file"
    assert mqtt_password(MqttSettings(password="written"), environment) == "written"
    with pytest.raises(ConfigurationError, match=r"mqtt\.password_file: .*nowhere: No such file"):
        mqtt_password(MqttSettings(password_file=str(tmp_path / "nowhere")), environment)


FILE = """
# The house.
everything

  {token: porch, send: [porch], read: ["porch-*"]}  # the door
"""
THREE = (
    Token(token="listed", send=("*",), read=("*",)),
    Token(token="everything", send=("*",), read=("*",)),
    Token(token="porch", send=("porch",), read=("porch-*",)),
)


def test_tokens_and_where_they_may_come_from(tmp_path: Path) -> None:
    file = tmp_path / "server_tokens"
    file.write_text(FILE)
    file.chmod(0o640)
    listed = Settings.model_validate({"server": {"tokens": ["listed"]}})
    named = Settings.model_validate({"server": {"tokens": ["listed"], "tokens_file": str(file)}})
    assert with_tokens(listed, ServiceEnvironment()) == listed
    assert with_tokens(named, ServiceEnvironment()).server.tokens == THREE
    assert with_tokens(listed, ServiceEnvironment(credentials=tmp_path)).server.tokens == THREE


@pytest.mark.parametrize(
    ("text", "mode", "sentence"),
    [
        ("good\n", 0o644, "server.tokens_file: everybody may read {file}: chmod o= {file}"),
        ("good\nsecret two\n", 0o600, "server.tokens_file: {file}, line 2: must be one word, or {{token: T"),
        ("{token: secret\n", 0o600, "server.tokens_file: {file}, line 1: must be one word"),
        ("{token: secret, all: true}\n", 0o600, "server.tokens_file: {file}, line 1: must be one word"),
        ("", None, "server.tokens_file: {file}: No such file or directory: create it, or correct the path"),
    ],
)
def test_a_file_of_tokens_that_will_not_do(text: str, mode: int | None, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    if mode is not None:
        file.write_text(text)
        file.chmod(mode)
    with pytest.raises(ConfigurationError) as caught:
        with_tokens(Settings.model_validate({"server": {"tokens_file": str(file)}}), ServiceEnvironment())
    assert str(caught.value).startswith(sentence.format(file=file))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["server: {tokens: [secret}", "secret", "- secret", "server: {tokens: [&secret]}", "server: [secret]"]
)
def test_a_broken_file_does_not_tell_its_secrets(text: str, tmp_path: Path) -> None:
    assert "secret" not in complaint(text, tmp_path)


def test_settings_that_are_printed_do_not_tell_their_secrets() -> None:
    settings = Settings.model_validate({"server": {"tokens": ["secret"]}, "mqtt": {"password": "secret"}})
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("environ", "state"),
    [
        ({}, None),
        ({"HOME": "/home/a"}, "/home/a/.local/state/whisperd"),
        ({"HOME": "/home/a", "XDG_STATE_HOME": "/s"}, "/s/whisperd"),
        ({"HOME": "/home/a", "XDG_STATE_HOME": "/s", "STATE_DIRECTORY": "/var/lib/w:/var/lib/x"}, "/var/lib/w"),
    ],
)
def test_the_state_directory(environ: dict[str, str], state: str | None) -> None:
    assert service_environment(environ).state == (Path(state) if state else None)


def test_where_finals_wait_for_the_broker(tmp_path: Path) -> None:
    environment = ServiceEnvironment(state=tmp_path)
    assert mqtt_spool(MqttSettings(spool="off"), environment) is None
    assert mqtt_spool(MqttSettings(), ServiceEnvironment()) is None
    assert mqtt_spool(MqttSettings(spool="/s/q.sqlite"), ServiceEnvironment()) == Path("/s/q.sqlite")
    one, other = (mqtt_spool(MqttSettings(host=host), environment) for host in ("a", "b"))
    assert one is not None
    assert other is not None
    assert one.parent == tmp_path
    assert one != other  # what was meant for one house is not told to another
    assert mqtt_spool(MqttSettings(host="a", keepalive=5), environment) == one


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("spool: off", "spool", "off"),
        ("spool: on", "spool", "auto"),
        ("version: 5", "version", "5"),
        ("version: 3.1.1", "version", "3.1.1"),
    ],
)
def test_words_that_yaml_reads_as_something_else(text: str, key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "whisperd.yaml"
    path.write_text(f"mqtt: {{{text}}}")
    assert getattr(load(path, {}).mqtt, key) == value
    name, _, word = text.partition(": ")
    assert getattr(load(path, {f"WHISPERD_MQTT__{name.upper()}": word}).mqtt, key) == value


@pytest.mark.parametrize("section", ["mqtt", "wyoming"])
def test_no_host_may_be_written_as_nothing(section: str, tmp_path: Path) -> None:
    path = tmp_path / "whisperd.yaml"
    for host in ("", "null", '""'):
        path.write_text(f"{section}:\n  host: {host}\n")
        assert getattr(load(path, {}), section).host == ""
    path.write_text(f"{section}: {{host: elsewhere}}")
    assert getattr(load(path, {f"WHISPERD_{section.upper()}__HOST": ""}), section).host == ""


def test_what_a_service_manager_tells() -> None:
    told = service_environment(
        {
            "NOTIFY_SOCKET": "@n",
            "WATCHDOG_USEC": "30000000",
            "WATCHDOG_PID": str(os.getpid()),
            "CREDENTIALS_DIRECTORY": "/c",
        }
    )
    assert told == ServiceEnvironment("@n", 30.0, Path("/c"))
    assert service_environment({}) == ServiceEnvironment()
    assert service_environment({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}).watchdog is None


# --- nothing is dropped in silence ------------------------------------------------------------------------------------


def test_what_others_set_beside_a_service_of_our_name_is_none_of_ours() -> None:
    """Kubernetes in every pod, docker where containers are linked."""
    theirs = {
        "WHISPERD_PORT": "tcp://10.0.0.1:8765",
        "WHISPERD_SERVICE_HOST": "10.0.0.1",
        "WHISPERD_SERVICE_PORT": "8765",
        "WHISPERD_SERVICE_PORT_HTTP": "8765",
        "WHISPERD_PORT_8765_TCP": "tcp://10.0.0.1:8765",
        "WHISPERD_PORT_8765_TCP_PROTO": "tcp",
        "WHISPERD_PORT_8765_TCP_PORT": "8765",
        "WHISPERD_PORT_8765_TCP_ADDR": "10.0.0.1",
        "WHISPERD_SERVER_SERVICE_HOST": "10.0.0.1",
        "WHISPERD_SERVER_PORT": "tcp://10.0.0.1:8765",
        "WHISPERD_NAME": "/page/whisperd",
        "WHISPERD_ENV_PATH": "/bin",
    }
    environ = {**theirs, "WHISPERD_SERVER__PORT": "9000", "PORT": "tcp://10.0.0.1:8765"}
    assert load(None, environ).server.port == 9000
    (told,) = unheeded(MqttSettings(), ServiceEnvironment(), environ)
    assert told.partition(": ")[2].split(", ") == sorted(theirs)


def test_all_that_is_ours_has_an_effect() -> None:
    assert unheeded(MqttSettings(), ServiceEnvironment(), {"WHISPERD_SERVER__PORT": "9000", "PATH": "/bin"}) == []


def test_a_password_behind_another_is_named(tmp_path: Path) -> None:
    (tmp_path / "mqtt_password").write_text("from systemd")
    environment = ServiceEnvironment(credentials=tmp_path)
    file, both = (
        MqttSettings(password_file="/etc/password"),
        MqttSettings(password="written", password_file="/etc/password"),
    )
    assert unheeded(MqttSettings(), environment, {}) == []
    assert unheeded(file, ServiceEnvironment(), {}) == []
    credential = "the credential mqtt_password is not used"
    assert unheeded(file, environment, {}) == [f"{credential}: mqtt.password_file takes precedence"]
    assert unheeded(both, environment, {}) == [
        "mqtt.password_file is not used: mqtt.password takes precedence",
        f"{credential}: mqtt.password takes precedence",
    ]


@pytest.mark.parametrize("text", ["", "microphones: [{source: kitchen}]"])
def test_a_list_cannot_be_overridden(text: str, tmp_path: Path) -> None:
    said = complaint(text, tmp_path, WHISPERD_MICROPHONES__SOURCE="attic")
    assert said == "WHISPERD_MICROPHONES__SOURCE: microphones is a list, and can only be set in the file"


@pytest.mark.parametrize("text", ["9" * 5000, "2024-99-99", "[" * 3000])
def test_what_yaml_chokes_on_in_the_environment_is_no_number(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^(WHISPERD_SERVER__PORT|server\.port)"):
        load(None, {"WHISPERD_SERVER__PORT": text})


@pytest.mark.parametrize("key", ["MQTT__PASSWORD", "MQTT__USERNAME", "SERVER__PORT"])
def test_an_environment_that_is_not_utf8_is_named(key: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^WHISPERD_{key}: must be UTF-8$"):
        load(None, {f"WHISPERD_{key}": b"ge\xe9heim".decode("utf-8", "surrogateescape")})


def test_one_key_in_two_spellings_of_the_environment() -> None:
    with pytest.raises(ConfigurationError, match=r"^WHISPERD_server__port: server\.port is set twice"):
        load(None, {"WHISPERD_SERVER__PORT": "1", "WHISPERD_server__port": "2"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("WHISPERD_PORT", "9000"), ("WHISPERD_SERVER_PORT", "9000"), ("WHISPERD_NAME", "x"), ("WHISPERD_X", "")],
)
def test_what_may_have_been_meant_for_us_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(None, {name: value})
    assert str(caught.value).startswith(f"{name}: an environment override must name a section and a key")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("server: {port: 1}\nserver: {host: a}", "line 2, column 1: server appears twice"),
        ("server: {port: 1, port: 2}", "line 1, column 19: port appears twice"),
        (
            "mqtt: {topic: home/ears/}",
            "mqtt.topic: must be a topic without + and #, and must neither begin nor end with /",
        ),
        ("mqtt: {discovery_prefix: ha/}", "mqtt.discovery_prefix: must be a topic"),
        (
            "server: {origins: ['https://a/page']}",
            "server.origins: 'https://a/page' is not an origin: write https://HOST",
        ),
        ("server: {origins: [a.example]}", "server.origins: 'a.example' is not an origin"),
        ("server: {origins: ['https://u@a']}", "is not an origin"),
        (
            "server: {origins: ['https://*.a.example']}",
            "matches no page: only a * by itself stands for all pages; name each host",
        ),
        ("server: {origins: ['https://.a.example']}", "is not an origin that a browser sends: write https://HOST"),
        ("server: {origins: ['https://a:65536']}", "is not an origin that a browser sends"),
        ("server: {origins: ['https://10.0.0.256']}", "is not an origin that a browser sends"),
        ("server: {origins: ['https://[::1::]']}", "is not an origin that a browser sends"),
        ("server: {origins: ['https://k%C3%BCche.example']}", "is not an origin that a browser sends"),
        (
            "server: {origins: ['https://straße.example']}",
            "browsers may write 'https://straße.example' differently: give the host as they send it, such as https://xn--...",
        ),
        ("server: {origins: ['https://ü..example']}", "browsers may write"),
        ("server: {origins: ['https://a\u3002example']}", "browsers may write"),
        ("mqtt: {sources: [hall, a/b]}", "mqtt.sources.1: source must be 1..64 printable characters without any of"),
        ("mqtt: {sources: ['']}", "mqtt.sources.0: source must be 1..64 printable characters"),
        (
            "mqtt: {sources: ['kitchen-*']}",
            "mqtt.sources.0: 'kitchen-*' contains a *, which means nothing here: name each source, or leave the list "
            "empty for all that are heard",
        ),
        ("wyoming: {source: a/b}", "wyoming.source: source must be 1..64 printable characters without any of"),
        (
            "server: {tokens: [{token: t, send: [hall, 'kitchen/*']}]}",
            "server.tokens.0.send.1: not a valid source name: it must be 1..64 printable characters without any",
        ),
        ("server: {tokens: [{token: t, read: ['* ']}]}", "server.tokens.0.read.0: not a valid source name"),
        ("server: {port: {{ whisperd_port }}}", "is not YAML: line 1, column 17: found unhashable key"),
        ("mqtt: {topic: 2024-99-99}", "is not YAML: a date or a number in it is invalid"),
        ("server: {port: " + "9" * 5000 + "}", "is not YAML: a date or a number in it is invalid"),
        ("server: " + "[" * 3000, "is not YAML: it is nested too deeply"),
    ],
)
def test_what_could_not_be_honoured_is_named(text: str, sentence: str, tmp_path: Path) -> None:
    assert sentence in complaint(text, tmp_path)


def test_what_is_no_section_is_named_where_the_environment_has_one(tmp_path: Path) -> None:
    assert complaint("server: 5", tmp_path, WHISPERD_SERVER__PORT="9000").startswith("server: must be a section")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("https://A.example/", "https://a.example"),
        ("https://a.example:443", "https://a.example"),
        ("http://a.example:80/", "http://a.example"),
        ("http://a.example:8080", "http://a.example:8080"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("https://küche.example", "https://xn--kche-0ra.example"),
        ("HTTPS://KU\u0308CHE.example:8443/", "https://xn--kche-0ra.example:8443"),
        ("https://кухня.рф", "https://xn--j1agri5c.xn--p1ai"),
        ("https://台所.example", "https://xn--kpry64a.example"),
        ("https://xn--kche-0ra.example", "https://xn--kche-0ra.example"),
        ("http://[0:0::0:1]", "http://[::1]"),
        ("http://a.example:0080", "http://a.example"),
        ("http://10.0.0.1:8080", "http://10.0.0.1:8080"),
        ("null", "null"),
        ("*", "*"),
    ],
)
def test_origins_are_what_browsers_write(written: str, meant: str) -> None:
    assert Settings.model_validate({"server": {"origins": [written]}}).server.origins == (meant,)


def test_a_source_that_mqtt_names_is_one_that_is_heard() -> None:
    """In the one spelling that a name has, and once."""
    sources = ["hall", "ku\u0308che", "k\u00fcche"]
    assert Settings.model_validate({"mqtt": {"sources": sources}}).mqtt.sources == ("hall", "k\u00fcche")


def test_a_line_of_a_file_of_tokens_says_which_sources_there_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("one\n{token: geheim, send: [hall, 'geheim/*']}\n")
    path.chmod(0o600)
    settings = Settings.model_validate({"server": {"tokens_file": str(path)}})
    with pytest.raises(ConfigurationError) as caught:
        with_tokens(settings, ServiceEnvironment())
    said = str(caught.value).removeprefix(f"server.tokens_file: {path}, ")
    assert said.startswith("line 2: send.1: not a valid source name: it must be 1..64 printable characters")
    assert "geheim" not in said


def test_a_file_from_windows(tmp_path: Path) -> None:
    path = tmp_path / "whisperd.yaml"
    path.write_bytes(b"\xef\xbb\xbfserver: {port: 9000}\r\n")
    assert load(path, {}).server.port == 9000


SECRETS = [
    (b"\xef\xbb\xbfgeheim\r\n", "geheim"),
    (b"geheim\n", "geheim"),
    ("gehe\u00efm\n".encode(), "gehe\u00efm"),
    (b"ge\xe9heim\n", "is not UTF-8: save it again as UTF-8"),
    ("geheim".encode("utf-16"), "is not UTF-8"),
    ("geheim".encode("utf-16-le"), "is not text"),
    (b"\n", None),
    (b"a" * (2 << 20), "is larger than 1048576 bytes"),
]


@pytest.mark.parametrize(("content", "meant"), SECRETS)
def test_a_file_with_a_secret_however_it_was_written(content: bytes, meant: str | None, tmp_path: Path) -> None:
    """The same for each of them."""
    file = tmp_path / "secret"
    file.write_bytes(content)
    file.chmod(0o600)
    for name in ("mqtt_password", "server_tokens"):
        (tmp_path / name).write_bytes(content)
    environment = ServiceEnvironment(credentials=tmp_path)

    def tokens(settings: Settings, environment: ServiceEnvironment) -> str:
        found = with_tokens(settings, environment).server.tokens
        return found[0].token if found else ""

    readers: dict[str, Callable[[], str | None]] = {
        "mqtt.password_file": lambda: mqtt_password(MqttSettings(password_file=str(file)), ServiceEnvironment()),
        "the credential mqtt_password": lambda: mqtt_password(MqttSettings(), environment),
        "server.tokens_file": lambda: tokens(
            Settings.model_validate({"server": {"tokens_file": str(file)}}), ServiceEnvironment()
        ),
        "the credential server_tokens": lambda: tokens(Settings(), environment),
    }
    for key, read in readers.items():
        try:
            said = read() or ""
        except ConfigurationError as error:
            said = str(error)
            assert said.startswith(f"{key}: {tmp_path}")
        if meant is not None:
            assert said == meant or meant in said.partition(": ")[2]
        elif "mqtt" in key:
            assert "is empty: write the secret into it" in said


def test_a_vocabulary_in_the_file_or_beside_it(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("Kallax\nThibault\t2\n", encoding="utf-8")
    file = tmp_path / "whisperd.yaml"
    file.write_text(f"vocabulary: {names}\nsources: {{kitchen: {{vocabulary: [Lumen]}}}}")
    found = load(file, {})
    assert found.vocabulary == Vocabulary((Phrase("Kallax"), Phrase("Thibault", 2.0)))
    assert found.sources["kitchen"].vocabulary == Vocabulary((Phrase("Lumen"),))
    names.write_bytes(b"K\xe4llax\n")
    assert "names.txt is not UTF-8 text: save it as UTF-8" in complaint(f"vocabulary: {names}", tmp_path)
    names.write_text("a\n<|b\n", encoding="utf-8")
    assert "names.txt: phrase 2: a phrase must be text" in complaint(f"vocabulary: {names}", tmp_path)
    names.write_bytes(b"x\n" * (1 << 20))
    assert "is larger than 1048576 bytes" in complaint(f"vocabulary: {names}", tmp_path)
