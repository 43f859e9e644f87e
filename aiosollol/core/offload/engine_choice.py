"""Choose the engine for a batch, cut it into partitions, and collect the outcome.

An engine computes batches: this process (`LOCAL`), or the workers of Dask or Ray. Its input is an
`EngineJob`, its result an `EngineOutcome`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from aiosollol.core.report import EngineNote, NodeShare
from aiosollol.core.request import EmbedSettings
from aiosollol.core.scheduling.planner import PlanOptions
from aiosollol.core.stats import NodeCounters
from aiosollol.errors import EngineError, InvalidInput, SollolError

EngineName = Literal["auto", "local", "dask", "ray"]
LOCAL = "local"

PARTITION_SECONDS = 2.0
"""Target duration of a partition: long compared with the transfer to a worker, but short compared
with a batch, because a whole partition is repeated if a worker dies."""
_LEAST_ITEMS, _MOST_ITEMS = 32, 4096
_MOST_CHARACTERS = 4 << 20  # a partition passes through the scheduler of the engine


def check_engine(name: object) -> None:
    """Raises InvalidInput if `name` is not the name of an engine."""
    if name not in get_args(EngineName):
        names = ", ".join(map(repr, get_args(EngineName)))
        raise InvalidInput(f"engine must be one of {names}, not {name!r}")


class EngineOffer(NamedTuple):
    """An available engine.

    start_seconds: time until it could start; 0 if it is running.
    threshold: minimum number of items for its use with "auto".
    is_automatic: whether "auto" may use it.
    pace: actual / predicted time of its large batches; None before the first.
    """

    name: str
    start_seconds: float
    threshold: int
    is_automatic: bool = True
    pace: float | None = None


def choose(
    wanted: str,
    offers: Sequence[EngineOffer],
    items: int,
    predicted_seconds: float,
    pace: float = 1.0,
) -> EngineNote:
    """The engine for a batch of `items`, with the reason.

    "auto" uses an engine for at least `threshold` items if the batch is predicted to take longer
    than the engine's start, unless its pace is worse than `pace`, that of this process. Raises
    EngineError if the requested engine is not available.
    """
    if wanted == LOCAL:
        return EngineNote(LOCAL, "requested")
    if wanted != "auto":
        if not any(offer.name == wanted for offer in offers):
            raise EngineError(
                wanted, f"is not enabled: create the pool with OllamaPool(enable_{wanted}=True)"
            )
        return EngineNote(wanted, "requested")
    reason = ""
    for offer in offers:
        if not offer.is_automatic:
            continue
        if items < offer.threshold:
            reason = f"{items} items, fewer than the {offer.threshold} for {offer.name}"
        elif predicted_seconds < offer.start_seconds:
            reason = (
                f"predicted to take {predicted_seconds:.1f} s, "
                f"less than the {offer.start_seconds:.1f} s that {offer.name} needs to start"
            )
        elif offer.pace is not None and offer.pace > pace:
            reason = (
                f"{offer.name} took {offer.pace:.2f} times the predicted time, "
                f"this process {pace:.2f} times"
            )
        else:
            return EngineNote(offer.name, f"{items} items, at least {offer.threshold}")
    return EngineNote(LOCAL, reason)


def partitions(
    texts: Sequence[str], tokens: Sequence[float], predicted_seconds: float, workers: int
) -> Iterator[range]:
    """The positions of a batch in partitions of about equal tokens, in order.

    Each should take `PARTITION_SECONDS` if `workers` share a batch of `predicted_seconds`. There
    are at least two per worker, so that all workers finish at about the same time.
    """
    total, count = sum(tokens), len(texts)
    wanted = max(2.0, predicted_seconds / PARTITION_SECONDS) * max(1, workers)
    share = total / min(max(wanted, count / _MOST_ITEMS), max(1.0, count / _LEAST_ITEMS))
    start, held, characters = 0, 0.0, 0
    for position, (text, each) in enumerate(zip(texts, tokens, strict=True)):
        is_full = held >= share or position - start >= _MOST_ITEMS
        if position > start and (is_full or characters + len(text) > _MOST_CHARACTERS):
            yield range(start, position)
            start, held, characters = position, 0.0, 0
        held += each
        characters += len(text)
    if start < count:
        yield range(start, count)


@dataclass(frozen=True, slots=True)
class EngineJob:
    """A batch for an engine.

    texts: distinct texts, in order.
    tokens: estimated tokens of each text.
    planning: how to spread each partition over nodes.
    predicted_seconds: predicted time of the batch in one program.
    timeout: seconds for one request.
    digest: required digest of the model; None for any.
    """

    settings: EmbedSettings
    texts: Sequence[str]
    tokens: Sequence[float]
    planning: PlanOptions
    predicted_seconds: float
    timeout: float
    digest: str | None = None


@dataclass(slots=True)
class EngineOutcome:
    """The result of an `EngineJob`, accumulated with `add` per partition.

    nodes: share of each node, by name.
    counters: the same as `NodeCounters`.
    errors: errors of the texts without a vector, by position.
    workers: names of the workers that took part.
    reruns: number of partitions computed again.
    dashboard: URL of the engine's dashboard, if it has one.
    truncated: number of distinct texts that appear to be truncated.
    """

    nodes: dict[str, NodeShare] = field(default_factory=dict)
    counters: dict[str, NodeCounters] = field(default_factory=dict)
    errors: dict[int, SollolError] = field(default_factory=dict)
    workers: set[str] = field(default_factory=set)
    splits: int = 0
    copies: int = 0
    reruns: int = 0
    dashboard: str | None = None
    truncated: int = 0

    def add(
        self,
        start: int,
        nodes: Mapping[str, NodeShare],
        counters: Mapping[str, NodeCounters],
        errors: Mapping[int, SollolError],
        worker: str,
    ) -> None:
        """Add a partition that starts at position `start`, done by `worker`."""
        for name, share in nodes.items():
            self.nodes[name] = self.nodes.get(name, NodeShare()).plus(share)
        for name, each in counters.items():
            self.counters.setdefault(name, NodeCounters()).merge(each)
        self.errors.update({start + item: error for item, error in errors.items()})
        self.workers.add(worker)

    def note(self, chosen: EngineNote) -> EngineNote:
        """The note for the report: `chosen`, completed with the outcome."""
        return EngineNote(
            chosen.name, chosen.reason, len(self.workers), self.reruns, self.dashboard
        )
