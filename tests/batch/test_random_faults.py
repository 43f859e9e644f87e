"""Random clusters with random faults, in virtual time: what a sound node can answer is answered.

Each run takes new seeds and prints them. To repeat one: ``RANDOM_FAULTS_SEED=123 pytest ...``.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import anyio
import pytest
from fixed_chance import fix_chance
from live_cluster import Cluster, cluster, vector, virtual_time

from aiosollol.errors import SollolError
from aiosollol.testing import Fault

pytestmark = pytest.mark.anyio

FOR_EVER = float("inf")
STORM = 15.0
"""Seconds during which batches are begun: most faults that end have ended by then."""
LIMIT = 300.0
"""Seconds in which every batch and every call must have ended: far more than outages last."""

# A refusal with known words on all nodes at once is the answer to a request, not an outage.
_PASSING = [fault for fault in Fault if fault is not Fault.BAD_400_NO_EMBEDDINGS]
_KINDS = ("sound", "once", "twice", "flapping", "for ever", "mixture")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return virtual_time()


class Spell(NamedTuple):
    """A fault of a node, from `begins` for `lasts` seconds; again after each `every`, if not 0."""

    fault: Fault
    begins: float
    lasts: float
    every: float = 0.0


@dataclass(frozen=True)
class Trial:
    """A cluster, its faults by node, and the texts to embed.

    is_warm: whether each node has answered before its faults begin. probes: seconds between probes
    of the nodes.
    """

    nodes: Mapping[str, Mapping[str, Any]]
    spells: Mapping[str, Sequence[Spell]]
    texts: Sequence[str]
    is_warm: bool
    probes: float

    def sound(self) -> list[str]:
        """The nodes that never fail."""
        return [name for name in self.nodes if not self.spells[name]]

    def may_hang(self) -> bool:
        """Whether a node hangs at some time."""
        return any(each.fault is Fault.HANG for spells in self.spells.values() for each in spells)

    def may_fail(self, text: str) -> bool:
        """Whether a text may be given up: two nodes refuse it, or all that do not fail meanwhile.

        So one node that refuses it is enough while the others are down.
        """
        # A node that fails for ever may answer before, or in spite of it: SLOW_BODY is no failure.
        refusing = [name for name in self.nodes if self._refuses(name, text)]
        return len(refusing) >= 2 or (bool(refusing) and set(self.sound()) <= set(refusing))

    def _refuses(self, name: str, text: str) -> bool:
        options = self.nodes[name]
        return any(word in text for word in (*options["poison"], *options["crash_on"]))


def trial_of(rng: random.Random) -> Trial:
    names = [f"n{index}" for index in range(rng.choice([1, 2, 2, 3, 3, 4, 6, 11]))]
    poison = rng.random() < 0.5
    nodes = {name: _node(rng, poison) for name in names}
    # Mostly of one kind, so that clusters with 9 faulty nodes of 11 are among them.
    weights = [rng.random() ** 3 for _ in _KINDS]
    spells = {name: _spells(rng, rng.choices(_KINDS, weights)[0]) for name in names}
    anchor = rng.choice(names)
    is_warm = rng.random() < 0.6
    if not is_warm:
        spells[anchor] = []  # patience is for nodes that have answered before
    elif all(any(each.lasts == FOR_EVER for each in spells[name]) for name in names):
        spells[anchor] = [each for each in spells[anchor] if each.lasts < FOR_EVER]
    count = rng.choice([1, 2, 7, 40, 300, 1000])
    texts = [f"passage {index:05d}" for index in range(count)]
    for word in ("arsenic", "cyanide", "dynamite"):
        if poison:
            texts[rng.randrange(count)] += f" with {word}"
    return Trial(nodes, spells, texts, is_warm, rng.choice([1.0, 5.0]))


def _node(rng: random.Random, poison: bool) -> dict[str, Any]:
    return {
        "seconds_per_item": rng.choice([0.002, 0.01, 0.01, 0.05]),
        "overhead": rng.choice([0.0, 0.005, 0.05]),
        "load_seconds": rng.choice([0.0, 0.3]),
        "slots": rng.choice([1, 1, 4]),
        "faults_probes": rng.random() < 0.3,
        "poison": [word for word in ("arsenic", "cyanide") if poison and rng.random() < 0.7],
        "crash_on": ["dynamite"] if poison and rng.random() < 0.7 else [],
    }


def _spells(rng: random.Random, kind: str) -> list[Spell]:
    begins, lasts = rng.choice([0.0, rng.uniform(0.0, 3.0)]), rng.choice([0.05, 1.0, 3.0, 12.0])
    fault = rng.choice(_PASSING)
    match kind:
        case "once":
            return [Spell(fault, begins, lasts)]
        case "twice":
            other = rng.choice(_PASSING)
            return [Spell(fault, begins, lasts), Spell(other, begins + lasts + 1.0, lasts)]
        case "flapping":
            return [Spell(fault, begins, rng.choice([0.5, 1.0, 3.0]), rng.choice([4.0, 6.0]))]
        case "for ever":
            return [Spell(rng.choice(list(Fault)), begins, FOR_EVER)]
        case "mixture":
            # One fault after another, without a pause, for a time or for ever.
            faults = rng.sample(_PASSING, 4)
            spells = [Spell(each, begins + at, 0.5) for at, each in enumerate(faults)]
            return [*spells, Spell(fault, begins + 4.0, rng.choice([1.0, FOR_EVER]))]
        case _:
            return []


async def _strike(made: Cluster, name: str, spells: Sequence[Spell]) -> None:
    began = anyio.current_time()
    for spell in spells:
        begins = began + spell.begins
        while True:
            await anyio.sleep_until(begins)
            made[name].fault = spell.fault
            await anyio.sleep(spell.lasts)
            made[name].fault = None
            if not spell.every:
                break
            begins += spell.every


async def _probe(made: Cluster, every: float) -> None:
    while True:
        await anyio.sleep(every)
        await made.probe()


async def _begin(made: Cluster, trial: Trial) -> None:
    if trial.is_warm:
        await made.warm_up()
    for name, spells in trial.spells.items():
        made.group.start_soon(_strike, made, name, spells)
    made.group.start_soon(_probe, made, trial.probes)
    await anyio.sleep(0.001)  # so that faults that begin at once have begun


async def _batch(made: Cluster, trial: Trial) -> dict[str, SollolError]:
    """The texts in one batch after another, while faults come and go."""
    errors: dict[str, SollolError] = {}
    ends = anyio.current_time() + STORM
    while anyio.current_time() < ends:
        found = await made.embed_batch(list(trial.texts))
        for row, text in enumerate(trial.texts):
            if row not in found.errors:
                assert bytes(found[row].cast("B")) == vector(text)
        errors |= {trial.texts[row]: error for row, error in found.errors.items()}
        await anyio.sleep(0.7)
    return errors


async def _live(made: Cluster, trial: Trial) -> dict[str, SollolError]:
    """The texts one by one, by ten callers that start at different times."""
    errors: dict[str, SollolError] = {}

    async def caller(place: int) -> None:
        await anyio.sleep(place * 0.1)
        for text in trial.texts[place::10]:
            try:
                assert await made.embed(text) == vector(text)
            except SollolError as error:
                errors[text] = error

    async with anyio.create_task_group() as group:
        for place in range(10):
            group.start_soon(caller, place)
    return errors


@pytest.mark.parametrize("number", range(20))
@pytest.mark.parametrize(
    "work",
    [
        _batch,
        _live,
    ],
)
async def test_what_a_sound_node_can_answer_is_answered(
    work: Any, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = int(os.environ.get("RANDOM_FAULTS_SEED") or random.SystemRandom().getrandbits(32))
    print(f"RANDOM_FAULTS_SEED={seed}")
    fix_chance(monkeypatch, seed)
    trial = trial_of(random.Random(seed))
    print(trial)
    async with cluster(**trial.nodes) as made:
        with anyio.fail_after(LIMIT + 0.05 * len(trial.texts)):
            await _begin(made, trial)
            errors = await work(made, trial)
    missing = {text: error for text, error in errors.items() if not trial.may_fail(text)}
    if work is _live and (trial.may_hang() or not trial.sound()):
        # A model load that hangs takes all the time of a live call; and live calls do not wait for
        # nodes that answer wrongly, which is what each of them does at some time.
        return
    assert not missing
