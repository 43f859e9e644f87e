"""Newline-delimited JSON: lines out of pieces of any size."""

from __future__ import annotations


class LineSplitter:
    """Feed it bytes as they come; it hands back whole lines, without their ends.

    Empty lines are dropped. Nothing is copied twice, however small the pieces are.
    """

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """The lines that `piece` completes."""
        if not self._parts and piece.find(b"\n") == len(piece) - 1 > 0:
            return [piece[:-1]] if piece.strip() else []  # a line at a time, as servers send them
        end = piece.rfind(b"\n")
        if end < 0:
            if piece:
                self._parts.append(piece)
            return []
        self._parts.append(piece[:end])
        whole = b"".join(self._parts)
        self._parts = [piece[end + 1 :]] if end + 1 < len(piece) else []
        lines = whole.split(b"\n")
        return lines if all(map(bytes.strip, lines)) else [line for line in lines if line.strip()]

    def pending(self) -> bytes:
        """What came of a line that is not whole yet."""
        return b"".join(self._parts)

    def rest(self) -> bytes:
        """What came after the last line end: empty unless the stream was cut off."""
        return self.pending().strip()
