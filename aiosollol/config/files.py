"""Small text files: read with helpful errors, written atomically. Default paths."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from aiosollol.errors import ConfigError


def path_of(path: str | os.PathLike[str]) -> str:
    """`path` with ``~`` expanded: variables and Python programs have no shell to do it."""
    return os.path.expanduser(os.fspath(path))


def read_text(path: str, *, missing: str) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    missing: advice if there is no such file, as the end of a sentence.
    Raises ConfigError if it cannot be read.
    """
    data = _read(path, missing)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        guess = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "another encoding"
        message = f"{path}, line {line}: not UTF-8 but {guess}; save it as UTF-8"
        raise ConfigError(message, source=path, line=line) from error


def _read(path: str, missing: str) -> bytes:
    try:
        # Check before opening: opening a pipe may block for ever.
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode) or path == os.devnull:
            with open(path, "rb") as file:
                return file.read()
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file; {missing}", source=path) from error
    except PermissionError as error:
        message = f"{path}: no permission to read it; run this as its owner, or chmod it"
        raise ConfigError(message, source=path) from error
    except (OSError, ValueError) as error:
        message = f"{path!r} cannot be read: {_words(error)}; name a file"
        raise ConfigError(message, source=path) from error
    raise _not_a_file(path, mode)


def write_text(path: str, text: str) -> None:
    """Write `text` to a file, atomically.

    The text is written to a temporary file in the same directory, which then replaces the old one:
    readers find the old text or the new, even after a crash, which may leave a
    ``.aiosollol-*.tmp`` behind. Permissions and owner are kept; a new file is accessible by its
    owner only. Missing directories are created. Of a symbolic link, the target is replaced.

    Raises ConfigError on failure; the old file is unchanged then.
    """
    try:
        _replace(os.path.realpath(path), text.encode("utf-8", "backslashreplace"))
    except PermissionError as error:
        folder = os.path.dirname(error.filename or path) or "."
        message = f"{path}: no permission to write it or into {folder}; run this as its owner"
        raise ConfigError(message, source=path) from error
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        message = f"{path!r} could not be written, nothing is changed: {_words(error)}"
        raise ConfigError(message, source=path) from error


def _replace(path: str, data: bytes) -> None:
    try:
        old = os.stat(path)
    except FileNotFoundError:
        old = None
    if old is not None and not stat.S_ISREG(old.st_mode):
        raise _not_a_file(path, old.st_mode)
    if old is not None and not os.access(path, os.W_OK):
        # The system would allow replacing it, but that is not what a read-only file is for.
        raise PermissionError(0, "it is read-only", path)
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    # Readable by its owner only, at least until it is complete.
    number, temporary = tempfile.mkstemp(prefix=".aiosollol-", suffix=".tmp", dir=folder)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
            file.flush()
            if old is not None:
                _take_over(temporary, old)
            os.fsync(number)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _take_over(path: str, old: os.stat_result) -> None:
    new = os.stat(path)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        with contextlib.suppress(OSError):  # only root may give files away
            os.chown(path, old.st_uid, old.st_gid)
    os.chmod(path, stat.S_IMODE(old.st_mode))  # after chown, which may clear bits


def _sync_folder(folder: str) -> None:
    """Make the new name survive a power cut."""
    # Some file systems do not support this; the file itself is in place already.
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _not_a_file(path: str, mode: int) -> ConfigError:
    what = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
    return ConfigError(f"{path} is {what}; name a file", source=path)


def _words(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "it is not a path"  # a null character, or half a surrogate pair


def settings_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The default settings file: ``~/.config/aiosollol/config.toml``."""
    return _config_folder(environ) / "config.toml"


def default_nodes_path(environ: Mapping[str, str] = os.environ) -> Path:
    """The default nodes file: ``~/.config/aiosollol/nodes.json``."""
    return _config_folder(environ) / "nodes.json"


def find_nodes_file(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The existing nodes file: ours, else that of the original SOLLOL, else None.

    The original's is ``~/.synapticllamas_nodes.json``.
    """
    for path in (default_nodes_path(environ), _home(environ) / ".synapticllamas_nodes.json"):
        if os.path.lexists(path):
            return path
    return None


def _config_folder(environ: Mapping[str, str]) -> Path:
    folder = environ.get("XDG_CONFIG_HOME", "")
    # As the XDG specification says, ignore a relative path.
    base = Path(folder) if os.path.isabs(folder) else _home(environ) / ".config"
    return base / "aiosollol"


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or os.path.expanduser("~"))
