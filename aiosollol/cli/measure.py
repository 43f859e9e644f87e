"""A short measurement of the nodes: a fresh process knows nothing, and a plan needs to."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiosollol import NodeRegistry, OllamaPool
from aiosollol.cli.output import Screen, seconds_text
from aiosollol.cluster.node import Node
from aiosollol.config.files import find_nodes_file
from aiosollol.config.resolve import resolve
from aiosollol.errors import NodeTimeout, NoNodeAvailable, SollolError
from aiosollol.net.transport import HttpTransport
from aiosollol.pool.bootstrap import Beginning, begin

LOAD_SECONDS = 30.0  # a server loads a model when it is first asked for it
WORK_SECONDS = 5.0

_TYPICAL_TOKENS = 25.0  # of the texts below

_WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "sleeps")
# From 3 to 34 words, none like another: two sizes tell what a request costs from what text costs.
TEXTS = tuple(
    f"Text {count}: " + " ".join(_WORDS[(count + i) % len(_WORDS)] for i in range(1 + count))
    for count in range(32)
)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was done. `seconds` in all; `failures`: node -> why it could not be measured."""

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
    """Let each of the nodes named embed a few texts; `registry` knows its speed then.

    Nodes on different machines work at the same time, those on one machine one after another: they
    would slow each other down. A node that fails, or has not loaded the model in half a minute, is
    in the result's `failures`.
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
    """Let the routing strategies know what was measured: they follow answers, not costs."""
    for name in names:
        node = registry[name]
        if node.costs:
            now = registry.clock()
            seconds = node.cost(model).seconds(_TYPICAL_TOKENS)
            node.teach(model, _TYPICAL_TOKENS, now - seconds, now)


async def _measure(node: Node, model: str) -> None:
    """Embed over this node alone. What loading the model took is not held against it."""
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
        pass  # a slow node: what it has answered by now tells enough
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
    """The nodes that a command line names, or those that a pool takes when it names none.

    Where they come from is told on `screen` unless the user named them. is_quiet: only that the
    network is searched. A search is waited for, to its end. Raises InvalidInput, ConfigError, and
    NoNodeAvailable where a search finds nothing.
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
        # Now, so that two names of one server are one node before anything is asked of it.
        await registry.locate()
    return registry


def _begin(nodes: Sequence[str]) -> Beginning:
    return begin(list(nodes) or None, resolve({}), HttpTransport)


def _names(registry: NodeRegistry) -> str:
    return ", ".join(node.name for node in registry)


def _origin() -> str:
    """In words, where `begin` has nodes from that it was not given."""
    if os.environ.get("OLLAMA_HOST", "").strip():
        return "Using the node in OLLAMA_HOST"
    if file := find_nodes_file():
        return f"Using the nodes in {file}"
    return "No node is named, and auto_discover is off, so this machine is used"
