"""`ConfigSource`: where the settings of a service come from, to be read again while it runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiosollol.config.files import path_of, read_text
from aiosollol.config.hints import did_you_mean
from aiosollol.config.node_files import load_nodes
from aiosollol.core.node import NodeLike, NodeSpec
from aiosollol.service.config import NAMES_OF_FIELDS, SOLLOLConfig, check, wrong


@dataclass(frozen=True, kw_only=True)
class ConfigSource:
    """A TOML file with the names of `SOLLOLConfig`, and what was said besides, which counts more.

    path: the file, None for none. hosts_file: a file of nodes, JSON or a hosts.txt, that counts
    more than `path`. begins_as_pool: whether, if no node is named at all, a pool decides with which
    it begins; else it is the one of the original.
    """

    path: str | None = None
    hosts_file: str | None = None
    begins_as_pool: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)

    def read(self) -> SOLLOLConfig:
        """The settings, as they are now. Blocks while it reads files.

        Raises ConfigError, which names the file and the line.
        """
        values: dict[str, Any] = {"hosts": None} if self.begins_as_pool else {}
        if self.path is not None:
            values |= _read_file(self.path)
        if self.hosts_file is not None:
            values["hosts"] = load_nodes(self.hosts_file)
        return SOLLOLConfig(**{**values, **self.given})

    def as_data(self) -> dict[str, Any]:
        """For JSON: a child process makes the same of it. Nodes of the program become mappings."""
        given = dict(self.given)
        if given.get("hosts") is not None:
            given["hosts"] = [_plain(host) for host in given["hosts"]]
        if given.get("pool") is not None:
            given["pool"] = dict(given["pool"])
        return {
            "path": self.path,
            "hosts_file": self.hosts_file,
            "begins_as_pool": self.begins_as_pool,
            "given": given,
        }


def _plain(host: NodeLike) -> Any:
    if not isinstance(host, NodeSpec):
        return host
    values = {name: getattr(host, name) for name in host.__dataclass_fields__}
    values["headers"] = dict(host.headers) or None
    return {name: value for name, value in values.items() if value is not None}


def _read_file(name: str) -> dict[str, Any]:
    path = path_of(name)
    text = read_text(path, missing="name one that exists")
    values = {}
    for name, value in _parse(path, text).items():
        line = _line_of(name, text)
        if name not in NAMES_OF_FIELDS:
            hint = did_you_mean(name, NAMES_OF_FIELDS)
            raise wrong(f"unknown setting {name!r}{hint}", path, line)
        values[name] = check(name, value, path, line)
    return values


def _parse(path: str, text: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        match = re.search(r"\(at line (\d+), column \d+\)$", str(error))
        line = int(match[1]) if match is not None else None
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        message = f"not TOML: {problem}; write lines such as gateway_port = 8000"
        raise wrong(message, path, line) from error


def _line_of(name: str, text: str) -> int | None:
    """Where ``name =`` or ``[name]`` stands. tomllib does not tell."""
    key = rf"""^[ \t]*+\[*+[ \t]*+(["']?){re.escape(name)}\1[ \t]*[=.\]]"""
    match = re.search(key, text, re.MULTILINE)
    return text.count("\n", 0, match.start()) + 1 if match is not None else None
