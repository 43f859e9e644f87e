"""The house stands: imports point down, and what decides does not act.

Each module is read as a syntax tree, so imports inside functions count. Imports under
``if TYPE_CHECKING:`` cost nothing at run time but point all the same; those that may point up are
listed one by one.
"""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import aiosollol

PACKAGE = "aiosollol"
ROOT = pathlib.Path(aiosollol.__file__).parent

LAYERS = {
    "errors": 0,
    "core": 1,
    "wire": 1,
    "ports": 2,
    "asyncio_parts": 3,
    "server_process": 3,
    "error_log": 3,
    "http_server": 3,
    "deadlines": 3,
    "connection": 3,
    "transport": 3,
    "tracing": 3,
    "otel": 3,
    "names": 3,
    "discovery": 3,
    "cache": 3,
    "config": 3,
    "registry": 4,
    "monitor": 4,
    "streams": 4,
    "relay": 4,
    "events": 4,
    "places": 4,
    "nodes": 4,
    "loads": 4,
    "hedge": 4,
    "chase": 4,
    "attempt": 4,
    "admission": 4,
    "roster": 4,
    "exchange": 4,
    "executor": 4,
    "carriage": 4,
    "sharing": 4,
    "batches": 4,
    "live": 4,
    "embed_stream": 5,
    "embedder": 5,
    "conversations": 5,
    "forwarding": 5,
    "lifecycle": 5,
    "operations": 5,
    "node_registry": 5,
    "beginnings": 5,
    "upkeep": 5,
    "engine_loading": 5,
    "far_batches": 5,
    "assembly": 5,
    "pool": 5,
    "agent": 6,
    "autobatch": 6,
    "hybrid": 6,
    "service": 6,
    "gateway": 6,
    "engines": 6,
    "integrations": 6,
    "embedded": 6,
    "cli": 7,
    "__main__": 7,
}
# These two stand beside the layers: `testing` may import anything and nothing imports it, and the
# package itself only gathers the public names.
BESIDE = {"testing", ""}

LOW = {"errors", "core", "wire", "ports"}  # L0 to L2
BASE = LOW | {"events", "places", "nodes", "streams", "loads"}
MIDDLE = BASE | {"registry"}  # what L4 may know
MAY_IMPORT = {
    "errors": set(),
    "core": {"errors"},
    "wire": {"errors", "core"},
    "ports": {"errors", "core"},
    **dict.fromkeys((part for part, layer in LAYERS.items() if layer == 3), LOW),
    "transport": LOW | {"deadlines", "connection"},
    "http_server": LOW | {"error_log"},
    **dict.fromkeys((part for part, layer in LAYERS.items() if layer == 4), MIDDLE),
    **dict.fromkeys(("events", "streams", "loads", "places"), LOW),
    "nodes": LOW | {"places"},
    "registry": LOW | {"events", "places", "nodes"},
    "hedge": LOW | {"loads"},
    "exchange": MIDDLE | {"attempt"},
    "admission": MIDDLE | {"roster"},
    "executor": MIDDLE | {"exchange"},
    "chase": MIDDLE | {"admission", "hedge"},
    "live": MIDDLE | {"exchange", "roster", "admission", "chase"},
    "batches": MIDDLE | {"executor", "carriage", "exchange", "roster"},
    "relay": BASE | {"exchange"},
    "embed_stream": LOW,
    "embedder": LOW | {"batches", "embed_stream", "exchange", "live", "registry"},
    "forwarding": LOW | {"live", "registry", "relay", "roster"},
    "conversations": LOW | {"live", "streams", "exchange"},
    "far_batches": LOW | {"batches", "carriage", "roster"},
    "operations": LOW
    | {"batches", "events", "exchange", "lifecycle", "nodes", "node_registry", "roster"},
    "lifecycle": MIDDLE
    | {"batches", "carriage", "embedder", "live", "roster", "sharing", "upkeep"},
    "node_registry": {part for part, layer in LAYERS.items() if layer < 5},
    "pool": {part for part, layer in LAYERS.items() if layer <= 5},
    "assembly": {part for part, layer in LAYERS.items() if layer <= 5} - {"pool"},
    "engine_loading": {part for part, layer in LAYERS.items() if layer < 5},
    "beginnings": {part for part, layer in LAYERS.items() if layer < 5} | {"node_registry"},
    "upkeep": {part for part, layer in LAYERS.items() if layer < 5} | {"node_registry"},
    **dict.fromkeys((part for part, layer in LAYERS.items() if layer == 6), LOW | {"pool"}),
    # Engines have pools at their far end, and the nodes of a pool at their near end.
    "engines": LOW
    | {"assembly", "sharing", "registry", "node_registry", "nodes", "places", "config"}
    | {"server_process"},
    "agent": LOW | {"pool", "http_server"},
    "autobatch": LOW | {"pool", "error_log"},
    "gateway": LOW | {"pool", "error_log", "http_server"},
    "embedded": LOW | {"pool", "server_process", "error_log", "http_server"},
    "service": {part for part, layer in LAYERS.items() if layer < 6},
    "cli": set(LAYERS) | {""},
    "__main__": set(LAYERS) | {""},
    "": {part for part, layer in LAYERS.items() if layer < 7},
    "testing": set(LAYERS) | BESIDE,
}
# They put the parts of their layer together, so they know their siblings.
JOINERS = {"service", "gateway.app"}
SIBLINGS = {part for part, layer in LAYERS.items() if layer == 6}

