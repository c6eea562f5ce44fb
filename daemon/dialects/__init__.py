"""One file per wire protocol: wire <-> events, without I/O."""
