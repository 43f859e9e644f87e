"""Paths of the files that tests read."""

from __future__ import annotations

import pathlib

SUPPORT = pathlib.Path(__file__).parent
TESTS = SUPPORT.parent
DATA = TESTS / "data"
CAPTURES = TESTS / "captures"
ROOT = TESTS.parent
DOCS = ROOT / "docs"
