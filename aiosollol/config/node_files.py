"""Nodes in files: JSON in the original's format, and ``hosts.txt``.

::

    {"nodes": [{"url": "http://10.0.0.2:11434", "name": "gpu1", "priority": 0}]}

The lowest priority number is used first. The other fields of `NodeSpec` are allowed too, and
"host" with "port" instead of "url". A ``hosts.txt`` has one ``host:port`` a line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from aiosollol.config.files import (
    default_nodes_path,
    find_nodes_file,
    path_of,
    read_text,
    write_text,
)
from aiosollol.config.setting_types import did_you_mean
from aiosollol.core.node import NodeSpec
from aiosollol.core.redaction import has_at_sign
from aiosollol.errors import ConfigError, InvalidInput

__all__ = ["default_nodes_path", "find_nodes_file", "load_nodes", "save_nodes"]

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
