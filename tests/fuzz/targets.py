"""All that is attacked, by its name."""

from __future__ import annotations

from . import audio, config, dialects, mqtt, native, wyoming
from .rounds import Target

TARGETS: dict[str, Target] = {
    target.name: target for module in (native, wyoming, dialects, mqtt, config, audio) for target in module.TARGETS
}
