"""Input and output files of `embed`: texts cut into passages, vectors as JSON Lines or .npy."""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import orjson

from aiosollol.core.embeddings import Embeddings
from aiosollol.errors import InvalidInput, SollolError

STDIN = "-"
_JSONL_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Item:
    """A passage and its origin.

    `line` counts from 1 and is None for plain text; `start` and `end` are offsets in characters
    in the file, or in the text of that line.
    """

    text: str
    source: str
    line: int | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads sources as passages.

    size: of a passage in characters; 0 keeps texts whole.
    field: of JSON Lines. None reads files named .jsonl or .ndjson as JSON Lines with a field
    "text", and all others as plain text.
    """

    size: int
    field: str | None = None

    def read(self, sources: Sequence[Source]) -> Iterator[Item]:
        """Every passage, in order. Raises InvalidInput with the file and line."""
        for source in sources:
            is_jsonl = self.field is not None or source.name.lower().endswith(_JSONL_SUFFIXES)
            texts = self._read_lines(source) if is_jsonl else _read_text(source)
            for line, text in texts:
                for passage, start, end in self._cut(text):
                    yield Item(passage, source.name, line, start, end)

    def _cut(self, text: str) -> Iterator[tuple[str, int, int]]:
        if self.size == 0:
            yield text, 0, len(text)
            return
        for passage in cut_passages(text, self.size):
            yield passage.text, passage.start, passage.end

    def _read_lines(self, source: Source) -> Iterator[tuple[int, str]]:
        field = self.field or "text"
        for number, line in enumerate(source.lines(), 1):
            if line.strip():
                yield number, _get_field(line, field, f"{source.name}, line {number}")


@dataclass(frozen=True, slots=True)
class Source:
    """One input, which can be read repeatedly; stdin is kept in memory."""

    name: str
    content: bytes | None = None

    def lines(self) -> Iterator[bytes]:
        with self.open() as file:
            for number, line in enumerate(file):
                yield line if number else line.removeprefix(codecs.BOM_UTF8)

    def read(self) -> bytes:
        with self.open() as file:
            return file.read()

    def open(self) -> BinaryIO:
        if self.content is not None:
            return io.BytesIO(self.content)
        try:
            return open(self.name, "rb")
        except OSError as error:
            raise InvalidInput(f"{self.name}: {error.strerror}") from error


def open_sources(names: Sequence[str], stdin: BinaryIO) -> list[Source]:
    """The sources named on the command line; ``-`` or none is stdin, which is read here."""
    if names.count(STDIN) > 1:
        raise InvalidInput("stdin (-) can be given only once")
    return [
        Source(name, stdin.read()) if name == STDIN else Source(name) for name in names or [STDIN]
    ]


def _read_text(source: Source) -> Iterator[tuple[None, str]]:
    content = source.read()
    try:
        # The byte order mark is dropped. Line ends are kept: offsets count them.
        yield None, content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{source.name} is not UTF-8 text (byte {error.start}); "
            f"convert it first: iconv -t UTF-8 -f ENCODING"
        ) from error


def _get_field(line: bytes, field: str, where: str) -> str:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"{where} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise InvalidInput(f"{where} is not a JSON object")
    if field not in record:
        known = ", ".join(record) or "none"
        raise InvalidInput(f"{where} has no field {field!r} (it has: {known}); choose with --field")
    text = record[field]
    if not isinstance(text, str):
        raise InvalidInput(f"{where}: the field {field!r} is not a string")
    return text


class Sink(Protocol):
    """Writes vectors segment by segment."""

    def write(self, items: Sequence[Item], embeddings: Embeddings) -> None:
        """Add the vectors of some items. Items with an error get null, or a row of NaN."""

    def commit(self, *, is_partial: bool = False) -> Path | None:
        """Move the output to its target and return its path; None for stdout."""

    def discard(self) -> None:
        """Drop the output and leave the target unchanged; no effect after `commit`."""


def open_sink(out: str | None, stdout: BinaryIO) -> Sink:
    """The sink for ``--out``; None is JSON Lines on stdout.

    Raises InvalidInput, before anything is computed, if the name ends neither in .npy nor in
    .jsonl, or the file cannot be written.
    """
    if out is None:
        return _JsonLines(stdout)
    path = Path(out)
    if path.suffix not in (".npy", ".jsonl"):
        raise InvalidInput(f"--out {out}: the name must end in .npy or .jsonl")
    file = Replacing(path, "--out")
    return _Npy(file) if path.suffix == ".npy" else _JsonLines(file.stream, file)


class Replacing:
    """A new file next to `path` that replaces it atomically on `commit`.

    Raises InvalidInput, with the name of the option, if it cannot be written.
    """

    def __init__(self, path: Path, option: str) -> None:
        if path.is_dir():
            raise InvalidInput(f"{option} {path}: is a directory")
        self._target = path.resolve()  # a symbolic link is kept
        self._path = self._target.with_name(f".{self._target.name}.{os.getpid()}.part")
        try:
            self.stream: BinaryIO = self._path.open("w+b")
        except OSError as error:
            raise InvalidInput(f"{option} {path}: {error.strerror}") from error

    def commit(self, *, is_partial: bool = False) -> Path:
        """Replace the target. A partial file goes beside an existing one, as `.partial`."""
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
    """One object per line: the passage's origin, its text, and its vector."""

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
    """An array of float32, one row per passage, in numpy's format.

    The header is rewritten after each segment, so the file is valid even if this process is
    killed. Needs no numpy: numpy.org/doc/stable/reference/generated/numpy.lib.format.html
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
    """The 128-byte header of a .npy file of float32 in this machine's byte order."""
    order = "<" if sys.byteorder == "little" else ">"
    text = f"{{'descr': '{order}f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}"
    # Padded to a fixed length, so that it can be rewritten in place.
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"


