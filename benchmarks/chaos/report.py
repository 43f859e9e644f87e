"""What a run showed: a row of figures, the table of all rows, and which targets are met."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.chaos.scenes import HEALTHY, HEALTHY_BATCH, HEALTHY_LAB, Scene
from benchmarks.table import Target, at_most
from benchmarks.text import aligned

SUCCESS, SLOWER, RECOVERY = 0.999, 2.0, 10.0
BAD_SHARE, LOST_SECONDS = 0.03, 1.0
_ANSWERS_OF_BAD = 10
_WINDOW = 2.0
"""Seconds over which a share is reckoned: some hundred answers of all nodes."""
_SHARE = 0.7
"""Of its healthy share, that a node has again. Less would be met by half a share and luck."""


@dataclass(slots=True)
class Row:
    """One run. Durations are seconds.

    failed: requests that gave an error, or nothing until the end. cut: streams that broke after
    their first part, which are not among them. longest: of those that succeeded. recovery: from
    healing until the last of the nodes that were struck had its share; None if nobody was struck.
    texts, missing: of batches. bad_share: of all requests after its tenth, the largest of a node
    that fails for ever; None if none does. outage: for which all nodes failed at once.
    """

    name: str
    seconds: float
    is_lab: bool
    requests: int
    wrong: int
    failed: int
    cut: int
    p50: float
    p99: float
    longest: float
    attempts: int
    hedges: int
    retries: int
    recovery: float | None
    reasons: list[str]
    is_batch: bool = False
    texts: int = 0
    missing: int = 0
    bad_share: float | None = None
    outage: float = 0.0
    is_p99_judged: bool = True

    @property
    def success(self) -> float:
        """Of the requests that another node could have answered."""
        rescuable = self.requests - self.cut
        return 1.0 - (self.failed + self.wrong) / rescuable if rescuable else 1.0


def row_of(
    scene: Scene, figures: dict[str, Any], seconds: float, struck_at: float, healed_at: float
) -> Row:
    """The figures of a run as a row."""
    outcomes = figures["outcomes"]
    results = Counter(each["result"] for each in outcomes)
    times = sorted(each["seconds"] for each in outcomes if each["result"] == "ok")
    bad = [each for each in outcomes if each["result"] != "ok"]
    shares_of_bad = (
        share_of_bad(figures["sent"], each.index, struck_at if each.begins is None else each.begins)
        for each in scene.bad
    )
    return Row(
        name=scene.name,
        seconds=seconds,
        is_lab=scene.is_lab,
        requests=len(outcomes),
        wrong=results["wrong"],
        failed=results["failed"],
        cut=results["cut"],
        p50=_quantile(times, 0.5),
        p99=_quantile(times, 0.99),
        longest=_quantile(times, 1.0),
        attempts=figures["attempts"],
        hedges=figures["hedges"],
        retries=figures["retries"],
        recovery=recovery(
            figures["shares"], range(scene.count if scene.is_plain else 0), struck_at, healed_at
        ),
        reasons=[f"{each['kind']} at {each['at']:.1f}: {each['detail']}" for each in bad],
        is_batch=scene.work == "batch",
        texts=figures["texts"],
        missing=figures["missing"],
        bad_share=max(shares_of_bad, default=None),
        outage=scene.outage,
        is_p99_judged=scene.is_p99_judged,
    )


def share_of_bad(
    sent: Sequence[tuple[float, Sequence[int]]], index: int, struck_at: float
) -> float:
    """The share of a node in all requests, after its tenth since it was struck."""
    before = max((done[index] for at, done in sent if at <= struck_at), default=0)
    counts = [done for _, done in sent if done[index] - before >= _ANSWERS_OF_BAD]
    return _parts(counts)[index] if counts else 0.0


def recovery(
    shares: Sequence[tuple[float, Sequence[int]]],
    struck: Iterable[int],
    struck_at: float,
    healed_at: float,
) -> float | None:
    """Seconds from healing to the end of the first window in which all had their share again.

    That is the share that each had before it was struck, or an equal one if that is less: though
    the nodes are equal, some get a third more than others. Infinite if it never came to that.
    """
    indices = list(struck)
    if not indices:
        return None
    usual = _parts([done for at, done in shares if 0.0 <= at <= struck_at])
    usual = [min(each, 1.0 / len(usual)) for each in usual]
    for at, _ in shares:
        if at >= healed_at:
            window = _parts([done for when, done in shares if at - _WINDOW <= when <= at])
            if all(window[index] >= _SHARE * usual[index] > 0.0 for index in indices):
                return at - healed_at
    return math.inf


def _parts(done: Sequence[Sequence[int]]) -> list[float]:
    """The part of all answers that each node gave between the first count and the last."""
    given = [last - first for first, last in zip(done[0], done[-1], strict=True)]
    return [each / max(1, sum(given)) for each in given]


def table(rows: Sequence[Row]) -> str:
    """The rows as text for a terminal."""
    head = ["scenario", "s", "requests", "wrong", "failed", "cut", "success", "p50 ms", "p99 ms"]
    lines = [[*head, "p99 ratio", "max s", "attempts", "retries", "hedges", "back s"]]
    lines[0] += ["missing", "bad share"]
    for row in rows:
        line = [row.name, f"{row.seconds:g}", str(row.requests), str(row.wrong), str(row.failed)]
        line += [str(row.cut), f"{row.success:.2%}", f"{row.p50 * 1e3:.0f}", f"{row.p99 * 1e3:.0f}"]
        healthy = _healthy(rows, row)
        line.append(f"{row.p99 / healthy.p99:.2f}" if healthy else "-")
        line += [f"{row.longest:.2f}", str(row.attempts), str(row.retries), str(row.hedges)]
        line.append("-" if row.recovery is None else f"{row.recovery:.1f}")
        line.append(f"{row.missing}/{row.texts}" if row.is_batch else "-")
        line.append("-" if row.bad_share is None else f"{row.bad_share:.1%}")
        lines.append(line)
    return "\n".join(aligned(lines))


def targets(rows: Sequence[Row]) -> list[Target]:
    """What issues 6 and 15 promise, against `rows`."""
    wrong = sum(row.wrong for row in rows)
    answers = sum(row.requests for row in rows)
    back = [(row.name, row.recovery) for row in rows if row.recovery is not None]
    slower = [
        (row.name, row.p99 / healthy.p99)
        for row in rows
        if row.is_p99_judged and (healthy := _healthy(rows, row)) and healthy is not row
    ]
    lost = [
        (row.name, row.longest - healthy.longest - row.outage)
        for row in rows
        if row.is_batch and row.outage and (healthy := _healthy(rows, row))
    ]
    bad = [(row.name, row.bad_share) for row in rows if row.bad_share is not None]
    missing = [f"{row.name} {row.missing}" for row in rows if row.missing]
    live = [row for row in rows if not row.is_batch] or rows
    least = min(live, key=lambda row: row.success)
    failing = [f"{row.name} {row.success:.2%}" for row in live if row.success < SUCCESS]
    return [
        Target("no wrong answer", wrong == 0, f"{wrong} of {answers}"),
        Target(
            f"at least {SUCCESS:.1%} succeed of what another node can be asked for",
            not failing,
            "; ".join(failing) or f"least {least.success:.2%}",
        ),
        at_most(f"p99 at most {SLOWER:g} times that of the healthy run", slower, SLOWER, digits=2),
        at_most(f"a node has its share again within {RECOVERY:g} s", back, RECOVERY, digits=2),
        Target("no text of a batch is missing", not missing, "; ".join(missing) or "none"),
        at_most(
            f"a batch loses at most an outage and {LOST_SECONDS:g} s", lost, LOST_SECONDS, digits=2
        ),
        at_most(
            f"a node that fails for ever has at most {BAD_SHARE:.0%} after its tenth request",
            bad,
            BAD_SHARE,
        ),
    ]


def _healthy(rows: Sequence[Row], row: Row) -> Row | None:
    """The run that `row` is to be compared with."""
    name = HEALTHY_LAB if row.is_lab else HEALTHY_BATCH if row.is_batch else HEALTHY
    return next((each for each in rows if each.name == name), None)


def _quantile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else math.nan
