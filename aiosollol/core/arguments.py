"""Keyword arguments shared by several public methods.

They type ``**arguments: Unpack[...]``, so that editors and type checkers know the names and types.
All are optional; the docstrings of the methods describe them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Required, TypedDict

from aiosollol.core.offload.engine_choice import EngineName
from aiosollol.core.scheduling.planner import ForceMode
from aiosollol.core.scheduling.vector_buffer import OnVectors
from aiosollol.core.truncation import OnTruncate

FilePath = str | os.PathLike[str]
OnError = Literal["raise", "return"]
OnProgress = Callable[[int, int], None]
"""Called with (settled, total)."""


class ModelArguments(TypedDict, total=False):
    """How the model runs, as in Ollama's API."""

    options: Mapping[str, Any] | None
    keep_alive: str | float | None


class EmbedArguments(ModelArguments, total=False):
    """An embedding request without its model and texts."""

    dimensions: int | None
    truncate: bool | None


class _Failing(EmbedArguments, total=False):
    on_error: OnError


class StreamArguments(_Failing, total=False):
    """Arguments of `OllamaPool.embed_stream`."""

    on_truncate: OnTruncate


class BatchArguments(StreamArguments, total=False):
    """Arguments of `OllamaPool.embed_batch`."""

    on_progress: OnProgress | None
    on_vectors: OnVectors | None
    force_mode: ForceMode | None
    timeout: float | None
    engine: EngineName
    priority: int


class SizeArguments(TypedDict, total=False):
    """Arguments of `OllamaPool.parallelism_report`."""

    tokens_per_item: float


class PlanArguments(SizeArguments, total=False):
    """Arguments of `OllamaPool.plan`."""

    force_mode: ForceMode | None


class WriteArguments(_Failing, total=False):
    """Arguments of `OllamaPool.embed_bag` and `embed_dataframe`."""

    on_progress: OnProgress | None
    overwrite: bool


class SubmitArguments(EmbedArguments, total=False):
    """Arguments of `AutoBatch.submit`."""

    metadata: Mapping[str, Any] | None
    owner: str | None


class CallArguments(TypedDict, total=False):
    """How a live request is handled."""

    timeout: float | None
    priority: int


class SingleEmbedArguments(CallArguments, total=False):
    """Arguments of `OllamaPool.embed` beside those of the request."""

    on_truncate: OnTruncate


class TalkFields(ModelArguments, total=False):
    """Fields of requests for both chat and generate."""

    think: bool | str | None
    format: str | Mapping[str, Any] | None


class ChatFields(TalkFields, total=False):
    """A chat without its model and messages, as in Ollama's API."""

    tools: Iterable[Any] | None


class GenerateFields(TalkFields, total=False):
    """A generate without its model, prompt and suffix, as in Ollama's API."""

    system: str | None
    template: str | None
    context: Sequence[int] | None
    raw: bool | None
    images: Sequence[str | bytes] | None


class LiveArguments(CallArguments, ModelArguments, total=False):
    """How a chat or generate and its model are handled."""

    sticky: str | None


class ChatArguments(ChatFields, LiveArguments, total=False):
    """Arguments of `OllamaPool.chat`, without streaming."""

    stream: Literal[False]


class StreamChatArguments(ChatFields, LiveArguments, total=False):
    """Arguments of `OllamaPool.chat`, with streaming."""

    stream: Required[Literal[True]]


class GenerateArguments(GenerateFields, LiveArguments, total=False):
    """Arguments of `OllamaPool.generate`, without streaming."""

    stream: Literal[False]


class StreamGenerateArguments(GenerateFields, LiveArguments, total=False):
    """Arguments of `OllamaPool.generate`, with streaming."""

    stream: Required[Literal[True]]


class PromptArguments(CallArguments, total=False):
    """How many prompts are handled."""

    on_error: OnError
    on_progress: Callable[[int, int | None], object] | None


class ChatBatchArguments(ChatFields, PromptArguments, total=False):
    """Arguments of `OllamaPool.chat_batch`."""


class GenerateBatchArguments(GenerateFields, PromptArguments, total=False):
    """Arguments of `OllamaPool.generate_batch`."""


class ChatMapArguments(ChatBatchArguments, total=False):
    """Arguments of `OllamaPool.map` for chats."""

    kind: Required[Literal["chat"]]
    ordered: bool


class GenerateMapArguments(GenerateBatchArguments, total=False):
    """Arguments of `OllamaPool.map` for generate, the default."""

    kind: Literal["generate"]
    ordered: bool
