"""The keyword arguments of public methods: typed once, documented, and the same as in the parts."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

from aiosollol import OllamaPool
from aiosollol.autobatch import AutoBatch
from aiosollol.autobatch.job_queries import new_job
from aiosollol.core import arguments
from aiosollol.pool.admin import PoolAdmin
from aiosollol.pool.collections import CollectionBatches
from aiosollol.pool.embedding import Embedder
from aiosollol.pool.generation import Generation

pytestmark = pytest.mark.anyio

METHODS: list[tuple[Callable[..., Any], Callable[..., Any], Any]] = [
    (OllamaPool.embed, Embedder.embed, arguments.SingleEmbedArguments),
    (OllamaPool.embed_batch, Embedder.embed_batch, arguments.BatchArguments),
    (OllamaPool.embed_stream, Embedder.embed_stream, arguments.StreamArguments),
    (OllamaPool.embed_bag, CollectionBatches.embed_bag, arguments.WriteArguments),
    (OllamaPool.embed_bag, CollectionBatches.embed_dataframe, arguments.WriteArguments),
    (OllamaPool.chat, Generation.chat, arguments.ChatArguments),
    (OllamaPool.chat, Generation.chat, arguments.StreamChatArguments),
    (OllamaPool.generate, Generation.generate, arguments.GenerateArguments),
    (OllamaPool.generate, Generation.generate, arguments.StreamGenerateArguments),
    (OllamaPool.plan, PoolAdmin.plan, arguments.PlanArguments),
    (OllamaPool.parallelism_report, PoolAdmin.parallelism_report, arguments.SizeArguments),
    (AutoBatch.submit, new_job, arguments.SubmitArguments),
]


@pytest.mark.parametrize(("method", "part", "typed"), METHODS)
def test_each_argument_is_typed_taken_and_documented(
    method: Callable[..., Any], part: Callable[..., Any], typed: Any
) -> None:
    names = set(typed.__annotations__)
    parameters = inspect.signature(part).parameters.values()
    taken = {each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}
    for each in parameters:
        if each.kind is inspect.Parameter.VAR_KEYWORD:  # "Unpack[EmbedArguments]"
            unpacked = getattr(arguments, each.annotation.removeprefix("Unpack[").rstrip("]"))
            taken |= set(unpacked.__annotations__)
    assert taken == names
    assert names <= set(re.findall(r"\w+", inspect.getdoc(method) or ""))


@pytest.mark.parametrize(
    "call",
    [
        lambda pool: pool.embed("m", "a", sticky="x"),
        lambda pool: pool.embed_batch("m", ["a"], dimension=3),
        lambda pool: pool.chat("m", [], prompt="a"),
        lambda pool: pool.generate("m", "a", tools=[]),
        lambda pool: pool.plan("m", 3, sizes=[3]),
        lambda pool: pool.embed_bag("m", None, "x", force_mode="parallel"),
    ],
)
async def test_an_unknown_argument_is_refused_by_name(call: Callable[[OllamaPool], Any]) -> None:
    async with OllamaPool(["http://127.0.0.1:9"]) as pool:
        with pytest.raises(TypeError, match=r"'(sticky|dimension|prompt|tools|sizes|force_mode)'"):
            await call(pool)


async def test_an_unknown_argument_of_a_stream_is_refused() -> None:
    async with OllamaPool(["http://127.0.0.1:9"]) as pool:
        unknown: Any = {"on_progress": None}
        with pytest.raises(TypeError, match="'on_progress'"):
            pool.embed_stream("m", ["a"], **unknown)
