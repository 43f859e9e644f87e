"""Compares the routing strategies with an oracle, for live requests over unequal nodes.

    python -m benchmarks.routing [--seeds 3] [--requests 20000] [--only NAME] [--json FILE]

In virtual time, requests of different lengths arrive at random (Poisson) at 70 % of the nodes'
capacity. Each node computes one after another, as Ollama does with an embedding model, and needs
up to twice or half its nominal time (lognormal noise). The programs know nothing at first: they
learn from answers, with the pool's own code, and choose by `core.routing.strategies`. The oracle
sends each request to the node that will finish it first (join the shortest expected delay): it
knows every node's true speed, and the rest of every program's requests in flight.

Two targets: a mean latency of at most 1.3 times the oracle's, and of at most half of round robin's.
Plain round robin and "random" overload slow nodes, so their figures grow with the number of
requests. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from aiosollol.core.routing.strategies import RouteRequest, performance, route
from benchmarks.live_shapes import Shape, all_shapes
from benchmarks.live_simulator import Known, Simulation

ORACLE_RATIO = 1.3
ROUND_ROBIN_RATIO = 0.5
DECISION_MICROSECONDS = {2: 5.0, 10: 15.0}
STRATEGIES = ("performance", "least_loaded", "random", "round_robin", "score")


@dataclass(slots=True)
class Row:
    """One shape. Means of the oracle are milliseconds; of the strategies, times the oracle's.

    ratios: by strategy, the worst of the seeds for "performance", the median for others.
    p99: of "performance", times the oracle's. is_limited: nodes have a limit, so that round robin
    passes over those that are full. That is no longer round robin, and "half of it" is not asked.
    """

    name: str
    oracle: float
    ratios: dict[str, float]
    p99: float
    is_judged: bool
    is_limited: bool = False

    @property
    def is_met(self) -> bool:
        ours = self.ratios["performance"]
        part = 1.0 if self.is_limited else ROUND_ROBIN_RATIO
        return ours <= ORACLE_RATIO and ours <= part * self.ratios["round_robin"]


def measure(shape: Shape, requests: int, seeds: int, strategies: Sequence[str] = STRATEGIES) -> Row:
    """The row of one shape."""
    oracles, tails = [], []
    ratios: dict[str, list[float]] = {name: [] for name in strategies}
    for seed in range(seeds):
        oracle = Simulation(shape, "oracle", requests, seed).run().latencies
        oracles.append(statistics.fmean(oracle))
        for name in strategies:
            ours = Simulation(shape, name, requests, seed).run().latencies
            ratios[name].append(statistics.fmean(ours) / oracles[-1])
            if name == "performance":
                tails.append(_p99(ours) / _p99(oracle))
    return Row(
        shape.name,
        1000 * statistics.median(oracles),
        {
            name: max(each) if name == "performance" else statistics.median(each)
            for name, each in ratios.items()
        },
        max(tails),
        shape.is_judged,
        shape.limit < sys.maxsize,
    )


def _p99(latencies: Sequence[float]) -> float:
    return sorted(latencies)[int(0.99 * len(latencies))]


def decision_microseconds(count: int, decisions: int = 20_000) -> float:
    """What it takes to choose one of `count` nodes that are all in use."""
    rng = random.Random(1)
    nodes = [Known(index) for index in range(count)]
    request = RouteRequest("m", 60.0)
    for node in nodes:
        for tokens in (20, 200):
            node.learn(tokens, rng.uniform(0.01, 0.1))
        node.in_flight = 2
        node.backlog.enter(0.05, 0.0)
        node.backlog.enter(0.05, 0.0)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(decisions // 5):
            route(performance, nodes, request, 0.01, rng)
        best = min(best, time.perf_counter() - began)
    return best / (decisions // 5) * 1e6


def table(rows: Sequence[Row], strategies: Sequence[str] = STRATEGIES) -> str:
    """The rows as text. Columns are as wide as their heads: larger figures stick out."""
    width = max(len(row.name) for row in rows)
    widths = [width, len("oracle ms"), *map(len, strategies), len("1.00")]
    lines = [f"{'shape':{width}}  oracle ms  {'  '.join(strategies)}  p99"]
    lines.append("  ".join("-" * each for each in widths))
    for row in rows:
        cells = [f"{row.ratios[name]:{len(name)}.2f}" for name in strategies]
        lines.append(
            f"{row.name:{width}}  {row.oracle:9.1f}  {'  '.join(cells)}  {row.p99:.2f}"
            f"{'' if row.is_judged else '  (not judged)'}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Live requests in virtual time.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    rows = [
        measure(shape, options.requests, options.seeds)
        for shape in all_shapes()
        if options.only in shape.name
    ]
    print(table(rows) if rows else "no such shape")
    print()
    is_met = True
    for row in rows:
        if row.is_judged:
            is_met &= row.is_met
            if not row.is_met:
                print(f"MISSED  {row.name}: {row.ratios['performance']:.2f}")
    judged = [row.ratios["performance"] for row in rows if row.is_judged]
    if judged:
        print(f"worst mean over the oracle's: {max(judged):.2f}, at most {ORACLE_RATIO} is asked")
    for count, most in DECISION_MICROSECONDS.items():
        taken = decision_microseconds(count)
        print(f"a decision among {count} nodes: {taken:.1f} us, at most {most:.0f} is asked")
        is_met &= taken <= most
    print(f"in {time.monotonic() - began:.0f} s, {options.seeds} seeds, the worst of them for ours")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return int(not is_met)


if __name__ == "__main__":
    sys.exit(main())