_SOLID = re.compile(r"\S")
_WORD = re.compile(r"\s+")
_PARAGRAPH = re.compile(r"\n\s*\n")
# Western sentences end before white space, unless a lower-case letter follows ("e.g. this");
# Chinese and Japanese ones need no space. The group still belongs to the sentence.
_SENTENCE = re.compile(r"([.!?…]['\"”’)\]]*)\s+(?![a-z\s])|([。！？]['\"”’）」』]*)")


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a text: ``source[start:end] == text``, without white space at either end."""

    text: str
    start: int
    end: int


def cut_passages(text: str, size: int) -> Iterator[Passage]:
    """The passages of `text`, in order, none longer than `size` characters.

    Short paragraphs share a passage. A long one is cut after a sentence, else between words,
    and inside a word only if that word alone is longer than a passage. Only white space is lost,
    and nothing is repeated. A text of only white space has no passages.

    Raises InvalidInput if `size` is less than 1.
    """
    if size < 1:
        raise InvalidInput(f"a passage needs a size of at least 1 character, not {size}")
    return _cut(text, size)


def _cut(text: str, size: int) -> Iterator[Passage]:
    stop = len(text.rstrip())
    start = _next_solid(text, 0)
    while start < stop:
        passage = text[start : _find_end(text, start, stop, size)].rstrip()
        end = start + len(passage)
        yield Passage(passage, start, end)
        start = _next_solid(text, end)


def _next_solid(text: str, position: int) -> int:
    found = _SOLID.search(text, position)
    return found.start() if found else len(text)


def _find_end(text: str, start: int, stop: int, size: int) -> int:
    """Where the passage that begins at `start` should end; at most `size` later."""
    rest = stop - start
    if rest <= size:
        return stop
    # Near the end of the text, leave enough for the last passage: three words alone have little
    # meaning.
    most = min(size, max(rest * 2 // 3, 1))
    # Not too close to the start: a heading alone is not a passage, but a short sentence is better
    # than a longer passage that ends in the middle of one.
    for pattern, least in ((_PARAGRAPH, most // 2), (_SENTENCE, most // 4), (_WORD, most // 2)):
        end = _last_break(pattern, text, start + max(least, 1), start + most)
        if end:
            return end
    return _last_break(_WORD, text, start + 1, start + size) or start + size


def _last_break(pattern: re.Pattern[str], text: str, low: int, high: int) -> int:
    """The last position in `low` to `high`, inclusive, where `pattern` ends a piece; 0 if none."""
    last = 0
    # Two characters beyond `high`: the white space after a piece that ends there, and the
    # lower-case letter that may follow it.
    for match in pattern.finditer(text, low - 1, min(high + 2, len(text))):
        end = match.end(match.lastindex) if match.lastindex else match.start()
        if low <= end <= high:
            last = end
    return last
