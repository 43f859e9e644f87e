"""Resolves the settings of a pool, and records where each came from.

Precedence: arguments, environment, file, defaults.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from aiosollol.config.files import path_of, read_text, settings_path
from aiosollol.config.setting_types import closest
from aiosollol.config.settings import (
    ARGUMENT,
    PREFIX,
    TABLE,
    Settings,
    place,
    unknown_setting,
    wrong,
)

CONFIG_VARIABLE = f"{PREFIX}CONFIG"

log = logging.getLogger("aiosollol")


class Origin(NamedTuple):
    """A setting's value, and where it came from.

    source: "argument", "environment variable SOLLOL_X", "/path/config.toml, line 3" or "default".
    """

    value: Any
    source: str


class Resolved(NamedTuple):
    """Resolved settings. origins: of every setting, by name.

    path: the settings file that was read; None if there is none.
    strangers: unknown variable with our prefix -> the probable intended one, or "".
    """

    settings: Settings
    origins: Mapping[str, Origin]
    path: str | None
    strangers: Mapping[str, str]


def resolve(
    arguments: Mapping[str, Any],
    *,
    environ: Mapping[str, str] = os.environ,
    path: str | os.PathLike[str] | None = None,
) -> Resolved:
    """Every setting, and where it came from. Arguments that are None count as not given.

    path: the settings file, instead of ``$SOLLOL_CONFIG`` and ``~/.config/aiosollol/config.toml``.

    An empty environment variable counts as not set. A variable whose name resembles that of a
    setting has no effect, and a warning is logged. Blocking: reads the file if there is one.

    Raises ConfigError, which names the variable, or the file and line, and what to write instead.
    """
    for name in arguments:
        if name not in TABLE:
            raise unknown_setting(name)
    file, written = _read_file(environ, path)
    origins = {}
    for name, setting in TABLE.items():
        argument, text = arguments.get(name), environ.get(setting.variable, "").strip()
        if argument is not None:
            origins[name] = Origin(setting.check(argument), ARGUMENT)
        elif text:
            origins[name] = Origin(setting.read(text), f"environment variable {setting.variable}")
        elif name in written and file is not None:
            origins[name] = Origin(written[name].value, place(file, written[name].line))
        else:
            origins[name] = Origin(setting.default, "default")
    settings = Settings(**{name: origin.value for name, origin in origins.items()})
    strangers = _find_strangers(environ)
    _warn(strangers)
    return Resolved(settings, origins, file, strangers)


def _read_file(
    environ: Mapping[str, str], path: str | os.PathLike[str] | None
) -> tuple[str | None, dict[str, Written]]:
    named = environ.get(CONFIG_VARIABLE, "").strip()
    if path is not None:
        file, missing = path_of(path), "name one that exists"
    elif named:
        file, missing = path_of(named), f"create it, or unset {CONFIG_VARIABLE}"
    else:
        file, missing = str(settings_path(environ)), "the link to it is broken: remove it"
        # An inaccessible home (systemd's ProtectHome) counts as one without a file.
        if not os.path.lexists(file):
            return None, {}

    return file, read_settings(file, missing=missing)


def _find_strangers(environ: Mapping[str, str]) -> dict[str, str]:
    known = {setting.variable for setting in TABLE.values()} | {CONFIG_VARIABLE}
    found = sorted(
        name for name in environ if name.upper().startswith(PREFIX) and name not in known
    )
    # Compare without the prefix, which would make any two names similar, and strictly: the original
    # SOLLOL's "metrics_port" is not a typing mistake.
    short = [name.removeprefix(PREFIX) for name in known]
    guesses = {
        name: closest(name.upper().removeprefix(PREFIX), short, likeness=0.75) for name in found
    }
    return {name: guess and f"{PREFIX}{guess}" for name, guess in guesses.items()}


def _warn(strangers: Mapping[str, str]) -> None:
    # Names without a resemblance are most likely settings of the original SOLLOL.
    guesses = [f"{name} (did you mean {guess}?)" for name, guess in strangers.items() if guess]
    if guesses:
        log.warning("environment variables that are not settings: %s", ", ".join(guesses))


class Written(NamedTuple):
    """A checked value from a file. line: None if it could not be found."""

    value: Any
    line: int | None


def read_settings(path: str, *, missing: str) -> dict[str, Written]:
    """The settings in the file, by name, checked.

    missing: advice if there is no such file, as the end of a sentence.
    Raises ConfigError, which names the file, the line, and what to write instead.
    """
    found = {}
    for name, value, line in read_toml(path, missing=missing, example="embed_timeout = 60"):
        if name not in TABLE:
            raise unknown_setting(name, source=path, line=line)
        found[name] = Written(TABLE[name].check(value, source=path, line=line), line)
    return found


def read_toml(path: str, *, missing: str, example: str) -> Iterator[tuple[str, Any, int | None]]:
    """The keys of a TOML file, with value and line (None if not found).

    missing: as for `read_settings`. example: of a line, for errors. Raises ConfigError.
    """
    import tomllib  # 2 ms, only if there is a file

    text = read_text(path, missing=missing)
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        message = f"not TOML: {problem}; write lines such as {example}"
        raise wrong(message, path, _line_in(problem, text)) from error
    for name, value in values.items():
        yield name, value, _line_of(name, text)


def _line_in(problem: str, text: str) -> int | None:
    """The line in tomllib's message; before Python 3.14 it is nowhere else."""
    match = re.search(r"\(at line (\d+), column \d+\)$", problem)
    if match is not None:
        return int(match[1])
    return text.rstrip().count("\n") + 1 if problem.endswith("(at end of document)") else None


def _line_of(name: str, text: str) -> int | None:
    """The line of ``name =``, ``name.x =`` or ``[name]``, which tomllib does not report."""
    key = rf"""^[ \t]*+\[*+[ \t]*+(["']?){re.escape(name)}\1[ \t]*[=.\]]"""
    match = re.search(key, text, re.MULTILINE)
    return text.count("\n", 0, match.start()) + 1 if match is not None else None
