"""Fake Ollama servers, for our tests and yours.

`FakeOllama` is a server on loopback, `FakeTransport` the same without sockets and in virtual time,
`FakeOllamaProcess` a server in a child process. All have configurable costs, deterministic vectors
(`fake_vector`) and faults (`Fault`) that can be switched while they run.
"""

from aiosollol.testing.faults import Fault
from aiosollol.testing.models import FakeModel, fake_tokens, fake_vector
from aiosollol.testing.node import FakeNode, FakeOptions
from aiosollol.testing.requests import RecordedRequest
from aiosollol.testing.server import FakeOllama, FakeOllamaProcess
from aiosollol.testing.transport import FakeEngine, FakeTransport

__all__ = [
    "FakeEngine",
    "FakeModel",
    "FakeNode",
    "FakeOllama",
    "FakeOllamaProcess",
    "FakeOptions",
    "FakeTransport",
    "Fault",
    "RecordedRequest",
    "fake_tokens",
    "fake_vector",
]
