"""Formats lines of cells as a text table."""

from __future__ import annotations

from collections.abc import Container, Sequence


def aligned(lines: Sequence[Sequence[str]], left: Container[int] = (0,)) -> list[str]:
    """The lines in aligned columns, with a rule below the first, the head.

    Columns whose index is in `left` are left-aligned, the others right-aligned.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    head, *others = lines
    return [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, ["-" * width for width in widths], *others)
    ]
