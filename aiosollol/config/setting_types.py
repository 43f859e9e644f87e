"""Kinds of setting values: how to parse each from text, and which values are valid."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Set
from math import isfinite
from typing import Any, Generic, TypeVar, get_args

from aiosollol.core.redaction import has_at_sign, safe_repr

T = TypeVar("T")

_FLAGS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


class Kind(Generic[T]):
    """A kind of value.

    expected: valid values in words, as the end of "X must be ...".
    check: returns the value to store; raises ValueError or OverflowError for an invalid one.
    read: parses the text of an environment variable; raises ValueError.
    """

    __slots__ = ("check", "expected", "read")

    def __init__(
        self, expected: str, check: Callable[[object], T], read: Callable[[str], object]
    ) -> None:
        self.expected = expected
        self.check = check
        self.read = read


def number(expected: str, is_sound: Callable[[float], bool]) -> Kind[float]:
    """A finite number for which `is_sound` holds, stored as a float."""

    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError  # noqa: TRY004 - a wrong type is reported like any invalid value
        found = float(value)
        if not (isfinite(found) and is_sound(found)):
            raise ValueError
        return found

    return Kind(expected, check, float)


def whole(expected: str, least: int, most: int) -> Kind[int]:
    """A whole number from `least` to `most`."""

    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError
        return int(value)

    return Kind(expected, check, int)


def one_of(choices: Any) -> Kind[Any]:
    """One of the words of a Literal."""
    words = get_args(choices)

    def check(value: object) -> object:
        if value not in words:
            raise ValueError
        return value

    return Kind(f"one of {', '.join(map(repr, words))}", check, str)


def _check_flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError  # noqa: TRY004
    return value


def _read_flag(text: str) -> bool:
    if text.lower() not in _FLAGS:
        raise ValueError
    return _FLAGS[text.lower()]


def _check_names(value: object) -> tuple[str, ...]:
    # An empty list is ambiguous: it could mean "none" or "no limit".
    if not (isinstance(value, list | tuple | Set) and value):
        raise ValueError
    if not all(isinstance(name, str) and name.strip() for name in value):
        raise ValueError
    return tuple(name.strip() for name in value)


def _check_text(value: object) -> str | None:
    if not (isinstance(value, str) and value.strip() and value.isprintable()):
        raise ValueError
    return value.strip()


def _check_cluster(value: object) -> str | None:
    text = _check_text(value)
    if text is not None and has_at_sign(text):
        raise ValueError
    return text


FLAG = Kind("true or false (in a variable also 1/0, yes/no, on/off)", _check_flag, _read_flag)
SECONDS = number("a number of seconds above 0, such as 30", lambda x: x > 0)
PATIENCE = number("a number of seconds of at least 0, such as 30", lambda x: x >= 0)
FRACTION = number("a fraction from 0 to 1, such as 0.05", lambda x: 0 <= x <= 1)
GAIN = number("a fraction from 0 to less than 1, such as 0.05", lambda x: 0 <= x < 1)
COUNT = whole("a whole number from 0 to a billion, such as 3", 0, 10**9)
NAMES: Kind[tuple[str, ...] | None] = Kind(
    "a list of at least one string (in a variable: separated by commas)",
    _check_names,
    lambda text: text.split(","),
)
TEXT: Kind[str | None] = Kind("a line of text", _check_text, str)
CLUSTER: Kind[str | None] = Kind(
    "the address of a cluster, without a user name and a password", _check_cluster, str
)
WEIGHT = number("a number above 0, such as 2", lambda x: x > 0)


def closest(word: str, known: Iterable[str], *, likeness: float = 0.6) -> str:
    """The most similar of `known` to `word`, or "" if none reaches `likeness` (1 is equal)."""
    from difflib import get_close_matches  # half a millisecond, only when needed

    matches = get_close_matches(word, list(known), n=1, cutoff=likeness)
    return matches[0] if matches else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about `word`: "; did you mean 'x'?", or else all known names."""
    names = list(known)
    match = closest(re.sub(r"[-\s]", "_", word.strip().lower()), names)
    return f"; did you mean {match!r}?" if match else f"; known are {', '.join(names)}"


def shortened(value: object) -> str:
    """`value` for an error message: passwords and tokens removed, cut if long."""
    try:
        text = safe_repr(value)
    except ValueError:  # a number with more digits than Python will write
        return f"this {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
