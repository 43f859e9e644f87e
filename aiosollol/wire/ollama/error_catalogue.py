"""Classifies Ollama's error messages, from a catalogue of the messages in its source.

error_messages.json has one entry per message, in matching order: messages that quote the request
come first, so that quoted words are not taken for the server's. `text` is a fragment in lower
case; ``*`` matches any characters, ``^`` and ``$`` the beginning and the end of the message.
`status` lists the HTTP statuses that Ollama sends it with; other versions may use others, so only
a `strict` entry requires one of them. `place` is the file and function, in `version` (default: the
newest), whose commit is under `commits`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import orjson

from aiosollol.errors import FaultKind

MAX_CHARACTERS = 4096
"""Longest part of a message that is matched: a crashed runner's may hold kilobytes of its log."""


class KnownMessage(NamedTuple):
    """One entry. pieces: its text, split at each ``*``; place, version: its source location."""

    fault: FaultKind
    statuses: frozenset[int]
    is_strict: bool
    pieces: tuple[str, ...]
    is_at_start: bool
    is_at_end: bool
    place: str
    version: str

    @classmethod
    def read(cls, entry: dict[str, Any], newest: str) -> KnownMessage:
        """Parse an entry of the file."""
        text: str = entry["text"]
        return cls(
            entry["kind"],
            frozenset(entry["status"]),
            entry.get("strict", False),
            tuple(text.removeprefix("^").removesuffix("$").split("*")),
            text.startswith("^"),
            text.endswith("$"),
            entry["place"],
            entry.get("version", newest),
        )

    def fits(self, status: int, message: str) -> bool:
        """Whether a message, in lower case, is this one. Linear in its length."""
        if self.is_strict and status not in self.statuses:
            return False
        pieces = self.pieces
        if self.is_at_start and not message.startswith(pieces[0]):
            return False
        at = 0
        for piece in pieces:
            found = message.find(piece, at)
            if found < 0:
                return False
            at = found + len(piece)
        return not self.is_at_end or at == len(message)


def _read_catalogue() -> tuple[KnownMessage, ...]:
    file = orjson.loads(Path(__file__).with_name("error_messages.json").read_bytes())
    newest = next(iter(file["commits"]))
    return tuple(KnownMessage.read(entry, newest) for entry in file["messages"])


KNOWN_MESSAGES = _read_catalogue()


def fault_of(status: int, message: str) -> FaultKind | None:
    """The kind of fault behind an error; None if the message is not in the catalogue."""
    text = message.strip()[:MAX_CHARACTERS].lower()
    for known in KNOWN_MESSAGES:
        if known.fits(status, text):
            return known.fault
    return None
