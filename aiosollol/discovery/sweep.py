"""`SearchRun`: one search. Runs all sources at once, probes each address once, reports each server
once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, TypeAlias

from aiosollol.core.address import Address
from aiosollol.core.networks import Discovered, Skipped, Source, SweepPlan, plan_sweep
from aiosollol.discovery.local_machine import (
    LocalMachine,
    NetworkNeighbourhood,
    identity,
)
from aiosollol.discovery.mdns import Heard, News
from aiosollol.discovery.options import SearchOptions, Trust
from aiosollol.discovery.prober import Found, Prober, as_ip
from aiosollol.discovery.sockets import Sockets
from aiosollol.errors import NodeUnreachable
from aiosollol.wire.announcement import Announcement

_log = logging.getLogger("aiosollol.discovery")

_LOCALHOST = "127.0.0.1"
_GRACE_SECONDS = 0.05
"""For nodes announced at the last moment."""
_PLANNED_AT_ONCE = 1024
"""Addresses that may be sorted in the event loop, which takes 3 ms."""
_AT_ONCE = 8
"""Connections that a sweep starts before it lets others run."""


Browse: TypeAlias = Callable[[], AbstractAsyncContextManager[AsyncIterator[News]]]
"""Listens for announcements while its block runs: see `mdns.browse`."""


class Enough(Exception):
    """One node was enough, and was found."""


class _Candidate(NamedTuple):
    address: Address
    source: Source


def home_seconds(timeout: float) -> float:
    """How long to wait for all addresses of this machine, to report a server at its best one.

    They answer in milliseconds, unless the machine is very busy. Later answers are reported later,
    if they come from another server.
    """
    return min(1.0, 0.4 * timeout)


class SearchRun:
    """The sources of one search. `plan` comes first, then `run`, which ends with the search.

    deadline: when listening ends, on the loop's clock. tell: called with each node.
    """

    def __init__(
        self,
        options: SearchOptions,
        sockets: Sockets,
        around: NetworkNeighbourhood,
        trust: Trust | None,
        *,
        browse: Browse | None,
        tell: Callable[[Discovered], None],
        deadline: float,
    ) -> None:
        self.asker = Prober(options, sockets, trust)
        self.skipped: tuple[Skipped, ...] = ()
        self._options = options
        self._sockets = sockets
        self._around = around
        self._home = LocalMachine(around.interfaces, around.host_name)
        self._browse = browse
        self._tell = tell
        self._deadline = deadline
        self._group = asyncio.TaskGroup()
        self._plan = SweepPlan(())
        self._questions: dict[str, asyncio.Task[Found | None]] = {}
        self._announced: dict[str, Announcement] = {}
        self._told: set[str] = set()
        self._published: set[str] = set()
        self._servers_here: set[object] = set()
        self._named: asyncio.Task[Found | None] | None = None

    async def plan(self) -> None:
        """Decide which addresses are swept. Sends nothing."""
        if self._options.use_scan:
            sweep = self._options.sweep
            arguments = (self._around.interfaces, self._around.neighbours, sweep)
            if sweep.most_addresses > _PLANNED_AT_ONCE:
                self._plan = await asyncio.to_thread(plan_sweep, *arguments)
            else:
                self._plan = plan_sweep(*arguments)
            self.skipped = self._plan.skipped

    async def run(self) -> None:
        """Probe all sources. Raises Enough, in a group, if one node is enough and was found."""
        ours, others, swept = self._candidates()
        async with self._group as group:
            for candidate in others:
                group.create_task(self._follow(*candidate))
            group.create_task(self._follow_ours(ours))
            group.create_task(self._sweep(swept))
            if self._browse is not None:
                group.create_task(self._listen(self._browse))

    # ---- the sources

    def _candidates(self) -> tuple[list[_Candidate], list[_Candidate], list[str]]:
        """Addresses of this machine, other given addresses, and the hosts to sweep."""
        options, home = self._options, self._home
        named = [] if options.named is None else [_Candidate(options.named, "environment")]
        named += [_Candidate(address, "known") for address in options.known]
        near = [host for host in self._plan.addresses if home.has(host)]
        if not options.exclude_localhost:
            near.insert(0, _LOCALHOST)
        named += [
            _Candidate(self._swept_address(host, port), "scan")
            for host in near
            for port in options.ports
        ]
        first = {each.address.url: each for each in reversed(named)}  # the first of equals stays
        named = [each for each in named if first[each.address.url] is each]
        ours = [each for each in named if home.has(each.address.host)]
        others = [each for each in named if not home.has(each.address.host)]
        return ours, others, [host for host in self._plan.addresses if not home.has(host)]

    def _swept_address(self, host: str, port: int) -> Address:
        """The address to probe on a swept host; https if it is trusted by certificate only."""
        by_certificate = self.asker.has_fingerprints and not self.asker.lists(host)
        return Address("https" if by_certificate else "http", host, port)

    async def _sweep(self, hosts: Sequence[str]) -> None:
        started = 0
        for host in hosts:
            if not (self.asker.has_fingerprints or self.asker.lists(host)):
                self.asker.not_swept += 1
                continue
            for port in self._options.ports:
                address = self._swept_address(host, port)
                await self._sockets.begin_sweeping()
                if address.url in self._questions:  # given or announced, and asked already
                    self._sockets.end_sweeping()
                    continue
                task = self._group.create_task(self._follow_swept(address))
                self._questions[address.url] = task
            started += 1
            if started % _AT_ONCE == 0:
                await asyncio.sleep(0)  # the nearest may have answered by now

    async def _follow_swept(self, address: Address) -> Found | None:
        try:
            found = await self.asker.ask(address)
        finally:
            self._sockets.end_sweeping()
        if found is not None:
            await self._settle(found)
        return found

    async def _listen(self, browse: Browse) -> None:
        try:
            async with asyncio.timeout_at(self._deadline), browse() as news:
                async for each in news:
                    if isinstance(each, Heard):
                        self._group.create_task(self._follow_heard(each))
        except TimeoutError:
            pass
        except NodeUnreachable as error:  # no network, or no multicast on it
            _log.info("cannot listen to announcements: %s", error)
        except Exception as error:  # foreign code with input from the network: search on without it
            _log.warning("cannot listen to announcements any more: %r", error)

    async def _follow_heard(self, heard: Heard) -> None:
        """Ask the addresses of an announced node, until one answers."""
        for url in heard.urls:
            address = Address.parse(url)
            if not self._may_be_announced(address):
                _log.debug("ignored an announcement: %s is not on this network", url)
                continue
            self._announced[url] = heard.announcement
            # Late announcements get less time, so that the search ends.
            left = max(0.0, self._deadline - asyncio.get_running_loop().time())
            timeout = min(self._options.timeout, left + _GRACE_SECONDS)
            found = await self._answer(self._question(address, "zeroconf", timeout))
            if found is not None:
                await self._settle(found._replace(source="zeroconf"))
                return

    def _may_be_announced(self, address: Address) -> bool:
        """Whether to believe an announced address: only in our networks, as anyone can announce."""
        ip = as_ip(address.host)
        if ip is None or ip.is_loopback or not self._options.sweep.permits(ip):
            return False
        return not ip.is_global or any(ip in each.network for each in self._around.interfaces)

    async def _follow(self, address: Address, source: Source) -> None:
        """Probe one address, and report its server."""
        found = await self._answer(self._question(address, source))
        if found is not None:
            await self._settle(found._replace(source=source))

    # ---- this machine

    async def _follow_ours(self, candidates: Sequence[_Candidate]) -> None:
        """Probe all addresses of this machine, and report each of its servers once."""
        questions = {self._question(*candidate): candidate.source for candidate in candidates}
        late = set(questions)
        if late:
            await asyncio.wait(late, timeout=home_seconds(self._options.timeout))
        while late:
            done, late = await asyncio.wait(late, return_when=asyncio.FIRST_COMPLETED)
            found = []
            for question, source in questions.items():  # in this order, which `done` does not keep
                answer = question.result() if question in done else None
                if answer is not None:
                    found.append(answer._replace(source=source))
            for each in self._home.one_each(found):
                await self._settle(each)

    async def _resolve_docker(self, found: Found) -> Found:
        """The same server at the address by which others reach it, or `found` unchanged."""
        ports = dict.fromkeys((found.address.port, *self._options.ports))
        for host in self._home.lan_addresses():
            is_published = False
            for port in ports:
                address = Address("http", host, port, found.address.path)
                other = await self._answer(self._question(address, found.source))
                if other is None or other.answer.contents != found.answer.contents:
                    continue
                is_published = True
                if address.url not in self._published:  # else it belongs to an identical container
                    self._published.add(address.url)
                    return other._replace(source=found.source)
            if is_published:
                break
        return found

    # ---- answers

    def _question(
        self, address: Address, source: Source, timeout: float | None = None
    ) -> asyncio.Task[Found | None]:
        """The task that probes an address, one for all callers."""
        question = self._questions.get(address.url)
        if question is None:
            question = self._group.create_task(self.asker.ask(address, timeout))
            self._questions[address.url] = question
            if source == "environment":
                self._named = question
        return question

    async def _answer(self, question: asyncio.Task[Found | None]) -> Found | None:
        await asyncio.wait([question])  # not awaited directly: cancelling this must not cancel it
        return question.result()

    async def _settle(self, found: Found) -> None:
        """Report a node, unless its server was reported. Raises Enough if one is enough."""
        if self._options.auto_resolve_docker and self._home.is_docker(found.ip):
            found = await self._resolve_docker(found)
        if not self._options.discover_all_nodes:
            # A server in OLLAMA_HOST has precedence over faster ones.
            is_named = found.source == "environment"
            if not is_named and self._named and await self._answer(self._named) is not None:
                return
            if self._told:
                return
        url = found.address.url
        if url in self._told:
            return
        if self._home.has(str(found.ip)) or self._home.has(found.address.host):
            server = identity(found)
            if server in self._servers_here:
                _log.info("%s is left out: this server of this machine was found already", url)
                return
            self._servers_here.add(server)
        self._told.add(url)
        self._tell(found.as_discovered(self._announced.get(url)))
        if not self._options.discover_all_nodes:
            raise Enough
