"""Nodes for tests of admission."""

from __future__ import annotations

ONE = {"seconds_per_item": 1.0, "max_concurrency": 1}
