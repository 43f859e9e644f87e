"""Queries that submit and change jobs: each function is one transaction, in the thread.

Invariants of every transaction, here and in `worker_queries`: a document is in `documents` or in
`vectors`, never in both; the counters of a job match its rows.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Unpack
from zlib import crc32

import orjson

from aiosollol.autobatch.pacing import Rules, retry_after
from aiosollol.core.arguments import EmbedArguments
from aiosollol.core.request import EmbedSettings, collect_texts
from aiosollol.errors import InvalidInput, LimitExceeded, QueueFull, UnknownJob
from aiosollol.wire.ollama.embeddings import dump_embed

POSITION_BITS = 32


class NewJob(NamedTuple):
    """A job to submit.

    settings, metadata: as JSON, with sorted keys.
    owner: see `AutoBatch`; None for a job without an owner.
    """

    id: str
    model: str
    settings: str
    metadata: str
    texts: Sequence[str]
    owner: str | None = None


def keys_of(number: int) -> tuple[int, int]:
    """The first key of a job's documents, and the first key of the next job."""
    return number << POSITION_BITS, (number + 1) << POSITION_BITS


def checksum(key: int, blob: bytes | memoryview[int]) -> int:
    """The CRC-32 of a text or a vector, and of its key."""
    return crc32(blob, (key ^ key >> POSITION_BITS) & 0xFFFFFFFF)


def is_sound(key: int, crc: object, blob: object) -> bool:
    """Whether `blob` was read as it was written. With damaged bytes, types may be wrong too."""
    if not isinstance(key, int):
        raise damage("a row has no key")
    return isinstance(blob, bytes) and checksum(key, blob) == crc


def damage(problem: str) -> sqlite3.DatabaseError:
    """The error that SQLite would raise for this damage."""
    error = sqlite3.DatabaseError(problem)
    error.sqlite_errorname = "SQLITE_CORRUPT"
    return error


def position_of(key: int) -> int:
    """The index of a document in its job."""
    return key & ((1 << POSITION_BITS) - 1)


def submit(connection: sqlite3.Connection, job: NewJob, rules: Rules, now: float) -> None:
    """Queue a whole job. Raises QueueFull, and LimitExceeded if it can never fit."""
    blobs = [text.encode() for text in job.texts]
    size = sum(map(len, blobs))
    _check_size(len(blobs), size, rules, job.owner)
    if job.owner is not None:
        _check_quotas(connection, 1, len(blobs), size, rules, job.owner)
    _check_room(connection, len(blobs), size, rules, job.owner)
    connection.execute(
        "INSERT INTO groups (model, settings) VALUES (?, ?) ON CONFLICT DO NOTHING",
        (job.model, job.settings),
    )
    (group,) = connection.execute(
        "SELECT id FROM groups WHERE model = ? AND settings = ?", (job.model, job.settings)
    ).fetchone()
    number = connection.execute(
        "INSERT INTO jobs (id, group_id, metadata, total, queued, queued_bytes, created_at, owner)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (job.id, group, job.metadata, len(blobs), len(blobs), size, now, job.owner),
    ).lastrowid
    assert number is not None
    first, _ = keys_of(number)
    connection.executemany(
        "INSERT INTO documents (key, group_id, due_at, crc, text) VALUES (?, ?, ?, ?, ?)",
        (
            (first + at, group, now, checksum(first + at, blob), blob)
            for at, blob in enumerate(blobs)
        ),
    )


def _check_size(documents: int, size: int, rules: Rules, owner: str | None) -> None:
    """Raises LimitExceeded for a job that would not fit into an empty queue."""
    limits = [("max_documents", documents, "documents"), ("max_bytes", size, "bytes")]
    if owner is not None:
        limits += [("owner_documents", documents, "documents"), ("owner_bytes", size, "bytes")]
    for name, count, unit in limits:
        most = getattr(rules, name)
        if count > most:
            raise LimitExceeded(
                f"{count:,} {unit} exceed the limits of the queue: over {name}={most:,}; "
                "submit them in parts",
                limit=name,
            )


