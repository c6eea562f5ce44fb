"""`whisperd bench`: the figures that can be measured on this machine, a command each.

Owns the list of commands. The file with a command's name says what it measures, and has its options.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

BENCHMARKS = {
    "engine": "the parts of the engine beside the device's roofline; --random measures a published size",
    "kernels": "how many operations each pass dispatches: each is a kernel on a GPU; counted on any processor",
    "targets": "what is meant to be reached on one large GPU, beside its roofline (--small anywhere)",
    "exactness": "how often drafts change a final in low precision, and that they never do in deterministic mode",
    "streams": "live streams at the pace of speech into a real service: lag, latency, what is left of the machine",
    "service": "the service with an engine of a stated pace: how many streams it carries itself",
    "live": "what a reader has before them while people speak: word errors, and how they fall with the delay",
    "offline": "what drafting from the last partial saves, and the real-time factor",
    "long_form": "long files, cut where nobody speaks or by the timestamps of their text: word errors, and the work",
    "day": "a day at home: people speak, broker, microphone and service fail, and what became of each final",
    "waking": "the first final after the models were put away, beside one of models that are awake",
    "vocabulary": "names that a model does not know: how many are heard with a vocabulary, and what it costs",
    "faults": "what clients, attackers and machines do to a service, and that nothing of what was said is lost",
    "cluster": "engines on a Ray cluster: what is lost when a part dies, what the way costs, what more replicas carry",
    "soak": "hours of mixed streams, come and go: memory, descriptors, waiting, and every final counted at every edge",
    "peers": "beside WhisperLive, WhisperLiveKit, wyoming-faster-whisper and a plain loop, live, with the same tiny.en",
    "compare": "the same audio and weights through transformers and faster-whisper",
}


def main(arguments: Sequence[str]) -> int:
    name = arguments[0] if arguments else ""
    if name not in BENCHMARKS:
        asked = name in ("", "-h", "--help")
        out = sys.stdout if asked else sys.stderr
        if not asked:
            print(f"whisperd bench: there is no {name!r}", file=out)
        print("usage: whisperd bench NAME [--help]\n", file=out)
        for known, what in BENCHMARKS.items():
            print(f"  {known:11}{what}", file=out)
        return 0 if asked else 2
    try:
        module = importlib.import_module(f"bench.{name}")
        return int(module.main(arguments[1:]) or 0)  # those that judge return a code
    except KeyboardInterrupt:
        print("whisperd bench: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        print(f"whisperd bench: {sentence}", file=sys.stderr)
        return 1


def _sentence(error: Exception) -> str | None:
    """What is wrong and can be mended by whoever asked; None for a bug, which needs its traceback."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: pip install 'whisperd[bench]'"
    # Heavy, and needed only here: a benchmark that failed by one of these has imported it.
    import soundfile

    from bench.harness.daemon import ServiceError
    from bench.player import RecordingError
    from distillation.errors import DistillError
    from streaming.whisper.checkpoint import CheckpointError

    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}"
    told = (CheckpointError, DistillError, RecordingError, ServiceError, soundfile.LibsndfileError)
    return str(error) if isinstance(error, told) else None
