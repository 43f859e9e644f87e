"""The canary of vectors: who is asked, when, and what happens in trouble."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import pytest
from canary_parts import NEW, WRONG, asked, left_out, use, watched
from live_cluster import EMBED, MODEL, Cluster, Watcher, gather, virtual_time

from aiosollol.core.agreement import QUICK_CANARIES
from aiosollol.core.events import NodeChanged
from aiosollol.core.node_transitions import Described, ProbeFailed
from aiosollol.errors import NodeUnreachable, NoNodeAvailable
from aiosollol.live.canary import PAUSE, RETRY_SECONDS, SECONDS
from aiosollol.testing import FakeModel, Fault

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


# Who is asked, and when.


@pytest.mark.parametrize(
    ("nodes", "used", "expected"),
    [
        ({"a": EMBED}, "a", {"a": 0}),
        ({"a": EMBED, "b": EMBED}, "a", {"a": 0, "b": 0}),
        ({"a": EMBED, "b": EMBED}, "ab", {"a": 1, "b": 1}),
        ({"a": EMBED, "b": EMBED, "c": EMBED}, "ab", {"a": 1, "b": 1, "c": 0}),
        ({"a": EMBED, "b": EMBED, "c": EMBED}, "abcabcabc", {"a": 1, "b": 1, "c": 1}),
        ({"a": EMBED, "b": EMBED, "x": NEW}, "ab", {"a": 1, "b": 1, "x": 0}),
    ],
)
async def test_each_node_in_use_is_asked_once(
    nodes: dict[str, FakeModel], used: str, expected: dict[str, int]
) -> None:
    async with watched(**nodes) as made:
        await use(made, *used)
        for _ in range(5):
            await made.probe()
            await anyio.sleep(RETRY_SECONDS)
        assert asked(made) == expected
        stats = made.stats()
        assert stats["attempts"] == stats["vectors"] == len(used), "canaries are not counted"
        made.check_rest()


async def test_chats_are_no_use_for_it() -> None:
    async with watched(a={}, b={}) as made:
        for _ in range(6):
            await made.chat()
        await anyio.sleep(100.0)
        assert asked(made) == {"a": 0, "b": 0}
        assert not any(each.items for name in "ab" for each in made[name].log)


@pytest.mark.parametrize("options", [None, {"num_ctx": 2048, "use_mmap": False}])
async def test_no_model_is_loaded_for_it(options: dict[str, Any] | None) -> None:
    given: dict[str, Any] = {"load_seconds": 7.0}
    async with watched(a=given, b=given) as made:
        embed = partial(made.embed, options=options)
        await embed()
        for name in list(made["a"].models):
            made["a"].memory.unload(made["a"].models[name].name)  # unnoticed
        await anyio.sleep(1.0)
        await embed()
        await anyio.sleep(10.0)
        assert asked(made) == {"a": 0, "b": 1}
        took = [each.seconds for name in "ab" for each in made[name].log if each.seconds >= 7.0]
        assert len(took) == 2, "a load for each of both answers"
        for _ in range(2):
            await embed()
        await anyio.sleep(RETRY_SECONDS)
        await made.probe()
        await anyio.sleep(10.0)
        assert asked(made) == {"a": 1, "b": 1}
        took = [each.seconds for name in "ab" for each in made[name].log if each.seconds >= 7.0]
        assert len(took) == 3
        await made.rest()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param([NEW, NEW], id="digest"),
        pytest.param(["0.34.0", "0.34.0"], id="version"),
    ],
)
async def test_a_change_has_them_asked_again(change: list[Any]) -> None:
    async with watched(a={}, b={}) as made:
        await use(made)
        assert asked(made) == {"a": 1, "b": 1}
        await alter(made, "a", change[0])
        await alter(made, "b", change[1])
        await made.probe()
        await anyio.sleep(60.0)
        assert asked(made) == {"a": 1, "b": 1}, "not before they are used"
        await use(made)
        assert asked(made) == {"a": 2, "b": 2}
        assert left_out(made) == ""


async def alter(made: Cluster, name: str, change: Any) -> None:
    if isinstance(change, FakeModel):
        made[name].add_model(change)
    else:
        made[name].version = change
    await made.probe()


@pytest.mark.parametrize("mends", [EMBED, "0.34.0", "verify"])
async def test_one_that_is_mended_comes_back(mends: Any) -> None:
    async with watched(a=EMBED, b=WRONG, c=EMBED) as made:
        watcher = Watcher(made)
        await use(made)
        assert left_out(made) == "b"
        made["b"].add_model(EMBED)
        await made.probe()
        await anyio.sleep(100.0)
        assert left_out(made) == "b", "it still says what it said before"
        if mends == "verify":
            assert (await made.admin.verify(MODEL)).outliers == ()
        elif isinstance(mends, str):
            await alter(made, "b", mends)
        else:
            await alter(made, "b", NEW)  # and back again, as after a pull that went wrong
            await alter(made, "b", EMBED)
        await use(made)
        assert left_out(made) == ""
        assert asked(made)["b"] == (4 if mends == "verify" else 2), (
            "verify has them alone and listed"
        )
        changes = [each.change for each in watcher.of(NodeChanged) if each.node == "b"]
        assert changes == ["vectors differ", "vectors trusted"]


async def test_one_that_only_looks_mended_is_left_out_again() -> None:
    async with watched(a=EMBED, b=WRONG, c=EMBED) as made:
        await use(made)
        await alter(made, "b", "0.34.0")
        assert left_out(made) == ""
        await use(made)
        assert left_out(made) == "b"


async def test_a_new_version_that_computes_differently_is_noticed() -> None:
    async with watched(a={}, b={}, c={}) as made:
        await use(made)
        made["b"].add_model(WRONG)
        await alter(made, "b", "0.34.0")
        await use(made, "b")
        assert left_out(made) == "b"
        for name in "ac":  # when all have it, they agree again
            made[name].add_model(WRONG)
            await alter(made, name, "0.34.0")
            await use(made, name)
        await use(made)
        assert left_out(made) == ""


# Trouble.


@pytest.mark.parametrize(
    "fault", [Fault.HANG, Fault.ERROR_500, Fault.TOO_FEW, Fault.RESET, Fault.HTML, Fault.BUSY_503]
)
async def test_a_node_that_gives_no_sample_is_asked_later(fault: Fault) -> None:
    async with watched(a={}, b={}) as made:
        await use(made, "a")
        await made.embed()
        await made.embed()
        made["b"].fault = fault
        await anyio.sleep(SECONDS + 1.0 if fault is Fault.HANG else 5.0)
        assert left_out(made) == ""
        made["b"].fault = None
        log = len(made["b"].log)
        await made.probe()
        await anyio.sleep(1.0)
        assert not any(each.items for each in list(made["b"].log)[log:]), "not at once"
        for _ in range(3):
            await anyio.sleep(RETRY_SECONDS)
            await made.probe()
        await anyio.sleep(1.0)
        assert asked(made)["a"] == 1
        assert made["b"].embedded[QUICK_CANARIES[0]] >= 1
        made.check_rest()


async def test_a_verdict_by_halves_waits_for_the_samples_on_their_way() -> None:
    async with watched(a=WRONG, b=EMBED, c={"overhead": 3.0}, d={"overhead": 9.0}) as made:
        watcher = Watcher(made)
        await use(made)
        assert left_out(made) == ""
        await anyio.sleep(3.0)
        assert left_out(made) == "a", "two of three agree, whatever d says"
        await anyio.sleep(9.0)
        told = [each.node for each in watcher.of(NodeChanged) if each.change.startswith("vectors")]
        assert told == ["a"]


async def test_one_that_hangs_holds_no_verdict_up_for_ever() -> None:
    async with watched(a=EMBED, b=WRONG, c=EMBED) as made:
        await gather(*[made.embed] * 3)
        made["c"].fault = Fault.HANG
        await anyio.sleep(PAUSE + SECONDS - 1.0)
        assert left_out(made) == ""
        await anyio.sleep(2.0)
        assert left_out(made) == "b"


async def test_nodes_leave_in_the_middle_of_it() -> None:
    slow: dict[str, Any] = {"overhead": 1.0}
    async with watched(a=slow, b=slow, c=slow) as made:
        await gather(*[made.embed] * 3)
        await anyio.sleep(PAUSE + 0.5)
        assert {made.node(name).in_flight for name in "abc"} == {1}
        made.state.apply("b", ProbeFailed(NodeUnreachable("b", "refused")))
        await made.remove("c")
        made.state.apply("a", Described("0.99.0", None))
        await anyio.sleep(100.0)
        assert left_out(made) == ""
        assert [node.in_flight for node in made.state] == [0, 0]


async def test_a_slot_is_waited_for_and_not_for_ever() -> None:
    async with watched(a={"max_concurrency": 1}, b={}) as made:
        await made.embed()
        await made.embed()
        made.node("a").allow(0)
        await anyio.sleep(SECONDS + PAUSE + 1.0)
        assert made.node("a").wanted == 0
        assert asked(made) == {"a": 0, "b": 1}
        made.node("a").allow(None)
        await anyio.sleep(RETRY_SECONDS)
        await made.probe()
        await anyio.sleep(PAUSE + 1.0)
        assert asked(made) == {"a": 1, "b": 1}
        made.check_rest()


async def test_closing_ends_it() -> None:
    async with watched(a={}, b={}) as made:
        await made.embed()
        await made.embed()
        for name in "ab":
            made[name].fault = Fault.HANG
        await anyio.sleep(PAUSE + 1.0)
        assert {made.node(name).in_flight for name in "ab"} == {1}
        await made.close()
    for node in made.state:
        assert (node.in_flight, node.wanted) == (0, 0)


async def test_if_those_that_agree_are_down_nothing_is_embedded() -> None:
    async with watched(a=EMBED, b=WRONG, c=EMBED) as made:
        await use(made)
        for name in "ac":
            made.state.apply(name, ProbeFailed(NodeUnreachable(name, "refused")))
        with pytest.raises(NoNodeAvailable, match="different vectors"):
            await made.embed()
