"""How what happens to a node changes what is known of it: (state, event) -> state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from aiosollol.core.node import LoadedModel, ModelInfo, NodeState
from aiosollol.core.resilience import Failure, classify
from aiosollol.errors import ModelMissing, NodeError

FAILURES_UNTIL_DOWN = 3


class Probed(NamedTuple):
    """A node told what it has. `version` and `loaded` are None where that was not learned."""

    version: str | None
    models: Mapping[str, ModelInfo]
    loaded: Mapping[str, LoadedModel] | None = None


class Described(NamedTuple):
    """A node told more of itself. None is what was not learned."""

    version: str | None
    loaded: Mapping[str, LoadedModel] | None


class ProbeFailed(NamedTuple):
    """A node did not answer when asked what it is."""

    error: NodeError


class Answered(NamedTuple):
    """A node answered a request."""


class Failed(NamedTuple):
    """A node failed a request for `model`."""

    error: NodeError
    model: str


Event: TypeAlias = Probed | Described | ProbeFailed | Answered | Failed


def advance(state: NodeState, event: Event) -> NodeState:
    """The state after `event`. Returns `state` itself if nothing changes."""
    match event:
        case Answered():
            if not state.failures and not state.is_down:
                return state
            return replace(state, failures=0, is_down=False, error="")
        case Probed(version, models, loaded):
            return replace(
                state,
                version=state.version if version is None else version,
                models=models,
                loaded=state.loaded if loaded is None else loaded,
                failures=0,
                is_down=False,
                error="",
            )
        case Described(version, loaded):
            return replace(
                state,
                version=state.version if version is None else version,
                loaded=state.loaded if loaded is None else loaded,
            )
        case ProbeFailed(error):
            return replace(state, failures=state.failures + 1, is_down=True, error=error.detail)
        case Failed(error, model):
            return _after_failure(state, error, model)


def _after_failure(state: NodeState, error: NodeError, model: str) -> NodeState:
    failure = classify(error)
    if isinstance(error, ModelMissing):
        return state.without_model(model)
    if failure in (Failure.INPUT, Failure.BUSY):
        return state
    failures = state.failures + 1
    # Who cannot be reached is down at once; a wrong answer may be the fault of one input.
    is_down = failure is Failure.NODE or failures >= FAILURES_UNTIL_DOWN
    return replace(state, failures=failures, is_down=state.is_down or is_down, error=error.detail)
