"""``python -m aiosollol.service``: one of several processes of a gateway, started by `run`."""

from __future__ import annotations

import logging

from aiosollol.service.running import run_child

if __name__ == "__main__":
    # Messages go to stderr, which is shared with the parent.
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    raise SystemExit(run_child())
