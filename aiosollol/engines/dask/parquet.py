"""Embeds a partition of a collection and writes it as a Parquet file, in a worker's thread."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aiosollol.core.offload.partitions import Partition, PartitionResult
from aiosollol.core.offload.write_report import (
    BadPart,
    WriteOrder,
    WrittenPart,
    file_name,
    unfinished_name,
)
from aiosollol.core.report import NodeShare
from aiosollol.core.stats import NodeCounters
from aiosollol.errors import EngineError, InvalidInput, MissingExtra, SollolError

if TYPE_CHECKING:  # untyped
    pyarrow: Any
else:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("writing Parquet files", "dask") from error

ROWS = 4096
"""Rows embedded at once and written as a row group: a thread keeps this many in memory."""

TEXT, EMBEDDING, ERROR = "text", "embedding", "error"

Embed = Callable[[Partition], PartitionResult]


def write_part(order: WriteOrder, index: int, part: Any, embed: Embed) -> WrittenPart | BadPart:
    """Embed `part` with `embed` and write its file, completely or not at all. Blocks.

    part: an iterable of texts, or a pandas dataframe if the order names a column.

    Raises SollolError.
    """
    if not os.path.isdir(order.directory):
        raise EngineError(
            "dask",
            f"worker has no directory {order.directory}: name one that all workers share",
        )
    unfinished = os.path.join(order.directory, unfinished_name(index, order.run))
    rows = _Rows(order, index, embed)
    try:
        with contextlib.ExitStack() as stack:
            writer = None
            for table in rows.tables(part):
                if writer is None:
                    writer = pyarrow.parquet.ParquetWriter(unfinished, table.schema)
                    stack.enter_context(writer)
                writer.write_table(table)
        if rows.bad is None:
            os.replace(unfinished, os.path.join(order.directory, file_name(index)))
    except OSError as error:
        raise EngineError("dask", f"could not write {unfinished}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
    return rows.bad or rows.written()


class _Rows:
    """Rows with their vectors, a slice at a time. bad: the failed text that ended it, if any."""

    def __init__(self, order: WriteOrder, index: int, embed: Embed) -> None:
        self._order = order
        self._index = index
        self._embed = embed
        self._rows = self._failed = 0
        self._nodes: dict[str, NodeShare] = {}
        self._counters: dict[str, NodeCounters] = {}
        self._worker = ""
        self.bad: BadPart | None = None

    def tables(self, part: Any) -> Iterator[Any]:
        """`part` as Arrow tables with the file's columns: at least one, which may be empty."""
        for texts, table in self._slices(part):
            embeddings = self._vectors(texts)
            errors = embeddings.errors
            if errors and self._order.on_error == "raise":
                item, error = min(errors.items())
                self.bad = BadPart(error, self._rows + item)
                return
            self._rows += len(texts)
            self._failed += len(errors)
            yield self._with_vectors(table, embeddings, errors)

    def written(self) -> WrittenPart:
        return WrittenPart(
            file_name(self._index),
            self._rows,
            self._failed,
            self._nodes,
            self._counters,
            self._worker,
        )

    def _slices(self, part: Any) -> Iterator[tuple[Sequence[Any], Any]]:
        column = self._order.column
        if column is None:
            texts = part if isinstance(part, Sequence) else list(part)
            for start in range(0, max(1, len(texts)), ROWS):
                these = texts[start : start + ROWS]
                kept = [text if isinstance(text, str) else None for text in these]
                yield these, pyarrow.table({TEXT: pyarrow.array(kept, pyarrow.string())})
            return
        if column not in part.columns:
            names = ", ".join(map(str, part.columns))
            raise InvalidInput(f"the dataframe has no column {column!r}; it has {names}")
        taken = {EMBEDDING, ERROR} & set(part.columns)
        if taken:
            raise InvalidInput(f"the dataframe already has a column {min(taken)!r}: rename it")
        whole = pyarrow.Table.from_pandas(part)
        for start in range(0, max(1, len(whole)), ROWS):
            table = whole.slice(start, ROWS)
            yield table.column(column).to_pylist(), table

    def _vectors(self, texts: Sequence[Any]) -> Any:
        if not texts:
            return PartitionResult(b"", 0, 0, "").embeddings
        order = self._order
        result = self._embed(
            Partition(self._index, order.settings, texts, order.planning, order.digest)
        )
        for name, share in result.nodes.items():
            self._nodes[name] = self._nodes.get(name, NodeShare()).plus(share)
        for name, counters in result.counters.items():
            self._counters.setdefault(name, NodeCounters()).merge(counters)
        self._worker = result.worker
        if result.dim not in (0, order.dim):
            raise EngineError(
                "dask", f"has vectors of {result.dim} numbers, where others have {order.dim}"
            )
        return result.embeddings

    def _with_vectors(self, table: Any, embeddings: Any, errors: Mapping[int, SollolError]) -> Any:
        dim, count = self._order.dim, len(embeddings)
        # Without any vector there are no floats: all rows are null.
        floats = embeddings.buffer if embeddings.dim else memoryview(bytes(4 * dim * count))
        flat = pyarrow.Array.from_buffers(
            pyarrow.float32(), dim * count, [None, pyarrow.py_buffer(floats)]
        )
        mask = None
        if errors:
            mask = pyarrow.array([item in errors for item in range(count)])
        vectors = pyarrow.FixedSizeListArray.from_arrays(flat, dim, mask=mask)
        words = [_words(errors.get(item)) for item in range(count)]
        table = table.append_column(EMBEDDING, vectors)
        return table.append_column(ERROR, pyarrow.array(words, pyarrow.string()))


def _words(error: SollolError | None) -> str | None:
    # "item 7" is the index within a slice, which is of no use to a reader of the file.
    return None if error is None else re.sub(r"^item \d+ ", "", str(error))
