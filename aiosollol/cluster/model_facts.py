"""What was learned of models on all nodes together."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from aiosollol.cluster.node_costs import SharedBeliefs
from aiosollol.core.model_names import full_name
from aiosollol.core.scheduling.colocation import Finding
from aiosollol.core.scheduling.cost import TokenRatio

log = logging.getLogger("aiosollol")

_UNKNOWN_RATIO = TokenRatio()


class ModelFacts:
    """Lengths of tokens, and nodes of one machine that slow each other down, by model.

    A base of `ClusterState`.

    shared: what the nodes learned together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shared = SharedBeliefs()
        self._ratios: dict[str, TokenRatio] = {}
        self._verdicts: dict[str, dict[frozenset[str], bool]] = {}

    def ratio(self, model: str) -> TokenRatio:
        """Characters per token of `model`, as learned from the servers' counts."""
        return self._ratios.get(full_name(model), _UNKNOWN_RATIO)

    def learn_ratio(self, model: str, characters: int, texts: int, tokens: int) -> None:
        """Record that a server counted `tokens` for `texts` texts of `characters` in total."""
        self._ratios[full_name(model)] = self.ratio(model).observe(characters, texts, tokens)

    def verdicts(self, model: str) -> Mapping[frozenset[str], bool]:
        """Whether `model` is faster on both nodes together, for pairs on one machine."""
        return self._verdicts.get(full_name(model), {})

    def remember(self, model: str, finding: Finding) -> None:
        """Record the comparison of two nodes on one machine."""
        log.info("model %s: %s", model, finding)
        pair = frozenset((finding.first, finding.second))
        self._verdicts.setdefault(full_name(model), {})[pair] = finding.is_faster_together
