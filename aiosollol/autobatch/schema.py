"""The tables of a queue; opens, creates, checks and upgrades its file."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager

from aiosollol.autobatch.job_queries import damage
from aiosollol.errors import ConfigError

APPLICATION_ID = 0x61_53_42_51  # "aSBQ"; identifies the database, for `file` and other tools
VERSION = 2

_PAUSE_SECONDS = 0.005

_TABLES = """
CREATE TABLE groups (          -- documents that can share a request
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    settings TEXT NOT NULL,    -- JSON, keys sorted
    UNIQUE (model, settings)
);
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused: keys of documents contain it
    id TEXT NOT NULL UNIQUE,
    group_id INTEGER NOT NULL,
    metadata TEXT NOT NULL,    -- JSON
    total INTEGER NOT NULL,
    queued INTEGER NOT NULL,   -- these four always match the rows below
    queued_bytes INTEGER NOT NULL,
    completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    is_cancelled INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,  -- seconds since the epoch, like all times here
    started_at REAL,
    completed_at REAL,
    owner TEXT                 -- see `AutoBatch`; never an API key itself
);
CREATE INDEX open_jobs ON jobs (group_id, number, queued, queued_bytes) WHERE queued > 0;
CREATE INDEX owned_jobs ON jobs (owner) WHERE owner IS NOT NULL;
CREATE TABLE documents (       -- without a vector: queued, or failed
    key INTEGER PRIMARY KEY,   -- job number << 32 | position in the job
    group_id INTEGER NOT NULL,
    due_at REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    has_failed INTEGER NOT NULL DEFAULT 0,
    crc INTEGER NOT NULL,      -- `checksum` of text
    text BLOB NOT NULL,        -- UTF-8
    error TEXT NOT NULL DEFAULT ''
);
CREATE INDEX line ON documents (group_id, due_at, attempts) WHERE has_failed = 0;
CREATE TABLE vectors (         -- of the others: a document is in exactly one of these tables
    key INTEGER PRIMARY KEY,
    crc INTEGER NOT NULL,
    vector BLOB NOT NULL       -- float32, little-endian
);
CREATE TABLE expired (         -- deleted jobs whose documents still have rows
    number INTEGER PRIMARY KEY
);
CREATE TABLE worker (          -- one row: the process that embeds, and its rate
    id INTEGER PRIMARY KEY CHECK (id = 1),
    pid INTEGER,
    rate REAL NOT NULL
);
INSERT INTO worker VALUES (1, NULL, 0.0);
"""

_UPGRADES = {  # version -> statements that turn it into the next version
    1: (
        "ALTER TABLE jobs ADD COLUMN owner TEXT",
        "CREATE INDEX owned_jobs ON jobs (owner) WHERE owner IS NOT NULL",
    ),
}
"""Each step must keep the file usable by processes that still run the earlier version: new columns
have a default, and every INSERT into jobs names its columns."""


def open_database(path: str, lock_seconds: float) -> sqlite3.Connection:
    """A connection to the queue at `path`, which is created if there is none.

    A file of an earlier version is upgraded. Raises ConfigError if it is not a queue, sqlite3.Error
    and OSError; in these cases the file is unchanged.
    """
    _check_place(path)
    connection = sqlite3.connect(path, timeout=lock_seconds, isolation_level=None)
    try:
        _prepare(connection, path)
        _configure(connection, path, lock_seconds)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_place(path: str) -> None:
    # By name only: opening and closing the file would release SQLite's locks on it, if this process
    # already has it open (https://sqlite.org/howtocorrupt.html, 2.2).
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        return
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a file"
        raise ConfigError(f"{path}: is {kind}; name a file for the queue", source=path)
    if not os.access(path, os.R_OK | os.W_OK):
        # SQLite would open it, and fail on the first document.
        raise PermissionError(errno.EACCES, "no permission to read and write it", path)


def _prepare(connection: sqlite3.Connection, path: str) -> None:
    if _is_empty(connection):
        _create(connection, path)
    if _number(connection, "application_id") != APPLICATION_ID:
        message = f"{path}: is the database of another program; name another file for the queue"
        raise ConfigError(message, source=path)
    version = _number(connection, "user_version")
    if not 1 <= version <= VERSION:
        message = (
            f"{path}: has version {version} of the queue's tables, and this aiosollol knows "
            f"versions up to {VERSION}; use the aiosollol that wrote it, or name another file"
        )
        raise ConfigError(message, source=path)
    # Check the tables of bounded size, with their indexes. The vectors may be many gigabytes; like
    # the texts, they have checksums, which are checked on each read.
    for table in ("groups", "jobs", "documents"):
        problem = connection.execute(f"PRAGMA quick_check({table})").fetchone()[0]
        if problem != "ok":
            raise damage(problem)
    if version < VERSION:
        _upgrade(connection)


def _is_empty(connection: sqlite3.Connection) -> bool:
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return not tables and not _number(connection, "application_id")


def _create(connection: sqlite3.Connection, path: str) -> None:
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only possible before the first table
    with _change(connection):
        # Texts are private. SQLite gives its other files the same permissions.
        os.chmod(path, 0o600)
        if _is_empty(connection):  # otherwise another process was faster
            for statement in _TABLES.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")


def _upgrade(connection: sqlite3.Connection) -> None:
    with _change(connection):
        # Read the version inside the transaction: another process may have upgraded meanwhile.
        for version in range(_number(connection, "user_version"), VERSION):
            for statement in _UPGRADES[version]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version + 1}")


@contextmanager
def _change(connection: sqlite3.Connection) -> Iterator[None]:
    """A write transaction, rolled back on an exception."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _configure(connection: sqlite3.Connection, path: str, lock_seconds: float) -> None:
    until = time.monotonic() + lock_seconds
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            # Only this statement does not wait for a lock by itself, and several processes may open
            # a new file at once.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise
            time.sleep(_PAUSE_SECONDS)
        else:
            break
    if mode != "wal":
        message = f"{path}: its folder does not allow SQLite's WAL; name a file on a local disk"
        raise ConfigError(message, source=path)
    # FULL: with NORMAL, a commit survives the death of the process, but not a power failure. It
    # costs one fsync per submitted job and per batch.
    connection.execute("PRAGMA synchronous = FULL")


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    number: int = connection.execute(f"PRAGMA {pragma}").fetchone()[0]
    return number
