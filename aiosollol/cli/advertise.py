"""`aiosollol advertise`: announces an Ollama on the network, which Ollama itself does not do."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass

from aiosollol.agent import Announcer
from aiosollol.agent.sensors import Gpus, stated_gpu
from aiosollol.agent.server import is_loopback, is_material
from aiosollol.cli.base import Screen, run
from aiosollol.core.address import Address, parse_ollama_host
from aiosollol.core.node import NodeSpec
from aiosollol.discovery.advertiser import Advertiser
from aiosollol.discovery.local_machine import machine_id, read_surroundings
from aiosollol.errors import InvalidInput, NodeError, NodeUnreachable
from aiosollol.net.transport import HttpTransport
from aiosollol.wire.agent import AgentReport
from aiosollol.wire.announcement import Announcement, is_reachable, read_announcement
from aiosollol.wire.ollama.client import load_version

BEAT_SECONDS = 10.0
"""Between two checks of the node and of this machine's addresses."""

_PATIENCE = 3  # failed checks until the node counts as gone: it may be busy or restarting
_ENDED = (130, 143)  # Ctrl-C and SIGTERM, the normal ways to end


@dataclass(frozen=True, slots=True)
class AdvertiseOptions:
    """Options of `aiosollol advertise`.

    url: of the Ollama; None is ``OLLAMA_HOST``, else http://127.0.0.1:11434.
    name: the announced name; None is the host name.
    addresses: IP addresses at which others reach it; empty takes those on which it answers.
    gpu_name, vram_gb: of a GPU that NVML does not know.
    """

    url: str | None = None
    name: str | None = None
    addresses: Sequence[str] = ()
    gpu_name: str = ""
    vram_gb: float | None = None


def run_advertise(options: AdvertiseOptions) -> int:
    """Announce a node until Ctrl-C or SIGTERM, then say goodbye, and return the exit code 0.

    Raises NodeError if no Ollama answers or there is no network, InvalidInput if it answers on no
    address that others can reach.
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
    screen.line("The node is no longer announced.")
    return 0


class Announcing:
    """Announces an Ollama for as long as it answers, under its current addresses."""

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
        """Announce until cancelled. Raises NodeError or InvalidInput if the first attempt fails."""
        has_begun = False
        while True:
            try:
                await self._while_it_answers()
            except (NodeError, InvalidInput) as error:
                has_begun |= self._is_announced
                if not has_begun:
                    raise
                if self._is_announced:
                    self._screen.line(f"No longer announced until the node recovers: {error}")
                    self._is_announced = False
                await asyncio.sleep(BEAT_SECONDS)

    async def _while_it_answers(self) -> None:
        """Announce until this machine's addresses change. Raises NodeError or InvalidInput."""
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
        """Announce changes until this machine's addresses change.

        Raises NodeError after `_PATIENCE` failed checks in a row.
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
        """The report of the node's machine; empty but for the URL if that is another machine."""
        host = self._address.host
        if host not in home and not is_loopback(host):
            return AgentReport(ollama=self._address.url)
        gpus = await asyncio.to_thread(self._gpus.read)
        return AgentReport(self._machine, self._address.url, gpus=gpus)


async def _own_addresses() -> set[str]:
    surroundings = await read_surroundings()
    return {str(each.address.ip) for each in surroundings.interfaces}


_ASK_SECONDS = 5.0


@asynccontextmanager
async def announced(
    ollama: Address, name: str | None, report: AgentReport, agent_port: int | None
) -> AsyncIterator[Announcer]:
    """Announce an Ollama of this machine by zeroconf until the block ends, with a goodbye.

    name: None is the host name.
    agent_port: of its agent, None if others cannot reach it.

    Entering takes two seconds. Raises NodeError if Ollama does not answer, InvalidInput if it
    answers on no address that others can reach, and the errors of `Advertiser`.
    """
    known = name or socket.gethostname().partition(".")[0] or "ollama"
    version = await version_at(ollama)
    try:
        addresses = await reachable_addresses(ollama)
    except InvalidInput as error:
        raise InvalidInput(f"{error}, or do not announce it: --no-advertise") from error
    first = announcement_of(report, known, version, agent_port)
    async with Advertiser(ollama.url, first, addresses=addresses) as advertiser:
        yield _Updates(advertiser, ollama, first)


class _Updates:
    """Turns an agent's reports into announcements."""

    def __init__(self, advertiser: Advertiser, ollama: Address, first: Announcement) -> None:
        self._advertiser = advertiser
        self._ollama = ollama
        self._last = first

    async def update(self, report: AgentReport) -> None:
        last = self._last
        version = last.version
        with suppress(NodeError):  # it may be restarting as a newer version
            version = await version_at(self._ollama)
        self._last = announcement_of(report, last.name, version, last.agent or None)
        await self._advertiser.update(self._last)


def announcement_of(
    report: AgentReport, name: str, version: str, agent_port: int | None
) -> Announcement:
    """The announcement of a node with this report.

    Implausible descriptions are left out, so that a node with them is still announced.
    """
    described = {b"version": version.encode(), b"gpu": report.gpu_name.encode("utf-8", "replace")}
    believed = read_announcement(name, described) or Announcement(name)
    return Announcement(
        name,
        version=believed.version,
        machine=report.machine,
        gpu=believed.gpu.strip(),
        gpu_memory=report.gpu_memory_total or 0,
        gpu_free=report.gpu_memory_free or 0,
        agent=agent_port or 0,
    )


async def reachable_addresses(ollama: Address) -> list[str]:
    """The IP addresses at which other machines reach an Ollama of this machine.

    Raises InvalidInput if there is none, NodeUnreachable if the host cannot be resolved.
    """
    found = await _addresses_of(ollama.host)
    if all(ipaddress.ip_address(each).is_loopback for each in found):
        found = await _lan_addresses()
    found = [each for each in found if is_reachable(ipaddress.ip_address(each))]
    if ollama.scheme == "http":  # certificates seldom cover IP addresses
        # These are addresses of this machine, so nothing leaves it.
        answers = await asyncio.gather(*(_answers_at(ollama, each) for each in found))
        found = [each for each, answered in zip(found, answers, strict=True) if answered]
    if not found:
        raise InvalidInput(
            f"the Ollama at {ollama} cannot be announced: it answers on no address that other "
            "machines can reach; start it with OLLAMA_HOST=0.0.0.0 in its environment"
        )
    return found


async def _addresses_of(host: str) -> list[str]:
    """The IP addresses of a host name or IP address."""
    try:
        entries = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise NodeUnreachable(host, f"its name cannot be resolved: {error.strerror}") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


async def _lan_addresses() -> list[str]:
    """This machine's LAN addresses."""
    surroundings = await read_surroundings()
    return [str(each.address.ip) for each in surroundings.interfaces if each.kind == "lan"]


async def _answers_at(ollama: Address, ip: str) -> bool:
    try:
        await version_at(Address(ollama.scheme, ip, ollama.port, ollama.path))
    except NodeError:
        return False
    return True


async def version_at(address: Address) -> str:
    """The version of the Ollama at an address. Raises NodeError if none answers."""
    async with aclosing(HttpTransport(NodeSpec(address.url))) as transport:
        try:
            body = await transport.request("GET", "/api/version", timeout=_ASK_SECONDS)
        except NodeUnreachable as error:
            detail = f"{error.detail}; is Ollama running there?"
            raise NodeUnreachable(error.node, detail) from error
    return load_version(address.url, body)