def _check_quotas(
    connection: sqlite3.Connection, jobs: int, documents: int, size: int, rules: Rules, owner: str
) -> None:
    """Raises QueueFull if this owner has too much in the queue to add that."""
    kept, queued, queued_bytes = connection.execute(
        "SELECT count(*), total(queued), total(queued_bytes) FROM jobs WHERE owner = ?", (owner,)
    ).fetchone()
    (rate,) = connection.execute("SELECT rate FROM worker").fetchone()
    for name, has, more in (
        ("owner_jobs", kept, jobs),
        ("owner_documents", int(queued), documents),
        ("owner_bytes", int(queued_bytes), size),
    ):
        most = getattr(rules, name)
        over = has + more - most
        if over <= 0 or not more:
            continue
        # A job leaves when it expires, which is long after its documents have left the queue.
        unknown = name == "owner_jobs"
        if name == "owner_bytes":
            over = int(over * queued / queued_bytes) if queued_bytes else 0
        seconds = retry_after(over, 0.0 if unknown else rate, rules.interval)
        raise QueueFull(
            f"over {name}={most:,} of this key: {has:,} are in the queue, and {more:,} more do not "
            f"fit; try again in {seconds:.0f} s",
            retry_after=seconds,
        )


def _check_room(
    connection: sqlite3.Connection, documents: int, size: int, rules: Rules, owner: str | None
) -> None:
    queued, queued_bytes = connection.execute(
        "SELECT total(queued), total(queued_bytes) FROM jobs WHERE queued > 0"
    ).fetchone()
    over = int(queued) + documents - rules.max_documents
    over_bytes = int(queued_bytes) + size - rules.max_bytes
    if over <= 0 and over_bytes <= 0:
        return
    if over_bytes > 0:  # in documents of the average queued size
        over = max(over, int(over_bytes * queued / queued_bytes) if queued_bytes else 0)
    (rate,) = connection.execute("SELECT rate FROM worker").fetchone()
    seconds = retry_after(over, rate, rules.interval)
    if owner is None:
        problem = (
            f"{int(queued):,} documents of {int(queued_bytes):,} bytes are queued, and "
            f"{documents:,} of {size:,} more would exceed the limit, {rules.max_documents:,} of "
            f"{rules.max_bytes:,}"
        )
    else:  # don't reveal how much other owners have queued
        problem = (
            f"the queue has no room for {documents:,} documents of {size:,} bytes now "
            f"(max_documents={rules.max_documents:,}, max_bytes={rules.max_bytes:,})"
        )
    raise QueueFull(f"{problem}; try again in {seconds:.0f} s", retry_after=seconds)


