"""The errors: one tree, data in attributes, and messages that tell what to do."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from array import array
from typing import Any

import pytest

import aiosollol
from aiosollol import errors
from aiosollol._install import install_command
from aiosollol.core.embeddings import Embeddings
from aiosollol.core.reply import GeneratedText, Replies
from aiosollol.core.report import ReplyReport
from aiosollol.errors import (
    BadRequest,
    BatchError,
    ConfigError,
    ConnectionLost,
    EngineError,
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

CRASHED = RunnerFailed("gpu", 500, "out of memory")
LATE = NodeTimeout("cpu", "no answer in 5 s")
PARTIAL = Embeddings(array("f", [1.0, float("nan")]), 1, errors={1: CRASHED})
REPLIES: Replies[GeneratedText] = Replies(
    [GeneratedText.of({"response": "yes"}), None], {1: CRASHED}, ReplyReport(1, 1, 2.0)
)

# One of each: the error, its attributes, and what its message has to say.
EACH: list[tuple[SollolError, dict[str, Any], str]] = [
    (SollolError("words"), {}, "words"),
    (InvalidInput("item 3 is no text", index=3), {"index": 3}, "item 3 is no text"),
    (
        ConfigError("nodes.json, line 3: no URL", source="nodes.json", line=3),
        {"source": "nodes.json", "line": 3, "index": None},
        "nodes.json, line 3: no URL",
    ),
    (
        UnknownJob("7"),
        {"job": "7", "index": None},
        "there is no job '7'; its results may have been kept long enough",
    ),
    (
        MissingExtra("the progress bar", "cli"),
        {
            "feature": "the progress bar",
            "extra": "cli",
            "msg": str(MissingExtra("the progress bar", "cli")),
        },
        f"the progress bar needs the extra 'cli': {install_command('cli')}",
    ),
    (PoolClosed("the pool is closed"), {}, "the pool is closed"),
    (
        StorageError("q.db: the disk is full", source="q.db", reason="full"),
        {"source": "q.db", "reason": "full"},
        "q.db: the disk is full",
    ),
    (
        EngineError("dask", "has no scheduler"),
        {"engine": "dask", "detail": "has no scheduler"},
        "dask has no scheduler",
    ),
    (NodeError("gpu", "words"), {"node": "gpu", "detail": "words"}, "gpu: words"),
    (NodeUnreachable("gpu", "refused"), {"node": "gpu", "detail": "refused"}, "gpu: refused"),
    (LATE, {"node": "cpu", "detail": "no answer in 5 s"}, "cpu: no answer in 5 s"),
    (ConnectionLost("gpu", "reset"), {"node": "gpu", "detail": "reset"}, "gpu: reset"),
    (ProtocolError("gpu", "HTML"), {"node": "gpu", "detail": "HTML"}, "gpu: HTML"),
    (
        StreamCutOff("gpu", "ended", delivered=7),
        {"node": "gpu", "detail": "ended", "delivered": 7},
        "gpu: ended",
    ),
    *(
        (
            kind("gpu", 418, "words"),
            {
                "node": "gpu",
                "status": 418,
                "message": "words",
                "detail": "words (status 418)",
                "fault": None,
                "is_known": False,
                "retry_after": None,
            },
            "gpu: words (status 418)",
        )
        for kind in (
            ResponseError,
            ModelMissing,
            ServerBusy,
            NodeUnavailable,
            RunnerFailed,
            BadRequest,
        )
    ),
    (
        ServerBusy("gpu", 503, "words", fault="busy", retry_after=2.0, hint="wait"),
        {
            "node": "gpu",
            "status": 503,
            "message": "words",
            "detail": "words (status 503); wait",
            "fault": "busy",
            "is_known": True,
            "retry_after": 2.0,
        },
        "gpu: words (status 503); wait",
    ),
    (
        TextTooLong("gpu", 400, "too many tokens", index=3),
        {"node": "gpu", "status": 400, "message": "too many tokens", "index": 3},
        "gpu: item 3 is too long: too many tokens; split it, or let the server cut it "
        "(on_truncate='warn') (status 400)",
    ),
    (
        RequestFailed("all failed", [CRASHED, LATE]),
        {"attempts": (CRASHED, LATE)},
        "all failed\n  gpu: out of memory (status 500)\n  cpu: no answer in 5 s",
    ),
    (
        NoNodeAvailable("nobody answers", {"gpu": "refused"}, [LATE]),
        {"nodes": {"gpu": "refused"}, "attempts": (LATE,)},
        "nobody answers\n  gpu: refused",
    ),
    (
        ModelNotFound("x", {"gpu": ["y", "z"], "cpu": []}, {"off": "refused"}),
        {"model": "x", "nodes": {"gpu": ("y", "z"), "cpu": ()}, "silent": {"off": "refused"}},
        "no node has the model 'x'; pull it on one with: ollama pull x\n"
        "  gpu has: y, z\n  cpu has: no models\n  off does not answer: refused",
    ),
    (PoolSaturated("1,000 requests are waiting"), {"attempts": ()}, "1,000 requests are waiting"),
    (
        LimitExceeded("over max_bytes=9", limit="max_bytes"),
        {"limit": "max_bytes", "index": None},
        "over max_bytes=9",
    ),
    (
        QueueFull("9 documents are queued", retry_after=2.5),
        {"retry_after": 2.5, "attempts": ()},
        "9 documents are queued",
    ),
    (
        BatchError(PARTIAL, {1: CRASHED}),
        {"embeddings": PARTIAL, "errors": {1: CRASHED}, "attempts": ()},
        "1 of 2 items have no vector; the others are in .embeddings, the errors in .errors\n"
        "  item 1: gpu: out of memory (status 500)",
    ),
    (
        ReplyBatchError(REPLIES),
        {"replies": REPLIES, "errors": {1: CRASHED}, "attempts": ()},
        "1 of 2 prompts have no reply; the others are in .replies, the errors in .errors\n"
        "  prompt 1: gpu: out of memory (status 500)",
    ),
]
one_of_each = pytest.mark.parametrize(
    ("error", "attributes", "message"), EACH, ids=[type(error).__name__ for error, *_ in EACH]
)


@one_of_each
def test_each_carries_its_data(
    error: SollolError, attributes: dict[str, Any], message: str
) -> None:
    assert str(error) == message
    assert {name: getattr(error, name) for name in attributes} == attributes


def fingerprint(error: SollolError) -> Any:
    """Everything that an error is, in a form that can be compared."""

    def plain(value: Any) -> Any:
        match value:
            case SollolError():
                return fingerprint(value)
            case Embeddings():
                return value, plain(value.errors)
            case dict():
                return {key: plain(item) for key, item in value.items()}
            case list() | tuple():
                return [plain(item) for item in value]
        return value

    return type(error), str(error), error.args, plain(vars(error)), getattr(error, "msg", None)


@one_of_each
@pytest.mark.parametrize(
    "twin_of",
    [copy.copy, copy.deepcopy]
    + [
        lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    ],
    ids=["copy", "deepcopy", *(f"pickle {at}" for at in range(pickle.HIGHEST_PROTOCOL + 1))],
)
def test_each_can_be_copied_and_pickled(
    error: SollolError, attributes: dict[str, Any], message: str, twin_of: Any
) -> None:
    twin = twin_of(error)
    assert twin is not error
    assert fingerprint(twin) == fingerprint(error)


def test_notes_survive_too() -> None:
    error = NodeError("gpu", "words")
    error.add_note("while warming up")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["while warming up"]


def all_kinds() -> list[type[BaseException]]:
    return [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, BaseException)
    ]


def test_every_error_is_one_of_ours_and_public() -> None:
    kinds = all_kinds()
    assert all(issubclass(kind, SollolError) for kind in kinds)
    assert {type(error) for error, *_ in EACH} == set(kinds)
    assert [kind for kind in kinds if getattr(aiosollol, kind.__name__, None) is not kind] == []


def test_the_tree_in_the_docs_is_the_tree() -> None:
    drawn: list[tuple[str, str]] = []  # (child, parent)
    above: dict[int, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        if not (found := re.match(r"    ([│├└─ ]*)([A-Z]\w+)(?: \((\w+)\))?", line)):
            continue
        depth, name, builtin = len(found[1]) // 4, found[2], found[3]
        above[depth] = name
        drawn += [(name, above[depth - 1])] if depth else []
        drawn += [(name, builtin)] if builtin else []
    real = [
        (kind.__name__, base.__name__)
        for kind in all_kinds()
        for base in kind.__bases__
        if kind is not SollolError
    ]
    assert sorted(drawn) == sorted(real)


def test_they_are_caught_as_what_python_calls_them() -> None:
    assert issubclass(InvalidInput, ValueError)
    assert issubclass(MissingExtra, ImportError)


def test_a_batch_error_shows_the_first_three() -> None:
    failed = {at: NodeError("gpu", f"reason {at}") for at in range(5)}
    message = str(BatchError(Embeddings(b"", 0, count=9), failed))
    assert message.startswith("5 of 9 items have no vector")
    assert message.endswith("  item 2: gpu: reason 2\n  and 2 more")


def test_what_is_given_may_change_afterwards() -> None:
    models, missing = {"gpu": ["y"]}, {1: CRASHED}
    unknown, batch = ModelNotFound("x", models), BatchError(PARTIAL, missing)
    models.clear()
    missing.clear()
    assert unknown.nodes == {"gpu": ("y",)}
    assert batch.errors == {1: CRASHED}
