"""Input that nobody would send, for hours if need be: `python -m tests.fuzz native --minutes 10`."""
