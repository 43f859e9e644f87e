"""A zeroconf instance for as long as it is needed, on interfaces where others may hear it."""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiosollol.core.networks import Interface
from aiosollol.core.redaction import safe_repr
from aiosollol.discovery.interfaces import read_surroundings
from aiosollol.errors import InvalidInput, NodeUnreachable

if TYPE_CHECKING:
    from zeroconf.asyncio import AsyncZeroconf

_log = logging.getLogger("aiosollol.discovery")

_START_SECONDS = 3.0
_GOODBYE_SECONDS = 2.0  # it is said three times within a quarter of a second


@asynccontextmanager
async def opened(interfaces: Sequence[str] | None) -> AsyncIterator[AsyncZeroconf]:
    """Zeroconf on these interfaces, each given by an address that this machine has there.

    None takes all but loopback and VPNs. Leaving says goodbye for what is registered; that takes
    two seconds at most. Raises InvalidInput for what is no address, and NodeUnreachable where
    there is no such interface or the port of multicast DNS is taken.
    """
    # Loading takes a tenth of a second, in which the event loop has other things to do.
    await asyncio.to_thread(importlib.import_module, "zeroconf.asyncio")
    addresses = await _addresses(interfaces)
    zeroconf = _start(addresses)
    try:
        try:
            await zeroconf.zeroconf.async_wait_for_start(timeout=_START_SECONDS)
        except Exception as error:
            raise _unreachable("it does not start", error) from error
        if not zeroconf.zeroconf.engine.senders:
            raise _unreachable(f"no multicast on the interfaces of {', '.join(addresses)}")
        yield zeroconf
    finally:
        await _close(zeroconf)


def multicast_addresses(interfaces: Sequence[Interface]) -> list[str]:
    """One address of each interface on which announcements are to be heard, IPv4 if it has one.

    Virtual machines and containers are heard as well. A VPN carries no multicast, or it carries it
    to strangers.
    """
    chosen: dict[str, Interface] = {}
    for each in sorted(interfaces, key=lambda i: i.address.version):
        if each.kind in ("loopback", "vpn"):
            continue
        chosen.setdefault(each.name, each)
    found = [each.address.ip for each in chosen.values()]
    # A bridge that has but a link-local IPv6 address would need a socket of the other family.
    return [str(ip) for ip in found if ip.version == 4] or [str(ip) for ip in found]


async def _addresses(interfaces: Sequence[str] | None) -> list[str]:
    if interfaces is None:
        surroundings = await read_surroundings()
        found = multicast_addresses(surroundings.interfaces)
        if not found:
            raise _unreachable("this machine is on no network")
        return found
    if isinstance(interfaces, str) or not interfaces:
        raise InvalidInput(f"interfaces must be a list of addresses, not {safe_repr(interfaces)}")
    for address in interfaces:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise InvalidInput(
                f"{safe_repr(address)} in interfaces is not an address: write one that this "
                "machine has on the interface, like 192.168.1.7"
            ) from None  # the cause would show it whole
    return list(interfaces)


def _start(addresses: list[str]) -> AsyncZeroconf:
    from zeroconf.asyncio import AsyncZeroconf

    try:
        return AsyncZeroconf(interfaces=addresses)
    except (OSError, RuntimeError) as error:
        raise _unreachable("the port of multicast DNS, 5353, cannot be used", error) from error


async def _close(zeroconf: AsyncZeroconf) -> None:
    """Say goodbye and close the sockets, whatever happens to the caller meanwhile."""
    closing = asyncio.ensure_future(_say_goodbye(zeroconf))
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await closing
        raise


async def _say_goodbye(zeroconf: AsyncZeroconf) -> None:
    try:
        async with asyncio.timeout(_GOODBYE_SECONDS):
            await zeroconf.async_close()
    except BaseException as error:
        zeroconf.zeroconf.engine.close()
        if not isinstance(error, Exception):
            raise
        _log.warning("zeroconf did not close as it should: %r", error)


def _unreachable(problem: str, error: BaseException | None = None) -> NodeUnreachable:
    return NodeUnreachable("zeroconf", f"{problem}{f': {error}' if error and str(error) else ''}")
