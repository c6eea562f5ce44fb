"""The root of the errors with which the recipe stops.

Owns nothing else: by it the command line tells an expected error from a bug.
"""


class DistillError(Exception):
    """The recipe cannot continue; the message says what is wrong, and what to do."""
