"""Durations in Go's format: "5m", "1h30m", "1.5s", "-1ns"."""

from __future__ import annotations

from aiosollol.errors import InvalidInput

LONGEST = 4096
"""Characters. Go has no limit, but no meaningful duration is longer."""

_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # U+00B5, the micro sign
    "μs": 1_000,  # U+03BC, the Greek letter mu
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_DIGITS = frozenset("0123456789")
_NUMBER = _DIGITS | {"."}
_MOST = 2**63  # nanoseconds; the maximum of a positive duration is one less
_MOST_DIGITS = 19  # of a number up to _MOST
_SHOWN = 64  # characters shown of a text that is too long


def parse_duration(text: str) -> int:
    """The nanoseconds of a duration, in time linear in its length.

    Like Go's time.ParseDuration (time/format.go), including overflow and rounding, except that
    texts longer than `LONGEST` are refused.

    Raises InvalidInput, with Go's message.
    """
    if len(text) > LONGEST:
        raise InvalidInput(f"time: invalid duration {_quoted(text[:_SHOWN])}...")
    unsigned = text[1:] if text.startswith(("-", "+")) else text
    if unsigned == "0":
        return 0
    if not unsigned:
        raise _invalid(text)
    total = at = 0
    while at < len(unsigned):
        nanoseconds, at = _read_step(unsigned, at, text)
        total += nanoseconds
        if total > _MOST:
            raise _invalid(text)
    if text.startswith("-"):
        return -total
    if total == _MOST:
        raise _invalid(text)
    return total


def _read_step(unsigned: str, at: int, text: str) -> tuple[int, int]:
    """The nanoseconds of one number with its unit, such as "30m", and the start of the next."""
    number_end = _end_of(unsigned, at, _DIGITS)
    whole, fraction = unsigned[at:number_end], ""
    if unsigned.startswith(".", number_end):
        begin = number_end + 1
        number_end = _end_of(unsigned, begin, _DIGITS)
        fraction = unsigned[begin:number_end]
    if not whole and not fraction:
        raise _invalid(text)
    significant = whole.lstrip("0")
    if len(significant) > _MOST_DIGITS or (value := int(significant or "0")) > _MOST:
        raise _invalid(text)
    end = number_end
    while end < len(unsigned) and unsigned[end] not in _NUMBER:
        end += 1
    name = unsigned[number_end:end]
    if not name:
        raise InvalidInput(f"time: missing unit in duration {_quoted(text)}")
    unit = _UNITS.get(name)
    if unit is None:
        raise InvalidInput(f"time: unknown unit {_quoted(name)} in duration {_quoted(text)}")
    if value > _MOST // unit:
        raise _invalid(text)
    return value * unit + _fraction_of(fraction, unit), end


def _fraction_of(digits: str, unit: int) -> int:
    """The nanoseconds of the digits after a decimal point, computed as in Go."""
    value, scale = 0, 1.0
    for digit in digits:
        if value > (_MOST - 1) // 10 or value * 10 + int(digit) > _MOST:
            break
        value = value * 10 + int(digit)
        scale *= 10.0
    return int(value * (unit / scale))


def _end_of(text: str, at: int, wanted: frozenset[str]) -> int:
    while at < len(text) and text[at] in wanted:
        at += 1
    return at


def _invalid(text: str) -> InvalidInput:
    return InvalidInput(f"time: invalid duration {_quoted(text)}")


def _quoted(text: str) -> str:
    """`text` quoted as in Go's package time: all but printable ASCII becomes hex bytes."""
    written = []
    for character in text:
        if character in '"\\':
            written.append(f"\\{character}")
        elif " " <= character < "\x80":
            written.append(character)
        else:
            encoded = character.encode("utf-8", "replace")
            written.append("".join(f"\\x{byte:02x}" for byte in encoded))
    return f'"{"".join(written)}"'
