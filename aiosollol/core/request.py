"""What a caller asks for: validated values, in the field names of Ollama's API."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from aiosollol.core.durations import parse_duration
from aiosollol.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedSettings:
    """Everything of an embedding request but the texts. None leaves a choice to the server.

    dimensions: cut each vector to this length and normalise it again. truncate: cut a text that
    exceeds the context length (the server's default) instead of failing. options: the model's
    runtime options. keep_alive: how long it stays loaded, like ``"5m"`` or seconds.

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
            isinstance(dimensions, int) and not isinstance(dimensions, bool) and dimensions >= 1
        ):
            raise InvalidInput(f"dimensions must be a positive whole number, not {dimensions!r}")
        if self.truncate is not None and not isinstance(self.truncate, bool):
            raise InvalidInput(f"truncate must be True or False, not {self.truncate!r}")
        check_options(self.options, self.keep_alive)
        if self.options is not None:
            # A copy: whoever changes theirs in mid-batch must not change our later requests.
            object.__setattr__(self, "options", dict(self.options))


@lru_cache(maxsize=256)
def plain_settings(model: str) -> EmbedSettings:
    """The settings of a request that leaves everything to the server: checked once per model."""
    return EmbedSettings(model=model)


def check_model(model: object) -> None:
    """Raise InvalidInput unless `model` can be a model's name."""
    if not isinstance(model, str):
        raise InvalidInput(f"model must be a string, not {type(model).__name__}")
    if not model.strip():
        raise InvalidInput("model is empty: name one, such as 'nomic-embed-text'")


def check_options(options: object, keep_alive: object) -> None:
    """Raise InvalidInput unless these can be the runtime options and the keep-alive of a model."""
    if options is not None and not isinstance(options, Mapping):
        raise InvalidInput(f"options must be a mapping, not {type(options).__name__}")
    if keep_alive is None or _is_keep_alive(keep_alive):
        return
    is_int = isinstance(keep_alive, int) and not isinstance(keep_alive, bool)
    # Python does not write an integer of thousands of digits.
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
    except OverflowError:  # an integer that no float64 can be, and JSON has no other numbers
        return False


def check_timeout(seconds: object) -> float:
    """`seconds` as a float. Raises InvalidInput unless it is a number above 0."""
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0.0 < seconds < math.inf:  # type: ignore[operator]
        raise InvalidInput(f"timeout must be a number of seconds above 0, not {seconds!r}")
    return float(seconds)  # type: ignore[arg-type]


def loading_of(
    options: Mapping[str, Any] | None, keep_alive: str | float | None
) -> dict[str, Any] | None:
    """What a request says of how its model is to be loaded; None if nothing."""
    if options is None and keep_alive is None:
        return None
    return {"options": options, "keep_alive": keep_alive}


_RELOADING = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")


def reload_key(options: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...] | None:
    """What of `options` makes a server load the model anew when it differs; None if nothing.

    These are the options of the runner, which it takes when it starts (ollama#8029, #12783).
    """
    if not options:
        return None
    return tuple((name, repr(options[name])) for name in _RELOADING if name in options) or None


def check_text(text: object, index: int | None = None) -> None:
    """Raise InvalidInput unless `text` is a string that JSON can carry."""
    where = "input" if index is None else f"item {index}"
    if not isinstance(text, str):
        raise InvalidInput(f"{where} must be a string, not {type(text).__name__}", index=index)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"{where} holds a lone surrogate at character {error.start}, which is not text; "
                "read the source with errors='replace'",
                index=index,
            ) from error


def collect_texts(texts: object) -> tuple[list[str], dict[int, InvalidInput]]:
    """`texts` as a list, and an error for each item that cannot be sent.

    Raises InvalidInput if `texts` is not a collection of texts at all.
    """
    if isinstance(texts, str):
        raise InvalidInput("texts is one string: pass a list, or use embed() for one text")
    if isinstance(texts, bytes | bytearray | memoryview | Mapping) or not isinstance(
        texts, Iterable
    ):
        raise InvalidInput(f"texts must be a list of strings, not {type(texts).__name__}")
    items = list(texts)
    try:
        # The common case in one look: `isascii` is a flag of the string, not a scan.
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
    """The different texts among `texts`, leaving out the indices in `skip`."""
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
    """Different texts, and where each stands: its first row, and the rows that repeat it."""

    texts: list[str]
    places: Sequence[int]
    repeats: dict[int, list[int]]
