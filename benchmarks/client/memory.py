"""5. Peak memory of a long `embed_stream`, in a fresh process.

    python -m benchmarks.client.memory URL 100000

is such a process: it prints resident megabytes before, on the way, and the peak, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.client.bodies import MODEL
from benchmarks.client.report import Row, Table
from benchmarks.servers import NoCost

LIMIT_MB = 150.0
FLAT = 1.1
CHARACTERS = 300
_SAMPLES, _SHOWN = 400, 20


def run(texts: int) -> Table:
    table = Table(
        5,
        f"memory of embed_stream, {texts:,} texts of {CHARACTERS} characters, 768 dimensions",
        "the raw asyncio server",
    )
    with NoCost(dim=768, tokens=CHARACTERS // 4 + 2) as server:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.client.memory", server.urls[0], str(texts)],
            stdout=subprocess.PIPE,
            check=True,
        )
    result: dict[str, Any] = json.loads(done.stdout)
    samples = result["samples"]
    quarter = len(samples) // 4
    early, late = max(samples[quarter : 2 * quarter]), max(samples[-quarter:])
    before = result["before"]
    step = max(1, len(samples) // _SHOWN)
    shown = [max(samples[at : at + step]) for at in range(0, len(samples), step)]
    table.rows = [
        Row("peak", "the process before", result["peak"], before, "MB", result["peak"] / before),
        Row(
            "most in the last quarter", "most in the second", late, early, "MB", late / early, FLAT
        ),
    ]
    verdict = "met" if result["peak"] < LIMIT_MB else "MISSED"
    table.notes = [
        f"peak under {LIMIT_MB:g} MB: {verdict}",
        f"{result['seconds']:.1f} s, {texts / result['seconds']:,.0f} vectors per second",
        "most MB in each twentieth: " + " ".join(f"{sample:.0f}" for sample in shown),
    ]
    return table


def resident_mb() -> float:
    """Resident memory now, or the peak so far where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_mb()
    return pages * resource.getpagesize() / 1e6


def peak_mb() -> float:
    """The most that this process ever had resident."""
    # Where there is /proc: ru_maxrss also counts the parent's, from before exec.
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def texts_of(count: int) -> Iterator[str]:
    tail = "lorem ipsum dolor sit amet " * (CHARACTERS // 27 + 1)
    for number in range(count):
        yield f"{number} {tail}"[:CHARACTERS]


async def consume(url: str, count: int) -> dict[str, Any]:
    from aiosollol import OllamaPool

    before, samples, every, total = resident_mb(), [], max(1, count // _SAMPLES), 0.0
    began = time.perf_counter()
    async with OllamaPool(nodes=[url]) as pool:
        number = 0
        async for vector in pool.embed_stream(MODEL, texts_of(count)):
            total += vector[0]
            number += 1
            if not number % every:
                samples.append(resident_mb())
    assert number == count
    seconds = time.perf_counter() - began
    return {"before": before, "samples": samples, "peak": peak_mb(), "seconds": seconds}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(consume(sys.argv[1], int(sys.argv[2])))))
