"""A fake node's models, and the vectors that they give: a pure function of digest and text."""

from __future__ import annotations

import hashlib
import math
from array import array
from dataclasses import dataclass
from typing import Any, Literal

from aiosollol.core.node import full_name
from aiosollol.errors import InvalidInput
from aiosollol.wire.answers import ModelCard

numpy: Any
try:  # here and not later: the first request must not pay for the import
    import numpy
except ImportError:
    numpy = None

_MODIFIED_AT = "2026-11-21T08:05:54.07587434Z"


@dataclass(frozen=True, slots=True)
class FakeModel:
    """A model of a fake node.

    dim: length of its vectors. digest: what its vectors depend on besides the text; one name has
    one digest unless another is given. kind: "embedding" or "chat". context_length: tokens.
    gpu: whether ``/api/ps`` says that it is in GPU memory. size: bytes. tools: whether a chat
    model takes tools.

    Raises InvalidInput for a value that cannot be.
    """

    name: str
    dim: int = 64
    digest: str = ""
    kind: Literal["embedding", "chat"] = "embedding"
    context_length: int = 8192
    gpu: bool = False
    size: int = 46_223_508
    tools: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidInput("a fake model needs a name")
        if self.kind not in ("embedding", "chat"):
            raise InvalidInput(f"kind of {self.name} must be 'embedding' or 'chat'")
        if self.dim < 1 or self.context_length < 1:
            raise InvalidInput(f"dim and context_length of {self.name} must be at least 1")
        object.__setattr__(self, "name", full_name(self.name))
        if not self.digest:
            object.__setattr__(self, "digest", hashlib.sha256(self.name.encode()).hexdigest())

    def cut(self, dimensions: int) -> int:
        """The length of its vectors where `dimensions` were asked for, 0 meaning all."""
        return min(dimensions or self.dim, self.dim)

    def card(self) -> ModelCard:
        """What the server tells of it."""
        is_chat = self.kind == "chat"
        return ModelCard(
            name=self.name,
            digest=self.digest,
            size=self.size,
            dim=self.dim,
            context_length=self.context_length,
            modified_at=_MODIFIED_AT,
            capabilities=("completion", *(("tools",) if self.tools else ()))
            if is_chat
            else ("embedding",),
            family="llama" if is_chat else "bert",
        )


def fake_tokens(text: str) -> int:
    """How many tokens a fake model makes of `text`: one per four characters, and two around."""
    return -(-len(text) // 4) + 2


def fake_vector(digest: str, text: str, dim: int) -> bytes:
    """The vector of `text`: `dim` float32 in this machine's byte order, of unit length.

    A pure function, the same with and without numpy. The vector for a smaller `dim` is the
    beginning of that for a larger one, brought to unit length again, which is what Ollama does
    with ``dimensions``. Read it with ``memoryview(...).cast("f")`` or ``numpy.frombuffer``.
    """
    seed = f"{digest}\0{text}".encode("utf-8", "surrogatepass")
    raw = hashlib.shake_256(seed).digest(dim)
    # Each byte becomes an odd number from -255 to 255: never zero, and sums of squares are exact,
    # so both ways below round the same quotients.
    if numpy is not None:
        odd = numpy.frombuffer(raw, dtype=numpy.uint8).astype(numpy.int64) * 2 - 255
        length = math.sqrt(int(odd @ odd))
        vector: bytes = (odd / length).astype(numpy.float32).tobytes()
        return vector
    odds = [2 * byte - 255 for byte in raw]
    length = math.sqrt(sum(odd * odd for odd in odds))
    return array("f", [odd / length for odd in odds]).tobytes()
