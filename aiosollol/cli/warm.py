"""`aiosollol warm`: loads a model into memory, on every node that has it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from aiosollol import OllamaPool
from aiosollol.cli.cluster import registry_of
from aiosollol.cli.loop import run
from aiosollol.cli.nodes import absent
from aiosollol.cli.output import Screen, seconds_text, write_json
from aiosollol.core.node import ClusterView
from aiosollol.errors import SollolError


class _Result(NamedTuple):
    """Node -> seconds until the model was in memory, or why it is not. view: before that."""

    nodes: dict[str, float | SollolError]
    view: ClusterView


def warm_nodes(nodes: Sequence[str], model: str, *, as_json: bool) -> int:
    """Load `model`, telling of each node when it is done; the exit code: 1 if one fails."""
    result = run(_warm(nodes, model, is_quiet=as_json))
    missing = absent(result.view, model)
    if as_json:
        write_json({"model": model, **_warm_dict(result), "absent": missing}, sys.stdout)
    else:
        screen = Screen(sys.stdout)
        for name, why in missing.items():
            screen.line(f"{name} takes no part: {why}", style="yellow")
    has_failed = any(isinstance(each, SollolError) for each in result.nodes.values())
    return int(has_failed or any(node.is_down for node in result.view.nodes.values()))


async def _warm(nodes: Sequence[str], model: str, *, is_quiet: bool) -> _Result:
    registry = await registry_of(nodes, Screen(sys.stderr), is_quiet=is_quiet)
    screen = Screen(sys.stdout)
    done: dict[str, float | SollolError] = {}

    async def warm(name: str) -> None:
        done.update(await pool.warm(model, [name]))
        if not is_quiet:
            _tell(screen, name, done[name])

    async with OllamaPool(registry) as pool:
        view = await pool.refresh()
        names = [node.name for node in view.having(model)]
        if not names:
            await pool.warm(model)  # raises, and says what each node has
        if names and not is_quiet:
            Screen(sys.stderr).line(f"Loading {model} on {', '.join(names)} ...")
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(warm(name))
    return _Result({name: done[name] for name in names}, view)


def _tell(screen: Screen, name: str, result: float | SollolError) -> None:
    if isinstance(result, SollolError):
        screen.line(f"{name}: failed: {result}", style="red")
    else:
        screen.line(f"{name}: in memory after {seconds_text(result)}")


def _warm_dict(result: _Result) -> dict[str, Any]:
    return {
        "seconds": {n: round(r, 3) for n, r in result.nodes.items() if isinstance(r, float)},
        "failed": {n: str(r) for n, r in result.nodes.items() if isinstance(r, SollolError)},
    }
