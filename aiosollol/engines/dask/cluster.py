"""A Dask scheduler with workers on this machine, in a process beside the program's own.

``python -m aiosollol.engines.dask.cluster --workers 2`` prints one line with its address, and runs
until SIGTERM or the end of its stdin, which the system closes however the program ends.

Inside the program, a starting cluster would block the event loop for more than a second. It would
also import the program's main module in each worker, which would start another cluster unless
guarded by ``if __name__ == "__main__":``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from aiosollol.net.subprocess import announce, stopping

HOST = "127.0.0.1"
THREADS = 2
"""Partitions that a worker has at once: when the nodes run out of work near the end of one, they
start the next. These threads compute nothing."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m aiosollol.engines.dask.cluster")
    parser.add_argument("--workers", type=int, required=True)
    given = parser.parse_args(arguments)
    # Workers inherit stdout, which is not read after our one line.
    with open(os.dup(1), "w", encoding="utf-8") as answer:
        os.dup2(2, 1)
        asyncio.run(_serve(given.workers, answer))
    return 0


async def _serve(workers: int, answer: Any) -> None:
    dask, distributed = map(import_module, ("dask", "distributed"))

    # Workers forked from a process with everything loaded start fast.
    method = "forkserver" if sys.platform == "linux" else "spawn"
    dask.config.set({"distributed.worker.multiprocessing-method": method})
    with stopping(with_parent=True) as stop:
        cluster = distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=THREADS,
            processes=True,
            host=HOST,
            dashboard_address=f"{HOST}:0",  # None would listen on all interfaces, on port 8787
            silence_logs=logging.CRITICAL,
            asynchronous=True,
        )
        async with cluster:
            with contextlib.redirect_stdout(answer):
                announce(cluster.scheduler_address)
            await stop.wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        raise SystemExit(main())
