"""Chats on nodes with slots: the real live path over fake nodes, in virtual time.

    python -m benchmarks.live_chats [--only NAME] [--json FILE]

Each row is a figure of one scenario and its limit: the seconds until the first token, the share of
the best throughput, short chats beside long ones, the prediction of the first token. Exits with 1
if a limit is missed. A real server decodes slower with more streams; here each slot has a pace of
its own.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import trio
import trio.testing

from aiosollol.errors import SollolError
from benchmarks.text import aligned

if TYPE_CHECKING:
    from live_cluster import Cluster

TALKER = "llama3.2"
TOKENS, SECONDS_PER_TOKEN, SECONDS_PER_PROMPT_TOKEN = 100, 0.1, 1e-3
FIVE_MINUTES = 300.0
_SETTLED_AFTER = 20.0  # seconds; first tokens before are those of the search for slots
_SPREAD = 0.8  # sigma of log-normal lengths
_SHORT, _LONG, _PART_SHORT, _LOAD = 10, 1000, 0.9, 0.45


class Row(NamedTuple):
    """A figure of a scenario. most, least: its limits, None where it has none."""

    name: str
    figure: str
    value: float
    most: float | None = None
    least: float | None = None

    @property
    def is_met(self) -> bool:
        is_low = self.most is None or self.value <= self.most
        return is_low and (self.least is None or self.value >= self.least)


def main(
    arguments: Sequence[str] | None = None,
    table: Iterable[tuple[str, Scenario]] | None = None,
) -> int:
    """Run the scenarios of `table`, by default those of this module, and show their rows."""
    parser = argparse.ArgumentParser(description="Live requests, in virtual time.")
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--json", type=pathlib.Path, help="write every figure to this file")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests" / "support"))
    rows: list[Row] = []
    for name, scenario in scenarios() if table is None else table:
        if options.only in name:
            began = time.monotonic()
            found = trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))
            rows += (row._replace(name=name) for row in found)
            print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    lines = [("scenario", "figure", "value", "limit", "")]
    lines += [
        (r.name, r.figure, f"{r.value:.3f}", _limit(r), "" if r.is_met else "MISSED") for r in rows
    ]
    print("\n".join(aligned(lines)))
    if options.json:
        options.json.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n")
    return int(not all(row.is_met for row in rows))


def _limit(row: Row) -> str:
    most = "" if row.most is None else f"<= {row.most:g}"
    return most or ("" if row.least is None else f">= {row.least:g}")


Scenario = Callable[[], Awaitable[list[Row]]]


def scenarios() -> Iterator[tuple[str, Scenario]]:
    """Names and scenarios."""
    for slots in (1, 4, 8, 16, 64):
        for spread in (0.0, _SPREAD):
            lengths = "spread lengths" if spread else "equal lengths"
            yield (f"{slots} slots, as many streams, {lengths}", _closed(slots, slots, spread))
            yield (f"{slots} slots, twice as many, {lengths}", _closed(slots, 2 * slots, spread))
    for slots in (4, 8):
        yield f"2 nodes of {slots} slots, rounds of 8 streams", _rounds(2, slots, 8)
    yield "short chats beside long ones", short_beside_long
    for load in (0.3, 0.7):
        yield f"prediction at {load:.0%} load", _predicted(load)


def _nodes(count: int, slots: int) -> dict[str, Any]:
    paces = {
        "seconds_per_chat_token": SECONDS_PER_TOKEN,
        "seconds_per_token": SECONDS_PER_PROMPT_TOKEN,
        "slots": slots,
    }
    return {f"n{number}": paces for number in range(count)}


def _words(count: int) -> str:
    """A prompt that is answered with `count` tokens."""
    return " ".join(["w"] * count)


async def _read(made: Cluster, tokens: int) -> float:
    """Seconds until the first part of a stream, which is read to its end."""
    began = anyio.current_time()
    stream = await made.stream(_words(tokens), timeout=3600.0)
    seconds = anyio.current_time() - began
    async for _ in stream:
        pass
    return seconds


def _closed(slots: int, streams: int, spread: float) -> Scenario:
    async def run() -> list[Row]:
        """Some callers that each read one stream after another, for five minutes."""
        from live_cluster import cluster

        rng = random.Random(7)
        firsts: list[float] = []
        done = 0.0
        async with cluster(**_nodes(1, slots), wait_timeout=3600.0) as made:
            await made.admin.warm(TALKER, None)
            began = anyio.current_time()
            until = began + FIVE_MINUTES

            async def call() -> None:
                nonlocal done
                while (sent_at := anyio.current_time()) < until:
                    scale = rng.lognormvariate(-(spread**2) / 2, spread) if spread else 1.0
                    tokens = max(1, round(TOKENS * scale))
                    first = await _read(made, tokens)
                    if sent_at - began > _SETTLED_AFTER:
                        firsts.append(first)
                    after = max(0.0, anyio.current_time() - until)
                    done += max(0.0, tokens * SECONDS_PER_TOKEN - after)

            async with anyio.create_task_group() as group:
                for _ in range(streams):
                    group.start_soon(call)
        throughput = Row("", "throughput over best", done / (slots * FIVE_MINUTES), least=0.95)
        if streams > slots:
            return [throughput]
        late = sorted(firsts)[int(0.99 * len(firsts))]
        return [Row("", "first token, p99, s", late, most=0.5), throughput]

    return run


def _rounds(nodes: int, slots: int, streams: int) -> Scenario:
    async def run() -> list[Row]:
        """All streams at once, five times."""
        from live_cluster import cluster, gather

        rows = []
        async with cluster(**_nodes(nodes, slots), wait_timeout=3600.0) as made:
            await made.admin.warm(TALKER, None)
            for number in range(1, 6):
                firsts = await gather(*[lambda: _read(made, TOKENS)] * streams)
                rows.append(Row("", f"round {number}, worst first token, s", max(firsts), most=0.5))
        return rows

    return run


async def short_beside_long() -> list[Row]:
    """Chats of 0.5 s and of 50 s, as their `num_predict` says, at 45 % load of three nodes."""
    from live_cluster import cluster

    nodes, pace = 3, 0.05
    mean = pace * (_PART_SHORT * _SHORT + (1.0 - _PART_SHORT) * _LONG)
    rng = random.Random(5)
    arrivals, now = [], 0.0
    while now < 4000.0:
        now += rng.expovariate(_LOAD * nodes / mean)
        arrivals.append((now, _SHORT if rng.random() < _PART_SHORT else _LONG))
    seconds: list[float] = []
    refused = 0

    async def chat(made: Cluster, tokens: int) -> None:
        nonlocal refused
        began = anyio.current_time()
        try:
            await made.chat(_words(_LONG), timeout=600.0, options={"num_predict": tokens})
        except SollolError:
            refused += 1
            return
        if tokens == _SHORT:
            seconds.append(anyio.current_time() - began)

    slots = {f"n{number}": {"seconds_per_chat_token": pace} for number in range(nodes)}
    async with cluster(**slots, wait_timeout=300.0) as made:
        await made.admin.warm(TALKER, None)
        began = anyio.current_time()
        async with anyio.create_task_group() as group:
            for at, tokens in arrivals:
                await anyio.sleep_until(began + at)
                group.start_soon(chat, made, tokens)
    ratio = statistics.fmean(seconds) / _oracle(arrivals, nodes, pace)
    return [
        Row("", "short ones over the oracle's", ratio, most=1.5),
        Row("", "refused", refused, most=0),
    ]


def _oracle(arrivals: Sequence[tuple[float, int]], nodes: int, pace: float) -> float:
    """Mean seconds of the short ones, each sent to the node that is free first."""
    free, seconds = [0.0] * nodes, []
    for at, tokens in arrivals:
        first = free.index(min(free))
        free[first] = max(free[first], at) + tokens * pace
        if tokens == _SHORT:
            seconds.append(free[first] - at)
    return statistics.fmean(seconds)


def _predicted(load: float) -> Scenario:
    async def run() -> list[Row]:
        """Streams of one length, at random times, on two nodes of four slots."""
        from live_cluster import cluster

        rng, errors = random.Random(3), []
        rate = load * 2 * 4 / (TOKENS * SECONDS_PER_TOKEN)
        async with cluster(**_nodes(2, 4), wait_timeout=300.0) as made:
            await made.admin.warm(TALKER, None)

            async def read() -> None:
                explained = await made.admin.route(TALKER, "chat", 20.0)
                terms = next(n.terms for n in explained.nodes if n.name == explained.chosen)
                expected = terms["queue"] + terms["load"] + terms["prefill"]
                first = await _read(made, TOKENS)
                errors.append(abs(expected / first - 1.0) if first else math.inf)

            async with anyio.create_task_group() as group:
                for _ in range(400):
                    group.start_soon(read)
                    await anyio.sleep(rng.expovariate(rate))
        return [Row("", "median error of the first token", statistics.median(errors), most=0.2)]

    return run


if __name__ == "__main__":
    sys.exit(main())
