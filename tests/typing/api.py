"""The public signatures, as a type checker sees them. mypy reads this file; it is never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal, assert_type

from aiosollol import (
    Agreement,
    AttemptFailed,
    ChatReply,
    ClusterView,
    Discovered,
    Embeddings,
    EngineNote,
    EventStream,
    GeneratedText,
    Hedged,
    Loading,
    Mode,
    NodeAgreement,
    NodeChanged,
    NodeExplanation,
    NodeLoad,
    NodeRegistry,
    NodeSpec,
    NodeState,
    OllamaPool,
    ParallelismEntry,
    Plan,
    PoolEvent,
    PoolSettings,
    PromptStream,
    Reason,
    Replies,
    ReplyBatchError,
    ReplyReport,
    ReplyStream,
    Routed,
    RouteExplanation,
    RouteRequest,
    RoutingFunction,
    SollolError,
    TextTooLong,
    Vector,
    WriteReport,
    discover,
    discover_ollama_nodes,
)
from aiosollol.core.node import NodeLike
from aiosollol.telemetry.opentelemetry import OpenTelemetry

MODEL = "nomic-embed-text"
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]


def node_state(state: NodeState) -> None:
    assert_type(state.has_model(MODEL), bool)
    assert_type(state.model_names, tuple[str, ...])


async def construction(specs: list[NodeSpec], registry: NodeRegistry) -> None:
    OllamaPool()
    OllamaPool(["http://10.0.0.2:11434", "10.0.0.3"])
    OllamaPool([{"host": "10.0.0.2", "port": "11434"}, {"url": "10.0.0.3", "priority": 1}])
    OllamaPool(specs)
    OllamaPool(nodes=registry)
    nodes: list[NodeLike] = ["10.0.0.2", {"url": "10.0.0.3"}, NodeSpec("10.0.0.4")]
    OllamaPool(nodes)


async def life_time() -> None:
    async with OllamaPool() as pool:
        assert_type(pool, OllamaPool)
    pool = OllamaPool()
    await pool.start()
    await pool.aclose()


async def state(pool: OllamaPool) -> None:
    assert_type(pool.view, ClusterView)
    assert_type(await pool.refresh(), ClusterView)
    assert_type(pool.view.nodes, Mapping[str, NodeState])
    assert_type(pool.view.having(MODEL), list[NodeState])
    assert_type(pool.get_stats(), dict[str, Any])


async def settings(given: PoolSettings) -> None:
    OllamaPool(embed_timeout=30, max_retries=1, hedge_rate=0.0, wait_timeout=5.0, max_waiting=10)
    OllamaPool(live_latency_target=0.1)
    OllamaPool(**given)
    OllamaPool(max_retrys=1)  # type: ignore[call-arg]
    OllamaPool(embed_timeout="long")  # type: ignore[arg-type]
    OllamaPool(require_digest={MODEL: "0a109f422b47"})
    OllamaPool(require_digest="0a109f422b47")  # type: ignore[arg-type]


def first(nodes: Sequence[NodeLoad], request: RouteRequest, now: float, rng: Random) -> NodeLoad:
    assert_type(request.model, str)
    assert_type(nodes[0].name, str)
    assert_type(nodes[0].in_flight, int)
    assert_type(nodes[0].ahead(now), float)
    return nodes[0]


def tracing() -> None:
    OllamaPool(tracing=OpenTelemetry())
    OllamaPool(tracing=None)
    OllamaPool(tracing="otel")  # type: ignore[arg-type]


def strategies() -> None:
    OllamaPool(routing_strategy="round_robin")
    OllamaPool(routing_strategy=first)
    function: RoutingFunction = first
    OllamaPool(routing_strategy=function)
    OllamaPool(routing_strategy="fastest")  # type: ignore[arg-type]
    OllamaPool(routing_strategy=len)  # type: ignore[arg-type]


async def operations(pool: OllamaPool, show: Callable[[int], None]) -> None:
    assert_type(await pool.add_node("10.0.0.4", name="new", priority=1), NodeState)
    await pool.add_node(NodeSpec("10.0.0.5"), auto_probe=False)
    await pool.remove_node("new")
    await pool.drain("new")
    await pool.drain("new", on_wait=show)
    pool.resume("new")
    assert_type(await pool.warm(MODEL), dict[str, float | SollolError])
    await pool.warm(MODEL, nodes=["a", "b"])
    await pool.route(MODEL, kind="rerank")  # type: ignore[arg-type]


async def route(pool: OllamaPool) -> None:
    explained = await pool.route(MODEL, kind="chat", tokens=100)
    assert_type(explained, RouteExplanation)
    assert_type(explained.chosen, str | None)
    assert_type(explained.waits, bool)
    assert_type(explained.nodes, tuple[NodeExplanation, ...])
    assert_type(explained.nodes[0].is_eligible, bool)
    assert_type(explained.nodes[0].reason, str)
    assert_type(explained.nodes[0].terms, dict[str, float])


async def verify(pool: OllamaPool) -> None:
    agreement = await pool.verify(MODEL)
    assert_type(agreement, Agreement)
    assert_type(agreement.outliers, tuple[str, ...])
    assert_type(agreement.nodes, tuple[NodeAgreement, ...])
    assert_type(agreement.nodes[0].alone, float)
    assert_type(agreement.failed, Mapping[str, str])


async def events(pool: OllamaPool) -> None:
    stream = pool.events()
    assert_type(stream, EventStream)
    assert_type(stream.missed, int)
    async with stream:
        async for event in stream:
            as_union: PoolEvent = event
            assert_type(as_union.at, float)
            match event:
                case Routed():
                    assert_type((event.model, event.node, event.attempt), tuple[str, str, int])
                case Hedged():
                    assert_type((event.first, event.second), tuple[str, str])
                case AttemptFailed():
                    assert_type((event.kind, event.error), tuple[str, str])
                case NodeChanged():
                    assert_type((event.node, event.change), tuple[str, str])
                case Loading():
                    assert_type(event.seconds, float | None)
                    assert_type(event.error, str)
    stream.close()


async def discovery() -> None:
    async for found in discover(timeout=1.0):
        assert_type(found, Discovered)
    assert_type(await discover_ollama_nodes(), list[dict[str, str]])


async def wishes(pool: OllamaPool) -> None:
    assert_type(await pool.embed(MODEL, "a", timeout=5, priority=10), Vector)
    assert_type(await pool.embed_batch(MODEL, ["a"], timeout=60, priority=7), Embeddings)
    await pool.embed_batch(MODEL, ["a"], priority="high")  # type: ignore[arg-type]
    assert_type(await pool.chat("llama3.2", MESSAGES, timeout=5, sticky="x"), ChatReply)
    assert_type(await pool.generate("llama3.2", "a", priority=1, sticky="x"), GeneratedText)
    await pool.chat("llama3.2", MESSAGES, stream=True, timeout=5, priority=1, sticky="x")
    await pool.embed(MODEL, "a", sticky="x")  # type: ignore[call-overload]


async def embed_batch(
    pool: OllamaPool, texts: Iterable[str], show: Callable[[int, int], None]
) -> None:
    assert_type(await pool.embed_batch(MODEL, texts), Embeddings)
    assert_type(
        await pool.embed_batch(
            MODEL,
            texts,
            dimensions=256,
            truncate=True,
            options={"num_ctx": 512},
            keep_alive="5m",
            on_error="return",
            on_progress=show,
        ),
        Embeddings,
    )
    await pool.embed_batch(MODEL, texts, on_error="ignore")  # type: ignore[arg-type]
    assert_type(await pool.embed_batch(MODEL, texts, on_truncate="raise"), Embeddings)
    assert_type(await pool.embed(MODEL, "a", on_truncate="ignore"), Vector)
    assert_type(await pool.embed(MODEL, ["a"], on_truncate="warn"), Embeddings)
    stream = pool.embed_stream(MODEL, texts, on_truncate="raise")
    assert_type((stream.truncated, stream.tokens), tuple[int, int])
    await pool.embed_batch(MODEL, texts, on_truncate="cut")  # type: ignore[arg-type]
    await pool.chat(MODEL, MESSAGES, on_truncate="raise")  # type: ignore[call-overload]
    assert_type(TextTooLong("gpu", 400, "too long", index=3).index, int | None)


async def engines(pool: OllamaPool, bag: Any, frame: Any, show: Callable[[int, int], None]) -> None:
    OllamaPool(enable_dask=True, dask_address="tcp://10.0.0.2:8786", dask_workers=2)
    OllamaPool(enable_ray=True, ray_address="auto", app_name="search", app_weight=3)
    vectors = await pool.embed_batch(MODEL, ["a"], engine="dask")
    if vectors.report is not None:
        assert_type(vectors.report.engine, EngineNote)
    await pool.embed_batch(MODEL, ["a"], engine="spark")  # type: ignore[arg-type]
    assert_type(await pool.embed_bag(MODEL, bag, "vectors", on_progress=show), WriteReport)
    assert_type(
        await pool.embed_dataframe(MODEL, frame, "body", Path("vectors"), overwrite=True),
        WriteReport,
    )
    pool.allow({"gpu": 2})
    pool.allow(None)
    assert_type(pool.usage()["gpu"].wants, int)


async def planning(pool: OllamaPool, texts: list[str]) -> None:
    OllamaPool(policy="rules", min_gain=0.1, same_machine="share")
    OllamaPool(policy="best")  # type: ignore[arg-type]
    OllamaPool(canary=False)
    OllamaPool(canary="no")  # type: ignore[arg-type]
    OllamaPool(same_machine="no")  # type: ignore[arg-type]
    assert_type(await pool.plan(MODEL, 5000), Plan)
    await pool.plan(MODEL, 5000, tokens_per_item=75, force_mode="sequential")
    await pool.plan(MODEL, 5000, force_mode="both")  # type: ignore[arg-type]
    assert_type(await pool.embed_batch(MODEL, texts, force_mode="parallel"), Embeddings)
    assert_type(await pool.embed_batch(MODEL, texts, force_mode=None), Embeddings)
    await pool.embed_batch(MODEL, texts, force_mode="both")  # type: ignore[arg-type]
    assert_type(await pool.parallelism_report(MODEL), list[ParallelismEntry])
    await pool.parallelism_report(MODEL, [10, 50], tokens_per_item=75.0)
    assert_type(pool.should_use_parallel_execution(2), bool)
    assert_type(pool.count_unique_physical_hosts(), int)


def plan(made: Plan) -> None:
    assert_type(made.mode, Mode)
    assert_type(made.reason, Reason)
    assert_type(made.detail, str)
    assert_type(made.items, int)
    assert_type(made.shares, Mapping[str, int])
    assert_type(made.predicted_seconds, float)
    assert_type(made.best_single_seconds, float)
    assert_type(made.even_split_seconds, float)
    assert_type(made.speed_ratio, float)
    assert_type(made.standby, tuple[str, ...])
    assert_type(made.trials, tuple[tuple[str, str], ...])


def parallelism(entry: ParallelismEntry) -> None:
    assert_type(entry.items, int)
    assert_type(entry.plan, Plan)
    assert_type(entry.sequential_seconds, float)
    assert_type(entry.parallel_seconds, float)
    assert_type(entry.saved_seconds, float)
    assert_type(entry.recommendation, Literal["sequential", "parallel"])


async def embed(pool: OllamaPool, texts: list[str]) -> None:
    assert_type(await pool.embed(MODEL, "one text"), Vector)
    assert_type(await pool.embed(MODEL, texts), Embeddings)
    assert_type(await pool.embed(MODEL, ("one", "two")), Embeddings)


async def chat(pool: OllamaPool, tool: Callable[..., Any]) -> None:
    reply = await pool.chat(
        "llama3.2", MESSAGES, tools=[tool], think=True, format="json", options={}, keep_alive=60
    )
    assert_type(reply, ChatReply)
    assert_type(str(reply), str)
    assert_type(await pool.chat("llama3.2", MESSAGES, stream=False), ChatReply)
    parts = await pool.chat("llama3.2", MESSAGES, stream=True)
    assert_type(parts, ReplyStream[ChatReply])
    async for part in parts:
        assert_type(part, ChatReply)
    iterator: AsyncIterator[ChatReply] = parts
    assert_type(await anext(iterator), ChatReply)


async def many_prompts(pool: OllamaPool, prompts: AsyncIterator[str]) -> None:
    def on_progress(settled: int, total: int | None) -> None: ...

    assert_type(pool.map("llama3.2", ["a"]), PromptStream[GeneratedText])
    stream = pool.map("llama3.2", prompts, kind="chat", ordered=False, on_error="return", tools=[])
    async with stream:
        async for reply in stream:
            assert_type(reply, ChatReply | None)
    assert_type(stream.index, int)
    assert_type(stream.errors, dict[int, SollolError])
    assert_type(stream.report, ReplyReport)
    texts = await pool.generate_batch(
        "llama3.2", ["a", {"prompt": "b"}], timeout=5, priority=1, on_progress=on_progress
    )
    assert_type(texts, Replies[GeneratedText])
    assert_type(texts[0], GeneratedText | None)
    assert_type(await pool.chat_batch("llama3.2", [[{}]], format="json"), Replies[ChatReply])
    report: ReplyReport = texts.report
    numbers: tuple[int, int, int, int] = (
        report.replies,
        report.failed,
        report.prompt_tokens,
        report.reply_tokens,
    )
    shares: Mapping[str, int] = report.nodes
    rates: tuple[float, float] = (report.seconds, report.tokens_per_second)
    error: ReplyBatchError = ReplyBatchError(texts)
    assert_type(error.errors, dict[int, SollolError])
    print(numbers, shares, rates, error.replies)


async def generate(pool: OllamaPool) -> None:
    text = await pool.generate("llama3.2", "Once", " the end.", system="Be short.", raw=False)
    assert_type(text, GeneratedText)
    plain: str = text
    assert_type(plain.upper(), str)
    assert_type(text.response, str)
    async with await pool.generate("llama3.2", "Once", stream=True, format={}) as parts:
        assert_type(parts, ReplyStream[GeneratedText])
        async for part in parts:
            assert_type(part, GeneratedText)
    assert_type(parts.node, str)
    await parts.aclose()


async def arguments(pool: OllamaPool, texts: list[str]) -> None:
    """Positional ones in the order of the package `ollama`; unknown and wrong ones are errors."""
    assert_type(await pool.embed(MODEL, "a", True, {"num_ctx": 512}, "5m", 256), Vector)
    assert_type(await pool.embed(MODEL, texts, truncate=True, dimensions=256), Embeddings)
    assert_type(await pool.embed(MODEL, texts, timeout=3.0), Embeddings)
    await pool.embed(MODEL, "a", "yes")  # type: ignore[call-overload]
    await pool.embed_batch(MODEL, texts, dimension=3)  # type: ignore[call-arg]
    await pool.embed_batch(MODEL, texts, truncate="yes")  # type: ignore[arg-type]
    pool.embed_stream(MODEL, texts, on_progress=None)  # type: ignore[call-arg]
    assert_type(await pool.chat("llama3.2", MESSAGES, stream=False, tools=[]), ChatReply)
    await pool.chat("llama3.2", MESSAGES, prompt="a")  # type: ignore[call-overload]
    await pool.chat("llama3.2", MESSAGES, stream="yes")  # type: ignore[call-overload]
    assert_type(await pool.generate("llama3.2", "a", stream=False, images=[b""]), GeneratedText)
    await pool.generate("llama3.2", "a", tools=[])  # type: ignore[call-overload]
    await pool.plan(MODEL, 3, sizes=[3])  # type: ignore[call-arg]
