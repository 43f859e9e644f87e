"""How to install extras, in the way in which aiosollol itself was installed."""

from __future__ import annotations

import functools
import json
import os
import shlex
from typing import Any
from urllib.parse import unquote, urlsplit


def install_command(extra: str) -> str:
    """The command that installs aiosollol with an extra: from its folder, archive, repository or
    index."""
    return command_for(extra, _origin())


@functools.cache
def _origin() -> str | None:
    """The installer's record of where the package came from (PEP 610); None for an index."""
    from importlib import metadata  # not at every start: only errors need it

    try:
        return metadata.distribution("aiosollol").read_text("direct_url.json")
    except (metadata.PackageNotFoundError, OSError, ValueError):
        return None


def command_for(extra: str, origin: str | None) -> str:
    """The same, for an origin as in the file ``direct_url.json``."""
    wanted, options = f"aiosollol[{extra}]", ""
    try:
        read: Any = json.loads(origin or "{}")
        url = read["url"]
        if "dir_info" in read:
            folder = _path_of(url)
            if os.path.isdir(folder):
                wanted = f"{folder}[{extra}]"
                options = "-e " if read["dir_info"].get("editable") else ""
        elif "vcs_info" in read:
            commit = read["vcs_info"]["commit_id"]
            wanted = f"{wanted} @ {read['vcs_info']['vcs']}+{url}@{commit}"
        else:
            wanted = f"{wanted} @ {url}"
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    return f"pip install {options}{shlex.quote(wanted)}"


def _path_of(url: str) -> str:
    path = unquote(urlsplit(url).path)
    is_windows = path[2:3] == ":"  # /C:/Users/...
    return path[1:] if is_windows else path
