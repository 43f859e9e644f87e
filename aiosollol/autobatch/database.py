"""`Database`: one SQLite connection in one thread, so that the event loop never blocks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Concatenate, ParamSpec, TypeVar

from aiosollol.autobatch.schema import open_database
from aiosollol.errors import StorageError

P = ParamSpec("P")
T = TypeVar("T")

_REASONS = {
    "SQLITE_BUSY": ("locked", "another process has been writing to it for too long; try again"),
    "SQLITE_LOCKED": ("locked", "another process has been writing to it for too long; try again"),
    "SQLITE_FULL": ("full", "the disk is full, or its quota is used up; free some space"),
    "SQLITE_CORRUPT": (
        "damaged",
        "it is damaged, and was left unchanged; restore it from a backup, or recover what is left "
        "with: sqlite3 FILE .recover",
    ),
    "SQLITE_NOTADB": (
        "damaged",
        "it is not a database, or its beginning is damaged; it was left unchanged",
    ),
    "SQLITE_CONSTRAINT": ("damaged", "its content is inconsistent; restore it from a backup"),
    "SQLITE_READONLY": ("read-only", "it cannot be written; check the permissions"),
    "SQLITE_PERM": ("read-only", "it cannot be written; check the permissions"),
    "SQLITE_CANTOPEN": ("io", "it cannot be opened; check the folder and the permissions"),
}
_UNKNOWN = ("io", "reading or writing failed")


class Database:
    """The database of a queue: `open` it, and `aclose` it. Calls in between run in a thread.

    Functions get the connection as their first argument. Their exceptions propagate; those of
    SQLite become StorageError. A cancelled call still runs to its end, or not at all.

    path: of the file; absolute once it is open.
    lock_seconds: how long to wait for other processes that write.
    """

    def __init__(self, path: str | os.PathLike[str], *, lock_seconds: float) -> None:
        self.path = os.fspath(path)
        self._lock_seconds = lock_seconds
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aiosollol autobatch")

    async def open(self) -> None:
        """Open or create the file. Raises ConfigError or StorageError without changing it."""
        await self.call(self._open)

    def _open(self) -> None:
        # Absolute, also so that ":memory:" is a file like any other.
        self.path = os.path.abspath(os.path.expanduser(self.path))
        with told_as_ours(self.path):
            self._connection = open_database(self.path, self._lock_seconds)

    async def aclose(self) -> None:
        """Close the file after pending calls. Idempotent."""
        try:
            await self.call(self._close)
        except RuntimeError:  # the thread has already ended
            return
        self._thread.shutdown(wait=False)  # it is idle

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with told_as_ours(self.path):
                connection.close()

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in the thread, and return its result."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*args, **kwargs))

    async def read(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `function` in a read transaction: it sees a consistent snapshot."""
        return await self.call(self._transaction, "BEGIN", lambda c: function(c, *args, **kwargs))

    async def change(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `function` in a write transaction: all its changes are on the disk, or none."""
        # IMMEDIATE: after a read, a write would fail at once if another process wrote in between.
        return await self.call(
            self._transaction, "BEGIN IMMEDIATE", lambda c: function(c, *args, **kwargs)
        )

    def _transaction(self, begin: str, function: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connection
        if connection is None:
            raise StorageError(f"{self.path}: not open", source=self.path, reason="io")
        with told_as_ours(self.path):
            connection.execute(begin)
            try:
                result = function(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # SQLite ends it by itself after some errors
                    connection.execute("ROLLBACK")
                raise
        return result


@contextmanager
def told_as_ours(path: str) -> Iterator[None]:
    """Turn exceptions of SQLite and the system into StorageError."""
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.InterfaceError):
        raise  # a bug, not a problem of the file
    except sqlite3.Error as error:
        # By its primary code: SQLITE_IOERR_WRITE and others have their own names.
        name = getattr(error, "sqlite_errorname", "")
        known = next((code for code in _REASONS if name.startswith(code)), "")
        reason, advice = _REASONS.get(known, _UNKNOWN)
        message = f"{path}: {advice.replace('FILE', path)} ({error})"
        raise StorageError(message, source=path, reason=reason) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        # From SQLite's message about the damage, or from the JSON of a job.
        reason, advice = _REASONS["SQLITE_CORRUPT"]
        message = f"{path}: {advice.replace('FILE', path)} ({error})"
        raise StorageError(message, source=path, reason=reason) from error
    except OSError as error:
        words = error.strerror or str(error)
        reason = "read-only" if isinstance(error, PermissionError) else "io"
        raise StorageError(f"{path}: {words}", source=path, reason=reason) from error


class WorkerLock:
    """A lock on the file ``<path>-worker``, which the system releases when its holder dies.

    Not a row in the database: that would need a time after which a silent holder counts as dead,
    and a merely slow one would then be a second holder. The file is not deleted on release, as the
    next process may already hold it. Nor is it the database itself: closing another descriptor of
    that file would release SQLite's own locks.

    Not for the event loop: `acquire` opens a file.
    """

    def __init__(self, path: str) -> None:
        self._path = f"{path}-worker"
        self._file: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._file is not None

    def acquire(self) -> bool:
        """Take the lock if it is free; return whether this object holds it. Raises OSError."""
        if self._file is not None:
            return True
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            _lock(file)
        except BlockingIOError:
            os.close(file)
            return False
        except BaseException:
            os.close(file)
            raise
        self._file = file
        return True

    def release(self) -> None:
        """Release the lock. Idempotent."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                os.close(file)


if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> None:
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from error
else:
    import fcntl

    def _lock(file: int) -> None:
        # flock, not lockf: it locks by descriptor, so that two queues in one process exclude each
        # other like two processes.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
