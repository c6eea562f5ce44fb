"""`python -m tests.fuzz [TARGET ...] [--minutes N]`: the long form, with a table of what was tried.

An input that fails ends its target, and is shown; the others are attacked all the same. A round that hangs ends the
process, with all stacks.
"""

from __future__ import annotations

import argparse
import sys
import traceback

from bench.table import circumstances, table

from .rounds import Target, attack_for
from .targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; none: all")
    parser.add_argument("--minutes", type=float, default=1.0, help="of each target (default: %(default)s)")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}: there are {', '.join(TARGETS)}")
    rows = [_row(TARGETS[name], options.minutes) for name in options.targets or TARGETS]
    print(circumstances() + "\n")
    print(table(["target", "examples", "rounds", "seconds", "memory, MiB", "found"], rows))
    return 1 if any(row[-1] != "nothing" for row in rows) else 0


def _row(target: Target, minutes: float) -> list[object]:
    try:
        tally = attack_for(target, minutes)
    except Exception as error:
        traceback.print_exc()
        return [target.name, "", "", "", "", f"{type(error).__name__}: see above"]
    memory = f"{tally.before:.0f} to {tally.after:.0f}"
    return [target.name, tally.examples, tally.rounds, round(tally.seconds), memory, "nothing"]


if __name__ == "__main__":
    sys.exit(main())
