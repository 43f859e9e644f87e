"""Contestants that take turns: A B A B, so that a machine that slows down does so for all."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

# glibc gives memory back to the system and takes it again around every read of a socket, or does
# not, by how its heap happens to lie: one and the same client takes 80 us a call in one process and
# 100 in the next. This makes it keep the memory, in all of them.
STEADY_MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 28),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
    "MALLOC_TOP_PAD_": str(1 << 24),
}


class Missing(Exception):
    """A client that is not installed."""


class Contestant:
    """A client in a process of its own (see `contestant`), as a context manager.

    client: its name there. label: its name in tables. Raises Missing on entering.
    """

    def __init__(
        self,
        client: str,
        urls: Sequence[str],
        *,
        label: str = "",
        loop: str = "asyncio",
        **options: Any,
    ) -> None:
        self.label = label or client
        self._client = client
        self._setting = {"urls": list(urls), "loop": loop, "options": options}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Contestant:
        program = [sys.executable, "-m", "benchmarks.client.contestant"]
        self._process = subprocess.Popen(
            [*program, self._client, json.dumps(self._setting)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **STEADY_MALLOC},
            stderr=None if self._client in ("ours", "floor") else subprocess.DEVNULL,
            text=True,
        )
        try:
            first = self._read()
        except BaseException:
            self._end()
            raise
        if "missing" in first:
            self._end()
            raise Missing(first["missing"])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def do(self, what: str, **details: Any) -> dict[str, Any]:
        """Carry out one command, and wait for what it took."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **details}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.label} ended with code {self._process.wait()}")
        result: dict[str, Any] = json.loads(line)
        return result

    def _end(self) -> None:
        assert self._process is not None
        if self._process.stdin is not None:
            self._process.stdin.close()  # it ends when its stdin does
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def check_same(results: Sequence[dict[str, Any]]) -> None:
    """Raise unless all came to the same vectors, as far as their ends and number tell."""
    first = results[0]["check"]
    for result in results[1:]:
        same = result["check"][0] == first[0] and all(
            math.isclose(ours, theirs, rel_tol=1e-6)
            for ours, theirs in zip(result["check"][1:], first[1:], strict=True)
        )
        if not same:
            raise RuntimeError(f"the clients disagree: {first} and {result['check']}")


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over the rounds of ours / theirs."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
