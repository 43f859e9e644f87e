"""Announces the Ollama of this machine: its addresses and the announced data."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

from aiosollol.agent import Announcer
from aiosollol.core.address import Address
from aiosollol.core.node import NodeSpec
from aiosollol.discovery.advertiser import Advertiser
from aiosollol.discovery.local_machine import read_surroundings
from aiosollol.errors import InvalidInput, NodeError, NodeUnreachable
from aiosollol.net.transport import HttpTransport
from aiosollol.wire.agent import AgentReport
from aiosollol.wire.announcement import Announcement, is_reachable, read_announcement
from aiosollol.wire.ollama.client import load_version

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
    """What is announced of a node with this report. Descriptions that nobody would believe stay
    out, so that a strange GPU or a patched Ollama is still announced."""
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
        found = await _own_addresses()
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


async def _own_addresses() -> list[str]:
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
