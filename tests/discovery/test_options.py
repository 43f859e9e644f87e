"""The arguments of a search, and its environment variable."""

from __future__ import annotations

from typing import Any

import pytest
from search_parts import LONG

from aiosollol.discovery import discover
from aiosollol.errors import ConfigError, InvalidInput

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine may be so busy that it does not answer itself in milliseconds."""
    monkeypatch.setattr("aiosollol.discovery.sweep.home_seconds", lambda timeout: LONG)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"timeout": 0}, "above 0"),
        ({"timeout": 61}, "at most 60"),
        ({"timeout": float("nan")}, "number of seconds"),
        ({"timeout": "1"}, "number of seconds"),
        ({"timeout": True}, "number of seconds"),
        ({"ports": []}, "1 to 64"),
        ({"ports": range(1, 66)}, "1 to 64"),
        ({"ports": [0]}, "0 in ports"),
        ({"ports": [65536]}, "65536 in ports"),
        ({"ports": ["11434"]}, "'11434' in ports"),
        ({"subnets": ["10.0.0.0/33"]}, "like 192.168.1.0/24"),
        ({"subnets": "10.0.0.0/24"}, "a list"),
        ({"allow": ["gpu-box"]}, "'gpu-box' in allow"),
        ({"deny": ["10.0.0"]}, "'10.0.0' in deny"),
        ({"known": ["ftp://box"]}, "http or https"),
        ({"trusted": ["http://10.0.0.7:11434"]}, "without scheme and port"),
        ({"trusted": "10.0.0.7"}, "a list"),
        ({"trusted": [""]}, "a host name"),
        ({"trusted": ["10.0.0.999"]}, "is not understood"),
        ({"max_open": 0}, "max_open"),
        ({"max_open": 2.5}, "max_open"),
        ({"max_addresses": True}, "max_addresses"),
        ({"environ": {"OLLAMA_HOST": "ftp://box"}}, "OLLAMA_HOST"),
    ],
)
def test_arguments_are_checked_at_once(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        discover(**given)


def test_a_bad_variable_is_a_bad_configuration() -> None:
    with pytest.raises(ConfigError) as caught:
        discover(environ={"OLLAMA_HOST": "ftp://box"})
    assert caught.value.source == "OLLAMA_HOST"


@pytest.mark.parametrize("text", ["", " ", '""'])
def test_an_empty_variable_names_no_node(text: str) -> None:
    assert discover(environ={"OLLAMA_HOST": text})._options.named is None


def test_nothing_begins_before_it_is_asked_for() -> None:
    """Outside of a loop, even."""
    assert repr(discover(environ={})) == "<Search new, 0 addresses asked>"
