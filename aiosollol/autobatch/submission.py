"""What a caller submits, checked and in the form in which it is kept. Pure but for the id."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from aiosollol.autobatch.store import NewJob
from aiosollol.core.arguments import EmbedArguments
from aiosollol.core.request import EmbedSettings, collect_texts
from aiosollol.errors import InvalidInput
from aiosollol.wire.embed import dump_embed


def new_job(
    docs: Sequence[str],
    model: str,
    *,
    metadata: Mapping[str, Any] | None = None,
    owner: str | None = None,
    **given: Unpack[EmbedArguments],
) -> NewJob:
    """A job with an id of its own. Raises InvalidInput, which names the document that is wrong."""
    settings = EmbedSettings(model=model, **given)
    dump_embed(settings, ())  # options may hold what JSON cannot carry
    texts, invalid = collect_texts(docs)
    for error in invalid.values():
        raise error
    if not texts:
        raise InvalidInput("docs is empty: submit at least one document")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidInput(f"metadata must be a mapping, not {type(metadata).__name__}")
    if owner is not None and (not isinstance(owner, str) or not owner):
        raise InvalidInput(f"owner must be a text that is not empty, or None, not {owner!r}")
    kept = {**given, "options": settings.options}
    return NewJob(
        id=str(uuid.uuid4()),
        model=model,
        settings=_json("options", {k: v for k, v in kept.items() if v is not None}),
        metadata=_json("metadata", dict(metadata or {})),
        texts=texts,
        owner=owner,
    )


def _json(name: str, value: dict[str, Any]) -> str:
    try:
        text = json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name} must be of what JSON can carry: {error}") from error
    return text
