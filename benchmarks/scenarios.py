"""The clusters and batches of the benchmarks, over HTTP and in simulation."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.simulator import SimNode, lower_bound

OVERHEAD = 0.001
"""Seconds per request on the node: a real server looks up its model for each."""
_FILLER = "river stone amber quiet lantern meadow copper drift willow harbor ember maple "
_PLAIN_LENGTH = 300  # about 50 words
_FATE_AT = 0.4
"""When a node's fate strikes, as a fraction of the healthy cluster's time."""

_serial = itertools.count()


@dataclass(frozen=True, slots=True)
class Scenario:
    """A batch for a cluster: `lengths` are the characters of its texts.

    At most one of the nodes has a fate, of one event.
    """

    name: str
    nodes: Sequence[SimNode]
    lengths: Sequence[int]

    @property
    def tokens(self) -> list[int]:
        """Of each text, as `fake_tokens` counts them."""
        return [-(-length // 4) + 2 for length in self.lengths]

    @property
    def bound(self) -> float:
        """Lower bound in seconds for any scheduler that knows the fate."""
        return lower_bound(self.nodes, self.tokens)

    @property
    def fate(self) -> tuple[int, float, float | str] | None:
        """(which node, seconds after the start, what happens to it), if anything does."""
        for index, node in enumerate(self.nodes):
            for at, what in node.fate:
                return index, at, what
        return None

    @property
    def is_deadly(self) -> bool:
        return self.fate is not None and self.fate[2] == "die"

    def best_node(self) -> int:
        """The node that would be done first if it worked alone and nothing happened to any."""
        tokens = self.tokens
        sound = [
            (len(tokens) * node.per_item + sum(tokens) * node.per_token, index)
            for index, node in enumerate(self.nodes)
            if not node.fate
        ]
        return min(sound)[1]

    def texts(self) -> list[str]:
        """A batch of texts that are different from each other and from all made before."""
        return [_text(length) for length in self.lengths]


def all_scenarios() -> list[Scenario]:
    """Those of the makespan benchmark. Names start with what they are about."""
    return [
        _per_item("1 at 10 ms, 2 at 100 ms: 100", (10, 100, 100), 100),
        _per_item("1 at 10 ms, 2 at 100 ms: 200", (10, 100, 100), 200),
        _per_item("10, 12, 11 ms: 100", (10, 12, 11), 100),
        _per_item("10, 12, 11 ms: 1000", (10, 12, 11), 1000),
        _per_item("2 at 10 ms, 3 at 100 ms: 500", (10, 10, 100, 100, 100), 500),
        _per_item("1 at 10 ms, 3 at 85 ms: 200", (10, 85, 85, 85), 200),
        _by_length("by length, 10 to 8000 chars: 250", (50, 100, 200), 250),
        _fated("slows down tenfold, 3 at 10 ms: 400", 10.0),
        _fated("dies, 3 at 10 ms: 400", "die"),
        _per_item("32 at 10 ms: 5000", (10,) * 32, 5000),
    ]


def _per_item(name: str, milliseconds: Sequence[float], count: int) -> Scenario:
    nodes = [
        SimNode(f"n{index}", overhead=OVERHEAD, per_item=each / 1000)
        for index, each in enumerate(milliseconds)
    ]
    return Scenario(name, nodes, [_PLAIN_LENGTH] * count)


def _by_length(name: str, microseconds: Sequence[float], count: int) -> Scenario:
    """Cost by token; lengths spread evenly over their logarithm, in random order."""
    nodes = [
        SimNode(f"n{index}", overhead=OVERHEAD, per_token=each / 1e6)
        for index, each in enumerate(microseconds)
    ]
    step = math.log(8000 / 10) / (count - 1)
    lengths = [round(10 * math.exp(step * place)) for place in range(count)]
    random.Random(1).shuffle(lengths)
    return Scenario(name, nodes, lengths)


def _fated(name: str, what: float | str) -> Scenario:
    sound = _per_item(name, (10, 10, 10), 400)
    sound.nodes[2].fate = [(_FATE_AT * sound.bound, what)]
    return sound


def _text(length: int) -> str:
    return (f"{next(_serial):x} " + _FILLER * (length // len(_FILLER) + 1))[:length]
