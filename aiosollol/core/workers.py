"""The workers of an engine: which of them can do a batch, and what a failure there means."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from aiosollol.core.engines import EngineOutcome
from aiosollol.errors import (
    EngineError,
    ModelNotFound,
    NoNodeAvailable,
    PoolClosed,
    SollolError,
)

LOCAL_HINT = "addresses such as 127.0.0.1 mean the worker's own machine"
MOST_TRIES = 3
"""Workers that are given a partition before its failure counts."""


class WorkerState(NamedTuple):
    """A worker as its client knows it. problem: why it is of no use, "" if it is or may be.

    up: the nodes that answer it, None if it has not told yet. down: those that do not, with why.
    """

    name: str
    threads: int
    problem: str = ""
    up: frozenset[str] | None = None
    down: Mapping[str, str] = {}


class Fitness(NamedTuple):
    """fit: the workers for a batch. unfit: worker -> why it is none. is_final: whether all have
    told how they are."""

    fit: tuple[WorkerState, ...]
    unfit: Mapping[str, str]
    is_final: bool


def fitness(workers: Iterable[WorkerState], nodes: Collection[str]) -> Fitness:
    """Who of `workers` reaches any of `nodes`, those that have the model."""
    fit, unfit, is_final = [], {}, True
    for worker in workers:
        if worker.problem:
            unfit[worker.name] = worker.problem
        elif worker.up is None:
            is_final = False
        elif worker.up.isdisjoint(nodes):
            reasons = [why for name, why in worker.down.items() if name in nodes]
            unfit[worker.name] = f"reaches no node that has the model: {'; '.join(reasons)}"
        else:
            fit.append(worker)
    return Fitness(tuple(fit), unfit, is_final)


def taking_part(fit: Sequence[WorkerState], slots: int) -> Sequence[WorkerState]:
    """Those that are given partitions: no more than can have a slot of a node at once."""
    return sorted(fit)[: max(1, slots)] if len(fit) > slots else fit


def room(worker: WorkerState) -> int:
    """How many partitions a worker has in hand: one waits, so that none waits for the client."""
    return max(1, worker.threads) + 1


def confined(found: Fitness) -> list[str] | None:
    """Where a task may run that is not to come to an unfit worker; None for anywhere.

    Hosts, so that a worker that is started again there may have it; or the workers themselves,
    where a host has others that are unfit.
    """
    if not found.unfit:
        return None
    hosts = {host_of(each.name) for each in found.fit}
    if hosts.isdisjoint(map(host_of, found.unfit)):
        return sorted(hosts)
    return sorted(each.name for each in found.fit)


def is_within(worker: str, places: Collection[str] | None) -> bool:
    """Whether `worker` is where a task may run, see `confined`."""
    return places is None or worker in places or host_of(worker) in places


def host_of(worker: str) -> str:
    """The host in an address such as tcp://10.0.0.2:40000."""
    return worker.partition("://")[2].rpartition(":")[0]


def nobody_fit(engine: str, scheduler: str, found: Fitness) -> EngineError:
    """Why no worker can do a batch."""
    if not found.unfit:
        return EngineError(
            engine, f"has no worker at {scheduler}: start one with: dask worker {scheduler}"
        )
    words = [f"worker {name} {why}" for name, why in list(found.unfit.items())[:3]]
    more = len(found.unfit) - len(words)
    text = f"has no worker that can do it: {'; '.join(words)}"
    text += f"; and {more} more" if more else ""
    hint = f" ({LOCAL_HINT})" if "reaches no node" in text else ""
    return EngineError(engine, text + hint)


def is_of_worker(error: SollolError) -> bool:
    """Whether a failure is one of the worker, so that another may do better."""
    return isinstance(error, NoNodeAvailable | ModelNotFound | PoolClosed | EngineError)


def failures(outcome: EngineOutcome, missing: Iterable[range], error: SollolError) -> None:
    """What is `missing` of a batch has failed, with `error`."""
    for items in missing:
        outcome.errors.update(dict.fromkeys(items, error))