def find_job(connection: sqlite3.Connection, job_id: str, owner: str | None) -> int:
    """The number of a job.

    owner: find only jobs of this owner; None finds any job. Raises UnknownJob, with the same
    message whether the job does not exist or belongs to another owner.
    """
    row = connection.execute("SELECT number, owner FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None or (owner is not None and row[1] != owner):
        raise UnknownJob(job_id)
    number: int = row[0]
    return number


def cancel(connection: sqlite3.Connection, job_id: str, owner: str | None, now: float) -> None:
    """Drop the queued documents of a job. No effect on a finished one. Raises UnknownJob."""
    number = find_job(connection, job_id, owner)
    (queued,) = connection.execute("SELECT queued FROM jobs WHERE number = ?", (number,)).fetchone()
    if not queued:
        return
    connection.execute(
        "DELETE FROM documents WHERE key >= ? AND key < ? AND has_failed = 0", keys_of(number)
    )
    connection.execute(
        "UPDATE jobs SET queued = 0, queued_bytes = 0, is_cancelled = 1, completed_at = ?"
        " WHERE number = ?",
        (now, number),
    )


def retry(
    connection: sqlite3.Connection, job_id: str, owner: str | None, rules: Rules, now: float
) -> int:
    """Queue the failed documents of a job again; returns their number.

    Raises UnknownJob, QueueFull, and InvalidInput for a job that was cancelled.
    """
    number = find_job(connection, job_id, owner)
    is_cancelled, owned_by = connection.execute(
        "SELECT is_cancelled, owner FROM jobs WHERE number = ?", (number,)
    ).fetchone()
    if is_cancelled:
        raise InvalidInput(f"job {job_id!r} was cancelled; submit its documents as a new job")
    keys = keys_of(number)
    failed, size = connection.execute(
        "SELECT count(*), total(length(text)) FROM documents"
        " WHERE key >= ? AND key < ? AND has_failed = 1",
        keys,
    ).fetchone()
    if not failed:
        return 0
    if owned_by is not None:
        _check_quotas(connection, 0, failed, int(size), rules, owned_by)
    _check_room(connection, failed, int(size), rules, owner)
    connection.execute(
        "UPDATE documents SET has_failed = 0, attempts = 0, due_at = ?"
        " WHERE key >= ? AND key < ? AND has_failed = 1",
        (now, *keys),
    )
    connection.execute(
        "UPDATE jobs SET queued = queued + ?, queued_bytes = queued_bytes + ?, failed = 0,"
        " completed_at = NULL WHERE number = ?",
        (failed, int(size), number),
    )
    return int(failed)


def new_job(
    docs: Sequence[str],
    model: str,
    *,
    metadata: Mapping[str, Any] | None = None,
    owner: str | None = None,
    **given: Unpack[EmbedArguments],
) -> NewJob:
    """A job with a new id. Raises InvalidInput, which names the invalid document."""
    settings = EmbedSettings(model=model, **given)
    dump_embed(settings, ())  # options may contain values that JSON cannot represent
    texts, invalid = collect_texts(docs)
    for error in invalid.values():
        raise error
    if not texts:
        raise InvalidInput("docs is empty: submit at least one document")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidInput(f"metadata must be a mapping, not {type(metadata).__name__}")
    if owner is not None and (not isinstance(owner, str) or not owner):
        raise InvalidInput(f"owner must be a non-empty text or None, not {owner!r}")
    kept = {**given, "options": settings.options}
    return NewJob(
        id=str(uuid.uuid4()),
        model=model,
        settings=_json("options", {k: v for k, v in kept.items() if v is not None}),
        metadata=_json("metadata", dict(metadata or {})),
        texts=texts,
        owner=owner,
    )


MAX_JSON = 64 << 10
"""Bytes of a job's metadata, or of its options."""
_MAX_DEPTH = 64  # a status nests it a few levels deeper, and orjson writes 254


def _json(name: str, value: dict[str, Any]) -> str:
    """A mapping as JSON that can be read and written again."""
    if _is_deeper(value, _MAX_DEPTH):
        raise InvalidInput(f"{name} is nested more than {_MAX_DEPTH} deep")
    try:
        text = json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())
        if size <= MAX_JSON:
            orjson.dumps(json.loads(text))  # integers of more than 64 bits, for example
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name} must contain only JSON values: {error}") from error
    if size > MAX_JSON:
        raise LimitExceeded(f"{name} has more than {MAX_JSON:,} bytes as JSON", limit=name)
    return text


def _is_deeper(value: object, most: int) -> bool:
    """Whether lists and objects are nested more than `most` deep in `value`."""
    if isinstance(value, Mapping):
        return not most or any(_is_deeper(each, most - 1) for each in value.values())
    if isinstance(value, list | tuple):
        return not most or any(_is_deeper(each, most - 1) for each in value)
    return False


def stored_json(text: str) -> dict[str, Any]:
    """JSON as `new_job` stored it; empty if it cannot be written out again.

    Earlier versions also stored what could only be read.
    """
    try:
        value: dict[str, Any] = json.loads(text)
        if len(text) > MAX_JSON or text.count("{") + text.count("[") > _MAX_DEPTH:
            orjson.dumps([{"jobs": value}])
    except (TypeError, ValueError, RecursionError):
        return {}
    return value
