"""`StaticModel`: WordLlama's 256-dimension model, from its wheel, without downloads."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aiosollol.core.model_names import full_name
from aiosollol.errors import MissingExtra
from aiosollol.wire.ollama.server_responses import ModelCard, timestamp

_CONFIG = "l2_supercat"
_DIM = 256
# The context length: a mean can be taken of any number of token vectors.
_NO_LIMIT = 2**31 - 1
# A text's token vectors are summed in blocks, so that one of 10 MB does not take gigabytes.
_BLOCK = 4096


class StaticModel:
    """A `Backend` whose vectors are the mean of a text's token vectors, at unit length.

    Vectors equal WordLlama's own ``embed(texts, norm=True)`` to the last bit, except that a text
    without tokens, for which WordLlama gives NaN, gets the vector of a space. Needs the extra
    "embedded".
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
                # The loader looks in tokenizer/, but the wheel has tokenizers/, where the loader
                # looks only if this is its "cache".
                cache_dir=Path(wordllama.__file__).parent,
                disable_download=True,
            )
            model.tokenizer.no_padding()  # texts are summed one by one, so lengths may differ
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
        # As a batch, although used one by one below: only this call releases the GIL.
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
        """Put the mean of the token vectors into `row`, summed in WordLlama's order."""
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
    """Scale each row to unit length, except rows of zeros."""
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
    """Undo WordLlama's configuration of the root logger on import."""
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
    """Vectors: consecutive float32 in this machine's byte order.

    dim: length of each vector. tokens: of all texts.
    """

    floats: bytes
    dim: int
    tokens: int


class Backend(Protocol):
    """Computes embeddings. Called from one thread only, so it need not be thread-safe."""

    @property
    def names(self) -> Sequence[str]:
        """Names under which the model is served; the first is its own. Known without loading."""
        ...

    @property
    def dim(self) -> int:
        """Length of a whole vector. Known without loading."""
        ...

    def load(self) -> None:
        """Load the model. Idempotent. Raises MissingExtra."""
        ...

    def card(self) -> ModelCard:
        """The model's entry in ``/api/tags``, under its first name. Loads the model if needed."""
        ...

    def embed(self, texts: Sequence[str], dimensions: int = 0) -> Computed:
        """A finite unit vector for each text, in order.

        With `dimensions`, each is cut to that length and scaled to unit length again.
        """
        ...
