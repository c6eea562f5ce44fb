"""What a cluster of engines carries, what the way there costs, and what is lost when a part of it dies.

Owns the list of the parts; the file with a part's name says what it measures, and has its options. The cluster is a
real one, of raylets on this machine (`local.py`), and its engines keep a stated pace: all but the models is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one part and print its table.

    Returns:
        The exit code: 1 where something was lost.
    """
    # Here: replicas import what is beside this, and need none of it.
    from bench.cluster import faults, hop, scale

    parser = argparse.ArgumentParser(
        prog="whisperd bench cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    for name, part in (("faults", faults), ("hop", hop), ("scale", scale)):
        about = (part.__doc__ or "").partition("\n\n")[0]
        own = parts.add_parser(name, help=about, description=about)
        part.add_options(own)
        own.set_defaults(measure=part.measure)
    options = parser.parse_args(arguments)
    return int(options.measure(options))
