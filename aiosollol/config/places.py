"""Where the files of a user are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def settings_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the settings are looked for: ``~/.config/aiosollol/config.toml``."""
    return _config_folder(environ) / "config.toml"


def default_nodes_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where nodes are saved: ``~/.config/aiosollol/nodes.json``."""
    return _config_folder(environ) / "nodes.json"


def find_nodes_file(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The file of nodes that there is: ours, or else the original's, or None.

    The original's is ``~/.synapticllamas_nodes.json``.
    """
    for path in (default_nodes_path(environ), _home(environ) / ".synapticllamas_nodes.json"):
        if os.path.lexists(path):
            return path
    return None


def _config_folder(environ: Mapping[str, str]) -> Path:
    folder = environ.get("XDG_CONFIG_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    base = Path(folder) if os.path.isabs(folder) else _home(environ) / ".config"
    return base / "aiosollol"


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or os.path.expanduser("~"))
