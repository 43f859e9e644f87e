"""4. Streamed chat: the delay of the first part, and CPU time per token."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.client.bodies import TOKENS
from benchmarks.client.contest import Contestant, check_same
from benchmarks.client.embed import answers, paired
from benchmarks.client.report import Table
from benchmarks.servers import Nginx, NoCost

LIMIT = 1.25
PACE = 0.001
_SHORT = 16


def run(rounds: int, *, streams: int = 60, paced: int = 8) -> Table:
    table = Table(
        4,
        f"streamed chat, {TOKENS} tokens",
        f"nginx: all at once; the raw asyncio server: a token every {PACE * 1000:g} ms",
    )
    with Nginx(answers(768)) as server:
        _compare(table, "all at once (nginx)", server.urls, rounds, streams, 1)
    with NoCost(dim=768, pace=PACE) as raw:
        _compare(table, "paced (raw)", raw.urls, rounds, paced, paced)
    with NoCost(dim=768, pace=PACE, lines=_SHORT) as raw:
        _compare(table, f"{_SHORT} tokens, paced (raw)", raw.urls, rounds, streams, 1, _SHORT)
    return table


def _compare(
    table: Table,
    what: str,
    urls: Sequence[str],
    rounds: int,
    streams: int,
    in_flight: int,
    tokens: int = TOKENS,
) -> None:
    firsts, cpu = [], []
    with Contestant("ours", urls) as ours, Contestant("floor", urls) as floor:
        both = (ours, floor)
        for number in range(rounds + 1):
            order = both if number % 2 else both[::-1]
            found = {each: each.do("chat", streams=streams, in_flight=in_flight) for each in order}
            check_same([found[each] for each in both])
            if number:
                firsts.append([found[each]["first"] * 1e6 for each in both])
                cpu.append([found[each]["cpu"] / streams / tokens * 1e6 for each in both])
    for name, unit, costs in (("first part", "us", firsts), ("per token", "us CPU", cpu)):
        row = paired(f"{name}, {what}, {in_flight} in flight", "aiohttp + orjson", unit, costs)
        row.limit = LIMIT
        table.rows.append(row)
