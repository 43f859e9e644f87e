"""Shared by lease tests: the times of a lease book, and a request to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiosollol.core.leasing.book import Lease, LeaseBook

TERM, TURN, INTERVAL = 10.0, 2.0, 0.5
"""Seconds: term of a lease, between two moves of a slot, between two requests of a member."""


def ask(
    book: LeaseBook,
    member: str,
    now: float = 0.0,
    *,
    serial: int = 0,
    wants: Mapping[str, int] | None = None,
    using: Mapping[str, int] | None = None,
    **more: Any,
) -> Lease:
    return book.ask(member, wants=wants or {}, using=using or {}, serial=serial, now=now, **more)
