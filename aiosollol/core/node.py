"""A node as configured (`NodeSpec`), its known state (`NodeState`), and all nodes (`ClusterView`).

All three are frozen: a change makes a new object, so a view stays consistent during a decision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType, UnionType
from typing import Any, NamedTuple, TypeAlias

from aiosollol.core.address import AGENT_PORT, Address
from aiosollol.core.model_names import full_name
from aiosollol.core.redaction import redacted, safe_repr
from aiosollol.errors import InvalidInput

_SPEC_KEYS = (
    "url",
    "name",
    "priority",
    "machine",
    "headers",
    "max_concurrency",
    "vram_gb",
    "fingerprint",
    "agent",
)


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A node's configuration. Only `url` is required.

    url: its address, in any form that `Address.parse` accepts; normalised here.
    name: its name in logs, errors and reports; ``host:port`` by default.
    priority: the lowest number is used first by the strategy "priority".
    machine: nodes with the same label share one physical machine.
    headers: sent with every request, for a node behind a reverse proxy; never printed.
    max_concurrency: maximum number of this pool's requests in flight on the node.
    vram_gb: total GPU memory, in GiB, if known.
    fingerprint: SHA-256 of an https node's certificate, 64 hexadecimal digits, with or without
    colons. If given, only that certificate is trusted, regardless of its issuer.
    agent: address of its `aiosollol agent`, such as 10.0.0.2:11435; None if it has none.

    Raises InvalidInput for an invalid field.
    """

    url: str
    name: str = ""
    priority: int = 0
    machine: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    max_concurrency: int | None = None
    vram_gb: float | None = None
    fingerprint: str | None = None
    agent: str | None = None

    def __post_init__(self) -> None:
        address = Address.parse(self.url)
        set_ = object.__setattr__
        set_(self, "url", address.url)
        set_(self, "name", self.name or address.netloc)
        if not isinstance(self.name, str):
            raise InvalidInput(f"name of {self.url} must be a string, not {safe_repr(self.name)}")
        if not isinstance(self.headers, Mapping):
            raise InvalidInput(f"headers of {self.name} must map strings to strings")
        set_(self, "headers", MappingProxyType(dict(self.headers)))
        if not _is_number(self.priority, int):
            raise InvalidInput(f"priority of {self.name} must be a whole number")
        if self.machine is not None and not (isinstance(self.machine, str) and self.machine):
            raise InvalidInput(f"machine of {self.name} must be a non-empty string")
        for key, value in self.headers.items():
            if not (isinstance(key, str) and isinstance(value, str)):
                raise InvalidInput(f"headers of {self.name} must map strings to strings")
            if any(character in f"{key}{value}" for character in "\r\n\0"):
                raise InvalidInput(f"header {key!r} of {self.name} contains a line break")
        limit = self.max_concurrency
        if limit is not None and not (_is_number(limit, int) and limit >= 1):
            raise InvalidInput(f"max_concurrency of {self.name} must be at least 1, not {limit!r}")
        vram = self.vram_gb
        if vram is not None and not (_is_number(vram, int | float) and 0 <= vram < float("inf")):
            raise InvalidInput(f"vram_gb of {self.name} must be a number of GiB, not {vram!r}")
        if self.fingerprint is not None:
            set_(self, "fingerprint", _plain_fingerprint(self.name, self.fingerprint))
            if address.scheme != "https":
                raise InvalidInput(f"{self.name} has a fingerprint, so its URL must be https://")
        if self.agent is not None:
            set_(self, "agent", Address.parse(self.agent, AGENT_PORT).url)

    def __reduce__(self) -> tuple[type[NodeSpec], tuple[Any, ...]]:
        # The read-only view of the headers cannot be pickled or copied.
        values = (
            dict(self.headers) if key == "headers" else getattr(self, key) for key in _SPEC_KEYS
        )
        return NodeSpec, tuple(values)

    @property
    def address(self) -> Address:
        """The parsed `url`."""
        return Address.parse(self.url)

    @property
    def key(self) -> str:
        """``host:port``, the node's key in statistics."""
        return self.address.netloc

    @classmethod
    def parse(cls, node: NodeLike) -> NodeSpec:
        """A `NodeSpec` from a string, a mapping, or a `NodeSpec`.

        A mapping has "url", or "host" and optionally "port" (a string or a number), and any of the
        other fields. Raises InvalidInput, which names the invalid key.
        """
        if isinstance(node, NodeSpec):
            return node
        if isinstance(node, str):
            return cls(url=node)
        if not isinstance(node, Mapping):
            raise InvalidInput(
                f"a node must be a URL, a mapping or a NodeSpec, not {type(node).__name__}"
            )
        fields = dict(node)
        if "host" in fields:
            if "url" in fields:
                host = safe_repr(fields["host"])
                raise InvalidInput(f"node {host} has both 'host' and 'url': give one")
            fields["url"] = _join_host(fields.pop("host"), fields.pop("port", None))
        elif "port" in fields:
            raise InvalidInput("'port' of a node needs 'host'; a 'url' contains its port")
        unknown = sorted(str(key) for key in fields if key not in _SPEC_KEYS)
        if unknown:
            raise InvalidInput(
                f"unknown key {unknown[0]!r} in a node; "
                f"known are host, port, {', '.join(_SPEC_KEYS)}"
            )
        if fields.get("url") is None:
            raise InvalidInput("a node given as a mapping needs 'url', or 'host' and 'port'")
        return cls(**{key: value for key, value in fields.items() if value is not None})


NodeLike: TypeAlias = str | Mapping[str, Any] | NodeSpec


