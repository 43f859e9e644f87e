"""Whether nodes return the same vectors for the same texts: which to ask, and which differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from operator import mul
from typing import NamedTuple

ENOUGH = 0.999
"""Two vectors count as equal from this cosine on. Other kernels and CPUs change the last digits
(measured: 0.9999995 on one node, alone vs. in a list); another quantisation changes more."""

CANARIES = (
    "The quick brown fox jumps over the lazy dog.",
    "naïve café, 北京, Ελλάδα: text is more than ASCII",
    "def f(x):\n    return x * x  # code",
    "1, 2, 3, 5, 8, 13, 21",
)
"""Short texts that exercise a tokenizer in different ways."""

QUICK_CANARIES = CANARIES[:2]
"""Those that the pool embeds by itself, beside the work."""

Vectors = Sequence[Sequence[float]]


class NodeAgreement(NamedTuple):
    """How well one node agrees with the reference node.

    digest: of the model, as reported by the node.
    alone: the smallest cosine over all canaries, each embedded in a request of its own.
    listed: the same for the canaries embedded as one list.
    """

    node: str
    digest: str
    alone: float
    listed: float

    @property
    def is_enough(self) -> bool:
        """Whether its vectors can be used in one index with the others'."""
        return min(self.alone, self.listed) >= ENOUGH


class Agreement(NamedTuple):
    """The result of `pool.verify`.

    reference: the node that the others were compared with.
    failed: why nodes returned no vectors, by node.
    """

    model: str
    reference: str
    nodes: tuple[NodeAgreement, ...]
    failed: Mapping[str, str]

    @property
    def outliers(self) -> tuple[str, ...]:
        """The nodes whose vectors differ. They are excluded from batches for this model."""
        return tuple(node.node for node in self.nodes if not node.is_enough)

    def __str__(self) -> str:
        lines = [f"{self.model}: {len(self.nodes)} nodes, compared with {self.reference or 'none'}"]
        for node in self.nodes:
            verdict = "equal" if node.is_enough else "DIFFERENT: kept out of batches"
            lines.append(
                f"  {node.node}: cosine {node.alone:.6f} alone, {node.listed:.6f} in a list, "
                f"digest {node.digest[:12] or 'unknown'}: {verdict}"
            )
        lines += [f"  {name}: no vectors: {why}" for name, why in self.failed.items()]
        return "\n".join(lines)


def compare(
    model: str,
    alone: Mapping[str, Vectors],
    listed: Mapping[str, Vectors],
    digests: Mapping[str, str],
    failed: Mapping[str, str],
    references: Iterable[str] | None = None,
) -> Agreement:
    """How well nodes agree.

    The reference is the node that most nodes agree with, the first of several.

    alone, listed: vectors of the canaries by node, see `NodeAgreement`; empty for NaN.
    references: the nodes to choose the reference from; None for all.
    """
    names = list(alone)
    reference = _reference(alone, names if references is None else references)
    nodes = tuple(
        NodeAgreement(
            name,
            digests.get(name, ""),
            worst_cosine(alone[reference], alone[name]),
            worst_cosine(alone[reference], listed[name]),
        )
        for name in names
    )
    return Agreement(model, reference, nodes, dict(failed))


def _reference(vectors: Mapping[str, Vectors], references: Iterable[str]) -> str:
    """The one of `references` that most nodes agree with, the first of several."""
    reference, most = "", -1
    for name in references:
        agreeing = sum(worst_cosine(vectors[name], each) >= ENOUGH for each in vectors.values())
        if agreeing > most:
            reference, most = name, agreeing
    return reference


class Use(NamedTuple):
    """A node that embeds with a model.

    since: time of its first answer with this digest and this version of the server.
    is_loaded: whether the model is in its memory.
    """

    digest: str
    since: float
    is_loaded: bool


class Sample(NamedTuple):
    """What a node gave for `QUICK_CANARIES`. since: of its `Use` then.

    vectors: empty if there was NaN in them.
    """

    digest: str
    since: float
    vectors: Vectors


def due(uses: Mapping[str, Use], samples: Mapping[str, Sample]) -> list[str]:
    """The nodes to ask for a sample of one model.

    Those of a digest that at least two nodes use, which have the model in memory and gave no sample
    since their digest and version are what they are. samples: of the nodes' current digests.
    """
    digests = {name: sample.digest for name, sample in samples.items()}
    digests.update((name, use.digest) for name, use in uses.items())
    counts = Counter(digests.values())
    return [
        name
        for name, use in uses.items()
        if use.is_loaded
        and counts[use.digest] > 1
        and (name not in samples or samples[name][:2] != use[:2])
    ]


