"""2. CPU time per vector of a batch, and 3. vectors per second against a server with no cost."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.client.contest import Contestant, Missing, check_same
from benchmarks.client.embed import answers, paired
from benchmarks.client.report import Row, Table
from benchmarks.servers import Nginx, NoCost

DIMS = (768, 1024)
LIMIT, STDLIB_LIMIT = 1.10, 0.9
# How many times as much the clients cost that send one text at a time.
AT_LEAST = {"ollama": 50.0, "sollol": 100.0}
LIST_SIZE = 32
_SERVER = "a raw asyncio server in a process of its own, bodies made beforehand"


def run(
    rounds: int, *, texts: int = 10_000, dims: Sequence[int] = DIMS, peers: bool = False
) -> Table:
    table = Table(2, f"CPU per vector, embed_batch of {texts:,} texts of 100 characters", _SERVER)
    for dim in dims:
        with NoCost(dim=dim) as server, ExitStack() as stack:
            for format in ("base64", "json"):
                ours, loop, plain = (
                    stack.enter_context(Contestant(name, server.urls, format=format, **options))
                    for name, options in (
                        ("ours", {}),
                        ("floor", {}),
                        ("floor", {"codec": "stdlib"}),
                    )
                )
                contestants = [ours, loop, plain]
                cpu = [
                    [result["cpu"] / texts * 1e6 for result in results]
                    for results in _take_turns(contestants, rounds, texts)
                ]
                what = f"{format}, {dim} dimensions"
                row = paired(what, "loop by hand, same chunks", "us CPU", [c[:2] for c in cpu])
                row.limit = LIMIT
                table.rows.append(row)
                row = paired(what, "the same, stdlib codecs", "us CPU", [c[::2] for c in cpu])
                row.limit = STDLIB_LIMIT
                table.rows.append(row)
        if peers:
            _against_peers(table, dim, rounds, texts)
    return table


def throughput(rounds: int, *, texts: int = 10_000, peers: bool = False) -> Table:
    """Elapsed time of the same."""
    table = Table(3, f"vectors per second, {texts:,} texts, 768 dimensions", _SERVER)
    lists = [LIST_SIZE] * (texts // LIST_SIZE)
    with (
        NoCost(dim=768) as server,
        Contestant("ours", server.urls) as ours,
        Contestant("floor", server.urls, format="json") as loop,
    ):
        speeds = []
        for number in range(rounds + 1):
            mine = ours.do("batch", texts=sum(lists), sizes=[])
            theirs = loop.do("batch", texts=sum(lists), sizes=lists)
            check_same([mine, theirs])
            if number:
                speeds.append([sum(lists) / each["wall"] for each in (mine, theirs)])
        row = paired("embed_batch", f"aiohttp, JSON lists of {LIST_SIZE}", "per second", speeds)
        row.limit, row.at_least = 1.0, True
        table.rows.append(row)
    if peers:
        try:
            row = _against_peer("sollol", 768, rounds, texts, "wall")
            row.unit, row.limit, row.at_least = "per second", 100.0, True
            row.ours, row.theirs = 1e6 / row.ours, 1e6 / row.theirs
            table.rows.append(_inverted(row))
        except Missing as missing:
            table.notes.append(f"skipped: sollol ({missing})")
    return table


def _take_turns(
    contestants: Sequence[Contestant], rounds: int, texts: int
) -> list[list[dict[str, Any]]]:
    """Ours first, because the others copy the chunks that it made."""
    rows = []
    for number in range(rounds + 1):
        first = contestants[0].do("batch", texts=texts, sizes=[])
        results = [first]
        sizes = first["sizes"]
        results += [each.do("batch", texts=texts, sizes=sizes) for each in contestants[1:]]
        check_same(results)
        if number:
            rows.append(results)
    return rows


def _against_peers(table: Table, dim: int, rounds: int, texts: int) -> None:
    for name, limit in AT_LEAST.items():
        try:
            row = _inverted(_against_peer(name, dim, rounds, texts, "cpu"))
        except Missing as missing:
            table.notes.append(f"skipped: {name} ({missing})")
        else:
            row.what += " (theirs / ours)"
            row.limit, row.at_least = limit, True
            table.rows.append(row)


def _against_peer(name: str, dim: int, rounds: int, texts: int, cost: str) -> Row:
    """Ours on the whole batch against a peer that sends one text at a time, so on fewer."""
    few = max(1, texts // 40)
    with (
        Nginx(answers(dim)) as nginx,
        NoCost(dim=dim) as server,
        Contestant("ours", server.urls) as ours,
        Contestant(name, nginx.urls) as peer,
    ):
        costs = []
        for number in range(min(rounds, 3) + 1):
            mine = ours.do("batch", texts=texts, sizes=[])[cost] / texts
            theirs = peer.do("batch", texts=few, sizes=[])[cost] / few
            if number:
                costs.append([mine * 1e6, theirs * 1e6])
    what = f"{few} texts with the peer (nginx), {dim} dimensions"
    return paired(what, f"{name}, one text a request", "us CPU", costs)


def _inverted(row: Row) -> Row:
    row.ratio = 1 / row.ratio
    if row.spread is not None:
        row.spread = (1 / row.spread[1], 1 / row.spread[0])
    return row
