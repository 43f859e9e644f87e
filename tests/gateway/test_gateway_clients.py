"""The official clients, against the gateway: what each does with an Ollama, it does with this."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any

import pytest
from conftest import unmet
from gateway_cluster import MODELS, Cluster, cluster

from aiosollol.embedded import EmbeddedNode
from aiosollol.gateway.options import GatewayOptions
from aiosollol.testing import FakeModel, FakeOllama, Fault

numpy = pytest.importorskip("numpy")
pytestmark = pytest.mark.anyio

CHAT, EMBED = "tiny-chat", "all-minilm"
MESSAGES: Any = [{"role": "user", "content": "one two three"}]


@asynccontextmanager
async def ollama_client(url: str) -> AsyncIterator[Any]:
    import ollama

    client = ollama.AsyncClient(host=url)
    try:
        yield client
    finally:
        await client.close()


def needs(client: str) -> None:
    if find_spec(client) is None:
        unmet(f"not installed: {client}")


def two_nodes(**options: Any) -> list[FakeOllama]:
    return [FakeOllama(**{"models": MODELS, **options}) for _ in range(2)]


# ---- ollama


async def test_the_ollama_package() -> None:
    needs("ollama")

    nodes = two_nodes()
    async with (
        cluster(*nodes, options=GatewayOptions(allow_admin=True)) as gateway,
        ollama_client(gateway.url) as client,
    ):
        listed = [model.model for model in (await client.list()).models]
        assert sorted(listed) == ["all-minilm:latest", "slow-chat:latest", "tiny-chat:latest"]
        shown = await client.show(EMBED)
        assert shown.details is not None
        assert shown.capabilities == ["embedding"]

        one = await client.embed(EMBED, "a text")
        assert numpy.asarray(one.embeddings[0], "f4").tobytes() == nodes[0].vector(EMBED, "a text")
        many = await client.embed(EMBED, [f"text {n}" for n in range(50)], dimensions=32)
        assert len(many.embeddings) == 50
        legacy = await client.embeddings(EMBED, "a text")
        assert len(legacy.embedding) == 384

        reply = await client.chat(CHAT, MESSAGES)
        assert (reply.message.content, reply.done_reason) == ("one two three", "stop")
        parts = [part async for part in await client.chat(CHAT, MESSAGES, stream=True)]
        assert "".join(part.message.content or "" for part in parts) == "one two three"
        text = await client.generate(CHAT, "one two")
        assert text.response == "one two"
        pieces = [part async for part in await client.generate(CHAT, "one two", stream=True)]
        assert "".join(part.response for part in pieces) == "one two"

        running = (await client.ps()).models
        assert {model.name for model in running} == {"all-minilm:latest", "tiny-chat:latest"}
        await client.copy(CHAT, "second")
        assert "second:latest" in [model.model for model in (await client.list()).models]
        await client.delete("second")
        assert "second:latest" not in [model.model for model in (await client.list()).models]


async def test_the_errors_of_the_ollama_package() -> None:
    needs("ollama")
    import ollama

    async with (
        cluster(*two_nodes(seconds_per_chat_token=0.01)) as gateway,
        ollama_client(gateway.url) as client,
    ):
        for ask in (
            client.chat("no-such", MESSAGES),
            client.embed("no-such", "x"),
            client.embed("no-such", ["x", "y"]),
            client.show("no-such"),
        ):
            with pytest.raises(ollama.ResponseError, match="not found") as caught:
                await ask
            assert caught.value.status_code == 404
        with pytest.raises(ollama.ResponseError, match="does not support chat"):
            await client.chat(EMBED, MESSAGES)
        await gateway.pool.warm(CHAT)
        for node in gateway.nodes:
            node.fault = Fault.STREAM_ERROR
        with pytest.raises(ollama.ResponseError, match="llama runner process"):
            async for _ in await client.chat(CHAT, MESSAGES, stream=True):
                pass


# ---- openai


async def test_the_openai_package() -> None:
    needs("openai")
    import openai

    nodes = two_nodes()
    async with cluster(*nodes) as gateway:
        client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
        async with client:
            listed = [model.id async for model in client.models.list()]
            assert sorted(listed) == ["all-minilm:latest", "slow-chat:latest", "tiny-chat:latest"]
            assert (await client.models.retrieve(CHAT)).id == CHAT

            for encoding in ("float", "base64"):  # it asks for base64 if nothing is said
                given: Any = {"encoding_format": encoding} if encoding == "float" else {}
                found = await client.embeddings.create(model=EMBED, input=["a", "b", "c"], **given)
                for entry, text in zip(found.data, ["a", "b", "c"], strict=True):
                    expected = nodes[0].vector(EMBED, text)
                    assert numpy.asarray(entry.embedding, "f4").tobytes() == expected
                one = await client.embeddings.create(model=EMBED, input="a", **given)
                assert numpy.asarray(one.data[0].embedding, "f4").tobytes() == nodes[0].vector(
                    EMBED, "a"
                )

            reply = await client.chat.completions.create(model=CHAT, messages=MESSAGES)
            assert reply.choices[0].message.content == "one two three"
            assert reply.usage is not None
            stream = await client.chat.completions.create(
                model=CHAT, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
            assert "".join(said) == "one two three"
            assert chunks[-1].usage is not None

            text = await client.completions.create(model=CHAT, prompt="one two")
            assert text.choices[0].text == "one two"
            response = await client.responses.create(model=CHAT, input="one two")
            assert response.output_text == "one two"
            events = await client.responses.create(model=CHAT, input="one two", stream=True)
            kinds = [event.type async for event in events]
            assert kinds[0] == "response.created"
            assert kinds[-1] == "response.completed"


async def test_the_errors_of_the_openai_package() -> None:
    needs("openai")
    import openai

    nodes = two_nodes(seconds_per_chat_token=0.01)
    async with cluster(*nodes, settings={"max_retries": 0}) as gateway:
        client = openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
        async with client:
            with pytest.raises(openai.NotFoundError, match="not found"):
                await client.chat.completions.create(model="no-such", messages=MESSAGES)
            with pytest.raises(openai.NotFoundError, match="not found"):
                await client.embeddings.create(model="no-such", input=["x", "y"])
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(model=CHAT, messages=[])
            await gateway.pool.warm(CHAT)
            for node in gateway.nodes:
                node.fault = Fault.STREAM_ERROR
            stream = await client.chat.completions.create(
                model=CHAT, messages=MESSAGES, stream=True
            )
            with pytest.raises(openai.APIError, match="llama runner process"):
                async for _ in stream:
                    pass


# ---- anthropic


async def test_the_anthropic_package() -> None:
    needs("anthropic")
    import anthropic

    async with cluster(*two_nodes(seconds_per_chat_token=0.01)) as gateway:
        client = anthropic.AsyncAnthropic(base_url=gateway.url, api_key="none", max_retries=0)
        async with client:
            reply = await client.messages.create(model=CHAT, max_tokens=50, messages=MESSAGES)
            assert reply.content[0].type == "text"
            assert reply.content[0].text == "one two three"
            counted = await client.messages.count_tokens(model=CHAT, messages=MESSAGES)
            assert counted.input_tokens >= 1
            async with client.messages.stream(
                model=CHAT, max_tokens=50, messages=MESSAGES
            ) as stream:
                assert "".join([text async for text in stream.text_stream]) == "one two three"
                final = await stream.get_final_message()
            assert final.stop_reason == "end_turn"
            with pytest.raises(anthropic.NotFoundError, match="not found"):
                await client.messages.create(model="none", max_tokens=5, messages=MESSAGES)
            await gateway.pool.warm(CHAT)
            for node in gateway.nodes:
                node.fault = Fault.STREAM_ERROR
            with pytest.raises(anthropic.APIError, match="llama runner process"):
                async with client.messages.stream(
                    model=CHAT, max_tokens=50, messages=MESSAGES
                ) as stream:
                    async for _ in stream.text_stream:
                        pass


async def test_a_model_of_one_node_is_there_for_all_clients() -> None:
    needs("ollama")

    one = FakeOllama(models=[FakeModel("a")])
    two = FakeOllama(models=[FakeModel("b")])
    async with cluster(one, two) as gateway, ollama_client(gateway.url) as client:
        for model in ("a", "b"):
            assert len((await client.embed(model, "x")).embeddings) == 1


# ---- over embedded nodes


@asynccontextmanager
async def embedded() -> AsyncIterator[Cluster]:
    pytest.importorskip("wordllama")
    nodes: list[Any] = [EmbeddedNode(), EmbeddedNode()]
    async with cluster(*nodes) as gateway:
        yield gateway


async def test_the_ollama_package_over_embedded_nodes() -> None:
    needs("ollama")
    import ollama

    async with embedded() as gateway, ollama_client(gateway.url) as client:
        assert [model.model for model in (await client.list()).models] == ["wordllama:latest"]
        assert (await client.show("wordllama")).capabilities == ["embedding"]
        found = await client.embed("wordllama", ["a cat sleeps", "the kitten naps", "tax law"])
        cat, kitten, law = numpy.asarray(found.embeddings)
        assert cat @ kitten > cat @ law
        one = await client.embed("wordllama", "a cat sleeps")
        assert one.embeddings[0] == found.embeddings[0]
        for talk in (client.chat("wordllama", MESSAGES), client.generate("wordllama", "x")):
            with pytest.raises(ollama.ResponseError, match="does not support") as caught:
                await talk
            assert caught.value.status_code == 400
        unloaded = await client.generate("wordllama", "", keep_alive=0)
        assert unloaded.done_reason == "unload"


async def test_the_openai_and_anthropic_packages_over_embedded_nodes() -> None:
    needs("openai")
    needs("anthropic")
    import anthropic
    import openai

    async with embedded() as gateway:
        async with openai.AsyncOpenAI(
            base_url=f"{gateway.url}/v1", api_key="none", max_retries=0
        ) as client:
            given: Any = {"model": "wordllama", "input": ["a cat sleeps", "tax law"]}
            packed = await client.embeddings.create(**given)  # in base64
            plain = await client.embeddings.create(**given, encoding_format="float")
            for one, other in zip(packed.data, plain.data, strict=True):
                assert numpy.allclose(one.embedding, other.embedding, rtol=1e-6, atol=0)
            with pytest.raises(openai.BadRequestError, match="does not support chat"):
                await client.chat.completions.create(model="wordllama", messages=MESSAGES)
            with pytest.raises(openai.BadRequestError, match="does not support chat"):
                await client.chat.completions.create(
                    model="wordllama", messages=MESSAGES, stream=True
                )
        async with anthropic.AsyncAnthropic(
            base_url=gateway.url, api_key="none", max_retries=0
        ) as speaker:
            with pytest.raises(anthropic.BadRequestError, match="does not support chat"):
                await speaker.messages.create(model="wordllama", max_tokens=5, messages=MESSAGES)
