"""The fake and the embedded node answer what a real Ollama answered: status, type, shape, words.

tests/captures holds requests and the answers of a real server. What is compared is named in
`check_shape`: keys and types all the way down, not the numbers of another model.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from capture_checks import CAPTURES, EMBEDDED, check, load, send

from aiosollol.embedded import EmbeddedNode
from aiosollol.testing import FakeModel, FakeOllama

pytestmark = pytest.mark.anyio

# The node that is all embedding answers these otherwise, for a reason.


@pytest.mark.parametrize("name", CAPTURES)
async def test_the_fake_answers_as_ollama_did(name: str) -> None:
    models = [
        FakeModel("tiny-chat", kind="chat", context_length=4096),
        FakeModel("all-minilm", dim=384, context_length=512),
        FakeModel("slow-chat", kind="chat", dim=768, context_length=4096),
    ]
    async with FakeOllama(models=models) as node:
        if name == "30-ps-loaded":
            await send(node.url, load("05-embed-string")["request"])
            await send(node.url, load("42-generate-empty-prompt-loads")["request"])
        if name == "56-delete":
            node.add_model("copy-of-tiny")
        await check(node.url, name, dim=384)


@pytest.fixture
async def embedded() -> AsyncIterator[EmbeddedNode]:
    async with EmbeddedNode(aliases=["all-minilm"]) as node:
        yield node


@pytest.mark.parametrize("name", EMBEDDED)
async def test_the_embedded_node_answers_as_ollama_did(name: str, embedded: EmbeddedNode) -> None:
    await check(embedded.url, name, dim=256)


def test_most_captures_are_for_the_embedded_node_too() -> None:
    assert len(EMBEDDED) >= 30


async def test_a_node_that_was_left_can_be_entered_again() -> None:
    for node in (FakeOllama(), EmbeddedNode()):
        for _ in range(2):
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(node)
                assert (await send(node.url, load("00-root")["request"]))[0] == 200
