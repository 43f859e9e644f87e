"""The worker's queries on a queue's tables: each function is one transaction, in the thread."""

from __future__ import annotations

import sqlite3
import sys
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from aiosollol.autobatch.job_queries import (
    POSITION_BITS,
    checksum,
    is_sound,
    keys_of,
)
from aiosollol.autobatch.jobs import Document, Outcome
from aiosollol.autobatch.pacing import DOCUMENT_BACKOFF, Line, smoothed_rate
from aiosollol.core.embeddings import Vector

BATCH_BYTES = 16 << 20
"""Limit of a batch in bytes of text. A longer text is a batch of its own."""

_SWEPT = 1000
# No document is ever due later than this: so one does not wait long if the clock is set back.
_READY = "(due_at <= :now OR due_at > :now + :longest OR attempts = 0)"


class Batch(NamedTuple):
    """Documents of one group, to be embedded. settings: as JSON."""

    group: int
    model: str
    settings: str
    documents: Sequence[Document]
    damaged: Sequence[Document]


def begin_work(connection: sqlite3.Connection, pid: int | None) -> None:
    """Store the pid of the process that embeds, or None."""
    connection.execute("UPDATE worker SET pid = ?", (pid,))


def lines(connection: sqlite3.Connection, most: int, now: float) -> list[Line]:
    """The groups with queued documents, with the number of ready ones, counted up to `most`."""
    groups = connection.execute(
        "SELECT DISTINCT j.group_id, g.model FROM jobs j JOIN groups g ON g.id = j.group_id"
        " WHERE j.queued > 0 ORDER BY 1"
    ).fetchall()
    counting = (
        "SELECT count(*) FROM (SELECT 1 FROM documents WHERE group_id = :group"
        f" AND has_failed = 0 AND {_READY} LIMIT :most)"
    )
    found = []
    for group, model in groups:
        values = {"group": group, "now": now, "longest": DOCUMENT_BACKOFF[1], "most": most}
        found.append(Line(group, model, connection.execute(counting, values).fetchone()[0]))
    return found


def take(connection: sqlite3.Connection, group: int, most: int, now: float) -> Batch:
    """The `most` longest-waiting documents of a group. They stay queued until they are settled."""
    model, settings = connection.execute(
        "SELECT model, settings FROM groups WHERE id = ?", (group,)
    ).fetchone()
    rows = connection.execute(
        "SELECT key, text, crc, attempts FROM documents WHERE group_id = :group"
        f" AND has_failed = 0 AND {_READY} ORDER BY due_at, attempts, key LIMIT :most",
        {"group": group, "now": now, "longest": DOCUMENT_BACKOFF[1], "most": most},
    )
    documents: list[Document] = []
    damaged: list[Document] = []
    size = 0
    for key, blob, crc, attempts in rows:
        if not is_sound(key, crc, blob) or not isinstance(attempts, int):
            damaged.append(Document(key, None, 0, len(blob) if isinstance(blob, bytes) else 0))
            continue
        size += len(blob)
        if documents and size > BATCH_BYTES:
            break
        documents.append(Document(key, blob.decode(), attempts, len(blob)))
    for number in {document.key >> POSITION_BITS for document in documents}:
        connection.execute(
            "UPDATE jobs SET started_at = ? WHERE number = ? AND started_at IS NULL", (now, number)
        )
    return Batch(group, model, settings, documents, damaged)


