"""Plan how to spread a batch before it starts.

A plan fixes which nodes take part: one (a *single-node stream*) or several (a *fan-out*). Its
shares are predictions; `core.scheduling.state_machine` assigns the chunks while the batch runs.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import UnionType
from typing import Literal, NamedTuple

from aiosollol.core.scheduling.cost import Cost, earliest_finish
from aiosollol.errors import InvalidInput

Policy = Literal["adaptive", "rules"]
ForceMode = Literal["sequential", "parallel"]
SameMachine = Literal["measure", "share", "one"]


class Mode(Enum):
    """The two ways to run a batch."""

    SINGLE_NODE = "single-node stream"
    FAN_OUT = "fan-out"


class Reason(Enum):
    """Why a plan was chosen; the values are those of the original library."""

    DOMINANT_NODE = "dominant_node"
    SMALL_BATCH = "small_batch"
    BALANCED_CLUSTER = "balanced_cluster"
    TOP_NODES = "top_nodes"
    SAME_MACHINE = "same_machine"
    SINGLE_NODE = "single_node"
    FORCED = "forced"
    MEASURING = "measuring"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """How a batch is planned. Raises InvalidInput for an invalid value.

    policy: "adaptive" compares predicted times; "rules" is the table of the original design.
    min_gain: fraction of the time that a fan-out must be predicted to save.
    force_mode: "sequential" or "parallel" overrides both policies.
    same_machine: for nodes on one machine, "measure" whether they are faster together, always
    "share" the work, or use only "one" of them.
    chunk_seconds: usual duration of a chunk, including its overhead.
    dominant_ratio, balanced_ratio: thresholds of "rules", as speed ratios.
    small_batch, top_batch: thresholds of "rules", in items.
    top_nodes: number of nodes that "rules" uses for an unbalanced cluster.
    """

    policy: Policy = "adaptive"
    min_gain: float = 0.05
    force_mode: ForceMode | None = None
    same_machine: SameMachine = "measure"
    chunk_seconds: float = 0.5
    dominant_ratio: float = 5.0
    balanced_ratio: float = 3.0
    small_batch: int = 20
    top_batch: int = 50
    top_nodes: int = 3

    def __post_init__(self) -> None:
        _check_choice("policy", self.policy, ("adaptive", "rules"))
        _check_choice("force_mode", self.force_mode, (None, "sequential", "parallel"))
        _check_choice("same_machine", self.same_machine, ("measure", "share", "one"))
        if not (_is_number(self.min_gain) and 0 <= self.min_gain < 1):
            raise InvalidInput(f"min_gain must be a fraction from 0 to 1, not {self.min_gain!r}")
        for name in ("chunk_seconds", "dominant_ratio", "balanced_ratio", "top_nodes"):
            value = getattr(self, name)
            if not (_is_number(value) and 0 < value < float("inf")):
                raise InvalidInput(f"{name} must be a number above 0, not {value!r}")
        for name in ("small_batch", "top_batch", "top_nodes"):
            value = getattr(self, name)
            if not (_is_number(value, int) and value >= 0):
                raise InvalidInput(f"{name} must be a whole number of at least 0, not {value!r}")


class Candidate(NamedTuple):
    """A node as the planner sees it. `ahead`: seconds of other work queued before the batch."""

    name: str
    cost: Cost
    machine: str
    ahead: float = 0.0

    @property
    def is_known(self) -> bool:
        return self.cost.observations > 0


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The size of a batch: number of items, and their tokens in total.

    Raises InvalidInput for a negative or non-numeric value.
    """

    items: int
    tokens: float

    def __post_init__(self) -> None:
        if not (_is_number(self.items, int) and self.items >= 0):
            raise InvalidInput(f"items must be a whole number of at least 0, not {self.items!r}")
        if not (_is_number(self.tokens) and 0 <= self.tokens < float("inf")):
            raise InvalidInput(f"tokens must be a number of at least 0, not {self.tokens!r}")

    @property
    def tokens_per_item(self) -> float:
        return self.tokens / self.items if self.items else 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How a batch will run. ``str(plan)`` summarises it in a sentence.

    shares: items that each node is expected to do.
    predicted_seconds: predicted duration of the batch.
    best_single_seconds: the same on the best node alone.
    even_split_seconds: the same with equal shares for all nodes.
    speed_ratio: speed of the fastest node relative to the next; 1 if there is no other.
    standby: nodes that take over if all others are lost, best first.
    trials: pairs of nodes on one machine to measure: is the pair faster than its first node?
    """

    mode: Mode
    reason: Reason
    detail: str
    items: int
    shares: Mapping[str, int]
    predicted_seconds: float
    best_single_seconds: float
    even_split_seconds: float
    speed_ratio: float = 1.0
    standby: tuple[str, ...] = ()
    trials: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        nodes = ", ".join(f"{name} {share}" for name, share in self.shares.items())
        what = f"{self.mode.value} of {_count(self.items, 'item')}"
        sentence = f"{what} ({self.reason.value}): {self.detail}; {nodes}"
        if self.reason is Reason.MEASURING:  # the predicted time is only a guess
            return sentence
        return f"{sentence}; about {self.predicted_seconds:.2f} s"


class _Choice(NamedTuple):
    """Nodes to use, and why."""

    nodes: Sequence[Candidate]
    reason: Reason
    detail: str
    trials: tuple[tuple[str, str], ...] = ()


def plan(
    view: Sequence[Candidate],
    batch: BatchShape,
    options: PlanOptions | None = None,
    verdicts: Mapping[frozenset[str], bool] | None = None,
) -> Plan:
    """The plan for `batch` over the nodes in `view`.

    verdicts: for pairs of nodes on one machine, whether they were measured faster together.
    Raises InvalidInput if `view` is empty.
    """
    if not view:
        raise InvalidInput("a plan needs at least one node")
    options = options or PlanOptions()
    # Among equally fast nodes, the one that is free first.
    ranked = sorted(view, key=lambda node: (_seconds_per_item(node, batch, options), node.ahead))
    apart = _one_machine_each(ranked, options, verdicts or {})
    if options.force_mode is not None:
        choice = _forced(ranked, apart, batch, options)
    elif len(apart.nodes) == 1:
        choice = _alone(ranked, apart)
    elif not all(node.is_known for node in apart.nodes) and options.policy == "adaptive":
        unknown = sum(not node.is_known for node in apart.nodes)
        choice = apart._replace(
            reason=Reason.MEASURING,
            detail=f"the speed of {_count(unknown, 'node')} is not known yet",
        )
    elif options.policy == "rules":
        choice = _by_rules(apart.nodes, batch, options)
    else:
        choice = _by_prediction(apart.nodes, batch, options)._replace(trials=apart.trials)
    return _as_plan(choice, ranked, apart, batch, options)


def _forced(
    ranked: Sequence[Candidate], apart: _Choice, batch: BatchShape, options: PlanOptions
) -> _Choice:
    if options.force_mode == "sequential":
        best = min(ranked, key=lambda node: _alone_seconds(node, batch, options))
        return _Choice([best], Reason.FORCED, "one node was requested")
    every = "node" if len(apart.nodes) == len(ranked) else "machine"
    return _Choice(apart.nodes, Reason.FORCED, f"every {every} was requested", apart.trials)


def _alone(ranked: Sequence[Candidate], apart: _Choice) -> _Choice:
    if len(ranked) == 1:
        return _Choice(ranked, Reason.SINGLE_NODE, "there is no other node")
    return apart._replace(reason=Reason.SAME_MACHINE)


def _one_machine_each(
    ranked: Sequence[Candidate], options: PlanOptions, verdicts: Mapping[frozenset[str], bool]
) -> _Choice:
    """The fastest node of each machine, and the nodes measured to be faster together with it."""
    if options.same_machine == "share":
        return _Choice(ranked, Reason.BALANCED_CLUSTER, "")
    fastest: dict[str, Candidate] = {}
    nodes: list[Candidate] = []
    trials: list[tuple[str, str]] = []
    for node in ranked:
        first = fastest.setdefault(node.machine, node)
        verdict = verdicts.get(frozenset((first.name, node.name)))
        if first is node or (verdict and options.same_machine == "measure"):
            nodes.append(node)
        elif verdict is None and options.same_machine == "measure":
            trials.append((first.name, node.name))
    where = f"{_count(len(ranked), 'node')} on {len(fastest)} machine"
    detail = f"{where}: one at a time, they would share it"
    return _Choice(nodes, Reason.SAME_MACHINE, detail, tuple(trials))


def _by_rules(nodes: Sequence[Candidate], batch: BatchShape, options: PlanOptions) -> _Choice:
    """The decision table of the original design."""
    ratio = speed_ratio(nodes, batch, options)
    too_few = f"{_count(batch.items, 'item')}: too few to spread"
    if ratio >= options.dominant_ratio:
        return _Choice(
            nodes[:1], Reason.DOMINANT_NODE, f"the fastest node is {ratio:.1f} times as fast"
        )
    if batch.items < options.small_batch:
        return _Choice(nodes[:1], Reason.SMALL_BATCH, too_few)
    if ratio < options.balanced_ratio and batch.items > options.small_batch:
        return _Choice(
            nodes, Reason.BALANCED_CLUSTER, f"the fastest node is only {ratio:.1f} times as fast"
        )
    if ratio >= options.balanced_ratio and batch.items > options.top_batch:
        return _Choice(
            nodes[: options.top_nodes], Reason.TOP_NODES, f"a speed ratio of {ratio:.1f}"
        )
    return _Choice(nodes[:1], Reason.SMALL_BATCH, too_few)


def _by_prediction(nodes: Sequence[Candidate], batch: BatchShape, options: PlanOptions) -> _Choice:
    """A fan-out if it is predicted to save at least `min_gain`, else the best single node."""
    ratio = speed_ratio(nodes, batch, options)
    single_seconds = _best_single(nodes, batch, options)
    shares, seconds = _shares(nodes, batch, options)
    working = [node for node in nodes if shares[node.name]]
    gain = 1 - seconds / single_seconds if single_seconds else 0.0
    if len(working) == 1 or gain < options.min_gain:
        best = min(nodes, key=lambda node: _alone_seconds(node, batch, options))
        if ratio >= options.dominant_ratio:
            reason, why = Reason.DOMINANT_NODE, f"it is {ratio:.1f} times as fast as the next"
        else:
            reason, why = Reason.SMALL_BATCH, f"spreading {_count(batch.items, 'item')}"
            why += f" would save {max(gain, 0.0):.0%}"
        return _Choice([best], reason, why)
    saving = f"{single_seconds / seconds:.1f} times as fast as the best node alone"
    if len(working) == len(nodes) and ratio < options.balanced_ratio:
        return _Choice(nodes, Reason.BALANCED_CLUSTER, saving)
    return _Choice(working, Reason.TOP_NODES, saving)


def _as_plan(
    choice: _Choice,
    ranked: Sequence[Candidate],
    apart: _Choice,
    batch: BatchShape,
    options: PlanOptions,
) -> Plan:
    shares, seconds = _shares(choice.nodes, batch, options)
    used = set(shares)
    tried = {second for _, second in choice.trials}
    return Plan(
        mode=Mode.SINGLE_NODE if len(choice.nodes) == 1 else Mode.FAN_OUT,
        reason=choice.reason,
        detail=choice.detail,
        items=batch.items,
        shares=shares,
        predicted_seconds=seconds,
        best_single_seconds=_best_single(ranked, batch, options),
        even_split_seconds=_even_split(apart.nodes, batch, options),
        speed_ratio=speed_ratio(ranked, batch, options),
        standby=tuple(n.name for n in ranked if n.name not in used and n.name not in tried),
        trials=tuple(pair for pair in choice.trials if pair[0] in used),
    )


# Predictions.


def speed_ratio(
    nodes: Sequence[Candidate], batch: BatchShape, options: PlanOptions | None = None
) -> float:
    """Speed of the fastest node relative to the next; 1 if there is no other."""
    if len(nodes) < 2:
        return 1.0
    options = options or PlanOptions()
    first, second, *_ = sorted(_seconds_per_item(node, batch, options) for node in nodes)
    return second / first if first > 0 else 1.0


def _seconds_per_item(node: Candidate, batch: BatchShape, options: PlanOptions) -> float:
    """Seconds for an average item in chunks of the usual duration, overhead included."""
    cost = node.cost
    chunk = max(options.chunk_seconds, 2 * cost.overhead)
    stretch = chunk / (chunk - cost.overhead)
    return cost.seconds_per_token * batch.tokens_per_item * stretch


def _alone_seconds(node: Candidate, batch: BatchShape, options: PlanOptions) -> float:
    return node.ahead + node.cost.overhead + batch.items * _seconds_per_item(node, batch, options)


def _best_single(nodes: Iterable[Candidate], batch: BatchShape, options: PlanOptions) -> float:
    return min(_alone_seconds(node, batch, options) for node in nodes)


def _even_split(nodes: Sequence[Candidate], batch: BatchShape, options: PlanOptions) -> float:
    """Predicted seconds if every node got the same number of items."""
    share = -(-batch.items // len(nodes))
    return max(
        node.ahead + node.cost.overhead + share * _seconds_per_item(node, batch, options)
        for node in nodes
    )


def _shares(
    nodes: Sequence[Candidate], batch: BatchShape, options: PlanOptions
) -> tuple[dict[str, int], float]:
    """Items for each node, and the earliest time at which all are done.

    That is the smallest T with ``sum(floor((T - overhead - ahead) / seconds per item)) >= items``.
    Each item goes to the node that would finish it first; all but the last few are assigned at
    once, from the water level of `cost.earliest_finish`.
    """
    paces = {node.name: max(_seconds_per_item(node, batch, options), 1e-12) for node in nodes}
    free = {node.name: node.ahead + node.cost.overhead for node in nodes}
    level = earliest_finish(((free[n], 1 / pace) for n, pace in paces.items()), batch.items)
    shares = {
        name: max(0, min(batch.items, int((level - free[name]) / pace)))
        for name, pace in paces.items()
    }
    left = batch.items - sum(shares.values())
    nexts = [(free[n] + (shares[n] + 1) * pace, n) for n, pace in paces.items()]
    heapq.heapify(nexts)
    for _ in range(left):
        finish, name = nexts[0]
        shares[name] += 1
        heapq.heapreplace(nexts, (finish + paces[name], name))
    seconds = max(
        (free[name] + share * paces[name] for name, share in shares.items() if share),
        default=0.0,
    )
    return shares, seconds


def _count(count: int, noun: str) -> str:
    return f"1 {noun}" if count == 1 else f"{count} {noun}s"


def _is_number(value: object, kind: type | UnionType = int | float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        names = ", ".join(repr(choice) for choice in choices)
        raise InvalidInput(f"{name} must be one of {names}, not {value!r}")
