"""What was probably meant by a name that nobody knows."""

from __future__ import annotations

import re
from collections.abc import Iterable

from aiosollol.core.redaction import safe_repr


def closest(word: str, known: Iterable[str], *, likeness: float = 0.6) -> str:
    """The one of `known` that is most like `word`, or "" if none is like enough (1 is equal)."""
    from difflib import get_close_matches  # half a millisecond, for those who need it

    matches = get_close_matches(word, list(known), n=1, cutoff=likeness)
    return matches[0] if matches else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about `word`: "; did you mean 'x'?", or else all that is known."""
    names = list(known)
    match = closest(re.sub(r"[-\s]", "_", word.strip().lower()), names)
    return f"; did you mean {match!r}?" if match else f"; known are {', '.join(names)}"


def shortened(value: object) -> str:
    """`value` for an error: without what may be a password or a token, and cut if it is long."""
    try:
        text = safe_repr(value)
    except ValueError:  # a number of more digits than Python is willing to write
        return f"this {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
