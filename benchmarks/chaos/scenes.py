"""What happens to whom: every scenario of the benchmark, by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from aiosollol.testing import Fault

NODES = 6
Blow = Fault | Literal["kill", "cut", "drop"]
"""A fault; kill -9, and another process on the same port; the network: plug pulled, or every packet
silently dropped."""
Work = Literal["live", "batch"]


class Strike(NamedTuple):
    """A blow to one node.

    begins: seconds from the beginning of the run; None for a quarter of it.
    lasts: seconds; infinite for ever; None for until 65 % of the run. every: seconds from one blow
    to the next; 0 for only one.
    """

    index: int
    blow: Blow
    begins: float | None = None
    lasts: float | None = None
    every: float = 0.0


@dataclass(frozen=True, slots=True)
class Scene:
    """`strikes` hit the nodes during a run; none in the healthy one.

    work: live requests at a fixed rate, or one batch after another. nodes: how many there are.
    load: the rate of requests, in parts of the usual one. is_p99_judged: whether the target for the
    99th percentile applies.
    """

    name: str
    strikes: tuple[Strike, ...] = ()
    work: Work = "live"
    nodes: int = NODES
    load: float = 1.0
    is_p99_judged: bool = True

    @property
    def is_lab(self) -> bool:
        """Whether it needs a network of its own (tests/support/netlab.py)."""
        return self.blow in ("cut", "drop") or self.name == HEALTHY_LAB

    @property
    def blow(self) -> Blow | None:
        """What happens to the first of the nodes that are struck."""
        return self.strikes[0].blow if self.strikes else None

    @property
    def count(self) -> int:
        """The number of nodes that are struck."""
        return len({strike.index for strike in self.strikes})

    @property
    def is_plain(self) -> bool:
        """Whether nodes fail once, for the usual time."""
        return all(strike[2:] == (None, None, 0.0) for strike in self.strikes)

    @property
    def bad(self) -> list[Strike]:
        """The strikes that last for ever."""
        return [strike for strike in self.strikes if strike.lasts == math.inf]

    @property
    def outage(self) -> float:
        """Seconds for which all nodes fail at once."""
        if self.count < self.nodes:
            return 0.0
        return min(strike.lasts or 0.0 for strike in self.strikes)


HEALTHY, HEALTHY_LAB, HEALTHY_BATCH = "healthy", "healthy, in the lab", "healthy, batches"
_NAMES = {"kill": "kill -9", "cut": "link down", "drop": "packets dropped"}
_ALIKE = {
    Fault.ERROR_500_LOADING,
    Fault.BUSY_429_DATE,
    Fault.JSON_403,
    Fault.JSON_405,
    Fault.HTML_403,
    Fault.HTML_405,
    Fault.HTML_503,
    Fault.HTML_504,
    Fault.TEXT_503,
    Fault.TEXT_504,
}
"""Faults that differ from another one only by a number."""


def all_scenes(*, quick: bool = False) -> list[Scene]:
    """The healthy runs; each blow to one node and to two; the same in the lab; faults that come and
    go, strike all nodes, or last. quick: one node for each blow, and no blow like another."""
    here: list[Blow] = [*Fault, "kill"]
    distinct = [blow for blow in here if blow not in _ALIKE]
    there: list[Blow] = ["cut", "drop"]
    found = [Scene(HEALTHY), Scene(HEALTHY_BATCH, work="batch")]
    found += [_scene(blow, 1) for blow in (distinct if quick else here)]
    found += [] if quick else [_scene(blow, 2) for blow in distinct]
    found += _patterns("live") + _patterns("batch")
    found.append(Scene(HEALTHY_LAB))
    return found + [_scene(blow, count) for count in ((1,) if quick else (1, 2)) for blow in there]


def plain(blow: Blow, count: int) -> tuple[Strike, ...]:
    """`blow` strikes the first `count` nodes in the middle of the run."""
    return tuple(Strike(index, blow) for index in range(count))


def _scene(blow: Blow, count: int) -> Scene:
    name = blow.name if isinstance(blow, Fault) else _NAMES[blow]
    return Scene(f"{name}, {'one node' if count == 1 else 'two nodes'}", plain(blow, count))


_BLIPS = ((0.05, 3.0), (1.0, 6.0), (3.0, 0.0))
"""Seconds for which a proxy before all nodes has no server, and seconds from one to the next."""
_FLAPPING = Strike(0, Fault.REFUSE, 0.0, 3.0, 6.0)
_SLOW = Strike(1, Fault.STALL, 0.0, 8.0, 16.0)
_REFUSING = Strike(2, Fault.BAD_400_UNKNOWN, 0.0, math.inf)
_FAULTY = (
    Fault.TOO_FEW,
    Fault.BAD_400_UNKNOWN,
    Fault.TOO_FEW,
    Fault.HTML,
    Fault.JSON_401,
    Fault.ERROR_500_UNKNOWN,
    Fault.WRONG_DIM,
    Fault.CUT_JSON,
    Fault.REFUSE,
)


def _patterns(work: Work) -> list[Scene]:
    suffix = ", batches" if work == "batch" else ""

    def scene(
        name: str, strikes: Sequence[Strike], *, nodes: int = NODES, load: float = 1.0
    ) -> Scene:
        is_all = len(strikes) == nodes
        judged = work == "live" and nodes == NODES and not is_all
        return Scene(f"{name}{suffix}", tuple(strikes), work, nodes, load, judged)

    found = [
        scene(
            f"proxy without servers for {lasts:g} s",
            [Strike(index, Fault.HTML_502, None, lasts, every) for index in range(NODES)],
        )
        for lasts, every in _BLIPS
    ]
    return [
        *found,
        scene("one answers 400 for ever", [_REFUSING._replace(index=0)]),
        scene("one refuses connections for ever", [Strike(0, Fault.REFUSE, 0.0, math.inf)]),
        scene("one flaps every 3 s", [_FLAPPING]),
        scene("one is slow every other 8 s", [_SLOW._replace(index=0)]),
        scene("one flaps, one is slow, one answers 400", [_FLAPPING, _SLOW, _REFUSING]),
        scene(
            "9 faulty of 11",
            [Strike(index, blow, 0.0, math.inf) for index, blow in enumerate(_FAULTY)],
            nodes=11,
            load=0.3,
        ),
    ]
