"""`Rules`: when a queue embeds, how much it takes, and how long it keeps what came of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from aiosollol.core.engines import EngineName, check_engine
from aiosollol.errors import InvalidInput

DAY = 86_400.0
GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The settings of a queue. Times are seconds.

    interval: between batches while no node is idle; also how long documents wait for others to
    make up a batch with. min_batch_size: fewer than this wait for others, even in an idle pool.
    max_batch_size: the most in a batch. keep_results: how long after its end a job is kept.
    max_documents, max_bytes: how much may be queued, all jobs together; bytes are of the texts in
    UTF-8. max_attempts: how often a document is tried that fails for another reason than its text.
    engine: where to compute, see `OllamaPool.embed_batch`; in this process while it is not there.

    The first three defaults are the original's. Raises InvalidInput.
    """

    interval: float = 60.0
    min_batch_size: int = 1
    max_batch_size: int = 100
    keep_results: float = DAY
    max_documents: int = 1_000_000
    max_bytes: int = GIB
    max_attempts: int = 5
    engine: EngineName = "auto"

    def __post_init__(self) -> None:
        check_engine(self.engine)
        for name in ("interval", "keep_results"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0.0 <= value < math.inf:
                raise InvalidInput(f"{name} must be a number of seconds, not {value!r}")
        for name in (
            "min_batch_size",
            "max_batch_size",
            "max_documents",
            "max_bytes",
            "max_attempts",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidInput(f"{name} must be a whole number from 1 on, not {value!r}")
        if self.min_batch_size > self.max_batch_size:
            raise InvalidInput(
                f"min_batch_size is {self.min_batch_size}, "
                f"more than max_batch_size, {self.max_batch_size}"
            )
