"""What the service has to know and nobody else may read: the tokens, and the broker's password.

Owns what of it is in force, that no log line shows it, and the warning about files that everybody may read. Knows
nothing of who asks for a token or shows one; how the files are read is the settings' business.
"""

from __future__ import annotations

import logging

from daemon.config import Mqtt, Settings, Surroundings, mqtt_password, secret_files, secret_trouble, with_tokens
from daemon.logs import hide

_log = logging.getLogger(__name__)


class Credentials:
    """Attributes:
    mqtt_password: once it is read; None where there is none.
    """

    def __init__(self, around: Surroundings) -> None:
        self.mqtt_password: str | None = None
        self._around = around

    def with_tokens(self, settings: Settings) -> Settings:
        """Raises:
        ConfigurationError: see `daemon.config.with_tokens`.
        """
        return with_tokens(settings, self._around)

    def read_password(self, mqtt: Mqtt) -> None:
        """Raises:
        ConfigurationError: see `daemon.config.mqtt_password`.
        """
        self.mqtt_password = mqtt_password(mqtt, self._around) if mqtt.host else None

    def hide(self, settings: Settings) -> None:
        """From every log line to come. settings: those in force, with all tokens."""
        hide([each.token for each in settings.server.tokens] + [self.mqtt_password or ""])

    def warn(self, settings: Settings) -> None:
        for key, path in secret_files(settings).items():
            if trouble := secret_trouble(key, path):
                _log.warning("%s", trouble)
