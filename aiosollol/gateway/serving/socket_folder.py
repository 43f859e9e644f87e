"""`SocketFolder`: the folder of the sockets of a gateway's processes, removed after kill -9 too."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator

PREFIX = "sollol-"
_LOCK = "lock"


class SocketFolder:
    """A folder that only this user can enter. `cleanup` removes it.

    While it is in use this process locks a file in it, so that a later one can remove the folders
    of processes that were killed: it does so first. Blocks. Not for Windows.

    name: its path.
    """

    def __init__(self) -> None:
        sweep()
        self._folder = tempfile.TemporaryDirectory(prefix=PREFIX)
        self.name = self._folder.name
        unlocked = os.path.join(self.name, "unlocked")
        self._lock = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        _lock(self._lock)
        # Under its name it is never without a lock as long as this process lives.
        os.rename(unlocked, os.path.join(self.name, _LOCK))

    def cleanup(self) -> None:
        """Remove the folder."""
        os.close(self._lock)
        self._folder.cleanup()


def sweep() -> None:
    """Remove the folders of processes that no longer run."""
    for path in _folders(tempfile.gettempdir()):
        with contextlib.suppress(OSError):
            # No link is followed: another user may have put it there.
            file = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_NOFOLLOW)
            try:
                _lock(file)
                shutil.rmtree(path)
            finally:
                os.close(file)


def remove(path: str) -> None:
    """Remove the folder of a parent process that was killed: for its children."""
    shutil.rmtree(path, ignore_errors=True)


def _folders(where: str) -> Iterator[str]:
    try:
        with os.scandir(where) as entries:
            for entry in entries:
                if not entry.name.startswith(PREFIX):
                    continue
                with contextlib.suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
                        yield entry.path
    except OSError:
        return


def _lock(file: int) -> None:
    """Lock a file. Raises OSError if another process holds the lock."""
    import fcntl  # not on Windows

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
