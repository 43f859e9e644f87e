"""WordLlama's 256-dimension model, from its wheel: nothing is ever downloaded."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aiosollol.core.node import full_name
from aiosollol.errors import MissingExtra
from aiosollol.wire.ollama.server_responses import ModelCard, timestamp

_CONFIG = "l2_supercat"
_DIM = 256
# The mean of any number of token vectors can be taken: there is no context to run out of.
_NO_LIMIT = 2**31 - 1
# A text's token vectors are summed in blocks, so that one of 10 MB does not take gigabytes.
_BLOCK = 4096


class StaticModel:
    """A `Backend`: the mean of a text's token vectors, at unit length.

    Vectors equal WordLlama's own ``embed(texts, norm=True)`` to the last bit; a text without
    tokens, for which that has NaN, has the vector of a space. Needs the extra "embedded".
    """

    def __init__(self, aliases: Sequence[str] = ()) -> None:
        self.names = tuple(dict.fromkeys(map(full_name, ("wordllama", *aliases))))
        self.dim = _DIM
        self._model: Any = None
        self._card: ModelCard | None = None

    def load(self) -> None:
        if self._model is None:
            wordllama = _import_wordllama()
            model = wordllama.WordLlama.load(
                _CONFIG,
                dim=_DIM,
                # The loader looks in tokenizer/, the wheel has tokenizers/: told where its "cache"
                # is, it looks there too.
                cache_dir=Path(wordllama.__file__).parent,
                disable_download=True,
            )
            model.tokenizer.no_padding()  # texts are summed one by one, so none need be as long
            self._model = model

    def card(self) -> ModelCard:
        if self._card is None:
            self.load()
            weights = Path(_import_wordllama().__file__).parent.joinpath(
                "weights", f"{_CONFIG}_{_DIM}.safetensors"
            )
            status = weights.stat()
            self._card = ModelCard(
                name=self.names[0],
                digest=hashlib.sha256(weights.read_bytes()).hexdigest(),
                size=status.st_size,
                dim=_DIM,
                context_length=_NO_LIMIT,
                modified_at=timestamp(status.st_mtime_ns),
                family="wordllama",
                parameters=f"{self._model.embedding.size / 1e6:.2f}M",
                quantization="F16",
                format="safetensors",
            )
        return self._card

    def embed(self, texts: Sequence[str], dimensions: int = 0) -> Computed:
        import numpy

        self.load()
        # A batch, though it is walked one by one below: only this call lets go of Python's lock.
        encodings = self._model.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        vectors = numpy.empty((len(texts), _DIM), dtype=numpy.float32)
        tokens = 0
        for row, encoding in zip(vectors, encodings, strict=True):
            ids = encoding.ids or self._space()
            tokens += len(ids)
            self._average(ids, row)
        _normalise(vectors)
        if 0 < dimensions < _DIM:
            vectors = numpy.ascontiguousarray(vectors[:, :dimensions])
            _normalise(vectors)
        return Computed(vectors.tobytes(), vectors.shape[1], tokens)

    def _space(self) -> list[int]:
        ids: list[int] = self._model.tokenizer.encode(" ", add_special_tokens=False).ids
        return ids

    def _average(self, ids: list[int], row: Any) -> None:
        """Put the mean of the tokens' vectors into `row`, added up in WordLlama's order."""
        import numpy

        table = self._model.embedding
        row[:] = 0.0
        for start in range(0, len(ids), _BLOCK):
            block = numpy.asarray(ids[start : start + _BLOCK])
            numpy.clip(block, 0, len(table) - 1, out=block)
            # The sum so far goes first, so that the additions are those of one long sum.
            row[:] = numpy.concatenate((row[numpy.newaxis], table[block])).sum(axis=0)
        row /= numpy.float32(len(ids))


def _normalise(vectors: Any) -> None:
    """Bring each row to unit length. A row of zeros stays: it has no direction."""
    import numpy

    lengths = numpy.linalg.norm(vectors, axis=1, keepdims=True)
    lengths[lengths == 0] = 1.0
    vectors /= lengths


def _import_wordllama() -> Any:
    try:
        with _root_logger_kept():
            import wordllama
    except ImportError as error:
        raise MissingExtra("the embedded node", "embedded") from error
    return wordllama


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Undo what WordLlama does to logging on import: it sets up the root logger."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        for handler in root.handlers[:]:
            if handler not in handlers:
                root.removeHandler(handler)
        root.setLevel(level)


@dataclass(frozen=True, slots=True)
class Computed:
    """The vectors of some texts: float32 in this machine's byte order, vector after vector.

    dim: length of each. tokens: how many tokens the texts have together.
    """

    floats: bytes
    dim: int
    tokens: int


class Backend(Protocol):
    """A thing that embeds. The node calls it from one thread, so it need not be thread-safe."""

    @property
    def names(self) -> Sequence[str]:
        """What clients may call the model; the first is its own name. Known without loading."""
        ...

    @property
    def dim(self) -> int:
        """Length of a whole vector. Known without loading."""
        ...

    def load(self) -> None:
        """Make ready to embed. Idempotent. Raises MissingExtra."""
        ...

    def card(self) -> ModelCard:
        """What ``/api/tags`` tells of the model, under its first name. Loads what it needs."""
        ...

    def embed(self, texts: Sequence[str], dimensions: int = 0) -> Computed:
        """A unit vector for each text, in order, finite for every text.

        With `dimensions` the first so many numbers of each, brought to unit length again.
        """
        ...
