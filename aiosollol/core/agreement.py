"""Whether several nodes give the same vectors for the same texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import mul
from typing import NamedTuple

ENOUGH = 0.999
"""The cosine from which two vectors count as equal. Other kernels and CPUs change the last digits
(0.9999995 was measured for one node alone against in a list); another quantisation changes more."""

CANARIES = (
    "The quick brown fox jumps over the lazy dog.",
    "naïve café, 北京, Ελλάδα: text is more than ASCII",
    "def f(x):\n    return x * x  # code",
    "1, 2, 3, 5, 8, 13, 21",
)
"""Short texts that look different to a tokenizer."""

Vectors = Sequence[Sequence[float]]


class NodeAgreement(NamedTuple):
    """How well one node agrees with the node that most others agree with.

    alone: the smallest cosine over all canaries, each embedded by a request of its own.
    listed: the same for the canaries embedded as one list.
    digest: of the model, as the node says.
    """

    node: str
    digest: str
    alone: float
    listed: float

    @property
    def is_enough(self) -> bool:
        """Whether its vectors can stand beside the others' in one index."""
        return min(self.alone, self.listed) >= ENOUGH


class Agreement(NamedTuple):
    """What `pool.verify` found. failed: node -> why it gave no vectors."""

    model: str
    reference: str
    nodes: tuple[NodeAgreement, ...]
    failed: Mapping[str, str]

    @property
    def outliers(self) -> tuple[str, ...]:
        """The nodes whose vectors differ: they are kept out of batches for this model."""
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
    """How well nodes agree. `alone` and `listed` map each node to its vectors of the canaries.

    The node with which most agree is the reference, the first of several; one of `references`,
    where those are given.
    """
    names = list(alone)
    reference, most = "", -1
    for name in names if references is None else references:
        agreeing = sum(worst_cosine(alone[name], alone[other]) >= ENOUGH for other in names)
        if agreeing > most:
            reference, most = name, agreeing
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


def worst_cosine(one: Vectors, other: Vectors) -> float:
    """The smallest cosine of vectors at the same place; -1.0 where their lengths differ."""
    if len(one) != len(other):
        return -1.0
    return min((cosine(a, b) for a, b in zip(one, other, strict=True)), default=1.0)


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of the angle between two vectors; -1.0 if it has none, as with zeros or NaN."""
    if len(one) != len(other):
        return -1.0
    lengths = math.sqrt(sum(map(mul, one, one)) * sum(map(mul, other, other)))
    if not lengths > 0.0 or not math.isfinite(lengths):
        return -1.0
    return float(sum(map(mul, one, other))) / lengths


class DigestGroup(NamedTuple):
    """The nodes whose vectors may stand together. `excluded`: node -> its other digest."""

    digest: str
    nodes: frozenset[str]
    excluded: Mapping[str, str]


def comparable(
    digests: Mapping[str, str], speeds: Mapping[str, float], required: str | None = None
) -> DigestGroup:
    """The group of nodes to use for a model, given each node's digest of it.

    One digest is one set of weights; vectors of two are not comparable. Used are the nodes with
    the `required` digest (a prefix of 7 characters is enough), else those that are fastest
    together. speeds: node -> how much it does per second, in any unit.
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
    """What is wrong with a digest that a user pins, None if nothing."""
    if not isinstance(digest, str):
        return f"a digest must be a string, not {type(digest).__name__}"
    plain = digest.removeprefix("sha256:").lower()
    if len(plain) < 7 or not _is_hex(plain):
        return f"a digest is hexadecimal, its first 7 digits or more, not {digest!r}"
    return None


def _plain(digest: str) -> str:
    return digest.removeprefix("sha256:").lower()


def _is_hex(text: str) -> bool:
    return all(character in "0123456789abcdef" for character in text)


def names_of(excluded: Mapping[str, str]) -> str:
    """Nodes and their digests, as a warning lists them."""
    return ", ".join(f"{name} ({digest[:12] or 'unknown'})" for name, digest in _sorted(excluded))


def _sorted(excluded: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    return sorted(excluded.items())
