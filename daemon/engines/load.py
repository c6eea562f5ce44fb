"""The engine that the settings ask for.

Owns what settings mean for an engine. Imports torch inside the functions that need it, so that whatever needs no engine
does not wait seconds for it.
"""

from __future__ import annotations

import hashlib

from daemon.common.errors import ServiceError
from daemon.engines.free_cores import FreeCores
from daemon.engines.life import Engine
from daemon.settings.schema import Settings


def describe_models(settings: Settings) -> str:
    """Return the models' names and what they can hear, from their files, without the weights.

    Raises:
        ServiceError: one of them is not there, or they do not go together.
    """
    from streaming.whisper.checkpoint import CheckpointError, open_checkpoint, require_same_vocabulary

    try:
        student = open_checkpoint(settings.models.student, "student")
        teacher = open_checkpoint(settings.teacher, "teacher") if settings.teacher else None
        if teacher is not None:
            require_same_vocabulary(student, teacher)
    except CheckpointError as error:
        raise ServiceError(str(error)) from None
    return f"student {student.name}, teacher {teacher.name if teacher else 'none'}, up to {student.contexts[-1]:g} s"


def models_digest(settings: Settings) -> str:
    """Return the SHA-256 of all weights that the settings ask for: which texts they give depends on it.

    Raises:
        ServiceError: one of the models is not there.
    """
    from streaming.whisper.checkpoint import CheckpointError, open_checkpoint
    from streaming.whisper.weights import weights_digest

    digest = hashlib.sha256()
    try:
        checkpoints = [open_checkpoint(settings.models.student, "student")]
        if settings.teacher:
            checkpoints.append(open_checkpoint(settings.teacher, "teacher"))
        for checkpoint in checkpoints:
            digest.update(f"{weights_digest(checkpoint.directory)} {checkpoint.lender_digest}\n".encode())
    except CheckpointError as error:
        raise ServiceError(str(error)) from None
    return digest.hexdigest()


def load_engine(settings: Settings) -> Engine:
    """Load the engine that the settings ask for.

    Raises:
        ServiceError: a model is not there, or does not fit the settings.
    """
    cores = FreeCores()  # what others do is measured while torch is imported
    # Here, so that whatever needs no engine does not wait seconds for torch.
    from streaming.whisper.checkpoint import CheckpointError
    from streaming.whisper.engine import WhisperEngine

    models = settings.models
    try:
        return WhisperEngine.load(
            models.student, settings.teacher, models.device, dtype=models.dtype,
            threads=models.threads or cores.threads, graphs=models.graphs, mode=models.mode,
            batch=settings.scheduler.batch,
        )  # fmt: skip
    except (CheckpointError, ValueError) as error:
        raise ServiceError(str(error)) from None
