"""Long texts made to be slow: every pattern of the package, and every parser of outside text.

What takes linear time is done in milliseconds. What does not would take minutes to years, and is
interrupted after `PATIENCE`: no test asserts how long anything takes.
"""

from __future__ import annotations

import ast
import importlib
import pathlib
import pkgutil
import re
import signal
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

import aiosollol
from aiosollol.cli.embed_files import cut_passages
from aiosollol.config import resolve
from aiosollol.core.address import Address
from aiosollol.core.durations import parse_duration
from aiosollol.errors import InvalidInput
from aiosollol.telemetry import tracing
from aiosollol.wire.announcement import read_announcement
from aiosollol.wire.ollama import go_json, server_requests

PATIENCE = 15.0
LONG, SHORT = 200_000, 10_000  # characters: for what may be quadratic, and for what is worse

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGALRM")


class TooSlow(Exception):
    pass


@contextmanager
def patience(seconds: float = PATIENCE) -> Iterator[None]:
    """Interrupt what takes longer, also in the middle of a regular expression."""

    def interrupt(number: int, frame: types.FrameType | None) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- patterns


Use = tuple[re.Pattern[Any], frozenset[str]]
METHODS = {
    "match": "match",
    "fullmatch": "fullmatch",
    "search": "search",
    **dict.fromkeys(("finditer", "findall", "sub", "split"), "finditer"),
}


def _uses() -> dict[str, Use]:
    """Every pattern that a module has, or writes where it uses it, and how it is used."""
    found: dict[str, Use] = {}
    for info in pkgutil.walk_packages(aiosollol.__path__, "aiosollol."):
        if info.name.rpartition(".")[2].startswith("__"):
            continue
        try:
            module = importlib.import_module(info.name)
        except ImportError:  # of an extra
            continue
        tree = ast.parse(pathlib.Path(str(module.__file__)).read_text("utf-8"))
        used: dict[str, set[str]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in METHODS:
                used.setdefault(ast.unparse(node.value), set()).add(METHODS[node.attr])
        anyhow = frozenset().union(*used.values())
        for name, value in vars(module).items():
            if isinstance(value, re.Pattern):
                found[f"{info.name}.{name}"] = value, frozenset(used.get(name, anyhow))
        for node in ast.walk(tree):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="re"), attr=method),
                    args=[ast.Constant(value=str() | bytes() as text), *_],
                ) if method in METHODS:
                    use = re.compile(text), frozenset({METHODS[method]})
                    found[f"{info.name}:{node.lineno}"] = use
    return found


USES = _uses()


def _texts(pattern: re.Pattern[Any]) -> Iterator[str]:
    """Runs of what the pattern may look for, that end in what it does not."""
    source = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode()
    lead = re.split(r"[\\()\[\]{}*+?.|^$]", source, maxsplit=1)[0]
    literals = [c for c in source if c.isalnum() or c in ".-_/,;:'\"=<!~"]
    likely = list(dict.fromkeys([" ", "\n", "1", "a", ".", "\\", *literals]))[:12]
    for character in likely:
        for first in dict.fromkeys(("", lead, "a", "/", "[")):
            yield first + character * LONG + "\0"
    for one in likely[:8]:
        for other in likely[:8]:
            yield lead + (one + other) * (SHORT // 2) + "\0"


def _apply(pattern: re.Pattern[Any], method: str, text: str) -> None:
    given: Any = text if isinstance(pattern.pattern, str) else text.encode()
    found = getattr(pattern, method)(given)
    if method == "finditer":
        for _ in found:
            pass


@pytest.mark.parametrize("place", USES)
def test_patterns_are_linear(place: str) -> None:
    pattern, methods = USES[place]
    for text in _texts(pattern):
        for method in methods:
            with patience():
                _apply(pattern, method, text)


def test_all_patterns_are_found() -> None:
    assert len(USES) > 40
    assert "aiosollol.telemetry.tracing._PARENT" in USES
    assert any(place.startswith("aiosollol.testing.chat:") for place in USES)


@pytest.mark.parametrize("slow", [r"\s*[a-z]+", r"([0-9]*\.?[0-9]+|[0-9]+\.)(s|m)", r"(a|aa)+$"])
def test_a_slow_pattern_would_be_found(slow: str) -> None:
    pattern = re.compile(slow)
    with pytest.raises(TooSlow), patience(0.2):
        for text in _texts(pattern):
            _apply(pattern, "finditer", text)


# ---- parsers

RUNS = [
    "1",
    ".",
    "1.",
    "1s",
    "-",
    " ",
    "\n",
    "\t [",
    "a",
    "a-",
    "a.",
    ",",
    "\\",
    '"',
    "é",
    "\ud800",
]


def _read_embed(text: str) -> object:
    body = b'{"model":"m","keep_alive":"%b"}' % text.encode("utf-8", "surrogatepass")
    return server_requests.read_embed(body.replace(b"\n", b" "))


PARSERS: dict[str, Callable[[str], object]] = {
    "durations": parse_duration,
    "requests": _read_embed,
    "addresses": Address.parse,
    "passages": lambda text: list(cut_passages(text, 1000)),
    "passages in one": lambda text: list(cut_passages(text, LONG * 2)),
    "JSON": lambda text: go_json.loads(text.encode("utf-8", "surrogatepass")),
    "JSON in a list": lambda text: go_json.loads(b"[" + text.encode("utf-8", "surrogatepass")),
    "JSON in a string": lambda text: go_json.loads(b'["' + text.encode("utf-8", "surrogatepass")),
    "traces": lambda text: tracing.read_trace([text], [text]),
    "lines of a settings file": lambda text: resolve._line_of("x", text),
    "announcements": lambda text: read_announcement(
        "name", {b"path": text.encode("utf-8", "replace"), b"version": b"1" * LONG}
    ),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("parser", PARSERS)
def test_parsers_are_linear(parser: str, run: str) -> None:
    for text in (run * (LONG // len(run)), run * (LONG // len(run)) + "\0", run * 2000):
        with patience(), suppress(InvalidInput, server_requests.Refusal, go_json.GoJSONError):
            PARSERS[parser](text)
