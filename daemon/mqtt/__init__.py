"""Events to and from a broker: topics, and the spool of what waits for it."""
