"""What a batch did, told afterwards: `Embeddings.report`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NodeShare:
    """What one node did in a batch.

    items: vectors that came from it.
    requests: requests sent to it, failed ones included.
    seconds: how long at least one of them was under way.
    retries: how many of its requests failed and had to be done again.
    """

    items: int = 0
    requests: int = 0
    seconds: float = 0.0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What a batch did. `nodes` maps node names to shares; `seconds` is the whole time.

    items: texts asked for; unique: different texts among them, each embedded once.
    """

    items: int
    unique: int
    seconds: float
    nodes: Mapping[str, NodeShare] = field(default_factory=dict)

    @property
    def retries(self) -> int:
        return sum(share.retries for share in self.nodes.values())

    @property
    def requests(self) -> int:
        return sum(share.requests for share in self.nodes.values())

    def __str__(self) -> str:
        rate = self.items / self.seconds if self.seconds > 0 else 0.0
        shares = ", ".join(f"{name} {share.items}" for name, share in self.nodes.items())
        return f"{self.items} items in {self.seconds:.2f} s ({rate:.0f}/s): {shares or 'no node'}"
