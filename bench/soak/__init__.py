"""Hours of mixed streams against a real service: does it grow, does it slow down, does it lose anything?

A real `whisperd run` with `tiny-en` and a real mosquitto, on this machine, all at the pace of speech: people who talk
for hours on one connection; a stream of noise and one of silence; clients that come and go, some in the middle of a
word and by abort; a Wyoming satellite with a connection for each turn; subscribers that come and go; and a reload of
the settings now and then. A subscriber of /v1/events and one of the broker stay and write down all finals. Every few
seconds the service's memory, descriptors, threads, processor time and queues are read.

What is promised, and makes the exit code 1 where it does not hold:

- Each sentence of people whose connection was not aborted has a final; each utterance that a client was told the
  beginning of has one too, abort or not.
- Each final is told once to its own client (while that is there), to the subscriber of /v1/events and to MQTT's, with
  the same text, in the order of the source's numbers. A subscriber that comes and goes with ?since= misses nothing and
  gets nothing twice.
- Nobody is cut off or told of an error that they did not cause, and the service's own counters of losses stay at 0.
- Each reload succeeds. Descriptors and threads are at the end what they were at the beginning. SIGTERM ends with 0.
- Memory does not grow (judged from half an hour on): the slope of RSS after the warm-up is not, with 95 % confidence,
  above `--slope`.

The slope is that of a straight line through block means: the samples after the warm-up are cut into 20 blocks of equal
length, as samples a few seconds apart are nearly the same sample. Its interval is Student's, from the scatter of the
means around the line; where the scatter of neighbouring blocks still goes together (autocorrelation r > 0), the
standard error is multiplied by sqrt((1+r)/(1-r)), and there are as many fewer degrees of freedom.

Sentences are those that come with the project; noise is made of random numbers and of many sentences at once. With
`--speech` and `--noise` they are cut out of the recordings of a folder. Of recordings that we do not know not every one
is loud or clear enough to be taken for speech: a sentence in which no client was told a beginning is counted as not
noticed, and breaks the promise only with our own recordings.
"""

from __future__ import annotations

from bench.soak.play import main as main
