"""Engines on other machines: a deployment of Ray Serve, and the daemon's link to it.

A batch goes from `host.py` (in the service) through shared memory to `bridge.py` (a process beside it, the only part of
a daemon that knows Ray), and from there to a `replica.py` on some machine of the cluster. `wire.py` is what is said on
the way, and `application.py` is what Serve deploys.
"""
