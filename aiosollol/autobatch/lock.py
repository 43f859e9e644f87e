"""`WorkerLock`: at most one process at a time embeds for one queue."""

from __future__ import annotations

import contextlib
import os
import sys


class WorkerLock:
    """A lock on the file ``<path>-worker``, which the system gives back when its holder dies.

    Not a row in the database: that would need a time after which a silent holder counts as dead,
    and a holder that was only slow would then be a second one. The file stays when the lock is
    given back, since whoever deletes it may delete it from under the next holder. Nor is it the
    database itself: to close any other descriptor of that would give back SQLite's own locks.

    Not for the event loop: `acquire` opens a file.
    """

    def __init__(self, path: str) -> None:
        self._path = f"{path}-worker"
        self._file: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds it."""
        return self._file is not None

    def acquire(self) -> bool:
        """Take the lock unless another has it; whether it is held now. Raises OSError."""
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
        """Give it back. Idempotent."""
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
        # flock, not lockf: a lock of a descriptor, so that two queues in one process exclude each
        # other as two processes do.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