def settle(
    connection: sqlite3.Connection, outcome: Outcome, now: float, seconds: float = 0.0
) -> int:
    """Store the outcome of a batch; the number of documents that are now completed or failed.

    Skips documents that are no longer queued because their job was cancelled or has expired.

    seconds: the duration of the batch.
    """
    completed: Counter[int] = Counter()
    failed: Counter[int] = Counter()
    freed: Counter[int] = Counter()
    for document, vector in outcome.done:
        removed = connection.execute(
            "DELETE FROM documents WHERE key = ? AND has_failed = 0", (document.key,)
        ).rowcount
        if removed:
            blob = little_endian(vector)
            connection.execute(
                "INSERT INTO vectors VALUES (?, ?, ?)",
                (document.key, checksum(document.key, blob), blob),
            )
            completed[document.key >> POSITION_BITS] += 1
            freed[document.key >> POSITION_BITS] += document.size
    for document, error in outcome.failed:
        changed = connection.execute(
            "UPDATE documents SET has_failed = 1, attempts = ?, error = ?"
            " WHERE key = ? AND has_failed = 0",
            (document.attempts, error, document.key),
        ).rowcount
        if changed:
            failed[document.key >> POSITION_BITS] += 1
            freed[document.key >> POSITION_BITS] += document.size
    connection.executemany(
        "UPDATE documents SET attempts = ?, due_at = ?, error = ? WHERE key = ? AND has_failed = 0",
        (
            (each.document.attempts, each.due_at, each.error, each.document.key)
            for each in outcome.again
        ),
    )
    for number in completed | failed:
        connection.execute(
            "UPDATE jobs SET completed = completed + ?, failed = failed + ?, queued = queued - ?,"
            " queued_bytes = queued_bytes - ?,"
            " completed_at = CASE WHEN queued = ? THEN ? ELSE completed_at END WHERE number = ?",
            (
                completed[number],
                failed[number],
                completed[number] + failed[number],
                freed[number],
                completed[number] + failed[number],
                now,
                number,
            ),
        )
    settled = completed.total() + failed.total()
    if settled and seconds > 0.0:
        (rate,) = connection.execute("SELECT rate FROM worker").fetchone()
        connection.execute("UPDATE worker SET rate = ?", (smoothed_rate(rate, settled, seconds),))
    return settled


def fail_group(connection: sqlite3.Connection, group: int, error: str, now: float) -> None:
    """Mark every queued document of a group as failed."""
    connection.execute(
        "UPDATE documents SET has_failed = 1, error = ? WHERE group_id = ? AND has_failed = 0",
        (error, group),
    )
    connection.execute(
        "UPDATE jobs SET failed = failed + queued, queued = 0, queued_bytes = 0, completed_at = ?"
        " WHERE group_id = ? AND queued > 0",
        (now, group),
    )


def expire(connection: sqlite3.Connection, ended_before: float) -> int:
    """Expire the jobs that had ended by then; their number. `sweep` frees their space."""
    connection.execute(
        "INSERT INTO expired SELECT number FROM jobs WHERE queued = 0 AND completed_at <= ?",
        (ended_before,),
    )
    return connection.execute(
        "DELETE FROM jobs WHERE number IN (SELECT number FROM expired)"
    ).rowcount


def sweep(connection: sqlite3.Connection) -> bool:
    """Delete some rows of expired jobs; whether there may be more.

    Deletes in parts, since other transactions wait meanwhile.
    """
    row = connection.execute("SELECT number FROM expired LIMIT 1").fetchone()
    if row is None:
        return False
    first, end = keys_of(row[0])
    deleted = 0
    for table in ("vectors", "documents"):
        deleted += connection.execute(
            f"DELETE FROM {table} WHERE key IN"
            f" (SELECT key FROM {table} WHERE key >= ? AND key < ? LIMIT {_SWEPT})",
            (first, end),
        ).rowcount
    if not deleted:
        connection.execute("DELETE FROM expired WHERE number = ?", row)
        connection.execute("DELETE FROM groups WHERE id NOT IN (SELECT group_id FROM jobs)")
    connection.execute("PRAGMA incremental_vacuum").fetchall()  # returns space to the disk
    return True


def little_endian(vector: Vector) -> bytes | memoryview[int]:
    """The bytes of a vector as stored."""
    if sys.byteorder == "little":
        return vector.cast("B")
    swapped = array("f", vector)
    swapped.byteswap()
    return swapped.tobytes()
