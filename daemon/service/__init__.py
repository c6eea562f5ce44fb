"""The life of the service: start, drain, signals, the service manager, reload."""
