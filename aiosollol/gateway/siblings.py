"""`Siblings`: the processes of one gateway tell each other their metrics.

Each has a Unix socket in a folder that only their user can enter. Whoever is asked for metrics
connects to all of them, and each answers with its own and hangs up. Prometheus's own way, files
that all processes map, knows no metrics that are read when asked, and counts the dead for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from prometheus_client import Metric

PROCESS = "process"
"""The label for the process of a sample, where a gateway has several."""

_SECONDS = 2.0  # for one process to answer; one that does not is left out


class Siblings:
    """folder: of the sockets. count: how many processes there are."""

    def __init__(self, folder: str, count: int) -> None:
        self._folder = folder
        self._count = count
        self._server: asyncio.Server | None = None

    async def tell(self, index: int, families: Callable[[], Iterable[Metric]]) -> None:
        """Answer the others from now on. index: which one this process is."""

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                writer.write(orjson.dumps(as_data(families())))
                await writer.drain()
            writer.close()

        path = self._path(index)
        await asyncio.to_thread(_remove, path)  # of the one before, which was killed
        self._server = await asyncio.start_unix_server(answer, path)

    async def gather(self) -> list[Metric]:
        """The families of all processes, each sample with the label of its process."""
        told = await asyncio.gather(*map(self._ask, range(self._count)))
        return merged({str(index): families for index, families in enumerate(told)})

    async def aclose(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _ask(self, index: int) -> list[Metric]:
        try:
            async with asyncio.timeout(_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._path(index))
                try:
                    data = await reader.read()
                finally:
                    writer.close()
                return from_data(orjson.loads(data))
        except (OSError, TimeoutError, orjson.JSONDecodeError):
            return []  # it is being restarted

    def _path(self, index: int) -> str:
        return os.path.join(self._folder, f"{index}.sock")


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def merged(parts: Mapping[str, Iterable[Metric]]) -> list[Metric]:
    """The families of several processes as one, each sample with the label of its process.

    They are not summed: a process that was restarted begins at 0, and only Prometheus, which sees
    each of them over time, can tell that from a counter that went back.
    """
    from prometheus_client import Metric

    found: dict[str, Metric] = {}
    for process, families in parts.items():
        for family in families:
            known = found.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                known.add_sample(sample.name, {**sample.labels, PROCESS: process}, sample.value)
    return list(found.values())


def as_data(families: Iterable[Metric]) -> list[Any]:
    """For JSON."""
    return [
        [family.name, family.type, family.documentation, [each[:3] for each in family.samples]]
        for family in families
    ]


def from_data(data: Iterable[Any]) -> list[Metric]:
    """What `as_data` made."""
    from prometheus_client import Metric

    found = []
    for name, kind, about, samples in data:
        family = Metric(name, about, kind)
        for sample in samples:
            family.add_sample(*sample)
        found.append(family)
    return found
