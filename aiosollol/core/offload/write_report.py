"""Collections whose vectors are written where they are computed: what to do, and what was done."""

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

    directory: absolute, and seen by all workers; overwrite: remove such files from it first.
    column: of the texts, in a dataframe; None for a collection of texts. dim: length of the
    vectors. digest: that nodes must have of the model. run: tells the unfinished files of this call
    from those of others.
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
    """One file that was written. failed: rows without a vector. counters, worker: as of
    `EngineOutcome`."""

    file: str
    rows: int
    failed: int
    nodes: Mapping[str, NodeShare] = field(default_factory=dict)
    counters: Mapping[str, NodeCounters] = field(default_factory=dict)
    worker: str = ""


@dataclass(frozen=True, slots=True)
class BadPart:
    """A part that was not written, and why. item: position in it of the text that failed, if it was
    for one."""

    error: SollolError
    item: int | None = None


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What was written. ``str(report)`` says it in a line.

    directory: where; files: their names, in the order of the partitions. rows: in all of them.
    failed: rows without a vector; their reasons are in the column ``error``. seconds: the whole
    time. dim: length of the vectors. nodes: per node name, what it did. engine: who did it.
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
    """The name of the file of partition number `part`."""
    return f"part-{part:05d}.parquet"


def unfinished_name(part: int, run: str) -> str:
    """Its name while it is written: readers of Parquet leave out what begins with a dot."""
    return f".{file_name(part)}.{run}"
