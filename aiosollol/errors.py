"""Every error that aiosollol raises, as one tree.

::

    SollolError
    ├── InvalidInput (ValueError)      an argument is wrong; nothing was sent
    │   ├── ConfigError                a setting or a file of nodes is wrong
    │   └── UnknownJob                 there is no such job, or no longer
    ├── MissingExtra (ImportError)     an optional dependency is not installed
    ├── PoolClosed                     the pool was closed, or never opened
    ├── StorageError                   the file of a queue could not be read or written
    ├── EngineError                    Dask or Ray could not be used, or failed
    ├── NodeError                      one node failed one request
    │   ├── NodeUnreachable            no connection could be made
    │   ├── NodeTimeout                no answer within the deadline
    │   ├── ConnectionLost             the connection broke in the middle
    │   ├── ProtocolError              the answer is not what Ollama answers
    │   │   └── StreamCutOff           a stream broke off
    │   └── ResponseError              the node answered with an error
    │       ├── ModelMissing           this node does not have the model
    │       ├── ServerBusy             its queue is full
    │       ├── RunnerFailed           the model's process died or could not load
    │       └── BadRequest             the request itself is at fault
    └── RequestFailed                  all that could be tried was tried
        ├── NoNodeAvailable            no node is fit to be asked, or all failed
        ├── ModelNotFound              no node has the model
        ├── PoolSaturated              too many requests are waiting already
        ├── QueueFull                  too many documents are queued already
        └── BatchError                 some items of a batch have no vector

Data is in attributes; the message says what to do next where we know it.
A `NodeError` is about one attempt on one node, a `RequestFailed` about what the caller asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiosollol.core.embeddings import Embeddings


class SollolError(Exception):
    """Base of all errors of this library. Each can be copied and pickled, with its attributes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args), self.__dict__


def _rebuild(kind: type[SollolError], args: tuple[Any, ...]) -> SollolError:
    """An error of `kind` whose attributes are set afterwards."""
    error = kind.__new__(kind, *args)
    # Not `kind`'s own: that makes the message out of other arguments, and the message is there.
    super(SollolError, error).__init__(*args)
    return error


class InvalidInput(SollolError, ValueError):
    """An argument is wrong. Raised before anything is sent.

    `index` is the position of the offending text where the argument is a list of texts.
    """

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class ConfigError(InvalidInput):
    """A setting or a configuration file is wrong.

    `source` is the file or the environment variable, `line` the line in the file if that is known.
    """

    def __init__(self, message: str, *, source: str, line: int | None = None) -> None:
        super().__init__(message)
        self.source = source
        self.line = line


class UnknownJob(InvalidInput):
    """A queue has no such job: there never was one, or its results were kept for long enough.

    `job` is the id that was asked for.
    """

    def __init__(self, job: str) -> None:
        super().__init__(f"there is no job {job!r}; its results may have been kept long enough")
        self.job = job


class MissingExtra(SollolError, ImportError):
    """A feature needs a package that comes with an extra of aiosollol."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra {extra!r}: pip install 'aiosollol[{extra}]'")
        self.feature = feature
        self.extra = extra


class PoolClosed(SollolError):
    """The pool was closed before or during this call."""


class StorageError(SollolError):
    """The file of a queue could not be read or written. What was acknowledged before is kept.

    `source` is the file. `reason` is "full", "locked", "damaged", "read-only", or "io" for whatever
    else the system refuses.
    """

    def __init__(self, message: str, *, source: str, reason: str) -> None:
        super().__init__(message)
        self.source = source
        self.reason = reason


class EngineError(SollolError):
    """An engine, such as Dask, could not be used or failed. `engine` is its name."""

    def __init__(self, engine: str, detail: str) -> None:
        super().__init__(f"{engine} {detail}")
        self.engine = engine
        self.detail = detail


class NodeError(SollolError):
    """One node failed one request. `node` is its name, `detail` what happened, in words."""

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
    """The node answered, but not as an Ollama server does (HTML, NaN, too few vectors, ...)."""


class StreamCutOff(ProtocolError):
    """A stream broke off. `delivered` is how many parts came before, the cause what happened."""

    def __init__(self, node: str, detail: str, *, delivered: int = 0) -> None:
        super().__init__(node, detail)
        self.delivered = delivered


class ResponseError(NodeError):
    """The node answered with an error. `status` is the HTTP status, `message` the node's text."""

    def __init__(self, node: str, status: int, message: str) -> None:
        super().__init__(node, f"{message} (status {status})")
        self.status = status
        self.message = message


