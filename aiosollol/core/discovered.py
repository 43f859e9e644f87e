"""What a search for nodes brings to light."""

from __future__ import annotations

from typing import Literal, NamedTuple

Source = Literal["environment", "known", "zeroconf", "scan"]
"""How a node was found: named by ``OLLAMA_HOST``, known from before, announced, or by a probe of
its subnet."""


class Discovered(NamedTuple):
    """An Ollama server that answered as one.

    url: its base URL, as `Address.url` writes it. models: full names.
    seconds: the round trip of its first answer.
    name: what it calls itself, machine: what it says of the machine it runs on, where it was
    announced, agent: URL of its agent; fingerprint: of the certificate by which it was trusted.
    All are "" otherwise.
    """

    url: str
    version: str
    models: tuple[str, ...]
    source: Source
    seconds: float
    name: str = ""
    machine: str = ""
    fingerprint: str = ""
    agent: str = ""
