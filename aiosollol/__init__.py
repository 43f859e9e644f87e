"""All the Ollama servers on a network, as one.

>>> async with OllamaPool(nodes=["http://10.0.0.2:11434", "10.0.0.3"]) as pool:
...     vectors = await pool.embed_batch("nomic-embed-text", texts)
"""

from aiosollol.core.embeddings import Embeddings, Vector
from aiosollol.core.node import ClusterView, NodeSpec, NodeState
from aiosollol.core.parallelism import ParallelismEntry
from aiosollol.core.planner import Mode, Plan, Reason
from aiosollol.core.reply import ChatReply, GeneratedText
from aiosollol.core.report import BatchReport, NodeShare
from aiosollol.errors import (
    BadRequest,
    BatchError,
    ConfigError,
    ConnectionLost,
    InvalidInput,
    MissingExtra,
    ModelMissing,
    ModelNotFound,
    NodeError,
    NodeTimeout,
    NodeUnreachable,
    NoNodeAvailable,
    PoolClosed,
    PoolSaturated,
    ProtocolError,
    RequestFailed,
    ResponseError,
    RunnerFailed,
    ServerBusy,
    SollolError,
    StreamCutOff,
)
from aiosollol.node_registry import NodeRegistry
from aiosollol.pool import OllamaPool
from aiosollol.streams import ReplyStream

__version__ = "0.1.0"

__all__ = [
    "BadRequest",
    "BatchError",
    "BatchReport",
    "ChatReply",
    "ClusterView",
    "ConfigError",
    "ConnectionLost",
    "Embeddings",
    "GeneratedText",
    "InvalidInput",
    "MissingExtra",
    "Mode",
    "ModelMissing",
    "ModelNotFound",
    "NoNodeAvailable",
    "NodeError",
    "NodeRegistry",
    "NodeShare",
    "NodeSpec",
    "NodeState",
    "NodeTimeout",
    "NodeUnreachable",
    "OllamaPool",
    "ParallelismEntry",
    "Plan",
    "PoolClosed",
    "PoolSaturated",
    "ProtocolError",
    "Reason",
    "ReplyStream",
    "RequestFailed",
    "ResponseError",
    "RunnerFailed",
    "ServerBusy",
    "SollolError",
    "StreamCutOff",
    "Vector",
]
