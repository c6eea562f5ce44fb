"""A day at home: real parts, people who speak, things that break, and whether every final arrived once and in order.

A real mosquitto, a real sound server as the microphone, the stock Wyoming client and a real `whisperd run` on this
machine. Four people speak at random (two websocket clients, one of them with a connection for each sentence; one at the
microphone; one to a Wyoming satellite), while the broker is killed and frozen, the microphone is pulled out, and the
daemon is ended by SIGTERM and by SIGKILL, also at the very moment at which somebody reads a final. A subscriber with a
session at the broker, which is not ours, writes down what arrives. The report ends with a line that says whether every
promise held; the exit code is 1 if not.

What is promised:

- Told is delivered. A final that any reader has read (a websocket client its own, a subscriber of /v1/events, a Wyoming
  client as its transcript) arrives at the MQTT subscriber, whatever broke in between, and whenever.
- In order: of each source as it was told, and over all sources as `at` says.
- Once by its id. One may come again, with the same id, where a fault cost an acknowledgement: a broker that was killed
  or frozen, a daemon that was killed. Without such a fault around it none comes again, and not by SIGTERM.
- Heard is told. A sentence that was said to its end undisturbed has a final.
- SIGTERM loses nothing: what was heard becomes final, is told and saved, and the exit code is 0.
- Nothing is dropped: the limits of the spool are not reached on such a day, and the daemon's counters say so.

What SIGKILL may take: audio that has no final yet, and a final that nobody was told. A client notices that it is cut
off and says it again, as a person would. A final that was saved and told to nobody may arrive all the same; it is
counted. Told and saved are one moment as long as the disk answers within half a second: the daemon tells nobody of a
final before it is in the spool's file, but lets no disk that hangs silence it for longer.

The hour is shorter than an hour: pauses pass `--speed` times as fast; at the microphone people speak at their own pace,
and elsewhere four times as fast.
"""

from __future__ import annotations

from bench.day.play import main as main
