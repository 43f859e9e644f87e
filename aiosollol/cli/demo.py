"""`aiosollol demo`: embeds real text on three nodes and searches it by meaning."""

from __future__ import annotations

import asyncio
import heapq
import math
import sys
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from aiosollol import OllamaPool
from aiosollol.cli.base import Screen, run, write_json
from aiosollol.cli.embed_files import cut_passages
from aiosollol.core.embeddings import Embeddings, Vector
from aiosollol.core.node import ClusterView
from aiosollol.core.report import BatchReport
from aiosollol.embedded import EmbeddedNode

MODEL = "wordllama"
NODES = ("node-1", "node-2", "node-3")
PASSAGE_SIZE = 320  # about a paragraph of the language reference
ANSWERS = 2

# Worded differently from the reference where possible: "ignoring upper and lower case" should find
# "caseless". Chosen because the model answers them on Python 3.11 to 3.13.
QUESTIONS = (
    "Is the finally clause executed when an exception is not handled?",
    "How can I compare strings ignoring upper and lower case?",
    "Does dividing two integers give a float?",
    "What error is raised if a variable has no value yet?",
)


@dataclass(frozen=True, slots=True)
class Match:
    """A passage that may answer a question. `score` is their cosine, at most 1."""

    score: float
    topic: str
    text: str


def run_demo(*, as_json: bool) -> int:
    """Run the demo on stdout (with `as_json` on stderr) and return the exit code."""
    run(_demo(Screen(sys.stderr if as_json else sys.stdout), as_json))
    return 0


async def _demo(screen: Screen, as_json: bool) -> None:
    topics, texts = read_reference()
    async with AsyncExitStack() as stack:
        screen.line(f"Starting {len(NODES)} nodes, each a process with its own model ...")
        pool = await stack.enter_async_context(
            OllamaPool(nodes=await _start_nodes(stack), same_machine="share")
        )
        _show_nodes(screen, await pool.refresh())

        screen.line()
        screen.line(
            f"{len(texts):,} passages of Python's language reference "
            f"({sum(map(len, texts)) / 1000:,.0f} kB), model {MODEL}",
            style="bold",
        )
        screen.line(f"Plan: {await pool.plan(MODEL, len(texts))}")
        screen.line('The nodes share one machine (same_machine="share")')
        with screen.progress("embedding", len(texts)) as advance:
            seen = 0

            def on_progress(done: int, total: int) -> None:
                nonlocal seen
                advance(done - seen)
                seen = done

            vectors = await pool.embed_batch(MODEL, texts, on_progress=on_progress)
        assert vectors.report is not None
        _show_report(screen, vectors.report)

        asked = await pool.embed_batch(MODEL, QUESTIONS)
    # The nodes have ended. The search runs in a thread so that Ctrl-C still works.
    answers = await asyncio.to_thread(
        lambda: [best_matches(vector, vectors, topics, texts) for vector in asked]
    )
    _show_answers(screen, answers)
    if as_json:
        write_json(_as_dict(vectors, vectors.report, answers), sys.stdout)


async def _start_nodes(stack: AsyncExitStack) -> list[dict[str, str]]:
    """Start all nodes at once. `stack` ends those that started, even if others failed."""
    nodes = [EmbeddedNode(process=True, name=name) for name in NODES]
    try:
        async with asyncio.TaskGroup() as starting:
            for node in nodes:
                starting.create_task(stack.enter_async_context(node))
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
    return [{"url": node.url, "name": name} for node, name in zip(nodes, NODES, strict=True)]


def read_reference() -> tuple[list[str], list[str]]:
    """The topic and text of each passage of the language reference behind ``help()``."""
    from pydoc_data.topics import topics as reference

    names, texts = [], []
    for name, text in sorted(reference.items()):
        for passage in cut_passages(text, PASSAGE_SIZE):
            names.append(name)
            texts.append(passage.text)
    return names, texts


def best_matches(
    question: Vector, vectors: Embeddings, topics: Sequence[str], texts: Sequence[str]
) -> list[Match]:
    """The passages closest in meaning to the question, best first; equal texts count once."""
    different = {text: index for index, text in reversed(list(enumerate(texts)))}
    scored = ((cosine(question, vectors[index]), index) for index in different.values())
    best = heapq.nlargest(ANSWERS, scored)
    return [Match(score, topics[index], texts[index]) for score, index in best]


def cosine(one: Iterable[float], other: Iterable[float]) -> float:
    """The cosine of the angle between two vectors: 1 for the same direction, 0 if orthogonal."""
    a, b = list(one), list(other)
    lengths = math.hypot(*a) * math.hypot(*b)
    return sum(map(float.__mul__, a, b)) / lengths if lengths else 0.0


def _show_nodes(screen: Screen, view: ClusterView) -> None:
    rows = [
        (node.name, node.spec.url, node.version, ", ".join(node.model_names))
        for node in view.nodes.values()
    ]
    screen.table(("node", "url", "version", "models"), rows)


def _show_report(screen: Screen, report: BatchReport) -> None:
    rate = report.items / report.seconds if report.seconds > 0 else 0.0
    screen.line(
        f"{report.items:,} passages ({report.unique:,} different) in {report.seconds:.2f} s: "
        f"{rate:,.0f} items/s",
        style="bold",
    )
    total = sum(share.items for share in report.nodes.values())
    rows = [
        (
            name,
            f"{share.items:,}",
            f"{100 * share.items / max(total, 1):.0f} %",
            f"{share.requests:,}",
            f"{share.seconds:.2f} s",
        )
        for name, share in report.nodes.items()
    ]
    header = ("node", "items", "share", "requests", "busy")
    screen.table(header, rows, right=header[1:])
    for finding in report.findings:
        screen.line(str(finding))


def _show_answers(screen: Screen, answers: Sequence[list[Match]]) -> None:
    for question, matches in zip(QUESTIONS, answers, strict=True):
        screen.line()
        screen.line(question, style="bold cyan")
        for match in matches:
            screen.line(
                f"{match.score:.3f}  from the topic {match.topic!r}", style="green", indent=2
            )
            screen.line(match.text, indent=4)


def _as_dict(
    vectors: Embeddings, report: BatchReport, answers: Sequence[list[Match]]
) -> dict[str, Any]:
    return {
        "model": MODEL,
        "passages": report.items,
        "different": report.unique,
        "dim": vectors.dim,
        "seconds": round(report.seconds, 3),
        "plan": str(report.plan),
        "nodes": {
            name: {"items": share.items, "requests": share.requests, "retries": share.retries}
            for name, share in report.nodes.items()
        },
        "answers": [
            {
                "question": question,
                "passages": [
                    {"score": round(match.score, 4), "topic": match.topic, "text": match.text}
                    for match in matches
                ],
            }
            for question, matches in zip(QUESTIONS, answers, strict=True)
        ],
    }
