"""Files: default paths, reading with helpful errors, atomic writing, and nodes in files.

Nodes are JSON in the original's format, or ``hosts.txt``, which has one ``host:port`` a line::

    {"nodes": [{"url": "http://10.0.0.2:11434", "name": "gpu1", "priority": 0}]}

The lowest priority number is used first. The other fields of `NodeSpec` are allowed too, and
"host" with "port" instead of "url".
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from aiosollol.config.setting_types import did_you_mean
from aiosollol.core.node import NodeSpec
from aiosollol.core.redaction import has_at_sign
from aiosollol.errors import ConfigError, InvalidInput


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


_ALWAYS = ("url", "name", "priority")
_FIELDS = [field.name for field in fields(NodeSpec)]
_KEYS = ["host", "port", *_FIELDS]
_TOP_KEYS = ["nodes", "version"]
_VERSIONS = ("1", "1.0")
_EXAMPLE = '{"nodes": [{"url": "http://10.0.0.2:11434", "name": "gpu1", "priority": 0}]}'


class _Entry(NamedTuple):
    """An unparsed node of a file. place: "entry 2" or "line 7". line: the number in the latter."""

    place: str
    node: Any
    line: int | None = None


def load_nodes(path: str | os.PathLike[str]) -> list[NodeSpec]:
    """The nodes in a file, in its order.

    A file whose name ends in ``.json`` is JSON; any other is JSON or a ``hosts.txt``, where ``#``
    starts a comment, judged by its content. ``~`` is expanded.

    Raises ConfigError if the file is missing, unreadable, empty or malformed, if a node is invalid,
    or if two have the same URL or name; the error names the file and the line or entry.
    """
    file = path_of(path)
    text = read_text(file, missing=f"save the nodes first, or write one: {_EXAMPLE}")
    if not text.strip():
        raise ConfigError(f"{file} is empty; write {_EXAMPLE}", source=file)
    is_json = file.lower().endswith(".json") or _looks_like_json(text)
    entries = list(_json_entries(file, text) if is_json else _host_entries(file, text))
    specs = [_spec_of(file, entry) for entry in entries]
    _check_unique(file, [(entry.place, entry.line) for entry in entries], specs)
    return specs


def save_nodes(path: str | os.PathLike[str], nodes: Iterable[NodeSpec]) -> None:
    """Write the nodes to a file that `load_nodes` can read. ``~`` is expanded.

    An existing file is replaced atomically: see `files.write_text`. A new file is readable by its
    owner only, because headers may hold tokens; an existing file keeps its permissions.

    Raises ConfigError, and changes nothing, if the file cannot be written, ends in ``.txt``, or
    would have a URL or a name twice.
    """
    import json

    file = path_of(path)
    if file.lower().endswith(".txt"):
        instead = f"{file[:-4]}.json"
        message = (
            f"{file} would no longer be a list of hosts: nodes are saved as JSON; use {instead}"
        )
        raise ConfigError(message, source=file)
    specs = list(nodes)
    _check_unique(file, [(f"node {number}", None) for number in range(1, len(specs) + 1)], specs)
    content = {"nodes": [_as_dict(spec) for spec in specs]}
    write_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _as_dict(spec: NodeSpec) -> dict[str, Any]:
    values = {name: getattr(spec, name) for name in _FIELDS}
    values["headers"] = dict(spec.headers) or None
    return {key: value for key, value in values.items() if key in _ALWAYS or value is not None}


# Reading.


def _looks_like_json(text: str) -> bool:
    # "[" alone is not enough: an IPv6 address starts with it too.
    return re.match(r"""\s*(\{|\[\s*(["{\[\]]|$))""", text) is not None


def _json_entries(file: str, text: str) -> Iterator[_Entry]:
    content = _parse(file, text)
    if not isinstance(content, Mapping) or not isinstance(content.get("nodes", []), list):
        raise ConfigError(f"{file} is not a nodes file; write {_EXAMPLE}", source=file)
    for key in content:
        if key not in _TOP_KEYS:
            hint = did_you_mean(key, _TOP_KEYS)
            raise ConfigError(f"{file}: unknown key {key!r}{hint}", source=file)
    if "nodes" not in content:
        raise ConfigError(f"{file} has no key 'nodes'; write {_EXAMPLE}", source=file)
    version = content.get("version")
    if version is not None and str(version) not in _VERSIONS:
        message = (
            f'{file}: version {version!r} is not known; write "version": "1.0", or leave it out'
        )
        raise ConfigError(message, source=file)
    for number, node in enumerate(content["nodes"], 1):
        yield _Entry(f"entry {number}", node)


def _parse(file: str, text: str) -> Any:
    import json

    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        line = error.lineno
        where = f"{file}, line {line}, column {error.colno}"
        message = f"{where}: not JSON: {error.msg}; write {_EXAMPLE}"
        raise ConfigError(message, source=file, line=line) from error
    except (ValueError, RecursionError) as error:  # ValueError: from below, or too many digits
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(f"{file}: not JSON: {problem}; write {_EXAMPLE}", source=file) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _host_entries(file: str, text: str) -> Iterator[_Entry]:
    is_empty = True
    for number, line in enumerate(text.split("\n"), 1):
        host = _without_comment(line).strip()
        if host:
            is_empty = False
            yield _Entry(f"line {number}", host, number)
    if is_empty:
        message = f"{file} has no nodes; write host:port on each line, such as 10.0.0.2:11434"
        raise ConfigError(message, source=file)


def _without_comment(line: str) -> str:
    """`line` up to the "#", unless that looks like part of a password: ``http://a:b#c@d``."""
    start, _, comment = line.partition("#")
    is_password = start and not start[-1].isspace() and has_at_sign(comment.partition(" ")[0])
    return line if is_password else start


def _spec_of(file: str, entry: _Entry) -> NodeSpec:
    node = entry.node
    where = f"{file}, {entry.place}"
    if not isinstance(node, str | Mapping):
        message = f'{where}: a node is written like {{"url": "http://10.0.0.2:11434"}}'
        raise ConfigError(message, source=file, line=entry.line)
    if isinstance(node, Mapping):
        if isinstance(node.get("name"), str) and node["name"]:
            where += f" ({node['name']!r})"
        for key in node:
            if key not in _KEYS:
                hint = did_you_mean(key, _KEYS)
                raise ConfigError(f"{where}: unknown key {key!r}{hint}", source=file)
    try:
        return NodeSpec.parse(node)
    except InvalidInput as error:
        raise ConfigError(f"{where}: {error}", source=file, line=entry.line) from error


def _check_unique(file: str, places: list[tuple[str, int | None]], specs: list[NodeSpec]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for (place, line), spec in zip(places, specs, strict=True):
        for kind, value in (("URL", spec.url), ("name", spec.name)):
            first = seen.setdefault((kind, value), place)
            if first != place:
                what = "remove one" if kind == "URL" else "give each its own"
                message = f"{file}, {place}: the {kind} {value!r} is also that of {first}; {what}"
                raise ConfigError(message, source=file, line=line)
