"""Duration of `import aiosollol`, as a multiple of `import aiohttp`.

    python -m benchmarks.start_up [--pairs 25] [--limit 1.5] [--json]

Each import runs in a new interpreter, which reports the time of the import statement alone. The two
alternate and swap places, so that changes of the machine's speed affect both; the result is the
median of the paired ratios. Exits with 1 if it is `limit` or more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

OURS, THEIRS = "aiosollol", "aiohttp"


def main() -> int:
    parser = argparse.ArgumentParser(description="Time `import aiosollol`.")
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--limit", type=float, default=1.5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    for module in (OURS, THEIRS):
        import_seconds(module)  # writes the byte code and fills the file cache
    pairs = [measure_pair(swap=bool(turn % 2)) for turn in range(options.pairs)]
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(own / other for own, other in pairs)
    result = {
        "ratio": round(ratio, 3),
        "limit": options.limit,
        f"{OURS}_ms": round(ours * 1000, 1),
        f"{THEIRS}_ms": round(theirs * 1000, 1),
        "pairs": options.pairs,
        "python": sys.version.split()[0],
    }
    if options.json:
        print(json.dumps(result))
    else:
        print(
            f"import {OURS}: {ours * 1000:.1f} ms, import {THEIRS}: {theirs * 1000:.1f} ms, "
            f"ratio {ratio:.2f} (limit {options.limit}; medians of {options.pairs} pairs)"
        )
    return int(ratio >= options.limit)


def measure_pair(*, swap: bool) -> tuple[float, float]:
    """Seconds of (ours, theirs); `swap` measures theirs first."""
    if swap:
        theirs = import_seconds(THEIRS)
        return import_seconds(OURS), theirs
    return import_seconds(OURS), import_seconds(THEIRS)


def import_seconds(module: str) -> float:
    code = f"from time import perf_counter as t; a = t(); import {module}; print(t() - a)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return float(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
