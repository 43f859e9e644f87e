"""The smallest cases of faults that batches once did not survive, in virtual time."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from fixed_chance import fix_chance
from live_cluster import cluster, strike, virtual_time, words

from aiosollol.testing import Fault

pytestmark = pytest.mark.anyio

NODE = {"seconds_per_item": 0.01}
USUAL = 1.0
"""Seconds of a batch of 300 texts on three nodes."""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


@pytest.fixture(autouse=True)
def _same_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_chance(monkeypatch, 1)  # some of these pass by luck


@pytest.mark.parametrize(
    "fault",
    [
        Fault.CUT_JSON,
        Fault.TOO_FEW,
        Fault.HTML,
        Fault.HTML_404,
        Fault.JSON_401,
        Fault.REDIRECT,
    ],
)
async def test_one_wrong_answer_does_not_convict_a_text(fault: Fault) -> None:
    async with cluster(a=NODE) as made:
        await made.embed_batch(words(40))
        made["a"].fail_next(fault)
        found = await made.embed_batch(words(2))
        assert not found.errors


@pytest.mark.parametrize("fault", [Fault.REFUSE, Fault.HTML_502, Fault.BUSY_503, Fault.RESET])
async def test_one_node_does_not_convict_a_text_while_another_is_down(fault: Fault) -> None:
    async with cluster(a=NODE, b={**NODE, "poison": {"arsenic"}}) as made:
        await made.embed_batch(words(40))
        made.group.start_soon(made.monitor.watch, "a")
        made.group.start_soon(strike, made, fault, "a", 3.0, 0.0)
        await anyio.sleep(0.001)
        found = await made.embed_batch([*words(40), "with arsenic"])
        assert not found.errors


async def test_a_text_waits_ten_seconds_for_a_node_that_is_down_and_holds_up_no_other() -> None:
    async with cluster(a=NODE, b={**NODE, "poison": {"arsenic"}}) as made:
        await made.embed_batch(words(40))
        made["a"].fault = Fault.REFUSE
        began = anyio.current_time()
        done_at: dict[int, float] = {}

        def on_progress(done: int, total: int) -> None:
            done_at[done] = anyio.current_time() - began

        texts = [*words(40), "with arsenic"]
        found = await made.embed_batch(texts, on_progress=on_progress)
        assert list(found.errors) == [40]
        assert done_at[40] < 2 * USUAL
        assert 10.0 <= done_at[41] < 11.0


@pytest.mark.parametrize("seconds", [1.0, 3.0, 20.0])
async def test_nodes_that_hang_for_a_while_cost_little_more(seconds: float) -> None:
    async with cluster(a=NODE, b=NODE, c=NODE) as made:
        await made.embed_batch(words(40))
        made.group.start_soon(strike, made, Fault.HANG, "abc", seconds, USUAL / 3)
        began = anyio.current_time()
        found = await made.embed_batch(words(300))
        assert not found.errors
        assert anyio.current_time() - began <= 4 * USUAL + seconds


@pytest.mark.parametrize(("hanging", "sound"), [("ab", "c"), ("abc", "def")])
async def test_hanging_nodes_do_not_hold_up_a_batch(hanging: str, sound: str) -> None:
    async with cluster(**dict.fromkeys(hanging + sound, NODE)) as made:
        await made.embed_batch(words(40))
        made.group.start_soon(strike, made, Fault.HANG, hanging, 1000.0, 0.1)
        began = anyio.current_time()
        found = await made.embed_batch(words(300))
        assert not found.errors
        assert anyio.current_time() - began < 10.0


@pytest.mark.parametrize("how", ["poison", "crash_on"])
@pytest.mark.parametrize("count", [2, 40, 300])
async def test_a_bad_text_and_a_hanging_node_do_not_hold_up_a_batch(count: int, how: str) -> None:
    node = {**NODE, how: {"arsenic"}}
    async with cluster(a=node, b=node) as made:
        await made.embed_batch(words(40))
        made["a"].fault = Fault.HANG
        began = anyio.current_time()
        found = await made.embed_batch([*words(count), "with arsenic"])
        assert list(found.errors) == [count]
        assert anyio.current_time() - began < 10.0


@pytest.mark.parametrize("names", ["a", "abc"])
async def test_a_refusal_of_what_was_answered_before_passes(names: str) -> None:
    async with cluster(**dict.fromkeys(names, NODE)) as made:
        await made.embed_batch(words(40))
        made.group.start_soon(strike, made, Fault.BAD_400_NO_EMBEDDINGS, names, 1.0, USUAL / 3)
        found = await made.embed_batch(words(300))
        assert not found.errors


async def test_a_list_that_fails_does_not_convict_its_last_open_text() -> None:
    a = {**NODE, "load_seconds": 0.3, "poison": {"arsenic", "cyanide"}}
    async with cluster(a=a, b={**NODE, "overhead": 0.005, "crash_on": {"dynamite"}}) as made:
        texts = words(7)
        texts[0] += " with dynamite"  # only a can embed it
        texts[2] += " with cyanide"
        texts[6] += " with arsenic"  # only b can embed these
        found = await made.embed_batch(texts)
        assert not found.errors
