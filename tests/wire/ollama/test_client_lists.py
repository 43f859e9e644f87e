"""wire/ollama/client: the models, versions and other facts of a node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from ollama_client_parts import HTML, captured

from aiosollol.core.node import LoadedModel, ModelInfo
from aiosollol.errors import (
    ProtocolError,
)
from aiosollol.wire.ollama.client import (
    load,
    load_ps,
    load_tags,
    load_version,
)

# What a node is and has.


def test_the_models_of_a_real_node() -> None:
    models = load_tags("n", captured("03-tags")[1])
    digest = "5cb97c13a7699afe894626b2e2759d6feaa4f5b09cb780313092ac3bc70e44d9"
    minilm = ModelInfo("all-minilm:latest", digest, 46223508, 384, 512, "bert")
    assert models["all-minilm:latest"] == minilm
    assert (models["tiny-chat:latest"].dim, models["tiny-chat:latest"].context_length) == (64, 4096)


def test_what_a_real_node_has_loaded() -> None:
    assert load_ps("n", captured("04-ps-empty")[1]) == {}
    loaded = load_ps("n", captured("30-ps-loaded")[1])
    digest = "5cb97c13a7699afe894626b2e2759d6feaa4f5b09cb780313092ac3bc70e44d9"
    assert list(loaded) == ["all-minilm:latest", "tiny-chat:latest"]
    assert loaded["all-minilm:latest"] == LoadedModel("all-minilm:latest", digest, 0, 0, 512)


def test_models_keep_their_spelling_under_keys_without_case() -> None:
    body = b'{"models":[{"name":"Me/Model:Q4"},{"name":"registry.ollama.ai/library/X"}]}'
    for models in (load_tags("n", body), load_ps("n", body)):
        names = {key: model.name for key, model in models.items()}
        assert names == {"me/model:q4": "Me/Model:Q4", "x:latest": "X:latest"}


def test_the_version_of_a_real_node() -> None:
    assert load_version("n", captured("02-version")[1]) == "0.lab"


LISTS: list[tuple[str, bytes, Sequence[str]]] = [
    ("an empty list in Go", b'{"models":null}', []),
    ("no list", b"{}", []),
    ("only a name", b'{"models":[{"name":"x"}]}', ["x:latest"]),
    ("no name", b'{"models":[{"size":1},{"name":null},{"name":"y:1b"}]}', ["y:1b"]),
    ("no objects", b'{"models":[1,"x",null]}', []),
    ("a wrong context", b'{"models":[{"name":"x","context_length":true}]}', ["x:latest"]),
    (
        "a context below zero",
        b'{"models":[{"name":"x","context_length":-1,"details":{"context_length":-1}}]}',
        ["x:latest"],
    ),
    ("no names", b'{"models":[{"name":""},{"name":"a b"},{"name":"x"}]}', ["x:latest"]),
    ("wrong types", b'{"models":[{"name":"x","size":"1","digest":2,"details":3}]}', ["x:latest"]),
]


@pytest.mark.parametrize(
    ("body", "names"), [case[1:] for case in LISTS], ids=[case[0] for case in LISTS]
)
def test_lists_of_models_that_lack_something(body: bytes, names: list[str]) -> None:
    tags, loaded = load_tags("n", body), load_ps("n", body)
    assert list(tags) == list(loaded) == names
    for name in names:
        assert tags[name] == ModelInfo(name)
        assert loaded[name] == LoadedModel(name)


@pytest.mark.parametrize("read", [load, load_tags, load_ps, load_version])
@pytest.mark.parametrize("body", [HTML, b"", b"[]", b'"ok"', b'{"models":['])
def test_what_is_not_ollama(read: Any, body: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"not (JSON|a JSON object)"):
        read("n", body)


def test_an_answer_without_what_was_asked_for() -> None:
    with pytest.raises(ProtocolError, match="has no version"):
        load_version("n", b'{"version":3}')
    with pytest.raises(ProtocolError, match="has no list of models"):
        load_tags("n", b'{"models":{}}')
