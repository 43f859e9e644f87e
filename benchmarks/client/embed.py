"""1. CPU time of the client per `embed` call."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.client import bodies
from benchmarks.client.contest import Contestant, Missing, check_same, median_ratio
from benchmarks.client.report import Row, Table
from benchmarks.servers import Nginx

LIMIT = 1.25
DIM = 768
IN_FLIGHT = (1, 32, 256)
PEERS = ("httpx", "openai", "ollama", "litellm", "sollol")


def run(
    rounds: int, *, calls: int = 1500, in_flight: Sequence[int] = IN_FLIGHT, peers: bool = False
) -> Table:
    table = Table(1, f"CPU per embed call, {DIM} dimensions", "nginx, two ports as two nodes")
    with Nginx(answers(DIM), ports=2) as server:
        for format in ("base64", "json"):
            for loop in ("asyncio", "uvloop"):
                counts = in_flight if loop == "asyncio" else in_flight[1:2]
                _against_floor(table, server.urls, format, loop, rounds, calls, counts)
        if peers:
            for name in PEERS:
                _against_peer(table, server.urls, name, rounds, in_flight)
    return table


def answers(dim: int) -> dict[str, bytes]:
    """What nginx answers: to each embedding request one vector, to each chat the same stream."""
    return {
        **bodies.fixed(),
        "/api/embed": bodies.native(1, dim),
        "/v1/embeddings": bodies.openai(1, dim),
        "/api/chat": b"".join(bodies.chat_lines()),
    }


def _against_floor(
    table: Table,
    urls: Sequence[str],
    format: str,
    loop: str,
    rounds: int,
    calls: int,
    in_flight: Sequence[int],
) -> None:
    try:
        with ExitStack() as stack:
            both = [
                stack.enter_context(Contestant(name, urls, loop=loop, format=format))
                for name in ("ours", "floor")
            ]
            for count in in_flight:
                what = f"{format}, {count} in flight" + (", uvloop" if loop == "uvloop" else "")
                row = _compare(both, what, "aiohttp + orjson", rounds, calls, count)
                row.limit = LIMIT
                table.rows.append(row)
    except Missing as missing:
        table.notes.append(f"skipped: {loop} ({missing})")


def _against_peer(
    table: Table, urls: Sequence[str], name: str, rounds: int, in_flight: Sequence[int]
) -> None:
    format = "base64" if name == "openai" else "json"
    try:
        with (
            Contestant("ours", urls, format=format) as ours,
            Contestant(name, urls) as peer,
        ):
            for count in in_flight:
                what = f"{format}, {count} in flight"
                row = _compare((ours, peer), what, name, min(rounds, 3), 300, count)
                table.rows.append(row)
    except Missing as missing:
        table.notes.append(f"skipped: {name} ({missing})")


def _compare(
    both: Sequence[Contestant], what: str, against: str, rounds: int, calls: int, in_flight: int
) -> Row:
    costs: list[list[float]] = []
    for number in range(rounds + 1):
        order = both if number % 2 else both[::-1]  # who goes first changes
        results = {each: each.do("embed", calls=calls, in_flight=in_flight) for each in order}
        check_same([results[each] for each in both])
        if number:  # the first round opens the connections
            costs.append([results[each]["cpu"] / calls * 1e6 for each in both])
    return paired(what, against, "us CPU/call", costs)


def paired(what: str, against: str, unit: str, costs: Sequence[Sequence[float]]) -> Row:
    """A row out of the (ours, theirs) of each round."""
    ours, theirs = zip(*costs, strict=True)
    ratios = [a / b for a, b in costs]
    return Row(
        what,
        against,
        statistics.median(ours),
        statistics.median(theirs),
        unit,
        median_ratio(ours, theirs),
        spread=(min(ratios), max(ratios)),
    )
