"""Faults for tests of the router."""

from __future__ import annotations

from aiosollol.testing import Fault

# Tried again.

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
