"""`aiosollol discover`: lists the Ollama servers on the network as they answer."""

from __future__ import annotations

import asyncio
import collections
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aiosollol.cli.base import Screen, run, seconds_text, write_json
from aiosollol.cli.measure import HOW_FOUND
from aiosollol.config.files import save_nodes
from aiosollol.config.settings import DEFAULTS
from aiosollol.core.address import DEFAULT_PORT
from aiosollol.core.networks import Discovered, Skipped
from aiosollol.core.node import NodeSpec
from aiosollol.discovery import Search, discover
from aiosollol.discovery.options import SearchArguments
from aiosollol.discovery.search import Arrived, Watch

_ENDED = (130, 143)  # Ctrl-C and SIGTERM, the normal ways to end --watch


@dataclass(frozen=True, slots=True)
class DiscoverOptions:
    """Options of `aiosollol discover`.

    watch: keep searching until Ctrl-C.
    save: file to write the nodes to.
    subnets: CIDRs, instead of this machine's networks.
    ports: empty is Ollama's default port.
    timeout: seconds per address.
    trusted: the only nodes to accept, None is all; taken from the settings.
    """

    watch: bool = False
    save: str | None = None
    subnets: Sequence[str] = ()
    ports: Sequence[int] = ()
    timeout: float = DEFAULTS.discovery_timeout
    use_zeroconf: bool = True
    use_scan: bool = True
    trusted: Sequence[str] | None = None
    as_json: bool = False

    def arguments(self) -> SearchArguments:
        """The keyword arguments of `discover`."""
        return {
            "timeout": self.timeout,
            "subnets": self.subnets or None,
            "ports": self.ports or (DEFAULT_PORT,),
            "use_zeroconf": self.use_zeroconf,
            "use_scan": self.use_scan,
            "trusted": self.trusted,
        }


def run_discover(options: DiscoverOptions) -> int:
    """Print each node as it answers, and return the exit code: 1 if none does.

    With `watch`, print arrivals and departures until Ctrl-C, and return 0. Raises InvalidInput for
    an invalid network or port, ConfigError if the file cannot be written.
    """
    if options.watch:
        try:
            run(_watch(options))
        except SystemExit as end:
            if end.code not in _ENDED:
                raise
        return 0
    screen = Screen(sys.stderr if options.as_json else sys.stdout)
    search = discover(**options.arguments())
    with screen.log():
        found = run(_search(search, screen, options))
    if options.as_json:
        write_json(_summary(search, found), sys.stdout)
    else:
        _tell_end(screen, search, found, options)
    if options.save and found:
        save_nodes(options.save, specs_of(found))
        screen.line(f"Saved in {options.save}.")
    elif options.save:
        screen.line(f"{options.save} was not changed.")
    return int(not found)


async def _search(search: Search, screen: Screen, options: DiscoverOptions) -> list[Discovered]:
    found = []
    async with search:
        async for node in search:
            found.append(node)
            if not options.as_json:
                screen.line(line_of(node))
    return found


async def _watch(options: DiscoverOptions) -> None:
    """Print changes until cancelled. With `save`, write the present nodes after each change."""
    screen = Screen(sys.stdout)
    with screen.log():
        async with Watch(**options.arguments()) as watch:
            if not options.as_json:
                screen.line("Watching for nodes (+ arrived, - departed); Ctrl-C ends it.")
            async for change in watch:
                has_come = isinstance(change, Arrived)
                reason = "" if isinstance(change, Arrived) else change.reason
                if options.as_json:
                    event = {"event": "arrived" if has_come else "departed"}
                    event |= {"reason": reason} if reason else {}
                    write_json({**event, **_as_dict(change.node)}, sys.stdout)
                elif has_come:
                    screen.line(f"+ {line_of(change.node)}", style="green")
                else:
                    screen.line(f"- {change.node.url}: {reason}", style="red")
                if options.save and watch.nodes:
                    # In a thread, because it waits for the disk.
                    specs = specs_of(watch.nodes.values())
                    await asyncio.to_thread(save_nodes, options.save, specs)


def line_of(node: Discovered) -> str:
    """A node in one line: URL, version, how it was found, response time, models."""
    where = f"{node.url} ({node.name})" if node.name else node.url
    models = f"models {', '.join(node.models)}" if node.models else "no models"
    how = HOW_FOUND[node.source]
    return (
        f"{where}: version {node.version}, {how}, answers in {seconds_text(node.seconds)}, {models}"
    )


def specs_of(nodes: Iterable[Discovered]) -> list[NodeSpec]:
    """The nodes as specs to save. A name shared by two nodes is dropped."""
    nodes = list(nodes)
    names = collections.Counter(node.name for node in nodes)
    return [
        NodeSpec(
            node.url,
            name=node.name if names[node.name] == 1 else "",
            fingerprint=node.fingerprint or None,
        )
        for node in nodes
    ]


def _tell_end(
    screen: Screen, search: Search, found: Sequence[Discovered], options: DiscoverOptions
) -> None:
    asked = "1 address was" if search.addresses == 1 else f"{search.addresses:,} addresses were"
    count = {0: "No node", 1: "1 node"}.get(len(found), f"{len(found):,} nodes")
    screen.line(f"{count} found; {asked} asked in {seconds_text(search.seconds)}.")
    for skipped in search.skipped:
        screen.line(str(skipped), style="yellow")
    if not found:
        for line in hints(options, search.skipped):
            screen.line(line, indent=2)


def hints(options: DiscoverOptions, skipped: Sequence[Skipped]) -> list[str]:
    """Suggestions for the user when no node was found."""
    port = options.ports[0] if options.ports else DEFAULT_PORT
    lines = [
        "On each server, let Ollama listen on the network: set OLLAMA_HOST=0.0.0.0 in its "
        "environment (with systemd: systemctl edit ollama, then Environment=OLLAMA_HOST=0.0.0.0) "
        "and restart it.",
        f"Open TCP port {port} in its firewall; with ufw: ufw allow {port}/tcp",
    ]
    if skipped or not options.subnets:
        lines.append("Name the network of the servers: aiosollol discover --subnet 192.168.1.0/24")
    if not options.ports:
        lines.append("If they use another port, name it: aiosollol discover --port 8080")
    if options.trusted is not None:
        trusted = ", ".join(options.trusted)
        lines.append(
            f"If a server is missing, trust it: the setting 'trusted' accepts only {trusted}"
        )
    if options.use_zeroconf:
        lines.append("Or let the servers announce themselves: aiosollol advertise")
    return lines


def _summary(search: Search, found: Sequence[Discovered]) -> dict[str, Any]:
    return {
        "nodes": [_as_dict(node) for node in found],
        "skipped": [skipped._asdict() for skipped in search.skipped],
        "addresses": search.addresses,
        "seconds": round(search.seconds, 4),
    }


def _as_dict(node: Discovered) -> dict[str, Any]:
    return {**node._asdict(), "models": list(node.models), "seconds": round(node.seconds, 6)}
