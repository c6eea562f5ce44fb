"""Zeroconf: announces on the local network that a port is here.

Owns the library, which is an extra, and the record that is announced. Knows the kind of the service as a text, and
nothing of who listens at the port.
"""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import logging
import socket

_log = logging.getLogger(__name__)


def missing() -> str | None:
    """Return what to do about the library if it is not installed."""
    if importlib.util.find_spec("zeroconf") is not None:
        return None
    return "needs the package zeroconf: pip install 'whisperd[zeroconf]'"


async def announce(kind: str, address: str, port: int) -> None:
    """Announce a port until cancelled.

    Where the network takes no announcement, the log says so: the port works without.

    Args:
        kind: the kind of the service, such as "_wyoming._tcp".
        address: that of the listener, which may stand for all addresses of this machine.
        port: that of the listener.
    """
    import zeroconf
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

    everywhere = ipaddress.ip_address(address).is_unspecified
    addresses = _own_addresses() if everywhere else [address]
    host = socket.gethostname().partition(".")[0][:40]
    # Under the service's own name: the machine's belongs to whoever announces the machine.
    service = AsyncServiceInfo(f"{kind}.local.", f"whisperd-{host}.{kind}.local.", port, parsed_addresses=addresses)
    try:
        speaker = AsyncZeroconf(interfaces=zeroconf.InterfaceChoice.All if everywhere else [address])
    except OSError as error:
        _log.warning("zeroconf: %s: clients will not find %s by themselves", error.strerror or error, kind)
        await asyncio.Event().wait()
        return
    try:
        try:
            await (await speaker.async_register_service(service, allow_name_change=True))
            _log.info("zeroconf: announced as %s at %s", service.name, ", ".join(addresses))
        except (OSError, zeroconf.Error) as error:
            _log.warning("zeroconf: %s: clients will not find %s by themselves", error or type(error).__name__, kind)
        await asyncio.Event().wait()
    finally:
        await speaker.async_close()  # with a goodbye


def _own_addresses() -> list[str]:
    import ifaddr  # comes with zeroconf

    found = [ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips if isinstance(ip.ip, str)]
    return [ip for ip in found if not ipaddress.ip_address(ip).is_loopback]
