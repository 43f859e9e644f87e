"""The coordinator: a named, detached Ray actor, one for all programs in a cluster."""

from __future__ import annotations

import time
from typing import Any

from aiosollol._version import __version__
from aiosollol.core.leasing.protocol import PROTOCOL, LeaseCoordinator, MemberReport
from aiosollol.errors import EngineError, InvalidInput

ACTOR_NAME = "aiosollol-coordinator"
NAMESPACE = "aiosollol"


class CoordinatorActor:
    """`core.leasing.protocol.LeaseCoordinator` with a clock, as an actor. Exchanges plain values.

    Every answer contains its version, so that both sides can detect a mismatch.
    """

    def __init__(self) -> None:
        self._commons = LeaseCoordinator()

    def exchange(self, told: dict[str, Any]) -> dict[str, Any]:
        """The dumped answer to a dumped report, or a dictionary with ``error``."""
        now = time.monotonic()
        self._commons.statistics(now)  # removes expired members
        answer: dict[str, Any] = {"version": __version__, "members": len(self._commons.members)}
        if told.get("protocol") != PROTOCOL:
            return {**answer, "protocol": PROTOCOL, "error": "protocol"}
        try:
            return answer | self._commons.exchange(MemberReport.load(told), now).dump()
        except InvalidInput as error:
            return {**answer, "protocol": PROTOCOL, "error": str(error)}

    def leave(self, member: str) -> None:
        """Remove `member`."""
        self._commons.leave(member, time.monotonic())


def check(answered: dict[str, Any]) -> dict[str, Any]:
    """`answered`, unless it is an error. Raises EngineError with advice."""
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
    """Whether the coordinator has another version, and no members."""
    return answered.get("protocol") != PROTOCOL and answered.get("members") == 0


def find_coordinator() -> Any:
    """The existing actor, or a new one. Blocks briefly."""
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
