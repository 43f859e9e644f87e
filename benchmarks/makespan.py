"""How close batches come to the physical limit, over real HTTP.

    python -m benchmarks.makespan [--runs 5] [--only NAME] [--json FILE] [--traces DIRECTORY]

Every node is a FakeOllama with a known cost for each text or token. For each scenario: three
batches on a new pool (the first is *cold*, the third *warm*), an even split, and the best node
alone. README.md here describes the columns. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from aiosollol import Embeddings, OllamaPool
from aiosollol.core.node import NodeSpec
from aiosollol.core.report import BatchReport
from aiosollol.core.request import EmbedSettings
from aiosollol.net.transport import HttpTransport
from aiosollol.testing import FakeModel, fake_vector
from aiosollol.wire.ollama import embeddings as embed
from benchmarks.cluster import DIM, MODEL, Cluster
from benchmarks.scenarios import Scenario, all_scenarios
from benchmarks.simulator import SimNode
from benchmarks.table import Row, print_targets, table, targets

_OTHERS_SECONDS = 4.0
"""Seconds for each comparison: of longer batches only the beginning is measured."""
_SPLIT_ITEMS = 32
_TIMEOUT = 60.0


@dataclass(slots=True)
class Batch:
    """One batch as it went."""

    seconds: float
    predicted: float
    requests: int
    copies: int
    cpu: float
    wrong: int
    chunk_seconds: float
    report: BatchReport = field(repr=False)

    def figures(self) -> dict[str, float]:
        return {each.name: getattr(self, each.name) for each in fields(self)[:-1]}


@dataclass(slots=True)
class Measured:
    """Everything measured of one scenario. `server_cpu`: cores used by all servers in the runs."""

    scenario: str
    bound: float
    even: float | None = None
    single: float | None = None
    cold: list[Batch] = field(default_factory=list)
    warm: list[Batch] = field(default_factory=list)
    server_cpu: float = 0.0

    def figures(self) -> dict[str, Any]:
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        found["cold"] = [batch.figures() for batch in self.cold]
        found["warm"] = [batch.figures() for batch in self.warm]
        return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Batches over HTTP against the lower bound.")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--traces", type=Path, help="write the last warm batches to this directory")
    options = parser.parse_args(arguments)
    chosen = [scenario for scenario in all_scenarios() if options.only in scenario.name]
    if not chosen or options.runs < 1:
        parser.error("nothing to run; the scenarios are: " + ", ".join(map(repr, _names())))
    logging.getLogger("aiosollol").setLevel(logging.ERROR)  # that nodes go down is meant
    load = os.getloadavg()[0]
    measured = asyncio.run(measure_all(chosen, options.runs))
    rows = [_row(each, scenario) for each, scenario in zip(measured, chosen, strict=True)]
    print(table(rows))
    client = max(batch.cpu / batch.seconds for each in measured for batch in each.warm)
    servers = max(each.server_cpu for each in measured)
    print(
        f"\nmedians of {options.runs} runs; at most {client:.2f} cores for us, {servers:.2f} for "
        f"the servers of a scenario; {os.cpu_count()} cores, load before {load:.1f}\n"
    )
    found = targets(rows)
    print_targets(found)
    if options.json:
        options.json.write_text(json.dumps([each.figures() for each in measured], indent=1))
    if options.traces:
        options.traces.mkdir(parents=True, exist_ok=True)
        for each in measured:
            name = re.sub(r"\W+", "-", each.scenario)
            each.warm[-1].report.to_trace(options.traces / f"{name}.json")
    return int(not all(target.is_met for target in found))


def _names() -> list[str]:
    return [scenario.name for scenario in all_scenarios()]


def _row(measured: Measured, scenario: Scenario) -> Row:
    cold = statistics.median(batch.seconds for batch in measured.cold)
    warm = statistics.median(batch.seconds for batch in measured.warm)
    return Row(
        name=measured.scenario,
        bound=measured.bound,
        cold=cold,
        warm=warm,
        even=measured.even,
        single=measured.single,
        predicted=statistics.median(batch.predicted for batch in measured.warm),
        error=statistics.median(
            abs(batch.predicted - batch.seconds) / batch.seconds for batch in measured.warm
        ),
        requests=round(statistics.median(batch.requests for batch in measured.warm)),
        copies=round(statistics.median(batch.copies for batch in measured.warm)),
        wrong=sum(batch.wrong for batch in measured.cold + measured.warm),
        is_fated=scenario.fate is not None,
        chunk_seconds=statistics.median(batch.chunk_seconds for batch in measured.warm)
        if scenario.is_deadly
        else None,
    )


async def measure_all(scenarios: Sequence[Scenario], runs: int) -> list[Measured]:
    """Start all servers, measure what we are compared with once, then us in `runs` rounds.

    In each round every scenario has its turn, so that a bad minute of this machine does not hit
    one scenario alone. The even split and the best node alone have servers of their own and are
    measured at the same time, one scenario after another.
    """
    measured = [Measured(scenario.name, scenario.bound) for scenario in scenarios]
    async with AsyncExitStack() as stack:
        clusters = [await stack.enter_async_context(Cluster(each.nodes)) for each in scenarios]
        alone = [
            await stack.enter_async_context(Cluster([each.nodes[each.best_node()]]))
            for each in scenarios
        ]
        for each, scenario, cluster, other in zip(
            measured, scenarios, clusters, alone, strict=True
        ):
            each.even, each.single = await asyncio.gather(
                _even_split(scenario, cluster), _alone(scenario, other)
            )
        for _ in range(runs):
            for each, scenario, cluster in zip(measured, scenarios, clusters, strict=True):
                await _run_pool(scenario, cluster, each)
    return measured


# Us.


async def _run_pool(scenario: Scenario, cluster: Cluster, measured: Measured) -> None:
    """Three batches on a new pool. What happens to a node happens in the first and the third."""
    nodes = [{"url": url, "machine": f"m{index}"} for index, url in enumerate(cluster.urls)]
    async with OllamaPool(nodes, embed_timeout=_TIMEOUT) as pool:
        before, began = sum(await cluster.cpu_seconds()), time.monotonic()
        measured.cold.append(await _batch(scenario, cluster, pool))
        if not scenario.fate:
            await _batch(scenario, cluster, pool)
            warm = await _batch(scenario, cluster, pool)
            used = sum(await cluster.cpu_seconds()) - before
            measured.server_cpu = max(measured.server_cpu, used / (time.monotonic() - began))
            measured.warm.append(warm)
            return
    # The node was healed, but the pool remembers: only a new one knows nothing but good of it.
    async with OllamaPool(nodes, embed_timeout=_TIMEOUT) as pool:
        for _ in range(2):
            await _batch(scenario, cluster, pool, is_spared=True)
        measured.warm.append(await _batch(scenario, cluster, pool))


async def _batch(
    scenario: Scenario,
    cluster: Cluster,
    pool: OllamaPool,
    *,
    is_spared: bool = False,
) -> Batch:
    texts = scenario.texts()
    fate = None if is_spared else scenario.fate
    cpu, began = time.process_time(), time.perf_counter()
    if fate is not None:
        index, at, what = fate
        asyncio.get_running_loop().call_later(at, cluster.strike, index, what)
    embeddings = await pool.embed_batch(MODEL, texts, on_error="return")
    seconds = time.perf_counter() - began
    cpu = time.process_time() - cpu
    if fate is not None:
        await cluster.heal(index)
    report = embeddings.report
    assert report is not None
    items = max((slice_.items for slice_ in report.slices), default=0)
    slowest = max(node.per_item for node in scenario.nodes)
    return Batch(
        seconds=seconds,
        predicted=report.predicted_seconds,
        requests=report.requests,
        copies=report.copies,
        cpu=cpu,
        wrong=_count_wrong(embeddings, texts),
        chunk_seconds=items * slowest,
        report=report,
    )


def _count_wrong(embeddings: Embeddings, texts: Sequence[str]) -> int:
    """Texts whose vector is missing or not theirs."""
    digest = FakeModel(MODEL, DIM).digest
    rows = memoryview(embeddings.buffer).cast("B")
    size = DIM * 4
    return sum(
        bytes(rows[place * size : (place + 1) * size]) != fake_vector(digest, text, DIM)
        for place, text in enumerate(texts)
    )


# What we are compared with: the same transport and lists of a fixed size, fixed in advance.


async def _even_split(scenario: Scenario, cluster: Cluster) -> float | None:
    """Each node gets the same number of texts. None where a node dies with what it had."""
    if scenario.is_deadly:
        return None
    texts, count = scenario.texts(), len(cluster.urls)
    scale = 1.0
    if scenario.fate is None:
        slowest = max(scenario.nodes, key=lambda node: node.per_item + node.per_token)
        texts, scale = _part(scenario, texts, slowest, 1 / count)
    if scenario.fate is not None:
        index, at, what = scenario.fate
        asyncio.get_running_loop().call_later(at, cluster.strike, index, what)
    shares = [texts[index::count] for index in range(count)]
    seconds = await _send_shares(cluster.urls, shares)
    if scenario.fate is not None:
        await cluster.heal(scenario.fate[0])
    return seconds * scale


async def _alone(scenario: Scenario, cluster: Cluster) -> float:
    """The best node gets everything."""
    node = scenario.nodes[scenario.best_node()]
    part, scale = _part(scenario, scenario.texts(), node, 1.0)
    return scale * await _send_shares(cluster.urls, [part])


def _part(
    scenario: Scenario, texts: list[str], node: SimNode, share: float
) -> tuple[list[str], float]:
    """As many of the texts as let `node` be done with its share in a few seconds, and the scale."""
    tokens = scenario.tokens
    whole = share * (node.per_item * len(tokens) + node.per_token * sum(tokens))
    kept = round(len(texts) * min(1.0, _OTHERS_SECONDS / whole))
    return texts[:kept], len(texts) / kept


async def _send_shares(urls: Sequence[str], shares: Sequence[Sequence[str]]) -> float:
    """Seconds that it takes to send each node its texts."""
    transports = [HttpTransport(NodeSpec(url)) for url in urls]
    began = time.perf_counter()
    await asyncio.gather(*map(_send_all, transports, shares))
    seconds = time.perf_counter() - began
    for transport in transports:
        await transport.aclose()
    return seconds


async def _send_all(transport: HttpTransport, texts: Sequence[str]) -> None:
    """Send `texts` in lists of equal size, two under way at once as in a pool."""
    settings = EmbedSettings(model=MODEL)
    lists = iter([texts[at : at + _SPLIT_ITEMS] for at in range(0, len(texts), _SPLIT_ITEMS)])

    async def send() -> None:
        for part in lists:
            body = embed.dump_embed(settings, part)
            data = await transport.request("POST", "/api/embed", body, timeout=_TIMEOUT)
            embed.load_embeddings("baseline", data, len(part))

    await asyncio.gather(send(), send())


if __name__ == "__main__":
    sys.exit(main())
