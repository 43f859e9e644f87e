"""The keyword arguments that several public methods take, each group written once.

They are the types of ``**arguments: Unpack[...]``, so that editors and type checkers know the names
and their types. None of them has to be given. What each means is in the docstring of the method.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Required, TypedDict

from aiosollol.core.offload.engine_choice import EngineName
from aiosollol.core.scheduling.planner import ForceMode
from aiosollol.core.scheduling.vector_buffer import OnVectors

FilePath = str | os.PathLike[str]
OnError = Literal["raise", "return"]
OnProgress = Callable[[int, int], None]
"""Called with (settled, all)."""


class ModelArguments(TypedDict, total=False):
    """How the model runs, in the words of Ollama's API."""

    options: Mapping[str, Any] | None
    keep_alive: str | float | None


class EmbedArguments(ModelArguments, total=False):
    """Everything of an embedding request but its model and texts."""

    dimensions: int | None
    truncate: bool | None


class StreamArguments(EmbedArguments, total=False):
    """Of `OllamaPool.embed_stream`."""

    on_error: OnError


class BatchArguments(StreamArguments, total=False):
    """Of `OllamaPool.embed_batch`."""

    on_progress: OnProgress | None
    on_vectors: OnVectors | None
    force_mode: ForceMode | None
    timeout: float | None
    engine: EngineName


class SizeArguments(TypedDict, total=False):
    """Of `OllamaPool.parallelism_report`."""

    tokens_per_item: float


class PlanArguments(SizeArguments, total=False):
    """Of `OllamaPool.plan`."""

    force_mode: ForceMode | None


class WriteArguments(StreamArguments, total=False):
    """Of `OllamaPool.embed_bag` and `embed_dataframe`."""

    on_progress: OnProgress | None
    overwrite: bool


class SubmitArguments(EmbedArguments, total=False):
    """Of `AutoBatch.submit`."""

    metadata: Mapping[str, Any] | None
    owner: str | None


class CallArguments(TypedDict, total=False):
    """How a live request is treated."""

    timeout: float | None
    priority: int


class LiveArguments(CallArguments, ModelArguments, total=False):
    """How a live request, and the model for it, are treated."""

    sticky: str | None


class TalkArguments(LiveArguments, total=False):
    """Of both `OllamaPool.chat` and `generate`, whether the answer is whole or in parts."""

    think: bool | str | None
    format: str | Mapping[str, Any] | None


class _Chat(TalkArguments, total=False):
    tools: Iterable[Any] | None


class ChatArguments(_Chat, total=False):
    """Of `OllamaPool.chat`, for an answer as a whole."""

    stream: Literal[False]


class StreamChatArguments(_Chat, total=False):
    """Of `OllamaPool.chat`, for an answer in parts."""

    stream: Required[Literal[True]]


class _Generate(TalkArguments, total=False):
    system: str | None
    template: str | None
    context: Sequence[int] | None
    raw: bool | None
    images: Sequence[str | bytes] | None


class GenerateArguments(_Generate, total=False):
    """Of `OllamaPool.generate`, for a text as a whole."""

    stream: Literal[False]


class StreamGenerateArguments(_Generate, total=False):
    """Of `OllamaPool.generate`, for a text in parts."""

    stream: Required[Literal[True]]
