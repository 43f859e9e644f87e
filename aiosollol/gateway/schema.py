"""JSON Schema in few words: what the OpenAPI document is written with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

STRING: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
MOMENT: Schema = {"type": "string", "description": "RFC 3339"}


def ref(name: str) -> Schema:
    """The component of that name."""
    return {"$ref": f"#/components/schemas/{name}"}


def told(schema: Schema, description: str) -> Schema:
    """`schema` with words."""
    return {**schema, "description": description}


def array(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


def nullable(kind: str) -> Schema:
    """That type, or null."""
    return {"type": [kind, "null"]}


def struct(required: Sequence[str] = (), /, **properties: Schema) -> Schema:
    """An object with `properties`, of which `required` must be there."""
    made: dict[str, Any] = {"type": "object", "properties": properties}
    return {**made, "required": list(required)} if required else made


def every(**properties: Schema) -> Schema:
    """An object with all of these."""
    return struct(list(properties), **properties)


def just(*values: Any) -> Schema:
    """One of these."""
    return {"enum": list(values)}
