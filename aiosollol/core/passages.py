"""Cut long texts into passages short enough to have one meaning each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from aiosollol.errors import InvalidInput

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
