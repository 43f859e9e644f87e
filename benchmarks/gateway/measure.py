"""Rounds in which every contestant has its turn at a work, so that a bad minute hits all alike."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.client import bodies
from benchmarks.gateway import asking, contestants, report, wrk
from benchmarks.gateway.asking import Question
from benchmarks.gateway.contestants import Server, Starter, serving
from benchmarks.gateway.load import closed_loop, percentile
from benchmarks.gateway.processes import LOAD_CORE, Failed, Program, free_port, is_listening
from benchmarks.gateway.report import Row
from benchmarks.gateway.upstream import DIM
from benchmarks.servers import Nginx

CONNECTIONS, FEW = 16, 4
"""Of wrk; few for who is slow, because what is under way at the end is not counted."""
STREAMS, PARTS = 8, 200
"""Streams at once, and the parts of each."""
_WARM_UPS = 2
"""Rounds of streams: ours gives a node two at once at first, and more as it learns."""
_START_SECONDS = 20.0
_A_ROUND = 10**8  # numbers of requests


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured in a round, and `lists` of a thousand texts.

    seconds: as fast as it goes. latency: seconds of requests one by one. streams: in all.
    """

    rounds: int = 5
    seconds: int = 2
    latency: float = 1.5
    streams: int = 80
    lists: int = 3


QUICK = Effort(rounds=2, seconds=1, latency=0.5, streams=24, lists=1)


@dataclass(frozen=True, slots=True)
class Peers:
    """The interpreters that have other gateways, for those that are measured."""

    litellm: str | None = None
    sollol: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Turn:
    """Who does what. start: None is the node itself."""

    work: str
    name: str
    start: Starter | None
    question: Question
    connections: int = CONNECTIONS


def embeds(home: Path, effort: Effort, peers: Peers, skipped: list[str]) -> list[Row]:
    """Small requests with answers of 10 kB, over an nginx that has them ready."""
    groups = [_plain(report.EMBED, asking.EMBED)]
    if peers.sollol is not None:
        start, work = contestants.sollol(peers.sollol), report.WHOLE_CHAT
        groups.append(_pair(work, report.SOLLOL, start, asking.WHOLE_CHAT))
    with Nginx(_answers()) as nodes:
        return _in_groups(groups, home, nodes.urls, effort, skipped, _requests)


def lone_texts(home: Path, effort: Effort, peers: Peers, skipped: list[str]) -> list[Row]:
    """Single texts without options, which ours gathers into lists: a node that knows lists."""
    starts = ((report.FLOOR, contestants.floor), (report.OURS, contestants.ours))
    groups = [[_Turn(report.LONE, name, start, asking.LONE_TEXT) for name, start in starts]]
    if peers.litellm is not None:
        start, work = contestants.litellm(peers.litellm), report.OPENAI_EMBED
        groups.append(_pair(work, report.LITELLM, start, asking.OPENAI_EMBED))
    with _node(home) as url:
        return _in_groups(groups, home, [url], effort, skipped, _requests)


def chats(home: Path, effort: Effort, peers: Peers, skipped: list[str]) -> list[Row]:
    """Streams whose lines come one by one, each to be passed on by itself."""
    groups = [_plain(report.CHAT, asking.chat(PARTS))]
    if peers.litellm is not None:
        start, work = contestants.litellm(peers.litellm), report.OPENAI_CHAT
        groups.append(_pair(work, report.LITELLM, start, asking.openai_chat(PARTS)))
    with _node(home) as url:
        return _in_groups(groups, home, [url], effort, skipped, _streams)


def _in_groups(
    groups: Sequence[Sequence[_Turn]],
    home: Path,
    urls: Sequence[str],
    effort: Effort,
    skipped: list[str],
    measure: Callable[[dict[_Turn, Server], Effort, Path], list[Row]],
) -> list[Row]:
    """One group after another: a peer that is never idle must not be there while others run."""
    rows = []
    for turns in groups:
        with ExitStack() as stack:
            rows += measure(_start(stack, home, urls, turns, skipped), effort, home)
    return rows


def _plain(work: str, question: Question) -> list[_Turn]:
    starts: list[tuple[str, Starter | None]] = [(report.NO_PROXY, None)]
    starts += [("nginx", contestants.nginx), ("HAProxy", contestants.haproxy)]
    starts += [(report.FLOOR, contestants.floor), (report.OURS, contestants.ours)]
    return [_Turn(work, name, start, question) for name, start in starts]


def _pair(work: str, name: str, start: Starter, question: Question) -> list[_Turn]:
    """The same for ours and for a peer that does not speak all that ours does."""
    ours = _Turn(work, report.OURS, contestants.ours, question)
    return [ours, _Turn(work, name, start, question, FEW)]


