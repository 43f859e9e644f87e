"""Queries that read the status of jobs, and their vectors, in the thread."""

from __future__ import annotations

import json
import sqlite3
import sys
from array import array
from dataclasses import dataclass
from typing import Any

from aiosollol.autobatch.job_queries import (
    find_job,
    is_sound,
    keys_of,
    position_of,
    stored_json,
)
from aiosollol.autobatch.jobs import JobStatus, QueueStatus
from aiosollol.autobatch.pacing import Rules
from aiosollol.core.embeddings import Embeddings

DAMAGED_VECTOR = "StorageError: the vector is damaged on the disk; submit this document again"

_FLOAT_BYTES = 4
_JOB = (
    "SELECT j.id, g.model, g.settings, j.metadata, j.total, j.queued, j.completed, j.failed,"
    " j.is_cancelled, j.created_at, j.started_at, j.completed_at, j.owner,"
    " (SELECT total(queued) FROM jobs WHERE queued > 0 AND number <= j.number)"
    " FROM jobs j JOIN groups g ON g.id = j.group_id"
)


@dataclass(frozen=True, slots=True)
class ResultPage:
    """Some completed and failed documents of a job, in order.

    indices: the index in the job of each document with a vector.
    vectors: these vectors, a row for each index.
    errors: the error of each failed document, by its index.
    """

    indices: tuple[int, ...]
    vectors: Embeddings
    errors: dict[int, str]


def job_status(
    connection: sqlite3.Connection,
    job_id: str,
    owner: str | None,
    now: float,
    keep_results: float,
) -> JobStatus:
    """The status of a job. Raises UnknownJob."""
    number = find_job(connection, job_id, owner)
    row = connection.execute(f"{_JOB} WHERE j.number = ?", (number,)).fetchone()
    return _status(row, _rate(connection), now, keep_results)


def totals(
    connection: sqlite3.Connection,
    owner: str | None,
    latest: int,
    now: float,
    rules: Rules,
) -> tuple[QueueStatus, frozenset[int]]:
    """The status of the jobs of `owner`, or of all jobs, with the `latest` of them; and the groups
    in which they have queued documents. Contains only fields that are stored in the tables."""
    rate = _rate(connection)
    of_owner, values = ("", ()) if owner is None else ("WHERE owner = ?", (owner,))
    rows = connection.execute(
        f"{_JOB} {of_owner} ORDER BY j.number DESC LIMIT ?", (*values, latest)
    ).fetchall()
    count, active, pending, queued, queued_bytes, last = connection.execute(
        "SELECT count(*), total(queued > 0 AND started_at IS NOT NULL),"
        " total(queued > 0 AND started_at IS NULL), total(queued), total(queued_bytes),"
        f" max(number) FILTER (WHERE queued > 0) FROM jobs {of_owner}",
        values,
    ).fetchone()
    (ahead,) = connection.execute(
        "SELECT total(queued) FROM jobs WHERE queued > 0 AND number <= ?", (last,)
    ).fetchone()
    groups = connection.execute(
        f"SELECT DISTINCT group_id FROM (SELECT * FROM jobs {of_owner}) WHERE queued > 0", values
    ).fetchall()
    (pid,) = connection.execute("SELECT pid FROM worker").fetchone()
    status = QueueStatus(
        jobs=[_status(row, rate, now, rules.keep_results) for row in rows],
        job_count=count,
        job_total=count if owner is not None else _ever(connection),
        active=int(active),
        pending=int(pending),
        queued=int(queued),
        queued_bytes=int(queued_bytes),
        max_documents=rules.max_documents,
        max_bytes=rules.max_bytes,
        keep_results=rules.keep_results,
        rate=rate,
        worker=pid,
        ahead=int(ahead),
    )
    return status, frozenset(group for (group,) in groups)


def _ever(connection: sqlite3.Connection) -> int:
    """The number of jobs ever submitted."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'").fetchone()
    return row[0] if row else 0


def _rate(connection: sqlite3.Connection) -> float:
    rate: float = connection.execute("SELECT rate FROM worker").fetchone()[0]
    return rate


def _status(row: tuple[Any, ...], rate: float, now: float, keep_results: float) -> JobStatus:
    job_id, model, settings, metadata, total, queued, completed, failed = row[:8]
    is_cancelled, created_at, started_at, completed_at, owner, ahead = row[8:]
    return JobStatus(
        job_id=job_id,
        model=model,
        settings=json.loads(settings),
        metadata=stored_json(metadata),
        total=total,
        queued=queued,
        completed=completed,
        failed=failed,
        is_cancelled=bool(is_cancelled),
        created_at=created_at,
        started_at=started_at,
        completed_at=completed_at,
        expires_at=None if completed_at is None else completed_at + keep_results,
        eta=ahead / rate if queued and rate > 0.0 else None,
        now=now,
        owner=owner,
    )


def page(
    connection: sqlite3.Connection, job_id: str, owner: str | None, start: int, size: int
) -> tuple[ResultPage, int | None]:
    """The completed and failed ones of `size` documents from `start`, and the next start, or None.

    The page ends where the length of the vectors changes. A damaged vector is an error of its
    document. Raises UnknownJob.
    """
    number = find_job(connection, job_id, owner)
    total, is_cancelled = connection.execute(
        "SELECT total, is_cancelled FROM jobs WHERE number = ?", (number,)
    ).fetchone()
    first, _ = keys_of(number)
    end = min(start + size, total)
    indices: list[int] = []
    blobs: list[bytes] = []
    errors: dict[int, str] = {}
    for key, crc, blob in connection.execute(
        "SELECT key, crc, vector FROM vectors WHERE key >= ? AND key < ? ORDER BY key",
        (first + start, first + end),
    ):
        at = position_of(key)
        if not is_sound(key, crc, blob):
            errors[at] = DAMAGED_VECTOR
        elif blobs and len(blob) != len(blobs[0]):
            end = at
            break
        else:
            indices.append(at)
            blobs.append(blob)
    seen = {*indices, *errors}
    for key, has_failed, error in connection.execute(
        "SELECT key, has_failed, error FROM documents WHERE key >= ? AND key < ?",
        (first + start, first + end),
    ):
        seen.add(position_of(key))
        if has_failed:
            errors[position_of(key)] = error or DAMAGED_VECTOR
    if not is_cancelled:  # every document must be in a table
        errors |= dict.fromkeys({*range(start, end)} - seen, DAMAGED_VECTOR)
    errors = {at: errors[at] for at in sorted(errors) if start <= at < end}
    found = ResultPage(tuple(indices), _vectors(blobs), errors)
    return found, end if end < total else None


def _vectors(blobs: list[bytes]) -> Embeddings:
    block = b"".join(blobs)
    dim = len(blobs[0]) // _FLOAT_BYTES if blobs else 0
    if sys.byteorder == "little":
        return Embeddings(block, dim, count=len(blobs))
    floats = array("f", block)
    floats.byteswap()
    return Embeddings(floats, dim, count=len(blobs))
