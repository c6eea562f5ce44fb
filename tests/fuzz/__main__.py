"""`python -m tests.fuzz [TARGET ...] [--minutes N]`: the long form."""

from __future__ import annotations

import argparse
import sys

from .rounds import attack_for
from .targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; none: all")
    parser.add_argument("--minutes", type=float, default=1.0, help="of each target (default: %(default)s)")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}: there are {', '.join(TARGETS)}")
    for name in options.targets or TARGETS:
        rounds = attack_for(TARGETS[name], options.minutes)
        print(f"{name}: {rounds} rounds, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