class Comparison(NamedTuple):
    """Which nodes agree.

    reference: the node that the others were compared with.
    cosines: the smallest cosine to its vectors, by node; -1.0 for NaN.
    is_majority: whether the reference agrees with more than half of the nodes that gave no NaN.
    """

    reference: str
    cosines: Mapping[str, float]
    is_majority: bool

    @property
    def differing(self) -> tuple[str, ...]:
        """The nodes whose vectors differ."""
        return tuple(name for name, found in self.cosines.items() if not found >= ENOUGH)

    @property
    def agreeing(self) -> tuple[str, ...]:
        """The nodes whose vectors agree with the reference, which is one of them."""
        return tuple(name for name, found in self.cosines.items() if found >= ENOUGH)


def compare_samples(samples: Mapping[str, Sample], trusted: Container[str]) -> Comparison | None:
    """Which nodes agree, by their samples of one digest; None if there is nothing to compare.

    The reference is the `trusted` node that most nodes agree with, and of several the one in use
    first. None also if every node gave NaN: the requests themselves will show that.
    """
    order = sorted(samples, key=lambda name: samples[name].since)
    sound = [name for name in order if is_sound(samples[name].vectors)]
    if len(order) < 2 or not sound:
        return None
    vectors = {name: samples[name].vectors for name in order}
    reference = _reference(vectors, [name for name in sound if name in trusted] or sound)
    verdict = Comparison(
        reference,
        {name: worst_cosine(vectors[reference], vectors[name]) for name in order},
        is_majority=False,
    )
    return verdict._replace(is_majority=2 * len(verdict.agreeing) > len(sound))


def is_sound(vectors: Vectors) -> bool:
    """Whether there are vectors, without zeros and NaN."""
    return worst_cosine(vectors, vectors) >= ENOUGH


def explain_difference(name: str, verdict: Comparison) -> str:
    """How the vectors of a node differ, and from which, in words."""
    found = verdict.cosines[name]
    how = "are not valid" if found <= -1.0 else f"differ (cosine {found:.4f})"
    others = ", ".join(verdict.agreeing)
    doubt = "" if verdict.is_majority else "; which are right is unknown, and those used first stay"
    return f"{how}, compared with those of {others}{doubt}"


def worst_cosine(one: Vectors, other: Vectors) -> float:
    """The smallest cosine of vectors at the same position.

    -1.0 if the lengths differ, or there are no vectors.
    """
    if len(one) != len(other):
        return -1.0
    return min((cosine(a, b) for a, b in zip(one, other, strict=True)), default=-1.0)


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of the angle between two vectors; -1.0 if undefined, as for zeros or NaN."""
    if len(one) != len(other):
        return -1.0
    lengths = math.sqrt(sum(map(mul, one, one)) * sum(map(mul, other, other)))
    if not lengths > 0.0 or not math.isfinite(lengths):
        return -1.0
    return float(sum(map(mul, one, other))) / lengths


class DigestGroup(NamedTuple):
    """Nodes with comparable vectors. excluded: digests of the other nodes, by node."""

    digest: str
    nodes: frozenset[str]
    excluded: Mapping[str, str]


def comparable(
    digests: Mapping[str, str], speeds: Mapping[str, float], required: str | None = None
) -> DigestGroup:
    """The nodes to use for a model, given each node's digest of it.

    A digest identifies a set of weights; vectors of two digests are not comparable. The result has
    the nodes with the `required` digest (a prefix of 7 characters suffices), or by default the
    group with the highest total speed.

    speeds: work per second by node, in any unit.
    """
    if required is not None:
        wanted = required.removeprefix("sha256:").lower()
        fit = {name for name, digest in digests.items() if _plain(digest).startswith(wanted)}
        chosen = next((digests[name] for name in digests if name in fit), required)
    else:
        together: dict[str, float] = {}
        for name, digest in digests.items():
            together[digest] = together.get(digest, 0.0) + speeds.get(name, 1.0)
        chosen = max(together, key=lambda digest: together[digest], default="")
        fit = {name for name, digest in digests.items() if digest == chosen}
    excluded = {name: digest for name, digest in digests.items() if name not in fit}
    return DigestGroup(chosen, frozenset(fit), excluded)


def check_digest(digest: object) -> str | None:
    """The problem with a digest that a user pins; None if it is valid."""
    if not isinstance(digest, str):
        return f"a digest must be a string, not {type(digest).__name__}"
    plain = digest.removeprefix("sha256:").lower()
    if len(plain) < 7 or not _is_hex(plain):
        return f"a digest must be at least 7 hexadecimal digits, not {digest!r}"
    return None


def _plain(digest: str) -> str:
    return digest.removeprefix("sha256:").lower()


def _is_hex(text: str) -> bool:
    return all(character in "0123456789abcdef" for character in text)


def names_of(excluded: Mapping[str, str]) -> str:
    """Nodes and their digests, formatted for a warning."""
    return ", ".join(f"{name} ({digest[:12] or 'unknown'})" for name, digest in _sorted(excluded))


def _sorted(excluded: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    return sorted(excluded.items())
