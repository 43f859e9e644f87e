"""What `embed` reads: text files, JSON Lines, or stdin, cut into passages."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import orjson

from aiosollol.core.passages import cut_passages
from aiosollol.errors import InvalidInput

STDIN = "-"
_JSONL_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Item:
    """A passage and where it is from.

    `line` counts from 1 and is None outside JSON Lines; `start` and `end` are offsets in
    characters, in the file or in the text of that line.
    """

    text: str
    source: str
    line: int | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Reader:
    """How to read: `size` of a passage in characters (0: whole texts), `field` of JSON Lines.

    Without a field, files named .jsonl or .ndjson are JSON Lines with a field "text", and all
    else is text. With one, everything is JSON Lines.
    """

    size: int
    field: str | None = None

    def read(self, sources: Sequence[Source]) -> Iterator[Item]:
        """Every passage, in order. Raises InvalidInput, naming file and line."""
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
    """One input, which can be read more than once: stdin is kept in memory."""

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
    """The sources that a command line names; none, or ``-``, is stdin, which is read here."""
    if names.count(STDIN) > 1:
        raise InvalidInput("stdin (-) can be read once only")
    return [
        Source(name, stdin.read()) if name == STDIN else Source(name) for name in names or [STDIN]
    ]


def _read_text(source: Source) -> Iterator[tuple[None, str]]:
    content = source.read()
    try:
        # A byte order mark is not text. Line ends stay as they are: offsets count them.
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
