"""Names of models, as Ollama reads them (types/model/name.go)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiosollol.core.model_names import (
    MAX_NAME,
    full_name,
    is_valid_name,
    qualified_name,
    shortest_name,
)

LONG = "x" * 80
NAMES: list[tuple[str, str, str]] = [
    # The name, the key, and the name that Ollama shows.
    ("llama3.2", "llama3.2:latest", "llama3.2:latest"),
    ("llama3.2:latest", "llama3.2:latest", "llama3.2:latest"),
    ("Llama3.2:LATEST", "llama3.2:latest", "Llama3.2:LATEST"),
    (" llama3.2\n", "llama3.2:latest", "llama3.2:latest"),
    ("library/llama3.2", "llama3.2:latest", "llama3.2:latest"),
    ("Library/llama3.2:1b", "llama3.2:1b", "llama3.2:1b"),
    ("registry.ollama.ai/library/llama3.2", "llama3.2:latest", "llama3.2:latest"),
    ("Registry.Ollama.AI/library/llama3.2:1b", "llama3.2:1b", "llama3.2:1b"),
    ("https://registry.ollama.ai/library/x", "x:latest", "x:latest"),
    ("registry.ollama.ai/mine/x", "mine/x:latest", "mine/x:latest"),
    ("mine/Model:Tag", "mine/model:tag", "mine/Model:Tag"),
    ("hf.co/Me/Llama-GGUF:Q4_K_M", "hf.co/me/llama-gguf:q4_k_m", "hf.co/Me/Llama-GGUF:Q4_K_M"),
    ("hf.co/library/x", "hf.co/library/x:latest", "hf.co/library/x:latest"),
    ("localhost:5000/me/x", "localhost:5000/me/x:latest", "localhost:5000/me/x:latest"),
    ("localhost:5000/me/x:y", "localhost:5000/me/x:y", "localhost:5000/me/x:y"),
    ("gpt-oss:20b-cloud", "gpt-oss:20b-cloud", "gpt-oss:20b-cloud"),
    ("gpt-oss:20b:cloud", "gpt-oss:20b-cloud", "gpt-oss:20b-cloud"),
    ("gpt-oss:20b:LOCAL", "gpt-oss:20b", "gpt-oss:20b"),
    ("_x", "_x:latest", "_x:latest"),
    ("2x.y-z_", "2x.y-z_:latest", "2x.y-z_:latest"),
    (f"{LONG}/{LONG}:{LONG}", f"{LONG}/{LONG}:{LONG}", f"{LONG}/{LONG}:{LONG}"),
]


@pytest.mark.parametrize(("name", "key", "shown"), NAMES)
def test_one_model_has_one_key(name: str, key: str, shown: str) -> None:
    assert is_valid_name(name)
    assert full_name(name) == full_name(key) == full_name(shown) == key
    assert shortest_name(name) == shortest_name(shown) == shown


INVALID = [
    "",
    " ",
    "a b",
    "-x",
    ".x",
    "x:",
    ":latest",
    "x:y:z",
    "x:a:b:cloud",
    "/x",
    "x/",
    "a//x",
    "a.b/x",
    "a:b/x",
    "a/b/c/d",
    "../../etc/passwd",
    "x@sha256:0123",
    "name!",
    "n\u00e4me",
    "\u212aimi",  # the Kelvin sign, which is a "k" in lower case
    "x\ny",
    "x\x00",
    LONG + "x",
    f"x:{LONG}x",
    "x" * 1_000_000,
    ":" * 100_000,
    "/" * 100_000,
]


@pytest.mark.parametrize("name", INVALID, ids=lambda name: repr(name[:20]))
def test_an_invalid_name_is_no_models(name: str) -> None:
    assert not is_valid_name(name)
    assert full_name(name) == shortest_name(name) == full_name(full_name(name))
    assert not is_valid_name(full_name(name))
    assert full_name(name).startswith(name)


@pytest.mark.parametrize(
    ("name", "qualified"),
    [
        ("X", "registry.ollama.ai/library/x:latest"),
        ("mine/x:y", "registry.ollama.ai/mine/x:y"),
        ("hf.co/a/b", "hf.co/a/b:latest"),
        ("a b", "a b:latest"),
    ],
)
def test_a_name_with_host_and_namespace(name: str, qualified: str) -> None:
    assert qualified_name(name) == qualified


PARTS = st.text("aZ0_.-:/ \u212a@", max_size=12) | st.sampled_from(
    ["registry.ollama.ai/", "library/", ":latest", "hf.co/", ":cloud"]
)


@settings(deadline=None)
@given(st.lists(PARTS, max_size=6).map("".join))
def test_a_key_is_its_own_key(name: str) -> None:
    key = full_name(name)
    assert full_name(key) == key
    assert is_valid_name(key) == is_valid_name(name)
    assert len(name) <= MAX_NAME
    if is_valid_name(name):
        assert full_name(name.upper()) == full_name(shortest_name(name)) == key
        assert full_name(qualified_name(name)) == key
