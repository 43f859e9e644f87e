"""Loading ahead, comparing and draining nodes, in virtual time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import anyio
import pytest
from live_cluster import (
    CHAT,
    EMBED,
    MODEL,
    TALKER,
    Watcher,
    cluster,
    gather,
    vector,
    virtual_time,
)

from aiosollol.core.events import NodeChanged
from aiosollol.core.node_transitions import ProbeFailed
from aiosollol.errors import (
    InvalidInput,
    ModelMissing,
    ModelNotFound,
    NodeUnreachable,
    NoNodeAvailable,
    PoolClosed,
)
from aiosollol.testing import FakeModel, FakeTransport, Fault
from aiosollol.wire.ollama.embeddings import load_embeddings

pytestmark = pytest.mark.anyio

OTHER = FakeModel(MODEL, dim=8, digest="b" * 64)
SAME_NAME = FakeModel(MODEL, dim=8, digest=EMBED.digest)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


class Rotated(FakeTransport):
    """A node whose vectors are not those of the others, though it says the same digest.

    wrong_lists: only those of lists with several texts.
    """

    wrong_lists = False

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
        most: int | None = None,
    ) -> bytes:
        answer = await super().request(method, path, body, timeout=timeout, headers=headers)
        if path not in ("/v1/embeddings", "/api/embed"):
            return answer
        asked = json.loads(body or b"")["input"]
        count = len(asked) if isinstance(asked, list) else 1
        if not count:
            return answer
        found = load_embeddings(self.name, answer, count)
        if self.wrong_lists and count == 1:
            return answer
        floats = found.floats.tolist()
        rows = [floats[at : at + found.dim] for at in range(0, len(floats), found.dim)]
        return json.dumps({"embeddings": [[*row[1:], row[0]] for row in rows]}).encode()


# Loading ahead.


async def test_warm_loads_on_every_node_that_has_it_and_says_how_long_it_took() -> None:
    nodes = {"a": 1.0, "b": 3.0}
    given: dict[str, Mapping[str, Any]] = {n: {"load_seconds": s} for n, s in nodes.items()}
    async with cluster(**given, lacks={"models": ["other"]}) as made:
        assert await made.admin.warm(MODEL, None) == pytest.approx(nodes)
        assert anyio.current_time() == pytest.approx(3.0)
        began = anyio.current_time()
        await gather(*[made.embed] * 4)
        assert anyio.current_time() - began < 1e-6, "nobody had to load again"
        assert await made.admin.warm(TALKER, ["b", "http://b.test"]) == pytest.approx({"b": 3.0})
        await made.chat()
        await made.rest()


async def test_warm_tells_of_each_node_that_cannot() -> None:
    async with cluster(a={}, b={"models": ["other"]}, c={}) as made:
        made["c"].fault = Fault.REFUSE
        results = await made.admin.warm(MODEL, ["a", "b", "c"])
        assert results["a"] == pytest.approx(0.0)
        assert isinstance(results["b"], ModelMissing)
        assert isinstance(results["c"], NodeUnreachable)
        await made.rest()


async def test_warm_and_callers_share_one_load() -> None:
    async with cluster(a={"load_seconds": 5.0}) as made:
        results = await gather(partial(made.admin.warm, MODEL, None), *[made.embed] * 10)
        assert results[1:] == [vector()] * 10
        assert results[0] == pytest.approx({"a": 5.0})
        paths = [each.path for each in made["a"].log if each.seconds > 1.0]
        assert len(paths) == 1
        await made.rest()


@pytest.mark.parametrize("names", ["a", ["a", "typo"], [3], [["a"]]])
async def test_names_that_are_none_are_refused_before_anything_is_sent(names: Any) -> None:
    async with cluster(a={}) as made:
        with pytest.raises(InvalidInput):
            await made.admin.warm(MODEL, names)
        assert made["a"].requests == 0


async def test_a_model_that_nobody_has_cannot_be_warmed() -> None:
    async with cluster(a={}) as made:
        with pytest.raises(ModelNotFound):
            await made.admin.warm("typo", None)
        with pytest.raises(ModelNotFound):
            await made.admin.verify("typo")


# Comparing. "It must show" 4.


async def test_verify_finds_a_node_whose_vectors_were_rotated() -> None:
    async with cluster(a={}, b={}, c={}, d={}, strategy="round_robin") as made:
        made.transports["c"] = Rotated("c", models=[EMBED, CHAT])
        assert len({await made.embed() for _ in range(4)}) == 2, "nobody noticed"
        agreement = await made.admin.verify(MODEL)
        assert agreement.outliers == ("c",)
        assert agreement.reference != "c"
        assert [node.is_enough for node in agreement.nodes] == [True, True, False, True]
        assert {await made.embed() for _ in range(8)} == {vector()}
        texts = [f"text {number}" for number in range(100)]
        batch = await made.embed_batch(texts)
        assert [row.tobytes() for row in batch] == [vector(text) for text in texts]
        assert batch.report is not None
        assert "c" not in batch.report.nodes
        made.transports["c"] = FakeTransport("c", models=[EMBED])
        assert (await made.admin.verify(MODEL)).outliers == ()
        for _ in range(4):
            await made.embed()
        assert made["c"].items > 8, "it takes part again"
        await made.rest()


async def test_verify_finds_a_node_whose_lists_are_wrong() -> None:
    async with cluster(a={}, b={}, c={}) as made:
        made.transports["b"] = Rotated("b", models=[EMBED])
        made["b"].wrong_lists = True  # type: ignore[attr-defined]
        agreement = await made.admin.verify(MODEL)
        assert agreement.outliers == ("b",)
        assert agreement.nodes[1].alone > 0.999 > agreement.nodes[1].listed


async def test_verify_finds_another_digest_and_says_which() -> None:
    old: dict[str, Any] = {"models": [OTHER]}
    async with cluster(a={}, b={}, x=old, y=old) as made:
        agreement = await made.admin.verify(MODEL)
        in_use = made.eligibility.digest_in_use(MODEL)
        expected = ("x", "y") if in_use == EMBED.digest else ("a", "b")
        assert agreement.outliers == expected
        assert {node.node: node.digest for node in agreement.nodes} == {
            **dict.fromkeys("ab", EMBED.digest),
            **dict.fromkeys("xy", OTHER.digest),
        }
        assert "DIFFERENT" in str(agreement)


async def test_the_required_digest_is_the_reference_though_most_have_another() -> None:
    old: dict[str, Any] = {"models": [OTHER]}
    pinned = {MODEL: EMBED.digest}
    async with cluster(x=old, y=old, z=old, a={}, require_digest=pinned) as made:
        agreement = await made.admin.verify(MODEL)
        assert agreement.reference == "a"
        assert agreement.outliers == ("x", "y", "z")
        assert await made.embed() == vector()


async def test_what_was_found_of_one_version_does_not_hold_for_the_next() -> None:
    async with cluster(a={}, b={}, x={"models": [OTHER]}, strategy="round_robin") as made:
        await made.admin.verify(MODEL)
        made["x"].add_model(SAME_NAME)
        await made.probe()
        for _ in range(6):
            assert await made.embed() == vector()
        assert made["x"].items > 8


async def test_a_node_that_gives_no_vectors_is_named_and_keeps_its_standing() -> None:
    async with cluster(a={}, b={}, c={}) as made:
        made["b"].fault = Fault.ERROR_500
        agreement = await made.admin.verify(MODEL)
        assert set(agreement.failed) == {"b"}
        assert agreement.outliers == ()
        assert MODEL + ":latest" not in made.node("b").distrusted


async def test_if_only_nodes_with_wrong_vectors_are_left_nothing_is_embedded() -> None:
    async with cluster(a={}, b={}, c={}) as made:
        made.transports["c"] = Rotated("c", models=[EMBED])
        await made.admin.verify(MODEL)
        for name in "ab":
            made.state.apply(name, ProbeFailed(NodeUnreachable(name, "refused")))
        for call in (made.embed, partial(made.embed_batch, ["a", "b"])):
            with pytest.raises(NoNodeAvailable, match="verify") as caught:
                await call()
            assert set(caught.value.nodes) == {"c"}


async def test_a_batch_uses_one_group_only_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    old: dict[str, Any] = {"models": [OTHER], "seconds_per_item": 0.01}
    new: dict[str, Any] = {"seconds_per_item": 0.01}
    async with cluster(a=new, x=old, b=new, y=old) as made:
        texts = [f"text {number}" for number in range(200)]
        batches = [await made.embed_batch(texts) for _ in range(3)]
        groups = {
            frozenset(name for name in "abxy" if made[name].items),
            *(frozenset(batch.report.nodes) for batch in batches if batch.report is not None),
        }
        (group,) = groups
        assert group in ({"a", "b"}, {"x", "y"})
        made_of = EMBED if group == {"a", "b"} else OTHER
        for batch in batches:
            assert [row.tobytes() for row in batch] == [vector(text, made_of) for text in texts]
        warned = [each.getMessage() for each in caplog.records if "comparable" in each.message]
        assert len(warned) == 1
        assert all(name in warned[0] for name in {"a", "b", "x", "y"} - group)
        await made.rest()


# Draining.


async def test_drain_waits_for_what_is_under_way_and_gives_no_more() -> None:
    told: list[int] = []
    async with cluster(a={"seconds_per_item": 2.0}, b={"seconds_per_item": 2.0}) as made:
        await made.warm_up()
        watcher = Watcher(made)
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(made.embed)
            await anyio.sleep(1.0)
            items, began = made["a"].items, anyio.current_time()
            await made.admin.drain("a", told.append)
            assert anyio.current_time() - began == pytest.approx(3.0), "one after another"
            assert made.node("a").in_flight == 0
            assert made["a"].items == items + 2
            for _ in range(3):
                group.start_soon(made.embed)
        assert made["a"].items == items + 2
        assert told == [2, 1]
        made.admin.resume("http://a.test")
        for _ in range(40):
            await made.embed()
        assert made["a"].items > items + 2
        changes = [each.change for each in watcher.of(NodeChanged) if each.node == "a"]
        assert changes == ["draining", "resumed"]
        await made.rest()


async def test_drain_takes_a_node_out_of_a_batch_too() -> None:
    nodes = {name: {"seconds_per_item": 0.01} for name in "ab"}
    async with cluster(**nodes) as made:
        await made.warm_up()
        texts = [f"text {number}" for number in range(1000)]

        async def drain() -> None:
            await anyio.sleep(1.0)
            await made.admin.drain("a")
            items, began = made["a"].items, anyio.current_time()
            assert began < 2.0
            assert made.node("a").in_flight == 0
            await anyio.sleep(1.0)
            assert made["a"].items == items

        batch, _ = await gather(partial(made.embed_batch, texts), drain)
        assert [row.tobytes() for row in batch] == [vector(text) for text in texts]
        await made.rest()


async def test_a_drained_node_comes_back_to_a_batch_that_is_still_running() -> None:
    nodes = {name: {"seconds_per_item": 0.01} for name in "ab"}
    async with cluster(**nodes) as made:
        await made.warm_up()

        async def pause() -> None:
            await anyio.sleep(0.5)
            await made.admin.drain("a")
            await anyio.sleep(0.5)
            items = made["a"].items
            made.admin.resume("a")
            await anyio.sleep(1.5)
            assert made["a"].items > items + 20

        batch, problem = await gather(
            partial(made.embed_batch, [f"text {number}" for number in range(1000)]), pause
        )
        assert problem is None
        assert not batch.errors
        await made.rest()


async def test_a_drain_that_is_cancelled_leaves_the_node_draining() -> None:
    async with cluster(a={"seconds_per_item": 5.0}) as made:
        made.group.start_soon(made.embed)
        await anyio.sleep(0.1)
        with anyio.move_on_after(1.0):
            await made.admin.drain("a")
        assert made.node("a").is_draining
        await made.admin.drain("a")
        assert anyio.current_time() == pytest.approx(5.0)


@pytest.mark.parametrize("name", ["typo", 3, None, "http://", "http://other.test"])
async def test_a_node_that_is_not_there(name: Any) -> None:
    async with cluster(a={}, b={}) as made:
        with pytest.raises(InvalidInput):
            await made.admin.drain(name)
        with pytest.raises(InvalidInput):
            made.admin.resume(name)


@pytest.mark.parametrize("name", ["a", "http://a.test", "http://a.test/", "HTTP://A.test:80"])
async def test_a_node_is_found_by_its_name_and_its_url(name: str) -> None:
    async with cluster(a={}, b={}) as made:
        assert made.state.find(name).name == "a"


# The pool is closed meanwhile.


async def test_what_is_under_way_when_the_pool_closes_says_so() -> None:
    given = {"load_seconds": 50.0, "seconds_per_item": 50.0}
    errors: list[BaseException] = []
    async with anyio.create_task_group() as calls:
        async with cluster(a=given, b=given) as made:

            async def run(call: Any) -> None:
                try:
                    await call()
                except BaseException as error:
                    errors.append(error)
                    if not isinstance(error, Exception):
                        raise

            for call in (
                partial(made.admin.warm, MODEL, None),
                partial(made.admin.verify, MODEL),
                made.embed,
                made.chat,
                made.stream,
            ):
                calls.start_soon(run, call)
            await anyio.sleep(1.0)
            await made.close()
        assert anyio.current_time() == pytest.approx(1.0)
    assert [type(error) for error in errors] == [PoolClosed] * 5
    assert anyio.current_time() == pytest.approx(1.0)
