"""`make demo`: a spoken recording becomes live text through the real service.

Starts `whisperd run`, plays a recording of a person into its websocket at the pace of speech, and shows what comes
back: stable text normal, the tail that may change dim, and at the end how many words were right. Needs no GPU, broker
or download.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from bench.harness.daemon import running
from bench.player import DEMO, play, read_pcm, said_in
from bench.word_errors import words


class Screen:
    """Prints events as they come, and keeps the finals.

    A terminal sees one line grow; a log sees every partial.
    """

    def __init__(self) -> None:
        self.finals: list[str] = []
        self._live = sys.stdout.isatty()

    def show(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "partial" if self._live:
                text = f"{event['stable']}\x1b[2m{event['tail']}\x1b[0m"
                print(f"\r\x1b[K  {event['end']:6.2f} s  {text}", end="", flush=True)
            case "partial":
                print(f"  {event['end']:6.2f} s  partial  {event['stable']}|{event['tail']}", flush=True)
            case "final":
                self.finals.append(event["text"])
                clear = "\r\x1b[K" if self._live else ""
                decided = f"{event['model']}, confidence {event['confidence']:.2f}"
                after = f"{event['latency_ms']} ms after the last word"
                print(f"{clear}  {event['end']:6.2f} s  final    {event['text']}   ({decided}, {after})", flush=True)
            case "error":
                print(f"  error: {event['message']}", file=sys.stderr)


def main() -> int:
    pcm, rate = read_pcm(str(DEMO))
    print("starting whisperd ...", flush=True)
    with running() as service:
        print(f"ready after {service.seconds_to_ready:.1f} s; playing {DEMO.name} into {service.url}/v1/stream\n")
        print(f"  {'heard':>8}  what comes back (before the bar: settled; behind it: may yet change)")
        screen = Screen()
        asyncio.run(play(service.url, "demo", pcm, rate, screen.show))
    if not screen.finals:
        print("\nNothing was heard.", file=sys.stderr)
        return 1
    print(f"\n{verdict(said_in(DEMO), screen.finals)}")
    return 0


def verdict(said: Sequence[str], heard: Sequence[str]) -> str:
    """Say how many words were right, however they are written."""
    score = words(said, heard)
    if not score.errors:
        return "Every word was right."
    right = score.words - score.substituted - score.deleted
    more = f", {score.inserted} more were heard" if score.inserted else ""
    return "\n  ".join([f"{right} of {score.words} words were right{more}: it was said", *said])


if __name__ == "__main__":
    sys.exit(main())
