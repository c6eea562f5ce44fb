"""Audio in, events out. No sockets, no asyncio, no threads, no configuration files."""
