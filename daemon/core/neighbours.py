"""What every stream is given when it opens: the models as it sees them, and those that it shares with all others.

Owns nothing but these two lists of parts.
"""

from __future__ import annotations

from dataclasses import dataclass

from daemon.common.metrics import Metrics
from daemon.common.sources import Sources
from daemon.core.detection import SpeechDetection
from daemon.core.hub import Hub
from daemon.core.scheduler import Scheduler
from daemon.core.spacing import Spacing
from daemon.core.vocabularies import SourceVocabularies
from streaming.session import SessionSettings
from streaming.text import Text
from streaming.vad import VadSettings


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a stream must know of the engine.

    Attributes:
        languages: the codes of all that the models know.
        longest: seconds that the models hear at once.
        choice: the codes among which the language of a stream is detected that names none; empty for all.
    """

    student: str
    teacher: str | None
    device: str
    languages: tuple[str, ...]
    text: Text
    longest: float = 30.0
    choice: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What all streams share.

    Attributes:
        backlog: seconds of audio that may wait for finals before reading pauses.
        detection: looks at the frames of all streams together; None where each looks at its own at once.
        spacing: how far apart partials are; None where they keep their interval.
    """

    model: ModelInfo
    session: SessionSettings
    vad: VadSettings
    backlog: float
    scheduler: Scheduler
    hub: Hub
    sources: Sources
    vocabularies: SourceVocabularies
    metrics: Metrics
    detection: SpeechDetection | None = None
    spacing: Spacing | None = None
