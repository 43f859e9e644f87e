"""Which engine carries a batch, in what partitions, and what is told of it afterwards.

An engine is a place where batches are computed: this process (`LOCAL`), or the workers of Dask or
Ray. What it has to do is `EngineJob`, what it has done `EngineOutcome`.
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
"""How long a partition should take: long beside the way to a worker, short beside a batch, since it
is what is done again when a worker dies."""
_LEAST_ITEMS, _MOST_ITEMS = 32, 4096
_MOST_CHARACTERS = 4 << 20  # a partition passes through the scheduler of the engine


def check_engine(name: object) -> None:
    """Raises InvalidInput for what is not the name of an engine."""
    if name not in get_args(EngineName):
        names = ", ".join(map(repr, get_args(EngineName)))
        raise InvalidInput(f"engine must be one of {names}, not {name!r}")


class EngineOffer(NamedTuple):
    """An engine that is there. threshold: the fewest items that it is used for by itself.

    start_seconds: until it could begin; 0 if it runs. is_automatic: whether "auto" may take it.
    pace: times what was predicted that its large batches took; None before the first.
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

    By itself an engine is taken for `threshold` items and more, if the batch is predicted to take
    longer than the engine takes to start, and as long as it has not been seen to be slower than
    this process, whose own `pace` is as in `EngineOffer`. Raises EngineError for one that is not
    there.
    """
    if wanted == LOCAL:
        return EngineNote(LOCAL, "asked for")
    if wanted != "auto":
        if not any(offer.name == wanted for offer in offers):
            raise EngineError(
                wanted, f"is not turned on: make the pool with OllamaPool(enable_{wanted}=True)"
            )
        return EngineNote(wanted, "asked for")
    reason = ""
    for offer in offers:
        if not offer.is_automatic:
            continue
        if items < offer.threshold:
            reason = f"{items} items, fewer than the {offer.threshold} for {offer.name}"
        elif predicted_seconds < offer.start_seconds:
            reason = (
                f"predicted to take {predicted_seconds:.1f} s, "
                f"less than the {offer.start_seconds:.1f} s in which {offer.name} starts"
            )
        elif offer.pace is not None and offer.pace > pace:
            reason = (
                f"{offer.name} took {offer.pace:.2f} times what was predicted, "
                f"this process {pace:.2f} times"
            )
        else:
            return EngineNote(offer.name, f"{items} items, at least {offer.threshold}")
    return EngineNote(LOCAL, reason)


def partitions(
    texts: Sequence[str], tokens: Sequence[float], predicted_seconds: float, workers: int
) -> Iterator[range]:
    """The positions of a batch in partitions, in order, of about equal tokens.

    Each is meant to take `PARTITION_SECONDS` where `workers` share what takes `predicted_seconds`
    in all, and there are at least two for each worker, so that they end at about the same time.
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
    """What an engine has to embed: different texts, in order. tokens: estimated, per text.

    planning: how to spread each partition over nodes. predicted_seconds: of all of it, by one
    program. timeout: seconds for one request. digest: that nodes must have of the model, None for
    any.
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
    """What an engine did. `add` a partition at a time.

    nodes: per node name, what it did. counters: the same, as `NodeCounters`. errors: position ->
    error of the texts without a vector. workers: the names of those that took part. reruns: how
    many partitions were computed again. dashboard: an URL at which people can watch, if there is
    one.
    """

    nodes: dict[str, NodeShare] = field(default_factory=dict)
    counters: dict[str, NodeCounters] = field(default_factory=dict)
    errors: dict[int, SollolError] = field(default_factory=dict)
    workers: set[str] = field(default_factory=set)
    splits: int = 0
    copies: int = 0
    reruns: int = 0
    dashboard: str | None = None

    def add(
        self,
        start: int,
        nodes: Mapping[str, NodeShare],
        counters: Mapping[str, NodeCounters],
        errors: Mapping[int, SollolError],
        worker: str,
    ) -> None:
        """Count a partition that began at position `start`, which `worker` has done."""
        for name, share in nodes.items():
            self.nodes[name] = self.nodes.get(name, NodeShare()).plus(share)
        for name, each in counters.items():
            self.counters.setdefault(name, NodeCounters()).merge(each)
        self.errors.update({start + item: error for item, error in errors.items()})
        self.workers.add(worker)

    def note(self, chosen: EngineNote) -> EngineNote:
        """What is told of it: `chosen`, and how it went."""
        return EngineNote(
            chosen.name, chosen.reason, len(self.workers), self.reruns, self.dashboard
        )
