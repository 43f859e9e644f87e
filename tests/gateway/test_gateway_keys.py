"""Keys: made, kept as hashes, found, and never shown."""

from __future__ import annotations

from hashlib import sha256

import pytest

from aiosollol import ConfigError, InvalidInput
from aiosollol.gateway.middleware.keys import (
    ApiKey,
    KeyRing,
    keys_in_variable,
    new_key,
    parse_keys,
)

HASH = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


def test_a_new_key_is_found_by_its_line() -> None:
    made = new_key("ann", "models=llama3.2,qwen* rate=2.5 burst=7 in_flight=3 admin")
    ring = KeyRing(parse_keys(f"# mine\n\n{made.line}  # Ann\n", "keys.txt"))
    key = ring.find(made.token)
    assert key is not None
    assert (key.name, key.rate, key.burst, key.in_flight, key.is_admin) == ("ann", 2.5, 7, 3, True)
    assert ring.has_admin
    assert ring.find(made.token[:-1]) is None
    assert ring.find("") is None
    assert ring.find("\udcff") is None


def test_keys_are_long_and_different() -> None:
    tokens = {new_key("x").token for _ in range(100)}
    assert len(tokens) == 100
    assert all(token.startswith("sk-sollol-") and len(token) == 53 for token in tokens)


def test_no_key_is_in_the_file_or_in_what_is_printed() -> None:
    made = new_key("ann")
    (key,) = parse_keys(made.line, "keys.txt")
    assert made.token not in made.line
    for shown in (repr(key), repr(KeyRing([key])), str(key)):
        assert made.token not in shown
        assert key.digest.hex() not in shown
        assert repr(key.digest) not in shown


@pytest.mark.parametrize(
    ("models", "model", "may"),
    [
        ("", "anything", True),
        ("llama3.2", "llama3.2", True),
        ("llama3.2", "llama3.2:latest", True),
        ("llama3.2:latest", "LLAMA3.2", True),
        ("llama3.2", "llama3.2:1b", False),
        ("qwen*", "qwen3:8b", True),
        ("qwen*", "xqwen3", False),
        ("qwen*,all-minilm", "all-minilm", True),
        ("qwen*", "", False),
        ("llama3.2", "library/Llama3.2", True),
        ("library/llama3.2", "llama3.2:latest", True),
        ("registry.ollama.ai/library/llama3.2", "llama3.2", True),
        ("qwen*", "registry.ollama.ai/library/Qwen3:8b", True),
        ("Qwen*", "qwen3:8b", True),
        ("library/*", "llama3.2", True),
        ("library/*", "mine/llama3.2", False),
        ("library/*", "hf.co/library/llama3.2", False),
        ("registry.ollama.ai/*", "mine/llama3.2", True),
        ("registry.ollama.ai/*", "llama3.2", True),
        ("registry.ollama.ai/mine/*", "llama3.2", False),
        ("registry.ollama.ai/*", "hf.co/mine/llama3.2", False),
        ("*ollama*", "all-minilm", False),
        ("library*", "llama3.2", False),
        ("hf.co/*", "hf.co/Mine/Llama3.2", True),
        ("kimi", "\u212aimi", False),  # the Kelvin sign
        ("kimi*", "\u212aimi", False),
    ],
)
def test_models_of_a_key(models: str, model: str, may: bool) -> None:
    line = f"ann {HASH} models={models}" if models else f"ann {HASH}"
    (key,) = parse_keys(line, "keys.txt")
    assert key.may_use(model) is may


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("ann", "the second word is not a hash"),
        ("ann secret-key-of-ann", "the second word is not a hash"),
        (f"{HASH}", "a name has"),
        (f"a/b {HASH}", "a name has"),
        (f"ann {HASH} colour=red", "an option is unknown"),
        (f"ann {HASH} rate=1 rate=2", "given twice"),
        (f"ann {HASH} rate", "a value"),
        (f"ann {HASH} admin=yes", "no value"),
        (f"ann {HASH} rate=fast", "numbers"),
        (f"ann {HASH} rate=nan", "numbers of at least 0"),
        (f"ann {HASH} burst=-1", "numbers of at least 0"),
    ],
)
def test_a_line_that_cannot_be_is_told_and_never_shown(line: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        parse_keys(f"bob {OTHER}\n{line}\n", "keys.txt")
    assert (caught.value.source, caught.value.line) == ("keys.txt", 2)
    assert "keys.txt, line 2: " in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "a" * 64 not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "what"),
    [(f"ann {HASH}\nann {OTHER}", "name"), (f"ann {HASH}\n\nbob {HASH}", "hash")],
)
def test_what_is_there_twice(text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=f"has the same {what} as line 1"):
        parse_keys(text, "keys.txt")


def test_a_file_without_keys_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="holds no key; make one with"):
        parse_keys("# none yet\n", "keys.txt")


def test_names_of_new_keys_are_checked() -> None:
    with pytest.raises(InvalidInput, match="a name has"):
        new_key("ann smith")
    with pytest.raises(InvalidInput, match="option"):
        new_key("ann", "colour=red")


def test_keys_in_the_environment() -> None:
    token = new_key("x").token
    hashed = f"sha256:{sha256(b'another').hexdigest()}"
    ring = KeyRing(keys_in_variable(f" {token},{hashed}\n", "SOLLOL_API_KEYS"))
    assert [key.name for key in ring] == ["env-1", "env-2"]
    assert ring.find(token) is not None
    assert ring.find("another") is not None
    assert not ring.has_admin
    (admin,) = keys_in_variable(token, "SOLLOL_ADMIN_KEYS", is_admin=True)
    digest = sha256(token.encode()).digest()
    assert admin == ApiKey("admin-1", digest, is_admin=True, is_named=False)
    assert keys_in_variable("", "SOLLOL_API_KEYS") == []
    with pytest.raises(ConfigError, match="SOLLOL_API_KEYS, key 2: shorter than 20") as caught:
        keys_in_variable(f"{token}, hunter2", "SOLLOL_API_KEYS")
    assert "hunter2" not in str(caught.value)


def test_a_ring_takes_each_key_once() -> None:
    key = ApiKey("ann", b"1" * 32)
    with pytest.raises(InvalidInput, match="twice"):
        KeyRing([key, ApiKey("bob", b"1" * 32)])
    with pytest.raises(InvalidInput, match="twice"):
        KeyRing([key, ApiKey("ann", b"2" * 32)])
