"""Faults of a node that pass by themselves."""

from __future__ import annotations

from aiosollol.testing import Fault

PASSING = [
    Fault.ERROR_500,
    Fault.BUSY_503,
    Fault.BAD_400_RUNNER,
    Fault.RESET,
    Fault.CUT_JSON,
    Fault.HTML,
    Fault.HTML_502,
    Fault.REFUSE,
]
