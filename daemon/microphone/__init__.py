"""The sound devices of this machine, a process each."""
