"""The progress of one model being pulled or made on several nodes, as one. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_SUCCESS = "success"


class Progress:
    """Lines of several nodes in, lines for one client out.

    What a digest has is added up over the nodes; each other status is told when the first node has
    come to it. Success is told by `end`, when all have come to theirs.
    """

    def __init__(self, nodes: Sequence[str]) -> None:
        self._nodes = list(nodes)
        self._told: set[str] = set()
        self._completed: dict[str, dict[str, int]] = {}
        self._totals: dict[str, int] = {}
        self._succeeded: set[str] = set()
        self._failed: dict[str, str] = {}

    def feed(self, node: str, line: Mapping[str, Any]) -> dict[str, Any] | None:
        """What to tell the client of a line of `node`; None if it says nothing new."""
        if "error" in line:
            self.fail(node, str(line["error"]))
            return None
        status, digest = str(line.get("status", "")), line.get("digest")
        if status == _SUCCESS:
            self._succeeded.add(node)
            return None
        if not isinstance(digest, str):
            if status in self._told:
                return None
            self._told.add(status)
            return {"status": status}
        total, completed = line.get("total"), line.get("completed")
        if isinstance(total, int):
            self._totals[digest] = max(total, self._totals.get(digest, 0))
        done = self._completed.setdefault(digest, {})
        if isinstance(completed, int):
            done[node] = completed
        whole = self._totals.get(digest, 0) * len(self._nodes)
        told = {"status": status, "digest": digest, "total": whole}
        return {**told, "completed": sum(done.values())} if done else told

    def fail(self, node: str, message: str) -> None:
        """`node` has failed, and the others go on."""
        self._failed.setdefault(node, message)

    def end(self) -> dict[str, Any]:
        """The last line: success, or what went wrong on which node."""
        for node in self._nodes:
            if node not in self._succeeded:
                self.fail(node, "it ended before it was done")
        if not self._failed:
            return {"status": _SUCCESS}
        if len(self._nodes) == 1:
            return {"error": next(iter(self._failed.values()))}
        words = "; ".join(f"{node}: {message}" for node, message in self._failed.items())
        done = len(self._nodes) - len(self._failed)
        return {"error": f"done on {done} of {len(self._nodes)} nodes; {words}"}
