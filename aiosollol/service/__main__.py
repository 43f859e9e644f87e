"""``python -m aiosollol.service``: one of several processes of a gateway. `run` starts it."""

from __future__ import annotations

import logging

from aiosollol.service.running import run_child

if __name__ == "__main__":
    # What it has to say goes to stderr, which it shares with its parent.
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    raise SystemExit(run_child())
