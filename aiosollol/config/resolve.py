"""The settings of a pool, from all the places where they may be given, and where each came from.

The order is: arguments, environment, file, defaults.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

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

if TYPE_CHECKING:
    pass

CONFIG_VARIABLE = f"{PREFIX}CONFIG"

log = logging.getLogger("aiosollol")


class Origin(NamedTuple):
    """A setting's value, and where it came from.

    source: "argument", "environment variable SOLLOL_X", "/path/config.toml, line 3" or "default".
    """

    value: Any
    source: str


class Resolved(NamedTuple):
    """What holds. `origins` has every setting by name.

    path: the settings file that was read; None if there is none.
    strangers: variables that look like settings and are none, and what was probably meant, or "".
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
    """Every setting, and where it came from. An argument that is None was not given.

    path: the settings file, in place of ``$SOLLOL_CONFIG`` and ``~/.config/aiosollol/config.toml``.
    An environment variable that is empty counts as not set. A variable whose name is nearly that
    of a setting is logged as a warning, and has no effect.

    Blocks for one look at the file system, and for reading the file if there is one.
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
        file, missing = path_of(named), f"make it, or unset {CONFIG_VARIABLE}"
    else:
        file, missing = str(settings_path(environ)), "the link to it leads nowhere: remove it"
        # A home that may not be entered (systemd's ProtectHome) is a home without a file.
        if not os.path.lexists(file):
            return None, {}

    return file, read_settings(file, missing=missing)


def _find_strangers(environ: Mapping[str, str]) -> dict[str, str]:
    known = {setting.variable for setting in TABLE.values()} | {CONFIG_VARIABLE}
    found = sorted(
        name for name in environ if name.upper().startswith(PREFIX) and name not in known
    )
    # Without the prefix, which would make any two of them look alike, and strictly: the original's
    # "metrics_port" is no slip of the pen.
    short = [name.removeprefix(PREFIX) for name in known]
    guesses = {
        name: closest(name.upper().removeprefix(PREFIX), short, likeness=0.75) for name in found
    }
    return {name: guess and f"{PREFIX}{guess}" for name, guess in guesses.items()}


def _warn(strangers: Mapping[str, str]) -> None:
    # Those that resemble nothing are most likely the original's, which has some of its own.
    guesses = [f"{name} (did you mean {guess}?)" for name, guess in strangers.items() if guess]
    if guesses:
        log.warning("environment variables that are no settings: %s", ", ".join(guesses))


class Written(NamedTuple):
    """A checked value from a file. `line` is None where it could not be found."""

    value: Any
    line: int | None


def read_settings(path: str, *, missing: str) -> dict[str, Written]:
    """The settings in the file, by name, checked.

    missing: what to do if there is no such file, as the end of a sentence.
    Raises ConfigError, which names the file, the line, and what to write instead.
    """
    found = {}
    for name, value, line in read_toml(path, missing=missing, example="embed_timeout = 60"):
        if name not in TABLE:
            raise unknown_setting(name, source=path, line=line)
        found[name] = Written(TABLE[name].check(value, source=path, line=line), line)
    return found


def read_toml(path: str, *, missing: str, example: str) -> Iterator[tuple[str, Any, int | None]]:
    """The keys of a TOML file, each with its value and its line, None if that is not found.

    missing: as for `read_settings`. example: of a line. Raises ConfigError.
    """
    import tomllib  # 2 ms, for those who have a file

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
