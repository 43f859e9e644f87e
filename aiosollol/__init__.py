"""All the Ollama servers on a network, as one.

>>> async with OllamaPool(nodes=["http://10.0.0.2:11434", "10.0.0.3"]) as pool:
...     vectors = await pool.embed_batch("nomic-embed-text", texts)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aiosollol._version import __version__
from aiosollol.batch.prompts import PromptStream
from aiosollol.cluster.event_hub import EventStream
from aiosollol.config.settings import PoolSettings
from aiosollol.core.agreement import Agreement, NodeAgreement
from aiosollol.core.embeddings import Embeddings, Vector
from aiosollol.core.events import (
    AttemptFailed,
    Hedged,
    Loading,
    NodeChanged,
    PoolEvent,
    Routed,
)
from aiosollol.core.networks import Discovered
from aiosollol.core.node import ClusterView, NodeSpec, NodeState
from aiosollol.core.offload.write_report import WriteReport
from aiosollol.core.reply import ChatReply, GeneratedText, Replies
from aiosollol.core.report import BatchReport, EngineNote, NodeShare, ReplyReport
from aiosollol.core.routing.explain import NodeExplanation, RouteExplanation
from aiosollol.core.routing.strategies import NodeLoad, RouteRequest, RoutingFunction
from aiosollol.core.scheduling.parallelism import ParallelismEntry
from aiosollol.core.scheduling.planner import Mode, Plan, Reason
from aiosollol.errors import (
    BadRequest,
    BatchError,
    ConfigError,
    ConnectionLost,
    EngineError,
    FaultKind,
    InvalidInput,
    LimitExceeded,
    MissingExtra,
    ModelMissing,
    ModelNotFound,
    NodeError,
    NodeTimeout,
    NodeUnavailable,
    NodeUnreachable,
    NoNodeAvailable,
    PoolClosed,
    PoolSaturated,
    ProtocolError,
    QueueFull,
    ReplyBatchError,
    RequestFailed,
    ResponseError,
    RunnerFailed,
    ServerBusy,
    SollolError,
    StorageError,
    StreamCutOff,
    TextTooLong,
    UnknownJob,
)
from aiosollol.live.streaming import ReplyStream
from aiosollol.pool.facade import OllamaPool
from aiosollol.pool.registry import NodeRegistry

if TYPE_CHECKING:
    from aiosollol.discovery import discover, discover_ollama_nodes
    from aiosollol.service import SOLLOL, SOLLOLConfig

__all__ = [
    "SOLLOL",
    "Agreement",
    "AttemptFailed",
    "BadRequest",
    "BatchError",
    "BatchReport",
    "ChatReply",
    "ClusterView",
    "ConfigError",
    "ConnectionLost",
    "Discovered",
    "Embeddings",
    "EngineError",
    "EngineNote",
    "EventStream",
    "FaultKind",
    "GeneratedText",
    "Hedged",
    "InvalidInput",
    "LimitExceeded",
    "Loading",
    "MissingExtra",
    "Mode",
    "ModelMissing",
    "ModelNotFound",
    "NoNodeAvailable",
    "NodeAgreement",
    "NodeChanged",
    "NodeError",
    "NodeExplanation",
    "NodeLoad",
    "NodeRegistry",
    "NodeShare",
    "NodeSpec",
    "NodeState",
    "NodeTimeout",
    "NodeUnavailable",
    "NodeUnreachable",
    "OllamaPool",
    "ParallelismEntry",
    "Plan",
    "PoolClosed",
    "PoolEvent",
    "PoolSaturated",
    "PoolSettings",
    "PromptStream",
    "ProtocolError",
    "QueueFull",
    "Reason",
    "Replies",
    "ReplyBatchError",
    "ReplyReport",
    "ReplyStream",
    "RequestFailed",
    "ResponseError",
    "RouteExplanation",
    "RouteRequest",
    "Routed",
    "RoutingFunction",
    "RunnerFailed",
    "SOLLOLConfig",
    "ServerBusy",
    "SollolError",
    "StorageError",
    "StreamCutOff",
    "TextTooLong",
    "UnknownJob",
    "Vector",
    "WriteReport",
    "__version__",
    "discover",
    "discover_ollama_nodes",
]

# PEP 562: who does not search need not load zeroconf and netifaces, nor aiohttp who serves nothing.
_LATER = {
    "SOLLOL": "service",
    "SOLLOLConfig": "service",
    "discover": "discovery",
    "discover_ollama_nodes": "discovery",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
