"""Models, vectors and checks for tests of `OllamaPool` over fake servers."""

from __future__ import annotations

from aiosollol import (
    Embeddings,
)
from aiosollol.testing import FakeModel, fake_vector

EMBED = FakeModel("nomic-embed-text", dim=16)
CHAT = FakeModel("llama3.2", kind="chat")
HELLO = [{"role": "user", "content": "hello there"}]


def vector(text: str) -> bytes:
    return bytes(fake_vector(EMBED.digest, text, EMBED.dim))


def check(embeddings: Embeddings, texts: list[str]) -> None:
    assert len(embeddings) == len(texts)
    for row, text in enumerate(texts):
        if row not in embeddings.errors:
            assert embeddings[row].tobytes() == vector(text), row
