"""`OllamaPool` as its user sees it, against fake servers over real HTTP."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from typing import Any

import pytest

from aiosollol import (
    BadRequest,
    BatchError,
    ChatReply,
    Embeddings,
    InvalidInput,
    ModelNotFound,
    NodeRegistry,
    NodeSpec,
    NoNodeAvailable,
    OllamaPool,
    PoolClosed,
    StreamCutOff,
)
from aiosollol.testing import FakeModel, FakeOllama, Fault, fake_vector

pytestmark = pytest.mark.anyio

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


# What it does.


async def test_a_batch_is_spread_over_the_nodes_in_input_order() -> None:
    texts = [f"text {index}" for index in range(300)]
    async with (
        FakeOllama(models=[EMBED], seconds_per_item=0.0005) as one,
        FakeOllama(models=[EMBED], seconds_per_item=0.0005) as two,
        OllamaPool([one.url, two.url], same_machine="share") as pool,
    ):
        embeddings = await pool.embed_batch("nomic-embed-text", texts)
        check(embeddings, texts)
        report = embeddings.report
        assert report is not None
        assert (report.items, report.unique) == (300, 300)
        assert sum(share.items for share in report.nodes.values()) == 300
        assert [share.items > 0 for share in report.nodes.values()] == [True, True]
        assert one.items + two.items >= 300


async def test_only_nodes_that_have_the_model_are_used() -> None:
    async with (
        FakeOllama(models=[EMBED]) as one,
        FakeOllama(models=["another"]) as two,
        OllamaPool([one.url, two.url]) as pool,
    ):
        await pool.embed_batch("nomic-embed-text:latest", ["a", "b"])
        await pool.embed("nomic-embed-text", "c")
        assert two.items == 0


async def test_equal_texts_are_computed_once() -> None:
    texts = ["same", "other", "same", "same"]
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        check(await pool.embed_batch("nomic-embed-text", texts), texts)
        assert fake.items == 2


async def test_one_text_gives_a_vector_and_a_list_gives_embeddings() -> None:
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        one = await pool.embed("nomic-embed-text", "one text")
        assert one.tobytes() == vector("one text")
        many = await pool.embed("nomic-embed-text", ["a", "", "a"])
        check(many, ["a", "", "a"])
        assert many.report is not None
        ((node, share),) = many.report.nodes.items()
        assert (share.items, share.requests) == (3, 1)
        assert fake.url.endswith(node)
        short = await pool.embed("nomic-embed-text", "one text", dimensions=4)
        assert len(short) == 4
        assert len(await pool.embed("nomic-embed-text", [])) == 0


async def test_progress_counts_repeated_texts_too() -> None:
    seen: list[tuple[int, int]] = []
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        await pool.embed_batch(
            "nomic-embed-text", ["a", "b"] * 50, on_progress=lambda *step: seen.append(step)
        )
    assert seen[-1] == (100, 100)
    assert seen == sorted(seen)


async def test_vectors_are_told_of_as_they_come() -> None:
    texts = [f"text {number % 150}" for number in range(200)]
    told: dict[int, list[float]] = {}
    settled: list[int] = []

    def tell(rows: Sequence[int], vectors: memoryview[float]) -> None:
        told.update(zip(rows, vectors.tolist(), strict=True))
        settled.append(len(told))

    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        embeddings = await pool.embed_batch("nomic-embed-text", texts, on_vectors=tell)
    assert [told[row] for row in range(200)] == [list(vector) for vector in embeddings]
    assert settled[0] < 200, "not only at the end"


async def test_chat_and_generate() -> None:
    async with FakeOllama(models=[CHAT]) as fake, OllamaPool([fake.url]) as pool:
        reply = await pool.chat("llama3.2", HELLO)
        assert reply.message.content == reply["message"]["content"] == str(reply) != ""
        assert reply.done is True
        text = await pool.generate("llama3.2", "say something", options={"seed": 1})
        assert text == text.answer.response
        assert text.answer.done


async def test_a_streamed_chat_says_the_same_as_a_whole_one() -> None:
    async with FakeOllama(models=[CHAT]) as fake, OllamaPool([fake.url]) as pool:
        whole = await pool.chat("llama3.2", HELLO)
        stream = await pool.chat("llama3.2", HELLO, stream=True)
        parts = [part async for part in stream]
        assert "".join(map(str, parts)) == str(whole)
        assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
        assert stream.parts == len(parts)
        pieces = [piece async for piece in await pool.generate("llama3.2", "x", stream=True)]
        assert "".join(pieces) == await pool.generate("llama3.2", "x")


async def test_a_replys_message_can_be_sent_back() -> None:
    async with FakeOllama(models=[CHAT]) as fake, OllamaPool([fake.url]) as pool:
        reply = await pool.chat("llama3.2", HELLO)
        again = await pool.chat("llama3.2", [*HELLO, reply.message, *HELLO])
        assert isinstance(again, ChatReply)


@pytest.mark.parametrize("fault", [Fault.STREAM_CUT, Fault.STREAM_ERROR])
async def test_a_stream_that_breaks_raises_after_what_was_delivered(fault: Fault) -> None:
    async with FakeOllama(models=[CHAT]) as fake, OllamaPool([fake.url]) as pool:
        fake.fault = fault
        parts = []
        stream = await pool.chat("llama3.2", HELLO, stream=True)
        with pytest.raises(Exception) as caught:  # noqa: PT011 - looked at below
            async for part in stream:
                parts.append(part)  # noqa: PERF401 - what came before the error counts
        assert parts
        if fault is Fault.STREAM_CUT:
            assert isinstance(caught.value, StreamCutOff)
            assert caught.value.delivered == len(parts)
        assert pool.get_stats()["failed_requests"] == 1


async def test_a_chat_fails_over_before_its_first_part() -> None:
    async with (
        FakeOllama(models=[CHAT]) as one,
        FakeOllama(models=[CHAT]) as two,
        OllamaPool([one.url, two.url]) as pool,
    ):
        await pool.refresh()
        one.fault = Fault.ERROR_500
        for _ in range(3):
            assert str(await pool.chat("llama3.2", HELLO))
            parts = [part async for part in await pool.chat("llama3.2", HELLO, stream=True)]
            assert parts[-1].done


async def test_leaving_a_stream_cancels_it() -> None:
    async with (
        FakeOllama(models=[CHAT], seconds_per_chat_token=0.01) as fake,
        OllamaPool([fake.url]) as pool,
    ):
        async with await pool.chat("llama3.2", HELLO, stream=True) as stream:
            await anext(stream)
        while fake.in_flight:
            await asyncio.sleep(0)
        stats = pool.get_stats()
        assert (stats["cancelled_requests"], stats["successful_requests"]) == (1, 0)


async def test_a_stream_that_is_dropped_gives_its_node_back() -> None:
    async with (
        FakeOllama(models=[CHAT], seconds_per_chat_token=0.01) as fake,
        OllamaPool([{"url": fake.url, "max_concurrency": 1}]) as pool,
    ):
        async for _ in await pool.chat("llama3.2", HELLO, stream=True):
            break
        while fake.in_flight:
            await asyncio.sleep(0)
        assert str(await pool.chat("llama3.2", HELLO))
        stats = pool.get_stats()
        assert (stats["cancelled_requests"], stats["successful_requests"]) == (1, 1)


# Bad input.


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([], "no nodes"),
        ("http://127.0.0.1", "list"),
        ({"url": "http://127.0.0.1"}, "list"),
        (["ftp://127.0.0.1"], "ftp"),
        (["http://"], "address"),
        (["http://127.0.0.1:99999"], "99999"),
        ([{"host": "127.0.0.1", "port": "x"}], "port"),
        ([{"url": "http://a", "wieght": 3}], "wieght"),
        ([3], "int"),
        ([{"url": "http://a", "name": "n"}, {"url": "http://b", "name": "n"}], "two nodes"),
        (7, "int"),
    ],
)
def test_nodes_that_cannot_be_read(nodes: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        OllamaPool(nodes)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda pool: pool.embed_batch("m", "a string"), "one string"),
        (lambda pool: pool.embed_batch("m", ["a", 3]), "item 1 must be a string, not int"),
        (lambda pool: pool.embed_batch("m", ["a", None]), "item 1"),
        (lambda pool: pool.embed_batch("m", 5), "int"),
        (lambda pool: pool.embed_batch("m", b"bytes"), "bytes"),
        (lambda pool: pool.embed_batch("m", ["fine", "\ud800"]), "item 1 has a lone surrogate"),
        (lambda pool: pool.embed_batch("", ["a"]), "model is empty"),
        (lambda pool: pool.embed_batch(None, ["a"]), "model must be a string"),
        (lambda pool: pool.embed_batch("m", ["a"], on_error="ignore"), "on_error"),
        (lambda pool: pool.embed_batch("m", ["a"], dimensions=0), "dimensions"),
        (lambda pool: pool.embed_batch("m", ["a"], options={"x": object()}), "JSON"),
        (lambda pool: pool.embed("m", "\udfff"), "lone surrogate"),
        (lambda pool: pool.embed("m", 3), "texts must be"),
        (lambda pool: pool.chat("m", "hi"), "messages must be a list"),
        (lambda pool: pool.chat("m", ["hi"]), "message 0 must be a mapping"),
        (lambda pool: pool.chat("m", [{"content": "hi"}]), "message 0 has no 'role'"),
        (lambda pool: pool.generate("m", 3), "must be a string"),
    ],
)
async def test_bad_input_is_refused_before_anything_is_sent(call: Any, says: str) -> None:
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        with pytest.raises(InvalidInput, match=says):
            await call(pool)
        assert fake.items == 0


async def test_an_unusable_text_fails_alone_where_errors_are_returned() -> None:
    texts = ["fine", "\ud800", "also fine"]
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        embeddings = await pool.embed_batch("nomic-embed-text", texts, on_error="return")
        assert set(embeddings.errors) == {1}
        check(embeddings, texts)
        assert all(value != value for value in embeddings[1])  # NaN


async def test_no_texts_give_no_vectors() -> None:
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        assert len(await pool.embed_batch("nomic-embed-text", [])) == 0


async def test_an_empty_text_and_a_huge_one_are_embedded_like_any_other() -> None:
    texts = ["", "x" * 10_000_000]
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        check(await pool.embed_batch("nomic-embed-text", texts), texts)


async def test_an_unknown_model_names_the_nodes_and_what_they_have() -> None:
    async with (
        FakeOllama(models=[EMBED]) as fake,
        OllamaPool([{"url": fake.url, "name": "x"}]) as pool,
    ):
        for call in (pool.embed("typo", "a"), pool.embed_batch("typo", ["a"])):
            with pytest.raises(ModelNotFound, match="ollama pull typo") as caught:
                await call
            assert caught.value.nodes == {"x": ("nomic-embed-text:latest",)}


async def test_a_model_that_was_pulled_meanwhile_is_found() -> None:
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        await pool.refresh()
        fake.add_model(FakeModel("fresh", dim=4))
        assert len(await pool.embed("fresh", "a")) == 4


async def test_every_node_down_lists_each_with_its_error(unused_port: int) -> None:
    async with OllamaPool(
        [f"127.0.0.1:{unused_port}", {"url": "http://no-such-host.invalid", "name": "gone"}]
    ) as pool:
        for call in (pool.embed("m", "a"), pool.embed_batch("m", ["a"]), pool.chat("m", HELLO)):
            with pytest.raises(NoNodeAvailable) as caught:
                await call
            assert set(caught.value.nodes) == {f"127.0.0.1:{unused_port}", "gone"}


async def test_a_bad_request_is_not_tried_elsewhere_and_not_held_against_the_node() -> None:
    async with (
        FakeOllama(models=[EMBED]) as one,
        FakeOllama(models=[EMBED]) as two,
        OllamaPool([one.url, two.url]) as pool,
    ):
        with pytest.raises(BadRequest, match="does not support chat"):
            await pool.chat("nomic-embed-text", HELLO)
        stats = pool.get_stats()
        assert stats["total_requests"] == 1
        assert all(node["success_rate"] == 1.0 for node in stats["node_performance"].values())


async def test_a_batch_with_poison_keeps_every_other_vector() -> None:
    texts = [f"text {index}" for index in range(200)]
    texts[20] = texts[150] = "arsenic"
    async with (
        FakeOllama(models=[EMBED], poison={"arsenic"}) as fake,
        OllamaPool([fake.url]) as pool,
    ):
        with pytest.raises(BatchError) as caught:
            await pool.embed_batch("nomic-embed-text", texts)
        error = caught.value
        assert set(error.errors) == {20, 150}
        assert all(isinstance(each, BadRequest) for each in error.errors.values())
        check(error.embeddings, texts)


# Its life.


async def test_a_closed_pool_says_so() -> None:
    async with FakeOllama(models=[EMBED]) as fake:
        pool = OllamaPool([fake.url])
        with pytest.raises(PoolClosed, match="not open yet"):
            await pool.embed("nomic-embed-text", "a")
        async with pool:
            await pool.embed("nomic-embed-text", "a")
        await pool.aclose()
        for call in (
            pool.embed("nomic-embed-text", "a"),
            pool.embed_batch("nomic-embed-text", ["a"]),
            pool.chat("llama3.2", HELLO),
            pool.refresh(),
            pool.start(),
        ):
            with pytest.raises(PoolClosed):
                await call


async def test_closing_ends_calls_that_are_under_way() -> None:
    async with FakeOllama(models=[EMBED, CHAT]) as fake:
        pool = OllamaPool([fake.url])
        await pool.start()
        await pool.refresh()
        fake.fault = Fault.HANG
        calls = [
            asyncio.ensure_future(call)
            for call in (
                pool.embed("nomic-embed-text", "a"),
                pool.embed_batch("nomic-embed-text", ["b", "c"]),
                pool.chat("llama3.2", HELLO),
                pool.chat("llama3.2", HELLO, stream=True),
            )
        ]
        while fake.in_flight < 2:  # the others wait for what these two load
            await asyncio.sleep(0)
        await pool.aclose(wait=0)
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [PoolClosed] * 4


async def test_closing_waits_for_calls_that_are_under_way() -> None:
    async with FakeOllama(models=[EMBED, CHAT], seconds_per_item=0.05) as fake:
        pool = OllamaPool([fake.url])
        await pool.start()
        await pool.refresh()
        live = asyncio.ensure_future(pool.embed("nomic-embed-text", "a"))
        batch = asyncio.ensure_future(pool.embed_batch("nomic-embed-text", ["b", "c"]))
        while not fake.in_flight:
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(pool.aclose())
        await asyncio.sleep(0)
        with pytest.raises(PoolClosed):  # nothing new begins
            await pool.embed("nomic-embed-text", "d")
        assert (await live).tobytes() == vector("a")
        assert len(await batch) == 2
        await closing


async def test_closing_waits_no_longer_than_it_is_told() -> None:
    async with FakeOllama(models=[EMBED]) as fake:
        pool = OllamaPool([fake.url], close_timeout=3600)
        await pool.start()
        await pool.embed("nomic-embed-text", "warm")
        fake.fault = Fault.HANG
        call = asyncio.ensure_future(pool.embed("nomic-embed-text", "a"))
        while not fake.in_flight:
            await asyncio.sleep(0)
        patient = asyncio.ensure_future(pool.aclose())
        await asyncio.sleep(0)
        await pool.aclose(wait=0)  # a second one may be in more of a hurry
        await patient
        with pytest.raises(PoolClosed):
            await call


async def test_closing_leaves_no_task_and_no_connection() -> None:
    before = asyncio.all_tasks()
    async with FakeOllama(models=[EMBED, CHAT]) as fake:
        async with OllamaPool([fake.url]) as pool:
            await pool.embed_batch("nomic-embed-text", ["a", "b"])
            stream = await pool.chat("llama3.2", HELLO, stream=True)
            await anext(stream)
        gc.collect()  # an unclosed session or generator would warn, and warnings are errors
        while fake.in_flight:
            await asyncio.sleep(0)
    assert asyncio.all_tasks() <= before


async def test_a_cancellation_while_closing_does_not_keep_connections_open() -> None:
    async with FakeOllama(models=[EMBED]) as fake:
        pool = OllamaPool([fake.url])
        await pool.start()
        await pool.embed("nomic-embed-text", "a")
        closing = asyncio.ensure_future(pool.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        gc.collect()  # an open session would warn
        assert fake.in_flight == 0


async def test_cancelling_a_caller_cancels_its_requests_and_nobody_elses() -> None:
    async with FakeOllama(models=[EMBED], slots=8) as fake, OllamaPool([fake.url]) as pool:
        await pool.embed("nomic-embed-text", "warm")  # who loads a model is carried to the end
        fake.fault = Fault.HANG
        doomed = asyncio.ensure_future(pool.embed("nomic-embed-text", "a"))
        batch = asyncio.ensure_future(pool.embed_batch("nomic-embed-text", ["x", "y"]))
        while fake.in_flight < 2:
            await asyncio.sleep(0)
        fake.fault = None
        other = asyncio.ensure_future(pool.embed("nomic-embed-text", "b"))
        for task in (doomed, batch):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert (await other).tobytes() == vector("b")
        while fake.in_flight:
            await asyncio.sleep(0)
        assert pool.get_stats()["cancelled_requests"] >= 2


async def test_max_concurrency_is_obeyed_by_batches_and_live_calls_together() -> None:
    async with (
        FakeOllama(models=[EMBED], seconds_per_item=0.0005) as fake,
        OllamaPool([{"url": fake.url, "max_concurrency": 3}]) as pool,
    ):
        await asyncio.gather(
            pool.embed_batch("nomic-embed-text", [f"batch {index}" for index in range(60)]),
            *(pool.embed("nomic-embed-text", f"live {index}") for index in range(30)),
        )
        assert fake.max_in_flight <= 3


async def test_a_registry_can_be_given() -> None:
    async with FakeOllama(models=[EMBED]) as fake:
        registry = NodeRegistry([NodeSpec(fake.url, name="mine")])
        async with OllamaPool(registry) as pool:
            await pool.embed("nomic-embed-text", "a")
            assert pool.view.nodes["mine"].has_model("nomic-embed-text")


async def test_without_nodes_ollama_host_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeOllama(models=[EMBED]) as fake:
        monkeypatch.setenv("OLLAMA_HOST", fake.url.removeprefix("http://"))
        async with OllamaPool() as pool:
            assert len(await pool.embed("nomic-embed-text", "a")) == 16
    monkeypatch.delenv("OLLAMA_HOST")
    assert OllamaPool().view.nodes.keys() == {"127.0.0.1:11434"}


async def test_a_silent_node_delays_nobody(unused_port: int) -> None:
    async with FakeOllama(models=[EMBED]) as fake, FakeOllama(faults_probes=True) as silent:
        silent.fault = Fault.HANG
        async with OllamaPool([silent.url, fake.url]) as pool, asyncio.timeout(3):
            check(await pool.embed_batch("nomic-embed-text", ["a", "b"]), ["a", "b"])
            assert len(await pool.embed("nomic-embed-text", "a")) == 16


# The wire.


@pytest.mark.parametrize("version", ["0.12.6", "0.13.0"])
async def test_either_encoding_gives_the_same_bits_and_is_learned(version: str) -> None:
    texts = [f"text {index}" for index in range(50)]
    async with FakeOllama(models=[EMBED], version=version) as fake, OllamaPool([fake.url]) as pool:
        check(await pool.embed_batch("nomic-embed-text", texts), texts)
        assert (await pool.embed("nomic-embed-text", "one")).tobytes() == vector("one")
        paths = [record.path for record in fake.log if record.items]
        if version == "0.13.0":
            assert set(paths) == {"/v1/embeddings"}
        else:  # what came back told, and it is not asked again
            assert paths[-1] == "/api/embed"
            assert 1 <= paths.count("/v1/embeddings") <= 2


async def test_a_request_with_options_goes_where_they_count() -> None:
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        await pool.embed_batch("nomic-embed-text", ["a", "b"], options={"num_ctx": 512})
        await pool.embed("nomic-embed-text", "c", keep_alive="1m")
        assert {record.path for record in fake.log if record.items} == {"/api/embed"}


# What attackers found.


async def test_a_batch_whose_parts_are_cancelled_from_outside_never_looks_finished() -> None:
    texts = [f"text {index}" for index in range(300)]

    def cancel(done: int, of: int) -> None:
        raise asyncio.CancelledError

    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        with pytest.raises(BatchError) as caught:
            await pool.embed_batch("nomic-embed-text", texts, on_progress=cancel)
        check(caught.value.embeddings, texts)
        assert caught.value.errors


async def test_what_on_progress_raises_arrives_as_it_is() -> None:
    def fail(done: int, of: int) -> None:
        raise KeyError("mine")

    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        with pytest.raises(KeyError, match="mine"):
            await pool.embed_batch("nomic-embed-text", ["a"], on_progress=fail)


async def test_a_chat_that_the_pools_end_cut_short_does_not_look_whole() -> None:
    async with FakeOllama(models=[CHAT]) as fake:
        async with OllamaPool([fake.url]) as pool:
            stream = await pool.chat("llama3.2", HELLO, stream=True)
            await anext(stream)
        with pytest.raises(PoolClosed):
            await anext(stream)


async def test_calls_at_the_same_time_share_one_look_for_a_model() -> None:
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        await pool.refresh()
        fake.add_model(FakeModel("fresh", dim=4))
        vectors = await asyncio.gather(*(pool.embed("fresh", f"text {n}") for n in range(10)))
        assert [len(each) for each in vectors] == [4] * 10


@pytest.mark.parametrize("keep_alive", ["weird", "5 m", "", True, float("nan"), float("inf"), [5]])
async def test_a_keep_alive_that_is_none_is_refused_early(keep_alive: Any) -> None:
    async with FakeOllama(models=[EMBED, CHAT]) as fake, OllamaPool([fake.url]) as pool:
        for call in (
            lambda: pool.embed("nomic-embed-text", "a", keep_alive=keep_alive),
            lambda: pool.embed_batch("nomic-embed-text", ["a"], keep_alive=keep_alive),
            lambda: pool.chat("llama3.2", HELLO, keep_alive=keep_alive),
        ):
            with pytest.raises(InvalidInput, match="keep_alive"):
                await call()
        assert fake.requests == 0


@pytest.mark.parametrize("keep_alive", ["5m", "1h30m", "-1s", "0", "1.5h", 300, -1, 0, 0.5])
async def test_a_keep_alive_in_every_form(keep_alive: Any) -> None:
    async with FakeOllama(models=[EMBED]) as fake, OllamaPool([fake.url]) as pool:
        assert len(await pool.embed("nomic-embed-text", "a", keep_alive=keep_alive)) == 16


async def test_nodes_added_and_removed_while_the_pool_runs() -> None:
    async with FakeOllama(models=[EMBED]) as one, FakeOllama(models=[EMBED]) as two:
        registry = NodeRegistry([NodeSpec(one.url, name="node")])
        async with OllamaPool(registry) as pool:
            await pool.embed("nomic-embed-text", "a")
            registry.remove("node")
            registry.add(NodeSpec(two.url, name="node"))
            await pool.embed("nomic-embed-text", "b")
            with pytest.raises(ModelNotFound):
                await pool.embed("typo", "c")
        assert (one.items, two.items) == (1, 1)


async def test_a_node_that_restarts_in_mid_batch_goes_on() -> None:
    texts = [f"text {index}" for index in range(400)]
    async with (
        FakeOllama(models=[EMBED], seconds_per_item=0.002) as fake,
        OllamaPool([fake.url]) as pool,
    ):
        batch = asyncio.ensure_future(pool.embed_batch("nomic-embed-text", texts))
        while fake.items < 50:
            await asyncio.sleep(0)
        fake.fault = Fault.REFUSE
        while not pool.view.nodes[fake.url.removeprefix("http://")].is_down:
            await asyncio.sleep(0)
        fake.fault = None
        check(await batch, texts)
