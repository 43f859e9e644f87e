"""The Retry-After header (RFC 9110, section 10.2.3): seconds or an HTTP date."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_tz

MAX_SECONDS = 60.0
"""Longest wait, in seconds: a server must not be able to take a node out of use for a day."""

_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]*)?")
_MAX_LENGTH = 64  # characters; every date is shorter


def read_retry_after(value: str, now: float) -> float | None:
    """Seconds to wait, 60 at most; None if the header is missing, malformed, or a past date.

    now: current time in seconds since 1970, to compare a date with.
    """
    value = value.strip()
    if not value or len(value) > _MAX_LENGTH:
        return None
    if _SECONDS.fullmatch(value):
        return min(float(value), MAX_SECONDS)
    try:
        date = parsedate_tz(value)
        if date is None:
            return None
        seconds = datetime(*date[:6], tzinfo=UTC).timestamp() - (date[9] or 0) - now
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(seconds, MAX_SECONDS) if seconds >= 0 else None
