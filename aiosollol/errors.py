"""Every error that aiosollol raises, as one tree.

::

    SollolError
    ├── InvalidInput (ValueError)      an argument is wrong; nothing was sent
    │   ├── LimitExceeded              larger than a limit; it would never be accepted
    │   ├── ConfigError                a setting or a file of nodes is wrong
    │   └── UnknownJob                 there is no such job, or it has expired
    ├── MissingExtra (ImportError)     an optional dependency is not installed
    ├── PoolClosed                     the pool was closed, or never opened
    ├── StorageError                   a queue's file could not be read or written
    ├── EngineError                    Dask or Ray could not be used, or failed
    ├── NodeError                      one node failed one request
    │   ├── NodeUnreachable            no connection could be made
    │   ├── NodeTimeout                no answer within the deadline
    │   ├── ConnectionLost             the connection broke in the middle
    │   ├── ProtocolError              the answer is not one of Ollama's
    │   │   └── StreamCutOff           a stream broke off
    │   └── ResponseError              the node answered with an error
    │       ├── ModelMissing           this node does not have the model
    │       ├── ServerBusy             its queue is full
    │       ├── NodeUnavailable        the server, or a proxy, is temporarily unavailable
    │       ├── RunnerFailed           the model's process died or could not load
    │       └── BadRequest             the request is invalid
    │           └── TextTooLong        a text is longer than the model's context
    └── RequestFailed                  the request failed after all attempts
        ├── NoNodeAvailable            no node is eligible, or all failed
        ├── ModelNotFound              no node has the model
        ├── PoolSaturated              too many requests are waiting already
        ├── QueueFull                  too many documents are queued already
        ├── BatchError                 some items of a batch have no vector
        └── ReplyBatchError            some prompts of a batch have no reply

Attributes hold the data; the message says what to do next if that is known.
A `NodeError` concerns one attempt on one node, a `RequestFailed` the caller's whole request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from aiosollol._install import install_command

if TYPE_CHECKING:
    from aiosollol.core.embeddings import Embeddings
    from aiosollol.core.reply import Replies


class SollolError(Exception):
    """Base of all errors of this library. All can be copied and pickled with their attributes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args), self.__dict__


def _rebuild(kind: type[SollolError], args: tuple[Any, ...]) -> SollolError:
    """An error of `kind`; its attributes are set afterwards."""
    error = kind.__new__(kind, *args)
    # Not `kind.__init__`, which would build the message from other arguments.
    super(SollolError, error).__init__(*args)
    return error


class InvalidInput(SollolError, ValueError):
    """An argument is wrong. Raised before anything is sent.

    index: position of the invalid text, if the argument is a list of texts.
    """

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class LimitExceeded(InvalidInput):
    """A request is larger than a limit allows, so that sending it again would not help.

    limit: the name of the limit.
    """

    def __init__(self, message: str, *, limit: str) -> None:
        super().__init__(message)
        self.limit = limit


class ConfigError(InvalidInput):
    """A setting or a configuration file is wrong.

    source: the file or environment variable.
    line: the line in the file, if known.
    """

    def __init__(self, message: str, *, source: str, line: int | None = None) -> None:
        super().__init__(message)
        self.source = source
        self.line = line


class UnknownJob(InvalidInput):
    """A queue has no such job: it never existed, or its results have expired.

    job: the requested id.
    """

    def __init__(self, job: str) -> None:
        super().__init__(f"there is no job {job!r}; its results may have been kept long enough")
        self.job = job


class MissingExtra(SollolError, ImportError):
    """A feature needs a package from an extra of aiosollol.

    feature: the feature. extra: the name of the extra.
    """

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra {extra!r}: {install_command(extra)}")
        self.feature = feature
        self.extra = extra


class PoolClosed(SollolError):
    """The pool was closed before or during this call."""


class StorageError(SollolError):
    """A queue's file could not be read or written. Acknowledged data is kept.

    source: the file.
    reason: "full", "locked", "damaged", "read-only", or "io" for any other system error.
    """

    def __init__(self, message: str, *, source: str, reason: str) -> None:
        super().__init__(message)
        self.source = source
        self.reason = reason


class EngineError(SollolError):
    """An engine, such as Dask, could not be used or failed.

    engine: its name. detail: the reason, for people to read.
    """

    def __init__(self, engine: str, detail: str) -> None:
        super().__init__(f"{engine} {detail}")
        self.engine = engine
        self.detail = detail


class NodeError(SollolError):
    """One node failed one request. node: its name. detail: the reason, for people to read."""

    def __init__(self, node: str, detail: str) -> None:
        super().__init__(f"{node}: {detail}")
        self.node = node
        self.detail = detail


class NodeUnreachable(NodeError):
    """No connection could be made: refused, no route, unknown host, or TLS failed."""


class NodeTimeout(NodeError):
    """The node did not answer within the deadline."""


class ConnectionLost(NodeError):
    """The connection broke after the request was sent."""


class ProtocolError(NodeError):
    """The node answered, but not as an Ollama server does (HTML, NaN, too few vectors, ...).

    is_foreign: whether the answer is not even JSON, as of a proxy.
    """

    def __init__(self, node: str, detail: str, *, is_foreign: bool = False) -> None:
        super().__init__(node, detail)
        self.is_foreign = is_foreign


class StreamCutOff(ProtocolError):
    """A stream broke off. delivered: number of parts received before. Its cause has the reason."""

    def __init__(self, node: str, detail: str, *, delivered: int = 0) -> None:
        super().__init__(node, detail)
        self.delivered = delivered


