"""Typed access to the fields of a JSON body; a field of another type raises Refusal.

The messages are those of Go's encoding/json, which Ollama's compatibility layer sends to clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiosollol.wire.ollama.go_json import GoJSONError, kind_of, loads
from aiosollol.wire.ollama.server_requests import Refusal

_INT64 = range(-(2**63), 2**63)


def early(message: str) -> Refusal:
    """A 400 sent before the request proper, as most errors of the /v1 endpoints are."""
    return Refusal(400, message, is_early=True)


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one object; null counts as absent, unread fields are ignored.

    path: position of the object, beginning with the name of Go's structure.

    Every method raises Refusal for a value of another type.
    """

    values: Mapping[str, Any]
    path: str

    @classmethod
    def read(cls, body: bytes, struct: str) -> Fields:
        """The object in `body`. Raises Refusal."""
        try:
            value = loads(body)
        except GoJSONError as error:
            raise early(str(error)) from error
        if value is not None and not isinstance(value, dict):
            raise early(f"json: cannot unmarshal {kind_of(value)} into Go value of type {struct}")
        return cls(value or {}, struct)

    def any(self, name: str) -> Any:
        """The value unchecked, None if absent."""
        return self.values.get(name)

    def text(self, name: str) -> str:
        """A string, "" if absent."""
        value = self.values.get(name)
        if not isinstance(value, str | None):
            raise self._refusal(name, value, "string")
        return value or ""

    def boolean(self, name: str) -> bool:
        """True or false; false if absent."""
        value = self.values.get(name)
        if not isinstance(value, bool | None):
            raise self._refusal(name, value, "bool")
        return value or False

    def integer(self, name: str) -> int | None:
        """A 64-bit integer, None if absent."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value not in _INT64:
            raise self._refusal(name, value, "int")
        return value

    def number(self, name: str) -> float | None:
        """A number within the range of a float64, None if absent."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._refusal(name, value, "float64")
        # Only an int: `in` would search the range for a float.
        if isinstance(value, int) and value in _INT64:
            return value
        try:
            return float(value)
        except OverflowError:
            raise self._refusal(name, value, "float64") from None

    def mapping(self, name: str) -> dict[str, Any] | None:
        """An object, unread; None if absent."""
        value = self.values.get(name)
        if not isinstance(value, dict | None):
            raise self._refusal(name, value, "map[string]interface {}")
        return value

    def inside(self, name: str) -> Fields | None:
        """An object to read field by field, None if absent."""
        value = self.values.get(name)
        if not isinstance(value, dict | None):
            raise self._refusal(name, value, "struct")
        return None if value is None else Fields(value, f"{self.path}.{name}")

    def each(self, name: str) -> list[Fields]:
        """A list of objects to read field by field; empty if absent."""
        items = self._list(name, "[]struct")
        for item in items:
            if not isinstance(item, dict):
                raise self._refusal(name, item, "struct")
        return [Fields(item, f"{self.path}.{name}") for item in items]

    def texts(self, name: str) -> list[str]:
        """A list of strings, empty if absent."""
        items = self._list(name, "[]string")
        for item in items:
            if not isinstance(item, str):
                raise self._refusal(name, item, "string")
        return items

    def _list(self, name: str, go_type: str) -> list[Any]:
        value = self.values.get(name)
        if not isinstance(value, list | None):
            raise self._refusal(name, value, go_type)
        return value or []

    def _refusal(self, name: str, value: object, go_type: str) -> Refusal:
        kind = kind_of(value)
        if kind == "number" and go_type in ("int", "float64"):
            kind = f"number {value!r:.40}"
        return early(
            f"json: cannot unmarshal {kind} into Go struct field {self.path}.{name} "
            f"of type {go_type}"
        )
