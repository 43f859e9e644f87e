"""Measures the nodes briefly: plans need their speeds, which a new process does not know."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiosollol import NodeRegistry, OllamaPool
from aiosollol.cli.access import named_nodes
from aiosollol.cli.base import Screen, seconds_text
from aiosollol.cluster.node import Node
from aiosollol.config.files import find_nodes_file
from aiosollol.config.resolve import resolve
from aiosollol.errors import NodeTimeout, NoNodeAvailable, SollolError
from aiosollol.net.transport import HttpTransport
from aiosollol.pool.bootstrap import Beginning, begin

LOAD_SECONDS = 30.0  # a server loads a model on its first request
WORK_SECONDS = 5.0

_TYPICAL_TOKENS = 25.0  # of the texts below

_WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "sleeps")
# From 3 to 34 words, all different: several sizes separate the cost of a request from that of text.
TEXTS = tuple(
    f"Text {count}: " + " ".join(_WORDS[(count + i) % len(_WORDS)] for i in range(1 + count))
    for count in range(32)
)


@dataclass(frozen=True, slots=True)
class Measurement:
    """The result. `seconds`: in total; `failures`: node -> why it could not be measured."""

    nodes: Sequence[str]
    seconds: float
    failures: dict[str, SollolError] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"Measured: {len(TEXTS)} texts of 3 to 34 words on each node by itself, "
            f"{self.seconds:.1f} s in all."
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "nodes": list(self.nodes),
            "texts": len(TEXTS),
            "seconds": round(self.seconds, 3),
            "errors": {name: str(error) for name, error in self.failures.items()},
        }


async def measure(registry: NodeRegistry, names: Iterable[str], model: str) -> Measurement:
    """Let each named node embed a few texts, and record its speed in `registry`.

    Nodes on different machines work at the same time, those on one machine in turn, because they
    would slow each other down. A node that fails, or does not load the model within
    `LOAD_SECONDS`, is in the result's `failures`.
    """
    began = asyncio.get_running_loop().time()
    failures: dict[str, SollolError] = {}
    machines: dict[str, list[Node]] = {}
    for name in names:
        node = registry[name]
        machines.setdefault(registry.machines[name], []).append(node)

    async def in_turn(nodes: list[Node]) -> None:
        for node in nodes:
            try:
                await _measure(node, model)
            except SollolError as error:
                failures[node.name] = error

    async with asyncio.TaskGroup() as group:
        for nodes in machines.values():
            group.create_task(in_turn(nodes))
    measured = [node.name for nodes in machines.values() for node in nodes]
    seconds = asyncio.get_running_loop().time() - began
    return Measurement(measured, seconds, failures)


def teach_strategies(registry: NodeRegistry, names: Iterable[str], model: str) -> None:
    """Feed the measurement to the routing strategies, which learn from answers."""
    for name in names:
        node = registry[name]
        if node.costs:
            now = registry.clock()
            seconds = node.cost(model).seconds(_TYPICAL_TOKENS)
            node.teach(model, _TYPICAL_TOKENS, now - seconds, now)


async def _measure(node: Node, model: str) -> None:
    """Embed on this node alone. The time of the model load does not count."""
    try:
        async with asyncio.timeout(LOAD_SECONDS):
            await _embed(NodeRegistry([node.spec]), model, TEXTS[:1])
    except TimeoutError:
        raise NodeTimeout(node.name, f"no answer within {LOAD_SECONDS:g} s") from None
    alone = NodeRegistry([node.spec])
    try:
        async with asyncio.timeout(WORK_SECONDS):
            await _embed(alone, model, TEXTS)
    except TimeoutError:
        pass  # a slow node: its answers so far are enough
    finally:
        node.adopt_answers(alone[node.name])


async def _embed(nodes: NodeRegistry, model: str, texts: Sequence[str]) -> None:
    async with OllamaPool(nodes) as pool:
        embeddings = await pool.embed_batch(model, texts, on_error="return")
    for error in embeddings.errors.values():
        raise error


HOW_FOUND = {
    "environment": "named by OLLAMA_HOST",
    "known": "known before",
    "zeroconf": "announced",
    "scan": "found",
}
"""How a node was found, by `core.networks.Source`."""


async def registry_of(
    nodes: Sequence[str], screen: Screen, *, is_quiet: bool = False
) -> NodeRegistry:
    """The nodes named on the command line, else a pool's initial nodes.

    screen: shows where nodes come from that the user did not name.
    is_quiet: show only that the network is searched.

    Waits for the end of a search. Raises InvalidInput, ConfigError, and NoNodeAvailable if the
    search finds nothing.
    """
    with screen.log():
        # In a thread, because it reads files.
        registry, search = await asyncio.to_thread(_begin, nodes)
        if search is not None:
            why = f"{_origin()}, and" if len(registry) else "No node is named:"
            screen.line(
                f"{why} searching the network for Ollama servers "
                "(SOLLOL_AUTO_DISCOVER=false turns this off) ..."
            )
            began = time.monotonic()
            await registry.discover_and_add_nodes(**search)
            if not len(registry):
                raise NoNodeAvailable("no Ollama server was found on the network", {})
            if not is_quiet:
                took = seconds_text(time.monotonic() - began)
                screen.line(f"Found within {took}: {_names(registry)}")
        elif not nodes and not is_quiet:
            screen.line(f"{_origin()}: {_names(registry)}")
        # First, so that two names of one server become one node before any request.
        await registry.locate()
    return registry


def _begin(nodes: Sequence[str]) -> Beginning:
    return begin(named_nodes(nodes), resolve({}), HttpTransport)


def _names(registry: NodeRegistry) -> str:
    return ", ".join(node.name for node in registry)


def _origin() -> str:
    """Where `begin` takes nodes from that were not named, in words."""
    if os.environ.get("OLLAMA_HOST", "").strip():
        return "Using the node in OLLAMA_HOST"
    if file := find_nodes_file():
        return f"Using the nodes in {file}"
    return "No node is named and auto_discover is off; using this machine"
