"""`aiosollol advertise`: tells the network that an Ollama is here, which it does not do itself."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from aiosollol.agent.sensors import Gpus, stated_gpu
from aiosollol.agent.server import is_loopback, is_material
from aiosollol.cli.announcing import announcement_of, reachable_addresses, version_at
from aiosollol.cli.base import run
from aiosollol.cli.output import Screen
from aiosollol.core.address import Address, parse_ollama_host
from aiosollol.discovery.advertiser import Advertiser
from aiosollol.discovery.local_machine import machine_id, read_surroundings
from aiosollol.errors import InvalidInput, NodeError
from aiosollol.wire.agent import AgentReport

BEAT_SECONDS = 10.0
"""Between two looks at the node, and at the network."""

_PATIENCE = 3  # times that the node may fail to answer: it can be busy, or about to be restarted
_ENDED = (130, 143)  # by Ctrl-C and SIGTERM: it ends in no other way


@dataclass(frozen=True, slots=True)
class AdvertiseOptions:
    """What `aiosollol advertise` was told.

    url: of the Ollama; None is that of ``OLLAMA_HOST``, or else http://127.0.0.1:11434. name: under
    which it is announced; None is that of the machine. addresses: IP addresses under which others
    reach it; none takes those on which it answers. gpu_name, vram_gb: of a GPU that NVML does not
    know.
    """

    url: str | None = None
    name: str | None = None
    addresses: Sequence[str] = ()
    gpu_name: str = ""
    vram_gb: float | None = None


def run_advertise(options: AdvertiseOptions) -> int:
    """Announce a node until Ctrl-C or SIGTERM, then say goodbye; the exit code, which is 0.

    Raises NodeError where no Ollama answers or there is no network, InvalidInput where it answers
    on no address that others can reach.
    """
    if options.url is None:
        address = parse_ollama_host(os.environ.get("OLLAMA_HOST", ""))
    else:
        address = Address.parse(options.url)
    gpus = Gpus(stated_gpu(options.gpu_name, options.vram_gb))
    screen = Screen(sys.stdout)
    announcing = Announcing(address, options, gpus, machine_id(), screen)
    with screen.log():
        try:
            run(announcing.run())
        except SystemExit as end:
            if end.code not in _ENDED:
                raise
        finally:
            gpus.close()
    screen.line("It is no longer announced.")
    return 0


class Announcing:
    """An Ollama, announced for as long as it answers, under the addresses that it has then."""

    def __init__(
        self, address: Address, options: AdvertiseOptions, gpus: Gpus, machine: str, screen: Screen
    ) -> None:
        self._address = address
        self._options = options
        self._name = options.name or socket.gethostname().partition(".")[0] or "ollama"
        self._gpus = gpus
        self._machine = machine
        self._screen = screen
        self._is_announced = False

    async def run(self) -> None:
        """Until cancelled. Raises what keeps it from being announced, if that is so at first."""
        has_begun = False
        while True:
            try:
                await self._while_it_answers()
            except (NodeError, InvalidInput) as error:
                has_begun |= self._is_announced
                if not has_begun:
                    raise
                if self._is_announced:
                    self._screen.line(f"No longer announced, until that is over: {error}")
                    self._is_announced = False
                await asyncio.sleep(BEAT_SECONDS)

    async def _while_it_answers(self) -> None:
        """Announce it until this machine has other addresses. Raises what else ends it."""
        version = await version_at(self._address)
        home = await _own_addresses()
        addresses = list(self._options.addresses) or await reachable_addresses(self._address)
        report = await self._report(home)
        first = announcement_of(report, self._name, version, None)
        async with Advertiser(self._address.url, first, addresses=addresses) as advertiser:
            at = ", ".join(f"{ip} port {self._address.port}" for ip in addresses)
            what = f"Ollama {first.version}".strip()
            self._screen.line(f"Announced as {advertiser.name!r}: {what} at {at}; Ctrl-C ends it.")
            self._is_announced = True
            await self._follow(advertiser, home, report, version)

    async def _follow(
        self, advertiser: Advertiser, home: set[str], report: AgentReport, version: str
    ) -> None:
        """Announce what changes, until this machine has other addresses.

        Raises NodeError when the node has not answered for a while.
        """
        failures = 0
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            if await _own_addresses() != home:
                return
            try:
                now = await version_at(self._address)
                failures = 0
            except NodeError:
                failures += 1
                if failures == _PATIENCE:
                    raise
                continue
            fresh = await self._report(home)
            if now != version or is_material(report, fresh):
                await advertiser.update(announcement_of(fresh, self._name, now, None))
                report, version = fresh, now

    async def _report(self, home: set[str]) -> AgentReport:
        """What is known of the machine on which it runs: nothing, unless that is this one."""
        host = self._address.host
        if host not in home and not is_loopback(host):
            return AgentReport(ollama=self._address.url)
        gpus = await asyncio.to_thread(self._gpus.read)
        return AgentReport(self._machine, self._address.url, gpus=gpus)


async def _own_addresses() -> set[str]:
    surroundings = await read_surroundings()
    return {str(each.address.ip) for each in surroundings.interfaces}
