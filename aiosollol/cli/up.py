"""`aiosollol up`: one address that is every Ollama. `aiosollol key`: who may use it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiosollol.cli.output import Screen
from aiosollol.gateway.keys import new_key
from aiosollol.service import ConfigSource, run
from aiosollol.service.running import Running


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What `aiosollol up` was told.

    config: a TOML file with the names of `SOLLOLConfig`. nodes: URLs; hosts: a file of nodes. If
    there are neither, nor any in `config`, those count with which a pool begins.
    given: the other settings that were told, by their names in `SOLLOLConfig`; they count more
    than those in the file.
    """

    config: str | None = None
    nodes: Sequence[str] = ()
    hosts: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)


def run_up(options: UpOptions) -> int:
    """Serve until Ctrl-C or SIGTERM; the exit code.

    Raises ConfigError and InvalidInput where that cannot be. What is optional and cannot be is a
    warning: see `SOLLOL.start`.
    """
    screen = Screen(sys.stdout)
    with screen.log():
        code = run(source_of(options), lambda running: _tell(screen, running))
    screen.line("The gateway has ended.")
    return code


def source_of(options: UpOptions) -> ConfigSource:
    """Where the settings of a gateway come from. Raises ConfigError."""
    given = {name: value for name, value in options.given.items() if value is not None}
    if options.nodes:
        given["hosts"] = list(options.nodes)
    return ConfigSource(
        path=options.config,
        hosts_file=None if options.nodes else options.hosts,
        begins_as_pool=True,
        given=given,
    )


def print_key(name: str, settings: str) -> int:
    """Print a new key to stderr and its line for the file to stdout; the exit code.

    settings: of the key, as they stand in the file. Raises InvalidInput.
    """
    key = new_key(name, settings)
    print(f"The key of {name}, which is shown this once: {key.token}", file=sys.stderr, flush=True)
    print(key.line, flush=True)
    return 0


def _tell(screen: Screen, running: Running) -> None:
    for line in greeting(running):
        screen.line(line)


def greeting(running: Running) -> list[str]:
    """What a user is told once the gateway serves."""
    count = len(running.processes)
    by = f" ({count} processes: {', '.join(map(str, running.processes))})" if count > 1 else ""
    lines = [f"Listening on {running.url}{by}; Ctrl-C ends it."]
    if running.nodes is None:
        lines.append("Nodes: those in OLLAMA_HOST or the file of nodes, or what a search finds.")
    else:
        lines.append(f"Nodes: {', '.join(running.nodes)}")
    if running.metrics_url is not None:
        lines.append(f"Metrics: {running.metrics_url}")
    lines.append(f"Try: OLLAMA_HOST={running.url} ollama list, or open {running.url}/docs")
    return lines
