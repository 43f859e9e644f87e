"""Says once for each model that servers cut texts of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from aiosollol.cluster.state import ClusterState
from aiosollol.core.model_names import full_name
from aiosollol.core.redaction import safe_repr
from aiosollol.core.request import EmbedSettings
from aiosollol.core.truncation import Counted, OnTruncate, context_limit, cut_texts

log = logging.getLogger("aiosollol")

_FEW = 64
"""Tokens, below which an answer is not looked at: no model has a context that small."""


class TruncationWatch:
    """What a pool knows of texts that were cut. One warning for each model."""

    def __init__(self, cluster: ClusterState) -> None:
        self._cluster = cluster
        self._warned: set[str] = set()

    def look(
        self,
        settings: EmbedSettings,
        texts: Sequence[str],
        node: str,
        tokens: int,
        on_truncate: OnTruncate = "warn",
    ) -> int:
        """How many of the texts of one request were cut, as far as its count shows; warns of them.

        node: that answered it, by name. tokens: that it counted.
        """
        if tokens < _FEW or settings.truncate is False or not texts or node not in self._cluster:
            return 0
        num_ctx = None if settings.options is None else settings.options.get("num_ctx")
        limit = context_limit(self._cluster[node].state, settings.model, num_ctx)
        (places,) = cut_texts([Counted(texts, tokens)], limit)
        self.warn(settings.model, len(places), len(texts), on_truncate)
        return len(places)

    def warn(self, model: str, cut: int, texts: int, on_truncate: OnTruncate = "warn") -> None:
        """Log once for each model that `cut` of `texts` texts were cut, if any were."""
        name = full_name(model)
        if not cut or on_truncate != "warn" or name in self._warned:
            return
        self._warned.add(name)
        log.warning(
            "model %s: %d of %d texts appear to be longer than its context and were cut by the "
            "server, so that their vectors stand for their beginnings; split them, or pass "
            "on_truncate='raise' to have them refused (said once)",
            safe_repr(name),
            cut,
            texts,
        )
