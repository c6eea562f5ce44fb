"""whisperd beside what a user would pick instead, live: one machine, the same recordings, each by its own protocol.

Each system is a real server in a process of its own, and has its turn alone on the machine, with the same tiny.en: ours
(the shipped pair, and its teacher alone), WhisperLive, WhisperLiveKit, wyoming-faster-whisper, and a plain loop around
faster-whisper that hears each stream's growing buffer again every half second. Each client plays a talk, which is
utterances of different people with pauses between them, at the pace of speech, and notes what a reader has before them
and since when.

What is measured is defined alike for all, from outside, and never from what a server says of itself. When a word ends
is found once, by tiny.en that hears each utterance whole; which words a text covers is found by comparing it with what
is said. A text covers the beginning of the talk that fits it best.

- First word: from the end of an utterance's first word until a text covers it.
- Partial lag: from the end of a word until a text covers it, for each word. A server that says nothing for a while has
  the lag of all the words that waited, and not only that of the last one.
- Final latency: from the end of an utterance's last word until its share of the text is settled: nothing of it
  can change any more. What is settled when the stream ends is settled then.
- Word errors: after Whisper's normaliser for English, in the runs with one and with two streams, which all have.
- Invented: words that were heard where nobody spoke.
- Streams held: the most streams at once with which nothing failed and 95 of 100 words had a partial lag of a second or
  less. It is tried with more and more streams until they are too many.
- Memory: the most that the server's processes had in all of its runs (RSS, added up).

The others are no part of this project, and not installed with it. Each has an environment of its own in the folder
--environments, and one that is not there is left out, with a line that says how to make it.
"""

from __future__ import annotations

from bench.peers.play import main as main
