"""Cluster state has one writer: nodes and the registry are changed by their own verbs alone.

What they hold may be read anywhere. Each module is read as a syntax tree: outside the modules that
define them, an assignment to one of their attributes, or a call that changes what such an attribute
holds, is a violation. A name counts for what it is, whatever stands before it, so other classes
that use one of these names are listed in `OTHERS`.
"""

from __future__ import annotations

import ast
import inspect
import pathlib
from collections.abc import Iterator

import pytest

import aiosollol
from aiosollol.cluster.node import Node
from aiosollol.cluster.state import ClusterState
from aiosollol.pool.registry import NodeRegistry

ROOT = pathlib.Path(aiosollol.__file__).parent
CLASSES = [each for each in (*Node.__mro__, *ClusterState.__mro__) if each is not object]
WRITERS = {inspect.getsourcefile(each) for each in CLASSES}
SUBCLASSES = {NodeRegistry.__name__}  # of Registry: their own `self` counts as well

STATE = {slot for each in CLASSES for slot in vars(each).get("__slots__", ())} | set(
    vars(ClusterState())
)
STATE.discard("name")  # a string, and far too common a name
READS = {  # methods that change nothing, of what those attributes hold
    *("get", "items", "keys", "values", "copy", "tickets", "peek"),
    *("ahead", "is_due", "success_rate", "factor", "pace", "novelty"),
    *("admits", "phase", "describe"),
    *("has_gpu", "has_model", "find_model", "_replace"),
    *("watch", "tell", "close"),  # the hub of events, which is no state of the cluster
}
# What looks like it and is something else: the end of a module's name, and the expression.
OTHERS = {
    ("state_machine", "node.last_done"),  # the node of a batch
    ("limits", "client.in_flight"),
    ("limits", "self._clients[name].in_flight"),
    ("lease_leader", "worker.slots"),
    ("accepting", "self._gate.room"),  # an event of the gateway's connections
    ("accepting", "gate.room"),
}


def violations(source: str, module: str = "module") -> list[str]:
    """What in `source` changes the state of a node or a registry."""
    return [
        f"{module}:{line} {what}"
        for line, what in changes(ast.parse(source))
        if (module.rpartition(".")[2], what.partition(" ")[0]) not in OTHERS
    ]


def changes(tree: ast.AST, own: bool = False) -> Iterator[tuple[int, str]]:
    """Line and expression of each change. own: whether `self` is a registry here."""
    aliases: set[str] = set()
    for node in walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base) for base in node.bases}
            is_own = node.name in SUBCLASSES or bool(bases & {each.__name__ for each in CLASSES})
            for child in node.body:
                yield from changes(child, is_own)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node is not tree:
            yield from changes(node, own)
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete):
            single = isinstance(node, ast.AugAssign | ast.AnnAssign)
            targets = [node.target] if single else node.targets  # type: ignore[union-attr]
            for target in targets:
                for part in written(target):
                    if state_of(part, own):
                        yield node.lineno, f"{ast.unparse(part)} is assigned"
            value = getattr(node, "value", None)
            if isinstance(node, ast.Assign) and state_of(value, own):
                aliases |= {each.id for each in node.targets if isinstance(each, ast.Name)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, method = node.func.value, node.func.attr
            is_alias = isinstance(owner, ast.Name) and owner.id in aliases
            if (state_of(owner, own) or is_alias) and method not in READS:
                yield node.lineno, f"{ast.unparse(owner)} changes by {method}()"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and name.value in STATE:
                yield node.lineno, f"{ast.unparse(node)} is assigned"


def walk(tree: ast.AST) -> Iterator[ast.AST]:
    """`tree` and what is below it, in order, but not inside other functions and classes."""
    yield tree
    if not isinstance(tree, ast.ClassDef):
        for child in ast.iter_child_nodes(tree):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield child
            else:
                yield from walk(child)


def written(target: ast.AST) -> Iterator[ast.AST]:
    """What an assignment to `target` changes: of ``a.b[c].d``, all but ``c``."""
    yield target
    if isinstance(target, ast.Attribute | ast.Subscript | ast.Starred):
        yield from written(target.value)
    elif isinstance(target, ast.Tuple | ast.List):
        for each in target.elts:
            yield from written(each)


def state_of(part: ast.AST | None, own: bool) -> bool:
    """Whether `part` is an attribute of a node or a registry, as far as its name tells."""
    if not isinstance(part, ast.Attribute) or part.attr not in STATE:
        return False
    is_self = isinstance(part.value, ast.Name) and part.value.id == "self"
    return own or not is_self


MODULES = [path for path in sorted(ROOT.rglob("*.py")) if str(path) not in WRITERS]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nodes_and_registry_are_changed_by_their_verbs(path: pathlib.Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    found = violations(path.read_text("utf-8"), module)
    assert not found, "\n".join(found)


def test_the_check_knows_what_they_hold() -> None:
    assert {"counters", "is_draining", "breaker", "queued", "stained", "is_searching"} <= STATE
    assert len(WRITERS) == 6


@pytest.mark.parametrize(
    "source",
    [
        "node.is_draining = True",
        "self._registry[name].counters.vectors += 1",
        "node.counters.failed += 1",
        "node.queued -= 1",
        "one.outrun, two = request, None",
        "for each in racing:\n    each.outrun = request",
        "node.costs[model] = cost",
        "del node.costs[model]",
        "node.costs.pop(model)",
        "node.distrusted |= {name}",
        "self._registry.stained.add(name)",
        "self.node.standing = Standing(now)",
        "node.standing.failed(now)",
        "node.backlog.enter(1.0, now)",
        "registry.room.limit = 5",
        "def f(self):\n    room = self._registry.room\n    room.add(waiter)",
        "node.breaker: Breaker = CLOSED",
        "setattr(node, 'is_draining', True)",
        "class NodeRegistry(Registry):\n    def f(self):\n        self.is_searching = True",
    ],
)
def test_changes_are_caught(source: str) -> None:
    assert violations(source)


@pytest.mark.parametrize(
    "source",
    [
        "node.drain()",
        "if node.is_draining and node.standing.is_due(now): pass",
        "x = node.counters.failed + 1",
        "for model, cost in node.costs.items(): pass",
        "class Other:\n    def f(self):\n        self.limit = 3\n        self.room.add(1)",
        "def f():\n    room = registry.room\ndef g(room):\n    room.add(1)",
        "async with node.slots: pass",
        "costs[node.name] = node.cost(model)",
    ],
)
def test_reads_pass(source: str) -> None:
    assert violations(source) == []
