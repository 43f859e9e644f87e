"""Detect texts that a server truncated to the model's context, from its token counts.

By default Ollama silently embeds only the beginning of a text that exceeds the context
(`truncateInput` in its server/routes.go). It counts the remaining tokens: for a truncated text,
exactly the context length. An answer has one count for all its texts, so the truncated ones are
inferred: they are the longest, and with them at the limit the count of the others must be in
proportion to their lengths.

The limit is known from ``num_ctx``, ``/api/ps`` or ``/api/tags``. If it is unknown, or another
limit applies (a text longer than a batch is cut to ``num_batch``), it is inferred from several
texts of different lengths with the same count, far below the usual count for their length.

False positive: a text that fits exactly. False negative: a text in a list that was cut by only a
few tokens, or that by its length would just fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

from aiosollol.core.model_names import full_name
from aiosollol.core.node import NodeState
from aiosollol.core.redaction import safe_repr
from aiosollol.core.request import EmbedSettings
from aiosollol.core.scheduling.token_counts import weight
from aiosollol.errors import InvalidInput

OnTruncate = Literal["ignore", "warn", "raise"]

_SLACK = 8
"""Tokens below the limit that a truncated text may count: the rest is tokenised again."""
_BATCHES = (2048, 512)
"""Ollama's ``num_batch`` for embedding models: the current value and an earlier one."""
_LEAST_CEILING = 64
_FAR_BEYOND = 1.25
"""A text at an inferred limit is truncated if its estimated tokens exceed the limit this much."""
_MOST_CHARACTER_TOKENS = 4  # one for each byte of UTF-8
_SPREAD = 1.1


def check_on_truncate(settings: EmbedSettings, on_truncate: object) -> EmbedSettings:
    """`settings`, changed for "raise" so that the server refuses texts it would truncate.

    Raises InvalidInput.
    """
    if on_truncate not in get_args(OnTruncate):
        shown = safe_repr(on_truncate)
        raise InvalidInput(f"on_truncate must be 'ignore', 'warn' or 'raise', not {shown}")
    if on_truncate != "raise":
        return settings
    if settings.truncate:
        raise InvalidInput("truncate=True cuts texts and on_truncate='raise' forbids it: give one")
    return replace(settings, truncate=False)


def context_limit(state: NodeState, model: str, num_ctx: object = None) -> int:
    """Maximum tokens of a text that `model` reads on a node; 0 if unknown.

    num_ctx: the option of that name in the request.
    """
    name = full_name(model)
    known = (state.models or {}).get(name)
    trained = known.context_length if known is not None else 0
    if isinstance(num_ctx, int) and not isinstance(num_ctx, bool) and num_ctx > 0:
        return min(num_ctx, trained) if trained else num_ctx
    loaded = (state.loaded or {}).get(name)
    return (loaded.context_length if loaded is not None else 0) or trained


class Counted(NamedTuple):
    """Texts of one request, and the server's token count for all of them."""

    texts: Sequence[str]
    tokens: int


def cut_texts(answers: Sequence[Counted], limit: int) -> list[list[int]]:
    """For each answer of a node, the positions of the texts that appear to be truncated.

    limit: see `context_limit`.
    """
    if len(answers) == 1 and _is_plain(answers[0], limit):
        return [[]]
    found = [_cut_at(answer, limit) if limit else [] for answer in answers]
    if any(found):
        return found
    ceiling = _ceiling(answers, limit)
    if not ceiling:
        return found
    return [_far_beyond(answer, ceiling) for answer in answers]


def _is_plain(answer: Counted, limit: int) -> bool:
    """Whether it is one text below every limit: a cheap test for the usual case."""
    texts, tokens = answer
    is_below = tokens < limit - _SLACK if limit else True
    return is_below and len(texts) == 1 and tokens not in _BATCHES


def _cut_at(answer: Counted, limit: int) -> list[int]:
    """Positions of the texts truncated to a known `limit`."""
    texts, tokens = answer
    if tokens < limit - _SLACK or _MOST_CHARACTER_TOKENS * max(map(len, texts)) < limit:
        return []
    weights = [weight(text) for text in texts]
    count = len(texts)
    if tokens >= count * limit:
        return list(range(count))
    if tokens >= count * (limit - _SLACK):
        return [place for place, each in enumerate(weights) if each > limit * _FAR_BEYOND]
    order = sorted(range(count), key=weights.__getitem__, reverse=True)
    rest = sum(weights)
    for cut, place in enumerate(order):
        # With the first `cut` at the limit, do the remaining tokens keep the others below it?
        left = tokens - cut * limit
        if weights[place] * left <= limit * rest:
            return sorted(order[:cut])
        rest -= weights[place]
    return sorted(order)


def _far_beyond(answer: Counted, ceiling: int) -> list[int]:
    if answer.tokens < ceiling - _SLACK:
        return []
    cut = _cut_at(answer, ceiling)
    texts = answer.texts
    return [place for place in cut if weight(texts[place]) > _FAR_BEYOND * ceiling]


def _ceiling(answers: Iterable[Counted], limit: int) -> int:
    """The inferred limit, in tokens; 0 if none can be inferred. limit: its upper bound."""
    lengths: dict[int, tuple[int, int]] = {}
    for texts, tokens in answers:
        mean, rest = divmod(tokens, len(texts))
        if rest or mean < _LEAST_CEILING or (limit and mean >= limit - _SLACK):
            continue
        shortest = min(texts, key=len)
        if weight(shortest) <= _FAR_BEYOND * mean:
            continue
        if mean in _BATCHES:
            return mean
        least, most = lengths.get(mean, (len(shortest), 0))
        lengths[mean] = min(least, len(shortest)), max(most, *map(len, texts))
    fit = [mean for mean, (least, most) in lengths.items() if most > _SPREAD * least]
    return max(fit, default=0)