FaultKind: TypeAlias = Literal["request", "text", "model", "busy", "passing", "node"]
"""What a known error message of Ollama blames.

"request": the request, on every node.
"text": the embedded text or the prompt, such as one that is too long.
"model": the node lacks the model.
"busy": the node's queue is full.
"passing": a crashed runner, a model that is still loading, memory that is in use, and the like.
"node": a missing library, a damaged file, NaN, and the like, which last.
"""


class ResponseError(NodeError):
    """The node answered with an error.

    status: the HTTP status.
    message: the node's message.
    fault: what the message blames; None if it is not one of Ollama's known messages.
    is_known: whether it is one of those.
    retry_after: seconds to wait, as the node asks, 60 at most; None if it does not say.
    """

    def __init__(
        self,
        node: str,
        status: int,
        message: str,
        *,
        fault: FaultKind | None = None,
        retry_after: float | None = None,
        hint: str = "",
    ) -> None:
        """`hint` is added to the text of the error: what to do about it."""
        super().__init__(node, f"{message} (status {status})" + (f"; {hint}" if hint else ""))
        self.status = status
        self.message = message
        self.fault = fault
        self.is_known = fault is not None
        self.retry_after = retry_after


class ModelMissing(ResponseError):
    """This node does not have the model; another may."""


class ServerBusy(ResponseError):
    """The node's queue is full; it may accept the same request later."""


class NodeUnavailable(ResponseError):
    """The server, or a proxy before it, is temporarily unavailable (502, 503, 504 or 408)."""


class RunnerFailed(ResponseError):
    """The process that runs the model died, could not load it, or computed NaN."""


class BadRequest(ResponseError):
    """The request is invalid and would fail on every node."""


class TextTooLong(BadRequest):
    """A text is longer than the model's context, and was not to be cut (``on_truncate="raise"``).

    index: its position; None if it was not in a list.
    """

    def __init__(self, node: str, status: int, message: str, *, index: int | None = None) -> None:
        what = "the text" if index is None else f"item {index}"
        hint = "split it, or let the server cut it (on_truncate='warn')"
        super().__init__(node, status, f"{what} is too long: {message}; {hint}")
        self.message = message
        self.index = index

    @classmethod
    def of(cls, error: SollolError, index: int | None = None) -> SollolError:
        """`error`, as a `TextTooLong` if that is what the node says."""
        if isinstance(error, BadRequest) and "context length" in error.message:
            found = cls(error.node, error.status, error.message, index=index)
            found.__cause__ = error
            return found
        return error


class RequestFailed(SollolError):
    """The caller's request could not be completed.

    attempts: the failures of all attempts, in order.
    """

    def __init__(self, message: str, attempts: Sequence[NodeError] = ()) -> None:
        lines = [message, *(f"  {attempt}" for attempt in attempts)]
        super().__init__("\n".join(lines))
        self.attempts = tuple(attempts)


class NoNodeAvailable(RequestFailed):
    """No node could answer. nodes: each node's last error by name, for people to read."""

    def __init__(
        self, message: str, nodes: Mapping[str, str], attempts: Sequence[NodeError] = ()
    ) -> None:
        lines = [message, *(f"  {name}: {problem}" for name, problem in nodes.items())]
        super().__init__("\n".join(lines))
        self.nodes = dict(nodes)
        self.attempts = tuple(attempts)


class ModelNotFound(RequestFailed):
    """No node has the model.

    model: the requested model.
    nodes: models by node, for the nodes that answered.
    silent: errors by node, for the nodes that did not.
    """

    def __init__(
        self,
        model: str,
        nodes: Mapping[str, Sequence[str]],
        silent: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model
        self.nodes = {name: tuple(models) for name, models in nodes.items()}
        self.silent = dict(silent or {})
        lines = [f"no node has the model {model!r}; pull it on one with: ollama pull {model}"]
        for name, models in self.nodes.items():
            lines.append(f"  {name} has: {', '.join(models) or 'no models'}")
        for name, problem in self.silent.items():
            lines.append(f"  {name} does not answer: {problem}")
        super().__init__("\n".join(lines))


class PoolSaturated(RequestFailed):
    """Too many requests are waiting for a node.

    Raised at once if the waiting room is full, or after a request has waited there too long.
    """


class QueueFull(RequestFailed):
    """A queue has no room for these documents. None of them was queued.

    retry_after: estimated seconds until there is room.
    """

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BatchError(RequestFailed):
    """Some items of a batch have no vector.

    embeddings: every computed vector, in input order, with rows of NaN for the missing ones.
    errors: errors of the missing items, by index.
    """

    def __init__(self, embeddings: Embeddings, errors: Mapping[int, SollolError]) -> None:
        missing = f"{len(errors)} of {len(embeddings)} items have no vector"
        super().__init__(_listing(missing, "embeddings", "item", errors))
        self.embeddings = embeddings
        self.errors = dict(errors)


class ReplyBatchError(RequestFailed):
    """Some prompts of a batch have no reply.

    replies: every reply, in the order of the prompts, None for the missing ones.
    errors: errors of the missing replies, by position.
    """

    def __init__(self, replies: Replies[Any]) -> None:
        missing = f"{len(replies.errors)} of {len(replies)} prompts have no reply"
        super().__init__(_listing(missing, "replies", "prompt", replies.errors))
        self.replies = replies
        self.errors = replies.errors


def _listing(missing: str, others: str, item: str, errors: Mapping[int, SollolError]) -> str:
    """The message of a batch with errors: how many, and the first of them on lines of their own."""
    lines = [f"  {item} {index}: {error}" for index, error in list(errors.items())[:3]]
    if len(errors) > len(lines):
        lines.append(f"  and {len(errors) - len(lines)} more")
    return "\n".join([f"{missing}; the others are in .{others}, the errors in .errors", *lines])


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception of a group that is not itself a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