# Names that only type checkers follow, and that may point up: (importer, imported).
TYPING_ONLY = {
    ("errors", "core.embeddings"),  # BatchError carries what was computed
    ("gateway.endpoints.batch_jobs", "autobatch"),  # the queue itself comes as an argument
}
# Names that modules of any layer may take from the package itself.
FROM_PACKAGE = {"__version__"}

# What decides (core, wire) is given the time, the dice and the bytes.
IMPURE = {
    "aiohttp",
    "anyio",
    "asyncio",
    "random",
    "secrets",
    "select",
    "socket",
    "ssl",
    "subprocess",
    "threading",
    "time",
    "trio",
}
# L4 runs under trio's virtual clock in tests, so the clock is anyio's.
NOT_IN_L4 = {"aiohttp", "asyncio", "socket", "threading", "time", "trio"}
CLOCK_METHODS = {"now", "utcnow", "today"}


@dataclass(frozen=True)
class Import:
    """One imported module, by its full dotted name; `name` is what `from` took out of it."""

    module: str
    name: str
    line: int
    for_typing: bool


def violations(module: str, source: str, modules: set[str]) -> list[str]:
    """What is wrong with `source`, the text of `module`.

    Names are relative to the package ("core.node"; "" is the package itself); `modules` are all
    that exist.
    """
    part = part_of(module)
    if part not in MAY_IMPORT:
        return [f"{module}: give it a layer in tests/test_layers.py and docs/architecture.md"]
    tree = ast.parse(source)
    found = []
    for imported in imports(tree, module, is_package=f"{module}.__init__" in modules):
        where = f"{module}:{imported.line}"
        inside, _, target = imported.module.partition(".")
        if inside != PACKAGE:
            top = imported.module.partition(".")[0]
            impure = part in ("core", "wire") and top in IMPURE and not imported.for_typing
            if impure or (LAYERS.get(part) == 4 and top in NOT_IN_L4 and not imported.for_typing):
                found.append(f"{where} imports {top}")
            continue
        if f"{target}.{imported.name}".strip(".") in modules:  # from package import module
            target = f"{target}.{imported.name}".strip(".")
        elif not target and imported.name in FROM_PACKAGE:
            continue
        if part_of(target) not in MAY_IMPORT:
            found.append(f"{where} imports {target}, which has no layer")
        elif not may_import(module, target) and not (
            imported.for_typing and (module, target) in TYPING_ONLY
        ):
            found.append(f"{where} imports {target or PACKAGE}")
    if part in ("core", "wire"):
        found += [f"{module}:{line} {what}" for line, what in actions(tree)]
    return found


def may_import(module: str, target: str) -> bool:
    part, other = part_of(module), part_of(target)
    if part == other != "":
        return True
    joins = module in JOINERS or part in JOINERS
    return other in MAY_IMPORT[part] or (joins and other in SIBLINGS)


def part_of(module: str) -> str:
    """The module or package right below aiosollol that `module` belongs to."""
    return module.partition(".")[0]


def imports(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[Import]:
    package = f"{PACKAGE}.{module}".rstrip(".").split(".")
    if module and not is_package:
        package.pop()
    for node, for_typing in walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, "", node.lineno, for_typing)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                above = package[: len(package) - node.level + 1]
                source = ".".join([*above, *([source] if source else [])])
            for alias in node.names:
                yield Import(source, alias.name, node.lineno, for_typing)
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield Import(name.value, "", node.lineno, for_typing)


