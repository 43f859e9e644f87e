"""Where `embed` writes: JSON Lines or .npy, valid at every moment, in place when complete."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import orjson

from aiosollol.cli.sources import Item
from aiosollol.core.embeddings import Embeddings
from aiosollol.errors import InvalidInput, SollolError


class Sink(Protocol):
    """Takes vectors segment by segment."""

    def write(self, items: Sequence[Item], embeddings: Embeddings) -> None:
        """Add the vectors of some items. Those with an error become a null, or a row of NaN."""

    def commit(self, *, is_partial: bool = False) -> Path | None:
        """Put what was written where it was asked for, and say where; None for stdout."""

    def discard(self) -> None:
        """Leave the target as it was, unless `commit` came first."""


def open_sink(out: str | None, stdout: BinaryIO) -> Sink:
    """The sink for ``--out``; None is JSON Lines on stdout.

    Raises InvalidInput for a name that ends neither in .npy nor in .jsonl, and where no file can
    be written: here, before anything is computed.
    """
    if out is None:
        return _JsonLines(stdout)
    path = Path(out)
    if path.suffix not in (".npy", ".jsonl"):
        raise InvalidInput(f"--out {out}: give it a name that ends in .npy or .jsonl")
    file = Replacing(path, "--out")
    return _Npy(file) if path.suffix == ".npy" else _JsonLines(file.stream, file)


class Replacing:
    """A new file beside `path`, which takes its place in one step, or never.

    Raises InvalidInput, naming the option that gave the path, if it cannot be written.
    """

    def __init__(self, path: Path, option: str) -> None:
        if path.is_dir():
            raise InvalidInput(f"{option} {path}: this is a directory")
        self._target = path.resolve()  # a link stays a link
        self._path = self._target.with_name(f".{self._target.name}.{os.getpid()}.part")
        try:
            self.stream: BinaryIO = self._path.open("w+b")
        except OSError as error:
            raise InvalidInput(f"{option} {path}: {error.strerror}") from error

    def commit(self, *, is_partial: bool = False) -> Path:
        """Take the place. What is partial takes none that is taken, but one beside it."""
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()
        target = self._target
        if is_partial and target.exists():
            target = target.with_name(f"{target.stem}.partial{target.suffix}")
        self._path.replace(target)
        return target

    def discard(self) -> None:
        if not self.stream.closed:
            self.stream.close()
            self._path.unlink(missing_ok=True)


class _JsonLines:
    """One object a line: where the passage is from, its text, and its vector."""

    def __init__(self, stream: BinaryIO, file: Replacing | None = None) -> None:
        self._stream = stream
        self._file = file

    def write(self, items: Sequence[Item], embeddings: Embeddings) -> None:
        for index, item in enumerate(items):
            record: dict[str, object] = {"source": item.source}
            if item.line is not None:
                record["line"] = item.line
            record |= {"start": item.start, "end": item.end, "text": item.text}
            if index in embeddings.errors:
                record |= {"embedding": None, "error": str(embeddings.errors[index])}
            else:
                record["embedding"] = embeddings[index].tolist()
            self._stream.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        self._stream.flush()

    def commit(self, *, is_partial: bool = False) -> Path | None:
        return None if self._file is None else self._file.commit(is_partial=is_partial)

    def discard(self) -> None:
        if self._file is not None:
            self._file.discard()


class _Npy:
    """An array of float32, one row for each passage, in numpy's own format.

    The header is rewritten after each segment, so the file is valid even if this process is
    killed. It needs no numpy: numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """

    def __init__(self, file: Replacing) -> None:
        self._file = file
        self._rows = 0
        self._dim = 0
        file.stream.write(npy_header(0, 0))

    def write(self, items: Sequence[Item], embeddings: Embeddings) -> None:
        if self._dim == 0:
            self._dim = embeddings.dim
        if embeddings.dim != self._dim:
            raise SollolError(
                f"the model's vectors had {self._dim} numbers and now have {embeddings.dim}: "
                "the nodes do not serve the same model"
            )
        stream = self._file.stream
        stream.write(embeddings.buffer)
        self._rows += len(items)
        end = stream.tell()
        stream.seek(0)
        stream.write(npy_header(self._rows, self._dim))
        stream.seek(end)
        stream.flush()

    def commit(self, *, is_partial: bool = False) -> Path | None:
        return self._file.commit(is_partial=is_partial)

    def discard(self) -> None:
        self._file.discard()


def npy_header(rows: int, dim: int) -> bytes:
    """The header of a .npy file of float32 in this machine's byte order: 128 bytes."""
    order = "<" if sys.byteorder == "little" else ">"
    text = f"{{'descr': '{order}f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}"
    # Padded as if the numbers had all their digits, so that it can be rewritten in place.
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"