def _start(
    stack: ExitStack,
    home: Path,
    urls: Sequence[str],
    turns: Sequence[_Turn],
    skipped: list[str],
) -> dict[_Turn, Server]:
    """The servers of all that can be started, one for each contestant."""
    node = urlsplit(urls[0]).port
    assert node is not None
    started: dict[str, Server | None] = {report.NO_PROXY: Server(node, "none")}
    for turn in turns:
        if turn.name not in started and turn.start is not None:
            place = home / f"{turn.name}-{turn.work.replace(' ', '-').replace('/', '')}"
            try:
                server = stack.enter_context(serving(turn.start, place, urls, turn.question))
            except Failed as error:
                if turn.name == report.OURS:
                    raise
                skipped.append(f"{turn.name} left out: {error}")
                started[turn.name] = None
            else:
                started[turn.name] = server
    found = {}
    for turn in turns:
        if (running := started[turn.name]) is not None:
            found[turn] = running
    return found


def _requests(servers: dict[_Turn, Server], effort: Effort, home: Path) -> list[Row]:
    rows = {turn: Row(turn.work, turn.name) for turn in servers}
    for number in range(-1, effort.rounds):  # the first one warms up
        for turn in _order(servers, number):
            row = rows[turn] if number >= 0 else Row("", "")
            _as_fast_as_it_goes(row, servers[turn], turn, home, number + 1, effort.seconds)
            first = (number + 1) * _A_ROUND + _A_ROUND // 2
            _one_by_one(row, servers[turn], turn.question, effort.latency, first)
    return list(rows.values())


def _streams(servers: dict[_Turn, Server], effort: Effort, home: Path) -> list[Row]:
    rows = {turn: Row(turn.work, turn.name) for turn in servers}
    for number in range(-_WARM_UPS, effort.rounds):
        for turn in _order(servers, number):
            row = rows[turn] if number >= 0 else Row("", "")
            _stream(row, servers[turn], turn, effort)
    # Only now: who learns how much a node can do at once is not to learn it of short ones.
    for number in range(-1, effort.rounds):
        for turn in _order(servers, number):
            row = rows[turn] if number >= 0 else Row("", "")
            short = asking.openai_chat if turn.work == report.OPENAI_CHAT else asking.chat
            _one_by_one(row, servers[turn], short(1), effort.latency)
    return list(rows.values())


def _order(servers: dict[_Turn, Server], number: int) -> list[_Turn]:
    turns = list(servers)
    return turns if number % 2 else turns[::-1]


def _as_fast_as_it_goes(
    row: Row, server: Server, turn: _Turn, home: Path, number: int, seconds: int
) -> None:
    parts = turn.question.parts(server.key)
    first, connections = number * _A_ROUND, turn.connections
    before = server.cpu_seconds()
    done = wrk.run(server.port, parts, home, first=first, connections=connections, seconds=seconds)
    took = server.cpu_seconds() - before
    row.cpu.append(took / max(1, done.requests))
    row.rates.append(done.rate)
    row.busy.append(took / done.seconds)
    row.failed += done.failed


def _one_by_one(
    row: Row, server: Server, question: Question, seconds: float, first: int = 0
) -> None:
    load = closed_loop(
        server.port, lambda number: question.whole(server.key, first + number), seconds=seconds
    )
    row.p50.append(percentile(load.firsts, 50))
    row.p99.append(percentile(load.firsts, 99))
    row.failed += load.failed


def _stream(row: Row, server: Server, turn: _Turn, effort: Effort) -> None:
    count = effort.streams if turn.connections == CONNECTIONS else STREAMS
    before = server.cpu_seconds()
    load = closed_loop(
        server.port,
        lambda number: turn.question.whole(server.key, number),
        connections=STREAMS,
        count=count,
    )
    took = server.cpu_seconds() - before
    # Who merges two chunks, because it is late, has done the work of one.
    row.cpu.append(took / max(1, min(load.reads, load.lines)))
    row.busy.append(took / load.seconds)
    row.at_once.append(load.coming / load.seconds)
    row.merged.append(max(0.0, 1 - load.reads / max(1, load.lines)))
    row.failed += load.failed + (load.lines < count * (PARTS + 1))


def _answers() -> dict[str, bytes]:
    """What the nginx at the end answers: a vector, or a chat of as many bytes."""
    vector = bodies.native(1, DIM)
    last = json.loads(bodies.chat_lines(1)[-1])
    last["message"]["content"] = "word " * ((len(vector) - 300) // 5)
    return {
        **bodies.fixed(),
        "/api/embed": vector,
        "/v1/embeddings": bodies.openai(1, DIM, is_base64=False),
        "/api/chat": json.dumps(last, separators=(",", ":")).encode(),
    }


@contextmanager
def _node(home: Path) -> Iterator[str]:
    """The URL of `benchmarks.gateway.upstream`, on the core of the load."""
    port = free_port()
    place = Path(tempfile.mkdtemp(prefix="node-", dir=home))
    command = [sys.executable, "-m", "benchmarks.gateway.upstream", str(port)]
    with Program(command, place, core=LOAD_CORE) as program:
        program.wait_until(lambda: is_listening(port), _START_SECONDS)
        yield f"http://127.0.0.1:{port}"
