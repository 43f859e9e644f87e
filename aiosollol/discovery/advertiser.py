"""`Advertiser`: announces a node by zeroconf, so that others find it without a sweep."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from aiosollol.core.address import Address
from aiosollol.core.redaction import safe_repr
from aiosollol.discovery.mdns import opened
from aiosollol.errors import InvalidInput, NodeUnreachable
from aiosollol.wire.announcement import MAX_NAME_BYTES, SERVICE_TYPE, Announcement, is_reachable

if TYPE_CHECKING:
    from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

LOOPBACK_HINT = (
    "other machines cannot reach it there. Make Ollama listen on all interfaces, with "
    "OLLAMA_HOST=0.0.0.0 in its environment, and announce an address of this machine"
)

_REGISTER_SECONDS = 15.0  # 1.7 s, and as much again for each name that is taken
_UPDATE_SECONDS = 5.0
_SUFFIX_BYTES = 4  # room for "-2" and so on, if the name is taken


class Advertiser:
    """Announces a node while open, and sends a goodbye at the end.

    ::

        async with Advertiser("http://10.0.0.2:11434", Announcement("gpu-box")) as advertiser:
            print(advertiser.name)  # "gpu-box", or "gpu-box-2" if that is taken
            await advertiser.update(Announcement("gpu-box", version="0.33.1"))

    url: of the node; its scheme, port and path are announced.
    addresses: IP addresses by which others reach the node; None uses the host of the URL.
    interfaces: to announce on, each given by one of this machine's addresses; None uses all.

    Raises InvalidInput for an address that others cannot reach. Entering takes two seconds, and
    raises NodeUnreachable if there is no network.
    """

    def __init__(
        self,
        url: str,
        announcement: Announcement,
        *,
        addresses: Sequence[str] | None = None,
        interfaces: Sequence[str] | None = None,
    ) -> None:
        self._address = Address.parse(url)
        self._addresses = _checked(self._address, addresses)
        self._name = _label(announcement.name)
        self._announcement = self._complete(announcement)
        # Not the machine's host name: another responder, such as Avahi, may answer for that.
        self._server = _new_server(self._name)
        self._interfaces = interfaces
        self._stack = AsyncExitStack()
        self._zeroconf: AsyncZeroconf | None = None

    @property
    def name(self) -> str:
        """The name that is announced; before that, the requested name."""
        return self._name

    @property
    def addresses(self) -> tuple[str, ...]:
        """The announced addresses."""
        return self._addresses

    async def __aenter__(self) -> Advertiser:
        zeroconf = await self._stack.enter_async_context(opened(self._interfaces))
        try:
            async with asyncio.timeout(_REGISTER_SECONDS):
                await self._register(zeroconf)
        except BaseException as error:
            await self._stack.aclose()
            if isinstance(error, Exception):
                detail = f"it cannot be announced: {error or type(error).__name__}"
                raise NodeUnreachable(self._name, detail) from error
            raise
        self._zeroconf = zeroconf
        return self

    async def __aexit__(self, *_: object) -> None:
        self._zeroconf = None
        await self._stack.aclose()

    async def update(self, announcement: Announcement) -> None:
        """Announce a change. The name stays the same.

        Returns when it has been sent three times, after half a second. Raises InvalidInput unless
        the advertiser is open, and NodeUnreachable if it cannot be sent.
        """
        changed = self._complete(announcement)
        if self._zeroconf is None:
            raise InvalidInput("the advertiser is not open: use 'async with'")
        self._announcement = changed
        try:
            async with asyncio.timeout(_UPDATE_SECONDS):
                await (await self._zeroconf.async_update_service(self._info()))
        except Exception as error:
            detail = f"the change cannot be announced: {error or type(error).__name__}"
            raise NodeUnreachable(self._name, detail) from error

    def _complete(self, announcement: Announcement) -> Announcement:
        address = self._address
        changed = announcement._replace(name=self._name, scheme=address.scheme, path=address.path)
        changed.as_txt()  # raises if it cannot be announced
        return changed

    def _info(self) -> AsyncServiceInfo:
        from zeroconf.asyncio import AsyncServiceInfo

        return AsyncServiceInfo(
            SERVICE_TYPE,
            f"{self._name}.{SERVICE_TYPE}",
            parsed_addresses=list(self._addresses),
            port=self._address.port,
            properties=dict(self._announcement.as_txt()),
            server=self._server,
        )

    async def _register(self, zeroconf: AsyncZeroconf) -> None:
        while True:
            info = self._info()
            await (await zeroconf.async_register_service(info, allow_name_change=True))
            self._name = info.get_name()
            rival = self._rival(zeroconf)
            if rival is None:
                return
            if rival < self._server:
                # The rival will notice as well and take another name. Announce once more after
                # that, with a new server name: listeners ignore what they have heard before.
                await asyncio.sleep(1.0)
                self._server = _new_server(self._name)
                await (await zeroconf.async_update_service(self._info()))
                return
            # Without a goodbye, which would apply to the rival too.
            zeroconf.zeroconf.registry.async_remove(info)
            self._name = f"{self._name[: MAX_NAME_BYTES - 5]}-{secrets.token_hex(2)}"

    def _rival(self, zeroconf: AsyncZeroconf) -> str | None:
        """Another server that announces our name.

        Registering does not detect one that started in the same second, as after a power cut.
        """
        from zeroconf.const import _CLASS_IN, _TYPE_SRV  # the numbers of RFC 1035 and RFC 2782

        key = f"{self._name}.{SERVICE_TYPE}"
        records = zeroconf.zeroconf.cache.get_all_by_details(key, _TYPE_SRV, _CLASS_IN)
        servers = {getattr(record, "server", self._server) for record in records}
        return min(servers - {self._server}, default=None)


def _checked(address: Address, addresses: Sequence[str] | None) -> tuple[str, ...]:
    if addresses is None:
        addresses = [address.host]
    if isinstance(addresses, str) or not addresses:
        raise InvalidInput(f"addresses must be a list of IP addresses, not {safe_repr(addresses)}")
    for text in addresses:
        try:
            ip = ipaddress.ip_address("127.0.0.1" if text == "localhost" else text)
        except ValueError:
            raise InvalidInput(
                f"{safe_repr(text)} is not an IP address: pass addresses=[...] under which "
                f"{address} is reached"
            ) from None  # the cause would quote it in full
        if not is_reachable(ip):
            raise InvalidInput(f"{text} cannot be announced: {LOOPBACK_HINT}")
    return tuple(dict.fromkeys(addresses))


def _new_server(name: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "ollama"
    return f"{slug}-{secrets.token_hex(4)}.local."


def _label(name: str) -> str:
    """A name that can be announced: not too long, and without dots, which separate DNS labels."""
    text = "".join(c for c in name if c.isprintable()).strip().replace(".", "-")
    cut = text.encode()[: MAX_NAME_BYTES - _SUFFIX_BYTES].decode("utf-8", "ignore")
    if not cut:
        raise InvalidInput(f"{name!r} is not a name for a node: it has no printable characters")
    return cut
