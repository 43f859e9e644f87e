"""Programs that the tests of Ray start: ``python ray_program.py FUNCTION ARGUMENTS``.

Each prints lines of JSON, and obeys the lines that it is told by stdin.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from aiosollol import OllamaPool

MODEL = "nomic-embed-text"


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


async def told() -> str:
    return (await asyncio.to_thread(sys.stdin.readline)).strip()


def connected(pool: OllamaPool) -> bool:
    sharing = pool._lifecycle._sharing
    return sharing is not None and sharing.is_connected


async def use(address: str, name: str, weight: str, kind: str, *nodes: str) -> None:
    """Keep every place on the nodes wanted, by live requests or by batches, and count vectors.

    Says when it is connected; at each line of stdin says how many vectors there were until then.
    """
    slots = 2 if len(nodes) == 1 else 3
    specs: list[dict[str, Any]] = [{"url": url, "max_concurrency": slots} for url in nodes]
    done = 0

    async def ask(pool: OllamaPool) -> None:
        nonlocal done
        while True:
            await pool.embed(MODEL, "some text", timeout=60.0)
            done += 1

    async def embed(pool: OllamaPool) -> None:
        nonlocal done
        texts = [f"passage {number}" for number in range(400)]
        before = 0

        def count(now: int, _: int) -> None:
            nonlocal done
            done = before + now

        while True:
            await pool.embed_batch(MODEL, texts, on_progress=count)
            before += len(texts)

    async with OllamaPool(
        specs,
        enable_ray=True,
        ray_address=None if address == "none" else address,
        app_name=name,
        app_weight=float(weight),
        max_waiting=1000,
        hedge_rate=0.0,
        wait_timeout=120.0,
    ) as pool:
        while not connected(pool):
            await asyncio.sleep(0.05)
        engine: Any = pool._engine_batches._engines["ray"]
        say(
            connected=True,
            sidecar=engine._link.pid,
            address=engine.stats()["address"],
            has_ray="ray" in sys.modules,
        )
        work = embed if kind == "batches" else ask
        tasks = [asyncio.create_task(work(pool)) for _ in range(1 if kind == "batches" else 12)]
        while await told():
            for task in tasks:
                if task.done():
                    task.result()
            stats = engine.stats()
            say(
                done=done,
                members=stats["members"],
                connected=connected(pool),
                leases=stats["leases"],
            )
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def kill_coordinator(address: str) -> None:
    import ray

    os.environ["RAY_AUTH_MODE"] = "token" if has_token() else "disabled"
    ray.init(address=address, namespace="aiosollol", logging_level="ERROR", log_to_driver=False)
    ray.kill(ray.get_actor("aiosollol-coordinator"))
    say(killed=True)


async def both(address: str, node: str) -> None:
    """A program that uses Ray for work of its own, and a pool that shares."""
    import ray

    ray.init(address=address, namespace="theirs", logging_level="ERROR", log_to_driver=False)

    @ray.remote(num_cpus=0)
    class Theirs:
        def answer(self) -> int:
            return 42

    theirs = Theirs.remote()
    answer = await theirs.answer.remote()
    async with OllamaPool([node], enable_ray=True, ray_address=address) as pool:
        while not connected(pool):
            await asyncio.sleep(0.05)
        is_connected = connected(pool)
        await pool.embed(MODEL, "text")
    say(
        answer=answer,
        connected=is_connected,
        namespace=ray.get_runtime_context().namespace,
        again=await theirs.answer.remote(),
    )


def has_token() -> bool:
    return os.path.exists(os.path.expanduser("~/.ray/auth_token"))


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
