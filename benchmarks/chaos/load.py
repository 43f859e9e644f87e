"""The callers: a fixed stream of requests to a pool, or one batch after another, checked and timed.

    python -m benchmarks.chaos.load '{"urls": [...], "seconds": 20, "rate": 50}'

prints a line when it has begun to count, and when all is over the figures, as JSON. It is a process
of its own, so that it can run in a namespace of the lab and the nodes take no time from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from aiosollol import OllamaPool
from aiosollol.core.events import AttemptFailed, Hedged, NodeChanged, Routed
from aiosollol.errors import BatchError, NodeError, SollolError
from aiosollol.testing import FakeModel, fake_vector

EMBEDDER, CHATTER = FakeModel("all-minilm"), FakeModel("llama3.2", kind="chat")
BEGUN = "the load has begun"
WARM_UP = 3.0
"""Seconds of requests that are not counted: connections are made, and costs learned."""
DRAIN = 20.0
"""Seconds after the last request until those still under way count as failed."""
BATCH = 200
"""Texts of a batch: six nodes take about a second for them."""
BATCH_TIMEOUT = 20.0
_SAMPLE_EVERY = 0.1
_KINDS, _SHARES = ("embed", "chat", "stream"), (0.6, 0.2, 0.2)
_WORDS = ("a", "node", "fails", "and", "hangs", "or", "lies", "while", "callers", "wait")


@dataclass(slots=True)
class Request:
    """at: seconds after the beginning when it is due, negative in the warm-up."""

    at: float
    kind: str
    text: str


@dataclass(slots=True)
class Outcome:
    """What became of a request: "ok", "wrong", "failed", or "cut".

    Cut are streams that broke after their first part, which nobody can ask another node for.
    seconds: from when it was due. A batch has failed if a text is missing.
    """

    at: float
    kind: str
    seconds: float
    result: str
    detail: str = ""


@dataclass(slots=True)
class Figures:
    """What a run gave. shares: (seconds, answers of each node so far); sent: the requests to each.

    texts, missing: of batches. attempts: the most that a request took. log: what nodes did, and
    which attempts failed.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    shares: list[tuple[float, list[int]]] = field(default_factory=list)
    sent: list[tuple[float, list[int]]] = field(default_factory=list)
    texts: int = 0
    missing: int = 0
    attempts: int = 0
    hedges: int = 0
    retries: int = 0
    log: list[tuple[float, str, str]] = field(default_factory=list)


def arrivals(seconds: float, rate: float, seed: int, warm_up: float) -> Iterator[Request]:
    """`rate` requests a second in the mean, as independent callers make them (Poisson)."""
    rng = random.Random(seed)
    at = -warm_up
    number = 0
    while (at := at + rng.expovariate(rate)) < seconds:
        number += 1
        (kind,) = rng.choices(_KINDS, _SHARES)
        words = rng.randint(10, 70) if kind == "embed" else rng.randint(8, 20)
        yield Request(at, kind, f"{number} " + " ".join(rng.choices(_WORDS, k=words)))


async def send(pool: OllamaPool, request: Request) -> str:
    """ "ok" or "wrong". Raises SollolError; NodeError if a stream broke after its first part."""
    if request.kind == "embed":
        vector = await pool.embed(EMBEDDER.name, request.text)
        due = fake_vector(EMBEDDER.digest, request.text, EMBEDDER.dim)
        return "ok" if bytes(vector) == due else "wrong"
    messages = [{"role": "user", "content": request.text}]
    if request.kind == "chat":
        reply = await pool.chat(CHATTER.name, messages)
        return "ok" if str(reply) == request.text and reply.done else "wrong"
    said, is_done = "", False
    async with await pool.chat(CHATTER.name, messages, stream=True) as stream:
        try:
            async for part in stream:
                said += str(part)
                is_done = bool(part.done)
        except NodeError as error:
            raise Cut(str(error)) from error
    return "ok" if said == request.text and is_done else "wrong"


class Cut(Exception):
    """A stream broke after its first part."""