class ModelMissing(ResponseError):
    """This node does not have the model; another may."""


class ServerBusy(ResponseError):
    """The node's queue is full; it may accept the same request later."""


class RunnerFailed(ResponseError):
    """The process that runs the model died, could not load it, or computed NaN."""


class BadRequest(ResponseError):
    """The request is at fault and would fail on every node."""


class RequestFailed(SollolError):
    """What the caller asked for could not be done.

    `attempts` lists the failure of every attempt, in the order in which they were made.
    """

    def __init__(self, message: str, attempts: Sequence[NodeError] = ()) -> None:
        lines = [message, *(f"  {attempt}" for attempt in attempts)]
        super().__init__("\n".join(lines))
        self.attempts = tuple(attempts)


class NoNodeAvailable(RequestFailed):
    """No node could answer. `nodes` maps each node's name to its last error, in words."""

    def __init__(
        self, message: str, nodes: Mapping[str, str], attempts: Sequence[NodeError] = ()
    ) -> None:
        lines = [message, *(f"  {name}: {problem}" for name, problem in nodes.items())]
        super().__init__("\n".join(lines))
        self.nodes = dict(nodes)
        self.attempts = tuple(attempts)


class ModelNotFound(RequestFailed):
    """No node has the model.

    `nodes` maps each node that was asked to the models it has, `silent` each that does not answer
    to its error.
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
    """So many requests are waiting for a node that another would wait too long.

    Raised at once when the waiting room is full, or when a request waited there for too long.
    """


class QueueFull(RequestFailed):
    """A queue has no room for these documents. None of them was queued.

    `retry_after` is the seconds after which there is room, as far as can be told.
    """

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BatchError(RequestFailed):
    """Some items of a batch have no vector.

    `errors` maps the index of each missing item to its error; `embeddings` holds every vector
    that was computed, at its place, and rows of NaN for the missing ones.
    """

    def __init__(self, embeddings: Embeddings, errors: Mapping[int, SollolError]) -> None:
        shown = [f"item {index}: {error}" for index, error in list(errors.items())[:3]]
        more = len(errors) - len(shown)
        message = (
            f"{len(errors)} of {len(embeddings)} items have no vector; "
            "the others are in .embeddings, the errors in .errors"
        )
        lines = [message, *(f"  {line}" for line in shown)]
        if more:
            lines.append(f"  and {more} more")
        super().__init__("\n".join(lines))
        self.embeddings = embeddings
        self.errors = dict(errors)


def summary(error: BaseException) -> str:
    """`error` for a log: its kind and node, and nothing that a request or an answer holds.

    What a node says in an error, or answered in place of what was due, may quote a prompt.
    """
    match error:
        case StreamCutOff():
            return f"{error.node}: StreamCutOff after {error.delivered} parts"
        case ResponseError():
            return f"{error.node}: {type(error).__name__} (status {error.status})"
        case ProtocolError():
            return f"{error.node}: ProtocolError"
        case NodeError():
            return f"{type(error).__name__}: {error}"
        case RequestFailed():
            attempts = dict.fromkeys(map(summary, error.attempts))
            head = str(error).partition("\n")[0]
            return "; ".join([f"{type(error).__name__}: {head}", *attempts])
        case _:
            return type(error).__name__


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception of a group that is not itself a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