def walk(node: ast.AST, for_typing: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below, and whether it stands under ``if TYPE_CHECKING:``."""
    yield node, for_typing
    guarded: list[ast.stmt] = []
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        guarded = node.body
    for child in ast.iter_child_nodes(node):
        yield from walk(child, for_typing or child in guarded)


def actions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Where the code waits, reads a clock, or opens a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith):
            yield node.lineno, "is async"
        elif isinstance(node, ast.Await):
            yield node.lineno, "awaits"
        elif isinstance(node, ast.comprehension) and node.is_async:
            yield node.target.lineno, "is async"
        elif isinstance(node, ast.Call):
            name = called(node)
            if name in CLOCK_METHODS and "date" in ast.unparse(node.func).lower():
                yield node.lineno, "reads the clock"
            elif name == "open" or (name == "print" and isinstance(node.func, ast.Name)):
                yield node.lineno, f"calls {name}"


def called(node: ast.Call) -> str:
    function = node.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def all_modules() -> dict[str, pathlib.Path]:
    """Every module of the package -> its file. A package is there as "core" and "core.__init__"."""
    found = {}
    for path in ROOT.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if name == "__init__":
            found[""] = path
        else:
            found[name.removesuffix(".__init__")] = path
            found[name] = path
    return found


MODULES = all_modules()


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__init__")])
def test_imports_point_down(module: str) -> None:
    found = violations(module, MODULES[module].read_text("utf-8"), set(MODULES))
    assert not found, "\n".join(found)


def test_the_walk_sees_the_package() -> None:
    assert {"", "errors", "core", "core.node", "wire.ollama.client"} <= set(MODULES)


def test_every_layer_is_at_most_its_own() -> None:
    """The table itself holds no arrow that points up."""
    for part, others in MAY_IMPORT.items():
        if part in LAYERS:
            assert all(LAYERS.get(other, 5) <= LAYERS[part] for other in others), part
            assert "testing" not in others


KNOWN = {
    "",
    "errors",
    "core",
    "core.__init__",
    "core.node",
    "core.stats",
    "wire",
    "wire.__init__",
    "wire.ollama.client",
    "ports",
    "transport",
    "cache",
    "cache.__init__",
    "cache.memory",
    "cache.sqlite",
    "config",
    "registry",
    "monitor",
    "streams",
    "executor",
    "pool",
    "hybrid",
    "service",
    "gateway",
    "gateway.__init__",
    "gateway.app",
    "gateway.endpoints.ollama",
    "embedded",
    "cli",
    "testing",
    "new",
}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.node", "from aiosollol.errors import InvalidInput"),
        ("core.node", "from .stats import Counter"),
        ("core.node", "from . import stats"),
        ("core.node", "from .. import errors"),
        ("core", "from .node import NodeSpec"),
        ("core.node", "import dataclasses, datetime"),
        ("core.node", "def f(now: datetime.datetime) -> None: ..."),
        ("core.node", "pool.now(3)"),
        ("core.node", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import random"),
        ("core.node", "from timeit import default_timer"),
        ("errors", "if TYPE_CHECKING:\n    from aiosollol.core.embeddings import Embeddings"),
        ("wire.ollama.client", "from aiosollol.core.node import ModelInfo"),
        ("ports", "import aiosollol.core.node"),
        ("transport", "import aiohttp, asyncio, time\nfrom aiosollol import __version__"),
        ("transport", "from aiosollol.ports import Transport\nasync def f(): await g()"),
        ("cache.memory", "from aiosollol.cache.sqlite import x\nfrom . import sqlite"),
        ("monitor", "import anyio\nfrom aiosollol.cluster.state import Registry"),
        ("executor", "from aiosollol.live.router.streaming import ReplyStream"),
        ("pool", "from aiosollol import transport, executor, config"),
        ("service", "from aiosollol.gateway.app import make_app"),
        ("gateway.app", "from aiosollol.hybrid import HybridRouter"),
        ("gateway.app", "from . import ollama"),
        ("gateway.endpoints.ollama", "from aiosollol.pool.facade.facade import OllamaPool"),
        ("cli", "import aiosollol\nfrom aiosollol import OllamaPool\nimport aiosollol.config"),
        ("testing", "import aiohttp, aiosollol.cli, aiosollol.core.node"),
        ("", "from aiosollol.pool.facade.facade import OllamaPool"),
    ],
)
def test_sound_code_passes(module: str, source: str) -> None:
    assert violations(module, source, KNOWN | {"core.embeddings"}) == []


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        # an arrow that points up, in every way in which Python can write it
        ("core.node", "import aiosollol.ports", "core.node:1 imports ports"),
        ("core.node", "from aiosollol.ports import Transport", "core.node:1 imports ports"),
        ("core.node", "from aiosollol import ports", "core.node:1 imports ports"),
        ("core.node", "from aiosollol import wire", "core.node:1 imports wire"),
        ("core.node", "from ..wire import ollama", "core.node:1 imports wire.ollama.client"),
        ("core.node", "from ..wire.ollama import load", "core.node:1 imports wire.ollama.client"),
        ("core", "from ..wire.ollama import load", "core:1 imports wire.ollama.client"),
        ("core.node", "def f():\n    import aiosollol.pool.facade", "core.node:2 imports pool"),
        (
            "core.node",
            "import importlib\nimportlib.import_module('aiosollol.pool.facade')",
            "imports pool",
        ),
        ("core.node", "__import__('aiosollol.pool.facade')", "imports pool"),
        (
            "core.node",
            "if TYPE_CHECKING:\n    from aiosollol.pool.facade.facade import P",
            "imports pool",
        ),
        ("errors", "from aiosollol.core.embeddings import Embeddings", "imports core.embeddings"),
        ("ports", "from aiosollol.wire.ollama.client.client import load", "imports wire"),
        ("transport", "from aiosollol.cache.memory import M", "imports cache.memory"),
        ("transport", "from aiosollol.cluster.state import R", "imports registry"),
        ("cache.memory", "from ..transport import HttpTransport", "imports transport"),
        ("executor", "from aiosollol.net.transport import HttpTransport", "imports transport"),
        ("executor", "from aiosollol.cluster.health_monitor import Monitor", "imports monitor"),
        ("registry", "from aiosollol.config import load", "imports config"),
        ("registry", "from aiosollol.live.router.streaming import ReplyStream", "imports streams"),
        ("pool", "from aiosollol.embedded import EmbeddedNode", "imports embedded"),
        ("hybrid", "from aiosollol.gateway.app import app", "imports gateway.app"),
        ("hybrid", "from aiosollol.net.transport import HttpTransport", "imports transport"),
        ("gateway.endpoints.ollama", "from aiosollol.hybrid import HybridRouter", "imports hybrid"),
        ("service", "from aiosollol.cli import main", "imports cli"),
        ("cli", "from aiosollol.testing import FakeOllama", "imports testing"),
        ("pool", "from aiosollol.testing import FakeOllama", "imports testing"),
        ("", "from aiosollol.testing import FakeOllama", "imports testing"),
        ("", "from .cli import main", "imports cli"),
        ("core.node", "from aiosollol import OllamaPool", "imports aiosollol"),
        ("pool", "import aiosollol", "imports aiosollol"),
        # a module that nobody placed
        ("new", "", "give it a layer"),
        ("new.part", "", "give it a layer"),
        ("pool", "from aiosollol.new import x", "which has no layer"),
        # what decides does not act
        ("core.node", "async def f(): ...", "core.node:1 is async"),
        ("core.node", "async def f():\n    await g()", "core.node:2 awaits"),
        ("core.node", "def f():\n    return (x async for x in y)", "is async"),
        ("core.node", "async def f():\n    async with x: ...", "core.node:2 is async"),
        ("core.node", "import time", "imports time"),
        ("core.node", "from time import monotonic", "imports time"),
        ("core.node", "def f():\n    import random", "imports random"),
        ("wire.ollama.client", "import aiohttp.web", "imports aiohttp"),
        ("wire.ollama.client", "import asyncio", "imports asyncio"),
        ("wire.ollama.client", "from anyio import sleep", "imports anyio"),
        ("wire", "import asyncio", "imports asyncio"),
        ("core.node", "datetime.now()", "reads the clock"),
        ("core.node", "import datetime as d\nd.datetime.now(d.UTC)", "reads the clock"),
        ("core.node", "datetime.date.today()", "reads the clock"),
        ("core.node", "open('x')", "calls open"),
        # L4 waits on anyio's clock only
        ("executor", "import asyncio", "executor:1 imports asyncio"),
        ("registry", "from aiohttp import ClientSession", "imports aiohttp"),
        ("monitor", "import time", "imports time"),
    ],
)
def test_violations_are_caught(module: str, source: str, problem: str) -> None:
    found = violations(module, source, KNOWN)
    assert any(problem in text for text in found), found
