"""The scheduler on large clusters, in simulated time.

    python -m benchmarks.simulate [--runs 5] [--only NAME] [--json FILE]

Drives the pure code of a real batch with a simulated clock: the scenarios of the makespan
benchmark, then 1 to 1,000 nodes and 1,000 to 1,000,000 texts, each without noise and with up to 5 %
noise for each request. Reports medians of runs with different noise; runs without noise and large
runs are not repeated. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from aiosollol.core.scheduling.cost import Cost
from aiosollol.core.scheduling.planner import BatchShape, Candidate, plan
from benchmarks.scenarios import OVERHEAD, Scenario, all_scenarios
from benchmarks.simulator import Outcome, SimNode, Simulation, lower_bound
from benchmarks.table import Row, Target, print_targets, table, targets

NODE_COUNTS = (1, 10, 100, 1000)
ITEM_COUNTS = (1_000, 10_000, 100_000, 1_000_000)
NOISES = (0.0, 0.05)
DECISION_MICROSECONDS = 20.0
_MEASURED_AT = 100
"""The number of nodes at which a decision is measured."""
_LESSON_FROM, _LESSON = 100_000, 50
"""A warm batch of at least `_LESSON_FROM` items follows two with `_LESSON` items per node."""
_SPLIT_ITEMS = 32


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Batches in simulated time.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    every: list[Row] = []
    is_met = True
    for noise in NOISES:
        title = f"noise {noise:.0%}"
        rows = [
            measure(_noisy(scenario, noise), options.runs if noise else 1)
            for scenario in all_scenarios()
            if options.only in scenario.name
        ]
        is_met &= _show(f"{title}: the scenarios of the makespan benchmark", rows, targets(rows))
        large = list(_large(noise, options.only))
        is_met &= _show(f"{title}: large", large, [*targets(large), *_decision_target(large)])
        every += [replace(row, name=f"{title}: {row.name}") for row in rows + large]
    print(f"in {time.monotonic() - began:.0f} s, medians of {options.runs} runs")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in every], indent=1))
    return int(not is_met)


def _show(title: str, rows: Sequence[Row], found: Sequence[Target]) -> bool:
    if not rows:
        return True
    print(f"{title}\n\n{table(rows)}\n")
    print_targets(found)
    print()
    return all(target.is_met for target in found)


def _decision_target(rows: Sequence[Row]) -> list[Target]:
    decisions = [
        row.decision
        for row in rows
        if row.decision is not None and row.name.startswith(f"{_MEASURED_AT} nodes")
    ]
    if not decisions:
        return []
    text = f"a decision costs less than {DECISION_MICROSECONDS:g} us at {_MEASURED_AT} nodes"
    worst = max(decisions)
    return [Target(text, worst < DECISION_MICROSECONDS, f"worst {worst:.1f} us")]


def _noisy(scenario: Scenario, noise: float) -> Scenario:
    return replace(scenario, nodes=[replace(node, noise=noise) for node in scenario.nodes])


def _large(noise: float, only: str) -> Iterator[Row]:
    """Texts of 20 to 2,000 characters, cost by token, nodes of which some are 4 times as fast."""
    for items in ITEM_COUNTS:
        rng = random.Random(items)
        lengths = [int(20 * 100 ** rng.random()) for _ in range(items)]
        for count in NODE_COUNTS:
            name = f"{count} {'node' if count == 1 else 'nodes'}, {items} texts"
            if only not in name:
                continue
            speeds = random.Random(count)
            nodes = [
                SimNode(
                    f"n{index}",
                    overhead=OVERHEAD,
                    per_token=50e-6 * 4 ** speeds.random(),
                    noise=noise,
                )
                for index in range(count)
            ]
            yield measure(Scenario(name, nodes, lengths), 1)


def measure(scenario: Scenario, runs: int) -> Row:
    """Simulate a scenario cold, and warm after two batches without its fate."""
    tokens = scenario.tokens
    sound = [replace(node, fate=()) for node in scenario.nodes]
    lesson = tokens[: _LESSON * len(sound)] if len(tokens) >= _LESSON_FROM else tokens
    cold, warm, predicted = [], [], []
    for seed in range(runs):
        cold.append(_run(scenario.nodes, tokens, {}, seed))
        costs = cold[-1].costs if lesson is tokens and not scenario.fate else {}
        for number in range(1 if costs else 2):
            costs = _run(sound, lesson, costs, 1000 * number + seed).costs
        predicted.append(_predict(scenario, tokens, costs))
        warm.append(_run(scenario.nodes, tokens, costs, 5000 + seed))
    errors = [
        abs(guess - each.seconds) / each.seconds
        for guess, each in zip(predicted, warm, strict=True)
    ]
    tallies = [each.state.tallies.values() for each in warm]
    best = scenario.best_node()
    return Row(
        name=scenario.name,
        bound=lower_bound(scenario.nodes, tokens),
        cold=statistics.median(each.seconds for each in cold),
        warm=statistics.median(each.seconds for each in warm),
        even=_even_split(scenario, tokens),
        single=_finish(sound[best], tokens),
        predicted=statistics.median(predicted),
        error=statistics.median(errors),
        requests=round(statistics.median(sum(t.requests for t in each) for each in tallies)),
        copies=round(statistics.median(each.state.copies for each in warm)),
        wrong=sum(len(tokens) - each.state.done_count + len(each.state.errors) for each in warm),
        is_fated=scenario.fate is not None,
        chunk_seconds=_largest_chunk(scenario, warm) if scenario.is_deadly else None,
        decision=statistics.median(1e6 * each.deciding / each.decisions for each in warm),
    )


def _run(
    nodes: Sequence[SimNode], tokens: Sequence[float], costs: dict[str, Cost], seed: int
) -> Outcome:
    gc.collect()
    simulation = Simulation(nodes, tokens, costs=costs, seed=seed, is_counting=False)
    gc.disable()  # a pass over a million items would be counted as part of one decision
    try:
        return simulation.run()
    finally:
        gc.enable()


def _predict(scenario: Scenario, tokens: Sequence[float], costs: dict[str, Cost]) -> float:
    view = [Candidate(node.name, costs[node.name], node.name) for node in scenario.nodes]
    return plan(view, BatchShape(len(tokens), sum(tokens))).predicted_seconds


def _largest_chunk(scenario: Scenario, outcomes: Sequence[Outcome]) -> float:
    items = max(each.items for outcome in outcomes for each in outcome.state.slices)
    return items * max(node.per_item for node in scenario.nodes)


# What we are compared with, reckoned: lists of a fixed size, fixed in advance.


def _even_split(scenario: Scenario, tokens: Sequence[float]) -> float | None:
    """Each node gets the same number of texts. None where a node dies with what it had."""
    if scenario.is_deadly:
        return None
    count = len(scenario.nodes)
    return max(_finish(node, tokens[index::count]) for index, node in enumerate(scenario.nodes))


def _finish(node: SimNode, tokens: Sequence[float]) -> float:
    """When a node is done with all of `tokens`, alone. It may become slower, once."""
    lists = -(-len(tokens) // _SPLIT_ITEMS)
    seconds = lists * node.overhead + len(tokens) * node.per_item + sum(tokens) * node.per_token
    for at, slowness in node.fate:
        if not isinstance(slowness, str) and at < seconds:
            seconds = at + (seconds - at) * slowness
    return seconds


if __name__ == "__main__":
    sys.exit(main())