def _is_number(value: object, kind: type | UnionType) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _plain_fingerprint(name: str, fingerprint: object) -> str:
    plain = fingerprint.replace(":", "").lower() if isinstance(fingerprint, str) else ""
    if not re.fullmatch("[0-9a-f]{64}", plain):
        raise InvalidInput(
            f"fingerprint of {name} must be the SHA-256 of its certificate, 64 hexadecimal digits, "
            f"not {safe_repr(fingerprint)}"
        )
    return plain


def _join_host(host: object, port: object) -> str:
    if not isinstance(host, str):
        raise InvalidInput(f"'host' of a node must be a string, not {type(host).__name__}")
    if port is None or port == "":
        return host
    if isinstance(port, bool) or not isinstance(port, int | str):
        raise _wrong_port(host, port)
    if not str(port).isascii() or not str(port).isdigit():
        raise _wrong_port(host, port)
    bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{bracketed}:{port}"


def _wrong_port(host: str, port: object) -> InvalidInput:
    shown = safe_repr(port)
    return InvalidInput(f"'port' of node {redacted(host)!r} must be a number, not {shown}")


class ModelInfo(NamedTuple):
    """A model on a node, from ``/api/tags``.

    size: bytes.
    dim: length of its embeddings; 0 if the server does not report it.
    context_length: tokens of the context that it was trained with; 0 likewise.
    family: architecture, such as "llama"; "" likewise.
    """

    name: str
    digest: str = ""
    size: int = 0
    dim: int = 0
    context_length: int = 0
    family: str = ""


ONE_SLOT_FAMILIES = frozenset(
    (
        "mllama",
        "qwen3vl",
        "qwen3vlmoe",
        "qwen35",
        "qwen35moe",
        "qwen3next",
        "lfm2",
        "lfm2moe",
        "nemotron_h",
        "nemotron_h_moe",
        "nemotron_h_omni",
    )
)
"""Families of which Ollama answers one chat at a time, whatever OLLAMA_NUM_PARALLEL says
(``server/sched.go``)."""


class LoadedModel(NamedTuple):
    """A model in a node's memory, from ``/api/ps``. Sizes are bytes.

    context_length: tokens of the context that it was loaded with; 0 if not reported.
    """

    name: str
    digest: str = ""
    size: int = 0
    size_vram: int = 0
    context_length: int = 0


@dataclass(frozen=True, slots=True)
class NodeState:
    """The known state of one node.

    models, loaded: its models, and those in memory, by full name; None until reported.
    failures: consecutive failed requests.
    missed: consecutive failed probes.
    error: the last failure while it is down.
    cpu_load: 0 to 1, from its agent; None if unknown.
    gpu_memory_total, gpu_memory_free: bytes, from its agent; None if unknown or without a GPU.
    machine: machine id, from its agent.
    """

    spec: NodeSpec
    version: str = ""
    models: Mapping[str, ModelInfo] | None = None
    loaded: Mapping[str, LoadedModel] | None = None
    failures: int = 0
    missed: int = 0
    is_down: bool = False
    error: str = ""
    cpu_load: float | None = None
    gpu_memory_total: int | None = None
    gpu_memory_free: int | None = None
    machine: str = ""

    @property
    def name(self) -> str:
        return self.spec.name

    def has_model(self, model: str) -> bool:
        """Whether the node is known to have `model`; ``x`` means ``x:latest``."""
        return self.models is not None and full_name(model) in self.models

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names of its models, spelt as the node spells them; none if they are unknown."""
        return tuple(model.name for model in (self.models or {}).values())

    def find_model(self, model: str) -> ModelInfo | None:
        return None if self.models is None else self.models.get(full_name(model))

    def has_gpu(self) -> bool:
        """Whether any loaded model is at least partly in GPU memory."""
        return any(model.size_vram > 0 for model in (self.loaded or {}).values())

    def without_model(self, model: str) -> NodeState:
        """The state after the node reported that it does not have `model`."""
        if not self.has_model(model):
            return self
        name = full_name(model)
        return replace(self, models={k: v for k, v in (self.models or {}).items() if k != name})


@dataclass(frozen=True, slots=True)
class ClusterView:
    """A snapshot of all nodes. `nodes`: states by name, in the user's order."""

    nodes: Mapping[str, NodeState]

    def having(self, model: str) -> list[NodeState]:
        """The nodes that are not down and have `model`."""
        return [node for node in self.nodes.values() if not node.is_down and node.has_model(model)]


_GIB = 2**30
_OVERHEAD = 1.2
"""Assumed memory of a loaded model relative to its file size, for context and buffers. A guess, not
a measurement; Ollama's own estimate depends on the context length."""


def gpu_total(state: NodeState) -> int | None:
    """Total GPU memory in bytes, from the agent or the user's `vram_gb`; None if unknown."""
    if state.gpu_memory_total is not None:
        return state.gpu_memory_total
    vram_gb = state.spec.vram_gb
    return None if vram_gb is None else int(vram_gb * _GIB)


def gpu_free(state: NodeState) -> int | None:
    """Free GPU memory in bytes; None if unknown.

    As measured by the agent, else the total minus the memory of the loaded models.
    """
    if state.gpu_memory_free is not None:
        return state.gpu_memory_free
    total = gpu_total(state)
    if total is None or state.loaded is None:
        return None
    return max(0, total - sum(model.size_vram for model in state.loaded.values()))


def fits(state: NodeState, model: str) -> bool | None:
    """Whether `model` is in memory or fits into the free GPU memory; None if unknown.

    Also None for a node without GPU memory (a total of 0).
    """
    name = full_name(model)
    if state.loaded is not None and name in state.loaded:
        return True
    free, known = gpu_free(state), state.find_model(model)
    if free is None or not gpu_total(state) or known is None or not known.size:
        return None
    return known.size * _OVERHEAD <= free
