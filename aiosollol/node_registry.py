"""`NodeRegistry`: the nodes of a pool, with what it takes to find, keep and check them."""

from __future__ import annotations

import anyio

from aiosollol.core.node import NodeLike, NodeSpec
from aiosollol.registry import Node, Registry


class NodeRegistry(Registry):
    """All nodes. Give it to a pool, and change it while the pool runs."""
