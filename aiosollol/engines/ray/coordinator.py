"""The coordinator: a detached Ray actor with a name, one for all programs in a cluster."""

from __future__ import annotations

import time
from typing import Any

from aiosollol._version import __version__
from aiosollol.core.leasing.protocol import PROTOCOL, LeaseCoordinator, MemberReport
from aiosollol.errors import EngineError, InvalidInput

ACTOR_NAME = "aiosollol-coordinator"
NAMESPACE = "aiosollol"


class CoordinatorActor:
    """A shell around `core.leasing.protocol.Commons`, with a clock. Takes and gives plain values
    only.

    What it answers has its version, whatever the question: then both ends can tell.
    """

    def __init__(self) -> None:
        self._commons = LeaseCoordinator()

    def exchange(self, told: dict[str, Any]) -> dict[str, Any]:
        """The dumped answer to a dumped report, or a dictionary with ``error``."""
        now = time.monotonic()
        self._commons.statistics(now)  # forgets who is gone
        answer: dict[str, Any] = {"version": __version__, "members": len(self._commons.members)}
        if told.get("protocol") != PROTOCOL:
            return {**answer, "protocol": PROTOCOL, "error": "protocol"}
        try:
            return answer | self._commons.exchange(MemberReport.load(told), now).dump()
        except InvalidInput as error:
            return {**answer, "protocol": PROTOCOL, "error": str(error)}

    def leave(self, member: str) -> None:
        """`member` is gone."""
        self._commons.leave(member, time.monotonic())


def check(answered: dict[str, Any]) -> dict[str, Any]:
    """`answered`, if it is an answer. Raises EngineError, which says what to do."""
    if answered.get("protocol") != PROTOCOL:
        raise EngineError(
            "ray",
            f"has a coordinator of aiosollol {answered.get('version', '?')}, which does not "
            f"understand {__version__}: use one version in all programs that share nodes; the old "
            "coordinator is replaced when the last of the others has left",
        )
    if "error" in answered:
        raise EngineError("ray", f"has a coordinator that refused our report: {answered['error']}")
    return answered


def is_replaceable(answered: dict[str, Any]) -> bool:
    """Whether it is the coordinator of another version, and nobody is there who needs it."""
    return answered.get("protocol") != PROTOCOL and answered.get("members") == 0


def find_coordinator() -> Any:
    """The actor that is there, or a new one. Blocks for a moment."""
    import ray

    return (
        ray.remote(CoordinatorActor)
        .options(
            name=ACTOR_NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
        )
        .remote()
    )
