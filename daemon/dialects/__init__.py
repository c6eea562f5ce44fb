"""The wire protocols, a file each: their words <-> our events, without I/O.

The listeners list which dialects are spoken, and on which ports; a new one is added to their lists.
"""
