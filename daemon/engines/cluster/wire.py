"""What a daemon, its bridge and the replicas say to each other.

Owns the messages. All are picklable, and both ends run the same version of this program. Knows nothing of when
something is said, or of Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from daemon.engines.batch import Ran
from streaming.job import Job


@dataclass(frozen=True, slots=True)
class Models:
    """What a replica has loaded: as `life.Loaded`, for whoever has no files of it.

    Attributes:
        digest: of all weights. Replicas with the same give the same texts.
        vocabulary: of the tokenizer, and of the token that ends a text. Where it differs, tokens mean something else.
    """

    student: str
    teacher: str | None
    device: str
    eot: int
    contexts: tuple[float, ...]
    languages: tuple[str, ...]
    digest: str
    vocabulary: str

    def stand_in_for(self, others: Models) -> bool:
        """Return whether who knows the others may use these: they have the same tokens, and hear as much."""
        return (
            self.vocabulary == others.vocabulary
            and self.contexts[-1] >= others.contexts[-1]
            and set(self.languages) >= set(others.languages)
        )

    def __str__(self) -> str:
        return f"student {self.student}, teacher {self.teacher or 'none'}, weights {self.digest[:12]}"


# --- a bridge and a replica ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Description:
    """A replica's answer to the question what it is.

    Attributes:
        models: what it has loaded.
        tokenizer: the contents of the `tokenizer.json`.
    """

    models: Models
    tokenizer: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch for a replica.

    Attributes:
        jobs: it.
        known: digests of the weights whose texts the daemon takes.
        seconds: in which it must be done; one that hangs longer makes its replica unhealthy.
    """

    jobs: Sequence[Job]
    known: Sequence[str]
    seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a batch.

    Attributes:
        ran: it.
        replica: whose answer it is.
        stay: seconds between the batch's arrival there and this answer.
    """

    ran: Ran
    replica: str
    stay: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """A replica has other weights than those that the daemon knows; it has not run the batch."""

    models: Models


# --- a daemon and its bridge -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Join:
    """Join the cluster; the answer is `Joined`.

    Attributes:
        address: of the cluster, as Ray takes it.
        application: of Ray Serve, by its name.
        timeout: seconds that a replica may take for a batch.
        vocabulary: the one that the daemon works with; empty where it has none yet.
    """

    address: str
    application: str
    timeout: float
    vocabulary: str


@dataclass(frozen=True, slots=True)
class Joined:
    """The bridge has joined the cluster."""

    description: Description
    replicas: Replicas


@dataclass(frozen=True, slots=True)
class Replicas:
    """How many replicas there are.

    Attributes:
        running: that take batches.
        others: that start, or end.
    """

    running: int
    others: int = 0


@dataclass(frozen=True, slots=True)
class Changed:
    """Some replicas have other models now.

    Attributes:
        models: those.
        usable: whether their texts can be taken: their tokens mean the same.
    """

    models: Models
    usable: bool


@dataclass(frozen=True, slots=True)
class Brought:
    """What a bridge brings of a batch.

    Attributes:
        reply: the replica's.
        wire: seconds that it was on its way, and waited for a replica.
    """

    reply: Reply
    wire: float
