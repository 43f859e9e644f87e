"""What happens to whom: every scenario of the benchmark, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aiosollol.testing import Fault

NODES = 6
Blow = Fault | Literal["kill", "cut", "drop"]
"""A fault; kill -9, and another process on the same port; the network: plug pulled, or every packet
silently dropped."""


@dataclass(frozen=True, slots=True)
class Scene:
    """`blow` strikes the first `count` nodes in the middle of the run; None is the healthy run."""

    name: str
    blow: Blow | None
    count: int

    @property
    def is_lab(self) -> bool:
        """Whether it needs a network of its own (tests/support/netlab.py)."""
        return self.blow in ("cut", "drop") or self.name == HEALTHY_LAB


HEALTHY, HEALTHY_LAB = "healthy", "healthy, in the lab"
_NAMES = {"kill": "kill -9", "cut": "link down", "drop": "packets dropped"}


def all_scenes() -> list[Scene]:
    """The healthy run; each blow to one node and to two; the same in the lab."""
    found = [Scene(HEALTHY, None, 0)]
    here: list[Blow] = [*Fault, "kill"]
    there: list[Blow] = ["cut", "drop"]
    found += [_scene(blow, count) for count in (1, 2) for blow in here]
    found.append(Scene(HEALTHY_LAB, None, 0))
    return found + [_scene(blow, count) for count in (1, 2) for blow in there]


def _scene(blow: Blow, count: int) -> Scene:
    name = blow.name if isinstance(blow, Fault) else _NAMES[blow]
    return Scene(f"{name}, {'one node' if count == 1 else 'two nodes'}", blow, count)
