"""What is to be embedded, how fast that can be at best, and whether what came is right.

It is used in the interpreter of sollol too, so it needs nothing but Python.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

MODEL = "nomic-embed-text"
DIM = 64
NODES = 4
CHARACTERS = 300
"""Of a text: about 50 words, as in a passage of a document."""

_TAIL = "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor "


class Counted(NamedTuple):
    """How many texts of a batch have a vector that is not theirs, and how many have none."""

    wrong: int
    missing: int


def texts(count: int, seed: str) -> list[str]:
    """Texts that differ from each other, and from those of another seed."""
    tail = _TAIL * (CHARACTERS // len(_TAIL) + 1)
    return [f"{seed} {number} {tail}"[:CHARACTERS] for number in range(count)]


def bound(count: int, seconds_per_text: float) -> float:
    """Seconds below which nobody can be: all work over all rates, requests for nothing."""
    return count * seconds_per_text / NODES


def packed(vectors: Sequence[Sequence[float] | None]) -> bytes:
    """The vectors as float32, one after another; NaN where there is none, or of another size."""
    nothing = [math.nan] * DIM
    rows = array("f")
    for vector in vectors:
        rows.extend(vector if vector is not None and len(vector) == DIM else nothing)
    return rows.tobytes()


def count_bad(found: bytes, expected: Sequence[bytes]) -> Counted:
    """Compare what `packed` made with the vector that each text must have, in order."""
    size, none = DIM * 4, struct.pack("f", math.nan) * DIM
    rows = [found[at : at + size] for at in range(0, len(found), size)]
    rows += [none] * (len(expected) - len(rows))
    missing = sum(_is_nan(row) for row in rows)
    wrong = sum(one != other for one, other in zip(rows, expected, strict=False)) - missing
    return Counted(wrong + max(0, len(rows) - len(expected)), missing)


def expected(count: int, seed: str, vector_of: Callable[[str], bytes]) -> list[bytes]:
    """The vectors that the nodes give for `texts(count, seed)`."""
    return [vector_of(text) for text in texts(count, seed)]


def _is_nan(row: bytes) -> bool:
    return len(row) >= 4 and math.isnan(struct.unpack_from("f", row)[0])
