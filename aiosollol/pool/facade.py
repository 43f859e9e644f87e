"""`OllamaPool`: many Ollama servers behind one object."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from typing import Any, Unpack, overload

from aiosollol.batch.prompts import PromptStream
from aiosollol.batch.stream import EmbedStream
from aiosollol.core.arguments import (
    BatchArguments,
    ChatArguments,
    ChatBatchArguments,
    ChatMapArguments,
    FilePath,
    GenerateArguments,
    GenerateBatchArguments,
    GenerateMapArguments,
    SingleEmbedArguments,
    StreamArguments,
    StreamChatArguments,
    StreamGenerateArguments,
    WriteArguments,
)
from aiosollol.core.embeddings import Embeddings, Vector
from aiosollol.core.offload.write_report import WriteReport
from aiosollol.core.reply import ChatReply, GeneratedText, Replies
from aiosollol.live.streaming import ReplyStream
from aiosollol.pool.base import PoolBase


class OllamaPool(PoolBase):
    """Many Ollama servers as one. Use it with ``async with``, or call `start` and `aclose`.

    A pool serves any number of concurrent tasks of one event loop, and should live as long as the
    program: it learns how fast each node is and keeps connections open.

    nodes: URLs, ``host:port``, bare hosts, mappings or `NodeSpec`, or a `NodeRegistry`. None means
    the server in ``OLLAMA_HOST``, else the nodes file, else a search of the network, else
    http://127.0.0.1:11434.
    require_digest: model -> the digest (its first 7 digits or more) that a node's copy must have
    to embed with it.
    routing_strategy: which node gets a live request: "performance", "score", "round_robin",
    "priority", "least_loaded", "random", or a `RoutingFunction` of your own.
    transport_factory: makes the transport to a node; tests can return `testing.FakeTransport`.
    tracing: traces requests, such as `telemetry.opentelemetry.OpenTelemetry`; None for none.
    settings: the other settings, such as ``embed_timeout=30``: names and types are in
    `PoolSettings`, meanings in docs/configuration.md. Those not given come from the environment,
    then the settings file, then the defaults.

    Raises InvalidInput for invalid nodes, and ConfigError for settings. Nothing is sent before
    `start`.
    """

    @overload
    async def embed(  # type: ignore[overload-overlap]  # a str is a Sequence[str] as well
        self,
        model: str,
        input: str,
        truncate: bool | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
        dimensions: int | None = None,
        **given: Unpack[SingleEmbedArguments],
    ) -> Vector: ...
    @overload
    async def embed(
        self,
        model: str,
        input: Sequence[str],
        truncate: bool | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
        dimensions: int | None = None,
        **given: Unpack[SingleEmbedArguments],
    ) -> Embeddings: ...
    async def embed(
        self,
        model: str,
        input: str | Sequence[str],
        truncate: bool | None = None,
        options: Mapping[str, Any] | None = None,
        keep_alive: str | float | None = None,
        dimensions: int | None = None,
        **given: Unpack[SingleEmbedArguments],
    ) -> Vector | Embeddings:
        """The vector of one text, or `Embeddings` of a list, from one request to one node.

        truncate, options, keep_alive, dimensions: as for Ollama's ``/api/embed``.
        timeout: seconds in all.
        priority: 1 to 10; if requests have to wait for a node, 10 goes first.
        on_truncate: for texts longer than the model's context: "warn" lets the server cut them and
        logs that once for each model, "ignore" says nothing, "raise" raises TextTooLong. A list's
        ``.report.truncated`` counts them.

        If a node fails, another is tried. Raises InvalidInput, ModelNotFound, NoNodeAvailable,
        NodeTimeout, PoolSaturated, TextTooLong, or BadRequest with the server's message.
        """
        return await self._embedder.embed(
            model, input, truncate, options, keep_alive, dimensions, **given
        )

    async def embed_batch(
        self, model: str, texts: Iterable[str], **given: Unpack[BatchArguments]
    ) -> Embeddings:
        """The vectors of many texts, in input order, computed by all nodes that have the model.

        Equal texts are computed once. A chunk that fails is retried on another node, and split
        until a text that cannot be embedded is alone.

        dimensions, truncate, options, keep_alive: as for Ollama's ``/api/embed``.
        on_progress: called with (settled, total) during the batch.
        on_vectors: called with (rows, vectors) as vectors arrive: positions in `texts`, and a
        read-only float32 memoryview of shape (rows, dimensions). A row that two nodes computed may
        come twice.
        on_error: with "raise", items without a vector raise BatchError, which carries the vectors
        of all others; with "return" they are NaN rows named in ``Embeddings.errors``.
        on_truncate: as for `embed`; with "raise" a text's error is TextTooLong.
        force_mode: "sequential" uses one node, "parallel" every machine, whatever is predicted.
        timeout: seconds in all; items not done by then fail. None: only `embed_timeout` for each.
        engine: where to compute: "local" in this process, "dask" or "ray" on their workers; "auto"
        uses Dask, if enabled, for batches that are large enough.
        priority: 1 to 10, 3 by default: no chunk is sent to a node where requests wait that go
        first. Workers of an engine use the default.

        Raises InvalidInput (nothing was sent), ModelNotFound, NoNodeAvailable, BatchError, and
        EngineError if the chosen engine cannot be used.
        """
        return await self._embedder.embed_batch(model, texts, **given)

    def embed_stream(
        self,
        model: str,
        texts: Iterable[str] | AsyncIterable[str],
        **given: Unpack[StreamArguments],
    ) -> EmbedStream:
        """The vectors of any number of texts, as an async iterator in input order.

        The source is read no faster than the vectors are consumed, so memory stays bounded.

        dimensions, truncate, options, keep_alive: as for Ollama's ``/api/embed``.
        on_error: with "raise" the iteration ends with BatchError at the first segment in which an
        item has no vector; with "return" such vectors are NaN and named in ``EmbedStream.errors``.
        on_truncate: as for `embed_batch`; ``EmbedStream.truncated`` says how many were cut.

        Raises InvalidInput here, and from the iteration ModelNotFound, NoNodeAvailable, BatchError.
        """
        return self._embedder.embed_stream(model, texts, **given)

    async def embed_bag(
        self, model: str, bag: Any, path: FilePath, **given: Unpack[WriteArguments]
    ) -> WriteReport:
        """Embed a `dask.bag.Bag` of texts on Dask workers, which write Parquet files.

        Neither the texts nor the vectors pass through this process. Each partition becomes one
        file, ``part-00000.parquet`` and so on, written atomically, with the columns ``text``,
        ``embedding`` (lists of float32, all of one length) and ``error``.

        path: a directory that all workers see; created if missing.
        overwrite: remove existing part files first; without it there must be none.
        dimensions, truncate, options, keep_alive: as for Ollama's ``/api/embed``.
        on_error: with "raise" the first text without a vector ends the call with RequestFailed;
        files written by then stay. With "return" its embedding is null, and ``error`` says why.
        on_progress: called with (partitions written, all partitions).

        One short text is embedded first, to learn the dimensions. Raises InvalidInput,
        ModelNotFound, NoNodeAvailable, RequestFailed, and EngineError if Dask is not enabled
        (``enable_dask=True``) or cannot be used.
        """
        return await self._collections.embed_bag(model, bag, path, **given)

    async def embed_dataframe(
        self, model: str, df: Any, column: str, path: FilePath, **given: Unpack[WriteArguments]
    ) -> WriteReport:
        """Embed a column of a `dask.dataframe.DataFrame` on Dask workers: see `embed_bag`.

        The files have the columns of the dataframe, plus ``embedding`` and ``error``.
        """
        return await self._collections.embed_dataframe(model, df, column, path, **given)

    @overload
    async def chat(
        self, model: str, messages: Iterable[Any] | None = None, **given: Unpack[ChatArguments]
    ) -> ChatReply: ...
    @overload
    async def chat(
        self,
        model: str,
        messages: Iterable[Any] | None = None,
        **given: Unpack[StreamChatArguments],
    ) -> ReplyStream[ChatReply]: ...
    async def chat(
        self, model: str, messages: Iterable[Any] | None = None, **given: Any
    ) -> ChatReply | ReplyStream[ChatReply]:
        """A chat answer, or with ``stream=True`` an async iterator over its parts.

        tools, think, format, options, keep_alive: as for Ollama's ``/api/chat``.
        timeout: seconds in all. priority: 1 to 10; if requests have to wait for a node, 10 goes
        first.
        sticky: the name of a conversation, which stays on the node that has its prompt cache unless
        that node is much busier than others.

        If a node fails before its first part, another is tried. Raises InvalidInput, ModelNotFound,
        NoNodeAvailable, NodeTimeout, PoolSaturated, or BadRequest. If a stream breaks off or has an
        error in it, the iteration raises StreamCutOff with the number of parts delivered and the
        failure as its cause.
        """
        return await self._generation.chat(model, messages, **given)

    @overload
    async def generate(
        self,
        model: str,
        prompt: str = "",
        suffix: str | None = None,
        **given: Unpack[GenerateArguments],
    ) -> GeneratedText: ...
    @overload
    async def generate(
        self,
        model: str,
        prompt: str = "",
        suffix: str | None = None,
        **given: Unpack[StreamGenerateArguments],
    ) -> ReplyStream[GeneratedText]: ...
    async def generate(
        self, model: str, prompt: str = "", suffix: str | None = None, **given: Any
    ) -> GeneratedText | ReplyStream[GeneratedText]:
        """Generated text, or with ``stream=True`` an async iterator over its parts.

        The text is a `str`; its ``answer`` holds the rest of the server's response.
        system, template, context, think, raw, format, images, options, keep_alive: as for Ollama's
        ``/api/generate``. timeout, priority, sticky, failover and errors: as for `chat`.
        """
        return await self._generation.generate(model, prompt, suffix, **given)

    @overload
    def map(
        self,
        model: str,
        prompts: Iterable[Any] | AsyncIterable[Any],
        **given: Unpack[GenerateMapArguments],
    ) -> PromptStream[GeneratedText]: ...
    @overload
    def map(
        self,
        model: str,
        prompts: Iterable[Any] | AsyncIterable[Any],
        **given: Unpack[ChatMapArguments],
    ) -> PromptStream[ChatReply]: ...
    def map(
        self, model: str, prompts: Iterable[Any] | AsyncIterable[Any], **given: Any
    ) -> PromptStream[Any]:
        """The replies to any number of prompts, as an async iterator.

        prompts: each is a str, a mapping of arguments of `generate` (or of `chat`, with
        ``kind="chat"``), or for a chat a list of messages. The source is read no faster than the
        nodes answer and the replies are consumed.
        ordered: deliver replies in the order of their prompts, else as they come;
        ``PromptStream.index`` is the position of each.
        on_error: with "raise" the first error of a prompt ends the iteration; with "return" None is
        delivered for that prompt, and ``PromptStream.errors`` has the error.
        on_progress: called with (settled, total); total is None if the source has no length.
        timeout: seconds for each reply. priority: 3 by default, so that other requests go first.
        Other arguments are those of `generate` and `chat`, and hold for all prompts.

        ``PromptStream.report`` counts replies, tokens and nodes. Raises InvalidInput here, and from
        the iteration the errors of `chat`, but PoolSaturated only after an hour.
        """
        return self._generation.map(model, prompts, **given)

    async def chat_batch(
        self,
        model: str,
        conversations: Iterable[Any] | AsyncIterable[Any],
        **given: Unpack[ChatBatchArguments],
    ) -> Replies[ChatReply]:
        """The replies to many conversations, as a list in their order: see `map`.

        With ``on_error="raise"``, ReplyBatchError comes at the end and carries the other replies.
        """
        return await self._generation.batch(model, conversations, "chat", **given)

    async def generate_batch(
        self,
        model: str,
        prompts: Iterable[Any] | AsyncIterable[Any],
        **given: Unpack[GenerateBatchArguments],
    ) -> Replies[GeneratedText]:
        """The texts generated for many prompts, as a list in their order: see `chat_batch`."""
        return await self._generation.batch(model, prompts, "generate", **given)
