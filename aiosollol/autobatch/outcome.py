"""What came of a batch: which documents are done, which failed, which are tried again. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from aiosollol.autobatch.pace import DOCUMENT_BACKOFF, delay
from aiosollol.core.embeddings import Embeddings, Vector
from aiosollol.core.resilience import Failure, classify
from aiosollol.errors import (
    InvalidInput,
    ModelNotFound,
    NodeError,
    NoNodeAvailable,
    PoolClosed,
    PoolSaturated,
    summary,
)

Verdict = Literal["fail", "count", "wait", "missing"]


class Document(NamedTuple):
    """A queued document. text: None if it is not what was queued. attempts: so far.

    size: bytes of its text.
    """

    key: int
    text: str | None
    attempts: int
    size: int


class RetriedDocument(NamedTuple):
    """A document that is to be tried again, at `due_at` in seconds since the epoch."""

    document: Document
    due_at: float
    error: str


class FailedDocument(NamedTuple):
    document: Document
    error: str


@dataclass(slots=True)
class Outcome:
    """What to write down of a batch. Documents that are in none of the lists stay queued as is.

    wait: why no node can do anything now; empty if that is not so.
    missing: why no node will do anything before its owner acts: none has the model.
    log: either of the two, as a log may show it.
    """

    done: list[tuple[Document, Vector]] = field(default_factory=list)
    failed: list[FailedDocument] = field(default_factory=list)
    again: list[RetriedDocument] = field(default_factory=list)
    wait: str = ""
    missing: str = ""
    log: str = ""


def judge(error: Exception) -> Verdict:
    """What a failure means for a document.

    "fail": its text or its settings are at fault, so it would fail for ever. "count": it may be at
    fault, so it is tried a limited number of times. "wait": it is not. "missing": it is not, but
    every node answers and none has the model.
    """
    if isinstance(error, InvalidInput):
        return "fail"
    if isinstance(error, ModelNotFound):
        return "wait" if error.silent else "missing"  # one that is silent may have it
    if isinstance(error, NoNodeAvailable | PoolClosed | PoolSaturated):
        return "wait"
    if isinstance(error, NodeError):
        kind = classify(error)
        if kind is Failure.INPUT:
            return "fail"
        return "count" if kind is Failure.ANSWER else "wait"
    return "count"


def outcome(
    documents: Sequence[Document], result: Embeddings | Exception, now: float, max_attempts: int
) -> Outcome:
    """What came of `documents`, of which `result` is what a pool gave or raised.

    now: seconds since the epoch.
    """
    found = Outcome()
    for row, document in enumerate(documents):
        error = result if isinstance(result, Exception) else result.errors.get(row)
        if error is None:
            assert isinstance(result, Embeddings)
            found.done.append((document, result[row]))
            continue
        match judge(error):
            case "fail":
                found.failed.append(FailedDocument(document, words(error)))
            case "wait":
                found.wait, found.log = words(error), summary(error)
            case "missing":
                found.missing, found.log = words(error), summary(error)
            case "count":
                attempts = document.attempts + 1
                tried = document._replace(attempts=attempts)
                if attempts >= max_attempts:
                    found.failed.append(
                        FailedDocument(tried, f"{words(error)} (tried {attempts} times)")
                    )
                else:
                    due_at = now + delay(attempts, DOCUMENT_BACKOFF)
                    found.again.append(RetriedDocument(tried, due_at, words(error)))
    return found


def words(error: Exception) -> str:
    """`error` as it is kept: its kind and what it says, at most 1,000 characters."""
    return f"{type(error).__name__}: {error}"[:1000]
