"""The canary of vectors, in virtual time: who is asked, when, and who is left out."""

from __future__ import annotations

import logging
import random
from typing import Any

import anyio
import pytest
from canary_parts import NEW, WRONG, asked, left_out, use, watched
from live_cluster import EMBED, MODEL, Watcher, gather, vector, virtual_time

from aiosollol.core.events import NodeChanged
from aiosollol.live import canary
from aiosollol.testing import FakeModel, Fault

pytestmark = pytest.mark.anyio

FULL = f"{MODEL}:latest"
THIRD = FakeModel(MODEL, dim=8, digest=EMBED.digest, weights="third")
LONGER = FakeModel(MODEL, dim=9, digest=EMBED.digest)
NEW_WRONG = FakeModel(MODEL, dim=8, digest="b" * 64, weights="other")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


# Who is left out.


@pytest.mark.parametrize(
    ("nodes", "order", "expected"),
    [
        pytest.param({"a": EMBED, "b": EMBED, "c": EMBED}, "abc", "", id="equal"),
        pytest.param({"a": EMBED, "b": WRONG}, "ab", "b", id="the second of two"),
        pytest.param({"a": EMBED, "b": WRONG}, "ba", "a", id="the second in use, not in the list"),
        pytest.param({"a": WRONG, "b": EMBED, "c": EMBED}, "abc", "a", id="the majority decides"),
        pytest.param({"a": EMBED, "b": WRONG, "c": THIRD}, "abc", "bc", id="three of three kinds"),
        pytest.param({"a": EMBED, "b": LONGER, "c": EMBED}, "abc", "b", id="of another length"),
        pytest.param({"a": EMBED, "b": NEW}, "a", "", id="of another digest"),
    ],
)
async def test_a_node_that_differs_is_left_out(
    nodes: dict[str, FakeModel], order: str, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched(**nodes) as made:
        watcher = Watcher(made)
        await use(made, *order)
        assert left_out(made) == expected
        told = [each for each in watcher.of(NodeChanged) if each.change.startswith("vectors")]
        assert [(each.node, each.change) for each in told] == [
            (name, "vectors differ") for name in expected
        ]
        assert all(FULL in each.detail for each in told)
        warned = [each for each in caplog.records if each.levelno == logging.WARNING]
        assert len(warned) == len(expected)
        stats = made.stats()["node_performance"]
        assert {key[0] for key, each in stats.items() if each["distrusted_models"] == [FULL]} == (
            set(expected)
        )
        stays = next(name for name in order if name not in expected)
        right = made[stays].vector(MODEL, "a text")
        assert {await made.embed() for _ in range(8)} == {right}
        made.check_rest()


async def test_a_node_with_nan_is_left_out_even_if_it_was_first() -> None:
    for has_base64 in (True, False):
        options: dict[str, Any] = {"version": "0.33.0" if has_base64 else "0.5.0"}
        async with watched(a=options, b=options) as made:
            await use(made, "a")
            made["a"].fault = Fault.NAN
            await use(made, "b")
            assert left_out(made) == "a"
            assert await made.embed() == vector()
            found = await made.admin.verify(MODEL)
            assert found.outliers == ("a",)
            made["a"].fault = None
            assert (await made.admin.verify(MODEL)).outliers == ()
            assert left_out(made) == ""


async def test_if_every_node_gives_nan_none_is_left_out() -> None:
    async with watched(a={}, b={}) as made:
        await made.embed()
        await made.embed()
        for name in "ab":
            made[name].fault = Fault.NAN
        await anyio.sleep(1.0)
        assert left_out(made) == ""
        agreement = await made.admin.verify(MODEL)
        assert (agreement.outliers, set(agreement.failed)) == ((), {"a", "b"})


async def test_one_that_was_left_out_comes_back_when_a_third_agrees_with_it() -> None:
    async with watched(a=WRONG, b=EMBED, c=EMBED) as made:
        await use(made, "a", "b")
        assert left_out(made) == "b"
        await use(made, "c")
        assert left_out(made) == "a"
        assert {await made.embed() for _ in range(6)} == {vector()}


async def test_a_running_batch_goes_on_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # The batch is on while it waits: the bound below is for what a node does in little more time.
    monkeypatch.setattr(canary, "PAUSE", 0.05)
    monkeypatch.setattr(canary, "IDLE_SECONDS", 0.0)
    slow: dict[str, Any] = {"seconds_per_item": 0.01}
    async with watched(a=slow, b=slow, c={**slow, "models": [WRONG]}) as made:
        texts = [f"text {number}" for number in range(3000)]
        batch = await made.embed_batch(texts)
        assert left_out(made) == "c"
        assert not batch.errors
        wrong = [
            text for text, row in zip(texts, batch, strict=True) if row.tobytes() != vector(text)
        ]
        assert made["c"].items < 300, "only what it did before it was found out"
        assert len(wrong) < made["c"].items
        await made.rest()


@pytest.mark.parametrize(
    ("items", "asked_at"), [(500, "after"), (20_000, "during")], ids=["short", "long"]
)
async def test_a_batch_shorter_than_ten_seconds_is_not_delayed(items: int, asked_at: str) -> None:
    slow: dict[str, Any] = {"seconds_per_item": 0.002}
    async with watched(a=slow, b=slow) as made:
        batch = await made.embed_batch([f"text {number}" for number in range(items)])
        assert not batch.errors
        assert ("during" if any(asked(made).values()) else "after") == asked_at
        await made.rest()
        assert asked(made) == {"a": 1, "b": 1}


@pytest.mark.parametrize("seed", range(10))
async def test_random_clusters(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randint(3, 9)
    bad = rng.sample(range(count), rng.randint(0, (count - 1) // 2))
    nodes: dict[str, Any] = {
        f"n{at}": {
            "models": [rng.choice([WRONG, THIRD, LONGER]) if at in bad else EMBED],
            "overhead": rng.uniform(0.0, 2.0),
            "load_seconds": rng.uniform(0.0, 2.0),
        }
        for at in range(count)
    }
    async with watched(**nodes) as made:
        for _ in range(4):
            await gather(*[made.embed] * 3 * count)
            await anyio.sleep(10.0)
        used = {node.name for node in made.state if node.embeds}
        wrong = {f"n{at}" for at in bad}
        out = {node.name for node in made.state if node.is_distrusted(MODEL)}
        if 2 * len(used - wrong) > len(used):
            assert out == used & wrong
        assert out < used
        assert max(asked(made).values()) <= 1
        await made.rest()
