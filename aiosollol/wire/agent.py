"""An agent's report about its machine: the body of ``GET /agent``, to bytes and back.

::

    {
      "machine": "9c1f0e6d7a3b2c48",              the same for all nodes of one machine
      "ollama": "http://127.0.0.1:11434",         its Ollama, as the agent reaches it
      "version": "0.1.0",                         of the agent
      "cpu_load": 0.27,                           busy share of all cores, 0 to 1
      "memory_total": 67349266432,                bytes
      "memory_free": 51204816896,                 bytes available without swapping
      "gpus": [
        {
          "name": "NVIDIA GeForce RTX 4090",
          "memory_total": 25757220864,            bytes
          "memory_free": 19327352832,             bytes
          "utilisation": 0.63                     share of time it was busy, 0 to 1
        }
      ]
    }

A field that is null or missing is unknown. Fields we do not know are ignored, so that agents and
pools of different versions work together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from aiosollol.errors import ProtocolError
from aiosollol.wire.ollama.client import dump_whole, load

AGENT_PATH = "/agent"


class Gpu(NamedTuple):
    """One GPU. Memory is in bytes, `utilisation` 0 to 1; None if unknown."""

    name: str = ""
    memory_total: int | None = None
    memory_free: int | None = None
    utilisation: float | None = None


class AgentReport(NamedTuple):
    """A machine's state, as reported by its agent. None if unknown.

    machine: its id, "" if not reported.
    ollama: URL of its node, as the agent itself reaches it.
    version: of the agent.
    cpu_load: busy share of all cores over the last seconds, 0 to 1.
    memory_total, memory_free: bytes of main memory; free is available without swapping.
    """

    machine: str = ""
    ollama: str = ""
    version: str = ""
    cpu_load: float | None = None
    memory_total: int | None = None
    memory_free: int | None = None
    gpus: tuple[Gpu, ...] = ()

    @property
    def gpu_memory_total(self) -> int | None:
        """Bytes of all GPUs that report it; None if none does."""
        return _sum(gpu.memory_total for gpu in self.gpus)

    @property
    def gpu_memory_free(self) -> int | None:
        """Free bytes of all GPUs that report it; None if none does."""
        return _sum(gpu.memory_free for gpu in self.gpus)

    @property
    def gpu_name(self) -> str:
        """Names of the GPUs, "" without any: ``2 x NVIDIA L4, NVIDIA A2``."""
        names = [gpu.name or "GPU" for gpu in self.gpus]
        counted = ((names.count(name), name) for name in dict.fromkeys(names))
        return ", ".join(name if count == 1 else f"{count} x {name}" for count, name in counted)


def dump_report(report: AgentReport) -> bytes:
    """`report` as JSON, with every field; unknown ones are null."""
    fields = report._asdict()
    return dump_whole({**fields, "gpus": [gpu._asdict() for gpu in report.gpus]})


def load_report(node: str, body: bytes) -> AgentReport:
    """Read the body of ``GET /agent``; missing fields are None, or "".

    Raises ProtocolError, which names `node` and the field, for an impossible report: no JSON
    object, a string instead of a number, a negative size, more free than total, a load above 1.
    """
    answer = load(node, body)
    gpus = answer.get("gpus")
    if gpus is None:
        gpus = []
    if not isinstance(gpus, list):
        raise _nonsense(node, "gpus", gpus, "a list")
    total, free = _memory(node, answer, "")
    return AgentReport(
        _text(node, answer, "machine"),
        _text(node, answer, "ollama"),
        _text(node, answer, "version"),
        _share(node, answer, "cpu_load"),
        total,
        free,
        tuple(_gpu(node, entry, f"gpus[{index}].") for index, entry in enumerate(gpus)),
    )


def _gpu(node: str, entry: object, prefix: str) -> Gpu:
    if not isinstance(entry, dict):
        raise _nonsense(node, prefix.rstrip("."), entry, "an object")
    total, free = _memory(node, entry, prefix)
    name = _text(node, entry, "name", prefix)
    return Gpu(name, total, free, _share(node, entry, "utilisation", prefix))


def _memory(node: str, entry: Mapping[str, Any], prefix: str) -> tuple[int | None, int | None]:
    total = _size(node, entry, "memory_total", prefix)
    free = _size(node, entry, "memory_free", prefix)
    if total is not None and free is not None and free > total:
        raise _nonsense(node, f"{prefix}memory_free", free, f"at most memory_total, {total}")
    return total, free


def _text(node: str, entry: Mapping[str, Any], key: str, prefix: str = "") -> str:
    value = entry.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _nonsense(node, f"{prefix}{key}", value, "a string")
    return value


def _size(node: str, entry: Mapping[str, Any], key: str, prefix: str) -> int | None:
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _nonsense(node, f"{prefix}{key}", value, "a number of bytes")
    return value


def _share(node: str, entry: Mapping[str, Any], key: str, prefix: str = "") -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise _nonsense(node, f"{prefix}{key}", value, "a number from 0 to 1")
    return float(value)


def _nonsense(node: str, field: str, value: object, expected: str) -> ProtocolError:
    return ProtocolError(node, f"its agent says that {field!r} is {value!r:.60}, not {expected}")


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
