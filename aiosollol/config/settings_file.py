"""The settings that a TOML file gives, and the line on which each stands."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from aiosollol.config.files import read_text
from aiosollol.config.settings import TABLE, place, unknown_setting
from aiosollol.errors import ConfigError


class Written(NamedTuple):
    """A checked value from a file. `line` is None where it could not be found."""

    value: Any
    line: int | None


def read_settings(path: str, *, missing: str) -> dict[str, Written]:
    """The settings in the file, by name, checked.

    missing: what to do if there is no such file, as the end of a sentence.
    Raises ConfigError, which names the file, the line, and what to write instead.
    """
    text = read_text(path, missing=missing)
    found = {}
    for name, value in _parse(path, text).items():
        line = _line_of(name, text)
        if name not in TABLE:
            raise unknown_setting(name, source=path, line=line)
        found[name] = Written(TABLE[name].check(value, source=path, line=line), line)
    return found


def _parse(path: str, text: str) -> dict[str, Any]:
    import tomllib  # 2 ms, for those who have a file

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        line = _line_in(problem, text)
        where = place(path, line)
        message = f"{where}: not TOML: {problem}; write lines such as embed_timeout = 60"
        raise ConfigError(message, source=path, line=line) from error


def _line_in(problem: str, text: str) -> int | None:
    """The line that tomllib names; before Python 3.14 it does so in its message only."""
    match = re.search(r"\(at line (\d+), column \d+\)$", problem)
    if match is not None:
        return int(match[1])
    return text.rstrip().count("\n") + 1 if problem.endswith("(at end of document)") else None


def _line_of(name: str, text: str) -> int | None:
    """Where ``name =``, ``name.x =`` or ``[name]`` stands. tomllib does not tell."""
    key = rf"""^[ \t]*+\[*+[ \t]*+(["']?){re.escape(name)}\1[ \t]*[=.\]]"""
    match = re.search(key, text, re.MULTILINE)
    return text.count("\n", 0, match.start()) + 1 if match is not None else None
