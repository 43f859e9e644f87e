"""Order and report for collections whose vectors are written by the workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aiosollol.core.arguments import OnError
from aiosollol.core.report import EngineNote, NodeShare
from aiosollol.core.request import EmbedSettings
from aiosollol.core.scheduling.planner import PlanOptions
from aiosollol.core.stats import NodeCounters
from aiosollol.errors import SollolError


@dataclass(frozen=True, slots=True)
class WriteOrder:
    """How to embed a collection, and where to write it.

    directory: absolute path, visible to all workers.
    column: the dataframe column with the texts; None for a collection of texts.
    dim: length of the vectors.
    digest: required digest of the model; None for any.
    run: identifies the unfinished files of this call.
    overwrite: remove earlier files from the directory first.
    """

    settings: EmbedSettings
    planning: PlanOptions
    directory: str
    column: str | None
    on_error: OnError
    dim: int
    digest: str | None
    run: str
    overwrite: bool


@dataclass(frozen=True, slots=True)
class WrittenPart:
    """One written file. failed: rows without a vector. counters, worker: see `EngineOutcome`."""

    file: str
    rows: int
    failed: int
    nodes: Mapping[str, NodeShare] = field(default_factory=dict)
    counters: Mapping[str, NodeCounters] = field(default_factory=dict)
    worker: str = ""


@dataclass(frozen=True, slots=True)
class BadPart:
    """A part that was not written, and why. item: position of the failed text, if there is one."""

    error: SollolError
    item: int | None = None


@dataclass(frozen=True, slots=True)
class WriteReport:
    """The files written. ``str(report)`` summarises it in a line.

    directory: the directory of the files.
    files: their names, in the order of the partitions.
    rows: total number of rows.
    failed: rows without a vector; the reasons are in the column ``error``.
    seconds: duration of the whole call.
    dim: length of the vectors.
    nodes: share of each node, by name.
    engine: the engine that was used.
    """

    directory: str
    files: tuple[str, ...]
    rows: int
    failed: int
    seconds: float
    dim: int
    nodes: Mapping[str, NodeShare] = field(default_factory=dict)
    engine: EngineNote = field(default_factory=EngineNote)

    def __str__(self) -> str:
        rate = self.rows / self.seconds if self.seconds > 0 else 0.0
        shares = ", ".join(f"{name} {share.items}" for name, share in self.nodes.items())
        failed = f", {self.failed} without a vector" if self.failed else ""
        return (
            f"{self.rows} rows{failed} in {self.seconds:.2f} s ({rate:.0f}/s), "
            f"{len(self.files)} files in {self.directory}: {shares or 'no node'}"
        )


def file_name(part: int) -> str:
    """The file name of partition number `part`."""
    return f"part-{part:05d}.parquet"


def unfinished_name(part: int, run: str) -> str:
    """The file name during writing: readers of Parquet skip names that begin with a dot."""
    return f".{file_name(part)}.{run}"
