"""The wire protocols, a file each: their words <-> our events, without I/O."""
