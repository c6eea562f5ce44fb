"""What the recipe says when it cannot go on. One root, so that the command line knows a sentence from a bug."""


class DistillError(Exception):
    """The message says what is wrong, and what to do."""
