"""Texts that servers cut to the model's context: reported, ignored, or refused."""

from __future__ import annotations

import logging
from typing import Any

import orjson
import pytest

from aiosollol import (
    BadRequest,
    BatchError,
    InvalidInput,
    OllamaPool,
    RunnerFailed,
    SollolError,
    TextTooLong,
)
from aiosollol.core.node import NodeSpec
from aiosollol.testing import FakeModel, FakeTransport

pytestmark = pytest.mark.anyio

CONTEXT = 128
MODEL = FakeModel("all-minilm", dim=4, context_length=CONTEXT)
SHORT = [f"text number {number} " * (number % 9 + 1) for number in range(60)]
LONG = [f"long text number {number} " * 40 for number in range(5)]
MIXED = [*SHORT[:20], *LONG, *SHORT[20:]]


def pool_of(*names: str, **options: Any) -> OllamaPool:
    nodes = {name: FakeTransport(name, models=[MODEL], **options) for name in names}
    specs = [NodeSpec(f"http://{name}.test", name=name) for name in nodes]
    return OllamaPool(specs, transport_factory=lambda spec: nodes[spec.name])


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "were cut" in each.getMessage()]


BATCHES = [
    pytest.param(SHORT, {}, 0, id="none"),
    pytest.param(MIXED, {}, 5, id="some"),
    pytest.param(LONG, {}, 5, id="all"),
    pytest.param([*MIXED, *LONG[:2], SHORT[0]], {}, 7, id="some of them twice"),
    pytest.param([SHORT[8] * 2], {"options": {"num_ctx": 64}}, 1, id="a smaller context asked for"),
    pytest.param(MIXED, {"options": {"num_ctx": 4096}}, 5, id="a larger one, which it has not"),
    pytest.param(MIXED, {"truncate": True}, 5, id="cut on purpose"),
]


@pytest.mark.parametrize(("texts", "settings", "cut"), BATCHES)
@pytest.mark.parametrize("nodes", ["a", "abc"])
async def test_a_batch_reports_how_many_were_cut(
    nodes: str,
    texts: list[str],
    settings: dict[str, Any],
    cut: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with pool_of(*nodes) as pool:
        for _ in range(2):  # the model is not in memory at first
            report = (await pool.embed_batch("all-minilm", texts, **settings)).report
            assert report is not None
            assert report.truncated == cut
    assert len(warnings(caplog)) == min(cut, 1)
    assert all(f"{cut} of {len(texts)} texts" in each for each in warnings(caplog))
    assert all("long text" not in each for each in warnings(caplog)), "no text is logged"


async def test_every_way_to_embed_warns_once_for_each_model(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with pool_of("a") as pool:
        await pool.embed("all-minilm", SHORT[0])
        assert not warnings(caplog)
        await pool.embed("all-minilm", LONG[0])
        assert len(warnings(caplog)) == 1
        listed = await pool.embed("all-minilm:latest", MIXED)
        assert listed.report is not None
        assert listed.report.truncated == 5
        stream = pool.embed_stream("all-minilm", MIXED)
        assert len([vector async for vector in stream]) == len(MIXED)
        assert stream.truncated == 5
    assert len(warnings(caplog)) == 1


async def test_a_gateways_clients_get_what_ollama_answers_and_its_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    body = orjson.dumps({"model": "all-minilm", "input": LONG[0]})
    async with pool_of("a") as pool:
        answer = await pool.gateway_access.forward(
            "embed", "/api/embed", "all-minilm", body, texts=[LONG[0]]
        )
    assert answer.tokens == CONTEXT
    assert len(warnings(caplog)) == 1


async def test_nothing_is_said_where_that_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with pool_of("a") as pool:
        await pool.embed("all-minilm", LONG[0], on_truncate="ignore")
        batch = await pool.embed_batch("all-minilm", MIXED, on_truncate="ignore")
        stream = pool.embed_stream("all-minilm", MIXED, on_truncate="ignore")
        assert len([vector async for vector in stream]) == len(MIXED)
    assert batch.report is not None
    assert (batch.report.truncated, stream.truncated) == (5, 5)
    assert not warnings(caplog)


SINGLE = [
    pytest.param(LONG[0], None, id="a text"),
    pytest.param([LONG[0]], 0, id="a list of one"),
    pytest.param(["short", LONG[0], "short", LONG[1]], 1, id="the first of a list"),
]


@pytest.mark.parametrize(("texts", "index"), SINGLE)
async def test_embed_refuses_a_text_and_names_it(
    texts: str | list[str], index: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with pool_of("a", "b") as pool:
        with pytest.raises(TextTooLong, match="exceeds the context length") as caught:
            await pool.embed("all-minilm", texts, on_truncate="raise")
        assert len(await pool.embed("all-minilm", "short", on_truncate="raise")) == 4
    assert caught.value.index == index
    assert not warnings(caplog)


async def test_a_batch_refuses_texts_and_keeps_the_other_vectors() -> None:
    async with pool_of("a", "b") as pool:
        with pytest.raises(BatchError) as caught:
            await pool.embed_batch("all-minilm", MIXED, on_truncate="raise")
        returned = await pool.embed_batch(
            "all-minilm", MIXED, on_truncate="raise", on_error="return"
        )
        with pytest.raises(BatchError):
            async for _ in pool.embed_stream("all-minilm", MIXED, on_truncate="raise"):
                pass
        whole = await pool.embed_batch("all-minilm", SHORT, on_truncate="raise")
    for errors in (caught.value.errors, returned.errors):
        assert sorted(errors) == list(range(20, 25))
        for index, error in errors.items():
            assert isinstance(error, TextTooLong)
            assert error.index == index
    assert returned.report is not None
    assert returned.report.truncated == 0
    assert (len(whole), whole.errors) == (len(SHORT), {})


REFUSED = [
    pytest.param(BadRequest("n", 400, "the input length exceeds the context length"), True, id="a"),
    pytest.param(
        BadRequest("n", 400, "input after truncation exceeds maximum context length"), True, id="b"
    ),
    pytest.param(BadRequest("n", 400, "invalid input type"), False, id="another reason"),
    pytest.param(RunnerFailed("n", 500, "context length"), False, id="another error"),
]


@pytest.mark.parametrize(("error", "is_too_long"), REFUSED)
def test_what_says_that_a_text_is_too_long(error: SollolError, is_too_long: bool) -> None:
    found = TextTooLong.of(error, 2)
    assert isinstance(found, TextTooLong) == is_too_long
    assert (found is error) != is_too_long


@pytest.mark.parametrize(
    "given", [{"on_truncate": "cut"}, {"on_truncate": "raise", "truncate": True}]
)
async def test_what_contradicts_itself_is_refused(given: dict[str, Any]) -> None:
    async with pool_of("a") as pool:
        with pytest.raises(InvalidInput, match="on_truncate"):
            await pool.embed("all-minilm", "a", **given)
        with pytest.raises(InvalidInput, match="on_truncate"):
            await pool.embed_batch("all-minilm", ["a"], **given)
        with pytest.raises(InvalidInput, match="on_truncate"):
            pool.embed_stream("all-minilm", ["a"], **given)
