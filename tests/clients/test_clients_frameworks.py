"""langchain-ollama and llama-index-embeddings-ollama against the gateway."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
from conftest import unmet
from gateway_cluster import MODELS, Cluster, cluster

from aiosollol.embedded import EmbeddedNode
from aiosollol.testing import FakeModel, FakeOllama, Fault

numpy = pytest.importorskip("numpy")
pytestmark = [
    pytest.mark.anyio,
    # Clients of theirs cannot be closed, and Python says so when it closes their connections.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

CHAT, EMBED, TOOLS = "tiny-chat", "all-minilm", "tools-chat"
TEXTS = [f"text {number}" for number in range(50)]


@pytest.fixture(autouse=True)
def _released() -> Iterator[None]:
    """Their connections end here, and not in another test, which would be told of them."""
    yield
    gc.collect()


def imported(name: str, package: str) -> Any:
    """A module of `package`. What its dependencies warn of when they are imported is not ours."""
    if find_spec(name.partition(".")[0]) is None:
        unmet(f"not installed: {package}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module(name)


@pytest.fixture
def package() -> Any:
    return imported("langchain_ollama", "langchain-ollama")


@pytest.fixture
def embedding() -> Any:
    name = "llama-index-embeddings-ollama"
    return imported("llama_index.embeddings.ollama", name).OllamaEmbedding


@pytest.fixture
async def gateway() -> AsyncIterator[Cluster]:
    models = (*MODELS, FakeModel(TOOLS, kind="chat", tools=True))
    nodes = [FakeOllama(models=models, seconds_per_chat_token=0.01) for _ in range(2)]
    async with cluster(*nodes) as made:
        yield made


# ---- langchain-ollama


async def test_embeddings(package: Any, gateway: Cluster) -> None:
    embedder = package.OllamaEmbeddings(model=EMBED, base_url=gateway.url)
    expected = [gateway.nodes[0].vector(EMBED, text) for text in TEXTS]

    for query in (
        await embedder.aembed_query(TEXTS[0]),
        await asyncio.to_thread(embedder.embed_query, TEXTS[0]),
    ):
        assert numpy.asarray(query, "f4").tobytes() == expected[0]
    for documents in (
        await embedder.aembed_documents(TEXTS),
        await asyncio.to_thread(embedder.embed_documents, TEXTS),
    ):
        assert [numpy.asarray(row, "f4").tobytes() for row in documents] == expected


async def test_embeddings_of_embedded_nodes(package: Any) -> None:
    nodes: list[Any] = [EmbeddedNode(), EmbeddedNode()]
    async with cluster(*nodes) as gateway:
        embedder = package.OllamaEmbeddings(model="wordllama", base_url=gateway.url)
        texts = ["a cat sleeps", "the kitten naps", "tax law"]
        rows = numpy.asarray(await embedder.aembed_documents(texts))
        assert rows.shape == (3, 256)
        assert rows[0] @ rows[1] > rows[0] @ rows[2]
        query = numpy.asarray(await embedder.aembed_query(texts[0]), "f4")
        assert query.tobytes() == rows[0].astype("f4").tobytes()


async def test_chat(package: Any, gateway: Cluster) -> None:
    chat = package.ChatOllama(model=CHAT, base_url=gateway.url)
    whole = await chat.ainvoke("one two three")
    assert whole.content == "one two three"
    assert whole.response_metadata["done_reason"] == "stop"
    assert whole.usage_metadata["output_tokens"] == 3
    assert (await asyncio.to_thread(chat.invoke, "one two")).content == "one two"

    parts = [part.content async for part in chat.astream("one two three")]
    assert "".join(parts) == "one two three"
    assert len([part for part in parts if part]) == 3
    parts = await asyncio.to_thread(lambda: [part.content for part in chat.stream("one two")])
    assert "".join(parts) == "one two"


async def test_completions(package: Any, gateway: Cluster) -> None:
    model = package.OllamaLLM(model=CHAT, base_url=gateway.url)
    assert await model.ainvoke("one two") == "one two"
    assert "".join([part async for part in model.astream("one two")]) == "one two"


async def test_tools(package: Any, gateway: Cluster) -> None:
    def add(a: int, b: int) -> int:
        """The sum of two numbers."""
        return a + b

    sent = package.ChatOllama(model=TOOLS, base_url=gateway.url).bind_tools([add])
    assert (await sent.ainvoke("one two")).content == "one two"
    with pytest.raises(Exception, match="does not support tools"):
        await package.ChatOllama(model=CHAT, base_url=gateway.url).bind_tools([add]).ainvoke("x")


async def test_errors(package: Any, gateway: Cluster) -> None:
    from ollama import ResponseError

    for ask in (
        package.ChatOllama(model="no-such", base_url=gateway.url).ainvoke("x"),
        package.OllamaEmbeddings(model="no-such", base_url=gateway.url).aembed_query("x"),
    ):
        with pytest.raises(ResponseError, match="not found") as caught:
            await ask
        assert caught.value.status_code == 404
    chat = package.ChatOllama(model=CHAT, base_url=gateway.url)
    await gateway.pool.warm(CHAT)
    for node in gateway.nodes:
        node.fault = Fault.STREAM_ERROR
    with pytest.raises(ResponseError, match="llama runner process"):
        await chat.ainvoke("one two three four")


async def test_it_can_ask_whether_there_is_the_model(package: Any, gateway: Cluster) -> None:
    options = {"base_url": gateway.url, "validate_model_on_init": True}
    await asyncio.to_thread(lambda: package.ChatOllama(model=CHAT, **options))
    with pytest.raises(ValueError, match="not found"):
        await asyncio.to_thread(lambda: package.ChatOllama(model="no-such", **options))


# ---- llama-index-embeddings-ollama


async def test_llama_index(embedding: Any, gateway: Cluster) -> None:
    embedder = embedding(model_name=EMBED, base_url=gateway.url)
    expected = [gateway.nodes[0].vector(EMBED, text) for text in TEXTS]
    for one in (
        await embedder.aget_text_embedding(TEXTS[0]),
        await embedder.aget_query_embedding(TEXTS[0]),
        await asyncio.to_thread(embedder.get_text_embedding, TEXTS[0]),
        await asyncio.to_thread(embedder.get_query_embedding, TEXTS[0]),
    ):
        assert numpy.asarray(one, "f4").tobytes() == expected[0]
    for many in (
        await embedder.aget_text_embedding_batch(TEXTS),
        await asyncio.to_thread(embedder.get_text_embedding_batch, TEXTS),
    ):
        assert [numpy.asarray(row, "f4").tobytes() for row in many] == expected


async def test_errors_of_llama_index(embedding: Any, gateway: Cluster) -> None:
    from ollama import ResponseError

    embedder = embedding(model_name="no-such", base_url=gateway.url)
    with pytest.raises(ResponseError, match="not found, try pulling it first"):
        await embedder.aget_text_embedding("x")


async def test_llama_index_over_an_embedded_node(embedding: Any) -> None:
    node: Any = EmbeddedNode()
    async with cluster(node) as gateway:
        embedder = embedding(model_name="wordllama", base_url=gateway.url)
        rows = numpy.asarray(await embedder.aget_text_embedding_batch(TEXTS))
        assert rows.shape == (len(TEXTS), 256)
        assert numpy.allclose(numpy.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
