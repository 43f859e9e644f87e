"""The embedded model: WordLlama's own vectors, without network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from embedded_parts import ODD, PASSAGES

from aiosollol.embedded import Computed
from aiosollol.embedded.model import StaticModel

numpy = pytest.importorskip("numpy")
pytest.importorskip("wordllama")
pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def original() -> Any:
    """WordLlama's own model, loaded the way its users would with no network."""
    import wordllama

    return wordllama.WordLlama.load(
        "l2_supercat",
        dim=256,
        cache_dir=Path(wordllama.__file__).parent,
        disable_download=True,
    )


@pytest.fixture(scope="module")
def model() -> StaticModel:
    model = StaticModel()
    model.load()
    return model


def rows(computed: Computed) -> Any:
    return numpy.frombuffer(computed.floats, dtype=numpy.float32).reshape(-1, computed.dim)


@pytest.mark.parametrize("texts", [PASSAGES, ODD], ids=["passages", "odd"])
def test_vectors_are_wordllamas_to_the_last_bit(
    texts: list[str], model: StaticModel, original: Any
) -> None:
    expected = original.embed(texts, norm=True, batch_size=1)
    assert model.embed(texts).floats == expected.tobytes()
    one_by_one = b"".join(model.embed([text]).floats for text in texts)
    assert one_by_one == expected.tobytes()


def test_lists_do_not_change_vectors(original: Any, model: StaticModel) -> None:
    assert model.embed(PASSAGES).floats == original.embed(PASSAGES, norm=True).tobytes()


@pytest.mark.parametrize("dimensions", [1, 8, 255, 256, 1000])
def test_dimensions_cut_and_renormalise(dimensions: int, model: StaticModel) -> None:
    whole = rows(model.embed(PASSAGES[:20]))
    cut = rows(model.embed(PASSAGES[:20], dimensions))
    expected = whole[:, :dimensions]
    expected = expected / numpy.linalg.norm(expected, axis=1, keepdims=True)
    assert cut.shape == (20, min(dimensions, 256))
    assert numpy.allclose(cut, expected, atol=1e-6)
    assert numpy.allclose(numpy.linalg.norm(cut, axis=1), 1.0, atol=1e-6)


def test_an_empty_text_has_a_unit_vector(model: StaticModel) -> None:
    computed = model.embed(["", "a", ""])
    vectors = rows(computed)
    assert numpy.isfinite(vectors).all()
    assert numpy.allclose(numpy.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    assert (vectors[0] == vectors[2]).all()
    assert computed.tokens == 3


def test_the_card_is_the_models(model: StaticModel) -> None:
    card = model.card()
    assert (card.name, card.dim, card.capabilities) == ("wordllama:latest", 256, ("embedding",))
    assert len(card.digest) == 64
    assert card.size > 10_000_000
    assert StaticModel(["nomic-embed-text", "wordllama"]).names == (
        "wordllama:latest",
        "nomic-embed-text:latest",
    )


def test_it_needs_no_network_and_leaves_logging_alone() -> None:
    """In a process where every socket is refused; nothing heavy is loaded before it is used."""
    code = """
import logging, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("the network was used")

for name in ("connect", "connect_ex", "sendto", "sendmsg", "bind"):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.create_connection = refuse

from aiosollol.embedded import EmbeddedNode
from aiosollol.embedded.model import StaticModel
assert not {"numpy", "wordllama", "tokenizers"} & set(sys.modules), "loaded on import"
computed = StaticModel().embed(["hello world"])
assert len(computed.floats) == 256 * 4
assert logging.getLogger().handlers == [] and logging.getLogger().level == logging.WARNING
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
