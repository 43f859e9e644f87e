"""Validated request values, with the field names of Ollama's API."""

from __future__ import annotations

import ast
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from aiosollol.core.durations import parse_duration
from aiosollol.core.model_names import is_valid_name
from aiosollol.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedSettings:
    """An embedding request without its texts. None selects the server's default.

    model: name of the model.
    dimensions: truncate each vector to this length and normalise it again.
    truncate: truncate a text that exceeds the context length (the server's default), else fail.
    options: the model's runtime options.
    keep_alive: how long the model stays loaded, such as ``"5m"``, or in seconds.

    Raises InvalidInput.
    """

    model: str
    dimensions: int | None = None
    truncate: bool | None = None
    options: Mapping[str, Any] | None = None
    keep_alive: str | float | None = None

    def __post_init__(self) -> None:
        check_model(self.model)
        dimensions = self.dimensions
        if dimensions is not None and not (
            isinstance(dimensions, int) and dimensions is not True and 0 < dimensions < 2**63
        ):
            raise InvalidInput(f"dimensions must be a positive whole number, not {dimensions!r}")
        if self.truncate is not None and not isinstance(self.truncate, bool):
            raise InvalidInput(f"truncate must be True or False, not {self.truncate!r}")
        check_options(self.options, self.keep_alive)
        if self.options is not None:
            # A copy, so that a caller's change during a batch does not affect later requests.
            object.__setattr__(self, "options", dict(self.options))


@lru_cache(maxsize=256)
def plain_settings(model: str) -> EmbedSettings:
    """The settings with the server's defaults, cached per model."""
    return EmbedSettings(model=model)


def check_model(model: object) -> None:
    """Raise InvalidInput unless `model` is a valid model name."""
    if not isinstance(model, str):
        raise InvalidInput(f"model must be a string, not {type(model).__name__}")
    if not model.strip():
        raise InvalidInput("model is empty: name one, such as 'nomic-embed-text'")
    if not is_valid_name(model):
        raise InvalidInput(
            f"invalid model name {reprlib.repr(model)}: write [host/][namespace/]model[:tag], with "
            "letters, digits and ._- only"
        )


def check_options(options: object, keep_alive: object) -> None:
    """Raise InvalidInput unless these are valid runtime options and a valid keep-alive."""
    if options is not None and not isinstance(options, Mapping):
        raise InvalidInput(f"options must be a mapping, not {type(options).__name__}")
    if keep_alive is None or _is_keep_alive(keep_alive):
        return
    is_int = isinstance(keep_alive, int) and not isinstance(keep_alive, bool)
    # Python refuses to print an integer of thousands of digits.
    shown = "a number that large" if is_int else reprlib.repr(keep_alive)
    raise InvalidInput(
        f'keep_alive must be seconds, or a duration such as "5m" or "1h30m", not {shown}'
    )


def _is_keep_alive(value: object) -> bool:
    if isinstance(value, str):
        try:
            parse_duration(value)
        except InvalidInput:
            return False
        return True
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond float64, which JSON numbers are
        return False


def check_on_error(on_error: object) -> None:
    """Raise InvalidInput unless it is "raise" or "return"."""
    if on_error not in ("raise", "return"):
        raise InvalidInput(f"on_error must be 'raise' or 'return', not {on_error!r}")


def check_timeout(seconds: object) -> float:
    """`seconds` as a float. Raises InvalidInput unless it is a number above 0."""
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0.0 < seconds < math.inf:  # type: ignore[operator]
        raise InvalidInput(f"timeout must be a number of seconds above 0, not {seconds!r}")
    return float(seconds)  # type: ignore[arg-type]


def loading_of(
    options: Mapping[str, Any] | None, keep_alive: str | float | None
) -> dict[str, Any] | None:
    """The fields of a request that affect the model load; None if there are none."""
    if options is None and keep_alive is None:
        return None
    return {"options": options, "keep_alive": keep_alive}


_RELOADING = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")


def reload_key(options: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...] | None:
    """The `options` that make a server reload the model if they differ; None if there are none.

    These are the runner's options, read when it starts (ollama#8029, #12783).
    """
    if not options:
        return None
    return tuple((name, repr(options[name])) for name in _RELOADING if name in options) or None


def most_output(options: Mapping[str, Any] | None) -> int:
    """The limit of the tokens of an answer in `options`; 0 if there is none."""
    limit = options.get("num_predict") if options else None
    return limit if type(limit) is int and limit > 0 else 0


def options_of(key: object) -> dict[str, Any] | None:
    """The options that `reload_key` made `key` of; None if they cannot be told from it."""
    if not isinstance(key, tuple):
        return {} if key is None else None
    try:
        return {name: ast.literal_eval(value) for name, value in key}
    except (SyntaxError, ValueError):
        return None


def check_text(text: object, index: int | None = None) -> None:
    """Raise InvalidInput unless `text` is a string that JSON can represent."""
    where = "input" if index is None else f"item {index}"
    if not isinstance(text, str):
        raise InvalidInput(f"{where} must be a string, not {type(text).__name__}", index=index)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"{where} has a lone surrogate at character {error.start}, which is not text; "
                "read the source with errors='replace'",
                index=index,
            ) from error


def collect_texts(texts: object) -> tuple[list[str], dict[int, InvalidInput]]:
    """`texts` as a list, and errors by index for the items that cannot be sent.

    Raises InvalidInput if `texts` is not a collection of texts.
    """
    if isinstance(texts, str):
        raise InvalidInput("texts is one string: pass a list, or use embed() for one text")
    if isinstance(texts, bytes | bytearray | memoryview | Mapping) or not isinstance(
        texts, Iterable
    ):
        raise InvalidInput(f"texts must be a list of strings, not {type(texts).__name__}")
    items = list(texts)
    try:
        # Fast path: `isascii` reads a flag of the string, without a scan.
        if all(map(str.isascii, items)):
            return items, {}
    except TypeError:
        pass
    errors: dict[int, InvalidInput] = {}
    for index, text in enumerate(items):
        if not (type(text) is str and text.isascii()):
            try:
                check_text(text, index)
            except InvalidInput as error:
                errors[index] = error
    return items, errors


def unique_texts(texts: Sequence[str], skip: Mapping[int, object]) -> Unique:
    """The distinct texts among `texts`, without the indices in `skip`."""
    if not skip:
        different = list(dict.fromkeys(texts))
        if len(different) == len(texts):
            return Unique(different, range(len(different)), {})
    first: dict[str, int] = {}
    places: list[int] = []
    repeats: dict[int, list[int]] = {}
    for row, text in enumerate(texts):
        if row in skip:
            continue
        entry = first.setdefault(text, len(places))
        if entry == len(places):
            places.append(row)
        else:
            repeats.setdefault(entry, []).append(row)
    return Unique(list(first), places, repeats)


class Unique(NamedTuple):
    """Distinct texts, with the first row of each, and the rows that repeat it."""

    texts: list[str]
    places: Sequence[int]
    repeats: dict[int, list[int]]
