"""Programs that share nodes, and batches, on real Ray: real processes, real HTTP, real deaths."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pathlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from importlib.util import find_spec
from typing import Any

import pytest
from conftest import unmet
from dask_parts import HIDDEN, need
from ray_parts import (
    PATIENCE,
    Program,
    RayPlace,
    end_cluster,
    free_port,
    program,
    ray_head,
    ray_place,
)

need("ray")

from aiosollol import OllamaPool  # noqa: E402 (what follows `need`)
from aiosollol.core.offload.engine_choice import EngineOutcome  # noqa: E402
from aiosollol.errors import BadRequest, EngineError  # noqa: E402
from aiosollol.testing import FakeModel, FakeOllama, FakeOllamaProcess, fake_vector  # noqa: E402

pytestmark = pytest.mark.anyio

MODEL = FakeModel("nomic-embed-text", dim=8)
NAME = "nomic-embed-text"


@pytest.fixture(scope="module")
def place() -> Iterator[RayPlace]:
    with ray_place() as made:
        yield made


@pytest.fixture(scope="module")
async def head(anyio_backend: str, place: RayPlace) -> AsyncIterator[str]:
    """The address of a cluster that tests leave as it is."""
    async with ray_head(place) as address:
        yield address


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch, place: RayPlace) -> RayPlace:
    """For pools in this process: their sidecars are in the same place as the cluster."""
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    return place


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.02)


def engine_of(pool: OllamaPool) -> Any:
    return pool._engine_batches._engines["ray"]


def is_sharing(pool: OllamaPool) -> bool:
    return pool._lifecycle._sharing is not None and pool._lifecycle._sharing.is_connected


# Sharing.


async def test_two_programs_find_each_other_and_what_the_first_started_ends_with_it() -> None:
    with ray_place() as own:
        async with (
            FakeOllamaProcess(models=[MODEL], seconds_per_item=0.01, slots=2) as node,
            program(own, "use", "none", "one", "1", "live", node.url) as one,
        ):
            first = await one.said()
            assert not first["has_ray"]  # the sidecar has, the program has not
            async with program(own, "use", "none", "two", "1", "live", node.url) as two:
                assert (await two.said())["address"] == first["address"]
                async with asyncio.timeout(PATIENCE):
                    while True:  # one slot each
                        said = await one.ask(), await two.ask()
                        if [sum(each["leases"].values()) for each in said] == [1, 1]:
                            break
                        await asyncio.sleep(0.1)
                await two.end()
            async with asyncio.timeout(PATIENCE):
                while (await one.ask())["members"] > 1:
                    await asyncio.sleep(0.1)
            await one.end()
        assert own.processes() == []


async def test_four_programs_share_by_weight_and_a_dead_one_gives_its_slots_back(
    place: RayPlace, head: str
) -> None:
    weights = {"a": 3, "b": 1, "c": 1, "d": 1}
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(
                FakeOllamaProcess(models=[MODEL], seconds_per_item=0.04, slots=3)
            )
            for _ in range(2)
        ]
        urls = [node.url for node in nodes]
        programs: dict[str, Program] = {}
        for name, weight in weights.items():
            arguments = ("use", "auto", name, str(weight), "live", *urls)
            programs[name] = await stack.enter_async_context(program(place, *arguments))
        sidecars = {name: (await each.said())["sidecar"] for name, each in programs.items()}

        async def ask() -> list[dict[str, Any]]:
            return await asyncio.gather(*(each.ask() for each in programs.values()))

        async def after(requests: int) -> list[dict[str, Any]]:
            """What they say when so many more are done, however long that takes."""
            said = await ask()
            enough = sum(each["done"] for each in said) + requests
            async with asyncio.timeout(PATIENCE):
                while sum(each["done"] for each in said) < enough:
                    await asyncio.sleep(0.5)
                    said = await ask()
            return said

        async def until_leases(slots: list[int]) -> None:
            async with asyncio.timeout(PATIENCE):
                while [sum(each["leases"].values()) for each in await ask()] != slots:
                    await asyncio.sleep(0.1)

        # Those that came first have had what the others did not want yet: until that has settled.
        await until_leases([3, 1, 1, 1])
        start = [each["done"] for each in await after(1000)]
        said = await after(3000)
        await until_leases([3, 1, 1, 1])  # all of them are still connected
        shares = {
            name: each["done"] - before
            for name, each, before in zip(programs, said, start, strict=True)
        }
        total = sum(shares.values())
        # Alone on its machine each is within some 3 % of this; here a program may have to wait
        # for a processor. Without weights all would have a quarter.
        assert shares["a"] / total == pytest.approx(1 / 2, rel=0.2), shares
        for name in "bcd":
            assert shares[name] / total == pytest.approx(1 / 6, rel=0.2), shares

        # Nobody is left to tell that it has died: its lease has to end by itself.
        place.kill_one(sidecars["a"])
        programs.pop("a").kill()
        died = time.monotonic()
        await until_leases([2, 2, 2])
        unnoticed = time.monotonic() - died

        # The system tells the sidecar of the next one, which leaves in its place, and sooner.
        programs.pop("b").kill()
        died = time.monotonic()
        await until_leases([3, 3])
        assert time.monotonic() - died < unnoticed


async def test_a_coordinator_that_is_killed_is_replaced(place: RayPlace, head: str) -> None:
    async with (
        FakeOllamaProcess(models=[MODEL], seconds_per_item=0.01) as node,
        program(place, "use", "auto", "one", "1", "live", node.url) as one,
    ):
        await one.said()
        async with program(place, "kill_coordinator", head) as killer:
            assert (await killer.said())["killed"]
        said = await one.ask()
        async with asyncio.timeout(PATIENCE):
            while not said["connected"] or said["members"] != 1:
                await asyncio.sleep(0.1)
                said = await one.ask()
        assert (await one.ask())["done"] >= said["done"]


async def test_when_the_cluster_ends_programs_go_on_alone_and_return_to_the_next_one() -> None:
    with ray_place() as own:
        port = free_port()
        async with (
            FakeOllamaProcess(models=[MODEL], seconds_per_item=0.01) as node,
            AsyncExitStack() as stack,
        ):
            async with ray_head(own, port) as address:
                one = await stack.enter_async_context(
                    program(own, "use", address, "one", "1", "live", node.url)
                )
                assert (await one.said())["connected"]
                end_cluster(own)
            async with asyncio.timeout(PATIENCE):
                while (await one.ask())["connected"]:
                    await asyncio.sleep(0.2)
            alone = (await one.ask())["done"]
            async with asyncio.timeout(PATIENCE):
                while (await one.ask())["done"] <= alone:  # it has not stopped working
                    await asyncio.sleep(0.2)
            async with ray_head(own, port):
                async with asyncio.timeout(PATIENCE):
                    while not (await one.ask())["connected"]:
                        await asyncio.sleep(0.2)


async def test_a_program_that_uses_ray_itself_is_not_disturbed(place: RayPlace, head: str) -> None:
    async with (
        FakeOllamaProcess(models=[MODEL]) as node,
        program(place, "both", head, node.url) as one,
    ):
        said = await one.said()
        assert said == {"answer": 42, "connected": True, "namespace": "theirs", "again": 42}


async def test_without_a_cluster_the_pool_works_and_says_once_what_to_do(
    ours: RayPlace, caplog: pytest.LogCaptureFixture, unused_port: int
) -> None:
    address = f"127.0.0.1:{unused_port}"
    async with (
        FakeOllama(models=[MODEL]) as node,
        OllamaPool([node.url], enable_ray=True, ray_address=address) as pool,
    ):
        assert len(await pool.embed(NAME, "text")) == 8
        with pytest.raises(EngineError, match="ray start --head"):
            await pool.embed_batch(NAME, ["a", "b"], engine="ray")
        await until(lambda: bool(caplog.records))
        await asyncio.wait_for(_second_try(pool), PATIENCE)
        warned = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert len(warned) == 1
        assert f"does not answer at {address}" in warned[0]
        assert "without regard to other programs" in warned[0]
        assert not engine_of(pool).stats()["connected"]


async def _second_try(pool: OllamaPool) -> None:
    with contextlib.suppress(EngineError):
        await engine_of(pool)._link.start()


async def test_a_cluster_without_aiosollol_is_told_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDDEN, "utf-8")
    with ray_place() as own:
        for name, value in own.environment.items():
            monkeypatch.setenv(name, value)
        own.environment["PYTHONPATH"] = str(tmp_path)
        async with (
            ray_head(own) as address,
            FakeOllama(models=[MODEL]) as node,
            OllamaPool([node.url], enable_ray=True, ray_address=address) as pool,
        ):
            with pytest.raises(EngineError, match=r"cannot import aiosollol.*install"):
                await pool.embed_batch(NAME, ["a", "b"], engine="ray")


# Batches.


async def test_a_batch_by_workers_is_whole_and_in_order_and_survives_one_of_them(
    ours: RayPlace, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"passage {number}" for number in range(4000)]
    options: Any = {"poison": ["bad"], "models": [MODEL], "seconds_per_item": 0.006, "slots": 2}
    contributed: list[str] = []
    add = EngineOutcome.add

    def record(outcome: EngineOutcome, *partition: Any) -> None:
        contributed.append(partition[-1])
        add(outcome, *partition)

    monkeypatch.setattr(EngineOutcome, "add", record)
    async with (
        FakeOllama(**options) as one,
        FakeOllama(**options) as two,
        OllamaPool(
            [{"url": each.url, "max_concurrency": 2} for each in (one, two)],
            enable_ray=True,
            ray_address=head,
            app_name="batch",
        ) as pool,
    ):
        small = await pool.embed_batch(
            NAME, [*texts[:100], "a bad one", *texts[:50]], engine="ray", on_error="return"
        )
        assert list(small.errors) == [100]
        assert isinstance(small.errors[100], BadRequest)
        assert small.report is not None
        assert small.report.engine.name == "ray"
        workers = await asyncio.to_thread(ours.processes, "ray::WorkerActor")
        assert len(workers) == 2
        contributed.clear()
        killed = False

        def kill_one(settled: int, of: int) -> None:
            nonlocal killed
            # Both have done something, and have more to do: what is killed is to be done again.
            if not killed and len(set(contributed)) == 2:
                killed = True
                os.kill(workers[0], signal.SIGKILL)

        vectors = await pool.embed_batch(NAME, texts, engine="ray", on_progress=kill_one)
        assert killed
        expected = b"".join(fake_vector(MODEL.digest, text, 8) for text in texts)
        assert vectors.tobytes() == expected
        assert vectors.report is not None
        assert vectors.report.engine.reruns >= 1
        assert vectors.report.engine.workers == 2
        assert one.max_in_flight <= 2
        assert two.max_in_flight <= 2
        stats = engine_of(pool).stats()
        assert stats["running"]
        assert stats["workers"] == 2
        counted = pool.get_stats()
        assert counted["vectors"] >= 4000


async def test_a_cancelled_batch_ends_at_the_nodes(ours: RayPlace, head: str) -> None:
    async with (
        FakeOllama(models=[MODEL], seconds_per_item=0.5) as node,
        OllamaPool([node.url], enable_ray=True, ray_address=head) as pool,
    ):
        task = asyncio.create_task(
            pool.embed_batch(NAME, [f"text {n}" for n in range(500)], engine="ray")
        )
        await until(lambda: node.in_flight > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: node.in_flight == 0)
        assert node.cancelled > 0
        node.seconds_per_item = 0.0
        assert len(await pool.embed_batch(NAME, ["one", "two"], engine="ray")) == 2


async def test_dask_and_ray_go_together(ours: RayPlace, head: str) -> None:
    """Dask's workers use what the program has leased, beside another program on the same node."""
    if find_spec("distributed") is None:
        unmet("not installed: distributed")
    texts = [f"passage {number}" for number in range(600)]
    async with (
        FakeOllama(models=[MODEL], seconds_per_item=0.002, slots=2) as node,
        program(ours, "use", head, "other", "1", "batches", node.url) as other,
        OllamaPool(
            [{"url": node.url, "max_concurrency": 2}],
            enable_ray=True,
            ray_address=head,
            enable_dask=True,
            dask_workers=2,
        ) as pool,
    ):
        await other.said()
        await pool.embed_batch(NAME, texts[:2], engine="dask")  # starts Dask
        async with asyncio.timeout(PATIENCE):
            while not is_sharing(pool) or (await other.ask())["members"] < 2:
                await asyncio.sleep(0.05)
        vectors = await pool.embed_batch(NAME, texts, engine="dask")
        assert vectors.tobytes() == b"".join(fake_vector(MODEL.digest, text, 8) for text in texts)
        assert vectors.report is not None
        assert vectors.report.engine.name == "dask"
        assert node.max_in_flight <= 2
        stats = pool.get_stats()
        assert stats["ray"]["connected"]
        assert stats["dask"]["running"]
