"""`aiosollol embed`: embeds files segment by segment, in bounded memory."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from aiosollol import NodeRegistry, OllamaPool
from aiosollol.cli.base import Advance, Screen, run, write_json
from aiosollol.cli.embed_files import (
    STDIN,
    Item,
    Reader,
    Replacing,
    Sink,
    open_sink,
    open_sources,
)
from aiosollol.cli.measure import registry_of
from aiosollol.config.settings import DEFAULTS
from aiosollol.core.embeddings import Embeddings
from aiosollol.core.report import Slice, trace_events
from aiosollol.core.request import EmbedSettings
from aiosollol.core.scheduling.colocation import Finding
from aiosollol.core.scheduling.planner import PlanOptions, Policy, SameMachine
from aiosollol.core.truncation import OnTruncate, check_on_truncate
from aiosollol.errors import InvalidInput, SollolError

SEGMENT = 512  # passages per write: an interruption loses those not yet written
IN_FLIGHT = 2  # segments under way: nodes start the next while the last chunks come in
ERRORS_SHOWN = 3


class _Embedder(Protocol):
    async def embed_batch(
        self, model: str, texts: Sequence[str], *, on_error: Any, on_truncate: Any, on_progress: Any
    ) -> Embeddings: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions:
    """Options of `aiosollol embed`. Raises InvalidInput if two options conflict."""

    files: Sequence[str] = ()
    model: str | None = None
    nodes: Sequence[str] = ()
    out: str | None = None
    embedded: bool = False
    field: str | None = None
    passage_size: int = 800
    policy: Policy = DEFAULTS.policy
    same_machine: SameMachine = DEFAULTS.same_machine
    on_truncate: OnTruncate = "warn"
    trace: str | None = None
    as_json: bool = False

    def __post_init__(self) -> None:
        if self.embedded and self.nodes:
            raise InvalidInput("give --node or --embedded, not both")
        PlanOptions(policy=self.policy, same_machine=self.same_machine)
        check_on_truncate(EmbedSettings(model=self.model_name), self.on_truncate)
        if self.trace is not None and self.trace == self.out:
            raise InvalidInput(f"--out and --trace are both {self.out}: give two files")

    @property
    def model_name(self) -> str:
        return self.model or ("wordllama" if self.embedded else "nomic-embed-text")


def embed_files(options: EmbedOptions) -> int:
    """Embed the files in `options` and return the exit code: 1 if a passage has no vector."""
    stdin = sys.stdin.buffer
    if STDIN in (options.files or [STDIN]) and stdin.isatty():
        print("Reading text from the terminal; Ctrl-D ends it.", file=sys.stderr)
    sources = open_sources(options.files, stdin)
    reader = Reader(options.passage_size, options.field)
    # Reading everything twice is cheap compared with embedding it, finds bad input before anything
    # is sent, and gives the total.
    total = sum(1 for _ in reader.read(sources))
    _keep_apart(options)
    sink = open_sink(options.out, sys.stdout.buffer)
    try:
        trace = Replacing(Path(options.trace), "--trace") if options.trace else None
    except BaseException:
        sink.discard()
        raise
    job = EmbedJob(options, reader.read(sources), total, sink, trace)
    try:
        run(job.work())
    except BrokenPipeError:
        job.is_quiet = True
        raise
    finally:
        job.finish()
    return int(job.missing > 0)


class EmbedJob:
    """One run of the command: its progress and its result."""

    def __init__(
        self,
        options: EmbedOptions,
        items: Iterator[Item],
        total: int,
        sink: Sink,
        trace: Replacing | None = None,
    ) -> None:
        self.is_quiet = False
        self._options = options
        self._items = items
        self._total = total
        self._sink = sink
        self._trace = trace
        self._slices: list[Slice] = []  # of all segments, on one clock
        self._findings: list[Finding] = []
        self._screen = Screen(sys.stderr)
        self._started = time.perf_counter()
        self._written = 0  # items, failed ones included
        self._dim = 0
        self._truncated = 0
        self._kept: Path | None = None
        self._failures: list[tuple[Item, SollolError]] = []
        self._shares: dict[str, Counter[str]] = {}

    @property
    def missing(self) -> int:
        """The number of passages that have no vector yet."""
        return self._total - self._written + len(self._failures)

    async def work(self) -> None:
        """Embed and write everything. Raises the first error if a whole segment fails."""
        if self._total == 0:
            return
        async with AsyncExitStack() as stack:
            nodes = await self._start_nodes(stack)
            pool = OllamaPool(
                nodes, policy=self._options.policy, same_machine=self._options.same_machine
            )
            stack.enter_context(self._screen.log())
            await stack.enter_async_context(pool)
            advance = stack.enter_context(self._screen.progress("embedding", self._total))
            self._started = time.perf_counter()
            await self._pump(pool, advance)

    async def _start_nodes(self, stack: AsyncExitStack) -> NodeRegistry:
        """The nodes to use. `stack` ends an embedded node that is started here."""
        if not self._options.embedded:
            return await registry_of(
                self._options.nodes, self._screen, is_quiet=self._options.as_json
            )
        from aiosollol.embedded import EmbeddedNode

        node = await stack.enter_async_context(EmbeddedNode(process=True, name="embedded"))
        return NodeRegistry([{"url": node.url, "name": "embedded"}])

    async def _pump(self, pool: _Embedder, advance: Advance) -> None:
        waiting: deque[tuple[list[Item], asyncio.Task[Embeddings]]] = deque()
        try:
            while True:
                while len(waiting) < IN_FLIGHT and (segment := await self._next_segment()):
                    task = asyncio.create_task(self._embed(pool, segment, advance))
                    waiting.append((segment, task))
                if not waiting:
                    return
                segment, task = waiting[0]
                embeddings = await task
                waiting.popleft()
                if len(embeddings.errors) == len(segment):
                    # The cause is not a single bad text: stop.
                    raise next(iter(embeddings.errors.values()))
                # In a thread, like all file work, to keep the nodes busy. Threads are not
                # cancelled and are joined before the loop closes, so a segment is written whole
                # or not at all.
                await asyncio.to_thread(self._write, segment, embeddings)
        finally:
            for _, task in waiting:
                task.cancel()
            await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)

    async def _next_segment(self) -> list[Item]:
        return await asyncio.to_thread(list, itertools.islice(self._items, SEGMENT))

    async def _embed(self, pool: _Embedder, segment: list[Item], advance: Advance) -> Embeddings:
        before = 0
        on_truncate = self._options.on_truncate  # a warning would say how many, too, but only once

        def on_progress(done: int, total: int) -> None:
            nonlocal before
            advance(done - before)
            before = done

        return await pool.embed_batch(
            self._options.model_name,
            [item.text for item in segment],
            on_error="return",
            on_truncate="ignore" if on_truncate == "warn" else on_truncate,
            on_progress=on_progress,
        )

    def _write(self, segment: list[Item], embeddings: Embeddings) -> None:
        self._sink.write(segment, embeddings)
        self._written += len(segment)
        self._dim = embeddings.dim
        self._failures += [(segment[index], error) for index, error in embeddings.errors.items()]
        report = embeddings.report
        if report is None:
            return
        self._findings += report.findings
        self._truncated += report.truncated
        if self._trace is not None:
            self._slices += report.slices
        for name, share in report.nodes.items():
            counts = self._shares.setdefault(name, Counter())
            counts.update(items=share.items, requests=share.requests, retries=share.retries)

    def finish(self) -> None:
        """Move the result, also a partial one, to its target and print the summary."""
        seconds = time.perf_counter() - self._started
        is_kept = self._written > 0 or self._total == 0
        try:
            if is_kept:
                self._kept = self._sink.commit(is_partial=self._written < self._total)
        finally:
            self._sink.discard()
            self._finish_trace()
        if self.is_quiet:
            return
        if self._options.as_json:
            # If the vectors go to stdout, the summary must not.
            stream = sys.stdout if self._options.out else sys.stderr
            write_json(self._summary(seconds, is_kept), stream)
        else:
            self._tell(seconds, is_kept)

    def _finish_trace(self) -> None:
        if self._trace is None:
            return
        try:
            if self._slices:
                self._trace.stream.write(orjson.dumps(trace_events(self._slices)))
                self._trace.commit()
        finally:
            self._trace.discard()

    def _tell(self, seconds: float, is_kept: bool) -> None:
        line = self._screen.line
        done = self._total - self.missing
        if self._total == 0:
            line("The input contains no text.", style="yellow")
        elif done:
            rate = f"{done / seconds:,.0f}/s" if seconds > 0 else ""
            line(f"{done:,} vectors of {self._dim} numbers in {seconds:.2f} s ({rate})")
        if len(self._shares) > 1:
            rows = [
                (name, f"{share['items']:,}", f"{share['requests']:,}", f"{share['retries']:,}")
                for name, share in self._shares.items()
            ]
            header = ("node", "passages", "requests", "retries")
            self._screen.table(header, rows, right=header[1:])
        for finding in self._findings:
            line(str(finding))
        if self._truncated and self._options.on_truncate == "warn":
            line(
                f"{self._truncated:,} passages appear to be longer than the model's context and "
                "were cut: see --passage-size and --on-truncate.",
                style="yellow",
            )
        for item, error in self._failures[:ERRORS_SHOWN]:
            line(f"no vector for {_place(item)}: {error}", style="red")
        if self.missing:
            line(f"{self.missing:,} of {self._total:,} passages are missing.", style="red")
        if self._options.out:
            kind = "Partial result" if self.missing else "Result"
            place = self._options.out
            if self._kept is not None and self._kept.name != Path(place).name:
                place = f"{self._kept} ({place} was not changed)"
            kept = f"{kind} in {place}"
            line(kept if is_kept else f"{self._options.out} was not written")
        if self._options.trace and self._slices:
            line(f"Trace in {self._options.trace}: open it at ui.perfetto.dev")

    def _summary(self, seconds: float, is_kept: bool) -> dict[str, Any]:
        done = self._total - self.missing
        return {
            "model": self._options.model_name,
            "passages": self._total,
            "embedded": done,
            "missing": self.missing,
            "truncated": self._truncated,
            "dim": self._dim,
            "seconds": round(seconds, 3),
            "per_second": round(done / seconds, 1) if seconds > 0 else None,
            "out": str(self._kept) if self._kept is not None else None,
            "trace": self._options.trace if self._slices else None,
            "nodes": {name: dict(share) for name, share in self._shares.items()},
            "findings": [str(finding) for finding in self._findings],
            "errors": [
                {"source": item.source, "line": item.line, "start": item.start, "error": str(error)}
                for item, error in self._failures
            ],
        }


def _keep_apart(options: EmbedOptions) -> None:
    """Raise InvalidInput if a result would overwrite an input or the other result."""
    results = {"--out": options.out, "--trace": options.trace}
    taken = {Path(name).resolve(): f"the input {name}" for name in options.files if name != "-"}
    for option, name in results.items():
        if name:
            other = taken.setdefault(Path(name).resolve(), f"{option} {name}")
            if other != f"{option} {name}":
                raise InvalidInput(f"{option} {name} would overwrite {other}: give it another name")


def _place(item: Item) -> str:
    line = "" if item.line is None else f", line {item.line}"
    return f"{item.source}{line}, characters {item.start} to {item.end}"
