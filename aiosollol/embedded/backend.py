"""What the embedded node needs of a model: few methods, all of which block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aiosollol.wire.answers import ModelCard


@dataclass(frozen=True, slots=True)
class Computed:
    """The vectors of some texts: float32 in this machine's byte order, vector after vector.

    dim: length of each. tokens: how many tokens the texts have together.
    """

    floats: bytes
    dim: int
    tokens: int


class Backend(Protocol):
    """A thing that embeds. The node calls it from one thread, so it need not be thread-safe."""

    @property
    def names(self) -> Sequence[str]:
        """What clients may call the model; the first is its own name. Known without loading."""
        ...

    @property
    def dim(self) -> int:
        """Length of a whole vector. Known without loading."""
        ...

    def load(self) -> None:
        """Make ready to embed. Idempotent. Raises MissingExtra."""
        ...

    def card(self) -> ModelCard:
        """What ``/api/tags`` tells of the model, under its first name. Loads what it needs."""
        ...

    def embed(self, texts: Sequence[str], dimensions: int = 0) -> Computed:
        """A unit vector for each text, in order, finite for every text.

        With `dimensions` the first so many numbers of each, brought to unit length again.
        """
        ...