async def run(
    urls: list[str],
    seconds: float,
    rate: float,
    seed: int,
    work: str = "live",
    warm_up: float = WARM_UP,
    batch: int = BATCH,
) -> Figures:
    """Send what is due, when it is due, however many are under way, and wait for the end.

    work: "live" or "batch". batch: the texts of one.
    """
    figures = Figures()
    loop = asyncio.get_running_loop()
    nodes = [{"url": url, "name": f"n{i}", "machine": f"m{i}"} for i, url in enumerate(urls)]
    async with OllamaPool(nodes) as pool:
        await pool.refresh()
        for model in (EMBEDDER, CHATTER):  # or only some nodes would be in use: cold ones are not
            with contextlib.suppress(SollolError):  # some nodes may fail from the beginning
                await pool.warm(model.name)
        zero = loop.time() + warm_up
        watchers = [
            asyncio.create_task(_watch(pool, figures, zero)),
            asyncio.create_task(_sample(pool, figures, zero, seconds)),
        ]
        try:
            if work == "batch":
                await _send_batches(pool, figures, zero, seconds, seed, batch)
            else:
                requests = arrivals(seconds, rate, seed, warm_up)
                await _send_requests(pool, figures, zero, requests)
        finally:
            for task in watchers:
                task.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
    return figures


async def _send_batches(
    pool: OllamaPool, figures: Figures, zero: float, seconds: float, seed: int, count: int
) -> None:
    """One batch after another. The first ones are not counted: they are the warm-up."""
    loop = asyncio.get_running_loop()
    rng = random.Random(seed)
    has_begun = False
    number = 0
    while (at := loop.time() - zero) < seconds or not has_begun:
        if at >= 0.0 and not has_begun:
            has_begun = True
            print(BEGUN, flush=True)
        number += 1
        texts = [
            f"{number} {index} " + " ".join(rng.choices(_WORDS, k=rng.randint(10, 70)))
            for index in range(count)
        ]
        began = loop.time()
        result, detail, missing = "ok", "", 0
        try:
            found = await pool.embed_batch(EMBEDDER.name, texts, timeout=BATCH_TIMEOUT)
        except BatchError as error:
            result, missing = "failed", len(error.errors)
            detail = f"{missing} missing, such as: {next(iter(error.errors.values()))}"
            found = error.embeddings
        except SollolError as error:
            result, detail, missing = "failed", f"{type(error).__name__}: {error}", count
        if missing < count and any(
            bytes(found[row]) != fake_vector(EMBEDDER.digest, text, EMBEDDER.dim)
            for row, text in enumerate(texts)
            if row not in found.errors
        ):
            result = "wrong"
        if at >= 0.0:
            took = loop.time() - began
            figures.outcomes.append(Outcome(at, "batch", took, result, detail))
            figures.texts += count
            figures.missing += missing


async def _send_requests(
    pool: OllamaPool, figures: Figures, zero: float, requests: Iterable[Request]
) -> None:
    loop = asyncio.get_running_loop()

    async def one(request: Request, due: float) -> None:
        result, detail = "failed", ""
        try:
            result = await send(pool, request)
        except Cut as error:
            result, detail = "cut", str(error)
        except SollolError as error:
            detail = f"{type(error).__name__}: {error}"
        except asyncio.CancelledError:
            detail = "no answer until the end"
        if request.at >= 0.0:
            took = loop.time() - due
            figures.outcomes.append(Outcome(request.at, request.kind, took, result, detail))

    tasks: set[asyncio.Task[None]] = set()
    has_begun = False
    for request in requests:
        await asyncio.sleep(zero + request.at - loop.time())
        if request.at >= 0.0 and not has_begun:
            has_begun = True
            print(BEGUN, flush=True)
        task = asyncio.create_task(one(request, zero + request.at))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks, timeout=DRAIN)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(pool: OllamaPool, figures: Figures, zero: float) -> None:
    async for event in pool.events():
        at = event.at - zero
        match event:
            case Routed(attempt=attempt):
                figures.attempts = max(figures.attempts, attempt)
                figures.retries += attempt > 1 and at >= 0.0
            case Hedged(first=first, second=second):
                figures.hedges += at >= 0.0
                figures.log.append((at, first, f"hedged by {second}"))
            case AttemptFailed(node=node, kind=kind, error=error):
                figures.log.append((at, node, f"{kind}: {error[:100]}"))
            case NodeChanged(node=node, change=change):
                figures.log.append((at, node, change))


async def _sample(pool: OllamaPool, figures: Figures, zero: float, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    while (now := loop.time() - zero) < seconds:
        # From inside, because `get_stats` counts what was given up among the requests of a node.
        done = {node.name: node.counters.succeeded for node in pool._registry}
        sent = {node.name: node.counters.total for node in pool._registry}
        figures.shares.append((now, [done[f"n{i}"] for i in range(len(done))]))
        figures.sent.append((now, [sent[f"n{i}"] for i in range(len(sent))]))
        await asyncio.sleep(_SAMPLE_EVERY)


def main() -> None:
    order: dict[str, Any] = json.loads(sys.argv[1])
    print(json.dumps(asdict(asyncio.run(run(**order)))), flush=True)


if __name__ == "__main__":
    main()
