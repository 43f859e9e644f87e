"""`core` and `wire` decide and never act: no awaiting, no clock, no files.

Which package may import which is checked by import-linter (`[tool.importlinter]` in
pyproject.toml, run by ``nox -s lint``). What it cannot see is checked here, module by module.
"""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

import pytest

import aiosollol

ROOT = pathlib.Path(aiosollol.__file__).parent
MODULES = sorted(path for part in ("core", "wire") for path in (ROOT / part).rglob("*.py"))
CLOCK_METHODS = {"now", "utcnow", "today"}


def actions(tree: ast.AST) -> Iterator[str]:
    """Where the code waits, reads a clock, or opens a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith):
            yield f"line {node.lineno} is async"
        elif isinstance(node, ast.Await):
            yield f"line {node.lineno} awaits"
        elif isinstance(node, ast.comprehension) and node.is_async:
            yield f"line {node.target.lineno} is async"
        elif isinstance(node, ast.Call):
            yield from calls(node)


def calls(node: ast.Call) -> Iterator[str]:
    function = node.func
    name = getattr(function, "attr", getattr(function, "id", ""))
    if name in CLOCK_METHODS and "date" in ast.unparse(function).lower():
        yield f"line {node.lineno} reads the clock"
    elif name == "open" or (name == "print" and isinstance(function, ast.Name)):
        yield f"line {node.lineno} calls {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pure_modules_do_not_act(path: pathlib.Path) -> None:
    assert not list(actions(ast.parse(path.read_text("utf-8"))))


def test_the_walk_sees_the_packages() -> None:
    assert {"node.py", "planner.py", "http1.py"} <= {path.name for path in MODULES}


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("async def f(): ...", "line 1 is async"),
        ("async def f():\n    await g()", "line 2 awaits"),
        ("def f():\n    return (x async for x in y)", "line 2 is async"),
        ("async def f():\n    async with x: ...", "line 2 is async"),
        ("datetime.now()", "line 1 reads the clock"),
        ("import datetime as d\nd.datetime.now(d.UTC)", "line 2 reads the clock"),
        ("datetime.date.today()", "line 1 reads the clock"),
        ("open('x')", "line 1 calls open"),
        ("print('x')", "line 1 calls print"),
    ],
)
def test_actions_are_found(source: str, problem: str) -> None:
    assert problem in list(actions(ast.parse(source)))


@pytest.mark.parametrize("source", ["def f(now: datetime.datetime) -> None: ...", "pool.now(3)"])
def test_pure_code_passes(source: str) -> None:
    assert not list(actions(ast.parse(source)))
