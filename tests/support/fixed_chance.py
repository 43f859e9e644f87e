"""Chance from a seed: the jitter of batches, and the order in which trio runs its tasks."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest


def fix_chance(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr("aiosollol.batch.executor.random", SimpleNamespace(Random=lambda: rng))
    monkeypatch.setattr("trio._core._run._r", rng)
