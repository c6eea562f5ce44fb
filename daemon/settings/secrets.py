"""The service's secrets: the tokens, the broker's password, and its token for Home Assistant.

Owns how their files are read, which of them are in force, that no log line shows them, and the warning about files that
everybody may read. Knows nothing of who asks for a token or shows one.
"""

from __future__ import annotations

import codecs
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import yaml
from pydantic import ValidationError

from daemon.common.errors import ConfigurationError
from daemon.common.logs import hide
from daemon.settings.environment import ServiceEnvironment
from daemon.settings.explain import sentence_of
from daemon.settings.schema import HomeAssistantSettings, MqttSettings, Settings, Token, token_of

_log = logging.getLogger(__name__)


class Credentials:
    """The service's tokens, its password for the MQTT broker, and its token for Home Assistant.

    Attributes:
        mqtt_password: the password, once it was read; None where there is none.
        home_assistant_token: the token, likewise.
    """

    def __init__(self, environment: ServiceEnvironment) -> None:
        self.mqtt_password: str | None = None
        self.home_assistant_token: str | None = None
        self._environment = environment

    def with_tokens(self, settings: Settings) -> Settings:
        """Return `settings` with all tokens in `server.tokens`.

        Raises:
            ConfigurationError: see the function `with_tokens`.
        """
        return with_tokens(settings, self._environment)

    def read(self, settings: Settings) -> None:
        """Read the broker's password and Home Assistant's token, if the settings name a broker or a Home Assistant.

        Raises:
            ConfigurationError: see the functions `mqtt_password` and `home_assistant_token`.
        """
        mqtt, home_assistant = settings.mqtt, settings.home_assistant
        self.mqtt_password = mqtt_password(mqtt, self._environment) if mqtt.host else None
        self.home_assistant_token = (
            home_assistant_token(home_assistant, self._environment) if home_assistant.url else None
        )

    def hide(self, settings: Settings) -> None:
        """Hide the secrets from all later log lines.

        Args:
            settings: those in force, with all tokens.
        """
        hide(
            [
                *(each.token for each in settings.server.tokens),
                self.mqtt_password or "",
                self.home_assistant_token or "",
            ]
        )

    def warn(self, settings: Settings) -> None:
        for key, path in secret_files(settings).items():
            if trouble := secret_trouble(key, path):
                _log.warning("%s", trouble)


def with_tokens(settings: Settings, environment: ServiceEnvironment) -> Settings:
    """Return `settings` with all tokens in `server.tokens`.

    To those that are there it adds the tokens of the file and of the credential `server_tokens`.

    Raises:
        ConfigurationError: the file cannot be read, everybody may read it, or one of its lines is wrong.
    """
    server, tokens = settings.server, list(settings.server.tokens)
    if server.tokens_file is not None:
        if trouble := secret_trouble("server.tokens_file", Path(server.tokens_file)):
            raise ConfigurationError(trouble)
        tokens += _tokens_in("server.tokens_file", Path(server.tokens_file))
    credential = credential_file("server_tokens", environment)
    if credential is not None:
        tokens += _tokens_in("the credential server_tokens", credential)
    return settings.model_copy(update={"server": server.model_copy(update={"tokens": tuple(tokens)})})


_LARGEST_SECRET = 1 << 20


def _secret_text(key: str, path: Path) -> str:
    """Return the text of a file with secrets, without the byte order mark that Windows puts in front.

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
        raise ConfigurationError(f"{key}: {path}: is not text: save it again as UTF-8")
    return text


def _tokens_in(key: str, path: Path) -> Iterator[Token]:
    """Yield the tokens of a file.

    There is one a line, as in `server.tokens`: a word, or {token: T, send: [...], read: [...]}.
    """
    for number, line in enumerate(_secret_text(key, path).splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            yield Token.model_validate(token_of(yaml.safe_load(text) if text.startswith("{") else text))
        except (ValueError, yaml.YAMLError) as error:
            raise ConfigurationError(f"{key}: {path}, line {number}: {_line_trouble(error)}") from None


def _line_trouble(error: Exception) -> str:
    """Return what is wrong with a line of such a file, without quoting it: it contains a secret."""
    for each in error.errors() if isinstance(error, ValidationError) else ():
        if each["loc"][:1] in (("send",), ("read",)) and each["type"] == "value_error":  # of `check_pattern`
            return sentence_of(each)
    return "must be one word, or {token: T, send: [...], read: [...]}"


def secret_trouble(key: str, path: Path) -> str | None:
    """Return what is wrong with the file that `key` names, or None if this user may read it and not everybody."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        return f"{key}: {path}: {getattr(error, 'strerror', None) or error}: create it, or correct the path"
    if mode & stat.S_IROTH:
        return f"{key}: everybody may read {path}: chmod o= {path}"
    return None if os.access(path, os.R_OK) else f"{key}: this user may not read {path}: chown it"


def secret_files(settings: Settings) -> dict[str, Path]:
    """Return the files with secrets that the settings name, by their keys."""
    server, mqtt = settings.server, settings.mqtt
    named = {
        "server.tokens_file": server.tokens_file,
        "server.key": server.key,
        "mqtt.key": mqtt.key,
        "mqtt.password_file": mqtt.password_file,
        "home_assistant.token_file": settings.home_assistant.token_file,
    }
    return {key: Path(path) for key, path in named.items() if path is not None}


def mqtt_password(mqtt: MqttSettings, environment: ServiceEnvironment) -> str | None:
    """Return the broker's password: as given, from the file named, or from the credential `mqtt_password`.

    Raises:
        ConfigurationError: the file cannot be read, or is empty.
    """
    if mqtt.password is not None:
        return mqtt.password
    if mqtt.password_file is not None:
        return _password_in("mqtt.password_file", Path(mqtt.password_file))
    credential = credential_file("mqtt_password", environment)
    return _password_in("the credential mqtt_password", credential) if credential is not None else None


def home_assistant_token(settings: HomeAssistantSettings, environment: ServiceEnvironment) -> str:
    """Return the token for Home Assistant: as given, from the file named, or from the credential of this name.

    Raises:
        ConfigurationError: there is none, or the file cannot be read or is empty.
    """
    if settings.token is not None:
        return settings.token
    if settings.token_file is not None:
        return _password_in("home_assistant.token_file", Path(settings.token_file))
    credential = credential_file("home_assistant_token", environment)
    if credential is None:
        raise ConfigurationError(
            "home_assistant.url needs a token: make a long-lived access token in your profile there, and name its file "
            "in home_assistant.token_file"
        )
    return _password_in("the credential home_assistant_token", credential)


def credential_file(name: str, environment: ServiceEnvironment) -> Path | None:
    """Return the file of a credential, if the service manager hands it over."""
    file = environment.credentials / name if environment.credentials else None
    return file if file is not None and file.is_file() else None


def _password_in(key: str, path: Path) -> str:
    password = _secret_text(key, path).strip()
    if not password:
        raise ConfigurationError(f"{key}: {path}: is empty: write the secret into it")
    return password
