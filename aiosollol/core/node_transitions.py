"""Transitions of a node's known state: (state, event) -> state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from aiosollol.core.node import LoadedModel, ModelInfo, NodeState
from aiosollol.core.routing.retry import Failure, classify
from aiosollol.errors import ModelMissing, NodeError

PROBES_UNTIL_DOWN = 2


class Probed(NamedTuple):
    """A probe succeeded. `version` and `loaded` are None if not reported."""

    version: str | None
    models: Mapping[str, ModelInfo]
    loaded: Mapping[str, LoadedModel] | None = None


class Described(NamedTuple):
    """A node reported its version or loaded models. None if not reported."""

    version: str | None
    loaded: Mapping[str, LoadedModel] | None


class Measured(NamedTuple):
    """A node's agent reported measurements; see `NodeState` for units. None if unknown."""

    cpu_load: float | None
    gpu_memory_total: int | None
    gpu_memory_free: int | None
    machine: str = ""


class ProbeFailed(NamedTuple):
    """A probe failed."""

    error: NodeError


class Answered(NamedTuple):
    """A node answered a request."""


class Failed(NamedTuple):
    """A node failed a request for `model`."""

    error: NodeError
    model: str


Event: TypeAlias = Probed | Described | Measured | ProbeFailed | Answered | Failed


def advance(state: NodeState, event: Event) -> NodeState:
    """The state after `event`. Returns `state` itself if nothing changes."""
    match event:
        case Answered():
            if not state.failures and not state.missed and not state.is_down:
                return state
            return replace(state, failures=0, missed=0, is_down=False, error="")
        case Probed(version, models, loaded):
            return replace(
                state,
                version=state.version if version is None else version,
                models=models,
                loaded=state.loaded if loaded is None else loaded,
                failures=0,
                missed=0,
                is_down=False,
                error="",
            )
        case Described(version, loaded):
            return replace(
                state,
                version=state.version if version is None else version,
                loaded=state.loaded if loaded is None else loaded,
            )
        case Measured(cpu_load, gpu_memory_total, gpu_memory_free, machine):
            return replace(
                state,
                cpu_load=cpu_load,
                gpu_memory_total=gpu_memory_total,
                gpu_memory_free=gpu_memory_free,
                machine=machine or state.machine,
            )
        case ProbeFailed(error):
            missed = state.missed + 1
            # Unreachable means down. But a node that times out may only be busy, for example with
            # a model load, and is probed again first.
            is_down = classify(error) is Failure.NODE or missed >= PROBES_UNTIL_DOWN
            is_down = is_down or state.is_down or state.models is None
            return replace(state, missed=missed, is_down=is_down, error=error.detail)
        case Failed(error, model):
            return _after_failure(state, error, model)


def _after_failure(state: NodeState, error: NodeError, model: str) -> NodeState:
    failure = classify(error)
    if isinstance(error, ModelMissing):
        return state.without_model(model)
    if failure in (Failure.INPUT, Failure.BUSY):
        return state
    # An unreachable node is down at once. A wrong answer may be the fault of one input or one
    # model: the circuit breaker decides whether to send more requests.
    is_down = state.is_down or failure is Failure.NODE
    return replace(state, failures=state.failures + 1, is_down=is_down, error=error.detail)


def keeps_vectors(before: NodeState, after: NodeState, model: str) -> bool:
    """Whether `after` still has the copy of a model that `before` had, on the same server version.

    model: its full name. What was not reported before counts as unchanged.
    """
    known = (after.models or {}).get(model)
    if known is None:
        return False
    old = (before.models or {}).get(model)
    if old is not None and old.digest != known.digest:
        return False
    return not before.version or before.version == after.version
